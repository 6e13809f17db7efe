"""Lower the remaining ONNX quantization to the compiler's own.

QuantizeLinear(x, scale, zero)    ->  quantize(x, scale, int32(zero)){divide=1}
QuantizeLinear(x, 2^k, zero)      ->  quantize(x, 2^-k, int32(zero))    the product is exact
DequantizeLinear(x, scale, zero)  ->  dequantize(x, scale, int32(zero))

DequantizeLinear of constants that are not bytes, or have a scale per block, becomes a constant.
A scale per index of an axis is reshaped to broadcast along that axis. Of other types than bytes and
16-bit integers, and in blocks, both become the operators that ONNX defines them by.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from qcompiler.ir import Node, numpy_dtype
from qcompiler.ops import make, meaning
from qcompiler.quantization.scales import by
from qcompiler.rewrite import ANY, OPTIONAL, op, rule
from qcompiler.rewrite.matching import channel_shape, const, input_at, reshape, to_dtype


@rule(op("QuantizeLinear", ANY, ANY, OPTIONAL))
def layout_quantize(node: Node) -> Node:
    """QuantizeLinear(x, scale, zero) -> quantize(x, scale, zero)."""
    if node.dtype not in ("uint8", "int8", "uint16", "int16") or _unusual(node):
        return _quantized(node)
    x, scale, zero = _parts(node)
    x = to_dtype(x, "float32")
    divide = 1
    if scale.is_constant:
        factor, divide = by(scale.array)
        scale = const(factor)
    return make("quantize", x, scale, zero, dtype=node.dtype, divide=divide)


@rule(op("DequantizeLinear", ANY, ANY, OPTIONAL))
def layout_dequantize(node: Node) -> Node | None:
    """DequantizeLinear(x, scale, zero) -> dequantize(x, scale, zero)."""
    usual = ("uint8", "int8", "int32", "uint16", "int16")
    if node.operands[0].dtype not in usual or _unusual(node):
        return None if all(i.is_constant for i in node.operands) else _dequantized(node)
    return to_dtype(make("dequantize", *_parts(node)), node.dtype)


@rule(op("DequantizeLinear"))
def layout_dequantize_blocks(node: Node) -> Node | None:
    """DequantizeLinear(q, s, z) of blocked or sub-byte constants -> a constant."""
    if not all(i.is_constant for i in node.operands):
        return None
    if not node.attrs.get("block_size") and node.operands[0].dtype in ("int8", "uint8", "int32"):
        return None
    arrays = tuple(None if i is None else i.array for i in node.inputs)
    return const(meaning(node, arrays)[0])


def _unusual(node: Node) -> bool:
    """A scale per block, or one that float32 does not hold."""
    wide = any(i.dtype == "float64" for i in node.operands)
    return bool(node.attrs.get("block_size")) or wide


def _quantized(node: Node) -> Node:
    """QuantizeLinear as ONNX says it: divide, round, add, clip, cast. NaN becomes the lowest
    integer, as it does in `quantize`.
    """
    x, scale = node.operands[:2]
    precision = str(node.attrs["precision"] or scale.dtype)
    dtype = "float64" if precision == "float64" else "float32"
    divisor = to_dtype(to_dtype(_spread(node, scale), precision), dtype)
    ratio = make("Div", to_dtype(x, dtype), divisor)
    zero = input_at(node, 2)
    shift = None if zero is None else to_dtype(_spread(node, zero), dtype)
    if "float" in node.dtype:
        moved = ratio if shift is None else make("Add", ratio, shift)
        return make("Cast", moved, to=node.dtype, saturate=node.int("saturate"))
    whole = make("Round", ratio)
    moved = whole if shift is None else make("Add", whole, shift)
    info = ml_dtypes.iinfo(numpy_dtype(node.dtype))  # type: ignore[no-untyped-call]
    low, high = (const(np.array(end, np.dtype(dtype))) for end in (info.min, info.max))
    clipped = make("Where", make("IsNaN", moved), low, make("Clip", moved, low, high))
    return to_dtype(clipped, node.dtype)


def _dequantized(node: Node) -> Node:
    """DequantizeLinear as ONNX says it: subtract, multiply, cast."""
    x, scale = node.operands[:2]
    dtype = "float64" if scale.dtype == "float64" else "float32"
    exact = "float32" if x.dtype.startswith("float") else "int64"
    values, zero = to_dtype(x, exact), input_at(node, 2)
    if zero is not None:
        values = make("Sub", values, to_dtype(_spread(node, zero), exact))
    made = make("Mul", to_dtype(values, dtype), to_dtype(_spread(node, scale), dtype))
    return to_dtype(made, node.dtype)


def _spread(node: Node, numbers: Node) -> Node:
    """Scales or zero points, per tensor, axis or block -> a value that broadcasts to x."""
    x = node.operands[0].type
    if numbers.type.size == 1:
        return reshape(numbers, ())
    axis = node.int("axis") % x.rank
    if numbers.type.rank == 1:
        return reshape(numbers, (-1, *[1] * (x.rank - axis - 1)))
    size = x.dims[axis]
    blocks = np.arange(size) // min(node.int("block_size"), size)
    return make("Gather", numbers, const(blocks), axis=axis)


def _parts(node: Node) -> tuple[Node, Node, Node]:
    """The value, its float32 scale and its int32 zero point, broadcasting along the node's axis."""
    x, scale = node.operands[:2]
    zero = input_at(node, 2)
    zero = const(np.zeros(scale.type.dims, np.int32)) if zero is None else to_dtype(zero, "int32")
    scale = to_dtype(scale, "float32")
    if zero.is_constant and zero.type.size > 1 and np.all(zero.array == zero.array.reshape(-1)[0]):
        zero = const(zero.array.reshape(-1)[0])
    axis = node.int("axis") % x.type.rank if x.type.rank else 0
    return x, _along(scale, x.type.rank, axis), _along(zero, x.type.rank, axis)


def _along(numbers: Node, rank: int, axis: int) -> Node:
    """[] or [C] -> [], or [C,1,..] to broadcast along an axis."""
    shape = () if numbers.type.size == 1 else channel_shape(rank, axis)
    if numbers.is_constant:
        return const(numbers.array.reshape(shape))
    return reshape(numbers, tuple(numbers.type.size if d < 0 else d for d in shape))
