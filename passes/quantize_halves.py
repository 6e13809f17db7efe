"""Single products in bfloat16, between others in int8 or float32: those that a note of the graph
names.

The note is how quantize_static says so: a graph with QuantizeLinear and DequantizeLinear can be
written as ONNX, one with products of bfloat16 cannot.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from qcompiler.passes.quantize_half import QuantizeHalf

from qcompiler.ir import Graph
from qcompiler.mentions import exactly
from qcompiler.ops.kinds import MEASURED
from qcompiler.rewrite import Explain, graph_pass

_NOTE = "bfloat16_products"


def noted(graph: Graph, names: Iterable[str]) -> Graph:
    """The graph with a note that these products are to be made in bfloat16."""
    wanted = sorted(set(names))
    return graph.note(**{_NOTE: json.dumps(wanted)}) if wanted else graph


@graph_pass
class QuantizeHalves:
    """The products that a note names -> in bfloat16."""

    explain: Explain | None = None
    default: ClassVar[bool] = True

    def __call__(self, graph: Graph) -> Graph:
        """The graph with these products in bfloat16; itself where none is left to be made so."""
        names = frozenset(json.loads(graph.notes.get(_NOTE, "[]")))
        todo = [n.name for n in graph.nodes if n.op in MEASURED and n.name in names]
        if not todo:
            return graph
        plain = replace(graph, notes={k: v for k, v in graph.notes.items() if k != "quantization"})
        half = QuantizeHalf(include=exactly(todo), explain=self.explain)
        if not any(half.operands(n) for n in graph.nodes):
            return graph
        made = half(plain)
        left = {n.name for n in made.nodes if n.op in MEASURED}
        return noted(replace(made, notes=dict(graph.notes)), names - left)
