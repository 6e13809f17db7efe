"""Lower convolutions to channels last, with the bias as a sum that fuses into them.

Conv(x, w, b)  ->  Transpose(conv(Transpose(x), w') + b)      x[N,C,*S], w[O,C/g,*K] -> w'[*K,C/g,O]

One spatial dimension becomes two, the first of length 1. `layout_transposes` then cancels the
Transposes of neighbours.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.window import Window
from qcompiler.rewrite import ANY, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.layouts import to_first, to_last
from qcompiler.rewrite.matching import const, input_at, reshape, to_dtype, transpose

PRODUCTS = ("float32", "float16", "bfloat16", "float64")


@rule(op("Conv", ANY, ANY, OPTIONAL))
def layout_conv(node: Node) -> Node | Skip:
    """Conv(x, w, b) -> Transpose(conv(Transpose(x), w') + b)."""
    x, w, b = node.operands[0], node.operands[1], input_at(node, 2)
    if not (x.type.static and w.type.static):
        return Skip(f"the shapes {x.type} and {w.type} are unknown")
    if x.dtype not in PRODUCTS:
        return Skip(f"there are no {x.dtype} products")
    made = channels_last(node, x, w)
    if b is not None:
        made = make("Add", made, b if b.dtype == made.dtype else to_dtype(b, made.dtype))
    return channels_first(to_dtype(made, node.dtype), node.type.rank)


def channels_last(node: Node, x: Node, w: Node, pad_value: int = 0) -> Node:
    """The sums of an ONNX convolution's x[N,C,*S] and w[O,C/g,*K] -> conv, [N,*S',O]."""
    window = Window.of(node, x.shape[2:], w.shape[2:])
    rank = x.type.rank
    x, w = transpose(x, to_last(rank)), transpose(w, (*range(2, rank), 1, 0))
    numbers = [window.strides, window.dilations, *zip(*pairs(window), strict=True)]
    if rank == 3:
        x, w = _raised(x, 1), _raised(w, 0)
        numbers = [(n, *v) for n, v in zip((1, 1, 0, 0), numbers, strict=True)]
    strides, dilations, begins, ends = numbers
    made = make(
        "conv",
        x,
        w,
        name=node.name,
        strides=strides,
        dilations=dilations,
        pads=(*begins, *ends),
        group=node.int("group"),
        pad_value=pad_value if any((*begins, *ends)) else 0,
    )
    return reshape(made, (made.shape[0], *made.shape[2:])) if rank == 3 else made


def pairs(window: Window) -> list[tuple[int, int]]:
    """A window's padding, which must be known."""
    return [p for p in window.pads if p is not None]


def channels_first(made: Node, rank: int) -> Node:
    """A channels-last result -> channels first, as in ONNX."""
    return transpose(made, to_first(rank))


def _raised(x: Node, at: int) -> Node:
    """x with an additional axis of length 1."""
    dims = x.type.dims
    shape = (*dims[:at], 1, *dims[at:])
    return const(x.array.reshape(shape)) if x.is_constant else reshape(x, shape)
