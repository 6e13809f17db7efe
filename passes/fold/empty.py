"""Attention to no keys is zero: a sum of no values.

Attention(q, k, v), k of no keys  ->  Expand(0, shape)

The same spelled out, MatMul(Softmax(MatMul(q, k')), v), becomes an Attention when it is fused.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, numpy_dtype
from qcompiler.ops import make
from qcompiler.rewrite import ANY, OPTIONAL, op, rule
from qcompiler.rewrite.matching import const


@rule(op("Attention", ANY, ANY, ANY, OPTIONAL))
def fold_attention_to_nothing(attention: Node) -> Node | None:
    """Attention(q, no keys, no values) -> zeros."""
    keys, values = (n.type for n in attention.operands[1:3])
    if len(attention.types) > 1 or not (keys.static and values.static and attention.type.static):
        return None
    if keys.dims[-2] > 0:
        return None
    zero = const(np.zeros((), numpy_dtype(attention.dtype)))
    return make("Expand", zero, const(np.array(attention.type.dims, np.int64)), name=attention.name)
