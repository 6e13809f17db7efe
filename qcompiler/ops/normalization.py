"""Normalizations by mean, variance, norm or sum; softmax."""

from __future__ import annotations

from math import prod

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.registry import Numbers, broadcast, operator, optional, required, typed
from qcompiler.ops.shapes import (
    axes_of,
    axis_of,
    need_floats,
    need_rank,
    need_shape,
    note_divides,
)


def _wide(x: Numbers) -> Numbers:
    """In the accumulator dtype."""
    return x.astype(sums_of(x.dtype.name), copy=False)


def mean_over(x: Numbers, axes: tuple[int, ...]) -> Numbers:
    """The mean over axes, kept as 1; NaN if empty."""
    return np.asarray(x.sum(axes, keepdims=True) / prod(x.shape[a] for a in axes))


def _each_channel(values: Numbers, x: Numbers) -> Numbers:
    """One number per channel -> reshaped to broadcast against x[N,C,...]."""
    return _wide(values).reshape(-1, *[1] * (x.ndim - 2))


def _normalized(x: Numbers, axes: tuple[int, ...], epsilon: float) -> tuple[Numbers, ...]:
    """-> (x - mean) / sqrt(variance + epsilon), mean, and the reciprocal of that root."""
    mean = mean_over(x, axes)
    centred = x - mean
    inverse = 1 / np.sqrt(mean_over(centred * centred, axes) + x.dtype.type(epsilon))
    return centred * inverse.astype(x.dtype), mean, inverse.astype(x.dtype)


@operator("BatchNormalization", epsilon=1e-5, momentum=0.9, training_mode=0)
def batch_normalization(
    node: Node, x: Numbers, scale: Numbers, bias: Numbers, mean: Numbers, variance: Numbers
) -> Numbers:
    spread = _wide(variance)
    factor = _wide(scale) / np.sqrt(spread + spread.dtype.type(node.float("epsilon")))
    centred = _wide(x) - _each_channel(mean, x)
    return (centred * _each_channel(factor, x) + _each_channel(bias, x)).astype(x.dtype)


@typed(batch_normalization)
def _(node: Node) -> Type:
    need_floats(node)
    if node.int("training_mode"):
        raise Error("batch normalization in training mode", hint="export the model for inference")
    x = node.operands[0].type
    channels = x.shape[1] if x.rank > 1 else 1
    for i, what in enumerate(("scale", "bias", "mean", "variance"), 1):
        need_shape(node.operands[i], (channels,), what)
    return x


@operator("LayerNormalization", axis=-1, epsilon=1e-5, stash_type="float32", outputs=1)
def layer_normalization(
    node: Node, x: Numbers, scale: Numbers, bias: Numbers | None = None
) -> Numbers | tuple[Numbers, ...]:
    axes = _from(node, x.ndim)
    y, mean, inverse = _normalized(_wide(x), axes, node.float("epsilon"))
    y = y * _wide(scale)
    y = (y if bias is None else y + _wide(bias)).astype(x.dtype)
    return (y, mean, inverse)[: node.int("outputs")] if node.int("outputs") > 1 else y


def _from(node: Node, rank: int) -> tuple[int, ...]:
    """All axes starting at the node's `axis`."""
    return tuple(range(axis_of(node.int("axis"), rank), rank))


@typed(layer_normalization)
def _(node: Node) -> tuple[Type, ...]:
    need_floats(node)
    x = node.operands[0].type
    axes = _from(node, x.rank)
    _scales_fit(node, x.shape)
    stats = Type(sums_of(x.dtype), (*x.shape[: axes[0]], *[1] * len(axes)))
    return (x, stats, stats)[: max(node.int("outputs"), 1)]


def _scales_fit(node: Node, shape: tuple[Dim, ...]) -> None:
    """Raise Error unless scale and bias broadcast to x."""
    for i in (1, 2):
        values = optional(node, i)
        if values is not None and broadcast(shape, values.shape) != shape:
            raise Error(f"{values.type} does not broadcast to {node.operands[0].type}")


@operator("RMSNormalization", axis=-1, epsilon=1e-5, stash_type="float32")
def rms_normalization(node: Node, x: Numbers, scale: Numbers) -> Numbers:
    wide = _wide(x)
    square = mean_over(wide * wide, _from(node, x.ndim))
    inverse = 1 / np.sqrt(square + square.dtype.type(node.float("epsilon")))
    return np.asarray(wide * inverse * _wide(scale)).astype(x.dtype)


@typed(rms_normalization)
def _(node: Node) -> Type:
    need_floats(node)
    x = node.operands[0].type
    _from(node, x.rank)
    _scales_fit(node, x.shape)
    return x


@operator("InstanceNormalization", epsilon=1e-5)
def instance_normalization(node: Node, x: Numbers, scale: Numbers, bias: Numbers) -> Numbers:
    y = _normalized(_wide(x), tuple(range(2, x.ndim)), node.float("epsilon"))[0]
    return (y * _each_channel(scale, x) + _each_channel(bias, x)).astype(x.dtype)


@operator("GroupNormalization", num_groups=required(), epsilon=1e-5, stash_type="float32")
def group_normalization(node: Node, x: Numbers, scale: Numbers, bias: Numbers) -> Numbers:
    groups = node.int("num_groups")
    rows = _wide(x).reshape(x.shape[0], groups, prod(x.shape[1:]) // groups)
    y = _normalized(rows, (2,), node.float("epsilon"))[0].reshape(x.shape)
    return (y * _each_channel(scale, x) + _each_channel(bias, x)).astype(x.dtype)


@typed(instance_normalization, group_normalization)
def _(node: Node) -> Type:
    need_floats(node)
    x = need_rank(node.operands[0], 2, "input")
    for i, what in ((1, "scale"), (2, "bias")):
        need_shape(node.operands[i], (x.shape[1],), what)
    groups = node.int("num_groups") if node.op == "GroupNormalization" else 1
    if groups < 1 or (isinstance(x.shape[1], int) and x.shape[1] % groups):
        raise Error(f"{groups} groups do not divide {x.shape[1]} channels")
    note_divides(x.shape[1], groups)
    return x


@operator("LRN", size=required(), alpha=1e-4, beta=0.75, bias=1.0)
def lrn(node: Node, x: Numbers) -> Numbers:
    """x / (bias + alpha / size * sum of squares over the `size` nearest channels) ** beta."""
    size = node.int("size")
    wide = _wide(x)
    before = (size - 1) // 2
    widths = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
    squares = np.pad(wide * wide, widths)
    total = sum(squares[:, i : i + x.shape[1]] for i in range(min(size, squares.shape[1])))
    own = wide.dtype.type
    base = total * own(node.float("alpha") / size) + own(node.float("bias"))
    return np.asarray(wide / base ** own(node.float("beta"))).astype(x.dtype)


@typed(lrn)
def _(node: Node) -> Type:
    need_floats(node)
    x = need_rank(node.operands[0], 2, "input")
    if not 1 <= node.int("size") <= 1 << 16:
        raise Error(f"a window of {node.int('size')} channels")
    return x


@operator("LpNormalization", axis=-1, p=2)
def lp_normalization(node: Node, x: Numbers) -> Numbers:
    """x divided by its norm; zeros stay zeros."""
    wide = _wide(x)
    powers = np.abs(wide) if node.int("p") == 1 else wide * wide
    norm = powers.sum(node.int("axis"), keepdims=True)
    norm = norm if node.int("p") == 1 else np.sqrt(norm)
    return np.where(norm == 0, 0, wide / np.where(norm == 0, 1, norm)).astype(x.dtype)


@typed(lp_normalization)
def _(node: Node) -> Type:
    need_floats(node)
    axis_of(node.int("axis"), node.operands[0].type.rank)
    if node.int("p") not in (1, 2):
        raise Error(f"a norm of order {node.attrs['p']}")
    return node.operands[0].type


@operator("MeanVarianceNormalization", axes=(0, 2, 3))
def mean_variance_normalization(node: Node, x: Numbers) -> Numbers:
    wide = _wide(x)
    axes = axes_of(node.ints("axes"), x.ndim)
    centred = wide - mean_over(wide, axes)
    deviation = np.sqrt(mean_over(centred * centred, axes))
    return np.asarray(centred / (deviation + deviation.dtype.type(1e-9))).astype(x.dtype)


@typed(mean_variance_normalization)
def _(node: Node) -> Type:
    need_floats(node)
    axes_of(node.ints("axes"), node.operands[0].type.rank)
    return node.operands[0].type


def softmax_of(x: Numbers, axis: int) -> Numbers:
    """exp(x - max) divided by its sum; a row of only -inf becomes zeros."""
    top = x.max(axis, keepdims=True, initial=-np.inf)
    powers = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = powers.sum(axis, keepdims=True)
    return np.asarray(powers / np.where(total == 0, 1, total))


@operator("Softmax", axis=-1)
def softmax(node: Node, x: Numbers) -> Numbers:
    wide = _wide(x)
    powers = np.exp(wide - wide.max(node.int("axis"), keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(node.int("axis"), keepdims=True)).astype(x.dtype)


@operator("LogSoftmax", axis=-1)
def log_softmax(node: Node, x: Numbers) -> Numbers:
    wide = _wide(x)
    below = wide - wide.max(node.int("axis"), keepdims=True, initial=-np.inf)
    total = np.log(np.exp(below).sum(node.int("axis"), keepdims=True))
    return np.asarray(below - total).astype(x.dtype)


@operator("Hardmax", axis=-1)
def hardmax(node: Node, x: Numbers) -> Numbers:
    """1 at the first largest value, 0 elsewhere."""
    axis = node.int("axis")
    best = np.zeros_like(x)
    np.put_along_axis(best, np.expand_dims(x.argmax(axis), axis), x.dtype.type(1), axis)
    return best


@typed(softmax, log_softmax, hardmax)
def _(node: Node) -> Type:
    need_floats(node)
    axis_of(node.int("axis"), node.operands[0].type.rank)
    return node.operands[0].type
