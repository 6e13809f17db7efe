"""Constant folding: compute at compile time what depends on constants and shapes only.

op(constant, ...)  ->  constant          Shape(x)  ->  constant, if x's shape is known
op(empty, ...)     ->  constant          op(x)     ->  constant, if it has no elements

A hostile Expand, Tile, Einsum or ConstantOfShape can exhaust neither memory nor time: a result has
at most `max_numbers` elements; all results together have at most `total_bytes` and cost at most
`total_work` (ops/work.py); each limit is raised by `growth` times the model's own size. Anything
beyond is computed at run time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, substitute
from qcompiler.ops import meaning
from qcompiler.ops.work import work
from qcompiler.rewrite import Explain, graph_pass

KEPT = frozenset(
    {
        "DequantizeLinear",  # the weights of a quantized model
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
    }
)


@graph_pass
class FoldConstants:
    """op(constant, ...) -> constant, within a budget of bytes."""

    max_numbers: int = 1 << 27
    total_bytes: int = 1 << 30
    total_work: int = 1 << 32
    growth: float = 4.0
    explain: Explain | None = None

    def __call__(self, graph: Graph) -> Graph:
        """Inputs first, so a whole chain of constants is folded in one walk."""
        held = [n.type for n in graph.nodes if n.is_constant]
        return substitute(graph, _Folding(self, held).change)


class _Folding:
    """One walk: the remaining budget, and the outputs of multi-output nodes."""

    def __init__(self, options: FoldConstants, held: Sequence[Type]) -> None:
        self.options = options
        numbers = int(options.growth * sum(t.size for t in held))
        self.numbers = max(options.max_numbers, numbers)
        self.bytes = options.total_bytes + int(options.growth * sum(t.bytes for t in held))
        self.work = float(options.total_work + 16 * numbers)
        self.outputs: dict[Node, tuple[Array, ...] | None] = {}

    def change(self, node: Node) -> Node:
        if node.op == "item":
            outputs = self.evaluated(node.operands[0])
            return node if outputs is None else _constant(outputs[node.int("index")], node)
        if len(node.types) > 1 or node.op in ("input", "constant"):
            return node
        outputs = self.evaluated(node)
        return node if outputs is None else _constant(outputs[0], node)

    def evaluated(self, node: Node) -> tuple[Array, ...] | None:
        """The outputs of a node that depends on constants only, within the budget."""
        if node.op in ("Shape", "Size"):
            source = node.operands[0].type
            return (
                meaning(node, (np.broadcast_to(np.False_, source.dims),)) if source.static else None
            )
        if all(map(_nothing, node.types)):
            return tuple(np.zeros(t.dims, numpy_dtype(t.dtype)) for t in node.types)
        known = all(i.is_constant or all(map(_nothing, i.types)) for i in node.operands)
        if node.op in KEPT or not known or not node.operands:
            return None
        if node not in self.outputs:
            self.outputs[node] = self.within_budget(node)
        return self.outputs[node]

    def within_budget(self, node: Node) -> tuple[Array, ...] | None:
        if all(t.static for t in node.types):
            numbers, size = sum(t.size for t in node.types), sum(t.bytes for t in node.types)
            needed = work(node)
        else:  # such as NonZero: at most its input's size, with an index per axis
            numbers = needed = sum(i.type.size for i in node.operands) * 8
            size = numbers * 8
        if numbers > self.numbers or size > self.bytes or needed > self.work:
            self.skip(node, f"{size} bytes in {needed:.0f} steps exceed the folding budget")
            return None
        self.bytes -= size
        self.work -= needed
        return meaning(node, tuple(None if i is None else _array(i) for i in node.inputs))

    def skip(self, node: Node, reason: str) -> None:
        if self.options.explain is not None:
            self.options.explain("fold_constants", node, reason)


def _nothing(type: Type) -> bool:
    """Is it known to be empty, and thus fully known?"""
    return type.static and type.size == 0


def _array(node: Node) -> Array:
    if node.is_constant:
        return node.array
    return np.zeros(node.type.dims, numpy_dtype(node.dtype))


def _constant(array: Array, node: Node) -> Node:
    """A result as a constant with the node's name, which does not keep a larger array alive."""
    return constant(np.array(array, order="C"), node.name)
