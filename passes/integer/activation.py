"""A Relu or Clip before quantize is dropped where saturation has the same effect.

quantize(Relu(x), k, z)            ->  quantize(x, k, z)      if 0 is the lowest integer, z
quantize(Clip(x, low, high), k, z) ->  quantize(x, k, z)      if low, high are the lowest, highest

Exact: quantize is monotonic, so clipped values are those that saturate.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import known_value
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import input_at, rebuilt


@rule(op("quantize", op("Relu", ANY), CONST, CONST))
def integer_relu(quantize: Node, relu: Node) -> Node | Skip:
    """quantize(Relu(x), k, z) -> quantize(x, k, z)."""
    if int(quantize.operands[2].array) != np.iinfo(quantize.dtype).min:
        return Skip("0 is not the lowest integer")
    return quantize.with_inputs((relu.operands[0], *quantize.inputs[1:]))


@rule(op("quantize", op("Clip", ANY, OPTIONAL, OPTIONAL), CONST, CONST))
def integer_clip(quantize: Node, clip: Node) -> Node | Skip:
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
            return Skip("a bound is inside the range of the integers")
    return quantize.with_inputs((clip.operands[0], *quantize.inputs[1:]))
