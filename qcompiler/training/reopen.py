"""A graph of pinned shapes -> the same one with the sizes open that were open before.

Passes want numbers for shapes, so a graph that they made smaller knows one batch size only. Its
nodes are made again on inputs whose first dimension is a symbol; shapes that are written out take
that dimension from their input.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.errors import Error
from qcompiler.ir import Graph, Node
from qcompiler.pruning.channels import factors
from qcompiler.rewrite.matching import input_at, int64s, ints, rebuilt


def reopened(graph: Graph, like: Graph) -> Graph | None:
    """A pinned graph, and one of the same inputs and outputs as the model had them -> the pinned
    one with the first dimensions that `like` has; None where that cannot be (more is open, or an
    output does not come out as open).
    """
    pairs = list(zip(graph.inputs, like.inputs, strict=True))
    if any(a.shape[1:] != b.shape[1:] for a, b in pairs):
        return None
    new: dict[Node, Node] = {a: b for a, b in pairs}
    try:
        for node in graph.nodes:
            if node not in new:
                new[node] = _again(node, [None if i is None else new[i] for i in node.inputs])
    except Error:
        return None  # a shape that only fits the batch size that was pinned
    made = Graph(
        tuple(new[i] for i in graph.inputs),
        tuple(new[o] for o in graph.outputs),
        graph.output_names,
        graph.name,
        graph.notes,
    )
    same = all(a.type == b.type for a, b in zip(made.outputs, like.outputs, strict=True))
    return made if same else None


def _again(node: Node, inputs: Sequence[Node | None]) -> Node:
    if node.is_constant or all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node
    if node.op == "Reshape" and (open_ := _open_shape(node, inputs[0])) is not None:
        inputs = [inputs[0], int64s(open_)]
        return rebuilt(node, inputs, allowzero=0)
    return rebuilt(node, inputs)


def _open_shape(node: Node, x: Node | None) -> list[int] | None:
    """A Reshape's shape, its first dimension as the input has it (0), or as it comes out (-1)."""
    shape = ints(input_at(node, 1))
    if shape is None or x is None or not isinstance(x.shape[0], str) or not node.type.dims:
        return None
    before, after = factors(node.operands[0].type.dims, node.type.dims)[0]
    made = list(node.type.dims)
    made[0] = 0 if (before, after) == ([0], [0]) else -1
    return made
