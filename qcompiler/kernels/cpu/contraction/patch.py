"""Operands that cannot be read as they lie -> copies in a task's own scratch memory.

The left operand's lines are copied with their padding filled in, in the dtype that the product
takes; a right operand that is no constant is packed into panels as weights are.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from qcompiler.hardware.isa import Isa
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.images import OpenImage
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.contraction.microkernel import of_row
from qcompiler.kernels.cpu.contraction.operands import Product, Run
from qcompiler.kernels.cpu.contraction.problem import Problem


class Patch:
    """The lines that a block of output rows sees, padded and converted, in `target`: `lines` for
    each plane; of images of largest sizes, or of an `image` whose size a run knows.
    """

    def __init__(
        self,
        b: Builder,
        isa: Isa,
        problem: Problem,
        product: Product,
        source: Pointer,
        target: Pointer,
        lines: int,
        image: OpenImage | None = None,
    ) -> None:
        self.b, self.product, self.lines = b, product, lines
        self.frame, self.planes = problem.frame, problem.planes
        frame = self.frame
        self.height: Value = frame.height
        self.line: Value = frame.line
        self.source_line: Value = frame.source_line
        self.right: Value = frame.right
        self.open = image is not None
        if image is not None:
            self.height, apart = image.height, frame.apart or frame.pixel
            self.line = b.let(image.width * apart, "line")
            self.source_line = b.let(image.width * frame.pixel, "source_line")
            _, right = image.window.pads[1] or (0, 0)
            room = frame.line + frame.right - self.line  # the widest images need no more
            self.right = b.let(tirx.Min(tir.const(right * apart), room), "right")
        self.dtype, self.source, self.target = problem.left.dtype, source, target
        widest = max(tir.bits(product.left), tir.bits(tir.stored(self.dtype))) // 8
        self.lanes = isa.lanes(widest)
        self._fill_sides()

    def _fill_sides(self) -> None:
        """Write the padding left and right of every line, once: copies leave it alone."""
        frame = self.frame
        if not frame.left and not frame.right and not self.open:
            return
        with self.b.serial(self.planes.count * self.lines, "line") as i:
            self._fill(i * frame.padded_line, frame.left)
            self._fill(i * frame.padded_line + (frame.left + self.line), self.right)

    def copy(self, image: Value, plane: Value, row: Value, end: Value) -> None:
        """The lines that output rows from `row` up to `end` see, in planes from one on (which may
        lie before the image's first). `image` is where the image begins.
        """
        b, frame, planes = self.b, self.frame, self.planes
        first = b.let(row * frame.step - frame.top, "first")
        count = b.let((end - row - 1) * frame.step + frame.reach, "lines")
        with b.serial(planes.count, "plane") as p, b.serial(count, "line") as i:
            at = (p * self.lines + i) * frame.padded_line + frame.left
            target = b.let(at, "target")
            z, y = b.let(plane + p * planes.apart, "z"), b.let(first + i, "y")
            source = b.let(image + (z * self.height + y) * self.source_line, "source")
            inside = []
            if planes.padded:
                inside += [z >= 0, z < planes.size]
            if frame.top or frame.bottom or self.open:
                inside += [y >= 0, y < self.height]
            if not inside:
                self._copy_line(source, target)
                return
            with b.when(tirx.all(*inside)):
                self._copy_line(source, target)
            with b.otherwise():
                self._fill(target, self.line)

    def _copy_line(self, source: Value, target: Value) -> None:
        frame = self.frame
        if not frame.apart:
            self._copy(source, target, self.line)
            return
        with self.b.serial(self.line // frame.apart, "pixel") as i:
            self._copy(source + i * frame.pixel, target + i * frame.apart, frame.pixel)

    def _copy(self, source: Value, target: Value, count: Value) -> None:
        def move(at: Value, lanes: int, some: Value) -> None:
            value = self.source.load_first(some, source + at, lanes)
            made = self.product.convert_left(value, self.dtype)
            self.target.store_first(some, target + at, made)

        self._along(count, move)

    def _fill(self, target: Value, count: Value) -> None:
        value = self.product.pad_value(self.frame.value)

        def move(at: Value, lanes: int, some: Value) -> None:
            made = tir.const(value, self.product.left, lanes)
            self.target.store_first(some, target + at, made)

        self._along(count, move)

    def _along(self, count: Value, move: Callable[[Value, int, Value], None]) -> None:
        """Vectors over `count` elements; the last one overlaps the one before it, or is a part of
        one where only a run knows the count.
        """
        lanes = self.lanes
        if not isinstance(count, int):
            whole = self.b.let(count // lanes, "whole")
            with self.b.serial(whole, "v") as v:
                move(v * lanes, lanes, lanes)
            if lanes > 1:
                rest = self.b.let(count - whole * lanes, "rest")
                with self.b.when(rest > 0):
                    move(whole * lanes, lanes, rest)
            return
        while lanes > count:
            lanes //= 2
        if not count:
            return
        with self.b.serial(count // lanes, "v") as v:
            move(v * lanes, lanes, lanes)
        if count % lanes:
            move(tir.const(count - lanes), lanes, lanes)


class RightPacker:
    """Packs panels of one right matrix, rows of `width` (or, transposed, of `depth`) elements."""

    def __init__(
        self,
        b: Builder,
        product: Product,
        problem: Problem,
        source: Pointer,
        target: Pointer,
        transposed: bool,
    ) -> None:
        self.b, self.product, self.problem = b, product, problem
        self.source, self.target, self.transposed = source, target, transposed

    def panel(self, start: Value, at: Value, column: Value, run: Run) -> None:
        """The panel of a run at byte `at` of the target, from the matrix at `start`."""
        b, mac = self.b, self.product.mac
        at, column = b.let(at, "at"), b.let(column, "column")
        steps = self.product.steps(self.problem.depth)
        whole = self.problem.depth // mac.k
        head = run.vectors * self.product.head_bytes
        totals = b.registers("int32", mac.lanes, run.vectors, "total") if head else None
        if totals:
            totals.fill(0)

        def step(k: Value, count: int) -> None:
            for v in range(run.vectors):
                lanes = run.tail if v == run.vectors - 1 else mac.width
                value = b.let(self._vector(start, k, count, column + v * mac.width, lanes), "right")
                size = self.product.vector_bytes
                self.target.store(at + k * (run.vectors * size) + (head + v * size), value)
                if totals:
                    ones = tir.const(1, self.product.left, mac.width * mac.k)
                    totals[v] = mac.emit(totals[v], ones, value)

        with b.serial(whole, "k") as k:
            step(k, mac.k)
        if whole < steps:
            step(tir.const(whole), self.problem.depth - whole * mac.k)
        if totals:
            for v in range(run.vectors):
                factor = tir.const(-self.product.shift, "int32", mac.width)
                total = of_row(self.product, totals, run.vectors, 0, [v])
                correction = tir.wrapping("*", total, factor)
                self.target.store(at + v * mac.width * 4, correction)

    def _vector(self, start: Value, step: Value, count: int, column: Value, lanes: int) -> Value:
        """One multiply-accumulate's vector: `count` of its k elements, `lanes` of its lanes."""
        mac, p = self.product.mac, self.problem
        k, convert, dtype = mac.k, self.product.convert_right, p.right.dtype
        first = step * k
        if self.transposed:
            rows = [
                self._neighbours(start + (column + min(i, lanes - 1)) * p.depth + first, count)
                for i in range(mac.width)
            ]
            return convert(tir.concat(rows), dtype)
        rows = [
            self.source.load_first(lanes, start + (first + i) * p.width + column, mac.width)
            for i in range(count)
        ]
        rows += [tir.const(0, self.source.dtype, mac.width)] * (k - count)
        if k > 1:
            order = [i * mac.width + lane for lane in range(mac.width) for i in range(k)]
            rows = [tir.shuffle2(rows, order)]
        return convert(rows[0], dtype)

    def _neighbours(self, at: Value, count: int) -> Value:
        """`count` neighbouring elements and zeros, k in all, as a vector."""
        k = self.product.mac.k
        if count == k:
            return self.source.load(at, k)
        zero = tir.const(0, self.source.dtype)
        return tir.shuffle2(
            [self.source.load(at + i) if i < count else zero for i in range(k)], range(k)
        )
