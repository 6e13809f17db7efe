"""Multi-output operators of which a reader uses one output.

item(MaxPool(x), 0)             ->  MaxPool(x)                        without the indices
item(LayerNormalization(x), 0)  ->  LayerNormalization(x)
item(LayerNormalization(x), 1)  ->  ReduceMean(x)
item(LayerNormalization(x), 2)  ->  1 / Sqrt(ReduceMean((x - mean)^2) + epsilon)
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import op, rule
from qcompiler.rewrite.matching import const, int64s, rebuilt, to_dtype


@rule(op("item", op("MaxPool", shared=True)))
def layout_largest(item: Node, pool: Node) -> Node | None:
    """item(MaxPool(x), 0) -> MaxPool(x)."""
    return None if item.int("index") else rebuilt(pool, outputs=1)


@rule(op("item", op("LayerNormalization", shared=True)))
def layout_statistics(item: Node, norm: Node) -> Node:
    """item(LayerNormalization(x), 1 or 2) -> the mean, or the reciprocal of the deviation."""
    if item.int("index") == 0:
        return rebuilt(norm, outputs=1)
    x = norm.operands[0]
    axes = int64s(range(norm.int("axis") % x.type.rank, x.type.rank))
    wide = to_dtype(x, item.dtype)
    mean = make("ReduceMean", wide, axes)
    if item.int("index") == 1:
        return mean
    centred = make("Sub", wide, mean)
    variance = make("ReduceMean", make("Mul", centred, centred), axes)
    epsilon = const(norm.float("epsilon"), like=variance)
    return make("Reciprocal", make("Sqrt", make("Add", variance, epsilon)))
