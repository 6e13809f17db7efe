"""Steps that are quantized in the model: pairs of QuantizeLinear and DequantizeLinear of every
kind, integer products, and onnx's own quantized operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array

from .builder import LARGEST, LENGTHS, Builder, Value
from .moves import ranked
from .products import windows


def parameters(b: Builder, x: Array, dtype: str, fitting: bool = True) -> tuple[Value, Value]:
    """Scale and zero point for values like these; one in four does not fit them well."""
    usual = x[np.abs(x) <= LARGEST]  # the others, and those that are no numbers, are saturated
    low, high = min(float(usual.min(initial=0)), 0.0), max(float(usual.max(initial=0)), 0.0)
    info = np.iinfo(dtype)
    if not fitting or b.chance(0.25):
        low, high = low * 0.6, high * 0.6
    scale = max((high - low) / (info.max - info.min), 1e-3)
    if b.chance(0.25):
        scale = 2.0 ** np.ceil(np.log2(scale))
    zero = np.clip(np.round(info.min - low / scale), info.min, info.max)
    if dtype.startswith("int") and b.chance(0.4):
        scale, zero = max(-low, high, 0.1) / info.max, 0
    return b.constant(np.float32(scale)), b.constant(np.array(zero), dtype)


def through(b: Builder, x: Value, dtype: str = "") -> Value:
    """x -> the same through a pair of QuantizeLinear and DequantizeLinear."""
    dtype = dtype or b.choose(("uint8", "uint8", "int8", "int8", "int16", "uint16"))
    scale, zero = parameters(b, x.array, dtype)
    q = b.add_all("QuantizeLinear", x, scale, zero, outputs=1, keep=False)[0]
    return b.add("DequantizeLinear", q, scale, zero)


def pair(b: Builder) -> None:
    through(b, b.pick())


def twice(b: Builder) -> None:
    """Two pairs of other scales on one value, or one after the other."""
    x = b.pick()
    y = through(b, x)
    through(b, y if b.chance(0.5) else x)


def per_axis(b: Builder) -> None:
    x = ranked(b, 2, 4)
    axis = b.between(0, x.rank - 1)
    scales = b.constant(np.abs(b.normal(x.shape[axis])) * np.float32(0.03) + np.float32(0.01))
    dtype = b.choose(("uint8", "int8"))
    zeros = b.constant(b.rng.integers(0, 20, x.shape[axis]), dtype)
    q = b.add_all("QuantizeLinear", x, scales, zeros, outputs=1, keep=False, axis=axis)[0]
    b.add("DequantizeLinear", q, scales, zeros, axis=axis)


def weights(b: Builder, shape: tuple[int, ...], fan: int, axis: int) -> tuple[Value, Array]:
    """Weights in bytes, dequantized: per tensor or per channel -> the value, its scales."""
    q = b.rng.integers(-127, 128, shape).astype(np.int8)
    count = shape[axis] if b.chance(0.6) else None
    scales = b.rng.uniform(0.3, 1.2, () if count is None else count) * 2 / 127 / fan**0.5
    scales = np.asarray(scales, np.float32)
    more = {} if count is None else {"axis": axis}
    zeros = (b.constant(np.zeros(scales.shape, np.int8)),) if b.chance(0.6) else ()
    made = b.add_all(
        "DequantizeLinear", b.constant(q), b.constant(scales), *zeros, outputs=1, keep=False, **more
    )
    return made[0], scales


def bias(b: Builder, x: Value, count: int, scales: Array) -> tuple[Value, ...]:
    """In int32 at the product of the scales, as converters write it; in float32; or none."""
    if b.chance(0.3):
        return ()
    if b.chance(0.3):
        return (b.constant(b.numbers(count)),)
    step = next((v for v in reversed(b.steps) if v[0] == x.name), None)
    if step is None:
        return ()
    both = (scales * np.float32(step[1])).astype(np.float32)
    more = {"axis": 0} if both.ndim else {}
    q = b.constant(b.rng.integers(-3000, 3000, count).astype(np.int32))
    return tuple(b.add_all("DequantizeLinear", q, b.constant(both), outputs=1, keep=False, **more))


def stepped(b: Builder, x: Value, dtype: str = "") -> Value:
    """`through` of a byte dtype, its scale remembered for a bias that follows."""
    y = through(b, x, dtype or b.choose(("uint8", "int8")))
    scale = next(t for t in b.weights.values() if t.name == b.nodes[-1].input[1])
    b.steps.append((y.name, float(np.frombuffer(scale.raw_data, np.float32)[0])))
    return y


def ended(b: Builder, y: Value) -> Value:
    """An activation, then bytes again."""
    kind = b.between(0, 3)
    if kind == 0:
        y = b.add("Relu", y)
    elif kind == 1:
        y = b.add("Clip", y, b.constant(np.float32(0)), b.constant(np.float32(b.between(1, 6))))
    elif kind == 2:
        y = b.add(b.choose(("Sigmoid", "HardSwish", "LeakyRelu", "Tanh")), y)
    return stepped(b, y)


def conv(b: Builder) -> None:
    x = stepped(b, b.pick(lambda v: v.rank in (3, 4)))
    channels = x.shape[1]
    attrs = windows(b, x.rank - 2, x.shape[2:])
    group = b.choose([g for g in (1, 1, 2, 4, max(channels, 1)) if channels % g == 0])
    outputs, each = group * b.choose((1, 2, 3, 8, 16, 17)), channels // group
    if outputs > 64:
        raise Error("too many channels")
    fan = each * int(np.prod(attrs["kernel_shape"]))
    w, scales = weights(b, (outputs, each, *attrs["kernel_shape"]), fan, 0)
    y = b.add("Conv", x, w, *bias(b, x, outputs, scales), group=group, **attrs)
    ended(b, y)


def matmul(b: Builder) -> None:
    x = stepped(b, ranked(b, 2, 4))
    depth, width = x.shape[-1], b.choose(LENGTHS)
    w, scales = weights(b, (depth, width), depth, 1)
    y = b.add("MatMul", x, w)
    for side in bias(b, x, width, scales):
        y = b.add("Add", y, side)
    ended(b, y)


def both_quantized(b: Builder) -> None:
    """Two values in bytes, joined: Add, Mul, Concat, MatMul with itself transposed."""
    x = stepped(b, ranked(b, 2, 4))
    kind = b.choose(("Add", "Mul", "Concat", "MatMul"))
    if kind == "MatMul":
        perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
        y = b.add("MatMul", x, b.add("Transpose", x, perm=perm))
        y = b.add("Mul", y, b.constant(np.float32(max(x.shape[-1], 1) ** -0.5)))
    else:
        z = stepped(b, b.pick(lambda v: v.shape == x.shape))
        more = {"axis": b.between(0, x.rank - 1)} if kind == "Concat" else {}
        y = b.add(kind, x, z, **more)
    ended(b, y)


def moved(b: Builder) -> None:
    """Moves and pools between pairs."""
    x = stepped(b, ranked(b, 3, 4))
    kind = b.between(0, 4)
    if kind == 0:
        y = b.add("Transpose", x, perm=[int(i) for i in b.rng.permutation(x.rank)])
    elif kind == 1:
        y = b.add("Reshape", x, b.ints(x.shape[0], -1))
    elif kind == 2:
        y = b.add("GlobalAveragePool", x)
    elif kind == 3:
        y = b.add("MaxPool", x, kernel_shape=[2] * (x.rank - 2), ceil_mode=b.choose((0, 1)))
    else:
        y = b.add("Softmax", x, axis=b.between(1, x.rank - 1))
    ended(b, y)


def dynamic(b: Builder) -> None:
    """DynamicQuantizeLinear and an integer product."""
    x = ranked(b, 2, 3)
    q, scale, zero = b.add_all("DynamicQuantizeLinear", x, outputs=3, keep=False)
    depth, width = x.shape[-1], b.choose(LENGTHS)
    w = b.constant(b.rng.integers(-127, 128, (depth, width)).astype(np.int8))
    y = b.add("MatMulInteger", q, w, zero)
    y = b.add("Cast", y, to="float32")
    y = b.add("Mul", y, scale)
    b.add("Mul", y, b.constant(np.float32(1 / 127 / depth**0.5)))


def _filtered(b: Builder) -> tuple[Value, Value, Value, Array, dict[str, Any]]:
    """An image as uint8, its scale and zero point; int8 filters, and how they go over it."""
    x = b.pick(lambda v: v.rank == 4)
    scale, zero = parameters(b, x.array, "uint8")
    q = b.add_all("QuantizeLinear", x, scale, zero, outputs=1, keep=False)[0]
    attrs = windows(b, 2, x.shape[2:])
    outputs = b.choose((1, 3, 8, 16, 17))
    w = b.rng.integers(-127, 128, (outputs, x.shape[1], *attrs["kernel_shape"])).astype(np.int8)
    return q, scale, zero, w, attrs


def integer_conv(b: Builder) -> None:
    q, _, zero, w, attrs = _filtered(b)
    y = b.add("ConvInteger", q, b.constant(w), zero, **attrs)
    b.add("Mul", b.add("Cast", y, to="float32"), b.constant(np.float32(1e-4)))


def linear_conv(b: Builder) -> None:
    """QLinearConv between bytes."""
    q, scale, zero, w, attrs = _filtered(b)
    outputs = len(w)
    fan = w[0].size
    ws = b.rng.uniform(0.3, 1.2, outputs if b.chance(0.5) else ()) * 2 / 127 / fan**0.5
    given = [q, scale, zero, b.constant(w), b.constant(ws, "float32")]
    given += [b.constant(np.zeros(np.shape(ws)), "int8")]
    out = b.constant(np.float32(0.03)), b.constant(np.uint8(b.between(90, 150)))
    sides = (b.constant(b.rng.integers(-999, 999, outputs), "int32"),) if b.chance(0.6) else ()
    y = b.add_all("QLinearConv", *given, *out, *sides, outputs=1, keep=False, **attrs)[0]
    b.add("DequantizeLinear", y, *out)


def linear_matmul(b: Builder) -> None:
    """QLinearMatMul between bytes."""
    x = ranked(b, 2, 3)
    scale, zero = parameters(b, x.array, "uint8")
    q = b.add_all("QuantizeLinear", x, scale, zero, outputs=1, keep=False)[0]
    depth, width = x.shape[-1], b.choose(LENGTHS)
    w = b.constant(b.rng.integers(-127, 128, (depth, width)).astype(np.int8))
    given = [q, scale, zero, w, b.constant(2 / 127 / depth**0.5, "float32"), b.constant(0, "int8")]
    out = b.constant(np.float32(0.03)), b.constant(np.uint8(b.between(90, 150)))
    y = b.add_all("QLinearMatMul", *given, *out, outputs=1, keep=False)[0]
    b.add("DequantizeLinear", y, *out)
