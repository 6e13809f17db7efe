"""Graph and its products -> which values are wanted in few bits, and which of those lie in memory.

Products (convolutions, matrix products) want what they read in few bits. The wish goes backwards
through operators that work as well on few bits (moves of data, pools, activations, residual sums)
and stops at those that do not (normalisations, Softmax, ...). What stays in registers between a
product and its activation or residual sum is never stored, so it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from networkx.utils import UnionFind

from qcompiler.ir import Graph, Node
from qcompiler.ops import is_elementwise
from qcompiler.ops.kinds import MOVES, VIEWS

Products = Mapping[Node, tuple[Node, ...]]
"""Products -> the operands that they want in few bits."""


@dataclass(frozen=True)
class Wishes:
    """What is wanted in few bits (`values`), and by whom."""

    products: Products
    passes: Callable[[Node], bool]
    values: frozenset[Node]

    def of(self, node: Node) -> tuple[Node, ...]:
        """The operands that a node wants in few bits."""
        if node in self.products:
            return self.products[node]
        return carried(node) if node in self.values and self.passes(node) else ()


def wishes(graph: Graph, products: Products, passes: Callable[[Node], bool]) -> Wishes:
    """Readers first: whoever wants few bits asks its operands for them, if `passes` lets it."""
    values: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in products:
            values.update(products[node])
        elif node in values and passes(node):
            values.update(carried(node))
    return Wishes(products, passes, frozenset(values))


def carried(node: Node) -> tuple[Node, ...]:
    """The operands that a wish goes on to: not the small ones that scale or shift a larger one."""
    if node.op == "Concat":
        return tuple(i for i in node.operands if not i.is_constant)
    if node.op == "Pad" and not _pads_with_zero(node):
        return ()
    if node.op in MOVES or not is_elementwise(node):
        return node.operands[:1]
    return tuple(i for i in node.operands if not i.is_constant and i.shape == node.shape)


def _pads_with_zero(pad: Node) -> bool:
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    zero = value is None or (value.is_constant and not np.any(value.array))
    return zero or pad.attrs.get("mode") != "constant"


def melting(graph: Graph) -> set[Node]:
    """The values that are never stored: an elementwise node of their shape alone reads them.

    It joins their kernel. It can join one only: of two products that are added, the first is
    stored.
    """
    found: set[Node] = set()
    anchored: set[Node] = set()
    for node in graph.nodes:
        if node.op in ("input", "constant"):
            continue
        if not is_elementwise(node):
            anchored.add(node)
            continue
        alone = [i for i in dict.fromkeys(node.operands) if _only_for(i, node, graph)]
        roots = [i for i in alone if i in anchored]
        found.update(i for i in alone if i not in anchored)
        found.update(roots[-1:])
        if roots:
            anchored.add(node)
    return found


def _only_for(value: Node, reader: Node, graph: Graph) -> bool:
    if value.op in VIEWS or value.op in ("input", "constant", "item"):
        return False
    reads = sum(i is value for i in reader.operands)
    return graph.readers[value] == reads and value.type.shape == reader.type.shape


def linked(graph: Graph, wanted: Wishes) -> dict[Node, Node]:
    """Each wanted value -> one that stands for all that moves of data link it with."""
    groups: UnionFind[Node] = UnionFind(graph.nodes)
    for node in graph.nodes:
        if node.op in MOVES:
            for i in wanted.of(node):
                groups.union(node, i)
    return {n: groups[n] for n in wanted.values}
