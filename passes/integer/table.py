"""Functions from byte to byte -> look-up tables of 256 values.

quantize(f(dequantize(x, s, z)), k, y)  ->  lookup(x, table)

f is any tree of elementwise operators and constants over this one x: Sigmoid, HardSwish, x *
Sigmoid(x) with an intermediate quantized by another tool, ... Functions that only clip stay
arithmetic.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import is_elementwise, known_value, make
from qcompiler.rewrite import ANY, CONST, Skip, op, rule
from qcompiler.rewrite.matching import rebuilt

PLAIN = frozenset({"dequantize", "quantize", "Relu", "Clip"})
"""Operators of so few instructions that a table is not faster."""

MOST = 32
"""Most nodes replaced by one table."""


@rule(op("quantize", ANY, CONST, CONST))
def integer_table(quantize: Node) -> Node | Skip | None:
    """quantize(f(dequantize(x))) -> lookup(x, table)."""
    found = _function(quantize)
    if found is None:
        return None
    x, nodes = found
    if x.type == quantize.type and all(n.op in PLAIN for n in nodes):
        return None
    if x.shape != quantize.shape:
        return Skip("the table's values would be broadcast")
    limits = np.iinfo(x.dtype)
    every = constant(np.arange(limits.min, limits.max + 1).astype(x.dtype))
    made: dict[Node, Node] = {x: every}
    for node in nodes:
        inputs = [None if i is None else made.get(i) or _scalar(i) for i in node.inputs]
        made[node] = rebuilt(node, inputs)
    table = known_value(made[quantize])
    assert table is not None, "it has constants only"
    return make("lookup", x, constant(table))


def _scalar(node: Node) -> Node:
    """A one-element constant as a scalar; a table as it is."""
    return constant(node.array.reshape(())) if node.array.size == 1 else node


def _function(root: Node) -> tuple[Node, list[Node]] | None:
    """The only byte tensor a quantize depends on, and the nodes between, inputs first."""
    order: list[Node] = []
    seen: set[Node] = set()
    leaves: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            if len(seen) > MOST or not _tabulates(node):
                return None
            stack.append((node, True))
            for i in node.operands:
                byte = node.op in ("dequantize", "lookup") and i is node.operands[0]
                if byte and i.op != "lookup":
                    leaves.add(i)
                elif not i.is_constant:
                    stack.append((i, False))
    (leaf, *others) = leaves or (None,)
    if leaf is None or others or leaf.dtype not in ("uint8", "int8"):
        return None
    return leaf, order


def _tabulates(node: Node) -> bool:
    """Is it elementwise, with constants that are the same for every element?"""
    if not is_elementwise(node):
        return False
    return node.op == "lookup" or all(i.array.size == 1 for i in node.operands if i.is_constant)
