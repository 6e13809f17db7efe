"""Matrix products by seven products of quarters instead of eight: one level of Strassen's method.

Rows are paired with their neighbours, columns panel with panel, and a block of the depth half with
half; of such quarters A11 ... A22 and B11 ... B22

    P1 = (A11 + A22)(B11 + B22)   P4 = A22 (B21 - B11)      C11 = P1 + P4 - P5 + P7
    P2 = (A21 + A22) B11          P5 = (A11 + A12) B22      C12 = P3 + P5
    P3 = A11 (B12 - B22)          P6 = (A21 - A11)(B11 + B12)   C21 = P2 + P4
                                  P7 = (A12 - A22)(B21 + B22)   C22 = P1 - P2 + P3 + P6

for each task (a share of the rows, of the columns, or of both)
  for each block of rows, and of the depth
    left[product, row] = sums of quarters of A
    for each pair of panels of B
      for each product
        P[row, product] += left[product] * sums of quarters of B   (contraction/microkernel.py)
      after the last block of the depth: store(epilogue(C))

Sums of B's quarters are made by the first tile of rows, on its way. Weights are stored once, in
panels as for eight products; runs of few rows multiply these (strassen_rows.py). Where instructions
take a lane of a vector, the rows of left[product] are zipped (contraction/zipped.py), and sums are
made before: tiles fill the registers, and short vectors are loaded and stored in pairs. Sources: V.
Strassen, "Gaussian elimination is not optimal", 1969; that packing may add: J. Huang and others,
"Strassen's algorithm reloaded", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import add, sub

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates, refuse, too_large
from qcompiler.kernels.cpu.code.loops import sweep
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.loops import share_of
from qcompiler.kernels.cpu.contraction.microkernel import Left, Right, sums
from qcompiler.kernels.cpu.contraction.operands import Panels, Product, pack, product_of
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.kernels.cpu.contraction.tiled import Task as FewTask
from qcompiler.kernels.cpu.contraction.zipped import over_steps, transposed
from qcompiler.kernels.cpu.transformed.strassen_blocking import (
    PRODUCTS,
    Layout,
    cycles,
    losses,
    tilings,
)
from qcompiler.kernels.cpu.transformed.strassen_rows import Few, Rows, few_of, positions
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

Terms = tuple[tuple[int, int], ...]
"""(quarter, sign): quarters are 11, 12, 21 and 22, counted from 0."""

LEFT: tuple[Terms, ...] = (
    ((0, 1), (3, 1)),
    ((2, 1), (3, 1)),
    ((0, 1),),
    ((3, 1),),
    ((0, 1), (1, 1)),
    ((2, 1), (0, -1)),
    ((1, 1), (3, -1)),
)
RIGHT: tuple[Terms, ...] = (
    ((0, 1), (3, 1)),
    ((0, 1),),
    ((1, 1), (3, -1)),
    ((2, 1), (0, -1)),
    ((3, 1),),
    ((0, 1), (1, 1)),
    ((2, 1), (3, 1)),
)
RESULT: tuple[Terms, ...] = (
    ((0, 1), (3, 1), (4, -1), (6, 1)),
    ((2, 1), (4, 1)),
    ((1, 1), (3, 1)),
    ((0, 1), (1, -1), (2, 1), (5, 1)),
)
"""Quarters of the result, of the seven products."""


_PREFETCHED = (0, 0, 0, 1, 2, 2, 3)
"""While a product sums quarters, it prefetches one of the next pair's panels."""


@candidates("conv", "matmul", version=2)
def strassen(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Pairs of rows by vectors of columns in registers."""
    found = refuse(region) or _problem(region, device)
    if isinstance(found, Skip):
        return found
    product, problem = found
    if region.extents and problem.rows != positions(region, problem):
        return Skip("of a pair of rows, one may not count")
    problem = replace(problem, result_bytes=tir.bits(tir.stored(region.output.dtype)) // 8)
    lost = losses(problem, product, device)

    def way(layout: Layout) -> Candidate:
        seconds = device.core.seconds(cycles(layout, product, device) * lost)
        build = partial(_emitted, region, device, product, layout)
        return Candidate(layout.tiling, seconds, build, mixes_rows=True)

    cuts = tilings(problem, product, device)
    return (way(Layout.of(problem, t, device.core, product)) for t in cuts)


def _problem(region: Region, device: Cpu) -> tuple[Product, Problem] | Skip:
    """The product of floats, and the region's problem where its matrices have quarters."""
    root = region.root
    assert root is not None
    x, w = root.operands[:2]
    if (x.dtype, w.dtype, root.dtype) != ("float32",) * 3:
        return Skip("not float32")
    if not w.is_constant or any(w in n.operands for n in region.nodes if n is not root):
        return Skip("the weights are not constant, or read again as they are")
    product = product_of(device.isa, "float32", "float32", "float32")
    if product is None or product.mac.k != 1:
        return Skip("no product of float32")
    if 0 in root.type.dims or 0 in x.type.dims:
        return Skip("nothing to multiply")
    if reason := too_large(region):
        return reason
    problem = problem_of(root, product.mac.lanes, device.core)
    if isinstance(problem, Skip):
        return problem
    frame = problem.frame
    if problem.images > 1 or problem.groups > 1 or problem.tap_count > 1 or frame.padded:
        return Skip("not one product of two matrices")
    if problem.columns > 1 or frame.step != 1 or frame.padded_line != problem.depth:
        return Skip("rows that are not neighbours")
    if problem.depth % 2 or problem.width % (2 * product.mac.lanes):
        return Skip("quarters of unequal size")
    zipped = product.zippable and problem.depth >= 2 * product.mac.lanes
    return replace(product, zipped=zipped), problem


def _emitted(region: Region, device: Cpu, product: Product, layout: Layout) -> Kernel | Skip:
    """What was decided -> the kernel."""
    p, t = layout.problem, layout.tiling
    few = few_of(region, device, product, layout) if region.extents else None
    if isinstance(few, Skip):
        return few
    shape = f"{p.rows}x{p.width}x{p.depth}_{t.rows}x{layout.wide}"
    d = Draft(f"{p.root.op}_strassen_{shape}", region, device, packed={p.right: "uint8"})
    d.scratch()
    with d.b.parallel(t.tasks) as task:
        _all_rows(d, product, layout, few, task)
    size = layout.task_size * 4 * t.tasks
    made = d.kernel(
        tasks=t.tasks,
        scratch_bytes=max(size, few.layout.scratch_bytes) if few else size,
        pack={region.inputs.index(p.right): partial(packed, layout, product)},
        in_place=() if few else in_place_candidates(region),  # few rows may be read again
        macs=p.macs,
    )
    return replace(made, mixes_rows=not few)


def _all_rows(d: Draft, product: Product, layout: Layout, few: Few | None, task: Value) -> None:
    """A task's share of all rows that count, many or few."""
    if few is None:
        _Task(d, product, layout, Rows.of(layout, d, layout.problem.rows, 0), task).run()
        return
    rows, fewest = d.counted(layout.problem.rows, layout.problem.rows), few.fewest
    if d.least(layout.problem.rows, layout.problem.rows) >= fewest:
        _Task(d, product, layout, Rows.of(layout, d, rows, fewest), task).run()
        return
    with d.b.when(rows >= fewest):
        _Task(d, product, layout, Rows.of(layout, d, rows, fewest), task).run()
    with d.b.otherwise():
        mine = d.scratch() + d.b.let(task * few.layout.task_bytes, "mine")
        FewTask(d, few.layout, mine, task).run()


def packed(layout: Layout, product: Product, array: Array) -> Array:
    """The right operand -> its panels, one after the other, each [depth][columns]."""
    panels = Panels.of(layout.problem.width, layout.lanes, layout.tiling.vectors)
    return pack(layout.problem.matrices(array), product, panels)


_Tiles = list[tuple[Value, Value, int]]
"""(first, how many, pairs of rows in each) of the tiles of every height."""


@dataclass(frozen=True)
class _Block:
    """`tiles` from `first` up to `last`, in the nth pass over the depth: `makers`, the first one,
    makes sums of the right operand's quarters, which the `others` read.
    """

    first: Value
    last: Value
    tiles: _Tiles
    makers: _Tiles
    others: _Tiles
    nth: Value


@dataclass(frozen=True)
class _Pair:
    """A pair of panels against a block of rows: which one, and where its sums begin."""

    block: _Block
    nth: Value
    sums: Value


class _Task:
    """The code of one task while it is emitted."""

    def __init__(self, d: Draft, product: Product, layout: Layout, rows: Rows, task: Value) -> None:
        self.d, self.b, self.m, self.product, self.layout = d, d.b, d.m, product, layout
        self.problem, self.lanes, self.wide = layout.problem, layout.lanes, layout.wide
        self.depth, self.rows = layout.tiling.depth, rows
        left, right = d.root.operands[:2]
        self.x, self.w = d.pointers[left], d.pointers[right].view("float32")
        memory = d.scratch("float32")
        mine = d.b.let(task * layout.task_size, "mine")
        self.left = memory + mine
        self.right = memory + d.b.let(mine + PRODUCTS * layout.left_step, "right")
        self.sums = memory + d.b.let(mine + layout.sums_at, "sums")
        self.epilogue = d.writing()
        self.task = task

    # -- loops

    def run(self) -> None:
        """All blocks of the task."""
        b, t = self.b, self.layout.tiling
        row_task, column_task = self.task // t.column_tasks, self.task % t.column_tasks
        begin, end = share_of(b, self.rows.tiles, row_task, t.row_tasks)
        first_pair, last_pair = share_of(b, self.layout.pairs, column_task, t.column_tasks)
        blocks = b.let(tirx.floordiv(tir.const(0) + end - begin + (t.block - 1), t.block), "blocks")
        with b.serial(blocks, "block") as i:
            first = b.let(begin + i * t.block, "first")
            last = b.let(tirx.Min(first + t.block, tir.const(0) + end), "last")
            second = b.let(first + 1, "second")
            makers, others = self._between(first, second), self._between(second, last)
            tiles = self._between(first, last)
            with b.serial(self.layout.passes, "pass") as nth:
                block = _Block(first, last, tiles, makers, others, nth)
                if self.product.zipped:
                    self._zip(block)
                else:
                    self._rows(block, partial(self._spread, block))
                with b.serial(last_pair - first_pair, "pair") as i:
                    number = b.let(first_pair + i, "pair")
                    pair = _Pair(block, number, b.let(i * self.layout.pair_step, "here"))
                    with b.serial(PRODUCTS, "product") as product:
                        self._multiply(pair, product)
                    self._finish(pair)

    def _between(self, first: Value, last: Value) -> _Tiles:
        """Tiles from one up to another, by their heights."""
        b, found = self.b, list[tuple[Value, Value, int]]()
        for start, count, rows, _ in self.rows.runs:
            low = b.hold(tirx.Max(first, tir.const(0) + start), "low")
            high = tirx.Min(last, tir.const(0) + start + count)
            found.append((low, b.hold(high - low, "tiles"), rows))
        return found

    def _rows(self, block: _Block, body: Callable[..., None]) -> None:
        """body(slot, pair of rows, how many of them there are) for a block's pairs of rows."""
        b, whole = self.b, self.rows.whole
        with b.serial(block.last - block.first, "tile", block.first) as tile:
            row, rows = b.let(self.rows.row_of(tile), "row"), self.rows.in_tile(tile)
            slot = self._slot(block, tile)
            if self.rows.odd:
                rows = b.let(tirx.Max(tirx.Min(rows, whole - row), tir.const(0)), "rows")
            with b.serial(rows, "r") as r:
                body(b.let(slot + r, "slot"), b.let(row + r, "row"), 2)
        if self.rows.odd:
            with b.when(tirx.EQ(block.last, self.rows.tiles)):
                last = b.let(tir.const(0) + self.rows.tiles - 1, "last")
                slot = (last - block.first) * self.layout.cut.size - self.rows.row_of(last)
                with b.when(self.rows.pairs > self.rows.whole):
                    body(b.let(slot + whole, "slot"), tir.const(0) + whole, 1)

    def _slot(self, block: _Block, tile: Value) -> Value:
        """Where a tile's pairs of rows begin among those of its block."""
        return self.b.let((tile - block.first) * self.layout.cut.size, "slot")

    def _spread(self, block: _Block, slot: Value, row: Value, there: int) -> None:
        """A pair of rows -> what the seven products multiply; a row that is not there is zero."""
        b, p = self.b, self.problem
        start = _long(b, row * (2 * p.depth) + block.nth * (2 * self.depth))
        target = _long(b, slot * self.layout.row_step)

        def vector(k: Value, count: int) -> None:
            at = b.let(start + k, "at")
            quarters = [
                b.let(self.x.load_first(count, at + (y * p.depth + x * self.depth), self.lanes))
                for y in range(there)
                for x in range(2)
            ]
            quarters += [tir.const(0.0, "float32", self.lanes)] * (4 - len(quarters))
            for number, terms in enumerate(LEFT):
                value = _sum(terms, quarters.__getitem__)
                self.left.store(target + (number * self.layout.left_step + k), value)

        sweep(b, self.depth, self.lanes, vector)

    def _zip(self, block: _Block) -> None:
        """The same of the pairs of rows of each tile, side by side for every step."""
        b = self.b
        for first, count, rows in block.tiles:
            groups = self.product.lefts(rows)
            with b.serial(count, "tile", first) as tile, b.serial(groups, "group") as group:
                slot = self._slot(block, tile)
                row = b.let(self.rows.row_of(tile), "row")
                self._zip_some(block, slot, row, rows, group)

    def _zip_some(self, block: _Block, slot: Value, row: Value, rows: int, group: Value) -> None:
        """A group of a tile's pairs of rows; one that is not there is the last that is."""
        b, p, lanes, together = self.b, self.problem, self.lanes, self.product.together
        groups = self.product.lefts(rows)
        target = _long(b, slot * self.layout.row_step + group * together)
        pairs = [group * together + i for i in range(together)]
        if rows % together:
            pairs = [tirx.Min(i, tir.const(rows - 1)) for i in pairs]
        lines = [[(row + i) * 2 + y for i in pairs] for y in range(2)]
        if self.rows.odd:
            end = self.rows.whole + self.rows.pairs
            lines = [[tirx.Min(y, tir.const(0) + end - 1) for y in some] for some in lines]
        starts = [
            [_long(b, y * p.depth + block.nth * (2 * self.depth)) for y in some] for some in lines
        ]

        def quarter(nth: int, k: Value) -> list[Value]:
            """Of all pairs, the values of each of as many steps as there are lanes."""
            y, x = divmod(nth, 2)
            loads = [self.x.load(at + (x * self.depth + k), lanes) for at in starts[y]]
            return transposed(b, [b.let(row, "row") for row in loads], 1)

        def vectors(k: Value) -> None:
            quarters = [quarter(nth, k) for nth in range(4)]
            for number, terms in enumerate(LEFT):
                for step in range(lanes):
                    at = (k + step) * (groups * together) + number * self.layout.left_step
                    here = [values[step] for values in quarters]
                    self.left.store(target + at, _sum(terms, here.__getitem__))

        over_steps(b, self.depth, lanes, vectors)

    def _multiply(self, pair: _Pair, number: Value) -> None:
        """One product of a block and a pair of panels: by a quarter, or by a sum of two."""
        b, block, lanes = self.b, pair.block, self.lanes
        half, panel = self.depth * self.wide, self.problem.depth * self.wide
        at = b.let(pair.nth * (2 * panel) + block.nth * (2 * half), "panels")

        def quarter(places: Sequence[int]) -> Value:
            """Where that of a product begins."""
            return b.hold(at + _nth([p // 2 * half + p % 2 * panel for p in places], number))

        zipped = self.product.zipped
        one, other = (self.w + quarter([terms[i][0] for terms in RIGHT]) for i in (0, -1))
        if zipped:  # vectors at far offsets from one pointer would not be loaded in pairs
            one, other = b.again(one), b.again(other)
        sign = _nth([terms[1][1] if len(terms) > 1 else 0 for terms in RIGHT], number)
        later = b.hold(quarter(_PREFETCHED) + 2 * panel, "later")  # the next pair's panels

        def make(join: Callable[[Value, Value], Value], step: Value, v: int) -> Value:
            where = b.let(step * self.wide + v * lanes, "where")
            if v * lanes % self.layout.line == 0:
                self.w.prefetch(later + where, level=2)
            value = b.let(join(one.load(where, lanes), other.load(where, lanes)), "sum")
            self.right.store(where, value)
            return value

        def made(step: Value, v: int) -> Value:
            return self.right.load(step * self.wide + v * lanes, lanes)

        def whole(step: Value, v: int) -> Value:
            return one.load(step * self.wide + v * lanes, lanes)

        # Without a sign there is but a quarter; where there are tiles of many heights, less code is
        # better: then it is a sum of which nothing is the second part.
        quarters = zipped or not self.rows.open
        if quarters:
            with b.when(tirx.EQ(sign, tir.const(0))):
                self._tiles(pair, number, block.tiles, whole)
        with b.otherwise() if quarters else nullcontext():
            if zipped:
                for join, here in ((sub, sign < 0), (add, sign > 0)):
                    with b.when(here):
                        self._make(one, other, later, join)
                self._tiles(pair, number, block.tiles, made)
                return
            by = b.hold(tir.broadcast(tir.cast(sign, "float32"), lanes), "sign")
            more = partial(make, lambda a, b: tir.fma(b, by, a))
            self._tiles(pair, number, block.makers, more)
            self._tiles(pair, number, block.others, made)

    def _make(
        self, one: Pointer, other: Pointer, later: Value, join: Callable[[Value, Value], Value]
    ) -> None:
        """Sums of two quarters, a cache line at a time."""
        b, lanes, line = self.b, self.lanes, self.layout.line
        size = self.depth * self.wide

        def some(at: Value, count: int) -> None:
            self.w.prefetch(later + at, level=2)
            for i in range(0, count, lanes):
                place = b.let(at + i, "at")
                self.right.store(place, join(one.load(place, lanes), other.load(place, lanes)))

        with b.serial(size // line, "line") as i:
            some(b.let(i * line, "at"), line)
        if size % line:
            some(tir.const(size // line * line), size % line)

    def _tiles(
        self, pair: _Pair, number: Value, tiles: _Tiles, load: Callable[[Value, int], Value]
    ) -> None:
        """A product's sums of tiles."""
        b, vectors, block = self.b, self.layout.tiling.vectors, pair.block
        for first, count, rows in tiles:
            with b.serial(count, "tile", first) as tile:
                slot = self._slot(block, tile)
                offsets = tuple(r * self.layout.row_step for r in range(rows))
                left = Left(self.left, offsets, (), self.depth, guarded=False)
                left = replace(left, zipped=self.product.zipped)
                base = b.let(slot * self.layout.row_step + number * self.layout.left_step, "base")
                made = sums(b, self.product, left, base, Right(vectors, load))
                target = _long(b, self._kept(pair, slot) + number * self.wide)
                self._keep(block, made, target, rows)

    def _kept(self, pair: _Pair, slot: Value) -> Value:
        """Where a pair of rows' products are."""
        return pair.sums + slot * self.layout.slot_step

    def _keep(self, block: _Block, made: Registers, target: Value, rows: int) -> None:
        """Store a tile's sums, from the second block of depth on with those before."""
        b, vectors = self.b, self.layout.tiling.vectors
        places = [
            (r * vectors + v, target + (r * self.layout.slot_step + v * self.lanes))
            for r in range(rows)
            for v in range(vectors)
        ]
        if self.layout.passes > 1:
            with b.when(block.nth > 0):
                for i, at in places:
                    made[i] = made[i] + self.sums.load(at, self.lanes)
        for i, at in places:
            self.sums.store(at, made[i])

    def _finish(self, pair: _Pair) -> None:
        """A block's part of the output, once its products are whole."""
        last = self.layout.passes - 1
        with self.b.when(tirx.EQ(pair.block.nth, last)) if last else nullcontext():
            self._rows(pair.block, partial(self._gather, pair))

    def _gather(self, pair: _Pair, slot: Value, row: Value, there: int) -> None:
        """The seven products of a pair of rows -> its parts of the output."""
        b, p = self.b, self.problem
        at = _long(b, self._kept(pair, slot))
        column = b.let(pair.nth * (2 * self.wide), "column")
        places = [b.let(row * 2 + y, "y") for y in range(there)]
        rows = [self.epilogue.row(y) for y in places]
        for v in range(
            self.layout.tiling.vectors
        ):  # a loop within would weigh more than that of the sums
            here = b.let(at + v * self.lanes, "here")
            made = [
                b.let(self.sums.load(here + i * self.wide, self.lanes), "product")
                for i in range(PRODUCTS)
            ]
            for quarter in range(2 * there):
                y, x = divmod(quarter, 2)
                n = b.let(column + (v * self.lanes + x * self.wide), "n")
                value = b.let(_sum(RESULT[quarter], made.__getitem__), "sum")
                vec = Vec(self.m, value, "float32", self.lanes)
                self.d.put(self.epilogue, rows[y], places[y] * p.width + n, n, self.lanes, vec)


def _long(b: Builder, place: Value) -> Value:
    """64 bits: of a sum of 32 LLVM cannot always prove that it does not overflow, and then computes
    an address for every vector.
    """
    return b.let(tir.cast(place, "int64"), "place")


def _nth(values: Sequence[int], number: Value) -> Value:
    """The value of a number."""
    found: Value = tir.const(values[-1])
    for i, value in reversed([*enumerate(values[:-1])]):
        found = tirx.Select(tirx.EQ(number, tir.const(i)), tir.const(value), found)
    return found


def _sum(terms: Terms, part: Callable[[int], Value]) -> Value:
    """The first term's sign is plus."""
    total = part(terms[0][0])
    for i, sign in terms[1:]:
        total = total + part(i) if sign > 0 else total - part(i)
    return total
