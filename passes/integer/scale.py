"""Merge adjacent factors, and remove steps that undo the one before.

quantize(Mul(Cast(s), m), k, z)            ->  quantize(Cast(s), m * k, z)     s: int32 sums
quantize(dequantize(x, s, z), s, z)        ->  x

Integers are requantized by a multiply, as in onnxruntime, even if `quantize` divides.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.quantization.scales import scalar, with_factor
from qcompiler.rewrite import ANY, CONST, Skip, op, rule


@rule(op("quantize", op("Mul", op("Cast", ANY), CONST), CONST, CONST))
def integer_scale(quantize: Node, mul: Node, cast: Node) -> Node | Skip | None:
    """quantize(Mul(Cast(s), m), k, z) -> quantize(Cast(s), m * k, z)."""
    if cast.operands[0].dtype != "int32" or cast.type != mul.type:
        return None
    return with_factor(quantize, cast, mul.operands[1])


@rule(op("quantize", op("dequantize", ANY, CONST, CONST, shared=True), CONST, CONST))
def integer_undone(quantize: Node, dequantize: Node) -> Node | None:
    """quantize(dequantize(x, s, z), s, z) -> x."""
    x, scale, zero = dequantize.operands
    factor, other = quantize.operands[1:]
    if x.dtype != quantize.dtype or max(i.array.size for i in (scale, zero, factor)) > 1:
        return None
    step = scalar(scale) if quantize.attrs["divide"] else np.float32(1) / scalar(scale)
    return x if step == scalar(factor) and scalar(zero) == scalar(other) else None
