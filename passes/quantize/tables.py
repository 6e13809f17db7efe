"""Embedding tables in int8, with a scale per row.

Gather(table, index)  ->  dequantize(Gather(int8 table, index), Gather(scales, index))

Readers of the rows dequantize them; the table takes a quarter of its bytes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcompiler.ir import Graph, Node, constant, substitute
from qcompiler.ops import make
from qcompiler.quantization.scales import along, round_to, unfit, weight_scales
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.mentions import named

_FEW = 2
"""Shortest rows worth quantizing; excludes the scales themselves."""


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
        """Quantize every constant whose whole rows are gathered."""
        return substitute(graph, self.change)

    def change(self, node: Node) -> Node:
        """One Gather -> a Gather of bytes."""
        if node.op != "Gather" or node.dtype != "float32" or named(node, self.exclude):
            return node
        table, index = node.operands
        if not table.is_constant or table.type.rank != 2 or table.type.bytes < self.least:
            return node
        if table.type.dims[1] < _FEW:
            return self.skip(node, "a scale takes as much memory as a row")
        if node.int("axis") % 2:
            return self.skip(node, "columns are gathered, not rows")
        if reason := unfit(table.array):
            return self.skip(node, reason)
        scales = along(weight_scales(table.array, 0), 2, 0)
        rows = constant(round_to(table.array, scales, "int8"), table.name)
        picked = [make("Gather", x, index, name=node.name) for x in (rows, constant(scales))]
        return make("dequantize", *picked, constant(np.array(0, np.int32)), name=node.name)

    def skip(self, node: Node, reason: str) -> Node:
        """The unchanged node; reports why."""
        if self.explain is not None:
            self.explain("quantize_tables", node, reason)
        return node
