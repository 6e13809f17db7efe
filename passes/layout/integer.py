"""Lower integer products with any zero points, exactly: the corrections are sums, mostly of
constants.

ConvInteger(x, w, a, b)    ->  Transpose(conv(Transpose(x), w') - a * sum(w'))
MatMulInteger(x, w, a, b)  ->  matmul(x, w') - a * columns(w') - b * rows(x) + K * a * b
QLinearConv(x, ..., bias)  ->  quantize(ConvInteger(x, w, a, b) + bias, s * t / r, y_zero)
QLinearMatMul(x, ...)      ->  quantize(MatMulInteger(x, w, a, b), s * t / r, y_zero)

The last two are for operands known at run time only; all others were lowered before.
a and b are the zero points: sum((x - a) * (w - b)) = sum(x * w) - a * sum(w) - b * sum(x) + K * a *
b, in wrapping int32 arithmetic. The right operand becomes int8: w - b if that fits int8, without a
b; otherwise 128 is subtracted from a uint8 w and from b.
"""

from __future__ import annotations

import numpy as np
from qcompiler.passes.layout.conv import channels_last, pairs
from qcompiler.passes.layout.matmul import matrix

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.ops.window import Window
from qcompiler.rewrite import ANY, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.layouts import to_first
from qcompiler.rewrite.matching import (
    channel_shape,
    const,
    input_at,
    int64s,
    reshape,
    to_dtype,
    transpose,
)


@rule(op("MatMulInteger", ANY, ANY, OPTIONAL, OPTIONAL))
def layout_mat_mul_integer(node: Node) -> Node | Skip:
    """MatMulInteger(x, w, a, b) -> matmul(x, w') and its corrections."""
    if not all(i.type.static for i in node.operands):
        return Skip("a shape is unknown")
    x = matrix(node.operands[0], row=True)
    w, zero_w = signed(node.operands[1], wide(input_at(node, 3)))
    w = matrix(w, row=False)
    zero_x = wide(input_at(node, 2))
    made = make("matmul", x, w, name=node.name)
    if zero_x is not None:
        if zero_x.type.size > 1:  # one per row
            zero_x = reshape(zero_x, (*zero_x.type.dims, 1)) if zero_x.type.rank == 1 else zero_x
        columns = total(w, (-2,), keepdims=w.type.rank > 2)
        made = make("Sub", made, make("Mul", columns, zero_x))
    if zero_w is not None:
        rows = total(x, (-1,), keepdims=True)
        made = make("Sub", made, make("Mul", rows, zero_w))
        if zero_x is not None:
            both = make("Mul", zero_x, zero_w)
            made = make("Add", made, make("Mul", both, const(x.type.dims[-1], "int32")))
    return reshape(made, node.type.dims)


@rule(op("ConvInteger", ANY, ANY, OPTIONAL, OPTIONAL))
def layout_conv_integer(node: Node) -> Node | Skip:
    """ConvInteger(x, w, a, b) -> Transpose(conv(Transpose(x), w') and its corrections)."""
    x, rank = node.operands[0], node.type.rank
    if not _static(node):
        return Skip("a shape is unknown")
    w, zero_w = signed(node.operands[1], wide(input_at(node, 3)), first=True)
    zero_x = wide(input_at(node, 2))
    known = zero_x is None or zero_x.is_constant
    pad_value = int(zero_x.array.reshape(())) if zero_x is not None and known else 0
    made = channels_last(node, x, w, pad_value)
    if zero_x is not None:
        made = make("Sub", made, make("Mul", _seen_weights(node, w, known), zero_x))
    if zero_w is not None:
        ones = const(np.ones(w.type.dims, np.int8))
        made = make("Sub", made, make("Mul", channels_last(node, x, ones, pad_value), zero_w))
        if zero_x is not None:
            seen = _seen_weights(node, ones, known)
            made = make("Add", made, make("Mul", make("Mul", zero_x, zero_w), seen))
    return transpose(made, to_first(rank))


@rule(op("QLinearConv"))
def layout_q_linear_conv(node: Node) -> Node | Skip:
    """QLinearConv(x, w, bias) -> quantize(ConvInteger(x, w) + bias, s * t / r, zero)."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.operands[:8]
    if not _static(node):
        return Skip("a shape is unknown")
    channel = channel_shape(node.type.rank, 1)
    sums = make("ConvInteger", x, w, x_zero, w_zero, name=node.name, **node.attrs)
    bias = input_at(node, 8)
    if bias is not None:
        sums = make("Add", sums, shaped(bias, channel))
    step = make("Mul", factors(x_scale, ()), factors(w_scale, channel))
    return _requantized(node, sums, step, y_scale, y_zero)


@rule(op("QLinearMatMul"))
def layout_q_linear_mat_mul(node: Node) -> Node | Skip:
    """QLinearMatMul(a, b) -> quantize(MatMulInteger(a, b), s * t / r, zero)."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.operands
    if not _static(node):
        return Skip("a shape is unknown")
    if a_scale.type.rank == 1 and a_scale.type.size > 1:
        a_scale = reshape(a_scale, (a_scale.type.size, 1))
    sums = make("MatMulInteger", a, b, a_zero, b_zero, name=node.name)
    step = make("Mul", factors(a_scale, a_scale.type.dims), factors(b_scale, b_scale.type.dims))
    return _requantized(node, sums, step, y_scale, y_zero)


def _static(node: Node) -> bool:
    """Are the shapes of the operands and the result known?"""
    return all(i.type.static for i in (node, *node.operands))


def _requantized(node: Node, sums: Node, step: Node, scale: Node, zero: Node) -> Node:
    """int32 sums in units of `step` -> the node's bytes in units of `scale`."""
    multiplier = make("Div", step, factors(scale, scale.type.dims))
    zero = shaped(make("Cast", zero, to="int32"), zero.type.dims)
    real = make("Cast", sums, to="float32")
    return make("quantize", real, multiplier, zero, dtype=node.dtype)


def factors(scale: Node, dims: tuple[int, ...]) -> Node:
    """Scales in float32; see `shaped`."""
    return shaped(to_dtype(scale, "float32"), dims)


def shaped(numbers: Node, dims: tuple[int, ...]) -> Node:
    """One number -> a scalar; several -> the given dimensions, in which -1 is their count."""
    count = numbers.type.size
    return reshape(numbers, () if count == 1 else tuple(count if d < 0 else d for d in dims))


def _seen_weights(node: Node, w: Node, known: bool) -> Node:
    """The sum of the weights inside the input: [O], or per output position if ends differ."""
    x = node.operands[0]
    window = Window.of(node, x.shape[2:], w.shape[2:])
    if known or not any(map(any, pairs(window))):
        return total(w, tuple(range(1, w.type.rank)), keepdims=False)
    ones = const(np.ones((1, *x.type.dims[1:]), np.uint8))
    seen: Node = channels_last(node, ones, w)
    return seen


def signed(w: Node, zero: Node | None, *, first: bool = False) -> tuple[Node, Node | None]:
    """A right operand and its int32 zero point -> an int8 one, and the remaining zero point.

    Several zero points are along the last axis of w, or the `first`.
    """
    if w.is_constant and (zero is None or zero.is_constant):
        amount: Numbers = np.zeros((), np.int32) if zero is None else zero.array
        if first and amount.size > 1:
            amount = amount.reshape(-1, *[1] * (w.type.rank - 1))
        shifted = w.array.astype(np.int32) - amount.astype(np.int32)
        if shifted.min(initial=0) >= -128 and shifted.max(initial=0) <= 127:
            return const(shifted.astype(np.int8)), None
    if w.dtype == "int8":
        return w, zero
    lower = const(-128, "int32")
    moved = lower if zero is None else make("Add", zero, lower)
    if w.is_constant:
        return const((w.array.astype(np.int32) - 128).astype(np.int8)), moved
    return make("as_signed", w), moved


def wide(zero: Node | None) -> Node | None:
    """A zero point as int32; None if it is absent or all zeros."""
    if zero is None or (zero.is_constant and not zero.array.any()):
        return None
    if zero.is_constant:
        array = zero.array.astype(np.int32)
        return const(array.reshape(()) if array.size == 1 else array)
    zero = make("Cast", zero, to="int32")
    return reshape(zero, ()) if zero.type.size == 1 else zero


def total(x: Node, axes: tuple[int, ...], *, keepdims: bool) -> Node:
    """The int32 sum of bytes over some axes."""
    axes = tuple(a % x.type.rank for a in axes)
    if x.is_constant:
        return const(np.sum(x.array.astype(np.int32), axes, np.int32, keepdims=keepdims))
    return make("ReduceSum", make("Cast", x, to="int32"), int64s(axes), keepdims=int(keepdims))
