"""Add a bias to the integer sums, in their own units.

Cast(s) * m + b  ->  Cast(s + round(b / m)) * m        s: int32; m, b: scalar or per channel

An int32 step is far finer than the bytes that are summed, so rounding b costs no accuracy.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.quantization.scales import bias_steps
from qcompiler.rewrite import ANY, CONST, Skip, op, rule, taken


@rule(op("Add", op("Mul", op("Cast", ANY), CONST), taken(CONST), commutes=True))
def integer_bias(add: Node, mul: Node, cast: Node, bias: Node) -> Node | Skip | None:
    """Cast(s) * m + b -> Cast(s + round(b / m)) * m."""
    sums, factor = cast.operands[0], mul.operands[1]
    if sums.dtype != "int32" or add.type != mul.type or mul.type.rank == 0:
        return None
    shape = np.broadcast_shapes(bias.array.shape, factor.array.shape)
    if sum(n > 1 for n in shape) > 1 or len(shape) > add.type.rank:
        return Skip("the bias is not per channel")
    steps = bias_steps(np.broadcast_to(bias.array, shape), factor.array)
    if steps is None:
        return Skip("the bias does not fit into half of an int32")
    total = make("Add", sums, constant(steps, bias.name), name=add.name)
    return make("Mul", make("Cast", total, to="float32"), factor)
