"""Softmax and normalization regions of any axes -> a team of threads for each line, which is read
once where its elements fit registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.rows.rows import axes_reduced
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.rows.held import Line, line_of
from qcompiler.kernels.gpu.rows.lines import Lines
from qcompiler.kernels.gpu.rows.team import Team, threads_of
from qcompiler.kernels.registry import Kernel, Region, kernel


def add(a: Vec, b: Vec) -> Vec:
    """What sums are joined by."""
    return a + b


def refused(region: Region) -> Skip | None:
    """Why a region has no lines to go through; None if it has."""
    if reason := refuse(region) or too_large(region):
        return reason
    assert region.root is not None
    dims = region.root.operands[0].type.dims
    return Skip("nothing to go through") if 0 in dims or not dims else None


def team_for(region: Region, device: Gpu, axes: Sequence[int], word: str = "") -> Team:
    """A kernel, and the team of a line along some axes of the root's first operand."""
    assert region.root is not None
    lines = Lines.of(region.root.operands[0].type.dims, axes)
    kind = f"{word or region.root.op.lower()}_{lines.count}x{lines.length}"
    return Team(GridDraft(kind, region, device, threads_of(lines)), lines)


def line(team: Team, dtype: str) -> Line:
    """The team's line of the root's first operand."""
    return line_of(team, team.d.reading(team.d.root.operands[0], whole=True), dtype)


@kernel("Softmax", "LogSoftmax", kind=Gpu)
def gpu_softmax(region: Region, device: Gpu) -> Kernel | Skip:
    """Along any axis; the largest value is subtracted first, so nothing overflows."""
    if reason := refused(region):
        return reason
    root = region.root
    assert root is not None
    team = team_for(region, device, [root.int("axis")])
    m, values = team.m, line(team, tir.wide(root.dtype))
    top = values.fold(m.max, -inf)
    below = values.map(lambda v: v - top)
    powers = below.map(m.exp)
    total = powers.fold(add, 0.0)
    if root.op == "LogSoftmax":
        last = m.log(total)
        below.give(lambda v, element: v - last)
    else:
        factor = m.like(1.0, total) / total
        powers.give(lambda v, element: v * factor)
    return team.d.kernel()


@kernel("LayerNormalization", "RMSNormalization", kind=Gpu)
def gpu_layer_norm(region: Region, device: Gpu) -> Kernel | Skip:
    """Over all axes from one on; mean and variance one after the other."""
    if reason := refused(region):
        return reason
    root = region.root
    assert root is not None
    x, *affine = root.operands
    axis = root.int("axis") % x.type.rank
    length = prod(x.type.dims[axis:])
    if root.attrs.get("outputs", 1) != 1:
        return Skip("more than one output")
    if any(n.type.size != length for n in affine):
        return Skip("a scale or bias of another shape than the row's")
    word = "rmsnorm" if root.op == "RMSNormalization" else "layernorm"
    team = team_for(region, device, range(axis, x.type.rank), word)
    dtype = tir.wide(root.dtype)
    d, m, values = team.d, team.m, line(team, dtype)
    count = float(length)
    if root.op == "LayerNormalization":
        mean = values.fold(add, 0.0) / count
        values = values.map(lambda v: v - mean)
    variance = values.map(lambda v: v * v).fold(add, 0.0) / count
    factor = m.splat(1.0, dtype) / m.sqrt(variance + root.float("epsilon"))

    def made(value: Vec, element: Value) -> Vec:
        value = value * factor
        for number, operand in enumerate(affine):
            wide = m.cast(d.read(operand, element), dtype)
            value = value * wide if number == 0 else value + wide
        return value

    values.give(made)
    return d.kernel()


@kernel("LpNormalization", kind=Gpu)
def gpu_lp_normalization(region: Region, device: Gpu) -> Kernel | Skip:
    """Values divided by their norm; zeros stay zeros."""
    if reason := refused(region):
        return reason
    root = region.root
    assert root is not None
    if "float" not in root.dtype:
        return Skip(f"a norm of {root.dtype}")
    team = team_for(region, device, [root.int("axis")])
    m, values = team.m, line(team, tir.wide(root.dtype))
    absolute = root.int("p") == 1
    total = values.map(lambda v: m.abs(v) if absolute else v * v).fold(add, 0.0)
    norm = total if absolute else m.sqrt(total)
    divisor = m.where(norm == 0.0, 1.0, norm)
    values.give(lambda v, element: m.where(norm == 0.0, 0.0, v / divisor))
    return team.d.kernel()


@kernel("MeanVarianceNormalization", kind=Gpu)
def gpu_mean_variance(region: Region, device: Gpu) -> Kernel | Skip:
    """(x - mean) / (deviation + 1e-9)."""
    if reason := refused(region):
        return reason
    root = region.root
    assert root is not None
    if "float" not in root.dtype:
        return Skip(f"a deviation of {root.dtype}")
    team = team_for(region, device, root.ints("axes"))
    values, count = line(team, tir.wide(root.dtype)), float(team.length)
    mean = values.fold(add, 0.0) / count
    values = values.map(lambda v: v - mean)
    variance = values.map(lambda v: v * v).fold(add, 0.0) / count
    deviation = team.m.sqrt(variance) + 1e-9
    values.give(lambda v, element: v / deviation)
    return team.d.kernel()


@kernel("ReduceLogSumExp", kind=Gpu)
def gpu_log_sum_exp(region: Region, device: Gpu) -> Kernel | Skip:
    """max + log(sum(exp(x - max))); of integers in float64."""
    if reason := refused(region):
        return reason
    root, axes = region.root, axes_reduced(region)
    assert root is not None
    if isinstance(axes, Skip):
        return axes
    team = team_for(region, device, axes)
    m = team.m
    values = line(team, "float64" if "int" in root.operands[0].dtype else tir.wide(root.dtype))
    top = values.fold(m.max, -inf)
    top = m.where(m.abs(top) < inf, top, 0.0)
    total = values.map(lambda v: m.exp(v - top)).fold(add, 0.0)
    team.put(m.log(total) + top)
    return team.d.kernel()
