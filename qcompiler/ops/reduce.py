"""Reductions over axes (sums, means, norms, extremes), and sorts and scans along one axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.equal import note_least
from qcompiler.ops.known_sizes import never_below_0
from qcompiler.ops.math import NUMPY
from qcompiler.ops.normalization import mean_over
from qcompiler.ops.pooling import lowest
from qcompiler.ops.registry import Numbers, fresh, operator, optional, typed
from qcompiler.ops.shapes import axes_of, axis_of, known_dims, known_ints

Axes = tuple[int, ...]
Reduce = Callable[[Any, Axes], Any]
"""(values, axes) -> one value per row, the axes kept as 1."""


def _sum(x: Numbers, axes: Axes) -> Numbers:
    return np.asarray(x.sum(axes, x.dtype, keepdims=True))


def _max(x: Numbers, axes: Axes) -> Numbers:
    return np.asarray(x.max(axes, keepdims=True, initial=lowest(x.dtype.name)))


def _min(x: Numbers, axes: Axes) -> Numbers:
    kind = x.dtype.kind
    top = np.iinfo(x.dtype).max if kind in "iu" else True if kind == "b" else np.inf
    return np.asarray(x.min(axes, keepdims=True, initial=top))


def _log_sum_exp(x: Numbers, axes: Axes) -> Numbers:
    top = _max(x, axes)
    top = np.where(np.isfinite(top), top, 0)
    return np.asarray(np.log(np.exp(x - top).sum(axes, keepdims=True)) + top)


REDUCTIONS: dict[str, Reduce] = {
    "ReduceSum": _sum,
    "ReduceMean": mean_over,
    "ReduceMax": _max,
    "ReduceMin": _min,
    "ReduceProd": lambda x, axes: x.prod(axes, x.dtype, keepdims=True),
    "ReduceL1": lambda x, axes: _sum(np.abs(x), axes),
    "ReduceL2": lambda x, axes: np.sqrt(_sum(x * x, axes)),
    "ReduceSumSquare": lambda x, axes: _sum(x * x, axes),
    "ReduceLogSum": lambda x, axes: np.log(_sum(x, axes)),
    "ReduceLogSumExp": _log_sum_exp,
}
"""Operator -> its reduction of a row."""

REAL = frozenset({"ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"})
"""Reductions that compute on integers in float64 and truncate the result."""


def reduce_(node: Node, x: Numbers, axes: Numbers | None = None) -> Numbers:
    given = () if axes is None else axes_of((int(a) for a in axes.ravel()), x.ndim)
    if not given and node.int("noop_with_empty_axes"):
        return x
    over = given or tuple(range(x.ndim))
    whole = x.dtype.kind in "iub" and node.op not in REAL
    real = "float64" if x.dtype.kind in "iub" else sums_of(x.dtype.name)
    wide = x if whole else x.astype(real)
    result = NUMPY.finish(NUMPY.cast(REDUCTIONS[node.op](wide, over), x.dtype.name), x.dtype.name)
    return result if node.int("keepdims") else result.squeeze(over)


for _name in REDUCTIONS:
    operator(_name, keepdims=1, noop_with_empty_axes=0)(reduce_)


@typed(reduce_)
def _(node: Node) -> Type:
    x, axes = node.operands[0].type, optional(node, 1)
    given = () if axes is None else known_ints(axes)
    keep = bool(node.int("keepdims"))
    if given is None:
        assert axes is not None
        if keep:
            return Type(x.dtype, tuple(fresh() for _ in x.shape))
        if axes.type.rank != 1 or not isinstance(axes.shape[0], int):
            raise Error("the axes to reduce are not known")
        return Type(x.dtype, tuple(fresh() for _ in range(x.rank - axes.shape[0])))
    over = axes_of(given, x.rank) or (() if node.int("noop_with_empty_axes") else range(x.rank))
    return Type(x.dtype, _without(x.shape, over, keep))


def _without(shape: tuple[Dim, ...], axes: Any, keep: bool) -> tuple[Dim, ...]:
    if keep:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


_ARG = {"axis": 0, "keepdims": 1, "select_last_index": 0}


@operator("ArgMax", **_ARG)
@operator("ArgMin", **_ARG)
def arg_extreme(node: Node, x: Numbers) -> Numbers:
    """Index of the extreme: the first of equals, or the last."""
    axis = axis_of(node.int("axis"), x.ndim)
    find = np.argmax if node.op == "ArgMax" else np.argmin
    if node.int("select_last_index"):
        found = x.shape[axis] - 1 - find(np.flip(x, axis), axis)
    else:
        found = find(x, axis)
    index = np.asarray(found, np.int64)
    return np.expand_dims(index, axis) if node.int("keepdims") else index


@typed(arg_extreme)
def _(node: Node) -> Type:
    x = node.operands[0].type
    axis = axis_of(node.int("axis"), x.rank)
    if x.shape[axis] == 0:
        raise Error(f"{x} has no extreme along axis {axis}")
    return Type("int64", _without(x.shape, (axis,), bool(node.int("keepdims"))))


@operator("TopK", axis=-1, largest=1, sorted=1)
def top_k(node: Node, x: Numbers, k: Numbers) -> tuple[Numbers, Numbers]:
    """The k largest (smallest) in order, and their indices; of equals the first."""
    axis, count = axis_of(node.int("axis"), x.ndim), int(k.ravel()[0])
    if not 0 <= count <= x.shape[axis]:
        raise Error(f"{count} of {x.shape[axis]} values")
    if node.int("largest"):
        back = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
        order = x.shape[axis] - 1 - back
    else:
        order = np.argsort(x, axis, kind="stable")
    index = np.take(order, range(count), axis).astype(np.int64)
    return np.take_along_axis(x, index, axis), index


@typed(top_k)
def _(node: Node) -> tuple[Type, Type]:
    x = node.operands[0].type
    axis = axis_of(node.int("axis"), x.rank)
    k = known_dims(node.operands[1])
    if k is not None and len(k) != 1:
        raise Error(f"k is {list(k)}, not a scalar")
    count: Dim = fresh() if k is None else k[0]
    size = x.shape[axis]
    if isinstance(count, int) and isinstance(size, int) and not 0 <= count <= size:
        raise Error(f"{count} of {size} values")
    if count != size and not never_below_0(Size.of(size) - count):
        note_least(count, size)
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    return Type(x.dtype, shape), Type("int64", shape)


@operator("CumSum", exclusive=0, reverse=0)
@operator("CumProd", exclusive=0, reverse=0)
def cumulate(node: Node, x: Numbers, axis: Numbers) -> Numbers:
    """Cumulative sum (product); `exclusive` leaves out the value itself."""
    at = axis_of(int(axis.ravel()[0]), x.ndim)
    values = np.flip(x, at) if node.int("reverse") else x
    scan, start = (np.cumsum, 0) if node.op == "CumSum" else (np.cumprod, 1)
    made = scan(values, at, x.dtype if x.dtype.kind in "iu" else sums_of(x.dtype.name))
    if node.int("exclusive"):
        first = np.full_like(np.take(made, [0], at), start)
        made = np.concatenate([first, np.take(made, range(x.shape[at] - 1), at)], at)
    return np.asarray(np.flip(made, at) if node.int("reverse") else made).astype(x.dtype)


@typed(cumulate)
def _(node: Node) -> Type:
    x = node.operands[0].type
    axis = known_ints(node.operands[1])
    if axis is not None:
        if len(axis) != 1:
            raise Error(f"axis is {list(axis)}, not a scalar")
        axis_of(axis[0], x.rank)
    return x
