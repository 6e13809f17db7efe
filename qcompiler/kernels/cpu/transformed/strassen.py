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
another order. Where instructions take a lane of a vector, the rows of left[product] are zipped
(contraction/zipped.py). Sources: V. Strassen, "Gaussian elimination is not optimal", 1969; that
packing may add: J. Huang and others, "Strassen's algorithm reloaded", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates, refuse, too_large
from qcompiler.kernels.cpu.code.loops import sweep
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.loops import segment, share_of
from qcompiler.kernels.cpu.contraction.microkernel import Left, Right, sums
from qcompiler.kernels.cpu.contraction.operands import Product, product_of
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.kernels.cpu.contraction.zipped import over_steps, transposed
from qcompiler.kernels.cpu.transformed.strassen_blocking import (
    PRODUCTS,
    Layout,
    cycles,
    losses,
    tilings,
)
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


_PREFETCHED = {2: 0, 3: 1, 5: 2, 6: 3}
"""While a product sums quarters, it prefetches one of the next pair's panels."""


@candidates("conv", "matmul")
def strassen(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Pairs of rows by vectors of columns in registers."""
    found = refuse(region) or _problem(region, device)
    if isinstance(found, Skip):
        return found
    product, problem = found
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


def _emitted(region: Region, device: Cpu, product: Product, layout: Layout) -> Kernel:
    """What was decided -> the kernel."""
    p, t = layout.problem, layout.tiling
    shape = f"{p.rows}x{p.width}x{p.depth}_{t.rows}x{layout.wide}"
    d = Draft(f"{p.root.op}_strassen_{shape}", region, device)
    memory = d.scratch("float32")
    with d.b.parallel(t.tasks) as task:
        _Task(d, product, layout, memory, task).run()
    made = d.kernel(
        tasks=t.tasks,
        scratch_bytes=layout.task_size * 4 * t.tasks,
        pack={region.inputs.index(p.right): partial(_packed, layout)},
        in_place=in_place_candidates(region),
        macs=p.macs,
    )
    return replace(made, mixes_rows=True)


def _packed(layout: Layout, array: Array) -> Array:
    """The right operand -> [pair][pass][quarter][depth][columns of the panel]."""
    shape = (layout.passes, 2, layout.tiling.depth, layout.pairs, 2, -1)
    matrix = layout.problem.matrices(array).reshape(shape)
    return np.ascontiguousarray(matrix.transpose(3, 0, 1, 4, 2, 5)).reshape(-1)


@dataclass(frozen=True)
class _Block:
    """Units of rows from `first` up to `last`, in the nth pass over the depth."""

    first: Value
    last: Value
    nth: Value


@dataclass(frozen=True)
class _Pair:
    """A pair of panels against a block of rows: which one, and where its sums begin."""

    block: _Block
    nth: Value
    sums: Value


class _Task:
    """The code of one task while it is emitted."""

    def __init__(
        self, d: Draft, product: Product, layout: Layout, memory: Pointer, task: Value
    ) -> None:
        self.d, self.b, self.m, self.product, self.layout = d, d.b, d.m, product, layout
        self.problem, self.lanes, self.wide = layout.problem, layout.lanes, layout.wide
        self.depth, self.cut = layout.tiling.depth, layout.cut
        self.x, self.w = (d.pointers[i] for i in d.root.operands[:2])
        mine = d.b.let(task * layout.task_size, "mine")
        self.left = memory + mine
        self.right = memory + d.b.let(mine + PRODUCTS * layout.left_step, "right")
        self.sums = memory + d.b.let(mine + layout.sums_at, "sums")
        self.epilogue = d.epilogue
        self.task = task

    # -- loops

    def run(self) -> None:
        """All blocks of the task."""
        b, t = self.b, self.layout.tiling
        row_task, column_task = self.task // t.column_tasks, self.task % t.column_tasks
        begin, end = share_of(b, self.cut.pieces, row_task, t.row_tasks)
        first_pair, last_pair = share_of(b, self.layout.pairs, column_task, t.column_tasks)
        blocks = b.let(tirx.floordiv(tir.const(0) + end - begin + (t.block - 1), t.block), "blocks")
        with b.serial(blocks, "block") as i:
            first = b.let(begin + i * t.block, "first")
            last = b.let(tirx.Min(first + t.block, tir.const(0) + end), "last")
            with b.serial(self.layout.passes, "pass") as nth:
                block = _Block(first, last, nth)
                for start, count, rows, at in self.cut.runs():
                    with segment(b, (first, last), start, count, "unit") as unit:
                        slot, row = self._place(block, unit, start, rows, at)
                        if self.product.zipped:
                            self._zip(block, slot, row, rows)
                        else:
                            self._rows(slot, row, rows, partial(self._spread, block))
                with b.serial(last_pair - first_pair, "pair") as i:
                    number = b.let(first_pair + i, "pair")
                    pair = _Pair(block, number, b.let(i * self.layout.pair_step, "here"))
                    for product in range(PRODUCTS):
                        self._multiply(pair, product)

    def _rows(self, slot: Value, row: Value, rows: int, body: Callable[..., None]) -> None:
        """body(slot, pair of rows, how many of them there are) for a tile's pairs of rows."""
        b, whole = self.b, self.problem.rows // 2
        count: Value = rows
        if self.problem.rows % 2:
            count = b.let(tirx.Min(tir.const(rows), whole - row), "whole")
        with b.serial(count, "r") as r:
            body(b.let(slot + r, "slot"), b.let(row + r, "row"), 2)
        if self.problem.rows % 2:
            with b.when(row + rows > whole):
                body(b.let(slot + count, "slot"), tir.const(whole), 1)

    def _place(
        self, block: _Block, unit: Value, start: int, rows: int, at: int
    ) -> tuple[Value, Value]:
        """A tile of a run -> its first slot of the block, and its first pair of rows."""
        slot = self.b.let((unit - block.first) * self.cut.size, "slot")
        return slot, self.b.let((unit - start) * rows + at, "row")

    def _spread(self, block: _Block, slot: Value, row: Value, there: int) -> None:
        """A pair of rows -> what the seven products multiply; a row that is not there is zero."""
        b, p = self.b, self.problem
        start = b.let(row * (2 * p.depth) + block.nth * (2 * self.depth), "start")
        target = b.let(slot * self.layout.row_step, "target")

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

    def _zip(self, block: _Block, slot: Value, row: Value, rows: int) -> None:
        """A tile's pairs of rows -> the same of all of them, side by side for every step; a row
        that is not there is the one before.
        """
        b, p, product = self.b, self.problem, self.product
        together, groups = product.together, product.lefts(rows)

        with b.serial(groups, "group") as group:
            target = b.let(slot * self.layout.row_step + group * together, "target")
            pairs = [group * together + i for i in range(together)]
            if rows % together:
                pairs = [tirx.Min(i, tir.const(rows - 1)) for i in pairs]
            lines = [[(row + i) * 2 + y for y in range(2)] for i in pairs]
            if p.rows % 2:
                lines = [[tirx.Min(y, tir.const(p.rows - 1)) for y in two] for two in lines]
            starts = [
                [b.let(y * p.depth + block.nth * (2 * self.depth), "start") for y in two]
                for two in lines
            ]

            def vectors(k: Value) -> None:
                quarters = [
                    transposed(
                        b,
                        [
                            b.let(self.x.load(two[y] + (x * self.depth + k), self.lanes), "row")
                            for two in starts
                        ],
                        1,
                    )
                    for y in range(2)
                    for x in range(2)
                ]
                for number, terms in enumerate(LEFT):
                    for step in range(self.lanes):
                        at = (k + step) * (groups * together) + number * self.layout.left_step
                        here = [quarter[step] for quarter in quarters]
                        self.left.store(target + at, _sum(terms, here.__getitem__))

            over_steps(b, self.depth, self.lanes, vectors)

    def _multiply(self, pair: _Pair, number: int) -> None:
        """One product of a block and a pair of panels."""
        b, terms, block, zipped = self.b, RIGHT[number], pair.block, self.product.zipped
        quarter = self.depth * self.wide
        at = b.let((pair.nth * self.layout.passes + block.nth) * (4 * quarter), "panels")
        panels = {q: self.w + (at + q * quarter) for q, _ in terms}
        if zipped:  # vectors at far offsets from one pointer would not be loaded in pairs
            panels = {q: b.again(panel) for q, panel in panels.items()}

        def whole(step: Value, v: int) -> Value:
            return panels[terms[0][0]].load(step * self.wide + v * self.lanes, self.lanes)

        def made(step: Value, v: int) -> Value:
            return self.right.load(step * self.wide + v * self.lanes, self.lanes)

        prefetched = _PREFETCHED.get(number)
        later = 4 * quarter * self.layout.passes  # where the next pair's panels are

        def make(step: Value, v: int) -> Value:
            where = b.let(step * self.wide + v * self.lanes, "where")
            if prefetched is not None and v * self.lanes % self.layout.line == 0:
                self.w.prefetch(at + (later + prefetched * quarter) + where, level=2)
            value = b.let(_sum(terms, lambda q: panels[q].load(where, self.lanes)), "sum")
            self.right.store(where, value)
            return value

        if len(terms) == 1:
            self._tiles(pair, number, (block.first, block.last), whole)
            return
        second = b.let(block.first + 1, "second")
        self._tiles(pair, number, (block.first, second), make, apart=zipped)
        self._tiles(pair, number, (second, block.last), made)

    def _tiles(
        self,
        pair: _Pair,
        number: int,
        span: tuple[Value, Value],
        load: Callable[[Value, int], Value],
        *,
        apart: bool = False,
    ) -> None:
        """A product's tiles: their sums, and behind the last product the output. `apart`: with
        one step an iteration, which LLVM mixes with no other.
        """
        b, vectors = self.b, self.layout.tiling.vectors
        for start, count, rows, at in self.cut.runs():
            with segment(b, span, start, count, "unit") as unit:
                slot, row = self._place(pair.block, unit, start, rows, at)
                offsets = tuple(r * self.layout.row_step for r in range(rows))
                again = Builder.again if apart else None
                left = Left(self.left, offsets, (), self.depth, guarded=False, again=again)
                left = replace(left, zipped=self.product.zipped)
                base = b.let(slot * self.layout.row_step + number * self.layout.left_step, "base")
                made = sums(b, self.product, left, base, Right(vectors, load, unroll=int(apart)))
                target = b.let(self._kept(pair, slot) + number * self.wide, "target")
                self._keep(pair.block, made, target, rows)
                if number == PRODUCTS - 1:
                    self._finish(pair, slot, row, rows)

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

    def _finish(self, pair: _Pair, slot: Value, row: Value, rows: int) -> None:
        """A tile's part of the output, once its products are whole."""
        last = self.layout.passes - 1
        with self.b.when(tirx.EQ(pair.block.nth, last)) if last else nullcontext():
            self._rows(slot, row, rows, partial(self._gather, pair))

    def _gather(self, pair: _Pair, slot: Value, row: Value, there: int) -> None:
        """The seven products of a pair of rows -> its parts of the output."""
        b, p = self.b, self.problem
        at = b.let(self._kept(pair, slot), "at")
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


def _sum(terms: Terms, part: Callable[[int], Value]) -> Value:
    """The first term's sign is plus."""
    total = part(terms[0][0])
    for i, sign in terms[1:]:
        total = total + part(i) if sign > 0 else total - part(i)
    return total
