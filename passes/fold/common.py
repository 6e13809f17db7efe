"""Common subexpression elimination.

f(x, y), f(x, y)  ->  one f(x, y), read twice

Values that are cheaper to rematerialize in each reader's kernel than to store are not merged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np

from qcompiler.ir import Array, Attr, Graph, Node, substitute
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.matching import rematerialized

HASHED_BYTES = 1 << 20
"""Constants up to this size are hashed by all their bytes, larger ones by a sample of their
numbers, and then compared.
"""

_LOOKED_AT = 512
"""Size of a large constant's sample."""

RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    }
)


@graph_pass
class FoldCommon:
    """f(x), f(x) -> one f(x)."""

    def __call__(self, graph: Graph) -> Graph:
        """Replace nodes of equal operator, attributes, types and inputs by the first of them."""
        seen: dict[Hashable, Node] = {}
        large: dict[Hashable, list[Node]] = {}

        def change(node: Node) -> Node:
            if node.op == "input" or node.op in RANDOM or rematerialized(node):
                return node
            if node.is_constant and _is_large(node.array):
                return _first_equal(node, large.setdefault(_look(node.array), []))
            return seen.setdefault(_key(node), node)

        return substitute(graph, change)


def _is_large(array: Array) -> bool:
    return array.nbytes > HASHED_BYTES and array.dtype != object


def _look(array: Array) -> Hashable:
    """A sample of a large array, as its hash."""
    some = np.asarray(array.flat[:: array.size // _LOOKED_AT])
    return array.dtype.name, array.shape, some.tobytes()


def _first_equal(node: Node, others: list[Node]) -> Node:
    """The first constant with the same bytes, or the node itself, which is then recorded."""
    for other in others:
        same = node.array is other.array
        if same or np.array_equal(_bytes(node.array), _bytes(other.array)):
            return other
    others.append(node)
    return node


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).view(np.uint8)


def _key(node: Node) -> Hashable:
    attrs = tuple((k, _attr_key(v)) for k, v in sorted(node.attrs.items()))
    return node.op, node.inputs, attrs, node.types


def _attr_key(value: Attr) -> Hashable:
    return _array_key(value) if isinstance(value, np.ndarray) else (type(value), repr(value))


def _array_key(array: Array) -> Hashable:
    if array.nbytes > HASHED_BYTES or array.dtype == object:
        return id(array)
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
    return array.dtype.name, array.shape, digest
