"""Recognize a group norm as PyTorch exports it.

Reshape(InstanceNormalization(Reshape(x, [N,G,-1]), 1, 0)) * s + b  ->  GroupNormalization(x, s, b)
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, Skip, op, rule, taken
from qcompiler.rewrite.matching import const, exact, per_channel

GROUPED = op("Reshape", op("InstanceNormalization", op("Reshape", ANY, ANY), CONST, CONST), ANY)


@rule(GROUPED)
def fuse_group_norm(outer: Node, norm: Node, inner: Node) -> Node | Skip | None:
    """Reshape(InstanceNormalization(Reshape(x))) -> GroupNormalization(x)."""
    x, scale, bias = inner.operands[0], *(p.array for p in norm.operands[1:])
    if x.type != outer.type or not x.type.static or x.type.rank < 3 or inner.type.rank < 3:
        return None
    (batch, groups, *_), (full, channels, *_) = inner.type.dims, x.type.dims
    if batch != full or channels % groups or groups == channels:
        return None
    each = channels // groups
    return make(
        "GroupNormalization",
        x,
        const(np.repeat(scale, each), like=x),
        const(np.repeat(bias, each), like=x),
        num_groups=groups,
        epsilon=norm.float("epsilon"),
    )


@rule(
    op(
        "Mul",
        op("GroupNormalization|InstanceNormalization", ANY, CONST, CONST),
        taken(CONST),
        commutes=True,
    )
)
def fuse_group_norm_scale(mul: Node, norm: Node, c: Node) -> Node | Skip:
    """GroupNormalization(x, s, b) * c -> GroupNormalization(x, s * c, b * c)."""
    return _affine(mul, norm, c)


@rule(
    op(
        "Add",
        op("GroupNormalization|InstanceNormalization", ANY, CONST, CONST),
        taken(CONST),
        commutes=True,
    )
)
def fuse_group_norm_bias(add: Node, norm: Node, c: Node) -> Node | Skip:
    """GroupNormalization(x, s, b) + c -> GroupNormalization(x, s, b + c)."""
    return _affine(add, norm, c)


def _affine(root: Node, norm: Node, c: Node) -> Node | Skip:
    flat = per_channel(exact(c), norm.type.rank, 1)
    if flat is None or root.type != norm.type:
        return Skip("the constant is not per channel")
    x, scale, bias = norm.operands
    s, b = exact(scale), exact(bias)
    s, b = (s * flat, b * flat) if root.op == "Mul" else (s, b + flat)
    return make(norm.op, x, const(s, like=scale), const(b, like=bias), name=norm.name, **norm.attrs)
