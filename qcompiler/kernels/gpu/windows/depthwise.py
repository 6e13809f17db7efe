"""Convolutions of each channel by itself -> a thread for each pixel and as many channels as one
access loads; the taps follow one another, weights come from the caches.
"""

from __future__ import annotations

from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.ir import Node, numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import in_place_candidates, refuse, too_large
from qcompiler.kernels.cpu.code.epilogue import load
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Pointer, Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import move
from qcompiler.kernels.gpu.code.draft import WIDEST, GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.window import Window


@kernel("conv", kind=Gpu)
def gpu_depthwise(region: Region, device: Gpu) -> Kernel | Skip:
    """One filter for each channel."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    x, w = root.operands
    *kernel, each, channels = w.type.dims
    if each != 1 or channels != root.int("group") or not root.type.size:
        return Skip("channels that are summed")
    if root.dtype not in ("float32", "int32"):
        return Skip(f"sums in {root.dtype}")
    word = "x".join(map(str, kernel))
    d = GridDraft(f"depthwise{word}_{x.dtype}_{channels}", region, device)
    made = _Depthwise(d, Window.of(root, x.type.dims[1:-1], tuple(kernel)), channels)
    made.emit()
    macs = root.type.size * prod(kernel)
    return d.kernel(in_place=in_place_candidates(region), macs=macs)


class _Depthwise:
    """A kernel while it is written."""

    def __init__(self, d: GridDraft, window: Window, channels: int) -> None:
        self.d, self.b, self.m = d, d.b, d.m
        self.window, self.channels = window, channels
        self.x, self.w = d.root.operands
        self.width = WIDEST // 4
        while channels % self.width:
            self.width //= 2

    def emit(self) -> None:
        """A thread for each pixel and group of channels."""
        d, b, root = self.d, self.b, self.d.root
        pixels, groups = root.type.dims[:-1], self.channels // self.width
        f = d.writing()
        with b.items(prod(pixels) * groups) as item:
            pixel = b.let(tirx.floordiv(item, groups), "pixel")
            channel = b.let(tirx.floormod(item, groups) * self.width, "channel")
            self.sums = b.registers(root.dtype, 1, self.width, "sum")
            self.sums.fill(0)
            image, *place = indices(b, pixel, pixels)
            self._taps(image, place, channel)
            given = [Vec(self.m, self.sums[i], root.dtype, 1) for i in range(self.width)]
            made = d.along(f, f.row(pixel), channel, self.width, lambda i: {root: given[i]})
            d.store(b.let(pixel * self.channels + channel, "at"), made)

    def _taps(self, image: Value, place: list[Value], channel: Value) -> None:
        b, window = self.b, self.window
        starts = [
            b.let(p * s - (pad or (0, 0))[0], "start")
            for p, s, pad in zip(place, window.strides, window.pads, strict=True)
        ]
        with b.serial(prod(window.kernel), "tap") as tap:
            taps = indices(b, tap, window.kernel)
            sizes, inside = self.x.type.dims[1:-1], []
            at = image
            for start, t, apart, size in zip(starts, taps, window.dilations, sizes, strict=True):
                along = b.let(start + t * apart, "along")
                inside += [along >= 0, along < size]
                at = at * size + along
            weights = self._held(self.w, b.let(tap * self.channels + channel, "weight"))
            values = b.local(self.d.pointers[self.x].dtype, self.width, "value")
            with b.when(tirx.all(*inside)):
                self._load(self.x, b.let(at * self.channels + channel, "from"), values)
            with b.otherwise():
                for i in range(self.width):
                    values.store(i, self._pad(values.dtype))
            self._add(self.sums, values, weights)

    def _pad(self, dtype: str) -> Value:
        value = self.d.root.int("pad_value")
        return tir.const(value, dtype)

    def _add(self, sums: Registers, values: Pointer, weights: Pointer) -> None:
        m, dtype = self.m, self.d.root.dtype
        for i in range(self.width):
            x = m.cast(load(m, values, self.x.dtype, i, 1, 1), dtype)
            w = m.cast(load(m, weights, self.w.dtype, i, 1, 1), dtype)
            total = Vec(m, sums[i], dtype, 1)
            sums[i] = (m.fma(x, w, total) if dtype == "float32" else x * w + total).expr

    def _held(self, node: Node, offset: Value) -> Pointer:
        own = self.b.local(self.d.pointers[node].dtype, self.width, "held")
        self._load(node, offset, own)
        return own

    def _load(self, node: Node, offset: Value, own: Pointer) -> None:
        source = self.d.pointers[node]
        size = self.width * numpy_dtype(source.dtype).itemsize
        self.b.emit(move(size, own, source + offset))
