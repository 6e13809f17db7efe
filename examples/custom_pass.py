"""A user's own pass, which the command line takes as a file.

x - mean, then / deviation, with constants  ->  x * (1 / deviation) + (-mean / deviation)

Networks are often exported with their inputs' normalisation inside. As a product and a sum it can
be folded into the convolution that follows.

    qcompiler inspect model.onnx --plan --pass ./custom_pass.py
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, Skip, op, rule


@rule(op("Div", op("Sub", ANY, CONST), CONST))
def fold_normalisation(div: Node, sub: Node) -> Node | Skip:
    """(x - m) / d -> x * (1 / d) + (-m / d)."""
    x, mean = sub.operands
    deviation = div.operands[1]
    if not div.dtype.startswith("float"):
        return Skip("integers divide otherwise")
    if not np.all(deviation.array):
        return Skip("a deviation is zero")
    factor = make("Mul", x, constant(1 / deviation.array), name=div.name)
    return make("Add", factor, constant(-mean.array / deviation.array), name=div.name)
