"""Rematerialize widened bytes in each reader's kernel.

y = dequantize(x); f(y), g(y)  ->  f(dequantize(x)), g(dequantize(x))

Only the bytes are stored, and f and g each rematerialize the widening. Likewise for a change of
sign and a Cast. Products (conv, matmul, Attention) read their operands many times, and do not fuse
them: they share one copy.
"""

from __future__ import annotations

from qcompiler.ir import Graph, Node
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.matching import rematerialized

SHARING = frozenset({"conv", "matmul", "Attention", "Reshape", "Transpose"})


@graph_pass
class LayoutRepeat:
    """f(dequantize(x)), g(dequantize(x)), each with its own copy."""

    def __call__(self, graph: Graph) -> Graph:
        """The first reader keeps the node, each later one gets its own copy."""
        new: dict[Node, Node] = {}
        taken: set[Node] = set(graph.outputs)
        for node in graph.nodes:
            moved = {i: new[i] for i in node.operands}
            if node.op not in SHARING:
                moved = {i: _own(i, n, taken) for i, n in moved.items()}
            new[node] = node.with_inputs(None if i is None else moved[i] for i in node.inputs)
        return graph.with_outputs(new[o] for o in graph.outputs)


def _own(old: Node, new: Node, taken: set[Node]) -> Node:
    """The input for one more reader: the node itself for the first, a copy for another."""
    if new.is_constant or not rematerialized(new):
        return new
    if old not in taken:
        taken.add(old)
        return new
    return Node(new.op, new.inputs, new.attrs, new.types, new.name)
