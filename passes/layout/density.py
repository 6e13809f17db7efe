"""Annotate products with the fraction of nonzero blocks in their constant weights.

conv(x, w)    ->  conv(x, w, density)
matmul(x, w)  ->  matmul(x, w, density)

A block is the device's unit of multiplication: one vector of outputs by the k elements of one
multiply-accumulate. The result stays the same; kernels that skip zero blocks apply if it pays.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from qcompiler.hardware.isa import Device, Isa
from qcompiler.hardware.products import MacKey
from qcompiler.ir import Array, Graph, Node, substitute
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.matching import rebuilt

STEPS = 16
"""Densities are rounded up to this many levels, so that similar layers share code."""

KEYS: dict[str, MacKey] = {"float32": ("f32", "f32", "f32"), "int8": ("u8", "i8", "i32")}


@graph_pass
class LayoutDensity:
    """Annotate products of at least `elements` constant weights with their density of blocks."""

    elements: int = 4096
    device: Device | None = None

    def __call__(self, graph: Graph) -> Graph:
        """The graph annotated with densities below 1; itself if there are none."""
        if self.device is None:
            return graph
        isa = self.device.isa
        return substitute(graph, lambda node: self.marked(node, isa))

    def marked(self, node: Node, isa: Isa) -> Node:
        """A sparse product with its density; anything else unchanged."""
        if node.op not in ("conv", "matmul") or not node.operands[1].is_constant:
            return node
        w = node.operands[1]
        whole = node.attrs.get("group", 1) == 1 and w.type.rank > 1
        if node.float("density") < 1 or not whole or w.type.size < self.elements:
            return node
        transposed = node.op == "matmul" and node.int("transpose_b")
        array = np.swapaxes(w.array, -1, -2) if transposed else w.array
        density = ceil(density_of(array, isa) * STEPS) / STEPS
        return node if density >= 1 else rebuilt(node, density=max(density, 1 / STEPS))


def density_of(weights: Array, isa: Isa) -> float:
    """Weights [..., K, N] -> the fraction of nonzero blocks."""
    mac = isa.vector(KEYS.get(weights.dtype.name, KEYS["float32"]))
    lanes, k = (mac.lanes, mac.k) if mac else (1, 1)
    rows = (weights != 0).reshape(-1, weights.shape[-1])
    rows = np.pad(rows, ((0, -rows.shape[0] % k), (0, -rows.shape[1] % lanes)))
    blocks = rows.reshape(rows.shape[0] // k, k, rows.shape[1] // lanes, lanes)
    return float(blocks.any((1, 3)).mean())
