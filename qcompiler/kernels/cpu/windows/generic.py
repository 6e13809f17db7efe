"""Windows without a kernel of their own -> TIR, one output element after the other.

ConvTranspose with weights known at run time, Col2Im, and the indices of MaxPool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.loops import indices, share, tasks
from qcompiler.kernels.cpu.code.tir import Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.elements.generic import Elements, Place, means
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.contraction import transposed
from qcompiler.ops.patches import patches
from qcompiler.ops.pooling import lowest
from qcompiler.ops.window import Window

Tap = Callable[[list[Value], list[Value]], None]
"""(start of a window, position in the window) -> code."""

_NS = 4.0


def _over(e: Elements, window: Window, place: Place, counts: Sequence[int], tap: Tap) -> None:
    """Call tap for all windows that contain a place of the image, at its position in each."""
    b = e.b

    def nest(starts: list[Value], taps: list[Value]) -> None:
        axis = len(starts)
        if axis == len(counts):
            tap(starts, taps)
            return
        begin, stride = (window.pads[axis] or (0, 0))[0], window.strides[axis]
        with b.serial(window.kernel[axis], "tap") as t:
            offset = b.let(place[axis] + begin - t * window.dilations[axis], "offset")
            start = b.let(tirx.floordiv(offset, stride), "start")
            whole = tirx.EQ(tirx.floormod(offset, stride), 0)
            with b.when(tirx.all(whole, start >= 0, start < counts[axis])):
                nest([*starts, start], [*taps, t])

    nest([], [])


def _total(e: Elements) -> tuple[Registers, str]:
    """A sum, initially zero, and its dtype."""
    dtype = "float64" if e.root.dtype == "float64" else "float32"
    dtype = dtype if "float" in e.root.dtype else e.root.dtype
    total = e.b.registers(dtype, 1, 1, "total")
    total.fill(0)
    return total, dtype


@means("ConvTranspose")
def _conv_transpose(e: Elements, place: Place) -> Vec:
    root, b, m = e.root, e.b, e.m
    x, w = root.operands[:2]
    window, _ = transposed(root, x.type.dims[2:], w.type.dims[2:])
    each, inputs = w.type.dims[1], w.type.dims[0] // root.int("group")
    first = b.let(tirx.floordiv(place[1], each) * inputs, "first")
    column = b.let(tirx.floormod(place[1], each), "column")
    total, dtype = _total(e)

    def tap(starts: list[Value], taps: list[Value]) -> None:
        with b.serial(inputs, "c") as c:
            channel = b.let(first + c, "channel")
            value = m.cast(e.x([place[0], channel, *starts]), dtype)
            weight = m.cast(e.read(w, [channel, column, *taps]), dtype)
            total[0] = (m.vec(total[0]) + value * weight).expr

    _over(e, window, place[2:], x.type.dims[2:], tap)
    made = m.vec(total[0])
    if len(root.inputs) > 2 and root.inputs[2] is not None:
        made = made + m.cast(e.read(root.inputs[2], [place[1]]), dtype)
    return m.cast(made, root.dtype)


@means("col2im")
def _col2im(e: Elements, place: Place) -> Vec:
    root, b, m = e.root, e.b, e.m
    block = root.ints("block")
    window, counts = patches(root, root.type.dims[2:], block)
    total, dtype = _total(e)

    def tap(starts: list[Value], taps: list[Value]) -> None:
        row, column = place[1], tir.const(0)
        for t, k in zip(taps, block, strict=True):
            row = row * k + t
        for s, n in zip(starts, counts, strict=True):
            column = column * n + s
        seen = e.x([place[0], b.let(row, "row"), b.let(column, "column")])
        total[0] = (m.vec(total[0]) + m.cast(seen, dtype)).expr

    _over(e, window, place[2:], counts, tap)
    return m.cast(m.vec(total[0]), root.dtype)


@kernel("item of MaxPool")
def places(region: Region, device: Cpu) -> Kernel | Skip:
    """Output 1 of MaxPool: the index in the whole input of each window's largest value, the first
    of equals; NaN is the largest.
    """
    root = region.root
    assert root is not None
    source = root.operands[0]
    if root.int("index") != 1:
        return Skip(f"not the places of MaxPool but output {root.int('index')}")
    if reason := refuse(region):
        return reason
    if set(region.nodes) != {root, source} or root.type.size == 0:
        return Skip("elementwise work around it, or nothing to look for")
    return Places(Draft("maxplaces", region, device)).kernel()


class Places:
    """A kernel while it is written."""

    def __init__(self, d: Draft) -> None:
        self.d, self.b, self.m = d, d.b, d.m
        self.source = d.root.operands[0]
        self.x = self.source.operands[0]
        self.sizes = self.x.type.dims[2:]
        self.window = Window.of(self.source, self.sizes)

    def kernel(self) -> Kernel:
        """All elements of the output."""
        dims = self.d.root.type.dims
        size = prod(dims)
        ns = self.d.device.core.mixed_ns(size * prod(self.window.kernel) * _NS)
        count = tasks(self.d.device, ns, size)
        with (
            share(self.b, count, size) as (first, iterations),
            self.b.serial(iterations, "element", first) as i,
        ):
            self.one(i, indices(self.b, i, dims))
        return self.d.kernel(tasks=count, generic=True)

    def one(self, element: Value, place: Place) -> None:
        """One element of the output."""
        b, m, dtype = self.b, self.m, self.x.dtype
        best = b.registers(tir.stored(dtype), 1, 1, "best")
        where = b.registers("int64", 1, 1, "where")
        best[0] = m.splat(lowest(dtype), dtype).expr
        where[0] = tir.const(-1, "int64")
        plane = b.let(place[0] * self.x.type.dims[1] + place[1], "plane")

        def see(at: list[Value]) -> None:
            flat, found = plane, tir.const(0)
            for i, size in zip(at, self.sizes, strict=True):
                flat = flat * size + i
            value = self.d.read(self.x, b.let(flat, "flat"))
            old = m.vec(best[0], dtype)
            better = value.precedes(old, largest=True) | m.vec(where[0] < 0, "bool")
            order = list(zip(at, self.sizes, strict=True))
            for i, size in order[::-1] if self.source.int("storage_order") else order:
                found = found * size + i
            with b.when(better.expr):
                best[0] = value.expr
                where[0] = tir.cast(plane * prod(self.sizes) + found, "int64")

        self._inside(place[2:], [], see)
        self.d.out.store(element, where[0])

    def _inside(self, place: Place, at: list[Value], see: Callable[[list[Value]], None]) -> None:
        """Call `see` for the places of a window that are in the image."""
        axis = len(at)
        if axis == len(self.sizes):
            see(at)
            return
        window = self.window
        begin = (window.pads[axis] or (0, 0))[0]
        with self.b.serial(window.kernel[axis], "tap") as t:
            here = place[axis] * window.strides[axis] - begin + t * window.dilations[axis]
            here = self.b.let(here, "here")
            with self.b.when(tirx.all(here >= 0, here < self.sizes[axis])):
                self._inside(place, [*at, here], see)
