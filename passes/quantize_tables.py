"""Tables that rows are picked from (embeddings) are kept in int8, a scale for each row.

Gather(table, index)  ->  dequantize(Gather(int8 table, index), Gather(scales, index))

Whoever reads the rows dequantizes them; the table takes a quarter of its bytes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcompiler.ir import Graph, Node, constant, substitute
from qcompiler.mentions import named
from qcompiler.ops import make
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.scales import along, round_to, weight_scales

_FEW = 2
"""Rows of fewer numbers gain nothing; among them are the scales themselves."""


@graph_pass
class QuantizeTables:
    """Gather(table, index) -> dequantize(Gather(int8 table, index), Gather(scales, index)).

    Tables of `least` bytes or more; exclude: as in quantize_static.
    """

    least: int = 1 << 16
    exclude: tuple[str, ...] = ()
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """Every Gather of whole rows of a constant."""
        return substitute(graph, self.change)

    def change(self, node: Node) -> Node:
        """One Gather -> the same of bytes."""
        if node.op != "Gather" or node.dtype != "float32" or named(node, self.exclude):
            return node
        table, index = node.operands
        if not table.is_constant or table.type.rank != 2 or table.type.bytes < self.least:
            return node
        if table.type.dims[1] < _FEW:
            return self.skip(node, "a scale takes as much room as a row")
        if node.int("axis") % 2:
            return self.skip(node, "columns are picked, not rows")
        if not np.isfinite(table.array).all():
            return self.skip(node, "the table has numbers that are not finite")
        scales = along(weight_scales(table.array, 0), 2, 0)
        rows = constant(round_to(table.array, scales, "int8"), table.name)
        picked = [make("Gather", x, index, name=node.name) for x in (rows, constant(scales))]
        return make("dequantize", *picked, constant(np.array(0, np.int32)), name=node.name)

    def skip(self, node: Node, reason: str) -> Node:
        """The node as it is, and why."""
        if self.explain is not None:
            self.explain("quantize_tables", node, reason)
        return node
