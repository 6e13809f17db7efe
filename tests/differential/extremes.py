"""Steps that other tools' quantized models may hold, with parameters at the ends of their ranges:
zero points of weights, scales that are tiny, huge or zero, saturated bytes, blocks, groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array

from .builder import LENGTHS, Builder, Value
from .moves import ranked
from .products import windows
from .quantized import ended, parameters

BYTES = ("uint8", "int8")
SCALES = (1e-30, 1e-12, 1e-4, 0.02, 0.02, 0.02, 0.5, 1.0, 7.0, 1e6, 1e20)


def zero_point(b: Builder, dtype: str, *shape: int) -> Value:
    """Of any kind: 0, an end of the range, or anything."""
    info = np.iinfo(dtype)
    kind = b.between(0, 4)
    ends = (0, info.min, info.max, info.max // 2 + info.min // 2 + 1)
    values = b.rng.integers(info.min, info.max + 1, shape) if kind == 4 else ends[kind]
    return b.constant(np.broadcast_to(values, shape).astype(dtype))


def byte_weights(b: Builder, shape: tuple[int, ...], dtype: str) -> Value:
    """The whole range, or its ends alone, or zeros."""
    info = np.iinfo(dtype)
    kind = b.between(0, 7)
    q = b.rng.integers(info.min, info.max + 1, shape)
    if kind == 0:
        q = np.where(q > 0, info.max, info.min)
    elif kind == 1:
        q = np.zeros_like(q)
    elif kind == 2:
        q = np.full_like(q, info.min)
    return b.constant(q.astype(dtype))


def scales(b: Builder, fan: int, *shape: int) -> Array:
    """Usual ones, some of which are zero, tiny or huge."""
    made = b.rng.uniform(0.3, 1.2, shape) * 2 / 127 / max(fan, 1) ** 0.5
    if shape and b.chance(0.5):
        odd = b.rng.random(shape) < 0.3
        made = np.where(odd, b.rng.choice((0.0, 1e-30, 1e-9, 1.0), shape), made)
    return np.asarray(made, np.float32)


def in_bytes(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """x in bytes, its scale and zero point, in half of the cases at an end."""
    dtype = b.choose(BYTES)
    scale, zero = parameters(b, x.array, dtype)
    if b.chance(0.5):
        zero = zero_point(b, dtype)
    if b.chance(0.1):
        scale = b.constant(np.float32(b.choose(SCALES)))
    q = b.add_all("QuantizeLinear", x, scale, zero, outputs=1, keep=False)[0]
    return q, scale, zero


def coarse(b: Builder) -> None:
    """A pair of any scale."""
    x = b.pick()
    dtype = b.choose((*BYTES, "int16", "uint16"))
    scale, zero = b.constant(np.float32(b.choose(SCALES))), zero_point(b, dtype)
    q = b.add_all("QuantizeLinear", x, scale, zero, outputs=1, keep=False)[0]
    b.add("DequantizeLinear", q, scale, zero)


def per_axis(b: Builder) -> None:
    x = ranked(b, 1, 5)
    axis = b.between(-x.rank, x.rank - 1)
    n, dtype = x.shape[axis], b.choose(BYTES)
    scale = b.constant(b.rng.choice(SCALES, n), "float32")
    zero = zero_point(b, dtype, n)
    q = b.add_all("QuantizeLinear", x, scale, zero, outputs=1, keep=False, axis=axis)[0]
    b.add("DequantizeLinear", q, scale, zero, axis=axis)


def conv(b: Builder) -> None:
    """QDQ, QLinearConv or ConvInteger, in one to three dimensions, with groups and zero points."""
    x = b.pick(lambda v: v.rank in (3, 4, 5) and v.shape[1] > 0)
    channels = x.shape[1]
    attrs = windows(b, x.rank - 2, x.shape[2:])
    group = b.choose([g for g in (1, 1, 2, 4, channels) if channels % g == 0])
    outputs, each = group * b.choose((1, 2, 3, 8, 16, 17)), channels // group
    if outputs > 64:
        raise Error("too many channels")
    fan = each * int(np.prod(attrs["kernel_shape"]))
    q, scale, zero = in_bytes(b, x)
    dtype = b.choose(BYTES)
    w = byte_weights(b, (outputs, each, *attrs["kernel_shape"]), dtype)
    _product(b, "Conv", (q, scale, zero), w, fan, outputs, 0, {**attrs, "group": group})


def matmul(b: Builder) -> None:
    """QDQ, QLinearMatMul or MatMulInteger."""
    x = ranked(b, 2, 4)
    depth, width = x.shape[-1], b.choose(LENGTHS)
    w = byte_weights(b, (depth, width), b.choose(BYTES))
    _product(b, "MatMul", in_bytes(b, x), w, depth, width, 1, {})


def _product(
    b: Builder,
    op: str,
    x: tuple[Value, Value, Value],
    w: Value,
    fan: int,
    outputs: int,
    axis: int,
    attrs: dict[str, Any],
) -> None:
    q, scale, zero = x
    many = (outputs,) if b.chance(0.6) else ()
    ws, wz = b.constant(scales(b, fan, *many)), zero_point(b, w.dtype, *many)
    kind = b.between(0, 2)
    if kind == 0:
        wide = b.add_all("DequantizeLinear", q, scale, zero, outputs=1, keep=False)[0]
        more = {"axis": axis} if many else {}
        filters = b.add_all("DequantizeLinear", w, ws, wz, outputs=1, keep=False, **more)[0]
        ended(b, b.add(op, wide, filters, **attrs))
    elif kind == 1:
        dtype = b.choose((q.dtype, q.dtype, *BYTES))
        out = b.constant(np.float32(b.choose((0.03, 0.5, 1e-3)))), zero_point(b, dtype)
        sides = ()
        if op == "Conv" and b.chance(0.6):
            sides = (b.constant(b.rng.integers(-9999, 9999, outputs), "int32"),)
        given = (q, scale, zero, w, ws, wz, *out, *sides)
        y = b.add_all(f"QLinear{op}", *given, outputs=1, keep=False, **attrs)[0]
        b.add("DequantizeLinear", y, *out)
    else:
        y = b.add(f"{op}Integer", q, w, zero, wz, **attrs)
        b.add("Mul", b.add("Cast", y, to="float32"), b.constant(np.float32(1e-4)))


def transposed_conv(b: Builder) -> None:
    """In one to three dimensions, with dilations, output_padding and output_shape."""
    x = ranked(b, 3, 5)
    channels, spatial = x.shape[1], x.rank - 2
    attrs = windows(b, spatial, tuple(99 for _ in range(spatial)))
    attrs.pop("pads")
    group = b.choose([g for g in (1, 1, 2, max(channels, 1)) if channels % g == 0])
    each, strides = b.choose((1, 2, 3, 8)), attrs["strides"]
    steps = zip(attrs["kernel_shape"], attrs["dilations"], strides, strict=True)
    kind = b.between(0, 3)
    if kind == 0:
        attrs["auto_pad"] = b.choose(("SAME_UPPER", "SAME_LOWER", "VALID"))
    elif kind == 1:
        extents = [(k - 1) * d + 1 for k, d, _ in steps]
        whole = [(n - 1) * s + e for n, s, e in zip(x.shape[2:], strides, extents, strict=True)]
        attrs["output_shape"] = [max(1, n - b.between(0, 3)) for n in whole]
    else:
        attrs["output_padding"] = [b.between(0, max(s, d) - 1) for _, d, s in steps]
        attrs["pads"] = [b.choose((0, 0, 1, 2)) for _ in range(2 * spatial)]
    fan = channels // group * int(np.prod(attrs["kernel_shape"]))
    w = b.constant(b.normal(channels, each, *attrs["kernel_shape"], scale=max(fan, 1) ** -0.5))
    bias = (b.constant(b.numbers(each * group)),) if b.chance(0.5) else ()
    b.add("ConvTranspose", x, w, *bias, group=group, **attrs)


def blocked(b: Builder) -> None:
    """Weights in 4 or 8 bits, a scale for each block along the inputs."""
    x = ranked(b, 2, 3)
    depth, width = x.shape[-1], b.choose(LENGTHS)
    size = b.choose([n for n in (1, 2, 4, 8, 16, 32) if depth % n == 0])
    dtype = b.choose(("int8", "uint8", "int4", "uint4"))
    low, high = (-8, 7) if dtype == "int4" else (0, 15) if dtype == "uint4" else (0, 127)
    q = b.constant(b.rng.integers(low, high + 1, (depth, width)), dtype)
    s = b.constant(scales(b, depth, depth // size, width))
    z = b.constant(b.rng.integers(max(low, 0), high + 1, (depth // size, width)), dtype)
    w = b.add_all("DequantizeLinear", q, s, z, outputs=1, keep=False, axis=0, block_size=size)[0]
    b.add("MatMul", x, w)
