"""Lower the remaining ONNX quantization to the compiler's own.

QuantizeLinear(x, scale, zero)    ->  quantize(x, scale, int32(zero)){divide=1}
QuantizeLinear(x, 2^k, zero)      ->  quantize(x, 2^-k, int32(zero))    the product is exact
DequantizeLinear(x, scale, zero)  ->  dequantize(x, scale, int32(zero))

DequantizeLinear of constants that are not bytes, or have a scale per block, becomes a constant.
A scale per index of an axis is reshaped to broadcast along that axis.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make, meaning
from qcompiler.quantization.scales import by
from qcompiler.rewrite import ANY, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import channel_shape, const, input_at, reshape, to_dtype


@rule(op("QuantizeLinear", ANY, ANY, OPTIONAL))
def layout_quantize(node: Node) -> Node | Skip:
    """QuantizeLinear(x, scale, zero) -> quantize(x, scale, zero)."""
    if node.dtype not in ("uint8", "int8", "uint16", "int16"):
        return Skip(f"there is no kernel for {node.dtype}")
    parts = _parts(node)
    if isinstance(parts, Skip):
        return parts
    x, scale, zero = parts
    x = to_dtype(x, "float32")
    divide = 1
    if scale.is_constant:
        factor, divide = by(scale.array)
        scale = const(factor)
    return make("quantize", x, scale, zero, dtype=node.dtype, divide=divide)


@rule(op("DequantizeLinear", ANY, ANY, OPTIONAL))
def layout_dequantize(node: Node) -> Node | Skip:
    """DequantizeLinear(x, scale, zero) -> dequantize(x, scale, zero)."""
    if node.operands[0].dtype not in ("uint8", "int8", "int32", "uint16", "int16"):
        return Skip(f"there is no kernel for {node.operands[0].dtype}")
    parts = _parts(node)
    return parts if isinstance(parts, Skip) else to_dtype(make("dequantize", *parts), node.dtype)


@rule(op("DequantizeLinear"))
def layout_dequantize_blocks(node: Node) -> Node | None:
    """DequantizeLinear(q, s, z) of blocked or sub-byte constants -> a constant."""
    if not all(i.is_constant for i in node.operands):
        return None
    if not node.attrs.get("block_size") and node.operands[0].dtype in ("int8", "uint8", "int32"):
        return None
    arrays = tuple(None if i is None else i.array for i in node.inputs)
    return const(meaning(node, arrays)[0])


def _parts(node: Node) -> tuple[Node, Node, Node] | Skip:
    """The value, its float32 scale and its int32 zero point, broadcasting along the node's axis."""
    x, scale = node.operands[:2]
    if node.attrs.get("block_size"):
        return Skip("a scale per block")
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
