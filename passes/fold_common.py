"""Compute the same thing once.

f(x, y), f(x, y)  ->  one f(x, y), read twice

What is cheaper to compute again in each reader's kernel than to keep in memory stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np

from qcompiler.ir import Array, Attr, Graph, Node, substitute
from qcompiler.matching import melts
from qcompiler.rewrite import graph_pass

HASHED_BYTES = 1 << 20
"""Constants up to this size are compared by value, larger ones by being the same array."""

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
        """Equal operator, attributes, types and inputs: the first such node serves all."""
        seen: dict[Hashable, Node] = {}

        def change(node: Node) -> Node:
            if node.op == "input" or node.op in RANDOM or melts(node):
                return node
            return seen.setdefault(_key(node), node)

        return substitute(graph, change)


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
