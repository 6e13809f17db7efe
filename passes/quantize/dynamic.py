"""Dynamic int8: rows of activations are quantized at run time, scaled by their maximum magnitude.

MatMul(x, w)  ->  Cast(MatMulInteger(q, w8)) * r * t

where r = max |x| / 127 per row, q = quantize(x, 1 / r) in int8, and t is per column. No calibration
data is needed, and an outlier affects its own row only.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from qcompiler.passes.quantize.common import weights_right

from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node, constant
from qcompiler.ops import make
from qcompiler.quantization.scales import (
    SMALLEST,
    along,
    round_to,
    unfit,
    weight_bits,
    weight_scales,
)
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.matching import int64s
from qcompiler.rewrite.mentions import named


@graph_pass
class QuantizeDynamic:
    """MatMul with constant weights on int8, activations quantized row by row at run time.

    Options as in quantize_static.
    """

    weight_bits: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    device: Device | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """Quantize the products; those that read the same value share its bytes."""
        if "quantization" in graph.notes:
            return graph
        bits = weight_bits(self.weight_bits, self.device)
        graph, _ = weights_right(graph, self.asks)
        rows: dict[Node, tuple[Node, Node]] = {}
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
            new[node] = moved
            if node.op == "MatMul" and self.fits(node):
                x = moved.operands[0]
                if x not in rows:
                    rows[x] = quantized_rows(x)
                new[node] = product(moved, *rows[x], bits)
        made = graph.with_outputs(new[o] for o in graph.outputs)
        return made.note(quantization=f"dynamic int8 rows x int{bits}")

    def asks(self, node: Node) -> bool:
        """Do include and exclude allow a product to be quantized?"""
        return not named(node, self.exclude) and (not self.include or named(node, self.include))

    def fits(self, node: Node) -> bool:
        """Can a product be made integer? Reports to --explain if not."""
        x, w = node.operands
        if not self.asks(node):
            return False
        reason = ""
        if not w.is_constant or x.is_constant:
            reason = "not an activation times constant weights"
        elif x.dtype != "float32" or min(x.type.rank, w.type.rank) < 2:
            reason = f"a product of {x.type} and {w.type}"
        else:
            reason = unfit(w.array)
        if reason and self.explain is not None:
            self.explain("quantize_dynamic", node, reason)
        return not reason


def quantized_rows(x: Node) -> tuple[Node, Node]:
    """x[...,M,K] -> its int8 rows, and the scale of each row [...,M,1]."""
    largest = make("ReduceMax", make("Abs", x), int64s((-1,)), keepdims=1)
    # Avoid dividing rows of (nearly) zeros by zero.
    bounded = make("Max", largest, constant(np.array(127 * SMALLEST, np.float32)))
    step = make("Mul", bounded, constant(np.array(1 / 127, np.float32)), name=f"{x.name}/step")
    factor = make("Div", constant(np.array(127, np.float32)), bounded)
    zero = constant(np.zeros((), np.int32))
    return make("quantize", x, factor, zero, dtype="int8", name=f"{x.name}/quantize"), step


def product(matmul: Node, rows: Node, step: Node, bits: int) -> Node:
    """Cast(MatMulInteger(rows, w8)) * step * t."""
    weights = matmul.operands[1]
    rank = weights.type.rank
    scales = weight_scales(weights.array, rank - 1, bits)
    whole = constant(round_to(weights.array, along(scales, rank, -1), "int8", bits), weights.name)
    sums = make("MatMulInteger", rows, whole, None, None, name=matmul.name)
    scaled = make("Mul", make("Cast", sums, to="float32"), step)
    return make("Mul", scaled, constant(scales), name=matmul.name)
