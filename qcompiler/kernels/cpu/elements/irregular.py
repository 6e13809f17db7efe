"""Operators whose steps depend on their data -> TIR of plain loops in one task.

non_max_suppression   the best box that is left, again and again; what overlaps it goes
Det                   elimination with row exchanges, one matrix after the other
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import prod

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import Kernel, Region, kernel


def _alone(region: Region, most: int) -> Skip | None:
    if reason := refuse(region):
        return reason
    if len(region.nodes) > 1:
        return Skip("elementwise work around it")
    sizes = [n.type.size for n in (*region.inputs, region.output)]
    return Skip("an operand without elements, or too large") if not 0 < max(sizes) < most else None


@kernel("non_max_suppression")
def non_max_suppression(region: Region, device: Cpu) -> Kernel | Skip:
    """For each class of each image: as many scans as boxes are kept."""
    if reason := _alone(region, 1 << 28):
        return reason
    d = Draft("nms", region, device)
    return _Suppression(d).kernel()


class _Suppression:
    """The kernel while it is written."""

    def __init__(self, d: Draft) -> None:
        self.d, self.b, self.m = d, d.b, d.m
        self.boxes, self.scores, self.each, self.overlap, self.least = d.root.operands
        self.images, self.classes, self.count = self.scores.type.dims
        self.most = d.root.int("most")
        self.left = d.scratch("uint8")  # 1 while a box may still be kept
        self.total = d.b.registers("int32", 1, 1, "total")
        self.best = d.b.registers("int32", 1, 1, "best")
        self.going = d.b.registers("int32", 1, 1, "going")
        self.end = d.b.registers("int32", 1, 1, "end")  # no box from here on may be kept

    def kernel(self) -> Kernel:
        """All images and classes in order, then the number of boxes kept."""
        b, out = self.b, self.d.out
        with b.serial((self.most + 1) * 3, "clear") as i:
            out.store(i, tir.const(0, "int64"))
        self.total.fill(0)
        if self.count:
            with b.serial(self.images, "image") as i, b.serial(self.classes, "class") as c:
                self._keep(i, c)
        out.store(self.most * 3, tir.cast(self.total[0], "int64"))
        return self.d.kernel(scratch_bytes=max(self.count, 1))

    def _keep(self, image: Value, group: Value) -> None:
        b = self.b
        row = b.let((image * self.classes + group) * self.count)
        least = self.d.read(self.least, 0)
        self.end.fill(0)
        with b.serial(self.count, "box") as n:
            above = self.d.read(self.scores, row + n) > least
            self.left.store(n, tir.cast(self._true(above), "uint8"))
            with b.when(self._true(above)):
                self.end[0] = n + 1
        self.going.fill(1)
        wide = self.d.pointers[self.each].load(0)
        each = b.let(tir.bounded(wide, 0, self.count), "each")
        with b.serial(each, "kept"), b.when(tirx.EQ(self.going[0], 1)):
            self._next(image, group, row)

    def _next(self, image: Value, group: Value, row: Value) -> None:
        """Keep the best box that is left, if there is one."""
        b = self.b
        self.best.fill(-1)
        with b.serial(b.let(self.end[0], "end"), "box") as n, self._left(n):
            at = tirx.Max(self.best[0], tir.const(0))
            better = self.d.read(self.scores, row + n) > self.d.read(self.scores, row + at)
            none = tirx.LT(self.best[0], tir.const(0))
            with b.when(tirx.Or(none, self._true(better))):
                self.best[0] = n
        with b.when(tirx.LT(self.best[0], tir.const(0))):
            self.going.fill(0)
        with b.otherwise():
            with b.when(tirx.LT(self.total[0], tir.const(self.most))):
                for at, value in enumerate((image, group, self.best[0])):
                    self.d.out.store(self.total[0] * 3 + at, tir.cast(value, "int64"))
            self.total[0] = self.total[0] + 1
            self._suppress(image)

    def _left(self, n: Value) -> AbstractContextManager[None]:
        """The statements inside run for a box that may still be kept."""
        return self.b.when(tirx.NE(self.left.load(n), tir.const(0, "uint8")))

    def _suppress(self, image: Value) -> None:
        """Remove the box just kept, and all that overlap it too much."""
        b, m = self.b, self.m
        own = self._corners(image, self.best[0])
        self.left.store(self.best[0], tir.const(0, "uint8"))
        most = self.d.read(self.overlap, 0)
        with b.serial(b.let(self.end[0], "end"), "box") as n, self._left(n):
            other = self._corners(image, n)
            sides = [m.min(own[2 + i], other[2 + i]) - m.max(own[i], other[i]) for i in (0, 1)]
            areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (own, other)]
            both = sides[0] * sides[1]
            share = both / (areas[0] + areas[1] - both)
            parts = [*(s > 0 for s in sides), *(a > 0 for a in areas)]
            some = parts[0] & parts[1] & parts[2] & parts[3]
            with b.when(self._true(m.where(some, share, 0.0) > most)):
                self.left.store(n, tir.const(0, "uint8"))

    def _corners(self, image: Value, n: Value) -> Sequence[Vec]:
        """A box's smaller coordinates, then its larger ones."""
        m, at = self.m, self.b.let((image * self.count + n) * 4)
        a, b, c, d = (m.cast(self.d.read(self.boxes, at + i), "float32") for i in range(4))
        if self.d.root.int("center"):
            return a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0
        return m.min(a, c), m.min(b, d), m.max(a, c), m.max(b, d)

    def _true(self, condition: Vec) -> Value:
        return tirx.NE(self.m.cast(condition, "int32").expr, tir.const(0))


@kernel("Det")
def det(region: Region, device: Cpu) -> Kernel | Skip:
    """In float64: a product of pivots, the largest of a column each."""
    if reason := _alone(region, 1 << 28):
        return reason
    d = Draft("det", region, device)
    x = d.root.operands[0]
    n, rows = x.type.dims[-1], d.scratch("float64")
    with d.b.serial(prod(x.type.dims[:-2]), "matrix") as i:
        determinant(d, i, rows)
    return d.kernel(scratch_bytes=max(n * n, 1) * np.dtype(np.float64).itemsize)


def determinant(d: Draft, i: Value, rows: Pointer) -> None:
    """Matrix number i -> its determinant, in the output; `rows` has room for the matrix."""
    b, m = d.b, d.m
    x = d.root.operands[0]
    n = x.type.dims[-1]
    product = b.registers("float64", 1, 1, "product")
    pivot = b.registers("int32", 1, 1, "pivot")
    with b.serial(n * n, "copy") as j:
        rows.store(j, m.cast(d.read(x, i * (n * n) + j), "float64").expr)
    product.fill(1)
    with b.serial(n, "step") as k:
        pivot[0] = k
        with b.serial(n, "row") as r:
            old = m.abs(m.vec(rows.load(pivot[0] * n + k)))
            larger = m.abs(m.vec(rows.load(r * n + k))) > old
            with b.when(tirx.And(r > k, tirx.NE(m.cast(larger, "int32").expr, 0))):
                pivot[0] = r
        with b.when(tirx.NE(pivot[0], k)):
            product[0] = product[0] * tir.const(-1.0, "float64")
            with b.serial(n, "swap") as c:
                kept = b.hold(rows.load(k * n + c))
                rows.store(k * n + c, rows.load(pivot[0] * n + c))
                rows.store(pivot[0] * n + c, kept)
        product[0] = product[0] * rows.load(k * n + k)
        nothing = tirx.EQ(rows.load(k * n + k), tir.const(0.0, "float64"))
        with b.serial(n, "below") as r, b.when(tirx.And(r > k, tirx.Not(nothing))):
            factor = b.hold(rows.load(r * n + k) / rows.load(k * n + k))
            with b.serial(n, "column") as c:
                old = rows.load(r * n + c)
                rows.store(r * n + c, old - factor * rows.load(k * n + c))
    made = m.cast(m.vec(product[0]), d.root.dtype)
    d.out.store(i, tir.reinterpret(made.expr, d.out.dtype))
