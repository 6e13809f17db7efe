"""Reduce* regions -> a team of threads for each output; a column of threads, which several warps of
the block share, where neighbours in memory belong to different outputs. Few long lines are cut into
parts, which a second launch joins in order.
"""

from __future__ import annotations

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.rows.reduce import WAYS, axes_of, start_of
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.rows.held import line_of
from qcompiler.kernels.gpu.rows.lines import Lines
from qcompiler.kernels.gpu.rows.team import LONGEST, Team, team_of, threads_of
from qcompiler.kernels.registry import After, Kernel, Region, kernel
from qcompiler.ops.reduce import REAL

_ROWS = 8
"""Warps that share the columns of a warp."""
_PART = 4096
"""Elements that a part of a line should at least have."""


@kernel(*WAYS, kind=Gpu)
def gpu_reduce(region: Region, device: Gpu) -> Kernel | Skip:
    """Any axes."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    axes = axes_of(region)
    if isinstance(axes, Skip):
        return axes
    lines = Lines.of(root.operands[0].type.dims, axes)
    kind = f"{root.op.lower()}_{lines.count}x{lines.length}"
    if lines.beside and team_of(lines) > 1:
        d = GridDraft(f"{kind}_beside", region, device, WARP * _ROWS)
        _beside(d, lines)
        return d.kernel()
    parts = _parts(lines, device)
    if parts > 1:
        d = GridDraft(f"{kind}_in{parts}", region, device, threads_of(_cut(lines, parts)))
        return _in_parts(d, lines, parts, device)
    d = GridDraft(kind, region, device, threads_of(lines))
    team = Team(d, lines)
    _put(d, team, _total(d, team), lines.length)
    return d.kernel()


def _dtype(d: GridDraft) -> str:
    """What sums are in."""
    dtype = d.root.dtype
    if d.root.op in REAL and "int" in dtype:
        return "float64"
    return "float32" if dtype in HALF_FLOATS else "uint8" if dtype == "bool" else dtype


def _join(d: GridDraft, a: Vec, b: Vec) -> Vec:
    return WAYS[d.root.op].join(d.m, a, b)


def _total(d: GridDraft, team: Team) -> Vec:
    """A team's line, joined."""
    m, way, dtype = d.m, WAYS[d.root.op], _dtype(d)
    line = line_of(team, d.reading(d.root.operands[0], whole=True), dtype)
    whole = line.map(lambda v: way.each(m, v))
    return whole.fold(lambda a, b: way.join(m, a, b), start_of(way, dtype))


def _last(d: GridDraft, total: Vec, length: int) -> Vec:
    return d.m.cast(WAYS[d.root.op].last(d.m, total, length), d.root.dtype)


def _put(d: GridDraft, team: Team, total: Vec, length: int) -> None:
    team.put(_last(d, total, length))


def _beside(d: GridDraft, lines: Lines) -> None:
    """Thread (warp, lane) of a block sums elements warp, warp + 8, ... of line `lane`; the first
    warp joins what they found.
    """
    b, m, way, dtype = d.b, d.m, WAYS[d.root.op], _dtype(d)
    b.blocks(-(-lines.count // WARP))
    lane, warp = (
        b.let(f(b.thread, WARP), n) for f, n in ((tirx.floormod, "lane"), (tirx.floordiv, "warp"))
    )
    line = b.let(b.x * WARP + lane, "line")
    inside = line < lines.count
    start = lines.start(b, b.let(tirx.Min(line, tir.const(lines.count - 1)), "bounded"))
    f = d.reading(d.root.operands[0], whole=True)
    total = b.registers(dtype, 1, 1, "total")
    total.fill(start_of(way, dtype))
    shared = b.shared(dtype, WARP * _ROWS, "partial")
    with b.when(inside), b.serial(-(-lines.length // _ROWS), "turn") as turn:
        at = b.let(turn * _ROWS + warp, "at")
        with b.when(at < lines.length):
            flat = b.let(start + lines.offset(b, at), "flat")
            seen = way.each(m, m.cast(d.at(f, flat), dtype))
            total[0] = way.join(m, Vec(m, total[0], dtype, 1), seen).expr
    shared.store(b.thread, total[0])
    b.barrier()
    with b.when(tirx.And(tirx.EQ(warp, 0), inside)):
        made = m.vec(shared.load(lane))
        for i in range(1, _ROWS):
            made = _join(d, made, m.vec(shared.load(lane + i * WARP)))
        d.put_at(line, _last(d, made, lines.length))


def _parts(lines: Lines, device: Gpu) -> int:
    """How many parts a line is cut into, so that a GPU has enough to do; it is cut evenly."""
    if lines.beside or lines.length <= LONGEST:
        return 1
    most = min(2 * device.multiprocessors // lines.count, lines.length // _PART)
    size = lines.along[0][0]
    return max((n for n in range(1, min(most, size) + 1) if size % n == 0), default=1)


def _cut(lines: Lines, parts: int) -> Lines:
    """Lines, each as several one after the other."""
    (size, step), *rest = lines.along
    each = size // parts
    return Lines((*lines.between, (parts, each * step)), ((each, step), *rest))


def _in_parts(d: GridDraft, lines: Lines, parts: int, device: Gpu) -> Kernel:
    """Parts by themselves, then together."""
    dtype = _dtype(d)
    scratch = d.scratch(dtype)
    team = Team(d, _cut(lines, parts))
    total = _total(d, team)
    with d.b.when(tirx.And(tirx.EQ(team.lane, 0), team.inside)):
        scratch.store(team.line, total.expr)
    size = lines.count * parts * tir.bits(dtype) // 8
    return d.kernel(scratch_bytes=size, after=(_together(d.region, device, lines, parts),))


def _together(region: Region, device: Gpu, lines: Lines, parts: int) -> After:
    """A thread for each output joins its parts."""
    d = GridDraft("join", region, device)
    b, m, dtype = d.b, d.m, _dtype(d)
    scratch = d.scratch(dtype)
    with b.items(lines.count) as line:
        total = b.registers(dtype, 1, 1, "total")
        total[0] = scratch.load(b.let(line * parts, "first"))
        with b.serial(parts - 1, "part", 1) as part:
            seen = m.vec(scratch.load(b.let(line * parts + part, "at")))
            total[0] = _join(d, m.vec(total[0]), seen).expr
        d.put_at(line, _last(d, m.vec(total[0]), lines.length))
    return d.after()
