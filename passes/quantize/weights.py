"""Weight-only quantization; activations stay float32. It needs no calibration data.

MatMul(x, w)   ->  MatMul(x, DequantizeLinear(q, s, z))          integers: a scale per block or
column Conv(x, w, b)  ->  Conv(x, DequantizeLinear(q, s), b)            integers: a scale per
channel MatMul(x, w)   ->  Mul(MatMul(x, v), s)                          other numbers Conv(x, w, b)
->  Add(Mul(Conv(x, v), s), b)

Integers are decoded by the product's kernel (matmul_narrow), or, in convolutions, when the artifact
is opened; the other numbers v, with few distinct values, when the artifact is opened. Useful where
memory is the limit: for file sizes, and in products of few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from qcompiler.passes.quantize.common import scaled, weights_right

from qcompiler.data.calibrate import Calibration
from qcompiler.data.columns import by_rows, rows, takes, unrows
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, constant, numpy_dtype
from qcompiler.ops import make
from qcompiler.ops.kinds import PRODUCTS
from qcompiler.ops.registry import Numbers
from qcompiler.quantization.codebooks import FLOATS, TABLES, Table, as_float, table_of
from qcompiler.quantization.reconstruct import Floats, Grid, Moments
from qcompiler.quantization.rounding import Scheme, bits_of, grid_of, importance, round_rows, seen
from qcompiler.quantization.scales import unfit
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.matching import input_at, rebuilt
from qcompiler.rewrite.mentions import named

SCHEMES = ("integer", *TABLES, *FLOATS)


@graph_pass
class QuantizeWeights:
    """Products with constant weights in low precision.

    scheme: "integer", "log2", "codebook" (k-means), "binary", "ternary", "float8_e4m3fn",
    "float8_e5m2", "float16" or "bfloat16". bits: 2 to 8, of integers, log2 and codebooks. group:
    number of rows of a matrix that share a scale (32, 64, 128; 0: a whole column); convolutions
    have one per channel. symmetric: no zero points. rounding: "nearest", "gptq" (any scheme but
    floats) or "adaround" (integers). layers, include, exclude: as in quantize_static.
    """

    scheme: str = "integer"
    bits: int = 4
    group: int = 64
    symmetric: bool = False
    rounding: str = "nearest"
    layers: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    data: Calibration | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The graph with quantized weights; itself if it has been quantized before."""
        if "quantization" in graph.notes or "weights" in graph.notes:
            return graph
        self.check()
        graph, _ = weights_right(graph, lambda n: self.asks(n) and n.operands[0].type.rank == 2)
        products = [n for n in graph.nodes if self.wants(n)]
        made: dict[Node, _Small] = {}
        for node, found in seen(graph, products, self.data, self.rounding):
            made[node] = self.small(node, found)
        for node in products:
            if node not in made:
                made[node] = self.small(node, None)
        return _insert(graph, made).note(weights=self.described())

    def check(self) -> None:
        """Raise Error for invalid options."""
        if self.scheme not in SCHEMES:
            raise Error(f"weights {self.scheme!r}", hint=f"one of {', '.join(SCHEMES)}")
        Scheme(bits=self.bits, group=self.group, rounding=self.rounding)
        if self.group < 0:
            raise Error(f"groups of {self.group}", hint="32, 64, 128, or 0 for whole columns")
        if self.rounding == "adaround" and self.scheme != "integer":
            raise Error(f"adaround of {self.scheme} weights", hint="use gptq")
        if self.rounding != "nearest" and self.scheme in FLOATS:
            raise Error(f"{self.rounding} of {self.scheme} weights", hint="use nearest")

    def described(self) -> str:
        """The note for the artifact's manifest."""
        counted = self.scheme in ("integer", "log2", "codebook")
        kind = f"{self.scheme} of {self.bits} bits" if counted else self.scheme
        groups = f", groups of {self.group}" if self.scheme == "integer" and self.group else ""
        return f"{kind}{groups}, {self.rounding}"

    def asks(self, node: Node) -> bool:
        """Do include and exclude allow a product's weights to be quantized?"""
        return not named(node, self.exclude) and (not self.include or named(node, self.include))

    def wants(self, node: Node) -> bool:
        """Should a product's weights be quantized? Reports to --explain if not."""
        if node.op not in PRODUCTS or node.dtype != "float32":
            return False
        if not self.asks(node):
            return False
        reason = ""
        if not node.operands[1].is_constant or node.operands[0].is_constant:
            reason = "not an activation times constant weights"
        elif not node.operands[1].type.bytes:
            reason = "no weights at all"
        elif not by_rows(node):
            reason = "weights of a shape other than [O,C,*K] or [K,N]"
        elif self.rounding != "nearest" and not takes(node):
            reason = "its shapes are unknown"
        else:
            reason = unfit(node.operands[1].array)
        if reason and self.explain is not None:
            self.explain("quantize_weights", node, reason)
        return not reason

    def small(self, node: Node, found: Moments | None) -> _Small:
        """Quantize one product's weights."""
        w = rows(node, node.operands[1].array)
        flat = w.reshape(-1, w.shape[2])
        if self.scheme in FLOATS:
            real, scale = as_float(flat, self.scheme)
            return _Small(real.reshape(w.shape), scale)
        grid = self.grid(node, found)
        q = round_rows(flat, grid, self.rounding, None if found is None else found.second)
        if isinstance(grid, Table):
            return _Small(grid.table[q.astype(int)].reshape(w.shape), grid.scale[:, 0])
        scheme = self.of_integers(node)
        numbers = q.reshape(w.shape)
        return _Small(numbers, grid.scale, grid.zero, scheme.bits, scheme.group, scheme.symmetric)

    def grid(self, node: Node, found: Moments | None = None) -> Grid:
        """The grid a product's rows [O,K] are rounded to."""
        w = rows(node, node.operands[1].array)
        flat = w.reshape(-1, w.shape[2])
        squares = np.ones_like(flat) if found is None else importance(found, w.shape[1])
        if self.scheme in FLOATS:
            raise Error(f"{self.scheme} weights have no uniform grid to train for")
        if self.scheme == "integer":
            return grid_of(flat, self.of_integers(node), squares)
        return table_of(flat, self.scheme, bits_of(node, self.layers) or self.bits, squares)

    def of_integers(self, node: Node) -> Scheme:
        """The integer scheme of a product's weights."""
        inputs = node.operands[1].type.dims[0]
        group = self.group if node.op == "MatMul" and self.group < inputs else 0
        symmetric = self.symmetric or node.op == "Conv"
        return Scheme(bits_of(node, self.layers) or self.bits, group, symmetric, self.rounding)


@dataclass(frozen=True)
class _Small:
    """Weights as rows [G,O/G,K] of numbers, times scale: [O], or for integers (with zero points)
    [O,1], or [O,K] that is constant in each block.
    """

    numbers: Floats
    scale: Floats
    zero: Floats | None = None
    bits: int = 0
    block: int = 0
    symmetric: bool = True


def _insert(graph: Graph, small: dict[Node, _Small]) -> Graph:
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        made = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if node in small:
            found = small[node]
            build = _behind if found.zero is None else _dequantized
            made = build(node, made, found)
        new[node] = made
    return graph.with_outputs(new[o] for o in graph.outputs)


def _behind(node: Node, made: Node, small: _Small) -> Node:
    """A product with the new weights, multiplied by their scales unless all are 1."""
    weights = constant(unrows(node, small.numbers).astype(np.float32), node.operands[1].name)
    if np.all(small.scale == 1):
        return rebuilt(made, (made.inputs[0], weights, *made.inputs[2:]))
    if node.op == "MatMul":
        product = rebuilt(made, (made.inputs[0], weights))
        return make("Mul", product, constant(small.scale.astype(np.float32)), name=node.name)
    conv = rebuilt(made, (made.inputs[0], weights))
    behind: Node = scaled(conv, small.scale, input_at(made, 2))
    return behind


def _dequantized(node: Node, made: Node, small: _Small) -> Node:
    """A product by a DequantizeLinear with a scale per block, column or channel."""
    kind = "int" if small.symmetric else "uint"
    dtype = numpy_dtype(f"{kind}{4 if small.bits <= 4 else 8}")
    q = constant(unrows(node, small.numbers).astype(dtype), node.operands[1].name)
    conv = node.op == "Conv"

    def scales(values: Floats | None) -> Numbers:
        assert values is not None
        per_block = values[:, :: small.block] if small.block else values[:, 0]
        return np.ascontiguousarray(per_block.T)

    scale = constant(scales(small.scale).astype(np.float32))
    zero = None if small.symmetric else constant(scales(small.zero).astype(dtype))
    axis = 0 if conv or small.block else 1
    weights = make("DequantizeLinear", q, scale, zero, axis=axis, block_size=small.block)
    return rebuilt(made, (made.inputs[0], weights, *made.inputs[2:]))
