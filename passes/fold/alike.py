"""Operators that reduce to simpler ones once a type or a constant is known.

CastLike(x, y)         ->  Cast(x) {to=the dtype of y}
Compress(x, constant)  ->  Gather(x, the true indices)
CenterCropPad(x)       ->  Pad(Slice(x))
AffineGrid(t, size)    ->  MatMul(coordinates, t')
LpPool(x)              ->  (AveragePool(|x|^p) * size)^(1/p)
GlobalLpPool(x)        ->  ReduceL1(x) or ReduceL2(x), or as above
"""

from __future__ import annotations

from math import prod

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.sampling import places
from qcompiler.rewrite import ANY, CONST, Skip, op, rule
from qcompiler.rewrite.matching import const, int64s, reshape, transpose


@rule(op("CastLike", ANY, ANY))
def fold_cast_like(node: Node) -> Node:
    """CastLike(x, y) -> Cast(x) {to=the dtype of y}."""
    return make("Cast", node.operands[0], to=node.dtype, name=node.name, **node.attrs)


@rule(op("Compress", ANY, CONST))
def fold_compress(node: Node) -> Node:
    """Compress(x, constant) -> Gather(x, the true indices)."""
    x, chosen = node.operands
    axis = node.attrs["axis"]
    if axis is None:
        x, axis = make("Reshape", x, int64s((-1,))), 0
    return make("Gather", x, int64s(np.flatnonzero(chosen.array)), axis=axis, name=node.name)


@rule(op("CenterCropPad", ANY, ANY))
def fold_center_crop_pad(node: Node) -> Node | Skip:
    """CenterCropPad(x) -> Pad(Slice(x))."""
    x = node.operands[0]
    if not x.type.static or not node.type.static:
        return Skip(f"the shape {x.type} or {node.type} is unknown")
    pairs = list(zip(x.type.dims, node.type.dims, strict=True))
    begin = [max(size - wanted, 0) // 2 for size, wanted in pairs]
    end = [first + min(pair) for first, pair in zip(begin, pairs, strict=True)]
    more = [max(wanted - size, 0) for size, wanted in pairs]
    pads = [m // 2 for m in more] + [m - m // 2 for m in more]
    cut = make("Slice", x, int64s(begin), int64s(end), int64s(range(len(pairs))))
    return make("Pad", cut, int64s(pads), name=node.name)


@rule(op("AffineGrid", ANY, CONST))
def fold_affine_grid(node: Node) -> Node | Skip:
    """AffineGrid(t, size) -> MatMul(coordinates, t')."""
    theta, size = node.operands
    if not theta.type.static:
        return Skip(f"the shape {theta.type} is unknown")
    counts = [int(n) for n in size.array.reshape(-1)[2:]]
    grid = places(counts, corners=bool(node.int("align_corners")))
    flat = const(grid.reshape(-1, len(counts) + 1), like=theta)
    made = make("MatMul", flat, transpose(theta, (0, 2, 1)), name=node.name)
    return reshape(made, node.type.dims)


@rule(op("LpPool", ANY))
def fold_lp_pool(node: Node) -> Node | Skip:
    """LpPool(x) -> (AveragePool(|x|^p) * size)^(1/p)."""
    if node.int("ceil_mode"):
        return Skip("ceil_mode")
    order = node.int("p")
    attrs = {k: v for k, v in node.attrs.items() if k != "p"}
    powers = _power(make("Abs", node.operands[0]), order)
    mean = make("AveragePool", powers, count_include_pad=1, name=node.name, **attrs)
    total = make("Mul", mean, const(prod(node.ints("kernel_shape")), like=mean))
    return _power(total, 1 / order)


@rule(op("GlobalLpPool", ANY))
def fold_global_lp_pool(node: Node) -> Node:
    """GlobalLpPool(x) -> ReduceL1(x) or ReduceL2(x), or by powers."""
    x, order = node.operands[0], node.int("p")
    axes = int64s(range(2, x.type.rank))
    if order in (1, 2):
        return make(f"ReduceL{order}", x, axes, keepdims=1, name=node.name)
    total = make("ReduceSum", _power(make("Abs", x), order), axes, keepdims=1, name=node.name)
    return _power(total, 1 / order)


def _power(x: Node, exponent: float) -> Node:
    return x if exponent == 1 else make("Pow", x, const(exponent, like=x))
