"""Gather and scatter operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.equal import note_least
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.movement import ints
from qcompiler.ops.positions import open_reach
from qcompiler.ops.registry import Numbers, fresh, operator, optional, typed
from qcompiler.ops.shapes import agree, axis_of, known_dims, need_shape, total

_REDUCTIONS: dict[str, Callable[..., None]] = {
    "add": np.add.at,
    "mul": np.multiply.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}


@operator("Gather", axis=0)
def gather(node: Node, x: Numbers, indices: Numbers) -> Numbers:
    return np.take(x, indices.astype(np.int64), node.int("axis"))


@typed(gather)
def _(node: Node) -> Type:
    x, indices = (i.type for i in node.operands)
    axis = axis_of(node.int("axis"), x.rank)
    _need_indices(indices)
    _note_reach(node.operands[1], x.shape[axis])
    return Type(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _note_reach(indices: Node, size: Dim) -> None:
    """Indices need an axis to be as long as they reach."""
    least = open_reach(indices)
    if least is not None and isinstance(settled(Size.of(size) - least), str):
        note_least(least, size)


def _need_indices(type: Type) -> None:
    if type.dtype not in ("int32", "int64"):
        raise Error(f"indices of {type.dtype}")


def _along(indices: Numbers, axis: int) -> tuple[Any, ...]:
    """Indices along one axis -> the numpy index with all other axes unchanged."""
    places: list[Any] = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return tuple(places)


@operator("GatherElements", axis=0)
def gather_elements(node: Node, x: Numbers, indices: Numbers) -> Numbers:
    return np.asarray(x[_along(indices, axis_of(node.int("axis"), x.ndim))])


@typed(gather_elements)
def _(node: Node) -> Type:
    x, indices = (i.type for i in node.operands)
    _check_along(node, x, indices)
    _note_reach(node.operands[1], x.shape[axis_of(node.int("axis"), x.rank)])
    return Type(x.dtype, indices.shape)


def _check_along(node: Node, x: Type, indices: Type) -> None:
    axis = axis_of(node.int("axis"), x.rank)
    _need_indices(indices)
    fits = x.rank == indices.rank and all(
        i == axis or isinstance(a, str) or isinstance(b, str) or b <= a
        for i, (a, b) in enumerate(zip(x.shape, indices.shape, strict=True))
    )
    if not fits:
        raise Error(f"indices {indices} do not fit {x} along axis {axis}")


@operator("GatherND", batch_dims=0)
def gather_nd(node: Node, x: Numbers, indices: Numbers) -> Numbers:
    batch = node.int("batch_dims")
    places: tuple[Numbers, ...] = np.indices(indices.shape[:batch], sparse=True)
    more = [1] * (indices.ndim - 1 - batch)
    rows: list[Numbers] = [p.reshape(*p.shape, *more) for p in places]
    return np.asarray(x[(*rows, *np.moveaxis(indices, -1, 0))])


@typed(gather_nd)
def _(node: Node) -> Type:
    x, indices = (i.type for i in node.operands)
    batch = node.int("batch_dims")
    _need_indices(indices)
    depth = indices.shape[-1] if indices.rank else 0
    if not isinstance(depth, int):
        raise Error(f"the rank of the output is not known: the indices are {indices}")
    if not (0 <= batch < max(indices.rank, 1) and batch + depth <= x.rank and depth >= 1):
        raise Error(f"indices {indices} do not fit {x} with {batch} batch dimensions")
    if not all(map(agree, x.shape[:batch], indices.shape[:batch])):
        raise Error(f"indices {indices} and {x} differ in their batch dimensions")
    return Type(x.dtype, (*indices.shape[:-1], *x.shape[batch + depth :]))


def _scattered(node: Node, x: Numbers, where: tuple[Any, ...], updates: Numbers) -> Numbers:
    made = x.copy()
    if node.str("reduction") == "none":
        made[where] = updates
    else:
        _REDUCTIONS[node.str("reduction")](made, where, updates)
    return made


def _check_reduction(node: Node, x: Type, updates: Type) -> None:
    if node.str("reduction") not in ("none", *_REDUCTIONS):
        raise Error(f"unknown reduction {node.str('reduction')!r}")
    if updates.dtype != x.dtype:
        raise Error(f"updates of {updates.dtype} for {x.dtype}")


@operator("ScatterElements", axis=0, reduction="none")
def scatter_elements(node: Node, x: Numbers, indices: Numbers, updates: Numbers) -> Numbers:
    return _scattered(node, x, _along(indices, axis_of(node.int("axis"), x.ndim)), updates)


@typed(scatter_elements)
def _(node: Node) -> Type:
    x, indices, updates = (i.type for i in node.operands)
    _check_reduction(node, x, updates)
    _check_along(node, x, indices)
    if updates.rank != indices.rank or not all(map(agree, updates.shape, indices.shape)):
        raise Error(f"updates {updates} do not have the shape of the indices {indices}")
    return x


@operator("ScatterND", reduction="none")
def scatter_nd(node: Node, x: Numbers, indices: Numbers, updates: Numbers) -> Numbers:
    return _scattered(node, x, tuple(np.moveaxis(indices, -1, 0)), updates)


@typed(scatter_nd)
def _(node: Node) -> Type:
    x, indices, updates = (i.type for i in node.operands)
    _check_reduction(node, x, updates)
    _need_indices(indices)
    depth = indices.rank - 1 + x.rank - updates.rank
    if not 1 <= depth <= x.rank or not indices.rank or not agree(indices.shape[-1], depth):
        raise Error(f"indices {indices} do not fit {x}")
    wanted = (*indices.shape[:-1], *x.shape[depth:])
    if updates.rank != len(wanted) or not all(map(agree, updates.shape, wanted)):
        raise Error(f"updates {updates} should be [{','.join(map(str, wanted))}]")
    return x


@operator("TensorScatter", axis=-2, mode="linear")
def tensor_scatter(
    node: Node, cache: Numbers, update: Numbers, starts: Numbers | None = None
) -> Numbers:
    """Write each sample's update into its cache, beginning at its start; rows outside are left out,
    or go round.
    """
    axis = axis_of(node.int("axis"), cache.ndim)
    made = np.moveaxis(cache, axis, 1).copy()
    rows = np.moveaxis(update, axis, 1)
    for i in range(len(cache)):
        start, size, count = 0 if starts is None else int(starts[i]), made.shape[1], rows.shape[1]
        if node.str("mode") == "circular":
            made[i, (start % size + np.arange(count)) % size] = rows[i]
            continue
        places = min(max(start, -count), size) + np.arange(count)
        there = (places >= 0) & (places < size)
        made[i, places[there]] = rows[i, there]
    return np.moveaxis(made, 1, axis)


@typed(tensor_scatter)
def _(node: Node) -> Type:
    cache, update = (i.type for i in node.operands[:2])
    axis = axis_of(node.int("axis"), cache.rank)
    fits = cache.rank == update.rank and cache.dtype == update.dtype and axis != 0
    dims = zip(cache.shape, update.shape, strict=False)
    if not fits or not all(i == axis or agree(a, b) for i, (a, b) in enumerate(dims)):
        raise Error(f"update {update} does not fit the cache {cache}")
    need_shape(optional(node, 2), cache.shape[:1], "write indices")
    return cache


@operator("Compress", axis=None)
def compress(node: Node, x: Numbers, condition: Numbers) -> Numbers:
    return np.compress(condition, x, None if node.attrs["axis"] is None else node.int("axis"))


@typed(compress)
def _(node: Node) -> Type:
    x, condition = node.operands
    if condition.dtype != "bool" or condition.type.rank != 1:
        raise Error(f"condition {condition.type} is not a list of bool")
    known = known_value(condition)
    count: Dim = fresh() if known is None else int(known.sum())
    if node.attrs["axis"] is None:
        return Type(x.dtype, (count,))
    axis = axis_of(node.int("axis"), x.type.rank)
    return Type(x.dtype, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


@operator("NonZero")
def non_zero(node: Node, x: Numbers) -> Numbers:
    return np.array(np.nonzero(np.atleast_1d(x)), np.int64)


@typed(non_zero)
def _(node: Node) -> Type:
    known = known_value(node.operands[0])
    count = fresh() if known is None else int(np.count_nonzero(known))
    return Type("int64", (max(node.operands[0].type.rank, 1), count))


@operator("OneHot", axis=-1)
def one_hot(node: Node, indices: Numbers, depth: Numbers, values: Numbers) -> Numbers:
    """values[1] where the new axis equals the index, values[0] elsewhere."""
    count = ints(depth)[0]
    axis = axis_of(node.int("axis"), indices.ndim + 1)
    whole = indices.astype(np.int64)
    inside = (whole >= -count) & (whole < count)
    found = np.where(inside, whole % max(count, 1), -1)
    places = np.arange(count).reshape(-1, *[1] * (indices.ndim - axis))
    return np.asarray(np.where(np.expand_dims(found, axis) == places, values[1], values[0]))


@typed(one_hot)
def _(node: Node) -> Type:
    indices, depth, values = node.operands
    axis = axis_of(node.int("axis"), indices.type.rank + 1)
    if values.type.rank != 1 or not agree(values.shape[0], 2):
        raise Error(f"values {values.type} are not a pair")
    known = known_value(depth)
    if known is not None and known.size != 1:
        raise Error(f"depth {depth.type} is not a scalar")
    sizes = known_dims(depth) if known is None and "int" in depth.dtype else None
    count: Dim = fresh() if known is None else int(known.ravel()[0])
    count = sizes[0] if sizes else count
    return Type(values.dtype, (*indices.shape[:axis], count, *indices.shape[axis:]))


@operator("Unique", axis=None, sorted=1, outputs=1)
def unique(node: Node, x: Numbers) -> Numbers | tuple[Numbers, ...]:
    """Unique values, index of the first occurrence, inverse index, and counts."""
    axis = None if node.attrs["axis"] is None else node.int("axis")
    made, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    inverse = inverse.ravel()
    if not node.int("sorted"):
        order = np.argsort(first, kind="stable")
        made = np.take(made, order, 0 if axis is None else axis)
        first, counts, inverse = first[order], counts[order], np.argsort(order)[inverse]
    outputs = (made, *(i.astype(np.int64) for i in (first, inverse, counts)))
    return outputs[: node.int("outputs")] if node.int("outputs") > 1 else made


@typed(unique)
def _(node: Node) -> tuple[Type, ...]:
    x, known = node.operands[0].type, known_value(node.operands[0])
    given = None if node.attrs["axis"] is None else node.int("axis")
    found = None if known is None else np.unique(known, axis=given).shape
    count: Dim = fresh() if found is None else found[given or 0]
    if given is None:
        shape: tuple[Dim, ...] = (count,)
        length = total(x.shape)
    else:
        axis = axis_of(given, x.rank)
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        length = x.shape[axis]
    each = Type("int64", (count,))
    return (Type(x.dtype, shape), each, Type("int64", (length,)), each)[: node.int("outputs")]
