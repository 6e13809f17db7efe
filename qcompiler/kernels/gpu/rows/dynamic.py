"""An output of DynamicQuantizeLinear -> blocks find the extremes of parts of all values; then each
block of a second launch joins these and quantizes its elements.
"""

from __future__ import annotations

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import across, move
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import After, Kernel, Region, kernel

_PARTS = WARP
"""Blocks that look for extremes: as many as a warp joins."""

Extremes = tuple[Vec, Vec]
"""The least and the largest value, of zero and some others."""


@kernel("item of DynamicQuantizeLinear", kind=Gpu)
def gpu_dynamic_quantize(region: Region, device: Gpu) -> Kernel | Skip:
    """Bytes, the scale or the zero point."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    source = root.operands[0]
    x = source.operands[0]
    if set(region.nodes) != {root, source} or not x.type.size:
        return Skip("elementwise work around it, or no elements")
    d = GridDraft("extremes", region, device)
    scratch = d.scratch("float32")
    _extremes(d, x, scratch)
    after = (_quantized(region, device, x),)
    return d.kernel(scratch_bytes=4 * 2 * _PARTS, after=after)


def _extremes(d: GridDraft, x: Node, scratch: Pointer) -> None:
    """Those of each block's share, to scratch."""
    b, m = d.b, d.m
    b.blocks(_PARTS)
    each = _PARTS * b.threads
    held = b.registers("float32", 1, 2, "extreme")
    held.fill(0)
    with b.serial(-(-x.type.size // each), "turn") as turn:
        at = b.let(turn * each + b.x * b.threads + b.thread, "at")
        with b.when(at < x.type.size):
            value = d.read(x, at)
            low, high = _joined(d, (value, value), (m.vec(held[0]), m.vec(held[1])))
            held[0], held[1] = low.expr, high.expr
    low, high = _of_warp(d, (m.vec(held[0]), m.vec(held[1])))
    warps = b.threads // WARP
    shared = b.shared("float32", 2 * warps, "partial")
    with b.when(tirx.EQ(tirx.floormod(b.thread, WARP), 0)):
        warp = b.let(tirx.floordiv(b.thread, WARP) * 2, "warp")
        shared.store(warp, low.expr)
        shared.store(warp + 1, high.expr)
    b.barrier()
    with b.when(tirx.EQ(b.thread, 0)):
        found = (m.vec(shared.load(0)), m.vec(shared.load(1)))
        for i in range(1, warps):
            found = _joined(d, (m.vec(shared.load(2 * i)), m.vec(shared.load(2 * i + 1))), found)
        for i, value in enumerate(found):
            scratch.store(b.x * 2 + i, value.expr)


def _joined(d: GridDraft, a: Extremes, b: Extremes) -> Extremes:
    """Those of both; NaN in the first is left out."""
    m = d.m
    low = m.negative(m.larger(m.negative(a[0]), m.negative(b[0])))
    return low, m.larger(a[1], b[1])


def _of_warp(d: GridDraft, own: Extremes) -> Extremes:
    """Those of all threads of a warp."""
    distance = WARP // 2
    while distance:
        low, high = (d.m.vec(across("shuffle_xor", v.expr, tir.const(distance))) for v in own)
        own, distance = _joined(d, (low, high), own), distance // 2
    return own


def _quantized(region: Region, device: Gpu, x: Node) -> After:
    """What is asked for, by the extremes of all parts."""
    d = GridDraft("dynamicquantize", region, device)
    b, m, part = d.b, d.m, d.root.int("index")
    scratch = d.scratch("float32")
    size = x.type.size if part == 0 else 1
    width = 4 if size % 4 == 0 else 1
    shared = b.shared("float32", 2, "extremes")
    b.blocks(-(-size // (width * b.threads)))
    with b.when(b.thread < WARP):
        parts = (m.vec(scratch.load(b.thread * 2 + i)) for i in (0, 1))
        low, high = _of_warp(d, (next(parts), next(parts)))
        with b.when(tirx.EQ(b.thread, 0)):
            shared.store(0, low.expr)
            shared.store(1, high.expr)
    b.barrier()
    least, top = m.vec(shared.load(0)), m.vec(shared.load(1))
    scale = m.where(top > least, (top - least) / 255.0, 1.0)
    zero = m.cast(m.saturate(m.round(m.negative(least) / scale), "uint8"), "float32")
    item = b.let((b.x * b.threads + b.thread) * width, "item")
    with b.when(item < size):
        _put(d, x, item, width, (scale, zero))
    return d.after()


def _put(d: GridDraft, x: Node, item: Value, width: int, scaling: tuple[Vec, Vec]) -> None:
    """Store the scale, the zero point, or neighbouring elements."""
    b, m, (scale, zero), part = d.b, d.m, scaling, d.root.int("index")
    if part:
        d.out.store(0, (scale if part == 1 else m.cast(zero, "uint8")).expr)
        return
    own = b.local("float32", width, "loaded")
    b.emit(move(4 * width, own, d.pointers[x] + item))
    ratios = [m.round(m.vec(own.load(i)) / scale) + zero for i in range(width)]
    d.store(item, [m.saturate(r, "uint8") for r in ratios])
