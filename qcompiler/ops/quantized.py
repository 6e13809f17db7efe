"""Quantized operators: real = (integer - zero point) * scale.

ONNX's operators, and the compiler's own (lower case), which kernels must match bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type, numpy_dtype
from qcompiler.ops.contraction import (
    conv_shape,
    conv_sums,
    multiply,
    product_shape,
    second,
    wrapped,
)
from qcompiler.ops.elementwise import cast
from qcompiler.ops.math import NUMPY, Math, V
from qcompiler.ops.registry import Numbers, broadcast, elementwise, operator, optional, typed
from qcompiler.ops.shapes import agree, axis_of, need_shape

_BYTES = ("uint8", "int8")
_BLOCKS = {"axis": 1, "block_size": 0, "output_dtype": None}
_CONV = {
    "auto_pad": "NOTSET",
    "dilations": None,
    "group": 1,
    "kernel_shape": None,
    "pads": None,
    "strides": None,
}


def _wide(x: Numbers) -> Numbers:
    return NUMPY.widen(x)


def _spread(node: Node, values: Numbers, x: Numbers) -> Numbers:
    """Scales or zero points, per tensor, axis or block -> an array that broadcasts to x."""
    if values.size == 1:
        return values.reshape(())
    axis = axis_of(node.int("axis"), x.ndim)
    if values.ndim == 1:
        return values.reshape(-1, *[1] * (x.ndim - axis - 1))
    blocks = np.repeat(values, min(node.int("block_size"), x.shape[axis]), axis)
    return np.take(blocks, range(x.shape[axis]), axis)


def _check_spread(node: Node) -> None:
    x, scale = node.operands[0].type, node.operands[1].type
    zero = optional(node, 2)
    one = zero is not None and {*zero.shape, *scale.shape} <= {1}
    need_shape(None if one else zero, scale.shape, "zero point")
    size = node.int("block_size")
    if size < 0:
        raise Error(f"blocks of size {size}")
    if scale.rank == 0 or (scale.shape == (1,) and not size):
        return
    axis = axis_of(node.int("axis"), x.rank)
    if scale.rank == 1 and not size:
        if not agree(scale.shape[0], x.shape[axis]):
            raise Error(f"scale {scale} is not one number per each of {x.shape[axis]} slices")
        return
    if scale.rank != x.rank or not size:
        raise Error(f"scale {scale} does not fit {x} in blocks of {size}")
    for i, (a, b) in enumerate(zip(scale.shape, x.shape, strict=True)):
        if isinstance(a, int) and isinstance(b, int):
            fits = -(-b // size) <= a <= b if i == axis else a == b
        else:
            fits = agree(a, settled((Size.of(b) + (size - 1)) // size) if i == axis else b)
        if not fits:
            raise Error(f"scale {scale} does not fit {x} in blocks of {size}")


@operator("QuantizeLinear", **_BLOCKS, precision=None, saturate=1)
def quantize_linear(node: Node, x: Numbers, scale: Numbers, zero: Numbers | None = None) -> Numbers:
    """saturate(round(x / scale) + zero); float8: the nearest to x / scale."""
    scale = _spread(node, scale, x)
    precision = numpy_dtype(str(node.attrs["precision"] or scale.dtype.name))
    wide = np.result_type(np.float32, NUMPY.widen(np.zeros(0, precision)))
    ratio = x.astype(wide) / scale.astype(precision).astype(wide)
    shift = np.zeros((), np.int64) if zero is None else _spread(node, zero, x)
    if "int" in node.dtype:
        made = NUMPY.saturate(np.rint(ratio) + shift.astype(wide), node.dtype)
    else:
        made = cast(NUMPY, ratio + shift.astype(wide), to=node.dtype, saturate=node.int("saturate"))
    return NUMPY.finish(made, node.dtype)


@typed(quantize_linear)
def _(node: Node) -> Type:
    _check_spread(node)
    x, zero, asked = node.operands[0].type, optional(node, 2), node.attrs["output_dtype"]
    if zero is not None and asked is not None and asked != zero.dtype:
        raise Error(f"output_dtype {asked} is not the zero point's {zero.dtype}")
    dtype = zero.dtype if zero is not None else str(asked or "uint8")
    if "float" not in node.operands[1].dtype or x.dtype == "bool" or dtype == "bool":
        scale = node.operands[1].dtype
        raise Error(f"{x.dtype} cannot be quantized with a scale of {scale} to {dtype}")
    return Type(dtype, x.shape)


@operator("DequantizeLinear", **_BLOCKS)
def dequantize_linear(
    node: Node, x: Numbers, scale: Numbers, zero: Numbers | None = None
) -> Numbers:
    """(x - zero) * scale."""
    scale = _wide(_spread(node, scale, x))
    exact = "float32" if x.dtype.name.startswith("float") else "int64"
    values = x.astype(exact)
    if zero is not None:
        values = values - _spread(node, zero, x).astype(exact)
    return np.asarray(values.astype(scale.dtype) * scale).astype(numpy_dtype(node.dtype))


@typed(dequantize_linear)
def _(node: Node) -> Type:
    _check_spread(node)
    x, scale, zero = node.operands[0], node.operands[1], optional(node, 2)
    if zero is not None and zero.dtype != x.dtype:
        raise Error(f"zero point of {zero.dtype} for {x.dtype}")
    dtype = str(node.attrs["output_dtype"] or scale.dtype)
    if "float" not in scale.dtype or "float" not in dtype:
        raise Error(f"a scale of {scale.dtype} for {dtype}")
    return Type(dtype, x.shape)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node, x: Numbers) -> tuple[Numbers, ...]:
    """uint8 over the range of x, extended to include zero."""
    low, high = x.min(initial=np.float32(0)), x.max(initial=np.float32(0))
    scale = np.asarray((high - low) / np.float32(255) if high > low else 1, np.float32)
    zero = NUMPY.saturate(np.rint(-low / scale), "uint8")
    return NUMPY.saturate(np.rint(x / scale) + zero.astype(np.float32), "uint8"), scale, zero


@typed(dynamic_quantize_linear)
def _(node: Node) -> tuple[Type, ...]:
    x = node.operands[0].type
    if x.dtype != "float32":
        raise Error(f"{x.dtype} where float32 is needed")
    return Type("uint8", x.shape), Type("float32", ()), Type("uint8", ())


# Integer contractions.


def _shifted(x: Numbers, zero: Numbers | None) -> Numbers:
    """x - zero, exactly."""
    exact = x.astype(np.float64)
    return exact if zero is None else exact - zero.astype(np.float64)


def _rows(values: Numbers | None) -> Numbers | None:
    """One number per row of the left operand -> reshaped to broadcast against it."""
    return values if values is None or values.ndim != 1 else values.reshape(-1, 1)


def _need_bytes(*nodes: Node | None) -> None:
    for node in nodes:
        if node is not None and node.dtype not in _BYTES:
            raise Error(f"{node.type} where uint8 or int8 is needed")


@operator("MatMulInteger")
def mat_mul_integer(
    node: Node,
    a: Numbers,
    b: Numbers,
    a_zero: Numbers | None = None,
    b_zero: Numbers | None = None,
) -> Numbers:
    return wrapped(multiply(_shifted(a, _rows(a_zero)), _shifted(b, b_zero)), "int32")


@typed(mat_mul_integer)
def _(node: Node) -> Type:
    a, b = node.operands[:2]
    _need_bytes(a, b, *node.operands[2:])
    _check_sides(a, b, optional(node, 2), optional(node, 3))
    return Type("int32", product_shape(a.type, b.type))


def _check_sides(a: Node, b: Node, of_a: Node | None, of_b: Node | None) -> None:
    """The left operand has one zero point or one per row, the right one or one per column."""
    for side, values, axis in ((a, of_a, -2), (b, of_b, -1)):
        if values is None or values.shape in ((), (1,)):
            continue
        column = (1,) if axis == -2 and values.type.rank == 1 else ()
        if broadcast(side.shape, (*values.shape, *column)) != side.shape:
            raise Error(f"{values.type} does not broadcast to {side.type}")


@operator("ConvInteger", **_CONV)
def conv_integer(
    node: Node,
    x: Numbers,
    w: Numbers,
    x_zero: Numbers | None = None,
    w_zero: Numbers | None = None,
) -> Numbers:
    """Padding has the value of the zero point."""
    return second(wrapped(conv_sums(node, *_centred(x, w, x_zero, w_zero)), "int32"))


def _centred(
    x: Numbers, w: Numbers, x_zero: Numbers | None, w_zero: Numbers | None
) -> tuple[Numbers, Numbers]:
    if w_zero is not None and w_zero.ndim == 1:
        w_zero = w_zero.reshape(-1, *[1] * (w.ndim - 1))
    return _shifted(x, None if x_zero is None else x_zero.reshape(())), _shifted(w, w_zero)


@typed(conv_integer)
def _(node: Node) -> Type:
    x, w = node.operands[:2]
    _need_bytes(x, w, *node.operands[2:])
    _check_channels(w.shape[0] if w.shape else 0, optional(node, 2), optional(node, 3))
    return Type("int32", conv_shape(node, x.type, w.type))


def _check_channels(channels: Dim, one: Node | None, each: Node | None) -> None:
    """`one` is per tensor, `each` per tensor or per output channel."""
    if one is not None and one.shape not in ((), (1,)):
        raise Error(f"{one.type} where one number is needed")
    if each is not None and each.shape not in ((), (1,), (channels,)):
        raise Error(f"{each.type} where one number or {channels} are needed")


def _requantized(sums: Numbers, multiplier: Numbers, zero: Numbers, dtype: str) -> Numbers:
    """int32 sums -> saturate(round(sums * multiplier) + zero)."""
    scaled = np.rint(sums.astype(np.float32) * multiplier.astype(np.float32))
    return NUMPY.finish(NUMPY.saturate(scaled + zero.astype(np.float32), dtype), dtype)


@operator("QLinearConv", **_CONV)
def q_linear_conv(
    node: Node,
    x: Numbers,
    x_scale: Numbers,
    x_zero: Numbers,
    w: Numbers,
    w_scale: Numbers,
    w_zero: Numbers,
    y_scale: Numbers,
    y_zero: Numbers,
    bias: Numbers | None = None,
) -> Numbers:
    sums = conv_sums(node, *_centred(x, w, x_zero, w_zero))
    sums = wrapped(sums if bias is None else sums + bias, "int32")
    multiplier = x_scale.reshape(()) * w_scale / y_scale.reshape(())
    return second(_requantized(sums, multiplier, y_zero.reshape(()), node.dtype))


@typed(q_linear_conv)
def _(node: Node) -> Type:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.operands[:8]
    _need_bytes(x, x_zero, w, w_zero, y_zero)
    channels = w.shape[0] if w.shape else 0
    for one, each in ((x_scale, w_scale), (x_zero, w_zero), (y_scale, None), (y_zero, None)):
        _check_channels(channels, one, each)
    return Type(y_zero.dtype, conv_shape(node, x.type, w.type, optional(node, 8)))


@operator("QLinearMatMul")
def q_linear_mat_mul(
    node: Node,
    a: Numbers,
    a_scale: Numbers,
    a_zero: Numbers,
    b: Numbers,
    b_scale: Numbers,
    b_zero: Numbers,
    y_scale: Numbers,
    y_zero: Numbers,
) -> Numbers:
    left, right = _rows(a_zero), _rows(a_scale)
    assert right is not None
    sums = wrapped(multiply(_shifted(a, left), _shifted(b, b_zero)), "int32")
    multiplier = _wide(right) * _wide(b_scale) / _wide(y_scale)
    return _requantized(sums, multiplier, y_zero, node.dtype)


@typed(q_linear_mat_mul)
def _(node: Node) -> Type:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.operands
    _check_sides(a, b, a_scale, b_scale)
    _check_sides(a, b, a_zero, b_zero)
    shape = product_shape(a.type, b.type)
    for values in (y_scale, y_zero):
        if broadcast(shape, values.shape) != shape and values.shape != (1,):
            raise Error(f"{values.type} does not broadcast to the product")
    return Type(y_zero.dtype, shape)


# The compiler's own.


def _quantize_type(node: Node) -> Type:
    x, factor, zero = (i.type for i in node.operands)
    if (x.dtype, factor.dtype, zero.dtype) != ("float32", "float32", "int32"):
        raise Error(f"quantize of {x}, {factor}, {zero}")
    if "int" not in node.str("dtype") or broadcast(x.shape, factor.shape, zero.shape) != x.shape:
        raise Error(f"{x} cannot be quantized with {factor} to {node.str('dtype')}")
    return Type(node.str("dtype"), x.shape)


@elementwise("quantize", types=_quantize_type)
def quantize(m: Math, x: V, factor: V, zero: V, *, dtype: str = "uint8", divide: int = 0) -> V:
    """x * factor, or x / factor if `divide`, is rounded to float32, then half to even; adding the
    zero point saturates. The two differ on ties: 2.5 * 3 / 3 is one, 2.5 * 3 * float32(1 / 3) need
    not be.
    """
    scaled = x / factor if divide else x * factor
    return m.saturate(m.round(scaled) + m.cast(zero, "float32"), dtype)


def _dequantize_type(node: Node) -> Type:
    x, scale, zero = (i.type for i in node.operands)
    if "int" not in x.dtype or (scale.dtype, zero.dtype) != ("float32", "int32"):
        raise Error(f"dequantize of {x}, {scale}, {zero}")
    if broadcast(x.shape, scale.shape, zero.shape) != x.shape:
        raise Error(f"{scale} does not broadcast to {x}")
    return Type("float32", x.shape)


@elementwise("dequantize", types=_dequantize_type)
def dequantize(m: Math, x: V, scale: V, zero: V) -> V:
    return m.cast(m.cast(x, "int32") - zero, "float32") * scale


TABLES: Mapping[str, tuple[int, ...]] = {"lookup": (1,)}
"""Elementwise operator -> the operands it indexes instead of reading them elementwise."""


def _lookup_type(node: Node) -> Type:
    x, table = (i.type for i in node.operands)
    if x.dtype not in _BYTES or table.shape != (256,):
        raise Error(f"look-up of {x} in {table}")
    return Type(table.dtype, x.shape)


@elementwise("lookup", types=_lookup_type)
def lookup(m: Math, x: V, table: V) -> V:
    """table[x]; for int8 table[x + 128]."""
    return m.lookup(table, x)


def _other_sign(node: Node) -> Type:
    x = node.operands[0].type
    if x.dtype != ("int8" if node.op == "as_unsigned" else "uint8"):
        raise Error(f"{node.op} of {x}")
    return Type("uint8" if x.dtype == "int8" else "int8", x.shape)


@elementwise("as_unsigned", types=_other_sign)
def as_unsigned(m: Math, x: V) -> V:
    """int8 -> uint8: x + 128."""
    return m.cast(x ^ -128, "uint8")


@elementwise("as_signed", types=_other_sign)
def as_signed(m: Math, x: V) -> V:
    """uint8 -> int8: x - 128."""
    return m.cast(x ^ 128, "int8")


# Low-precision weights, decoded inside the kernels.


@operator("matmul_narrow", bits=4, group=32)
def matmul_narrow(node: Node, x: Numbers, codes: Numbers, scale: Numbers, zero: Numbers) -> Numbers:
    """x[...,M,K] times (codes[K,N] - zero) * scale, in float32.

    codes: uint8 below 2^bits; scale and zero [K / group, N] apply to `group` rows of codes.
    """
    spread = np.repeat(np.arange(len(scale)), node.int("group"))[: len(codes)]
    weights = (codes.astype(np.float32) - zero[spread]) * scale[spread]
    return multiply(x, weights)


@typed(matmul_narrow)
def _(node: Node) -> Type:
    x, codes, scale, zero = (i.type for i in node.operands)
    bits, group = node.int("bits"), node.int("group")
    if (x.dtype, codes.dtype, scale.dtype, zero.dtype) != (
        "float32",
        "uint8",
        "float32",
        "float32",
    ):
        raise Error(f"matmul_narrow of {x}, {codes}, {scale}, {zero}")
    if bits not in (2, 4, 8) or group < 1 or codes.rank != 2 or x.rank < 2:
        raise Error(f"matmul_narrow of {x} by {codes}: {bits} bits in groups of {group}")
    depth, width = codes.dims
    if {scale.shape, zero.shape} != {(-(-depth // group), width)}:
        raise Error(f"{scale} and {zero} do not have one row per {group} rows of {codes}")
    return Type("float32", product_shape(x, codes))
