"""Single products in bfloat16, among others in int8 or float32, as named by a note of the graph.

quantize_static requests them by a note because a graph with QuantizeLinear and DequantizeLinear can
be written as ONNX, one with bfloat16 products cannot.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar

from qcompiler.passes.quantize.common import BFLOAT16_NOTE, noted
from qcompiler.passes.quantize.half import QuantizeHalf

from qcompiler.ir import Graph
from qcompiler.ops.kinds import MEASURED
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.mentions import exactly


@graph_pass
class IntegerBfloat16:
    """The products named by the note -> in bfloat16."""

    explain: Explain | None = None
    default: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> Graph:
        """The graph with these products in bfloat16; itself if none is left."""
        names = frozenset(json.loads(graph.notes.get(BFLOAT16_NOTE, "[]")))
        todo = [n.name for n in graph.nodes if n.op in MEASURED and n.name in names]
        if not todo:
            return graph
        plain = replace(graph, notes={k: v for k, v in graph.notes.items() if k != "quantization"})
        half = QuantizeHalf(include=exactly(todo), explain=self.explain)
        if not any(half.operands(n) for n in graph.nodes):
            return graph
        made = half(plain)
        left = {n.name for n in made.nodes if n.op in MEASURED}
        lowered: Graph = noted(replace(made, notes=dict(graph.notes)), names - left)
        return lowered
