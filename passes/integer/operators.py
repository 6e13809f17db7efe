"""ONNX's quantized operators -> explicit QDQ.

QLinearConv(x, s, z, w, t, y, r, q, b)
    ->  quantize(Conv(dequantize(x), dequantize(w), b * s * t))
QLinearMatMul(a, s, z, b, t, y, r, q)
    ->  quantize(MatMul(dequantize(a), dequantize(b)))

The integer_ rules then lower it like any other QDQ.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.quantization.scales import numbers
from qcompiler.rewrite import Skip, op, rule
from qcompiler.rewrite.matching import const, input_at


@rule(op("QLinearConv"))
def integer_qlinear_conv(node: Node) -> Node | Skip:
    """QLinearConv(x, w, b) -> QuantizeLinear(Conv(dq(x), dq(w), b * s * t))."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.operands[:8]
    bias = input_at(node, 8)
    if not all(i.is_constant for i in (x_scale, w_scale, w, *([bias] if bias else []))):
        return Skip("a scale, the weights or the bias are not constant")
    if bias is not None:
        step = numbers(x_scale).reshape(()) * numbers(w_scale).astype(np.float64)
        bias = constant((bias.array * step.reshape(-1)).astype(np.float32))
    wide = make("DequantizeLinear", x, _one(x_scale), _one(x_zero))
    weights = make("DequantizeLinear", w, _one(w_scale), _one(w_zero), axis=0)
    made = make("Conv", wide, weights, bias, name=node.name, **dict(node.attrs))
    return make("QuantizeLinear", made, _one(y_scale), _one(y_zero))


@rule(op("QLinearMatMul"))
def integer_qlinear_matmul(node: Node) -> Node | Skip:
    """QLinearMatMul(a, b) -> QuantizeLinear(MatMul(dq(a), dq(b)))."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.operands
    if any(i.type.static and i.type.size > 1 for i in (a_scale, y_scale)):
        return Skip("a scale per row")
    left = make("DequantizeLinear", a, _one(a_scale), _one(a_zero))
    axis = b.type.rank - 1
    right = make("DequantizeLinear", b, _one(b_scale), _one(b_zero), axis=axis)
    made = make("MatMul", left, right, name=node.name)
    return make("QuantizeLinear", made, _one(y_scale), _one(y_zero))


def _one(node: Node) -> Node:
    """A one-element constant as a scalar."""
    one = node.is_constant and node.array.size == 1
    return const(node.array.reshape(())) if one else node
