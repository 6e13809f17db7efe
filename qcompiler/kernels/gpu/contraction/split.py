"""A product whose sums are cut into parts: blocks for some of k each, where rows and columns alone
are too few to keep a GPU busy; then a launch that adds the parts, always in the same order.

    scratch[part, line, column] = sum over a part of k;   out = epilogue(sum over parts of scratch)
"""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx

from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import move
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.contraction.problem import Problem
from qcompiler.kernels.registry import After, Region

_LEAST_STEPS = 4
"""Of a part: its first step waits for memory."""
_MOST_PARTS = 16


def worthwhile(blocks: int, steps: int, device: Gpu) -> Iterator[int]:
    """How many parts may be faster than one, for blocks that take so many steps through k."""
    parts = 2
    while parts <= min(_MOST_PARTS, steps // _LEAST_STEPS):
        if blocks * parts <= 2 * device.multiprocessors:
            yield parts
        parts *= 2


def scratch_bytes(p: Problem, parts: int) -> int:
    """Bytes of all parts' sums, of 32 bits each."""
    return 4 * parts * p.root.type.size if parts > 1 else 0


def seconds(p: Problem, parts: int, device: Gpu) -> float:
    """What cutting into parts takes: sums are written and read, and there is another launch."""
    if parts == 1:
        return 0.0
    return device.moved_seconds(2 * scratch_bytes(p, parts))


def put(d: GridDraft, scratch: Pointer, at: Value, sums: list[Vec]) -> None:
    """Store neighbours of a part, from a multiple of their number on, in one access."""
    own = d.b.local(scratch.dtype, len(sums), "part")
    for i, value in enumerate(sums):
        own.store(i, value.expr)
    d.b.emit(move(4 * len(sums), scratch + at, own))


def added(region: Region, device: Gpu, p: Problem, parts: int) -> tuple[After, ...]:
    """What adds the parts, if there are several: a thread for 16 bytes of a part."""
    if parts == 1:
        return ()
    d = GridDraft("sum", region, device)
    scratch, f, root, m = d.scratch(p.element), d.writing(), p.root, d.m
    width = min(4, d.width(f))
    pieces, size = f.columns // width, root.type.size
    with d.b.items(f.rows * pieces) as item:
        row = d.b.let(tirx.floordiv(item, pieces), "row")
        column = d.b.let(tirx.floormod(item, pieces) * width, "column")
        at = d.b.let(row * f.columns + column, "at")
        held = []
        for part in range(parts):
            own = d.b.local(p.element, width, "part")
            d.b.emit(move(4 * width, own, scratch + (at + part * size)))
            held.append(own)
        sums = []
        for i in range(width):
            total = m.vec(held[0].load(i))
            for own in held[1:]:
                total = total + m.vec(own.load(i))
            sums.append(m.cast(m.vec(total.expr), root.dtype))
        values = d.along(f, f.row(row), column, width, lambda i: {root: sums[i]})
        d.store(at, values)
    return (d.after(),)
