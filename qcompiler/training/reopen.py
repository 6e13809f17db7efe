"""A graph with static shapes -> the same graph with the sizes open that were open in the model.

Passes need static shapes, so a graph that they made smaller has only one batch size. Its nodes are
rebuilt on inputs whose first dimension is a symbol; the shapes of Reshapes take that dimension from
their input.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.errors import Error
from qcompiler.ir import Graph, Node
from qcompiler.pruning.channels import factors
from qcompiler.rewrite.matching import input_at, int64s, ints, rebuilt


def reopened(graph: Graph, like: Graph) -> Graph | None:
    """A static graph, and one with the same inputs and outputs as open as in the model -> the
    static graph with the first dimensions of `like`; None if that is impossible (other dimensions
    are open, or an output would not be as open).
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
        return None  # a shape that fits only the static batch size
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
    """A Reshape's shape with its first dimension copied from the input (0) or inferred (-1)."""
    shape = ints(input_at(node, 1))
    if shape is None or x is None or not isinstance(x.shape[0], str) or not node.type.dims:
        return None
    before, after = factors(node.operands[0].type.dims, node.type.dims)[0]
    made = list(node.type.dims)
    made[0] = 0 if (before, after) == ([0], [0]) else -1
    return made
