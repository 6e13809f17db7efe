"""Graph and input arrays -> output arrays, by the numpy meaning of every operator: the oracle of all tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node
from qcompiler.ops.registry import OPERATORS

KNOWN_BYTES = 1 << 16
"""Type rules look at values (the shape a Reshape is given) no larger than this."""


def meaning(node: Node, arrays: tuple[Array | None, ...]) -> tuple[Array, ...]:
    """One node on arrays -> its outputs, checked against the node's types."""
    entry = OPERATORS.get(node.op)
    if entry is None:
        raise Error(f"unknown operator {node.op}", where=node.name)
    result = entry.meaning(node, *arrays)
    outputs = result if isinstance(result, tuple) else (result,)
    for output, type in zip(outputs, node.types, strict=True):
        matches = len(output.shape) == type.rank and all(
            isinstance(d, str) or d == n for d, n in zip(type.shape, output.shape, strict=True)
        )
        assert matches, f"{node!r} gave {output.dtype}{list(output.shape)}"
        assert type.dtype in (output.dtype.name, "string"), f"{node!r} gave {output.dtype}"
    return outputs


def evaluate(
    graph: Graph,
    inputs: Mapping[str, Array],
    observe: Callable[[Node, Array], None] | None = None,
) -> dict[str, Array]:
    """Run a graph in numpy: {input name: array} -> {output name: array}.

    `observe` is called with every single-output node and its value; values are dropped after their last reader, so
    memory stays near the largest set of live activations.
    """
    values: dict[Node, tuple[Array, ...]] = {}
    left = dict(graph.readers)
    for node in graph.nodes:
        if node.op == "input":
            if node.name not in inputs:
                raise Error("input is missing", where=node.name)
            values[node] = (np.asarray(inputs[node.name]),)
        elif node.is_constant:
            values[node] = (node.array,)
        elif node.op == "item":
            source = node.operands[0]
            values[node] = (values[source][node.int("index")],)
        else:
            arrays = tuple(None if i is None else values[i][0] for i in node.inputs)
            values[node] = meaning(node, arrays)
        if observe is not None and len(node.types) == 1:
            observe(node, values[node][0])
        for i in node.operands:
            left[i] -= 1
            if not left[i]:
                del values[i]
    return {n: values[o][0] for n, o in zip(graph.output_names, graph.outputs, strict=True)}


def known_value(node: Node | None, limit_bytes: int = KNOWN_BYTES) -> Array | None:
    """The value of a node that depends on constants and shapes only, if it and all it needs are small; else None."""
    cone = [] if node is None else _cone(node, limit_bytes)
    if node is None or cone is None:
        return None
    values: dict[Node, tuple[Array, ...]] = {}
    for n in cone:
        if n.is_constant:
            values[n] = (n.array,)
        elif n.op == "Shape":  # needs its input's type only
            values[n] = meaning(n, (np.broadcast_to(np.False_, n.operands[0].type.dims),))
        elif n.op == "item":
            values[n] = (values[n.operands[0]][n.int("index")],)
        else:
            values[n] = meaning(n, tuple(None if i is None else values[i][0] for i in n.inputs))
    return values[node][0]


def _cone(root: Node, limit_bytes: int) -> list[Node] | None:
    """All that a value needs, inputs first; None as soon as something in it is large or not known."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            small = all(t.static and t.bytes <= limit_bytes for t in node.types)
            if node.op == "input" or not small:
                return None
            stack.append((node, True))
            if node.op == "Shape":
                if not node.operands[0].type.static:
                    return None
            else:
                stack.extend((i, False) for i in reversed(node.operands))
    return order
