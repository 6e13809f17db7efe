"""Convolutions keep their weights in no larger form than they have: for small files.

conv(x, w)  ->  conv(x, w, compact=1)

Kernels may keep weights transformed where that is faster; transformed 3x3 filters take up to four
times the bytes, and their zeros are filled.
"""

from __future__ import annotations

from typing import ClassVar

from qcompiler.ir import Graph, Node, substitute
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.matching import rebuilt


@graph_pass
class LayoutCompact:
    """Mark every convolution; runs where a small file was asked for."""

    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The graph with marks."""
        return substitute(graph, _marked)


def _marked(node: Node) -> Node:
    if node.op != "conv" or node.int("compact"):
        return node
    return rebuilt(node, compact=1)
