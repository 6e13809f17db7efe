"""Run a graph in numpy by its operators' reference definitions: the oracle of all tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node
from qcompiler.ops.registry import OPERATORS
from qcompiler.ops.work import work

KNOWN_BYTES = 1 << 16
"""Largest value (such as a Reshape's shape) that type rules compute."""

KNOWN_WORK = 1 << 24
"""Limit of `work` for each node computed on the way to such a value."""


_OF_TYPE = ("Shape", "Size")
"""Operators that depend on their input's type only."""
_FREE = frozenset({*_OF_TYPE, "constant", "item"})


@dataclass(frozen=True)
class _Unread:
    """A placeholder for an array of which only the shape is read."""

    shape: tuple[int, ...]


def meaning(node: Node, arrays: tuple[Array | None, ...]) -> tuple[Array, ...]:
    """One node on arrays -> its outputs, checked against the node's types.

    Raises Error for invalid values (an index out of range, a shape that does not fit).
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
    """Run a graph in numpy: {input name: array} -> {output name: array}, cut to the sizes that data
    decide. Raises Error if a check fails.

    `observe` is called with every single-output node and its value. Values are dropped after their
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
    for what, node in graph.checks.items():
        if not values[node][0].all():
            raise Error(what)
    found = {name: values[node][0] for name, node in graph.results.items()}
    for name, node in graph.extents.items():
        found[name] = found[name][tuple(slice(int(n)) for n in values[node][0])]
    return found


_KNOWN: WeakKeyDictionary[Node, tuple[Array, ...] | None] = WeakKeyDictionary()
"""Memo of `known_value`: a chain of shapes is walked once, not once per Reshape that reads it;
None if unknown."""


_KNOWN_BESIDES: WeakKeyDictionary[Node, tuple[Array, ...] | None] = WeakKeyDictionary()
"""The same, of values that are made of shapes with open sizes, but not of these."""

Leaf = Callable[[Node], "Array | None"]
LEAVES: list[Leaf] = []
"""What knows values that are made of shapes with open sizes (known_sizes.py)."""


def known_value(node: Node | None, limit_bytes: int = KNOWN_BYTES) -> Array | None:
    """A value computed from constants and shapes only, if all of it is small; else None."""
    found = plain_value(node, limit_bytes)
    if node is None or found is not None or limit_bytes != KNOWN_BYTES or not LEAVES:
        return found
    return _computed(node, limit_bytes, _KNOWN_BESIDES, LEAVES[0])


def plain_value(node: Node | None, limit_bytes: int = KNOWN_BYTES) -> Array | None:
    """The same, if all sizes of these shapes are known."""
    if node is None:
        return None
    known = _KNOWN if limit_bytes == KNOWN_BYTES else WeakKeyDictionary()
    return _computed(node, limit_bytes, known, None)


def _computed(
    node: Node,
    limit_bytes: int,
    known: MutableMapping[Node, tuple[Array, ...] | None],
    leaf: Leaf | None,
) -> Array | None:
    for n in _cone(node, limit_bytes, known, leaf):
        if n.is_constant:
            known[n] = (n.array,)
        elif n.op in _OF_TYPE:
            known[n] = meaning(n, (_Unread(n.operands[0].type.dims),))  # type: ignore[arg-type]
        else:
            read = [None if i is None else known[i] for i in n.inputs]
            arrays = read[0] if n.op == "item" else tuple(None if r is None else r[0] for r in read)
            known[n] = meaning(n, arrays or ())
    found = known[node]
    return None if found is None else found[0]


def _cone(
    root: Node,
    limit_bytes: int,
    known: MutableMapping[Node, tuple[Array, ...] | None],
    leaf: Leaf | None,
) -> list[Node]:
    """The nodes to compute for a value, inputs first; `leaf` tells values that need no computing.

    If any of them is large or has an unknown size, the result is empty, and `known` maps the value
    and the nodes on the way to it to None.
    """
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen and known.get(node, ()) == ():
            seen.add(node)
            told = None if leaf is None or len(node.types) > 1 else leaf(node)
            if told is not None:
                known[node] = (told,)
                continue
            stack.append((node, True))
            if not _may_be_known(node, limit_bytes):
                known.update((n, None) for n, inside in stack if inside)
                return []
            if node.op not in _OF_TYPE:
                stack.extend((i, False) for i in reversed(node.operands))
        elif known.get(node, ()) is None:
            known.update((n, None) for n, inside in stack if inside)
            return []
    return order


def _may_be_known(node: Node, limit_bytes: int) -> bool:
    read = node.operands if node.op in _OF_TYPE else ()
    small = all(t.static and t.bytes <= limit_bytes for t in node.types)
    if node.op == "input" or not small or not all(i.type.static for i in read):
        return False
    return node.op in _FREE or work(node) <= KNOWN_WORK
