"""Move data as bytes: quantize goes before a move, dequantize after it.

move(dequantize(x, s, z))  ->  dequantize(move(x), s, z)
quantize(move(x), k, z)    ->  move(quantize(x, k, z))
f(move(x))                 ->  move(f(x))                     x: integer sums as floats; f:
activation

Exact: a move only selects elements, and MaxPool selects the same one since quantizing preserves
order. A Concat is moved if all its operands have the same scale, a Pad if its value is a byte.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import known_value, make
from qcompiler.quantization.scales import scalar
from qcompiler.rewrite import CONST, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import input_at, per_channel, perm_of, rebuilt, transpose

ACTIVATIONS = "Clip|Elu|Gelu|HardSigmoid|HardSwish|LeakyRelu|Mish|Relu|Sigmoid|Swish|Tanh"
KEEPS_SIZE = "Concat|DepthToSpace|Flatten|Identity|MaxPool|Reshape|SpaceToDepth|Squeeze|Transpose"
MOVES = "|".join(
    (KEEPS_SIZE, "Unsqueeze|Expand|Gather|GlobalMaxPool|Pad|ReduceMax|Resize|Slice|Split|Tile|item")
)
UP = op(f"{KEEPS_SIZE}|Slice|Unsqueeze")


@rule(op(MOVES))
def integer_down(move: Node) -> Node | Skip | None:
    """move(dequantize(x, s, z)) -> dequantize(move(x), s, z)."""
    if move.op == "item":
        return _item_down(move)
    first = move.inputs[0]
    if first is None or first.op != "dequantize" or len(move.types) > 1:
        return None
    x, scale, zero = first.operands
    if x.dtype not in ("uint8", "int8"):
        return None
    if not (scale.is_constant and zero.is_constant):
        return Skip("the scale is computed")
    if move.op == "Transpose":
        return _transpose_down(move, first)
    if scale.array.size > 1 or zero.array.size > 1:
        return Skip("a scale per channel")
    inputs = _integers(move, first)
    if isinstance(inputs, Skip):
        return inputs
    return make("dequantize", rebuilt(move, inputs), scale, zero)


def _integers(move: Node, first: Node) -> tuple[Node | None, ...] | Skip:
    """The inputs of the move when it moves bytes."""
    if move.op == "Concat":
        if not all(_same(first, i) for i in move.operands):
            return Skip("the scales differ")
        return tuple(i.operands[0] for i in move.operands)
    if move.op == "Resize" and not _picks(move):
        return Skip("it interpolates")
    if move.op == "Pad" and move.attrs["mode"] == "constant":
        value = input_at(move, 2) or constant(np.zeros((), np.float32))
        byte = _byte(first, value)
        if byte is None:
            return Skip("its padding value is not a byte")
        return (first.operands[0], move.inputs[1], byte, *move.inputs[3:])
    return (first.operands[0], *move.inputs[1:])


def _same(a: Node, b: Node) -> bool:
    """Do two dequantize nodes have the same scale and zero point?"""
    return (
        b.op == "dequantize"
        and a.operands[0].dtype == b.operands[0].dtype
        and all(
            p.is_constant and q.is_constant and p.type.size == 1 and scalar(p) == scalar(q)
            for p, q in zip(a.operands[1:], b.operands[1:], strict=True)
        )
    )


def _picks(resize: Node) -> bool:
    """Is every output of a Resize one of its inputs?"""
    crops = resize.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    return resize.attrs["mode"] == "nearest" and not crops


def _byte(dequantize: Node, value: Node) -> Node | None:
    """The byte that dequantizes exactly to this constant."""
    x, scale, zero = dequantize.operands
    if not value.is_constant:
        return None
    whole = make("quantize", value, scale, zero, dtype=x.dtype, divide=1)
    byte, back = known_value(whole), known_value(make("dequantize", whole, scale, zero))
    exact = byte is not None and back is not None and np.all(back == value.array)
    return constant(byte) if exact and byte is not None else None


def _transpose_down(move: Node, first: Node) -> Node:
    """Transpose scales along an axis too: those of a product's weights."""
    x, *parameters = first.operands
    perm = perm_of(move)
    operands = []
    for p in parameters:
        dims = (1,) * (len(perm) - p.array.ndim) + p.array.shape
        operands.append(p if p.array.size == 1 else constant(p.array.reshape(dims).transpose(perm)))
    return make("dequantize", transpose(x, perm, move.name), *operands)


def _item_down(item: Node) -> Node | None:
    """item(Split(dequantize(x))) -> dequantize(item(Split(x)))."""
    split = item.operands[0]
    first = split.inputs[0]
    if split.op != "Split" or first is None or first.op != "dequantize":
        return None
    x, scale, zero = first.operands
    if any(not p.is_constant or p.type.size > 1 for p in (scale, zero)):
        return None
    pieces = rebuilt(split, (x, *split.inputs[1:]))
    return make("dequantize", rebuilt(item, (pieces,)), scale, zero)


@rule(op("quantize", UP, CONST, CONST))
def integer_up(quantize: Node, move: Node) -> Node | Skip | None:
    """quantize(move(x), k, z) -> move(quantize(x, k, z))."""
    _, factor, zero = quantize.operands
    if move.dtype != "float32" or len(move.types) > 1:
        return None
    if move.op == "Slice" and not _keeps_most(move):
        return Skip("most of the data is dropped")
    count = len(move.inputs) if move.op == "Concat" else 1
    factors = [factor] * count if factor.array.size == 1 else _by_parts(move, factor)
    if factors is None:
        return Skip("a factor per channel")
    inputs = [
        make("quantize", i, f, zero, **quantize.attrs, name=_part(quantize.name, k))
        for k, (i, f) in enumerate(zip(move.operands[:count], factors, strict=True))
    ]
    return rebuilt(move, (*inputs, *move.inputs[count:]))


def _by_parts(concat: Node, factor: Node) -> list[Node] | None:
    """The factors of a Concat's operands, if each has one for all its channels."""
    if concat.op != "Concat":
        return None
    rank = concat.type.rank
    axis = concat.int("axis") % rank
    each = per_channel(factor.array, rank, axis)
    if each is None or each.size == 1:
        return None
    ends = np.cumsum([i.type.dims[axis] for i in concat.operands])
    parts = np.split(each, ends[:-1])
    if any(p.size == 0 or np.any(p != p[0]) for p in parts):
        return None
    return [constant(p[0]) for p in parts]


def _part(name: str, number: int) -> str:
    return f"{name}#{number}" if number else name


def _keeps_most(move: Node) -> bool:
    x = move.operands[0].type
    return x.static and move.type.static and 2 * move.type.size >= x.size


@rule(op(ACTIVATIONS, op("Reshape|Slice|Transpose"), OPTIONAL, OPTIONAL))
def integer_activation_up(activation: Node, move: Node) -> Node | None:
    """f(move(x)) -> move(f(x)), so that f fuses into the product that makes x."""
    source = move
    while source.op in ("Reshape", "Slice", "Transpose"):
        if source.op == "Slice" and not _keeps_most(source):
            return None
        source = source.operands[0]
    sums = source.op == "Mul" and source.operands[0].op == "Cast"
    if not sums or any(i.array.size > 1 for i in activation.operands[1:]):
        return None
    made = rebuilt(activation, (move.operands[0], *activation.inputs[1:]))
    return rebuilt(move, (made, *move.inputs[1:]))
