"""Match the signedness of activations to the device's byte product.

conv(x, w)                    ->  conv(as_unsigned(x), w) - 128 * sum(w)        x int8
conv(x, w)                    ->  conv(as_signed(x), w) + 128 * sum(w)          x uint8
as_unsigned(quantize(x, z))   ->  quantize(x, z + 128)                          and back
dequantize(quantize(x, z))    ->  dequantize(quantize(x, z + 128))  if a product reads the latter
as_unsigned(as_signed(x))     ->  x

The first if the device's best byte product is u8 x i8, the second if it is i8 x i8. Exact products
are preferred, then those with more multiplications; on a tie, signs stay as they are. Likewise for
matmul. Exact: int32 sums wrap around, and padding has the value of the shifted zero point.
"""

from __future__ import annotations

import numpy as np

from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node, substitute
from qcompiler.ops import make
from qcompiler.rewrite import Explain, graph_pass, op, rule
from qcompiler.rewrite.matching import const, int64s, rebuilt

KEYS = {"uint8": ("u8", "i8", "i32"), "int8": ("i8", "i8", "i32")}
OTHER = {"uint8": "int8", "int8": "uint8"}
OPPOSITE = {"uint8": "as_signed", "int8": "as_unsigned"}
SHIFT = {"uint8": -128, "int8": 128}
"""What the conversion adds to a number of this dtype."""


@graph_pass
class LayoutSigns:
    """conv(x int8, w) -> conv(as_unsigned(x), w) - 128 * sum(w), if the device prefers u8."""

    device: Device | None = None
    explain: Explain | None = None

    def __call__(self, graph: Graph) -> Graph:
        """Convert every integer conv and matmul, then the values that they share with others."""
        return _of_one_sign(substitute(graph, self.change))

    def change(self, node: Node) -> Node:
        """An integer product of the wrong signedness -> one of the right signedness, corrected."""
        if node.op not in ("conv", "matmul") or node.dtype != "int32" or self.device is None:
            return node
        x, w = node.operands
        if x.dtype not in KEYS:
            return node
        isa = self.device.isa
        both = (KEYS[x.dtype], KEYS[OTHER[x.dtype]])
        best = isa.best_product(both)
        if best is None or best.key == both[0] or w.dtype != "int8":
            return node
        if node.op == "conv" and not w.is_constant:
            return self.skip(node, "the weights are not constant")
        shift = SHIFT[x.dtype]
        padded = node.op == "conv" and any(node.ints("pads"))
        attrs = {"pad_value": node.int("pad_value") + shift} if padded else {}
        made = rebuilt(node, (make(OPPOSITE[x.dtype], x), w), **attrs)
        return make("Add", made, _correction(node, w, shift))

    def skip(self, node: Node, reason: str) -> Node:
        """The unchanged node; reports why."""
        if self.explain is not None:
            self.explain("layout_signs", node, reason)
        return node


def _correction(node: Node, w: Node, shift: int) -> Node:
    """-shift * the sum of the weights of each output."""
    if node.op == "conv":
        axes = tuple(range(w.type.rank - 1))
    else:
        axes = (w.type.rank - 1 if node.int("transpose_b") else w.type.rank - 2,)
    if w.is_constant:
        keepdims = node.op == "matmul" and w.type.rank > 2
        sums = w.array.sum(axis=axes, dtype=np.int32, keepdims=keepdims)
        if keepdims and node.int("transpose_b"):
            sums = sums.swapaxes(-1, -2)
        return const((-shift * sums).astype(np.int32))
    kept = [d for a, d in enumerate(w.type.dims) if a not in axes]
    sums = make("ReduceSum", make("Cast", w, to="int32"), int64s(axes), keepdims=0)
    row = make("Reshape", sums, int64s((*kept[:-1], 1, kept[-1])))
    return make("Mul", row, const(-shift, "int32"))


@rule(op("as_unsigned|as_signed", op("quantize")))
def layout_quantize_to_other_sign(outer: Node, quantize: Node) -> Node:
    """as_unsigned(quantize(x, m, z)) -> quantize(x, m, z + 128)."""
    return _converted(quantize)


def _converted(quantize: Node) -> Node:
    """A `quantize` to bytes -> the same to bytes of the other signedness."""
    x, multiplier, zero = quantize.operands
    moved = _moved(zero, SHIFT[quantize.dtype])
    return rebuilt(quantize, (x, multiplier, moved), dtype=OTHER[quantize.dtype])


def _moved(zero: Node, shift: int) -> Node:
    """A zero point plus what the conversion adds."""
    if zero.is_constant:
        return const(zero.array.astype(np.int32) + shift)
    return make("Add", zero, const(shift, "int32"))


def _of_one_sign(graph: Graph) -> Graph:
    """A `quantize` that products read converted, and others dequantized (a residual), quantizes to
    the products' signedness itself, so that nothing is converted.
    """
    readers: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        for i in node.operands:
            readers.setdefault(i, []).append(node)
    converted = {
        n
        for n in graph.nodes
        if n.op == "quantize" and n.dtype in OPPOSITE and n not in graph.outputs
        if {"dequantize", OPPOSITE[n.dtype]} == {r.op for r in readers.get(n, ())}
        if all(n not in r.operands[1:] for r in readers[n])
    }
    if not converted:
        return graph
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        first = node.operands[0] if node.operands else None
        made = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if node in converted:
            made = _converted(made)
        elif first in converted and node.op == "dequantize":
            x, scale, zero = made.operands
            made = rebuilt(node, (x, scale, _moved(zero, SHIFT[first.dtype])))
        elif first in converted:
            made = new[first]
        new[node] = made
    return graph.with_outputs(new[o] for o in graph.outputs)


@rule(op("as_unsigned|as_signed", op("as_unsigned|as_signed", shared=True)))
def layout_sign_and_back(outer: Node, inner: Node) -> Node | None:
    """as_unsigned(as_signed(x)) -> x."""
    return inner.operands[0] if outer.op != inner.op else None
