"""Demand for low precision: which values products should read in few bits, and which are stored.

Products (convolutions, matrix products) demand their operands in low precision. The demand
propagates backwards through operators that work equally well on such values (data movement, pools,
activations, residual sums) and stops at all others (normalisations, Softmax, ...). A value that is
fused between a product and its activation or residual sum is never stored, and stays as it is.
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
"""Product -> the operands it demands in low precision."""


@dataclass(frozen=True)
class Demand:
    """The values demanded in low precision, and by which nodes."""

    products: Products
    passes: Callable[[Node], bool]
    values: frozenset[Node]

    def of(self, node: Node) -> tuple[Node, ...]:
        """The operands a node demands in low precision."""
        if node in self.products:
            return self.products[node]
        return carried(node) if node in self.values and self.passes(node) else ()


def propagated(graph: Graph, products: Products, passes: Callable[[Node], bool]) -> Demand:
    """Propagate the demand of products backwards, through the nodes that `passes` accepts."""
    values: set[Node] = set()
    for node in reversed(graph.nodes):
        if node in products:
            values.update(products[node])
        elif node in values and passes(node):
            values.update(carried(node))
    return Demand(products, passes, frozenset(values))


def carried(node: Node) -> tuple[Node, ...]:
    """The operands a demand propagates to: not small ones that scale or shift a larger one."""
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


def unstored(graph: Graph) -> set[Node]:
    """Values that are never stored, because their only reader is an elementwise node of their
    shape.

    They fuse with it. It fuses into one kernel only: of two products that are added, the first is
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


def linked(graph: Graph, demand: Demand) -> dict[Node, Node]:
    """Each demanded value -> a representative of all values linked to it by data movement."""
    groups: UnionFind[Node] = UnionFind(graph.nodes)
    for node in graph.nodes:
        if node.op in MOVES:
            for i in demand.of(node):
                groups.union(node, i)
    return {n: groups[n] for n in demand.values}
