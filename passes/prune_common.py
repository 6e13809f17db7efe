"""What the passes that prune have in common: whom they are let, and what they say afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qcompiler.ir import Graph, Node
from qcompiler.mentions import named
from qcompiler.ops.kinds import PRODUCTS


def asked(graph: Graph, include: Sequence[str], exclude: Sequence[str]) -> Iterator[Node]:
    """Products that include and exclude let be pruned: operator types, names, or expressions."""
    for node in graph.nodes:
        fits = node.op in PRODUCTS and not named(node, exclude)
        if fits and (not include or named(node, include)):
            yield node


def told(graph: Graph, key: str, products: Iterable[Node], how: str) -> Graph:
    """The graph, with a note of what was done."""
    return graph.note(**{key: f"{how}: {len(list(products))} products"})


def shares(steps: int) -> list[float]:
    """So many steps -> the part of the final sparsity after each: much at first, when there is much
    to spare, and little at the end (the cubic schedule of Zhu & Gupta, "To prune, or not to prune:
    exploring the efficacy of pruning for model compression", 2017).
    """
    return [1 - (1 - i / steps) ** 3 for i in range(1, steps + 1)]
