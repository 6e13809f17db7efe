"""Lower RNN, GRU and LSTM to a product over the whole sequence and a loop over its steps.

LSTM(x, w, r, b)  ->  recurrent(MatMul(x, w') + b', r'), with each output a slice of it

where w' and r' are transposed, and b' is the sum of both biases of every gate. One product of many
rows is faster than many products of one, and can be quantized like any other. The bias that a GRU
resets with its state (linear_before_reset) stays with the loop.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.recurrent import GATES, directions, states_of
from qcompiler.rewrite import op, rule
from qcompiler.rewrite.matching import input_at, int64s, to_dtype, transpose

_OWN = ("hidden_size", "layout", "outputs")


@rule(op("item", op("RNN|GRU|LSTM", shared=True)))
def fold_recurrent(item: Node, layer: Node) -> Node:
    """LSTM(x, w, r, b) -> recurrent(MatMul(x, w') + b', r'), one output of it."""
    x, w, r = layer.operands[:3]
    dtype = x.dtype if x.dtype in ("float32", "float64") else "float32"
    batch_first = bool(layer.int("layout"))
    hidden, gates = r.type.dims[2], GATES[layer.op]
    if batch_first:
        x = transpose(x, (1, 0, 2))
    flat = make("Reshape", to_dtype(w, dtype), int64s((directions(layer) * gates * hidden, -1)))
    sums = make("MatMul", to_dtype(x, dtype), transpose(flat, (1, 0)), name=f"{layer.name}.input")
    bias, behind = _biases(layer, dtype)
    if bias is not None:
        sums = make("Add", sums, bias)
    states = [input_at(layer, 5), input_at(layer, 6)]
    given = [input_at(layer, 4), *(_transposed(s, dtype, batch_first) for s in states)]
    given.append(_transposed(input_at(layer, 7), dtype, False))
    attrs = {k: v for k, v in layer.attrs.items() if k not in _OWN}
    weights = transpose(to_dtype(r, dtype), (0, 2, 1))
    loop = make("recurrent", sums, weights, behind, *given, kind=layer.op, name=layer.name, **attrs)
    return to_dtype(_output(loop, item.int("index"), batch_first), item.dtype)


def _biases(layer: Node, dtype: str) -> tuple[Node | None, Node | None]:
    """(the biases added to the input product, the bias a GRU adds after its reset)."""
    b, hidden = input_at(layer, 3), layer.operands[2].type.dims[2]
    if b is None:
        return None, None
    b, count, wide = to_dtype(b, dtype), directions(layer), GATES[layer.op] * hidden
    outer, inner = _cut(b, 1, 0, wide), _cut(b, 1, wide, 2 * wide)
    behind = None
    if layer.op == "GRU" and layer.int("linear_before_reset"):
        behind = _cut(inner, 1, 2 * hidden, wide)
        inner = make("Pad", _cut(inner, 1, 0, 2 * hidden), int64s((0, 0, 0, hidden)))
    total = make("Add", outer, inner)
    return make("Reshape", total, int64s((count * wide,))), behind


def _transposed(state: Node | None, dtype: str, batch_first: bool) -> Node | None:
    if state is None:
        return None
    return to_dtype(transpose(state, (1, 0, 2)) if batch_first else state, dtype)


def _output(loop: Node, index: int, batch_first: bool) -> Node:
    """Output 0 (all hidden states), 1 (the last one) or 2 (the last cell) of the layer."""
    last = states_of(loop)
    if index == 0:
        hidden = _cut(loop, 0, 0, -last)
        return transpose(hidden, (2, 0, 1, 3)) if batch_first else hidden
    begin = index - 1 - last
    piece = _cut(loop, 0, begin, begin + 1 or 1 << 60)
    state = make("Squeeze", piece, int64s((0,)))
    return transpose(state, (1, 0, 2)) if batch_first else state


def _cut(x: Node, axis: int, begin: int, end: int) -> Node:
    return make("Slice", x, int64s((begin,)), int64s((end,)), int64s((axis,)))
