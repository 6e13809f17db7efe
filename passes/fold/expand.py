"""Drop an Expand before operators that broadcast anyway.

f(Expand(x), y)  ->  f(x, y)     if f broadcasts x to the same shape
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import ANY, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import rebuilt

BROADCASTING = (
    "Add|Sub|Mul|Div|Pow|Min|Max|And|Or|Xor|Equal|Greater|GreaterOrEqual|Less|LessOrEqual"
)
EXPAND = op("Expand", shared=True)


@rule(op(BROADCASTING, EXPAND, ANY, commutes=True))
def fold_expand(node: Node, expand: Node) -> Node | Skip:
    """f(Expand(x), y) -> f(x, y)."""
    return _without(node, expand)


@rule(op("Where", OPTIONAL, ANY, EXPAND))
def fold_expand_else(where: Node, expand: Node) -> Node | Skip:
    """Where(c, a, Expand(b)) -> Where(c, a, b)."""
    return _without(where, expand)


@rule(op("Where", OPTIONAL, EXPAND, ANY))
def fold_expand_then(where: Node, expand: Node) -> Node | Skip:
    """Where(c, Expand(a), b) -> Where(c, a, b)."""
    return _without(where, expand)


@rule(op("Where", EXPAND, ANY, ANY))
def fold_expand_condition(where: Node, expand: Node) -> Node | Skip:
    """Where(Expand(c), a, b) -> Where(c, a, b)."""
    return _without(where, expand)


def _without(node: Node, expand: Node) -> Node | Skip:
    inputs = [expand.operands[0] if i is expand else i for i in node.inputs]
    made = rebuilt(node, inputs)
    return made if made.type == node.type else Skip("the Expand enlarges the result")
