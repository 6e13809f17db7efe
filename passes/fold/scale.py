"""Fold a per-channel factor into the weights before or after it.

Conv(x, w, b) * s              ->  Conv(x, w * s, b * s)       s: scalar, or [O]
MatMul(x, w) * s               ->  MatMul(x, w * s)
(MatMul(x, w) + b) * s         ->  MatMul(x, w * s) + b * s
Conv(x * s, w, b)              ->  Conv(x, w * s, b)           s: scalar, or [C]
MatMul(x * s, w)               ->  MatMul(x, s * w)

Likewise for ConvTranspose, and for a division by s.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule, taken
from qcompiler.rewrite.matching import FLOATS, const, exact, input_at, per_channel, rebuilt

CONV = op("Conv|ConvTranspose", ANY, CONST, OPTIONAL)
X, C = taken(ANY), taken(CONST)


@rule(op("Mul", CONV, C, commutes=True))
def fold_scale_into_conv(mul: Node, conv: Node, factor: Node) -> Node | Skip:
    """Conv(x, w, b) * s -> Conv(x, w * s, b * s)."""
    return _scaled_conv(mul, conv, factor)


@rule(op("Div", CONV, C))
def fold_divisor_into_conv(div: Node, conv: Node, divisor: Node) -> Node | Skip:
    """Conv(x, w, b) / s -> Conv(x, w / s, b / s)."""
    return _scaled_conv(div, conv, divisor)


def _scaled_conv(root: Node, conv: Node, factor: Node) -> Node | Skip:
    x, w, b = conv.inputs[0], conv.operands[1], input_at(conv, 2)
    scale = _scale(root, conv, factor, conv.type.rank, 1)
    if isinstance(scale, Skip):
        return scale
    if b is not None and not b.is_constant:
        return Skip("the bias is not constant")
    weights = exact(w) * _output_factors(conv, exact(w), scale)
    bias = None if b is None else const(exact(b) * scale, like=b)
    return rebuilt(conv, (x, const(weights, like=w), bias))


def _output_factors(conv: Node, w: Numbers, scale: Numbers) -> Numbers:
    """[C] or [1] factors of the output channels -> an array that broadcasts to the weights."""
    ones = (1,) * (w.ndim - 2)
    if scale.size == 1 or conv.op == "Conv":
        return scale.reshape(-1, 1, *ones)
    # ConvTranspose keeps [input channel, output channel within the group]
    group = conv.int("group")
    return np.repeat(scale.reshape(group, -1), w.shape[0] // group, axis=0).reshape(
        *w.shape[:2], *ones
    )


@rule(op("Mul", op("MatMul", ANY, CONST), C, commutes=True))
def fold_scale_into_matmul(mul: Node, matmul: Node, factor: Node) -> Node | Skip:
    """MatMul(x, w) * s -> MatMul(x, w * s)."""
    return _scaled_matmul(mul, matmul, factor)


@rule(op("Div", op("MatMul", ANY, CONST), C))
def fold_divisor_into_matmul(div: Node, matmul: Node, divisor: Node) -> Node | Skip:
    """MatMul(x, w) / s -> MatMul(x, w / s)."""
    return _scaled_matmul(div, matmul, divisor)


def _scaled_matmul(root: Node, matmul: Node, factor: Node) -> Node | Skip:
    x, w = matmul.operands
    scale = _scale(root, matmul, factor, matmul.type.rank, -1)
    if isinstance(scale, Skip):
        return scale
    if w.type.rank < 2:
        return Skip("the weights are a vector")
    return rebuilt(matmul, (x, const(exact(w) * scale, like=w)))


@rule(op("Mul", op("Add", op("MatMul", ANY, CONST), C, commutes=True), C, commutes=True))
def fold_scale_past_bias(
    mul: Node, add: Node, matmul: Node, bias: Node, factor: Node
) -> Node | Skip:
    """(MatMul(x, w) + b) * s -> MatMul(x, w) * s + b * s."""
    scale = _scale(mul, add, factor, matmul.type.rank, -1)
    if isinstance(scale, Skip):
        return scale
    if matmul.type != add.type:
        return Skip("the sum is larger than the product")
    scaled = make("Mul", matmul, factor)
    return make("Add", scaled, const(exact(bias) * exact(factor), like=bias), name=add.name)


def _scale(root: Node, made: Node, factor: Node, rank: int, axis: int) -> Numbers | Skip:
    """The root's factor, as [C] or [1] in float64."""
    if root.dtype not in FLOATS:
        return Skip("integers wrap around")
    flat = per_channel(exact(factor), rank, axis)
    if flat is None or root.type != made.type:
        return Skip("the factor is not per channel")
    if root.op == "Div":
        if np.any(flat == 0):
            return Skip("a divisor is zero")
        return np.asarray(1 / flat)
    return flat


@rule(op("Conv", op("Mul", X, C, commutes=True), CONST, OPTIONAL))
def fold_input_scale_into_conv(conv: Node, mul: Node, x: Node, factor: Node) -> Node | Skip:
    """Conv(x * s, w, b) -> Conv(x, w * s, b)."""
    if x.type != mul.type or mul.dtype not in FLOATS:
        return Skip("the product is larger than its data operand")
    scale = per_channel(exact(factor), x.type.rank, 1)
    if scale is None:
        return Skip("the factor is not per channel")
    w = conv.operands[1]
    inputs = w.array.shape[1]
    if scale.size > 1:  # [group, output channel within it, input channel within it]
        groups = np.repeat(scale.reshape(-1, inputs), w.array.shape[0] // conv.int("group"), axis=0)
        scale = groups.reshape(w.array.shape[0], inputs)
    else:
        scale = scale.reshape(1, 1)
    spatial = (1,) * (w.array.ndim - 2)
    weights = exact(w) * scale.reshape(*scale.shape, *spatial)
    return rebuilt(conv, (x, const(weights, like=w), input_at(conv, 2)))


@rule(op("MatMul", op("Mul", X, C, commutes=True), CONST))
def fold_input_scale_into_matmul(matmul: Node, mul: Node, x: Node, factor: Node) -> Node | Skip:
    """MatMul(x * s, w) -> MatMul(x, s * w)."""
    if x.type != mul.type or mul.dtype not in FLOATS:
        return Skip("the product is larger than its data operand")
    scale = per_channel(exact(factor), x.type.rank, -1)
    w = matmul.operands[1]
    if scale is None or w.type.rank < 2:
        return Skip("the factor is not per channel")
    return rebuilt(matmul, (x, const(exact(w) * scale.reshape(-1, 1), like=w)))
