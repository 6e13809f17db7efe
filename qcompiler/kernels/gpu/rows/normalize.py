"""Softmax, LogSoftmax, LayerNormalization and RMSNormalization regions -> one pass over memory: a
team of threads holds a row in registers, in float32.
"""

from __future__ import annotations

from functools import reduce
from math import inf, prod

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.rows.team import LONGEST, Team, threads_of
from qcompiler.kernels.registry import Kernel, Region, kernel


def _add(a: Vec, b: Vec) -> Vec:
    return a + b


@kernel("Softmax", "LogSoftmax", kind=Gpu)
def gpu_softmax(region: Region, device: Gpu) -> Kernel | Skip:
    """Along the last axis; the largest value is subtracted first, so nothing overflows."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    dims = root.type.dims
    if 0 in dims or not dims:
        return Skip("nothing to normalize")
    if root.int("axis") % len(dims) != len(dims) - 1:
        return Skip("not along the last axis")
    rows, length = prod(dims[:-1]), dims[-1]
    if length > LONGEST:
        return Skip("a row is too long")
    d = GridDraft(f"{root.op.lower()}_{rows}x{length}", region, device, threads_of(length))
    team, m = Team(d, rows, length), d.m
    values = team.values("float32", d.reading(root.operands[0], whole=True), -inf)
    top = team.joined(reduce(m.max, values), m.max)
    below = [v - top for v in values]
    powers = [m.exp(v) for v in below]
    total = team.joined(reduce(_add, powers), _add)
    if root.op == "LogSoftmax":
        last = m.log(total)
        team.give(d.writing(whole=True), lambda i, at: below[i] - last)
    else:
        factor = m.splat(1.0, "float32") / total
        team.give(d.writing(whole=True), lambda i, at: powers[i] * factor)
    return d.kernel()


@kernel("LayerNormalization", "RMSNormalization", kind=Gpu)
def gpu_layer_norm(region: Region, device: Gpu) -> Kernel | Skip:
    """Over all axes from one on; mean and variance in two passes over registers."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    x, *affine = root.operands
    axis = root.int("axis") % max(x.type.rank, 1)
    rows, length = prod(x.type.dims[:axis]), prod(x.type.dims[axis:])
    if root.attrs.get("outputs", 1) != 1 or not rows * length:
        return Skip("more than one output, or nothing to normalize")
    if any(n.type.size != length for n in affine):
        return Skip("a scale or bias of another shape than the row's")
    if length > LONGEST:
        return Skip("a row is too long")
    word = "rmsnorm" if root.op == "RMSNormalization" else "layernorm"
    d = GridDraft(f"{word}_{rows}x{length}", region, device, threads_of(length))
    team, m = Team(d, rows, length), d.m
    values = team.values("float32", d.reading(x, whole=True), 0.0)
    count = float(length)
    if root.op == "LayerNormalization":
        mean = team.joined(reduce(_add, values), _add) / count
        values = [v - mean for v in values]
    squares = [team.only(i, v * v, 0.0) for i, v in enumerate(values)]
    variance = team.joined(reduce(_add, squares), _add) / count
    factor = m.splat(1.0, "float32") / m.sqrt(variance + root.float("epsilon"))

    def made(i: int, element: Value) -> Vec:
        value = values[i] * factor
        for number, operand in enumerate(affine):
            wide = m.cast(d.read(operand, element), "float32")
            value = value * wide if number == 0 else value + wide
        return value

    team.give(d.writing(whole=True), made)
    return d.kernel()
