"""Limit operators with very many operands or outputs.

Concat(x1, ..., x5000)  ->  Concat(Concat(x1, ..., x64), Concat(x65, ..., x128), ...)
Sum(x1, ..., x5000)  ->  Sum(Sum(x1, ..., x16), Sum(x17, ..., x32), ...)
item(Split(x)){index=i}  ->  Slice(x), where the Split has thousands of outputs

A kernel with thousands of operands takes LLVM minutes, and equal groups share one small kernel.
Every output of a Split holds the types of all of them, so thousands mean millions of types to
visit.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import Skip, op, rule
from qcompiler.rewrite.matching import int64s

MOST = 64
"""Most operands of a Concat; densely connected networks have up to 60."""

MOST_TERMS = 16
"""Most terms of a sum: fewer than a region may read."""


@rule(op("Concat"))
def layout_many_joined(node: Node) -> Node | None:
    """Concat(x1, ..., xn) -> Concat of Concats of at most 64."""
    return _grouped(node, MOST)


@rule(op("Sum|Max|Min"))
def layout_many_terms(node: Node) -> Node | Skip | None:
    """Sum(x1, ..., xn) -> Sum of Sums of at most 16, likewise Max and Min."""
    if node.op == "Sum" and node.dtype in ("float16", "bfloat16"):
        return Skip("a partial sum would be rounded") if len(node.operands) > MOST_TERMS else None
    return _grouped(node, MOST_TERMS)


def _grouped(node: Node, most: int) -> Node | None:
    """A node of many operands -> a tree of nodes with at most `most` operands."""
    if len(node.operands) <= most:
        return None
    parts = [
        make(node.op, *node.operands[i : i + most], name=f"{node.name}.{i}", **node.attrs)
        for i in range(0, len(node.operands), most)
    ]
    return make(node.op, *parts, name=node.name, **node.attrs)


@rule(op("item", op("Split", shared=True)))
def layout_many_parts(item: Node, split: Node) -> Node | None:
    """item(Split(x)){index=i} -> Slice(x) over the range of that part."""
    if len(split.types) <= MOST or not item.type.static:
        return None
    axis = split.int("axis") % item.type.rank
    start = sum(int(t.shape[axis]) for t in split.types[: item.int("index")])
    bounds = int64s([start]), int64s([start + item.type.dims[axis]]), int64s([axis])
    return make("Slice", split.operands[0], *bounds, name=item.name)
