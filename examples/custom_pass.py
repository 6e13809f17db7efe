"""A user's own pass, which the command line takes as a file.

(x + c) / d  ->  x * (1 / d) + c / d      c, d: constants

Networks are often exported with their inputs' normalisation inside. As a product and a sum it can
be folded into the convolution that follows; fold_difference has made a sum of the difference.

    qcompiler inspect model.onnx --plan --pass ./custom_pass.py
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, Skip, op, rule


@rule(op("Div", op("Add", ANY, CONST), CONST))
def fold_normalisation(div: Node, add: Node) -> Node | Skip:
    """(x + c) / d -> x * (1 / d) + c / d."""
    x = next(i for i in add.operands if not i.is_constant)
    offset = next(i for i in add.operands if i.is_constant)
    deviation = div.operands[1]
    if not div.dtype.startswith("float"):
        return Skip("integers divide otherwise")
    if not np.all(deviation.array):
        return Skip("a deviation is zero")
    factor = make("Mul", x, constant(1 / deviation.array), name=div.name)
    return make("Add", factor, constant(offset.array / deviation.array), name=div.name)
