"""Elementwise steps: activations, arithmetic with constants of every kind, comparisons, integers,
casts; most of them several times on values of one shape, with other constants.
"""

from __future__ import annotations

import numpy as np

from .builder import Builder, Value

SMOOTH = ("Sigmoid", "Tanh", "Erf", "Softplus", "Gelu", "Mish", "HardSwish", "Softsign", "Swish")
BENT = ("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "Abs", "Neg", "Clip")
EDGED = ("ThresholdedRelu", "Shrink", "Sign", "Floor", "Ceil", "Round")
CURVES = ("Sin", "Cos", "Atan", "Asinh", "Sqrt", "Exp", "Log", "Reciprocal", "Sinh", "Cosh")
NARROW = ("Tan", "Asin", "Acos", "Atanh", "Acosh")


def unary(b: Builder) -> None:
    activation(b, b.pick())


def activation(b: Builder, x: Value, kinds: tuple[str, ...] = ()) -> Value:
    """Some function of one value, on numbers for which it is tame."""
    op = b.choose(kinds or (*SMOOTH, *BENT, *BENT, *EDGED, *CURVES, *NARROW))
    if op == "Clip":
        return clipped(b, x)
    if op == "Swish" and b.opset < 24:
        return b.add("Mul", x, b.add("Sigmoid", x))
    if op in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Swish"):
        return b.add(op, x, alpha=float(b.choose((0.01, 0.1, 0.25, 0.5, 1.0, 1.702))))
    if op == "Gelu":
        return b.add(op, x, approximate=b.choose(("none", "tanh")))
    if op == "Shrink":
        return b.add(op, x, bias=float(b.choose((0, 0.25))), lambd=float(b.choose((0.5, 0.2))))
    if op in ("Sqrt", "Log", "Reciprocal"):
        x = b.add("Add", b.add("Abs", x), b.constant(np.float32(0.3)))
    elif op in ("Exp", "Sinh", "Cosh"):
        x = b.add("Clip", x, b.constant(np.float32(-6)), b.constant(np.float32(3)))
    elif op in ("Tan", "Asin", "Acos", "Atanh"):
        x = b.add("Mul", b.add("Tanh", x), b.constant(np.float32(0.9)))
    elif op == "Acosh":
        x = b.add("Add", b.add("Abs", x), b.constant(np.float32(1.2)))
    return b.add(op, x)


def clipped(b: Builder, x: Value) -> Value:
    """Between bounds of every kind: none, 0 and 6, numbers, the same twice."""
    low = b.choose((None, 0.0, -1.0, -0.5, 0.1))
    high = b.choose((None, 6.0, 1.0, 0.7, 0.1, 3.0))
    bounds = [None if v is None else b.constant(np.float32(v)) for v in (low, high)]
    return b.add("Clip", x, *bounds)


def side(b: Builder, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to another."""
    kind = b.between(0, 5)
    if kind == 0:
        return ()
    if kind == 1:
        return shape
    if kind == 2 and len(shape) > 1:
        return (shape[1], *[1] * (len(shape) - 2))
    found = tuple(d if b.chance(0.5) else 1 for d in shape)
    return found[b.between(0, len(shape)) :] if b.chance(0.4) else found


def scaled(b: Builder, x: Value, op: str, at: tuple[int, ...] | None = None) -> Value:
    """x op c, or c op x."""
    c = b.numbers(*(side(b, x.shape) if at is None else at))
    if op == "Div":
        c = np.where(np.abs(c) < 0.3, np.float32(0.5), c)
    given = [x, b.constant(c)]
    if op in ("Add", "Sub", "Mul", "Max", "Min") and b.chance(0.3):
        given.reverse()
    return b.add(op, *given)


def binary(b: Builder) -> None:
    scaled(b, b.pick(), b.choose(("Add", "Sub", "Mul", "Max", "Min", "Div", "PRelu")))


def power(b: Builder) -> None:
    x = b.pick()
    exponent = b.choose((2.0, 3.0, 0.5, 1.5, -1.0, 1.0, 0.0))
    if exponent not in (2.0, 3.0):
        x = b.add("Add", b.add("Abs", x), b.constant(np.float32(0.2)))
    b.add("Pow", x, b.constant(np.float32(exponent)))


def pair(b: Builder) -> None:
    """Two values of one shape, or one value with itself."""
    x = b.pick()
    y = b.pick(lambda v: v.shape == x.shape)
    op = b.choose(("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"))
    more = (x,) if op in ("Sum", "Mean", "Max", "Min") and b.chance(0.3) else ()
    b.add(op, x, y, *more)


def repeated(b: Builder) -> None:
    """A value and a part of another, computed one, that is repeated along some of its axes."""
    x = b.pick(lambda v: v.rank > 0)
    y = b.pick(lambda v: 0 < v.rank <= x.rank and 0 not in v.shape)
    for axis, (size, wanted) in enumerate(zip(y.shape, x.shape[x.rank - y.rank :], strict=True)):
        if size != wanted or (size > 1 and b.chance(0.4)):
            at = b.between(0, size - 1)
            y = b.add("Slice", y, b.ints(at), b.ints(at + 1), b.ints(axis))
    b.add(b.choose(("Add", "Sub", "Mul", "Max")), *((x, y) if b.chance(0.5) else (y, x)))


def itself(b: Builder) -> None:
    """One value read twice by one node, or by two nodes that meet again."""
    x = b.pick()
    op = b.choose(("Add", "Sub", "Mul", "Max", "Min"))
    if b.chance(0.5):
        b.add(op, x, x)
    else:
        b.add(op, activation(b, x), activation(b, x))


def equals(b: Builder) -> None:
    """Equal operators on values of one shape with other constants: they may share their code."""
    x = b.pick()
    op = b.choose(("Add", "Mul", "Sub", "Max", "Min", "PRelu", "Div", "clip", "where", "greater"))
    at = side(b, x.shape)
    for _ in range(b.between(2, 3)):
        y = x if b.chance(0.4) else b.pick(lambda v: v.shape == x.shape)
        if op == "clip":
            low = float(b.choose((-2, -1, -0.5, 0, 0.3)))
            high = low + float(b.choose((0.5, 1, 6)))
            b.add("Clip", y, b.constant(np.float32(low)), b.constant(np.float32(high)))
        elif op in ("where", "greater"):
            threshold = b.constant(b.numbers(*at) * np.float32(0.5))
            c = b.add_all(b.choose(("Greater", "Less")), y, threshold, outputs=1, keep=False)[0]
            if op == "where":
                b.add("Where", c, y, b.constant(b.numbers(*at)))
            else:
                b.add("Cast", c, to="float32")
        else:
            scaled(b, y, op, at)


def choice(b: Builder) -> None:
    """Where, with a condition that is compared, or made of several."""
    x = b.pick()
    y = b.pick(lambda v: v.shape == x.shape)
    compare = ("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal")
    against = y if b.chance(0.3) else b.constant(b.numbers(*side(b, x.shape)))
    c = b.add(b.choose(compare), x, against)
    if b.chance(0.4):
        d = b.add("Less", y, b.constant(np.float32(0.2)))
        c = b.add(b.choose(("And", "Or", "Xor")), c, d)
    if b.chance(0.2):
        c = b.add("Not", c)
    left: Value = b.constant(b.numbers(*side(b, x.shape))) if b.chance(0.3) else x
    b.add("Where", c, left, y)


def integers(b: Builder) -> None:
    """Arithmetic of integers, of a dtype that the model has or is cast to."""
    dtype = b.choose(("int32", "int64", "uint8", "int8", "int16", "uint32"))
    x = whole(b, dtype)
    for _ in range(b.between(1, 3)):
        x = of_integers(b, x)
    if b.chance(0.6):
        b.add("Mul", b.add("Cast", x, to="float32"), b.constant(np.float32(0.01)))


def whole(b: Builder, dtype: str) -> Value:
    """Integers: made before, cast from floats, or a new input."""
    if b.chance(0.3):
        made = [v for v in b.values if v.dtype == dtype]
        if made:
            return b.choose(made)
    if b.chance(0.2):
        return b.input(b.shape(b.between(1, 3), 600), dtype)
    x = b.pick()
    low, high = (0.0, 100.0) if dtype[0] == "u" else (-100.0, 100.0)
    x = b.add("Mul", x, b.constant(np.float32(7.3)))
    x = b.add("Clip", x, b.constant(np.float32(low)), b.constant(np.float32(high)))
    return b.add("Cast", x, to=dtype)


def of_integers(b: Builder, x: Value) -> Value:
    ops = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "bits", "not", "shift", "neg", "clip")
    op = b.choose(ops)
    info = np.iinfo(x.dtype)
    at = side(b, x.shape)
    if op in ("Div", "Mod"):
        c = b.rng.integers(1, 9, at) * (1 if info.min == 0 or b.chance(0.6) else -1)
        return b.add(op, x, b.constant(np.array(c), x.dtype))
    if op == "bits":
        c = np.array(b.rng.integers(0, 100, at))
        kind = b.choose(("BitwiseAnd", "BitwiseOr", "BitwiseXor"))
        return b.add(kind, x, b.constant(c, x.dtype))
    if op == "not":
        return b.add("BitwiseNot", x)
    if op == "shift" and info.min == 0:
        c = np.array(b.rng.integers(0, info.bits, at))
        return b.add("BitShift", x, b.constant(c, x.dtype), direction=b.choose(("LEFT", "RIGHT")))
    if op == "neg" and info.min < 0:
        return b.add(b.choose(("Neg", "Abs", "Sign")), x)
    if op == "clip":
        return b.add("Clip", x, b.constant(3, x.dtype), b.constant(77, x.dtype))
    if op not in ("Add", "Sub", "Mul", "Max", "Min"):
        op = "Add"
    if b.chance(0.2):
        return b.add(op, x, x)
    c = np.array(b.rng.integers(max(info.min, -60), 60, at))
    return b.add(op, x, b.constant(c, x.dtype))


def cast(b: Builder) -> None:
    """To another dtype, and mostly back."""
    x = b.pick(dtype="")
    to = b.choose(("float16", "bfloat16", "float32", "int32", "int8", "uint8", "bool", "int64"))
    if x.dtype.startswith("float") and "int" in to:
        low, high = (0.0, 90.0) if to[0] == "u" else (-90.0, 90.0)
        ends = [b.constant(np.array(v), x.dtype) for v in (low, high)]
        x = b.add("Clip", x, *ends)
    y = b.add("Cast", x, to=to)
    if b.chance(0.7):
        b.add("Cast", y, to="float32")


def gated(b: Builder) -> None:
    """x * f(x), spelled out."""
    x = b.pick()
    f = b.choose(("Sigmoid", "Tanh", "HardSigmoid", "Relu", "Softplus"))
    y = b.add(f, x)
    if f == "Softplus":
        y = b.add("Tanh", y)
    b.add("Mul", *((x, y) if b.chance(0.5) else (y, x)))
