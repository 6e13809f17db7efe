"""Decompose a batch norm, so that it can be folded into the weights before it.

BatchNormalization(x, gamma, beta, mean, var)  ->  x * s + (beta - mean * s)

where s = gamma / sqrt(var + epsilon), one number per channel (axis 1). `fold_scale` and `fold_bias`
then fold the product and the sum into the convolution or matrix product that made x.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, Skip, op, rule
from qcompiler.rewrite.matching import channel_shape, const


@rule(op("BatchNormalization", ANY, CONST, CONST, CONST, CONST))
def fold_batch_norm(batch_norm: Node) -> Node | Skip:
    """x * s + t, with s and t computed at compile time."""
    x, *parameters = batch_norm.operands
    gamma, beta, mean, var = (p.array.astype(np.float64) for p in parameters)
    if np.any(var + batch_norm.float("epsilon") <= 0):
        return Skip("the variance is negative")
    scale = gamma / np.sqrt(var + batch_norm.float("epsilon"))
    shape = channel_shape(max(x.type.rank, 2), 1)
    scaled = make("Mul", x, const(scale.reshape(shape), like=x), name=batch_norm.name)
    return make("Add", scaled, const((beta - mean * scale).reshape(shape), like=x))
