"""The compiler's `recurrent` -> ONNX's recurrent layers, for the writer.

recurrent(MatMul(x, w) + b, r)  ->  Concat of the outputs Y, Y_h, Y_c of LSTM(x, w', r', b')

The product over the whole sequence, which a fold took out of the layer so that it can be quantized,
goes back into it: w is a constant or a dequantized one, and so are the layer's weights. If the sums
do not come from such a product, the layer reads them through identity weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompiler.ir import Array, Graph, Node, constant, numpy_dtype, substitute
from qcompiler.ops import make
from qcompiler.ops.recurrent import GATES, directions, states_of
from qcompiler.rewrite.matching import either, input_at, int64s, reshape, transpose


def with_layers(graph: Graph) -> Graph:
    """A graph without `recurrent`; itself if it has none."""
    return substitute(graph, lambda node: _layer(node) if node.op == "recurrent" else node)


@dataclass(frozen=True)
class _Product:
    """x w + bias: w[K, D*G*H], bias[D*G*H] or None."""

    x: Node
    w: Node
    bias: Array | None


def _layer(loop: Node) -> Node:
    """One `recurrent` -> Y and the last states, concatenated as in its output."""
    kind, count = loop.str("kind"), directions(loop)
    hidden = loop.operands[1].type.dims[1]
    wide = GATES[kind] * hidden
    product = _product(loop.operands[0], count * wide)
    weights = reshape(transpose(product.w, (1, 0)), (count, wide, product.w.type.dims[0]))
    own = ("kind", "linear_before_reset", "input_forget")
    attrs = {k: v for k, v in loop.attrs.items() if k not in own}
    if kind == "GRU":
        attrs["linear_before_reset"] = loop.int("linear_before_reset")
    if kind == "LSTM":
        attrs["input_forget"] = loop.int("input_forget")
    states = [input_at(loop, i) for i in (3, 4, 5, 6)][: 4 if kind == "LSTM" else 2]
    recurrence = transpose(loop.operands[1], (0, 2, 1))
    bias = _bias(loop, product.bias, count, wide, hidden)
    inputs = [product.x, weights, recurrence, bias, *states]
    while inputs[-1] is None:
        inputs.pop()
    made = make(kind, *inputs, name=loop.name, hidden_size=hidden, **attrs)
    pieces = [make("item", made, index=i) for i in range(1 + states_of(loop))]
    last = [make("Unsqueeze", p, int64s((0,))) for p in pieces[1:]]
    return make("Concat", pieces[0], *last, axis=0, name=f"{loop.name}/rows")


def _product(sums: Node, columns: int) -> _Product:
    """The product that the sums come from."""
    bias, product = None, sums
    if sums.op == "Add" and (found := either(sums, lambda i: i.is_constant)) is not None:
        added, product = found
        if added.type.size == columns:
            bias = added.array.reshape(columns)
    known = bias is not None or product is sums
    if known and product.op == "MatMul" and product.type == sums.type:
        x, w = product.operands
        if w.type.rank == 2 and x.type.rank == 3:
            return _Product(x, w, bias)
    return _Product(sums, constant(np.eye(columns, dtype=numpy_dtype(sums.dtype))), None)


def _bias(loop: Node, outer: Array | None, count: int, wide: int, hidden: int) -> Node | None:
    """[D, 2 G H]: input biases, then recurrent biases; None if all are 0."""
    behind = input_at(loop, 2)
    if outer is None and behind is None:
        return None
    dtype = numpy_dtype(loop.dtype)
    first = np.zeros((count, wide), dtype) if outer is None else outer.reshape(count, wide)
    rest = np.zeros((count, wide - hidden), dtype)
    last = constant(np.zeros((count, hidden), dtype)) if behind is None else behind
    whole = constant(np.concatenate([first.astype(dtype), rest], axis=1))
    if last.is_constant:
        return constant(np.concatenate([whole.array, last.array], axis=1))
    return make("Concat", whole, last, axis=1)
