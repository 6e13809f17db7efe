"""Operators that are made of others, said so that they work in any order of axes.

InstanceNormalization(x, s, b)  ->  (x - mean) / sqrt(variance + epsilon) * s + b
GroupNormalization(x, s, b)     ->  the same over the channels of a group too
LRN(x)                          ->  x * (conv(x * x) * alpha / size + bias) ** -beta
DepthToSpace(x)                 ->  Reshape, Transpose, Reshape
SpaceToDepth(x)                 ->  Reshape, Transpose, Reshape
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.matching import channel_shape, const, int64s, reshape, transpose
from qcompiler.ops import make
from qcompiler.rewrite import ANY, Skip, op, rule

MAX_CHANNELS = 4096
"""A response norm's matrix of neighbours is this by this."""


@rule(op("InstanceNormalization", ANY, ANY, ANY))
def layout_instance_norm(node: Node) -> Node | Skip:
    """InstanceNormalization(x, s, b) -> (x - mean) / sqrt(variance + epsilon) * s + b."""
    x, scale, bias = node.operands
    if not x.type.static:
        return Skip(f"the shape {x.type} is not known")
    rank = x.type.rank
    normal = _normalized(x, tuple(range(2, rank)), node.float("epsilon"))
    return _affine(normal, _per_channel(scale, rank), _per_channel(bias, rank))


@rule(op("GroupNormalization", ANY, ANY, ANY))
def layout_group_norm(node: Node) -> Node | Skip:
    """GroupNormalization(x, s, b) -> the same over the channels of a group too."""
    x, scale, bias = node.operands
    if not x.type.static:
        return Skip(f"the shape {x.type} is not known")
    groups = node.int("num_groups")
    batch, channels, *spatial = x.type.dims
    split = reshape(x, (batch, groups, channels // groups, *spatial))
    axes = tuple(range(2, split.type.rank))
    normal = reshape(_normalized(split, axes, node.float("epsilon")), x.type.dims)
    rank = x.type.rank
    return _affine(normal, _per_channel(scale, rank), _per_channel(bias, rank))


def _normalized(x: Node, axes: tuple[int, ...], epsilon: float) -> Node:
    """(x - mean) / sqrt(mean of squares + epsilon)."""
    centred = make("Sub", x, make("ReduceMean", x, int64s(axes)))
    variance = make("ReduceMean", make("Mul", centred, centred), int64s(axes))
    deviation = make("Sqrt", make("Add", variance, const(epsilon, like=x)))
    return make("Mul", centred, make("Reciprocal", deviation))


def _affine(x: Node, scale: Node, bias: Node) -> Node:
    return make("Add", make("Mul", x, scale), bias)


def _per_channel(numbers: Node, rank: int) -> Node:
    """[C] -> broadcasting along axis 1."""
    shape = channel_shape(rank, 1)
    if numbers.is_constant:
        return const(numbers.array.reshape(shape))
    return reshape(numbers, (numbers.type.size, *shape[1:]))


@rule(op("LRN", ANY))
def layout_lrn(node: Node) -> Node | Skip:
    """LRN(x) -> x * (conv(x * x) * alpha / size + bias) ** -beta."""
    x = node.operands[0]
    if not x.type.static or x.type.rank < 3:
        return Skip(f"the shape {x.type} is not known")
    channels, size = x.type.dims[1], node.int("size")
    if channels > MAX_CHANNELS:
        return Skip(f"{channels} channels would make too large a matrix")
    to = np.arange(channels)[
        :, None
    ]  # output channel; it sums from to - (size-1)//2 up to to + size//2
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
        return Skip(f"the shape {x.type} is not known")
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
        return Skip(f"the shape {x.type} is not known")
    n, c, h, w = x.type.dims
    split = (n, c, h // block, block, w // block, block)
    order = (0, 1, 3, 5, 2, 4) if node.str("mode") == "CRD" else (0, 3, 5, 1, 2, 4)
    return reshape(transpose(reshape(x, split), order), node.type.dims)
