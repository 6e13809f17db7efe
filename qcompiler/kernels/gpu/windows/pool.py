"""max_pool and average_pool regions -> a thread for each pixel and as many channels as one access
loads.
"""

from __future__ import annotations

from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.pooling import lowest
from qcompiler.ops.window import Window

_NARROW = ("float16", "bfloat16")


@kernel("max_pool", "average_pool", kind=Gpu)
def gpu_pool(region: Region, device: Gpu) -> Kernel | Skip:
    """Any number of spatial dimensions, any window."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    if 0 in (*root.type.dims, *root.operands[0].type.dims):
        return Skip("nothing to pool")
    window = Window.of(root, root.operands[0].type.dims[1:-1])
    shape, dims = ("x".join(map(str, s)) for s in (window.kernel, root.type.dims))
    d = GridDraft(f"{root.op}{shape}_{dims}", region, device)
    _Pool(d, window).emit()
    return d.kernel()


class _Pool:
    """A kernel while it is written."""

    def __init__(self, d: GridDraft, window: Window) -> None:
        self.d, self.b, self.m, self.window, self.root = d, d.b, d.m, window, d.root
        self.sizes = self.root.operands[0].type.dims[1:-1]
        self.largest = self.root.op == "max_pool"
        in_float = self.root.dtype in _NARROW or not self.largest
        self.dtype = tir.wide(self.root.dtype) if in_float else self.root.dtype
        self.pads = [(pad or (0, 0))[0] for pad in window.pads]

    def emit(self) -> None:
        """A thread for each pixel and group of channels."""
        d, b, root = self.d, self.b, self.root
        *pixels, channels = root.type.dims
        self.before, after = d.reading(root.operands[0]), d.writing()
        self.width = min(d.width(self.before), d.width(after))
        groups = channels // self.width
        with b.items(prod(pixels) * groups) as item:
            pixel = b.let(tirx.floordiv(item, groups), "pixel")
            channel = b.let(tirx.floormod(item, groups) * self.width, "channel")
            image, *place = indices(b, pixel, tuple(pixels))
            values = [self._made(v) for v in self._totals(image, place, channel)]
            made = d.along(
                after, after.row(pixel), channel, self.width, lambda i: {root: values[i]}
            )
            d.store(b.let(pixel * channels + channel, "at"), made)

    def _totals(self, image: Value, place: list[Value], channel: Value) -> list[Vec]:
        """The sums or largest values of a window, and in `self.seen` the number of them."""
        b, window = self.b, self.window
        totals = b.registers(self.dtype, 1, self.width, "total")
        totals.fill(lowest(self.dtype) if self.largest else 0)
        self.seen = b.registers(tir.wide(self.dtype), 1, 1, "seen")
        self.seen.fill(0)
        starts = [p * s - pad for p, s, pad in zip(place, window.strides, self.pads, strict=True)]
        starts = [b.let(start, "start") for start in starts]
        with b.serial(prod(window.kernel), "tap") as tap:
            taps = indices(b, tap, window.kernel)
            inside, index = [], image
            for start, t, apart, size in zip(
                starts, taps, window.dilations, self.sizes, strict=True
            ):
                at = b.let(start + t * apart, "along")
                inside += [at >= 0, at < size]
                index = index * size + at
            with b.when(tirx.all(*inside)):
                row = self.before.row(b.let(index, "source"))
                for i, value in enumerate(self.d.along(self.before, row, channel, self.width)):
                    total = Vec(self.m, totals[i], self.dtype, 1)
                    wide = self.m.cast(value, self.dtype)
                    totals[i] = (self.m.max(total, wide) if self.largest else total + wide).expr
                if not self.largest:
                    self.seen[0] = self.seen[0] + tir.const(1.0, self.dtype)
        return [Vec(self.m, totals[i], self.dtype, 1) for i in range(self.width)]

    def _made(self, total: Vec) -> Vec:
        if not self.largest:
            every = self.root.int("count_include_pad")
            count = self.m.splat(float(prod(self.window.kernel)), self.dtype)
            total = total / (count if every else self.m.vec(self.seen[0]))
            total = self.m.round(total) if "int" in self.root.dtype else total
        return self.m.cast(total, self.root.dtype)
