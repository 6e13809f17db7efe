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
another order. Sources: V. Strassen, "Gaussian elimination is not optimal", 1969; that packing may
add: J. Huang and others, "Strassen's algorithm reloaded", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates, refuse, too_large
from qcompiler.kernels.cpu.code.loops import sweep
from qcompiler.kernels.cpu.code.tir import Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.blocking import Cut
from qcompiler.kernels.cpu.contraction.loops import segment, share_of
from qcompiler.kernels.cpu.contraction.microkernel import Left, Right, sums
from qcompiler.kernels.cpu.contraction.operands import Product, product_of
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.kernels.cpu.transformed.strassen_blocking import (
    PRODUCTS,
    Tiling,
    cycles,
    losses,
    row_step,
    slot_step,
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


_AHEAD = {2: 0, 3: 1, 5: 2, 6: 3}
"""While a product sums quarters, it asks for one of the next pair's panels."""


@candidates("conv", "matmul")
def strassen(region: Region, device: Device) -> Iterable[Candidate] | Skip:
    """Pairs of rows by vectors of columns in registers."""
    found = refuse(region) or _problem(region, device)
    if isinstance(found, Skip):
        return found
    product, problem = found
    problem = replace(problem, result_bytes=tir.bits(tir.stored(region.output.dtype)) // 8)
    lost, lanes = losses(problem, product, device), product.mac.lanes

    def build(tiling: Tiling) -> Kernel:
        return _Strassen(region, device, product, problem, tiling).kernel()

    def seconds(tiling: Tiling) -> float:
        return device.core.seconds(cycles(problem, device, tiling, lanes) * lost)

    cuts = tilings(problem, product, device)
    return (Candidate(t, seconds(t), partial(build, t)) for t in cuts)


def _problem(region: Region, device: Device) -> tuple[Product, Problem] | Skip:
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
    return product, problem


class _Strassen:
    """One kernel while it is emitted."""

    def __init__(
        self, region: Region, device: Device, product: Product, problem: Problem, tiling: Tiling
    ) -> None:
        self.product, self.problem, self.tiling = product, problem, tiling
        self.lanes, self.depth = product.mac.lanes, tiling.depth
        self.wide = tiling.vectors * self.lanes
        self.pairs = problem.width // (2 * self.wide)
        self.passes = problem.depth // (2 * self.depth)
        self.cut = Cut.of(-(-problem.rows // 2), tiling.rows)
        slots = tiling.block * self.cut.size
        self.line = device.core.line_bytes // 4
        self.row_step = row_step(device.core, self.depth)
        self.left_step = slots * self.row_step + self.line
        self.slot_step = slot_step(device.core, self.wide)
        self.pair_step = slots * self.slot_step if self.passes > 1 else 0
        self.left_size = PRODUCTS * self.left_step
        self.right_size = self.depth * self.wide
        most = -(-self.pairs // tiling.column_tasks) if self.passes > 1 else 1
        sums_size = most * slots * self.slot_step
        self.task_size = self.left_size + self.right_size + sums_size
        tile = f"{tiling.rows}x{self.wide}"
        shape = f"{problem.rows}x{problem.width}x{problem.depth}"
        self.d = Draft(f"{region.root.op}_strassen_{shape}_{tile}", region, device)  # type: ignore[union-attr]
        self.b, self.m, self.root = self.d.b, self.d.m, self.d.root
        self.x, self.w = (self.d.pointers[i] for i in self.root.operands[:2])

    def kernel(self) -> Kernel:
        """Emit all of it."""
        b, d, t = self.b, self.d, self.tiling
        memory = d.scratch("float32")
        with b.parallel(t.tasks) as task:
            mine = b.let(task * self.task_size, "mine")
            self.left = memory + mine
            self.right = memory + b.let(mine + self.left_size, "right")
            self.sums = memory + b.let(mine + (self.left_size + self.right_size), "sums")
            self.after = d.epilogue
            self._task(task // t.column_tasks, task % t.column_tasks)
        made = d.kernel(
            tasks=t.tasks,
            scratch_bytes=self.task_size * 4 * t.tasks,
            pack={d.region.inputs.index(self.problem.right): self._pack},
            in_place=in_place_candidates(d.region),
            macs=self.problem.macs,
        )
        return replace(made, mixes_rows=True)

    def _pack(self, array: Array) -> Array:
        """The right operand -> [pair][pass][quarter][depth][columns of the panel]."""
        matrix = self.problem.matrices(array).reshape(self.passes, 2, self.depth, self.pairs, 2, -1)
        return np.ascontiguousarray(matrix.transpose(3, 0, 1, 4, 2, 5)).reshape(-1)

    # -- loops

    def _task(self, row_task: Value, column_task: Value) -> None:
        b, t = self.b, self.tiling
        begin, end = share_of(b, self.cut.pieces, row_task, t.row_tasks)
        first_pair, last_pair = share_of(b, self.pairs, column_task, t.column_tasks)
        blocks = b.let(tirx.floordiv(tir.const(0) + end - begin + (t.block - 1), t.block), "blocks")
        with b.serial(blocks, "block") as i:
            self.first = b.let(begin + i * t.block, "first")
            self.last = b.let(tirx.Min(self.first + t.block, tir.const(0) + end), "last")
            with b.serial(self.passes, "pass") as turn:
                self.turn = turn
                for start, count, rows, at in self.cut.runs():
                    with segment(b, (self.first, self.last), start, count, "unit") as unit:
                        slot, row = self._place(unit, start, rows, at)
                        self._rows(slot, row, rows, self._spread)
                with b.serial(last_pair - first_pair, "pair") as nth:
                    self.pair = b.let(first_pair + nth, "pair")
                    self.here = b.let(nth * self.pair_step, "here")
                    for number in range(PRODUCTS):
                        self._multiply(number)

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

    def _place(self, unit: Value, start: int, rows: int, at: int) -> tuple[Value, Value]:
        """A tile of a run -> its first slot of the block, and its first pair of rows."""
        slot = self.b.let((unit - self.first) * self.cut.size, "slot")
        return slot, self.b.let((unit - start) * rows + at, "row")

    def _spread(self, slot: Value, row: Value, there: int) -> None:
        """A pair of rows -> what the seven products multiply; a row that is not there is zero."""
        b, p = self.b, self.problem
        start = b.let(row * (2 * p.depth) + self.turn * (2 * self.depth), "start")
        target = b.let(slot * self.row_step, "target")

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
                self.left.store(target + (number * self.left_step + k), value)

        sweep(b, self.depth, self.lanes, vector)

    def _multiply(self, number: int) -> None:
        """One product of a block and a pair of panels."""
        b, terms = self.b, RIGHT[number]
        quarter = self.depth * self.wide
        at = b.let((self.pair * self.passes + self.turn) * (4 * quarter), "panels")

        def whole(step: Value, v: int) -> Value:
            return self.w.load(
                at + (terms[0][0] * quarter + v * self.lanes) + step * self.wide, self.lanes
            )

        def made(step: Value, v: int) -> Value:
            return self.right.load(step * self.wide + v * self.lanes, self.lanes)

        ahead = _AHEAD.get(number)
        later = 4 * quarter * self.passes  # where the next pair's panels are

        def make(step: Value, v: int) -> Value:
            where = b.let(step * self.wide + v * self.lanes, "where")
            if ahead is not None and v * self.lanes % self.line == 0:
                self.w.prefetch(at + (later + ahead * quarter) + where, level=2)
            value = _sum(terms, lambda q: self.w.load(at + q * quarter + where, self.lanes))
            value = b.let(value, "sum")
            self.right.store(where, value)
            return value

        if len(terms) == 1:
            self._tiles(number, (self.first, self.last), whole)
            return
        second = b.let(self.first + 1, "second")
        self._tiles(number, (self.first, second), make)
        self._tiles(number, (second, self.last), made)

    def _tiles(
        self, number: int, span: tuple[Value, Value], load: Callable[[Value, int], Value]
    ) -> None:
        """A product's tiles: their sums, and behind the last product the output."""
        b, vectors = self.b, self.tiling.vectors
        for start, count, rows, at in self.cut.runs():
            with segment(b, span, start, count, "unit") as unit:
                slot, row = self._place(unit, start, rows, at)
                offsets = tuple(r * self.row_step for r in range(rows))
                left = Left(self.left, offsets, (), self.depth, guarded=False)
                base = b.let(slot * self.row_step + number * self.left_step, "base")
                made = sums(b, self.product, left, base, Right(vectors, load))
                self._keep(made, b.let(self._kept(slot) + number * self.wide, "target"), rows)
                if number == PRODUCTS - 1:
                    self._finish(slot, row, rows)

    def _kept(self, slot: Value) -> Value:
        """Where a pair of rows' products are."""
        return self.here + slot * self.slot_step

    def _keep(self, made: Registers, target: Value, rows: int) -> None:
        """Store a tile's sums, from the second block of depth on with those before."""
        b, vectors = self.b, self.tiling.vectors
        places = [
            (r * vectors + v, target + (r * self.slot_step + v * self.lanes))
            for r in range(rows)
            for v in range(vectors)
        ]
        if self.passes > 1:
            with b.when(self.turn > 0):
                for i, at in places:
                    made[i] = made[i] + self.sums.load(at, self.lanes)
        for i, at in places:
            self.sums.store(at, made[i])

    def _finish(self, slot: Value, row: Value, rows: int) -> None:
        """A tile's part of the output, once its products are whole."""
        if self.passes == 1:
            self._rows(slot, row, rows, self._gather)
            return
        with self.b.when(tirx.EQ(self.turn, self.passes - 1)):
            self._rows(slot, row, rows, self._gather)

    def _gather(self, slot: Value, row: Value, there: int) -> None:
        """The seven products of a pair of rows -> its parts of the output."""
        b, p = self.b, self.problem
        at = b.let(self._kept(slot), "at")
        column = b.let(self.pair * (2 * self.wide), "column")
        places = [b.let(row * 2 + y, "y") for y in range(there)]
        rows = [self.after.row(y) for y in places]
        for v in range(self.tiling.vectors):  # a loop within would weigh more than that of the sums
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
                self.d.put(self.after, rows[y], places[y] * p.width + n, n, self.lanes, vec)


def _sum(terms: Terms, part: Callable[[int], Value]) -> Value:
    """The first term's sign is plus."""
    total = part(terms[0][0])
    for i, sign in terms[1:]:
        total = total + part(i) if sign > 0 else total - part(i)
    return total
