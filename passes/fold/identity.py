"""Drop operators that have no effect.

Identity(x), Dropout(x), Cast(x) to its own dtype, Transpose(x) in order  ->  x
Reshape(x), Expand(x), Tile(x), Resize(x) to its own shape                ->  x
Slice(x) of everything, Pad(x) by nothing, Concat(x)                      ->  x
x + 0, x - 0, x * 1, x / 1, x ** 1  ->  x
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import FLOATS, input_at, ints, perm_of

NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1}
SAME_WHEN_SAME_SHAPE = "Reshape|Flatten|Squeeze|Unsqueeze|Expand|Tile|Cast|CastLike|Slice|Pad"
REDUCTIONS = "ReduceMean|ReduceSum|ReduceMax|ReduceMin|ReduceProd"


@rule(op("Identity", ANY))
def fold_identity(identity: Node) -> Node:
    """Identity(x) -> x."""
    return identity.operands[0]


@rule(op("item", op("Dropout", shared=True)))
def fold_dropout(item: Node, dropout: Node) -> Node | None:
    """Dropout(x) -> x: it has no effect at inference."""
    return dropout.operands[0] if item.int("index") == 0 else None


@rule(op("Dropout"))
def fold_dropout_alone(dropout: Node) -> Node | None:
    """Dropout(x) whose mask is not read -> x."""
    return dropout.operands[0] if len(dropout.types) == 1 else None


@rule(op(SAME_WHEN_SAME_SHAPE))
def fold_no_change(node: Node) -> Node | Skip | None:
    """Moves and conversions without effect -> x."""
    x = node.operands[0]
    if not x.type.static or x.type != node.types[0]:
        return None
    if node.op == "Slice" and any(s != 1 for s in ints(input_at(node, 4)) or ()):
        return Skip("it reverses")
    if node.op == "Pad" and any(ints(input_at(node, 1)) or (1,)):
        return Skip("it pads one side and cuts the other")
    return x


@rule(op("Transpose", ANY))
def fold_transpose_in_order(node: Node) -> Node | None:
    """Transpose(x) with its axes in order -> x."""
    perm = perm_of(node)
    return node.operands[0] if perm == tuple(range(len(perm))) else None


@rule(op("Concat|Sum|Max|Min|Mean", ANY))
def fold_one_operand(node: Node) -> Node:
    """Concat(x), Sum(x), Max(x), Min(x), Mean(x) -> x."""
    return node.operands[0]


@rule(op("Split"))
def fold_split_in_one(split: Node) -> Node | None:
    """Split(x) into one piece -> x."""
    return split.operands[0] if len(split.types) == 1 else None


@rule(op("item"))
def fold_item_of_one(item: Node) -> Node | None:
    """The only output of a node -> the node."""
    return item.operands[0] if len(item.operands[0].types) == 1 else None


@rule(op("Resize"))
def fold_resize_to_same(resize: Node) -> Node | Skip | None:
    """Resize(x) to its own size -> x."""
    x = resize.operands[0]
    if not x.type.static or x.type != resize.type:
        return None
    scales = input_at(resize, 2)
    if resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return Skip("it crops")
    if scales is not None and not (scales.is_constant and np.all(scales.array == 1)):
        return Skip("its scales are not 1")
    return x


@rule(op("MaxPool|AveragePool|max_pool|average_pool", ANY))
def fold_pool_of_one(pool: Node) -> Node | None:
    """MaxPool(x), AveragePool(x) with 1x1 windows and strides -> x."""
    lists = [pool.attrs[k] for k in ("kernel_shape", "strides", "pads")]
    ones, strides, pads = (v if isinstance(v, tuple) else () for v in lists)
    if set(ones) != {1} or set(strides) - {1} or any(pads) or len(pool.types) > 1:
        return None
    return pool.operands[0]


@rule(op(REDUCTIONS, ANY, OPTIONAL))
def fold_reduce_of_one(reduce: Node) -> Node | None:
    """ReduceMean(x) and similar over axes of length 1, with keepdims -> x."""
    x = reduce.operands[0]
    return x if x.type.static and x.type == reduce.type else None


@rule(op("Add|Mul", ANY, CONST, commutes=True))
def fold_neutral(node: Node) -> Node | None:
    """x + 0, x * 1 -> x, if x already has the result's shape."""
    for x, c in (node.operands, node.operands[::-1]):
        if c.is_constant and x.type == node.type and np.all(c.array == NEUTRAL[node.op]):
            return x
    return None


@rule(op("Sub|Div|Pow", ANY, CONST))
def fold_neutral_right(node: Node) -> Node | None:
    """x - 0, x / 1, x ** 1 -> x, if x already has the result's shape."""
    x, c = node.operands
    return x if x.type == node.type and np.all(c.array == NEUTRAL[node.op]) else None


@rule(op("Where", CONST, ANY, ANY))
def fold_where(where: Node) -> Node | None:
    """Where(all true, a, b) -> a; Where(all false, a, b) -> b."""
    condition, a, b = where.operands
    chosen = a if condition.array.all() else b if not condition.array.any() else None
    return chosen if chosen is not None and chosen.type == where.type else None


@rule(op("Neg|Not|Reciprocal", op("Neg|Not|Reciprocal")))
def fold_double(outer: Node, inner: Node) -> Node | None:
    """--x, not not x -> x; 1 / (1 / x) -> x."""
    exact = outer.op != "Reciprocal" or outer.dtype in FLOATS
    return inner.operands[0] if outer.op == inner.op and exact else None


@rule(op("Relu|Abs|Ceil|Floor|Round|Sign", op("Relu|Abs|Ceil|Floor|Round|Sign", shared=True)))
def fold_repeated(outer: Node, inner: Node) -> Node | None:
    """f(f(x)) -> f(x) for idempotent functions: Relu, Abs, Round, ..."""
    rounds = {"Ceil", "Floor", "Round"}
    same = outer.op == inner.op or (outer.op in rounds and inner.op in rounds)
    return inner if same else None
