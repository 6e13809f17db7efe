"""Matrix products of one value by several constants are one product, cut apart.

MatMul(x, a) + p, MatMul(x, b) + q  ->  Split(MatMul(x, [a b]) + [p q])

It reads x once, at the price of a copy for each piece; so it runs only when asked for.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from qcompiler.ir import Graph, Node
from qcompiler.matching import const, int64s
from qcompiler.ops import make
from qcompiler.rewrite import graph_pass


@dataclass(eq=False)
class Group:
    """Products of one value, each with the sum of a constant [N] after it, or all without."""

    products: list[Node]
    results: list[Node]
    split: Node | None = None

    def piece(self, index: int, x: Node) -> Node:
        """One product's result as a piece of them all, made of x."""
        if self.split is None:
            w = np.concatenate([p.operands[1].array for p in self.products], axis=1)
            made = make("MatMul", x, const(w), name=self.products[0].name)
            if self.results[0] is not self.products[0]:
                biases = [next(i for i in r.operands if i.is_constant) for r in self.results]
                made = make("Add", made, const(np.concatenate([b.array for b in biases])))
            sizes = int64s(p.type.dims[-1] for p in self.products)
            self.split = make("Split", made, sizes, axis=-1)
        return make("item", self.split, name=self.results[index].name, index=index)


@graph_pass
class FuseProducts:
    """MatMul(x, a), MatMul(x, b) -> Split(MatMul(x, [a b]))."""

    default = False

    def __call__(self, graph: Graph) -> Graph:
        """Every group of products that read the same value."""
        pieces = {r: (g, i) for g in _groups(graph) for i, r in enumerate(g.results)}
        if not pieces:
            return graph
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            if node in pieces:
                group, index = pieces[node]
                new[node] = group.piece(index, new[group.products[0].operands[0]])
            else:
                new[node] = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        return graph.with_outputs(new[o] for o in graph.outputs)


def _groups(graph: Graph) -> list[Group]:
    """Products with constant matrices, by what they read and by whether a bias follows."""
    biases = _biases(graph)
    groups: dict[tuple[Node, bool], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "MatMul" and node.operands[1].is_constant and node.type.static:
            x, w = node.operands
            if w.type.rank == 2 and x.type.rank > 1:
                groups[x, node in biases].append(node)
    return [Group(p, [biases.get(n, n) for n in p]) for p in groups.values() if len(p) > 1]


def _biases(graph: Graph) -> dict[Node, Node]:
    """MatMul -> the Add of a constant [N] that alone reads it."""
    found = {}
    for node in graph.nodes:
        if node.op == "Add":
            for product, bias in (node.operands, node.operands[::-1]):
                alone = product.op == "MatMul" and graph.readers[product] == 1
                if alone and bias.is_constant and bias.shape == product.shape[-1:]:
                    found[product] = node
    return found
