"""Reduce* regions of neighbouring axes -> a team of threads for each output where the last axis is
reduced; else a column of threads, which several rows of the block share.
"""

from __future__ import annotations

from functools import reduce as fold
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.rows.reduce import WAYS, axes_of, start_of
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.rows.team import LONGEST, Team, threads_of
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.reduce import REAL

_ROWS = 8
"""Warps that share the columns of a warp."""


@kernel(*WAYS, kind=Gpu)
def gpu_reduce(region: Region, device: Gpu) -> Kernel | Skip:
    """Of axes that are neighbours."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    axes = axes_of(region)
    if isinstance(axes, Skip):
        return axes
    dims = root.operands[0].type.dims
    if axes != list(range(axes[0], axes[-1] + 1)):
        return Skip("axes that are no neighbours")
    if root.op in REAL and "int" in root.dtype:
        return Skip("a real function of integers")
    outer, inner = prod(dims[: axes[0]]), prod(dims[axes[-1] + 1 :])
    length = prod(dims[a] for a in axes)
    kind = f"{root.op.lower()}_{outer}x{length}x{inner}"
    if inner > 1:
        d = GridDraft(kind, region, device, WARP * _ROWS)
        _beside(d, outer, length, inner)
        return d.kernel()
    if length > LONGEST:
        return Skip("a row is too long")
    d = GridDraft(kind, region, device, threads_of(length))
    _along(d, outer, length)
    return d.kernel()


def _dtype(d: GridDraft) -> str:
    """What sums are in."""
    dtype = d.root.dtype
    return "float32" if dtype in HALF_FLOATS else "uint8" if dtype == "bool" else dtype


def _along(d: GridDraft, rows: int, length: int) -> None:
    m, way, dtype, root = d.m, WAYS[d.root.op], _dtype(d), d.root
    team, start = Team(d, rows, length), start_of(WAYS[d.root.op], _dtype(d))
    values = team.values(dtype, d.reading(root.operands[0], whole=True), start)
    made = [team.only(i, way.each(m, v), start) for i, v in enumerate(values)]
    total = team.joined(fold(lambda a, b: way.join(m, a, b), made), lambda a, b: way.join(m, a, b))
    first = tirx.EQ(team.lane, 0)
    with d.b.when(first if team.whole else tirx.And(first, team.inside)):
        _put(d, team.row, total, length)


def _beside(d: GridDraft, outer: int, length: int, inner: int) -> None:
    """Thread (warp, lane) of a block sums rows warp, warp + 8, ... of column lane; the first warp
    joins what they found.
    """
    b, m, way, dtype = d.b, d.m, WAYS[d.root.op], _dtype(d)
    blocks = -(-inner // WARP)
    b.blocks(outer * blocks)
    lane, warp = (
        b.let(f(b.thread, WARP), n) for f, n in ((tirx.floormod, "lane"), (tirx.floordiv, "warp"))
    )
    before = b.let(tirx.floordiv(b.x, blocks), "outer")
    column = b.let(tirx.floormod(b.x, blocks) * WARP + lane, "column")
    f = d.reading(d.root.operands[0], whole=True)
    total = b.registers(dtype, 1, 1, "total")
    total.fill(start_of(way, dtype))
    shared = b.shared(dtype, WARP * _ROWS, "partial")
    with (
        b.when(column < inner),
        b.serial(-(-length // _ROWS), "turn") as turn,
    ):
        at = b.let(turn * _ROWS + warp, "at")
        with b.when(at < length):
            flat = b.let((before * length + at) * inner + column, "flat")
            seen = way.each(m, m.cast(d.at(f, flat), dtype))
            total[0] = way.join(m, Vec(m, total[0], dtype, 1), seen).expr
    shared.store(b.thread, total[0])
    b.barrier()
    with b.when(tirx.And(tirx.EQ(warp, 0), column < inner)):
        made = m.vec(shared.load(lane))
        for i in range(1, _ROWS):
            made = way.join(m, made, m.vec(shared.load(lane + i * WARP)))
        _put(d, b.let(before * inner + column, "index"), made, length)


def _put(d: GridDraft, index: Value, total: Vec, length: int) -> None:
    """Store an output by its number, by way of the epilogue."""
    value = d.m.cast(WAYS[d.root.op].last(d.m, total, length), d.root.dtype)
    d.put_at(index, value)
