"""Graph and input arrays -> output arrays, by the numpy meaning of every operator: the oracle of all tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, walk
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
    if node is None:
        return None
    values: dict[Node, tuple[Array, ...] | None] = {}
    for n in walk([node]):
        values[n] = _known(n, values, limit_bytes)
    found = values[node]
    return None if found is None else found[0]


def _known(
    node: Node, values: Mapping[Node, tuple[Array, ...] | None], limit_bytes: int
) -> tuple[Array, ...] | None:
    if node.op == "input" or not all(t.static and t.bytes <= limit_bytes for t in node.types):
        return None
    if node.is_constant:
        return (node.array,)
    if node.op == "Shape":  # the one operator that needs its input's type only
        source = node.operands[0].type
        return meaning(node, (np.empty(source.dims, np.bool_),)) if source.static else None
    arrays: list[Array | None] = []
    for i in node.inputs:
        found = None if i is None else values[i]
        if i is not None and found is None:
            return None
        arrays.append(None if found is None else found[0])
    if node.op == "item":
        source_values = values[node.operands[0]]
        return None if source_values is None else (source_values[node.int("index")],)
    return meaning(node, tuple(arrays))
