"""A layout -> the code that copies a block's left operand; where its rows are for tile loads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import tirx

from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.matrix.layout import Layout, tap_cell


def roomy(core: Core, layout: Layout, size: int) -> int:
    """Bytes -> bytes of whole cache lines, and what a tile's row may run into."""
    return (
        core.whole_lines(size) + max(core.line_bytes, layout.mac.k * layout.problem.itemsize)
        if size
        else 0
    )


def left_scratch(core: Core, layout: Layout, lines: int) -> int:
    """Bytes that the copies for blocks of so many output lines take."""
    parts = (layout.plane_bytes(lines), layout.gathered_bytes(lines), layout.tail_bytes(lines))
    return sum(roomy(core, layout, part) for part in parts)


class Left:
    """The left operand of one task, in blocks of `lines` output lines.

    `prepare` copies what a block needs; then `rows` and `tap` say where its rows lie.
    """

    def __init__(
        self,
        b: Builder,
        device: Cpu,
        layout: Layout,
        lines: int,
        source: Pointer,
        scratch: Pointer,
    ) -> None:
        self.b, self.layout, self.lines, self.source = b, layout, lines, source
        self.problem = layout.problem
        dtype = source.dtype
        self.lanes = device.isa.lanes(layout.problem.itemsize)
        size = layout.problem.itemsize
        planes, gathered = layout.plane_bytes(lines), layout.gathered_bytes(lines)
        self.planes = scratch.view(dtype)
        self.gathered = self.planes + roomy(device.core, layout, planes) // size
        self.tails = self.gathered + roomy(device.core, layout, gathered) // size
        pad = np.asarray(self.problem.frame.value).astype(numpy_dtype(self.problem.left.dtype))
        self.pad = int(pad.view(dtype))
        self.copied = layout.form != "direct"
        if layout.form == "gathered" and not layout.exact and layout.depth < layout.stride:
            with b.serial(lines * self.problem.columns, "row") as row:
                target = b.let(row * layout.stride + layout.depth)
                self._fill(self.gathered, target, layout.stride - layout.depth, 0)

    def prepare(self, image: Value, start: Value) -> Value:
        """Copy what output lines from `start` on need, of the image at an element offset -> where
        their rows begin in the operand itself.
        """
        layout = self.layout
        origin = self.b.let(image + start * (layout.pitch * layout.stride), "origin")
        if layout.plane_bytes(self.lines):
            self._copy_planes(image, start)
        if layout.form == "gathered":
            self._gather(image, start)
        if layout.tail:
            self._copy_tails(origin)
        return origin

    def rows(self, origin: Value, group: Value, row: Value) -> tuple[Pointer, Value, Value]:
        """A group and a row -> memory, its first step's offset, and that of its tail; `origin` is
        what `prepare` gave.
        """
        layout, p = self.layout, self.problem
        within = row * layout.stride + group * p.channels
        tail = (row * (layout.walk * p.groups) + group) * layout.step
        if layout.form == "gathered":
            return self.gathered, within, tail
        if self.copied:
            return self.planes, within, tail
        return self.source, origin + within, tail

    def tap(self, ky: Value, kx: Value) -> tuple[Value, Value]:
        """A tap -> how much further its first step lies, and its tail."""
        p = self.problem
        if self.layout.form == "gathered":
            return tir.const(0), tir.const(0)
        cell = tap_cell(self.layout, self.lines, ky, kx)
        return cell * p.pixel, cell * (p.groups * self.layout.step)

    # -- copies

    def _copy_planes(self, image: Value, start: Value) -> None:
        """The lines that the block sees, padded, each in the plane of its phase."""
        b, p, y = self.b, self.problem, self.layout.axes[0]
        across = self.layout.across * p.pixel
        furthest = ((p.rows - 1) * y.walk + y.shift(y.taps - 1)) * y.stride
        for py in y.phases:
            inside = py >= p.begins[0] and furthest + py - p.begins[0] < p.frame.height
            with b.serial(y.cells(self.lines), "line") as i:
                line = b.let((start * y.walk + i) * y.stride + (py - p.begins[0]), "from")
                source = image + line * (p.breadth * p.pixel)
                plane = py * self.layout.cells(self.lines) * p.pixel
                target = b.let(plane + i * across, "target")
                if inside:
                    self._copy_line(b.let(source, "source"), target)
                    continue
                with b.when(tirx.And(line >= 0, line < p.frame.height)):
                    self._copy_line(b.let(source, "source"), target)
                with b.otherwise():
                    self._fill(self.planes, target, across, self.pad)

    def _copy_line(self, source: Value, target: Value) -> None:
        """A line, with padding before and after it."""
        p, cells = self.problem, self.layout.across
        first = min(p.begins[1], cells)
        last = min(p.begins[1] + p.breadth, cells)
        self._fill(self.planes, target, first * p.pixel, self.pad)
        middle, rest = target + first * p.pixel, target + last * p.pixel
        source = source + (first - p.begins[1]) * p.pixel
        self._copy(self.source, source, self.planes, middle, (last - first) * p.pixel)
        self._fill(self.planes, rest, (cells - last) * p.pixel, self.pad)

    def _gather(self, image: Value, start: Value) -> None:
        """What each window sees, a row a window, from the padded lines or from the operand."""
        b, p, (y, x) = self.b, self.problem, self.layout.axes
        padded = self.layout.plane_bytes(self.lines) > 0
        across = self.layout.across if padded else p.breadth
        memory = self.planes if padded else self.source
        origin = 0 if padded else image + start * (y.walk * across * p.pixel)
        pieces, width = x.taps, p.channels
        if x.dilation == 1:
            pieces, width = 1, p.channels * x.taps
        with b.serial(self.lines, "y") as line, b.serial(p.columns, "x") as column:
            cell = line * (y.walk * across) + column * x.walk
            source = b.let(origin + cell * p.pixel, "source")
            target = b.let((line * p.columns + column) * self.layout.stride, "target")
            for ky in range(y.taps):
                for kx in range(pieces):
                    place = source + (ky * y.dilation * across + kx * x.dilation) * p.pixel
                    to = target + (ky * pieces + kx) * width
                    self._copy(memory, place, self.gathered, to, width)

    def _copy_tails(self, origin: Value) -> None:
        """What is left at the end of a depth, a step of its own, with zeros behind."""
        b, p, layout = self.b, self.problem, self.layout
        memory, origin = (self.planes, 0) if self.copied else (self.source, origin)
        lanes = 1 << (layout.step - 1).bit_length()
        with b.serial(layout.needed_cells(self.lines) * p.groups, "cell") as cell:
            at = cell * p.pixel
            if p.groups > 1:
                at = cell // p.groups * p.pixel + cell % p.groups * p.channels
            at = origin + at + layout.full * layout.step
            zeros = tir.const(0, memory.dtype, lanes)
            value = b.let(memory.load_first(layout.tail, b.let(at), lanes))
            mask = tir.first_lanes(lanes, layout.tail)
            value = value if layout.tail == lanes else tirx.Select(mask, value, zeros)
            self.tails.store_first(layout.step, cell * layout.step, value)

    def _copy(self, memory: Pointer, source: Value, target: Pointer, to: Value, count: int) -> None:
        def move(at: Value, lanes: int, valid: int) -> None:
            value = self.b.let(memory.load_first(valid, source + at, lanes))
            target.store_first(valid, to + at, value)

        self._along(count, move)

    def _fill(self, target: Pointer, to: Value, count: int, number: int) -> None:
        def move(at: Value, lanes: int, valid: int) -> None:
            target.store_first(valid, to + at, tir.const(number, target.dtype, lanes))

        self._along(count, move)

    def _along(self, count: int, move: Callable[[Value, int, int], None]) -> None:
        """Vectors over `count` elements, the last one masked."""
        full, rest = divmod(count, self.lanes)
        if full:
            with self.b.serial(full, "v") as v:
                move(v * self.lanes, self.lanes, self.lanes)
        if rest:
            move(tir.const(full * self.lanes), 1 << (rest - 1).bit_length(), rest)
