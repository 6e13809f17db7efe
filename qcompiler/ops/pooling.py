"""Pooling over spatial windows: maximum, average, norm."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from math import prod

import ml_dtypes
import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Node, Type, numpy_dtype
from qcompiler.ops.contraction import numbers, sums_of
from qcompiler.ops.math import NUMPY
from qcompiler.ops.normalization import mean_over
from qcompiler.ops.registry import Numbers, operator, required, typed
from qcompiler.ops.shapes import need_floats, need_rank
from qcompiler.ops.window import Ints, Window

_WINDOW = {"kernel_shape": required(), "strides": None, "pads": None, "dilations": None}
_ONNX = {**_WINDOW, "auto_pad": "NOTSET", "ceil_mode": 0}


def lowest(dtype: str) -> float | int:
    """The lowest value of a dtype."""
    kind = numpy_dtype(dtype)
    if "int" in dtype:
        return int(ml_dtypes.iinfo(kind).min)  # type: ignore[no-untyped-call]
    return False if dtype == "bool" else float("-inf")


def _largest(x: Numbers, window: Window, counts: Ints, first: int) -> Numbers:
    padded = window.pad(x, counts, lowest(x.dtype.name), first)
    return reduce(np.maximum, window.taps(padded, counts, first))


def _average(x: Numbers, window: Window, counts: Ints, first: int, include_pad: int) -> Numbers:
    """float32 window sums divided by the window's size, with or without the padding."""
    dtype = "float32" if x.dtype.kind in "iu" else sums_of(x.dtype.name)
    seen = window.taps(window.pad(x, counts, 0, first).astype(dtype), counts, first)
    sums: Numbers = reduce(np.add, seen)
    pads = [p for p in window.pads if p is not None]
    sizes = x.shape[first : first + len(counts)]
    ones = np.pad(np.ones(sizes, dtype), pads, constant_values=include_pad)
    bare = replace(window, pads=((0, 0),) * len(pads))
    seen = bare.taps(bare.pad(ones, counts, 0, first=0), counts, first=0)
    divisor: Numbers = reduce(np.add, seen)
    divisor = divisor.reshape(*counts, *[1] * (x.ndim - first - len(counts)))
    return sums / divisor


@operator("MaxPool", **_ONNX, storage_order=0, outputs=1)
def max_pool(node: Node, x: Numbers) -> Numbers | tuple[Numbers, ...]:
    window = Window.of(node, x.shape[2:])
    counts = numbers(window.outputs(x.shape[2:]))
    best = _largest(x, window, counts, first=2)
    if node.int("outputs") == 1:
        return best
    sizes = x.shape[2:]
    order = "F" if node.int("storage_order") else "C"
    planes = np.arange(prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * len(sizes)) * prod(sizes)
    places = planes + np.arange(prod(sizes)).reshape(sizes, order=order)  # type: ignore[call-overload]
    found = np.full(best.shape, -1, np.int64)
    values = window.taps(window.pad(x, counts, lowest(x.dtype.name), 2), counts, first=2)
    indices = window.taps(window.pad(places, counts, -1, 2), counts, first=2)
    for value, index in zip(values, indices, strict=True):
        found = np.where((found < 0) & (value == best), index, found)
    return best, found


@typed(max_pool)
def _(node: Node) -> tuple[Type, ...]:
    pooled = _pooled(node)
    return (pooled, Type("int64", pooled.shape))[: node.int("outputs")]


def _pooled(node: Node) -> Type:
    x = need_rank(node.operands[0], 3, "input")
    return Type(x.dtype, (*x.shape[:2], *Window.of(node, x.shape[2:]).outputs(x.shape[2:])))


@operator("AveragePool", **_ONNX, count_include_pad=0)
def average_pool(node: Node, x: Numbers) -> Numbers:
    window = Window.of(node, x.shape[2:])
    counts = numbers(window.outputs(x.shape[2:]))
    return _average(x, window, counts, 2, node.int("count_include_pad")).astype(x.dtype)


@operator("LpPool", **_ONNX, p=2)
def lp_pool(node: Node, x: Numbers) -> Numbers:
    window = Window.of(node, x.shape[2:])
    counts = numbers(window.outputs(x.shape[2:]))
    powers = np.abs(x.astype(sums_of(x.dtype.name))) ** node.int("p")
    sums: Numbers = reduce(np.add, window.taps(window.pad(powers, counts, 0, 2), counts, first=2))
    return (sums ** (1 / node.int("p"))).astype(x.dtype)


@typed(average_pool)
def _(node: Node) -> Type:
    need_floats(node)
    return _pooled(node)


@typed(lp_pool)
def _(node: Node) -> Type:
    need_floats(node)
    _positive(node)
    return _pooled(node)


def _positive(node: Node) -> None:
    if node.int("p") < 1:
        raise Error(f"a norm of order {node.attrs['p']}")


def _spatial(x: Numbers) -> Ints:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Numbers) -> Numbers:
    return mean_over(x.astype(sums_of(x.dtype.name)), _spatial(x)).astype(x.dtype)


@operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Numbers) -> Numbers:
    return np.asarray(x.max(_spatial(x), keepdims=True))


@operator("GlobalLpPool", p=2)
def global_lp_pool(node: Node, x: Numbers) -> Numbers:
    powers = np.abs(x.astype(sums_of(x.dtype.name))) ** node.int("p")
    sums = powers.sum(_spatial(x), keepdims=True)
    return np.asarray(sums ** (1 / node.int("p"))).astype(x.dtype)


@typed(global_average_pool, global_max_pool, global_lp_pool)
def _(node: Node) -> Type:
    x = need_rank(node.operands[0], 3, "input")
    if node.op != "GlobalMaxPool" or "int" not in x.dtype:  # also bytes, like MaxPool
        need_floats(node)
    if node.op == "GlobalLpPool":
        _positive(node)
    return Type(x.dtype, (*x.shape[:2], *[1] * (x.rank - 2)))


@operator("max_pool", **_WINDOW)
def max_pool_channels_last(node: Node, x: Numbers) -> Numbers:
    """x[N,*S,C] -> [N,*S',C]."""
    window = Window.of(node, x.shape[1:-1])
    return _largest(x, window, numbers(window.outputs(x.shape[1:-1])), first=1)


@operator("average_pool", **_WINDOW, count_include_pad=0)
def average_pool_channels_last(node: Node, x: Numbers) -> Numbers:
    """x[N,*S,C] -> [N,*S',C]; for integers the float32 quotient, rounded half to even."""
    window = Window.of(node, x.shape[1:-1])
    counts = numbers(window.outputs(x.shape[1:-1]))
    average = _average(x, window, counts, 1, node.int("count_include_pad"))
    return NUMPY.finish(np.rint(average) if x.dtype.kind in "iu" else average, node.dtype)


@typed(max_pool_channels_last, average_pool_channels_last)
def _(node: Node) -> Type:
    x = need_rank(node.operands[0], 3, "input")
    counts = Window.of(node, x.shape[1:-1]).outputs(x.shape[1:-1])
    return Type(x.dtype, (x.shape[0], *counts, x.shape[-1]))
