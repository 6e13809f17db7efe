"""Sums of a tile, in registers -> elementwise nodes -> the region's output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft
from qcompiler.kernels.cpu.code.epilogue import store
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.blocking import TOGETHER, powers_of_two
from qcompiler.kernels.cpu.contraction.layout import Layout
from qcompiler.kernels.cpu.contraction.microkernel import Sums, of_row
from qcompiler.kernels.cpu.contraction.operands import Run, bias_of
from qcompiler.kernels.cpu.contraction.pairs import part, together


class Results:
    """The code that ends a tile, while it is emitted. What is done with a tile's nth pixel is done
    inside `there(n)`: where only a run knows whether it is one of the output, that asks.
    """

    def __init__(
        self, d: Draft, layout: Layout, there: Callable[[int], AbstractContextManager[None]]
    ) -> None:
        self.d, self.b, self.layout, self.there = d, d.b, layout, there
        self.root, self.product = layout.problem.root, layout.product
        self.summed = bias_of(d.region)[0]
        self.fused = d.writing(self.summed)  # loads scalars here, once

    def prefetch(self, pixels: list[Value], column: Value, run: Run) -> None:
        """Prefetch the elementwise nodes' operands while a tile is multiplied."""
        lanes = run.vectors * self.product.mac.width
        for node in self.layout.prefetched:
            line = self.d.device.core.line_bytes * 8 // tir.bits(tir.stored(node.dtype))
            for pixel in pixels:
                start = pixel * node.type.dims[-1] + column
                for at in range(0, lanes, line):
                    self.d.pointers[node].prefetch(start + at)

    def write(self, sums: Sums, pixels: list[Value], column: Value, run: Run) -> None:
        """Apply the elementwise nodes to the sums of some pixels from a column on, and store."""
        (self._pairs if self.layout.pairs else self._vectors)(sums, pixels, column, run)

    def _vectors(self, sums: Sums, pixels: list[Value], column: Value, run: Run) -> None:
        b, fused, root, lanes = self.b, self.fused, self.root, self.product.mac.width
        columns = root.type.dims[-1]
        for r, pixel in enumerate(pixels):
            with self.there(r):
                index = b.let(pixel, "pixel")
                row = fused.row(index)
                first = 0
                for width in powers_of_two(run.vectors):
                    last = first + width == run.vectors
                    count = (width - 1) * lanes + (run.tail if last else lanes)
                    some = range(first, first + width)
                    held = of_row(self.product, sums, run.vectors, r, some)
                    value = Vec(fused.m, b.let(held, "sums"), tir.dtype_of(held), width * lanes)
                    at = b.let(column + first * lanes, "n")
                    result = fused.at(row, at, width * lanes, count, {self.summed: value})
                    store(fused.m, self.d.out, index * columns + at, result, count)
                    first += width

    def _pairs(self, sums: Sums, pixels: list[Value], column: Value, run: Run) -> None:
        """The same of two rows at a time, whose bytes are parted at the end."""
        b, fused, root, mac = self.b, self.fused, self.root, self.product.mac
        row = fused.row(tir.const(0))
        for several in range(0, len(pixels), 2):
            first = 0
            for width in together(run.vectors):
                made = []
                for v in range(first, first + width, TOGETHER):
                    count = min(width, TOGETHER)
                    begin = several // 2 * run.vectors + v
                    held = tir.concat([sums[begin + i] for i in range(count)])
                    lanes = count * mac.lanes
                    value = Vec(fused.m, b.let(held, "sums"), root.dtype, lanes)
                    at = b.let(column * 2 + v * mac.lanes, "n")
                    made.append(fused.at(row, at, lanes, lanes, {self.summed: value}))
                parts = [b.let(v.expr, "bytes") for v in made]
                for nth, pixel in enumerate(pixels[several : several + 2]):
                    with self.there(several + nth):
                        at = b.let(pixel * root.type.dims[-1] + (column + first * mac.width), "n")
                        self.d.out.store(at, part(parts, mac.width, nth))
                first += width
