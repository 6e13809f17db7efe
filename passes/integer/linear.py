"""ONNX's quantization -> the compiler's own.

QuantizeLinear(x, s, z)    ->  quantize(x, s, z){divide=1}
QuantizeLinear(x, 2^k, z)  ->  quantize(x, 2^-k, z)         the product is exact
DequantizeLinear(x, s, z)  ->  dequantize(x, s, z)

Scales and zero points along an axis become constants that broadcast: [C,1,1].
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.quantization.scales import BYTES, Numbers, along, by, numbers
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import input_at


@rule(op("QuantizeLinear", ANY, CONST, OPTIONAL))
def integer_quantize(node: Node) -> Node | Skip:
    """QuantizeLinear(x, s, z) -> quantize(x, s, z)."""
    found = _scale_and_zero(node, node.operands[0].type.rank)
    if isinstance(found, Skip):
        return found
    scale, zero = found
    if node.dtype not in BYTES or node.operands[0].dtype != "float32":
        return Skip(f"{node.operands[0].dtype} to {node.dtype}")
    if zero.size > 1 and np.all(zero == zero.flat[0]):
        zero = zero.reshape(-1)[0]
    if zero.size > 1:
        return Skip("a zero point per channel")
    factor, divide = by(scale)
    x, point = node.operands[0], constant(zero.reshape(()))
    return make("quantize", x, constant(factor), point, dtype=node.dtype, divide=divide)


@rule(op("DequantizeLinear", ANY, CONST, OPTIONAL))
def integer_dequantize(node: Node) -> Node | Skip:
    """DequantizeLinear(x, s, z) -> dequantize(x, s, z)."""
    found = _scale_and_zero(node, node.operands[0].type.rank)
    if isinstance(found, Skip):
        return found
    scale, zero = found
    if node.dtype != "float32" or node.operands[0].dtype not in (*BYTES, "int32"):
        return Skip(f"{node.operands[0].dtype} to {node.dtype}")
    return make("dequantize", node.operands[0], constant(scale), constant(zero))


def _scale_and_zero(node: Node, rank: int) -> tuple[Numbers, Numbers] | Skip:
    """A constant scale (float32) and zero point (int32), in shapes that broadcast with x."""
    scale, zero = node.operands[1], input_at(node, 2)
    if zero is not None and not zero.is_constant:
        return Skip("the zero point is not constant")
    if node.attrs.get("block_size"):
        return Skip("a scale per block")
    if scale.dtype != "float32" or not np.all(numbers(scale) > 0):
        return Skip("the scale is not a positive float32")
    axis = node.int("axis") if scale.array.size > 1 else None
    integers = np.zeros((), np.int32) if zero is None else zero.array.astype(np.int32)
    if integers.size > 1 and not integers.any():
        integers = np.zeros((), np.int32)
    zeros = along(integers, rank, axis if integers.size > 1 else None)
    return along(scale.array, rank, axis), zeros
