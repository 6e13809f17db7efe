"""Fold a constant added to a convolution into its bias.

Conv(x, w, b) + c  ->  Conv(x, w, b + c)      c: scalar, or per output channel
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule, taken
from qcompiler.rewrite.matching import const, exact, input_at, per_channel, rebuilt


@rule(op("Add", op("Conv|ConvTranspose", ANY, ANY, OPTIONAL), taken(CONST), commutes=True))
def fold_bias(add: Node, conv: Node, c: Node) -> Node | Skip:
    """Conv(x, w, b) + c -> Conv(x, w, b + c)."""
    b = input_at(conv, 2)
    flat = per_channel(exact(c), conv.type.rank, 1)
    if flat is None or add.type != conv.type or not isinstance(conv.shape[1], int):
        return Skip("the addend is not per channel")
    if b is not None and not b.is_constant:
        return Skip("the bias is not constant")
    bias = flat + (0 if b is None else exact(b))
    bias = np.broadcast_to(bias, (conv.shape[1],))
    return rebuilt(conv, (*conv.operands[:2], const(bias, like=conv)))
