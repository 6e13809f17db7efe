"""Decompose operators into others that work in any axis order.

InstanceNormalization(x, s, b)  ->  x * a + (b - mean * a)     a = s / sqrt(variance + epsilon)
GroupNormalization(x, s, b)     ->  the same over the channels of a group too
LRN(x)                          ->  x * (conv(x * x) * alpha / size + bias) ** -beta
DepthToSpace(x)                 ->  Reshape, Transpose, Reshape
SpaceToDepth(x)                 ->  Reshape, Transpose, Reshape
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Dim, Node
from qcompiler.ops import make
from qcompiler.rewrite import ANY, Skip, op, rule
from qcompiler.rewrite.matching import const, int64s, reshape, transpose

MAX_CHANNELS = 4096
"""Most channels of a response norm, and rows of its matrix of neighbours."""


@rule(op("InstanceNormalization", ANY, ANY, ANY))
def layout_instance_norm(node: Node) -> Node | Skip:
    """InstanceNormalization(x, s, b) -> x * a + (b - mean * a)."""
    return _normalized(node, node.operands[0].shape[1])


@rule(op("GroupNormalization", ANY, ANY, ANY))
def layout_group_norm(node: Node) -> Node | Skip:
    """GroupNormalization(x, s, b) -> the same over the channels of a group too."""
    return _normalized(node, node.int("num_groups"))


def _normalized(node: Node, groups: Dim) -> Node | Skip:
    """x * a + (b - mean * a): one pass for the means, one for the variances, one for the result.

    A group's mean is the mean of its channels' means, so no pass over the data needs groups.
    """
    x, scale, bias = node.operands
    if not x.type.static or not isinstance(groups, int):
        return Skip(f"the shape {x.type} is unknown")
    batch, channels = x.type.dims[:2]
    spatial = (1,) * (x.type.rank - 2)
    split, whole = (batch, groups, channels // groups, *spatial), (batch, channels, *spatial)

    def mean(value: Node) -> Node:
        """The mean of each group, [N, G, 1, ...]."""
        single = make("ReduceMean", value, int64s(range(2, x.type.rank)))
        if groups == channels:
            return reshape(single, split)
        return make("ReduceMean", reshape(single, split), int64s((2,)))

    middle = mean(x)
    spread = middle if groups == channels else make("Expand", middle, int64s(split))
    spread = reshape(spread, whole)
    centred = make("Sub", x, spread)
    variance = mean(make("Mul", centred, centred))
    deviation = make("Sqrt", make("Add", variance, const(node.float("epsilon"), like=x)))
    scaled = make("Mul", make("Reciprocal", deviation), _shaped(scale, split[1:]))
    factor = reshape(scaled, whole)
    rest = make("Sub", _shaped(bias, whole[1:]), make("Mul", spread, factor))
    return make("Add", make("Mul", x, factor), rest)


def _shaped(numbers: Node, shape: tuple[int, ...]) -> Node:
    """A constant is reshaped here, anything else by a Reshape."""
    return const(numbers.array.reshape(shape)) if numbers.is_constant else reshape(numbers, shape)


@rule(op("LRN", ANY))
def layout_lrn(node: Node) -> Node | Skip:
    """LRN(x) -> x * (conv(x * x) * alpha / size + bias) ** -beta."""
    x = node.operands[0]
    if not x.type.static or x.type.rank < 3:
        return Skip(f"the shape {x.type} is unknown")
    channels, size = x.type.dims[1], node.int("size")
    if channels > MAX_CHANNELS:
        return Skip(f"{channels} channels would make too large a matrix")
    to = np.arange(channels)[
        :, None
    ]  # output channel; it sums channels to - (size-1)//2 ... to + size//2
    at = np.arange(channels)[None, :]
    near = (at >= to - (size - 1) // 2) & (at <= to + size // 2)
    weights = np.where(near, node.float("alpha") / size, 0)
    weights = weights.reshape(channels, channels, *[1] * (x.type.rank - 2))
    bias = const(np.full(channels, node.float("bias")), like=x)
    sums = make("Conv", make("Mul", x, x), const(weights, like=x), bias)
    return make("Mul", x, make("Pow", sums, const(-node.float("beta"), like=x)))


@rule(op("DepthToSpace", ANY))
def layout_depth_to_space(node: Node) -> Node | Skip:
    """DepthToSpace(x) -> Reshape(Transpose(Reshape(x)))."""
    x, block = node.operands[0], node.int("blocksize")
    if not x.type.static:
        return Skip(f"the shape {x.type} is unknown")
    n, c, h, w = x.type.dims
    each = c // (block * block)
    if node.str("mode") == "CRD":
        split, order = (n, each, block, block, h, w), (0, 1, 4, 2, 5, 3)
    else:
        split, order = (n, block, block, each, h, w), (0, 3, 4, 1, 5, 2)
    return reshape(transpose(reshape(x, split), order), node.type.dims)


@rule(op("SpaceToDepth", ANY))
def layout_space_to_depth(node: Node) -> Node | Skip:
    """SpaceToDepth(x) -> Reshape(Transpose(Reshape(x)))."""
    x, block = node.operands[0], node.int("blocksize")
    if not x.type.static:
        return Skip(f"the shape {x.type} is unknown")
    n, c, h, w = x.type.dims
    split = (n, c, h // block, block, w // block, block)
    order = (0, 1, 3, 5, 2, 4) if node.str("mode") == "CRD" else (0, 3, 5, 1, 2, 4)
    return reshape(transpose(reshape(x, split), order), node.type.dims)
