"""A transposed convolution of bytes -> an ordinary one that computes all phases of the output.

ConvTranspose(dequantize(x), dequantize(w), b)
    ->  Slice(Reshape(Transpose(Reshape(Conv(dequantize(x), dequantize(w'), b')))))

With stride s, output q * s + r is the sum over m of x[q - m] * w[r + s * m]: for each of the s
phases r a convolution with ceil(k / s) taps. All phases are computed as channels of one convolution
and then interleaved.
"""

from __future__ import annotations

from math import prod

import numpy as np

from qcompiler.ir import Array, Node, constant
from qcompiler.ops import make
from qcompiler.quantization.scales import DATA, WEIGHTS, activation, real, weights
from qcompiler.rewrite import OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import input_at, int64s, per_channel, reshape, transpose

Ints = tuple[int, ...]

MAX_GROWTH, MAX_WEIGHTS = 64, 1 << 24
"""Limit of the growth of the weights, mostly by zeros."""


@rule(op("ConvTranspose", DATA, WEIGHTS, OPTIONAL))
def integer_conv_transpose(node: Node, data: Node, weight: Node) -> Node | Skip:
    """ConvTranspose(dq(x), dq(w), b) -> the phases of one Conv(dq(x), dq(w'), b'), interleaved."""
    w, bias = weights(weight), input_at(node, 2)
    if isinstance(w, Skip):
        return w
    if isinstance(x := activation(data), Skip):
        return x
    scale = per_channel(w.scale, w.node.type.rank, 1)
    b = None if bias is None else real(bias)
    if scale is None or (bias is not None and b is None):
        return Skip("a scale per input channel, or a bias that is not constant")
    if not node.type.static or (node.attrs["dilations"] and set(node.ints("dilations")) != {1}):
        return Skip("it is dilated, or its sizes are unknown")
    dims, group = w.node.type.dims, node.int("group")
    strides = node.ints("strides") if node.attrs["strides"] else (1,) * (len(dims) - 2)
    begins = _begins(node, strides, dims[2:])
    if begins is None:
        return Skip("its padding is implicit")
    phases = prod(strides)
    grown = phases * prod(-(-k // s) for k, s in zip(dims[2:], strides, strict=True))
    if grown * prod(dims[:2]) > MAX_GROWTH * w.node.type.size + MAX_WEIGHTS:
        return Skip("its strides are so large that the weights would be mostly zeros")
    kernel = phase_weights(w.node.array, group, strides)
    scales = np.tile(np.broadcast_to(scale, (dims[1],)), group * phases).astype(np.float32)
    spread = constant(scales.reshape(-1, *[1] * (len(dims) - 1)))
    zero = constant(np.zeros((), np.int32))
    kernel_dq = make("dequantize", constant(kernel, w.node.name), spread, zero)
    if b is not None:
        parts = np.repeat(b.reshape(group, 1, dims[1]), phases, axis=1)
        bias = constant(parts.reshape(-1).astype(np.float32))
    reach = kernel.shape[2:]
    ends = _ends(node, strides, begins, reach)
    conv = make(
        "Conv",
        data,
        kernel_dq,
        bias,
        name=node.name,
        group=group,
        pads=(*(r - 1 for r in reach), *ends),
    )
    return woven(conv, node, group, strides, begins)


def phase_weights(w: Array, group: int, strides: Ints) -> Array:
    """w[C,O/g,*K] of a transposed convolution -> w'[g * phases * O/g, C/g, *ceil(K / s)]."""
    spatial = w.shape[2:]
    taps = tuple(-(-k // s) for k, s in zip(spatial, strides, strict=True))
    ends = [(0, t * s - k) for t, s, k in zip(taps, strides, spatial, strict=True)]
    whole = np.pad(w, [(0, 0), (0, 0), *ends])
    each, rank = w.shape[0] // group, len(spatial)
    pairs = [n for t, s in zip(taps, strides, strict=True) for n in (t, s)]
    split = whole.reshape(group, each, w.shape[1], *pairs)
    tap_axes = tuple(range(3, 3 + 2 * rank, 2))
    phase_axes = tuple(range(4, 4 + 2 * rank, 2))
    ordered = split.transpose(0, *phase_axes, 2, 1, *tap_axes)
    flipped = np.flip(ordered, tuple(range(-rank, 0)))
    return np.ascontiguousarray(flipped.reshape(-1, each, *taps))


def _begins(node: Node, strides: Ints, kernel: Ints) -> Ints | None:
    """How much of the full result is cropped at each beginning."""
    pads = node.ints("pads") if node.attrs["pads"] else (0,) * (2 * len(kernel))
    if node.attrs["auto_pad"] not in ("NOTSET", "VALID") or node.attrs["output_shape"]:
        return None
    return pads[: len(kernel)]


def _ends(node: Node, strides: Ints, begins: Ints, reach: Ints) -> Ints:
    """Padding after the input for enough outputs to crop the result from."""
    sizes = zip(node.operands[0].type.dims[2:], node.type.dims[2:], strict=True)
    return tuple(
        max(-(-(b + out) // s) - size, 0)
        for (size, out), s, b in zip(sizes, strides, begins, strict=True)
    )


def woven(conv: Node, node: Node, group: int, strides: Ints, begins: Ints) -> Node:
    """[N, g * phases * O/g, *Q] -> [N, O, *S]: phase r of q goes to q * s + r; then cropped."""
    batch, channels, *counts = conv.type.dims
    rank = len(counts)
    each = channels // (group * prod(strides))
    split = reshape(conv, (batch, group, *strides, each, *counts))
    pairs = [n for i in range(rank) for n in (3 + rank + i, 2 + i)]
    transposed = transpose(split, (0, 1, 2 + rank, *pairs))
    full = tuple(q * s for q, s in zip(counts, strides, strict=True))
    whole = reshape(transposed, (batch, group * each, *full))
    wanted = node.type.dims[2:]
    if full == wanted and not any(begins):
        return whole
    stops = [b + n for b, n in zip(begins, wanted, strict=True)]
    axes = range(2, 2 + rank)
    return make("Slice", whole, int64s(begins), int64s(stops), int64s(axes), int64s([1] * rank))
