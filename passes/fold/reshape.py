"""Normalize every change of shape to one Reshape with a constant shape.

Flatten(x), Squeeze(x), Unsqueeze(x)  ->  Reshape(x, shape)
Reshape(Reshape(x))                   ->  Reshape(x)
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import ANY, Skip, op, rule
from qcompiler.rewrite.matching import ints, reshaped


@rule(op("Flatten|Squeeze|Unsqueeze|Reshape"))
def fold_reshape(node: Node) -> Node | Skip | None:
    """Flatten, Squeeze, Unsqueeze, Reshape(x, computed shape) -> Reshape(x, constant)."""
    if not node.type.static:
        return Skip(f"the shape {node.type} is unknown")
    if node.op == "Reshape" and _plain(node):
        return None
    return reshaped(node.operands[0], node.type.dims)


def _plain(reshape: Node) -> bool:
    """Is its shape already the constant `fold_reshape` would make?"""
    shape = reshape.inputs[1]
    return shape is not None and shape.is_constant and ints(shape) == reshape.shape


@rule(op("Reshape", op("Reshape", shared=True), ANY))
def fold_reshape_twice(outer: Node, inner: Node) -> Node | None:
    """Reshape(Reshape(x)) -> Reshape(x)."""
    if not outer.type.static:
        return None
    x = inner.operands[0]
    return x if x.type == outer.type else reshaped(x, outer.type.dims)
