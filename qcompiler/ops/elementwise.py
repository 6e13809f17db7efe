"""Elementwise operators: arithmetic, comparisons, logic, activations, casts.

Each is one formula, evaluated by numpy, by the kernels and by the builders of look-up tables.
"""

from __future__ import annotations

from math import inf, pi, sqrt

import ml_dtypes

from qcompiler.errors import Error
from qcompiler.ir import Node, Type, numpy_dtype
from qcompiler.ops.math import NUMPY, Math, V
from qcompiler.ops.registry import Numbers, broadcast, elementwise, operator, typed
from qcompiler.ops.shapes import agree

# Arithmetic.


@elementwise("Add", of="numbers")
def add(m: Math, a: V, b: V) -> V:
    return a + b


@elementwise("Sub", of="numbers")
def sub(m: Math, a: V, b: V) -> V:
    return a - b


@elementwise("Mul", of="numbers")
def mul(m: Math, a: V, b: V) -> V:
    return a * b


@elementwise("Div", of="numbers")
def div(m: Math, a: V, b: V) -> V:
    return m.divide(a, b)


@elementwise("quotient", of="numbers")
def quotient(m: Math, a: V, b: V) -> V:
    """a / b of sizes that are known to be at least 0 in every run: rounded down."""
    return m.divide(a, b)


@elementwise("Mod", of="numbers")
def mod(m: Math, a: V, b: V, *, fmod: int = 0) -> V:
    return m.fmod(a, b) if fmod else m.remainder(a, b)


def _as_first(node: Node) -> Type:
    """Other inputs may have other dtypes."""
    return Type(node.operands[0].dtype, broadcast(*(i.shape for i in node.operands)))


def _power(node: Node) -> Type:
    """The exponent may be of another dtype."""
    if any(i.dtype == "bool" for i in node.operands):
        raise Error("bool inputs where numbers are needed")
    return _as_first(node)


@elementwise("Pow", types=_power)
def pow_(m: Math, x: V, y: V) -> V:
    return m.pow(x, y)


@elementwise("Sum", of="numbers")
def sum_(m: Math, first: V, *rest: V) -> V:
    for x in rest:
        first = first + x
    return first


@elementwise("Mean", of="floats")
def mean(m: Math, first: V, *rest: V) -> V:
    return sum_(m, first, *rest) / (1 + len(rest))


@elementwise("Max", of="numbers")
def max_(m: Math, first: V, *rest: V) -> V:
    for x in rest:
        first = m.max(first, x)
    return first


@elementwise("Min", of="numbers")
def min_(m: Math, first: V, *rest: V) -> V:
    for x in rest:
        first = m.min(first, x)
    return first


@elementwise("Neg", of="numbers")
def neg(m: Math, x: V) -> V:
    return -x


@elementwise("Abs", of="numbers")
def abs_(m: Math, x: V) -> V:
    return m.abs(x)


@elementwise("Sign", of="numbers")
def sign(m: Math, x: V) -> V:
    return m.sign(x)


@elementwise("Reciprocal", of="floats")
def reciprocal(m: Math, x: V) -> V:
    return 1 / x


@elementwise("Floor", of="floats")
def floor(m: Math, x: V) -> V:
    return m.floor(x)


@elementwise("Ceil", of="floats")
def ceil(m: Math, x: V) -> V:
    return m.ceil(x)


@elementwise("Round", of="floats")
def round_(m: Math, x: V) -> V:
    return m.round(x)


@elementwise("Sqrt", of="floats")
def sqrt_(m: Math, x: V) -> V:
    return m.sqrt(x)


@elementwise("Exp", of="floats")
def exp(m: Math, x: V) -> V:
    return m.exp(x)


@elementwise("Log", of="floats")
def log(m: Math, x: V) -> V:
    return m.log(x)


@elementwise("Erf", of="floats")
def erf(m: Math, x: V) -> V:
    return m.erf(x)


@elementwise("Sin", of="floats")
def sin(m: Math, x: V) -> V:
    return m.sin(x)


@elementwise("Cos", of="floats")
def cos(m: Math, x: V) -> V:
    return m.cos(x)


@elementwise("Tan", of="floats")
def tan(m: Math, x: V) -> V:
    return m.libm("tan", x)


@elementwise("Asin", of="floats")
def asin(m: Math, x: V) -> V:
    return m.libm("asin", x)


@elementwise("Acos", of="floats")
def acos(m: Math, x: V) -> V:
    return m.libm("acos", x)


@elementwise("Atan", of="floats")
def atan(m: Math, x: V) -> V:
    return m.libm("atan", x)


@elementwise("Sinh", of="floats")
def sinh(m: Math, x: V) -> V:
    return m.libm("sinh", x)


@elementwise("Cosh", of="floats")
def cosh(m: Math, x: V) -> V:
    return m.libm("cosh", x)


@elementwise("Asinh", of="floats")
def asinh(m: Math, x: V) -> V:
    return m.libm("asinh", x)


@elementwise("Acosh", of="floats")
def acosh(m: Math, x: V) -> V:
    return m.libm("acosh", x)


@elementwise("Atanh", of="floats")
def atanh(m: Math, x: V) -> V:
    return m.libm("atanh", x)


# Comparisons and logic.


@elementwise("Equal", dtype="bool")
def equal(m: Math, a: V, b: V) -> V:
    return a == b


@elementwise("Less", of="numbers", dtype="bool")
def less(m: Math, a: V, b: V) -> V:
    return a < b


@elementwise("LessOrEqual", of="numbers", dtype="bool")
def less_or_equal(m: Math, a: V, b: V) -> V:
    return a <= b


@elementwise("Greater", of="numbers", dtype="bool")
def greater(m: Math, a: V, b: V) -> V:
    return a > b


@elementwise("GreaterOrEqual", of="numbers", dtype="bool")
def greater_or_equal(m: Math, a: V, b: V) -> V:
    return a >= b


@elementwise("IsNaN", of="floats", dtype="bool")
def is_nan(m: Math, x: V) -> V:
    return m.is_nan(x)


@elementwise("IsInf", of="floats", dtype="bool")
def is_inf(m: Math, x: V, *, detect_negative: int = 1, detect_positive: int = 1) -> V:
    positive, negative = x == inf, x == -inf
    if detect_positive and detect_negative:
        return positive | negative
    if detect_positive:
        return positive
    return negative if detect_negative else positive & negative


def _integers(node: Node) -> Type:
    """Inputs of one integer dtype."""
    dtypes = {i.dtype for i in node.operands}
    if len(dtypes) > 1 or "int" not in node.operands[0].dtype:
        raise Error(f"inputs of {' and '.join(sorted(dtypes))} where one integer type is needed")
    return _as_first(node)


def _booleans(node: Node) -> Type:
    if any(i.dtype != "bool" for i in node.operands):
        raise Error(f"input of {node.operands[0].dtype} where bool is needed")
    return _as_first(node)


@elementwise("And", types=_booleans)
def and_(m: Math, a: V, b: V) -> V:
    return a & b


@elementwise("Or", types=_booleans)
def or_(m: Math, a: V, b: V) -> V:
    return a | b


@elementwise("Xor", types=_booleans)
def xor(m: Math, a: V, b: V) -> V:
    return a ^ b


@elementwise("Not", types=_booleans)
def not_(m: Math, x: V) -> V:
    return m.logical_not(x)


@elementwise("BitwiseAnd", types=_integers)
def bitwise_and(m: Math, a: V, b: V) -> V:
    return a & b


@elementwise("BitwiseOr", types=_integers)
def bitwise_or(m: Math, a: V, b: V) -> V:
    return a | b


@elementwise("BitwiseXor", types=_integers)
def bitwise_xor(m: Math, a: V, b: V) -> V:
    return a ^ b


@elementwise("BitwiseNot", types=_integers)
def bitwise_not(m: Math, x: V) -> V:
    return ~x


@elementwise("BitShift", types=_integers)
def bit_shift(m: Math, x: V, y: V, *, direction: str) -> V:
    return x << y if direction == "LEFT" else x >> y


def _choice(node: Node) -> Type:
    condition, a, b = node.operands
    if condition.dtype != "bool" or a.dtype != b.dtype:
        raise Error(f"bool and two of one type are needed, not {condition.type} {a.type} {b.type}")
    return Type(a.dtype, broadcast(condition.shape, a.shape, b.shape))


@elementwise("Where", types=_choice)
def where(m: Math, condition: V, a: V, b: V, *, hides: int = 0) -> V:
    """`hides`: 1 if the condition is which positions of a padded value count (rewrite/padding)."""
    return m.where(condition, a, b)


# Casts.

_FLOAT8 = {
    d: float(ml_dtypes.finfo(numpy_dtype(d)).max)  # type: ignore[no-untyped-call]
    for d in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
}
"""The largest finite number of each."""


def _cast_type(node: Node) -> Type:
    x, to = node.operands[0].type, node.str("to")
    try:
        known = numpy_dtype(to).kind not in "cOSU"
    except TypeError:
        known = False
    if to == "float8_e8m0fnu" and node.str("round_mode") == "nearest":
        raise Error("a cast to powers of two with round_mode 'nearest' is not supported")
    if not known or x.dtype == "string":
        raise Error(f"a cast from {x.dtype} to {to} is not supported")
    return Type(to, x.shape)


@elementwise("Cast", types=_cast_type)
def cast(m: Math, x: V, *, to: str, saturate: int = 1, round_mode: str = "up") -> V:
    """C conversion; to float8, overflow becomes the largest number if `saturate`.

    `round_mode` is for the types that hold only powers of two.
    """
    if to == "float8_e8m0fnu":  # a product just below twice x: a power of two keeps its exponent
        size = m.abs(m.cast(x, "float32"))
        size = size * (2 - 2.0**-23) if round_mode == "up" else size
        bounded = m.where(size > 2.0**127, 2.0**127, size) if saturate else size
        return m.cast(bounded, to)
    if saturate and to in _FLOAT8:
        x = m.clip(m.cast(x, "float32"), -_FLOAT8[to], _FLOAT8[to])
    return m.cast(x, to)


@operator("CastLike", saturate=1, round_mode="up")
def cast_like(node: Node, x: Numbers, like: Numbers) -> Numbers:
    values = cast(NUMPY, NUMPY.widen(x), to=node.dtype, saturate=node.int("saturate"))
    return NUMPY.finish(values, node.dtype)


@typed(cast_like)
def _(node: Node) -> Type:
    x, like = node.operands
    if "string" in (x.dtype, like.dtype):
        raise Error(f"a cast from {x.dtype} to {like.dtype} is not supported")
    return Type(like.dtype, x.shape)


# Activations.


@elementwise("Relu", of="numbers")
def relu(m: Math, x: V) -> V:
    return m.max(x, 0)


@elementwise("LeakyRelu", of="floats")
def leaky_relu(m: Math, x: V, *, alpha: float = 0.01) -> V:
    return m.where(x < 0, x * alpha, x)


def _slope_fits(node: Node) -> Type:
    """The slope broadcasts to x, and x not to the slope."""
    x, slope = node.operands
    pairs = list(zip(reversed(x.shape), reversed(slope.shape), strict=False))
    own = tuple(n if isinstance(d, int) and d > 1 and agree(n, d) else d for n, d in pairs)
    if slope.type.rank > x.type.rank or broadcast(x.shape, own[::-1]) != x.shape:
        raise Error(f"slope {slope.type} does not broadcast to {x.type}")
    return x.type


@elementwise("PRelu", types=_slope_fits)
def p_relu(m: Math, x: V, slope: V) -> V:
    return m.where(x < 0, x * slope, x)


@elementwise("ThresholdedRelu", of="floats")
def thresholded_relu(m: Math, x: V, *, alpha: float = 1.0) -> V:
    return m.where(x > alpha, x, 0)


@elementwise("Clip", of="numbers")
def clip(m: Math, x: V, low: V = None, high: V = None) -> V:
    return m.clip(x, low, high)


@elementwise("Shrink", of="floats")
def shrink(m: Math, x: V, *, bias: float = 0.0, lambd: float = 0.5) -> V:
    return m.where(x < -lambd, x + bias, m.where(x > lambd, x - bias, 0))


@elementwise("Elu", of="floats")
def elu(m: Math, x: V, *, alpha: float = 1.0) -> V:
    return m.where(x < 0, (m.exp(m.min(x, 0)) - 1) * alpha, x)


@elementwise("Selu", of="floats")
def selu(m: Math, x: V, *, alpha: float = 1.67326319, gamma: float = 1.05070102) -> V:
    return m.where(x > 0, x * gamma, (m.exp(m.min(x, 0)) - 1) * (alpha * gamma))


@elementwise("Celu", of="floats")
def celu(m: Math, x: V, *, alpha: float = 1.0) -> V:
    return m.max(x, 0) + m.min((m.exp(m.min(x, 0) / alpha) - 1) * alpha, 0)


@elementwise("Sigmoid", of="floats")
def sigmoid(m: Math, x: V) -> V:
    return 1 / (m.exp(-x) + 1)


@elementwise("HardSigmoid", of="floats")
def hard_sigmoid(m: Math, x: V, *, alpha: float = 0.2, beta: float = 0.5) -> V:
    return m.clip(x * alpha + beta, 0, 1)


@elementwise("HardSwish", of="floats")
def hard_swish(m: Math, x: V) -> V:
    return x * m.clip(x / 6 + 0.5, 0, 1)


@elementwise("Swish", of="floats")
def swish(m: Math, x: V, *, alpha: float = 1.0) -> V:
    return x * sigmoid(m, x if alpha == 1 else x * alpha)


@elementwise("SwiGLU", of="floats")
def swiglu(m: Math, a: V, b: V, *, alpha: float = 1.0) -> V:
    return swish(m, a, alpha=alpha) * b


@elementwise("Tanh", of="floats")
def tanh(m: Math, x: V) -> V:
    return m.tanh(x)


@elementwise("Softplus", of="floats")
def softplus(m: Math, x: V) -> V:
    """log(1 + exp(x)), in a form that does not overflow."""
    return m.max(x, 0) + m.log(m.exp(-m.abs(x)) + 1)


@elementwise("Softsign", of="floats")
def softsign(m: Math, x: V) -> V:
    return x / (m.abs(x) + 1)


@elementwise("Mish", of="floats")
def mish(m: Math, x: V) -> V:
    return x * m.tanh(softplus(m, x))


@elementwise("Gelu", of="floats")
def gelu(m: Math, x: V, *, approximate: str = "none") -> V:
    if approximate == "tanh":
        return x * 0.5 * (m.tanh((x + x * x * x * 0.044715) * sqrt(2 / pi)) + 1)
    return x * 0.5 * (m.erf(x * sqrt(0.5)) + 1)
