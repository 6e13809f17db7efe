"""Graph and input arrays -> output arrays, by numpy meanings: the oracle of all tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node
from qcompiler.ops.registry import OPERATORS

KNOWN_BYTES = 1 << 16
"""Type rules look at values (the shape a Reshape is given) no larger than this."""


_OF_TYPE = ("Shape", "Size")
"""Operators that look at their input's type only."""


@dataclass(frozen=True)
class _Unread:
    """Stands for an array of which nobody reads more than the shape."""

    shape: tuple[int, ...]


def meaning(node: Node, arrays: tuple[Array | None, ...]) -> tuple[Array, ...]:
    """One node on arrays -> its outputs, checked against the node's types.

    Values that make no sense (an index that does not exist, a shape that does not fit) are an
    Error.
    """
    where = f"{node.name or 'node'} ({node.op})"
    entry = OPERATORS.get(node.op)
    if entry is None:
        raise Error("unknown operator", where=where)
    try:
        with np.errstate(all="ignore"):
            result = entry.meaning(node, *arrays)
    except Error as e:
        raise Error(e.what, where=e.where or where, hint=e.hint) from e
    except (ArithmeticError, IndexError, MemoryError, ValueError) as e:
        raise Error(f"has no value for these inputs ({e})", where=where) from e
    outputs = tuple(map(np.asarray, result if isinstance(result, tuple) else (result,)))
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

    `observe` is called with every single-output node and its value; values are dropped after their
    last reader, so memory stays near the largest set of live activations.
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
            values[node] = meaning(node, values[node.operands[0]])
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
    """A value that needs constants and shapes only, if all of it is small; else None."""
    cone = [] if node is None else _cone(node, limit_bytes)
    if node is None or cone is None:
        return None
    values: dict[Node, tuple[Array, ...]] = {}
    for n in cone:
        if n.is_constant:
            values[n] = (n.array,)
        elif n.op in _OF_TYPE:
            values[n] = meaning(n, (_Unread(n.operands[0].type.dims),))  # type: ignore[arg-type]
        elif n.op == "item":
            values[n] = meaning(n, values[n.operands[0]])
        else:
            values[n] = meaning(n, tuple(None if i is None else values[i][0] for i in n.inputs))
    return values[node][0]


def _cone(root: Node, limit_bytes: int) -> list[Node] | None:
    """All that a value needs, inputs first; None if any of it is large or not known."""
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
            if node.op in _OF_TYPE:
                if not node.operands[0].type.static:
                    return None
            else:
                stack.extend((i, False) for i in reversed(node.operands))
    return order
