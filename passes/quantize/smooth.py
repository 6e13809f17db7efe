"""Move outliers of an activation's channels into the weights, which tolerate them better.

MatMul(LayerNormalization(x, g, b), w)  ->  MatMul(LayerNormalization(x, g / s, b / s), s * w)

with s = max |x|^alpha / max |w|^(1 - alpha), per channel, with the first maximum from calibration
(Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2022, equation 4). Likewise RMSNormalization. If the normalised value has other readers too
(a residual sum), only the products read a divided copy:

MatMul(n, w)  ->  MatMul(n * (1 / s), s * w)

All products that read one value share its s. The result of the graph stays the same.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from qcompiler.data.calibrate import Calibration, Statistics, value_names
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, constant
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.matching import exact, input_at, rebuilt
from qcompiler.rewrite.mentions import named

NORMS = ("LayerNormalization", "RMSNormalization")
LEAST = 1e-5


@graph_pass
class QuantizeSmooth:
    """SmoothQuant for products with constant weights that read a normalised value.

    alpha: the part of the outliers moved to the weights, 0 to 1. exclude: as in quantize_static.
    """

    alpha: float = 0.5
    exclude: tuple[str, ...] = ()
    statistics: Statistics | None = None
    data: Calibration | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False
    order: ClassVar[int] = -1

    def __call__(self, graph: Graph) -> Graph:
        """The graph with smoothed activations; itself if that was done, or nothing matches."""
        if "smoothed" in graph.notes or "quantization" in graph.notes:
            return graph
        if not 0 <= self.alpha <= 1:
            raise Error(f"alpha {self.alpha}", where="quantize_smooth", hint="0 to 1")
        products = self.products(graph)
        if not products:
            return graph
        if self.statistics is None and self.data is None:
            raise Error("smoothing needs calibration data", hint="give --calibration")
        found = self.statistics or (self.data.statistics(graph) if self.data else None)
        assert found is not None
        names = value_names(graph)
        for n in [n for n in products if by_two_axes(found, names[n])]:
            del products[n]
        scales = {n: self.scale(found, names[n], read) for n, read in products.items()}
        return _rebuild(graph, products, scales).note(smoothed=f"alpha {self.alpha}")

    def products(self, graph: Graph) -> dict[Node, list[Node]]:
        """Normalised value -> the products with constant weights that read it."""
        found: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            if node.op != "MatMul" or node.dtype != "float32" or named(node, self.exclude):
                continue
            x, w = node.operands
            if x.op in NORMS and len(x.types) == 1 and w.is_constant and w.type.rank == 2:
                found.setdefault(x, []).append(node)
        return found

    def scale(self, statistics: Statistics, name: str, products: list[Node]) -> Numbers:
        """s, [K]; 1 for channels that were always 0, or have no weights."""
        seen = statistics.channels(name)
        if seen is None:
            raise Error("it was not seen in calibration", where=name)
        largest = np.maximum(-seen.lows, seen.highs)
        weights = np.max([np.abs(exact(p.operands[1])).max(1) for p in products], 0)
        alive = (largest > 0) & (weights > 0)
        s = np.where(alive, largest, 1) ** self.alpha / np.where(alive, weights, 1) ** (
            1 - self.alpha
        )
        return np.where(alive, np.maximum(s, LEAST), 1.0)


def by_two_axes(statistics: Statistics, name: str) -> bool:
    """Was a value seen, but not by channel, because products sum over different axes of it?"""
    return name in statistics.values and statistics.channels(name) is None


def _rebuild(graph: Graph, products: dict[Node, list[Node]], scales: dict[Node, Numbers]) -> Graph:
    """The graph with norms, or the products' copies of them, divided and weights multiplied."""
    alone = {n for n, read in products.items() if graph.readers[n] == len(read) and _constants(n)}
    reads = {p: n for n, found in products.items() for p in found}
    new: dict[Node, Node] = {}
    divided: dict[Node, Node] = {}
    for node in graph.nodes:
        made = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if node in alone:
            made = _scaled_norm(made, scales[node])
        elif node in reads:
            norm = reads[node]
            s = scales[norm]
            if norm not in alone and norm not in divided:
                factor = constant((1 / s).astype(np.float32))
                divided[norm] = make("Mul", new[norm], factor, name=f"{norm.name}/smooth")
            weights = node.operands[1]
            more = constant((exact(weights) * s[:, None]).astype(np.float32), weights.name)
            made = rebuilt(made, (divided.get(norm, new[norm]), more))
        new[node] = made
    return graph.with_outputs(new[o] for o in graph.outputs)


def _constants(norm: Node) -> bool:
    """Are a norm's scale and bias constants over its last axis, the one products sum over?"""
    rank = norm.type.rank
    last = norm.int("axis") in (-1, rank - 1)
    return last and all(i.is_constant for i in norm.operands[1:])


def _scaled_norm(norm: Node, s: Numbers) -> Node:
    """LayerNormalization(x, g, b) -> LayerNormalization(x, g / s, b / s)."""
    inputs: list[Node | None] = [norm.operands[0]]
    for index in range(1, len(norm.inputs)):
        given = input_at(norm, index)
        inputs.append(None if given is None else constant((exact(given) / s).astype(np.float32)))
    return rebuilt(norm, inputs)
