"""What the prune passes share: selection of products, notes and schedules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qcompiler.ir import Graph, Node
from qcompiler.ops.kinds import PRODUCTS
from qcompiler.rewrite.mentions import named


def asked(graph: Graph, include: Sequence[str], exclude: Sequence[str]) -> Iterator[Node]:
    """Products selected by include and exclude: operator types, names, or expressions."""
    for node in graph.nodes:
        fits = node.op in PRODUCTS and not named(node, exclude)
        if fits and (not include or named(node, include)):
            yield node


def noted(graph: Graph, key: str, products: Iterable[Node], how: str) -> Graph:
    """The graph with a note of what was done."""
    return graph.note(**{key: f"{how}: {len(list(products))} products"})


def shares(steps: int) -> list[float]:
    """Number of steps -> the fraction of the final sparsity after each: large steps first, small
    ones last (the cubic schedule of Zhu & Gupta, "To prune, or not to prune: exploring the efficacy
    of pruning for model compression", 2017).
    """
    return [1 - (1 - i / steps) ** 3 for i in range(1, steps + 1)]
