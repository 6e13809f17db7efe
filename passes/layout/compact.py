"""Keep convolution weights untransformed, for small files.

conv(x, w)  ->  conv(x, w, compact=1)

Kernels may store transformed weights where that is faster; transformed 3x3 filters take up to four
times the bytes, and lose their zeros.
"""

from __future__ import annotations

from typing import ClassVar

from qcompiler.ir import Graph, Node, substitute
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.matching import rebuilt


@graph_pass
class LayoutCompact:
    """Mark every convolution; runs if a small file is requested."""

    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The marked graph."""
        return substitute(graph, _marked)


def _marked(node: Node) -> Node:
    if node.op != "conv" or node.int("compact"):
        return node
    return rebuilt(node, compact=1)
