"""Half precision: weights and stored activations in 16 bits, sums in 32 bits.

Conv(x, w, b)  ->  conv(Cast(x), Cast(w)) + b      Casts to 16 bits, products and sums in float32
MatMul(a, b)   ->  matmul(Cast(a), Cast(b))
Attention(...) ->  attention(Cast(q), Cast(k), Cast(v), mask)           bfloat16 only

Operands of products are stored in 16 bits once, by their producer. Data movement works on the 16
bits; all other readers widen. Softmax, normalisations and reductions compute in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

import numpy as np
from qcompiler.passes.layout.conv import channels_first, channels_last
from qcompiler.passes.layout.matmul import matrix

from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, constant
from qcompiler.ops import OPERATORS, is_elementwise, make
from qcompiler.ops.kinds import MOVES, SMOOTH
from qcompiler.quantization.demand import Demand, propagated, unstored
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.matching import channel_shape, input_at, rebuilt, reshape, to_dtype
from qcompiler.rewrite.mentions import named

# fmt: off
FLOAT_INSIDE = frozenset({
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization",
    "Softmax",
})
# fmt: on
"""Operators that read and write 16 bits and compute in float32."""

LARGEST = {"bfloat16": 3.38e38, "float16": 65504.0}
LEAST = {"bfloat16": 2.0**-118, "float16": 2.0**-16}
"""The largest of some weights has at least as many bits as bfloat16 has."""
LIMITS = frozenset({"Clip", "Max", "Min"})
"""Operators whose constants only limit what is computed."""


@graph_pass
class QuantizeHalf:
    """Conv and MatMul in bfloat16 or float16, with float32 sums.

    float16 overflows above 65504: larger activations become infinite. What constants make larger
    than the dtype holds, such as masks of -1e9, stays in float32. include, exclude: as in
    quantize_static.
    """

    dtype: str = "bfloat16"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The graph with 16-bit values in memory."""
        if self.dtype not in LARGEST:
            raise Error(f"half precision dtype {self.dtype!r}", hint="bfloat16 or float16")
        if "quantization" in graph.notes:
            return graph
        large = self.large(graph)
        products = {n: read for n in graph.nodes if (read := self.operands(n, large))}
        demand = propagated(graph, products, lambda n: n not in large and self.passes(n))
        return _Halves(graph, demand, self.dtype, large).run().note(quantization=self.dtype)

    def large(self, graph: Graph) -> frozenset[Node]:
        """Values that constants may have made too large for 16 bits, and what is made of these."""
        found: set[Node] = set()
        for node in graph.nodes:
            if node.is_constant:
                if self.is_large(node):
                    found.add(node)
            elif node.types[0].dtype == "float32" and found.intersection(_carried(node)):
                found.add(node)
        return frozenset(found)

    def is_large(self, node: Node) -> bool:
        """Is a number of a constant so large that a sum with it may not fit? Infinity does."""
        if node.dtype != "float32":
            return False
        sizes = np.abs(node.array)
        return bool((np.isfinite(sizes) & (sizes > LARGEST[self.dtype] / 2)).any())

    def operands(self, node: Node, large: Collection[Node] = ()) -> tuple[Node, ...]:
        """The activations of a product that can be computed in 16 bits; () for all other nodes.
        `large` are values that do not fit.
        """
        if node.op == "Attention":
            fits = self.attends(node) and not any(i in large for i in node.operands[:3])
            return node.operands[:3] if fits else ()
        if node.op not in ("Conv", "MatMul") or node.dtype != "float32" or self.leaves(node):
            return ()
        read = node.operands[:2]
        weights = [i for i in read if i.is_constant]
        if not all(i.type.static for i in read):
            reason = "its shapes are unknown"
        elif any(not self.holds(w) for w in weights):
            reason = f"its weights do not fit into {self.dtype}"
        elif any(i in large for i in read if not i.is_constant):
            reason = f"constants make its inputs too large for {self.dtype}"
        else:
            return tuple(i for i in read if not i.is_constant)
        if self.explain is not None:
            self.explain("quantize_half", node, reason)
        return ()

    def holds(self, weights: Node) -> bool:
        """Are weights neither too large nor all too small?"""
        size = np.abs(weights.array).max(initial=0)
        return bool(size == 0 or LEAST[self.dtype] <= size <= LARGEST[self.dtype])

    def attends(self, node: Node) -> bool:
        """Is attention computed in 16 bits?"""
        plain = len(node.types) == 1 and not any(node.inputs[4:])
        windows = max(node.int("left_window_size"), node.int("right_window_size"))
        fits = plain and windows < 0 and node.dtype == "float32" and self.dtype == "bfloat16"
        return fits and all(i.type.static for i in node.operands) and not self.leaves(node)

    def leaves(self, node: Node) -> bool:
        """Do include and exclude leave a product in float32?"""
        missing = bool(self.include) and not named(node, self.include)
        return missing or named(node, self.exclude)

    def passes(self, node: Node) -> bool:
        """Can the demand for 16 bits propagate through an operator?"""
        fits = node.op in MOVES or node.op in SMOOTH or node.op in FLOAT_INSIDE
        return fits and not named(node, self.exclude)


class _Halves:
    """The rebuilt graph: each value in float32, and in 16 bits where it is stored so."""

    def __init__(
        self, graph: Graph, demand: Demand, dtype: str, large: frozenset[Node] = frozenset()
    ) -> None:
        self.graph = graph
        self.demand = demand
        self.dtype = dtype
        self.stored = demand.values - unstored(graph) - large
        self.full: dict[Node, Node] = {}
        self.half: dict[Node, Node] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if not self.moved(node):
                self.made(node)
        return self.graph.with_outputs(self.full[o] for o in self.graph.outputs)

    def moved(self, node: Node) -> bool:
        """Rebuild a move of 16-bit data; False if the node is not one."""
        read = self.demand.of(node)
        if node.op not in MOVES or not read or not all(i in self.half for i in read):
            return False
        inputs = [
            self.half[i] if i in read else self.lowered(node, i) if i is not None else None
            for i in node.inputs
        ]
        made = rebuilt(node, inputs)
        self.half[node] = made
        self.full[node] = made if len(made.types) > 1 else make("Cast", made, to="float32")
        return True

    def lowered(self, node: Node, operand: Node) -> Node:
        """Another operand of a move: constants it concatenates or pads with become 16 bits too."""
        floats = operand.is_constant and operand.dtype == "float32"
        return (
            to_dtype(operand, self.dtype) if floats and node.op != "Resize" else self.full[operand]
        )

    def made(self, node: Node) -> None:
        """Rebuild any other node, on float32 values, or 16-bit ones if it is a product."""
        if node.op == "Attention" and node in self.demand.products:
            self.half[node] = self.attention(node)
            self.full[node] = make("Cast", self.half[node], to="float32")
            return
        if node in self.demand.products:
            made = self.product(node)
        elif node.op == "item" and node.operands[0] in self.half:
            piece = rebuilt(node, (self.half[node.operands[0]],))  # one not demanded in 16 bits
            made = make("Cast", piece, to="float32")
        else:
            made = node.with_inputs(None if i is None else self.full[i] for i in node.inputs)
        if node in self.stored and made.types[0].dtype == "float32" and len(made.types) == 1:
            self.half[node] = make("Cast", made, to=self.dtype, name=made.name)
            made = make("Cast", self.half[node], to="float32")
        self.full[node] = made

    def attention(self, node: Node) -> Node:
        """Attention of 16-bit queries, keys and values; the mask stays float."""
        few = [self.half.get(i) or to_dtype(self.full[i], self.dtype) for i in node.operands[:3]]
        mask = [None if i is None else self.full[i] for i in node.inputs[3:4]]
        attrs = {k: v for k, v in node.attrs.items() if k in OPERATORS["attention"].defaults}
        return make("attention", *few, *mask, name=node.name, **attrs)

    def product(self, node: Node) -> Node:
        """Conv or MatMul -> conv with its bias, or matmul."""
        a, b = (self.half.get(i) or to_dtype(self.full[i], self.dtype) for i in node.operands[:2])
        if node.op == "MatMul":
            sums = make("matmul", matrix(a, row=True), matrix(b, row=False), name=node.name)
            return reshape(sums, node.type.dims)
        rank = node.type.rank
        made: Node = channels_first(channels_last(node, a, b), rank)
        bias = input_at(node, 2)
        if bias is None:
            return made
        return make("Add", made, spread(self.full[bias], rank), name=node.name)


def _carried(node: Node) -> Sequence[Node]:
    """The operands whose size a result may have: not limits, and of a convolution its bias."""
    if node.op in LIMITS:
        return [i for i in node.operands if not i.is_constant]
    if is_elementwise(node) or node.op in MOVES:
        return node.operands
    return node.operands[2:] if node.op == "Conv" else ()


def spread(bias: Node, rank: int) -> Node:
    """[C] -> [C,1,1], to add to channels first."""
    if bias.is_constant:
        return constant(bias.array.reshape(channel_shape(rank, 1)), bias.name)
    return reshape(bias, (bias.type.size, *[1] * (rank - 2)))
