"""Factors that meet become one, and what only undoes the step before is gone.

quantize(Mul(Cast(s), m), k, z)            ->  quantize(Cast(s), m * k, z)     s: int32 sums
quantize(dequantize(x, 1 / k, z), k, z)    ->  x
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.rewrite import ANY, CONST, Skip, op, rule
from qcompiler.scales import numbers, scalar


@rule(op("quantize", op("Mul", op("Cast", ANY), CONST), CONST, CONST))
def integer_scale(quantize: Node, mul: Node, cast: Node) -> Node | Skip | None:
    """quantize(Mul(Cast(s), m), k, z) -> quantize(Cast(s), m * k, z)."""
    if cast.operands[0].dtype != "int32" or cast.type != mul.type:
        return None
    first, second = numbers(mul.operands[1]), numbers(quantize.operands[1])
    with np.errstate(over="ignore", under="ignore"):
        factor = (first.astype(np.float64) * second).astype(np.float32)
    if not np.all((factor >= np.finfo(np.float32).tiny) & np.isfinite(factor)):
        return Skip("the product of the scales leaves float32")
    return quantize.with_inputs((cast, constant(factor), quantize.inputs[2]))


@rule(op("quantize", op("dequantize", ANY, CONST, CONST, shared=True), CONST, CONST))
def integer_undone(quantize: Node, dequantize: Node) -> Node | None:
    """quantize(dequantize(x, 1 / k, z), k, z) -> x."""
    x, scale, zero = dequantize.operands
    factor, other = quantize.operands[1:]
    if x.dtype != quantize.dtype or max(i.array.size for i in (scale, zero, factor)) > 1:
        return None
    same = scalar(factor) == np.float32(1) / scalar(scale) and scalar(zero) == scalar(other)
    return x if same else None
