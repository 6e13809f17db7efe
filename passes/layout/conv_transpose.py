"""Lower a transposed convolution to one convolution that computes all outputs between two inputs as
channels.

ConvTranspose(x, w, b)  ->  Transpose(shuffle(conv(Transpose(x), w')) + b)

With stride s, output o = s * j + r (0 <= r < s) is a plain convolution around input j with the
filter entries k = r + pad (mod s). The s (in two dimensions s * s) convolutions are computed as one
with s times the output channels; `shuffle` is a Reshape, a Transpose and a Reshape that interleave
the outputs. Entries that a convolution lacks are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from qcompiler.passes.layout.conv import PRODUCTS, pairs

from qcompiler.ir import Array, Node
from qcompiler.ops import make
from qcompiler.ops.window import Window
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule
from qcompiler.rewrite.layouts import to_first, to_last
from qcompiler.rewrite.matching import const, input_at, int64s, reshape, to_dtype, transpose

MAX_GROWTH, MAX_WEIGHTS = 64, 1 << 24
"""Limit of the growth of the weights, mostly by zeros."""


@dataclass(frozen=True)
class Axis:
    """One spatial axis: outputs j * stride + r read inputs j + low ... j + low + taps - 1."""

    stride: int
    low: int
    taps: int
    before: int
    after: int
    outputs: int

    @staticmethod
    def of(size: int, outputs: int, kernel: int, stride: int, dilation: int, pad: int) -> Axis:
        """The inputs that any output between two inputs needs; every filter entry belongs to one of
        those outputs and one input."""
        offsets = [-((k * dilation - pad) // stride) for k in range(kernel)]
        low, high = min([0, *offsets]), max([0, *offsets])
        count = -(-outputs // stride)
        after = max(count - 1 + high - (size - 1), 0)
        return Axis(stride, low, high - low + 1, -low, after, outputs)


@rule(op("ConvTranspose", ANY, CONST, OPTIONAL))
def layout_conv_transpose(node: Node) -> Node | Skip:
    """ConvTranspose(x, w, b) -> Transpose(shuffle(conv(Transpose(x), w')) + b)."""
    x, w, b = node.operands[0], node.operands[1], input_at(node, 2)
    if not (x.type.static and node.type.static) or x.dtype not in PRODUCTS:
        return Skip(f"there is no product for {x.type}")
    if node.str("auto_pad") not in ("NOTSET", "VALID") or node.attrs["output_shape"]:
        return Skip("the padding follows from the output's size")
    window = Window.of(node, x.shape[2:], w.shape[2:])
    begins = [p[0] for p in pairs(window)]
    axes = [
        Axis.of(*each)
        for each in zip(
            x.type.dims[2:],
            node.type.dims[2:],
            window.kernel,
            window.strides,
            window.dilations,
            begins,
            strict=True,
        )
    ]
    group, rank = node.int("group"), x.type.rank
    if prod(a.taps * a.stride for a in axes) * w.type.size > MAX_GROWTH * w.type.size + MAX_WEIGHTS:
        return Skip("its strides are so large that the weights would be mostly zeros")
    weights = interleaved(w.array, group, axes, window, begins)
    made = _conv(node, transpose(x, to_last(rank)), weights, group, axes)
    made = shuffled(made, group, axes)
    if b is not None:
        made = make("Add", made, to_dtype(b, made.dtype))
    return transpose(to_dtype(made, node.dtype), to_first(rank))


def interleaved(w: Array, group: int, axes: list[Axis], window: Window, begins: list[int]) -> Array:
    """w[C, O/g, *K] -> [*taps, C/g, g * strides * O/g]: group, position between inputs, channel."""
    each = w.shape[0] // group
    taps = [a.taps for a in axes]
    strides = [a.stride for a in axes]
    made = np.zeros((*taps, each, group, *strides, w.shape[1]), w.dtype)
    split = w.reshape(group, each, *w.shape[1:])
    for k in np.ndindex(*window.kernel):
        spans = [i * d - begin for i, d, begin in zip(k, window.dilations, begins, strict=True)]
        position = tuple(span % s for span, s in zip(spans, strides, strict=True))
        at = tuple(-(span // a.stride) - a.low for span, a in zip(spans, axes, strict=True))
        # [g, C/g, O/g] -> [C/g, g, O/g]
        made[(*at, slice(None), slice(None), *position)] = split[
            (slice(None), slice(None), slice(None), *k)
        ].swapaxes(0, 1)
    return made.reshape(*taps, each, -1)


def _conv(node: Node, x: Node, weights: Array, group: int, axes: list[Axis]) -> Node:
    """The convolution that computes all outputs between two inputs; one axis becomes two."""
    befores, afters = [a.before for a in axes], [a.after for a in axes]
    if len(axes) == 1:
        x = reshape(x, (x.type.dims[0], 1, *x.type.dims[1:]))
        weights, befores, afters = weights[None], [0, *befores], [0, *afters]
    ones = (1,) * len(befores)
    made = make(
        "conv",
        x,
        const(weights),
        name=node.name,
        strides=ones,
        dilations=ones,
        pads=(*befores, *afters),
        group=group,
    )
    return reshape(made, (made.shape[0], *made.shape[2:])) if len(axes) == 1 else made


def shuffled(made: Node, group: int, axes: list[Axis]) -> Node:
    """[N, *J, (g, *strides, O/g)] -> [N, *(J * stride), O], cropped to the outputs."""
    n = len(axes)
    batch, *counts, channels = made.type.dims
    strides = [a.stride for a in axes]
    each = channels // (group * int(np.prod(strides)))
    split = reshape(made, (batch, *counts, group, *strides, each))
    pairs_of_axes = [a for i in range(n) for a in (1 + i, 2 + n + i)]
    mixed = transpose(split, (0, *pairs_of_axes, 1 + n, 2 + 2 * n))
    sizes = [c * s for c, s in zip(counts, strides, strict=True)]
    whole = reshape(mixed, (batch, *sizes, group * each))
    wanted = [a.outputs for a in axes]
    if sizes == wanted:
        return whole
    starts, ends, along = int64s([0] * n), int64s(wanted), int64s(range(1, 1 + n))
    return make("Slice", whole, starts, ends, along)
