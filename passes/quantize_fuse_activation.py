"""Saturation does what a Relu or Clip before it did.

quantize(Relu(x), k, z)            ->  quantize(x, k, z)      where 0 is the least integer, z
quantize(Clip(x, low, high), k, z) ->  quantize(x, k, z)      where low is the least, high the
largest

Exact: quantize never falls as x rises, so what was clipped is what saturates.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.matching import input_at, rebuilt
from qcompiler.ops import known_value
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule


@rule(op("quantize", op("Relu", ANY), CONST, CONST))
def quantize_fuse_relu(quantize: Node, relu: Node) -> Node | Skip:
    """quantize(Relu(x), k, z) -> quantize(x, k, z)."""
    if int(quantize.operands[2].array) != np.iinfo(quantize.dtype).min:
        return Skip("0 is not the least integer")
    return quantize.with_inputs((relu.operands[0], *quantize.inputs[1:]))


@rule(op("quantize", op("Clip", ANY, OPTIONAL, OPTIONAL), CONST, CONST))
def quantize_fuse_clip(quantize: Node, clip: Node) -> Node | Skip:
    """quantize(Clip(x, low, high), k, z) -> quantize(x, k, z)."""
    limits = np.iinfo(quantize.dtype)
    for index, limit in ((1, limits.min), (2, limits.max)):
        bound = input_at(clip, index)
        if bound is None:
            continue
        if not bound.is_constant:
            return Skip("a bound is not constant")
        factor = quantize.operands[1]
        spread = constant(np.broadcast_to(bound.array, factor.type.dims))
        made = rebuilt(quantize, (spread, *quantize.inputs[1:]))
        value = known_value(made)
        if value is None or np.any(value != limit):
            return Skip("a bound lies inside the range of the integers")
    return quantize.with_inputs((clip.operands[0], *quantize.inputs[1:]))
