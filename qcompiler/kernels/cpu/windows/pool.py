"""max_pool and average_pool regions -> TIR: vectors of channels, one output pixel after the other.

Windows inside the image have their taps unrolled; those across its edge loop over the taps inside.
An average divides by the number of values, or of taps if padding counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.images import OpenImage, is_open
from qcompiler.kernels.cpu.code.loops import indices, share, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.pooling import lowest
from qcompiler.ops.window import Window

_UNROLLED = 25
"""Windows of more taps than this always loop over them."""


@kernel("max_pool", "average_pool")
def pool(region: Region, device: Cpu) -> Kernel | Skip:
    """Any number of spatial dimensions, any window."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    if 0 in (*root.type.dims, *root.operands[0].type.dims):
        return Skip("nothing to pool")
    window = Window.of(root, root.operands[0].type.dims[1:-1])
    kernel_shape, shape = ("x".join(map(str, s)) for s in (window.kernel, root.type.dims))
    return _emitted(Draft(f"{root.op}{kernel_shape}_{shape}", region, device), window)


def _emitted(d: Draft, window: Window) -> Kernel:
    """All pixels, shared among tasks."""
    root = d.root
    image = OpenImage.of(d, window) if is_open(d.region) else None
    pixels: Value = prod(root.type.dims[:-1])
    most = prod(root.type.dims[:-1])
    if image is not None:
        pixels = d.b.hold(image.rows * image.columns * root.type.dims[0], "pixels")
    taps = prod(window.kernel)
    moved = root.type.bytes * (1 + taps) + sum(n.type.bytes for n in d.region.inputs)
    count = tasks(d.device, d.device.core.moved_ns(moved), most)
    with share(d.b, count, pixels) as (first, iterations):
        task = _Task(d, window, image)
        with d.b.serial(iterations, "pixel", first) as pixel:
            task.pixel(pixel)
    return d.kernel(tasks=count, macs=0)


class _Task:
    """The code of one task while it is emitted."""

    def __init__(self, d: Draft, window: Window, image: OpenImage | None) -> None:
        self.d, self.b, self.m, self.root, self.window = d, d.b, d.m, d.root, window
        self.images, *sizes, self.channels = d.root.operands[0].type.dims
        self.padded = self._padded(sizes)
        self.sizes: Sequence[Value] = sizes
        self.outputs: Sequence[Value] = d.root.type.dims[1:-1]
        if image is not None:
            self.sizes, self.outputs = (image.height, image.width), (image.rows, image.columns)
            self.padded = True
        self.starts = [-(p or (0, 0))[0] for p in window.pads]
        in_float = d.root.dtype in HALF_FLOATS or d.root.op == "average_pool"
        self.dtype = tir.wide(d.root.dtype) if in_float else d.root.dtype
        self.prologue, self.epilogue = d.prologue, d.epilogue
        own = d.isa.lanes(max(tir.bits(self.dtype) // 8, 1))
        self.lanes = min(self.prologue.lanes(), self.epilogue.lanes(), own)

    def pixel(self, pixel: Value) -> None:
        """One output pixel."""
        b, w = self.b, self.window
        image, *place = indices(b, pixel, (self.images, *self.outputs))
        corners = [
            b.let(i * stride + start, "corner")
            for i, stride, start in zip(place, w.strides, self.starts, strict=True)
        ]
        inside = [
            tirx.all(c >= 0, c + (reach - 1) < size)
            for c, reach, size in zip(corners, w.reach, self.sizes, strict=True)
        ]
        if prod(w.kernel) > _UNROLLED:
            self._reaching_over(pixel, image, corners)
        elif not self.padded:
            self._inside(pixel, image, corners)
        else:
            with b.when(tirx.all(*inside)):
                self._inside(pixel, image, corners)
            with b.otherwise():
                self._reaching_over(pixel, image, corners)

    def _padded(self, sizes: Sequence[int]) -> bool:
        """Does any window cross the edge?"""
        w = self.window
        ends = [
            (n - 1) * stride - begin + reach > size
            for n, stride, (begin, _), reach, size in zip(
                self.root.type.dims[1:-1],
                w.strides,
                [p or (0, 0) for p in w.pads],
                w.reach,
                sizes,
                strict=True,
            )
        ]
        return any(ends) or any(begin > 0 for begin, _ in (p or (0, 0) for p in w.pads))

    def _inside(self, pixel: Value, image: Value, corners: Sequence[Value]) -> None:
        steps = [range(k) for k in self.window.kernel]

        def taps() -> Iterator[tuple[Value, ...]]:
            for tap in product(*steps):
                yield tuple(
                    c + t * d for c, t, d in zip(corners, tap, self.window.dilations, strict=True)
                )

        def body(column: Value, count: int) -> None:
            total: Vec | None = None
            for at in taps():
                value = self._value(image, at, column, count)
                total = value if total is None else self._join(total, value)
            assert total is not None
            divisor = self.m.splat(float(prod(self.window.kernel)), self.dtype, self.lanes)
            self._put(pixel, column, count, total, divisor)

        sweep(self.b, self.channels, self.lanes, body)

    def _reaching_over(self, pixel: Value, image: Value, corners: Sequence[Value]) -> None:
        """A window that crosses the edge: its taps [low, high) of every dimension in the image."""
        b, w = self.b, self.window
        spans = []
        for corner, k, d, size in zip(corners, w.kernel, w.dilations, self.sizes, strict=True):
            low = tirx.Max(tir.const(0), tirx.floordiv(-corner + (d - 1), tir.const(d)))
            behind = tirx.floordiv(size - 1 - corner, tir.const(d)) + 1
            high = tirx.Min(tir.const(k), behind)
            spans.append((b.let(low, "low"), b.let(tirx.Max(low, high), "high")))
        seen: Value = tir.const(1)
        for low, high in spans:
            seen = seen * (high - low)
        include = self.root.op == "average_pool" and bool(self.root.int("count_include_pad"))
        seen = tir.const(prod(w.kernel)) if include else seen
        divisor = self.m.vec(
            tir.broadcast(b.let(tir.cast(seen, tir.wide(self.dtype)), "seen"), self.lanes)
        )

        def body(column: Value, count: int) -> None:
            total = b.registers(self.dtype, self.lanes, 1, "total")
            total.fill(lowest(self.dtype) if self.root.op == "max_pool" else 0)

            def visit(at: tuple[Value, ...]) -> None:
                value = self._value(image, at, column, count)
                total[0] = self._join(Vec(self.m, total[0], self.dtype, self.lanes), value).expr

            self._over(list(spans), corners, (), visit)
            value = Vec(self.m, total[0], self.dtype, self.lanes)
            self._put(pixel, column, count, value, divisor)

        sweep(b, self.channels, self.lanes, body)

    def _over(
        self,
        spans: list[tuple[Value, Value]],
        corners: Sequence[Value],
        at: tuple[Value, ...],
        visit: Callable[[tuple[Value, ...]], None],
    ) -> None:
        """Nested loops over the taps in the image."""
        axis = len(at)
        if axis == len(spans):
            visit(at)
            return
        low, high = spans[axis]
        with self.b.serial(high - low, "tap", low) as tap:
            here = self.b.let(corners[axis] + tap * self.window.dilations[axis], "at")
            self._over(spans, corners, (*at, here), visit)

    def _value(self, image: Value, at: Sequence[Value], column: Value, count: int) -> Vec:
        """The input at a place, from a channel on."""
        index = image
        for i, size in zip(at, self.sizes, strict=True):
            index = index * size + i
        row = self.prologue.row(self.b.let(index, "source"))
        value = self.prologue.at(row, column, self.lanes, count)
        return self.m.cast(value, self.dtype)

    def _join(self, total: Vec, value: Vec) -> Vec:
        return self.m.max(total, value) if self.root.op == "max_pool" else total + value

    def _put(self, pixel: Value, column: Value, count: int, total: Vec, divisor: Vec) -> None:
        if self.root.op == "average_pool":
            total = total / divisor
            total = self.m.round(total) if "int" in self.root.dtype else total
        value = self.m.cast(total, self.root.dtype)
        place = self.epilogue.row(pixel)
        self.d.put(self.epilogue, place, pixel * self.channels + column, column, count, value)
