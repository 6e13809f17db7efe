"""Concatenation, splitting, slicing and padding."""

from __future__ import annotations

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.equal import note_least
from qcompiler.ops.known_sizes import never_below_0
from qcompiler.ops.movement import ints
from qcompiler.ops.registry import Numbers, fresh, operator, optional, required, typed
from qcompiler.ops.shapes import (
    MOST,
    agree,
    axes_of,
    axis_of,
    count_of,
    known_dims,
    known_ints,
    together,
    unite,
)


@operator("Concat", axis=required())
def concat(node: Node, first: Numbers, *rest: Numbers) -> Numbers:
    return np.concatenate((first, *rest), node.int("axis"))


@typed(concat)
def _(node: Node) -> Type:
    first = node.operands[0].type
    axis = axis_of(node.int("axis"), first.rank)
    dims, along = list(first.shape), []
    for x in node.operands:
        if x.type.rank != first.rank or x.dtype != first.dtype:
            raise Error(f"cannot concatenate {first} and {x.type}")
        others = [*x.shape[:axis], dims[axis], *x.shape[axis + 1 :]]
        dims = [unite(a, b) for a, b in zip(dims, others, strict=True)]
        along.append(x.shape[axis])
    dims[axis] = together(along)
    return Type(first.dtype, tuple(dims))


@operator("Split", axis=0, num_outputs=None)
def split(node: Node, x: Numbers, sizes: Numbers | None = None) -> tuple[Numbers, ...]:
    axis = axis_of(node.int("axis"), x.ndim)
    lengths = ints(sizes) if sizes is not None else _even(node, x.shape[axis])
    if sum(lengths) != x.shape[axis]:
        raise Error(f"pieces of {list(lengths)} do not make up {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis))


def _even(node: Node, size: int) -> tuple[int, ...]:
    """Pieces of equal size, except for a smaller last one."""
    count = node.int("num_outputs")
    each = -(-size // count)
    return (*[each] * (count - 1), size - each * (count - 1))


@typed(split)
def _(node: Node) -> tuple[Type, ...]:
    x, sizes = node.operands[0].type, optional(node, 1)
    axis = axis_of(node.int("axis"), x.rank)
    known = None if sizes is None else known_dims(sizes)
    lengths: tuple[Dim, ...]
    if known is not None:
        least = min((d for d in known if isinstance(d, int)), default=0) if known else -1
        if least < 0 or not agree(together(known), x.shape[axis]):
            raise Error(f"pieces of {list(known)} do not make up {x.shape[axis]}")
        lengths = known
    else:
        if node.attrs["num_outputs"] is not None:
            count = node.int("num_outputs")
        elif sizes is not None:
            count = count_of(sizes)
        else:
            raise Error("neither sizes nor a number of pieces is given")
        whole = x.shape[axis]
        if not 1 <= count <= MOST:
            raise Error(f"a split into {count} pieces")
        if sizes is not None:
            lengths = tuple(fresh() for _ in range(count))
        elif isinstance(whole, int):
            lengths = _even(node, whole)
        else:
            each = settled((Size.of(whole) + (count - 1)) // count)
            last = Size.of(whole) - Size.of(each) * (count - 1)
            lengths = (*[each] * (count - 1), settled(Size.of(whole) // 2 if count == 2 else last))
    return tuple(Type(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in lengths)


@operator("Slice")
def slice_(
    node: Node,
    x: Numbers,
    starts: Numbers,
    ends: Numbers,
    axes: Numbers | None = None,
    steps: Numbers | None = None,
) -> Numbers:
    cut = [slice(None)] * x.ndim
    over = range(starts.size) if axes is None else axes_of(ints(axes), x.ndim)
    by = [1] * starts.size if steps is None else ints(steps)
    for axis, start, end, step in zip(over, ints(starts), ints(ends), by, strict=True):
        cut[axis] = _slice_of(start, end, step, x.shape[axis])
    return x[tuple(cut)]


def _slice_of(start: int, end: int, step: int, size: int) -> slice:
    """ONNX's slice of `size` values -> Python's, where a negative end counts from the back."""
    if step == 0:
        raise Error("a slice of step 0")
    start = max(start + size if start < 0 else start, 0)
    end = end + size if end < 0 else end
    if step > 0:
        return slice(start, max(end, 0), step)
    return slice(min(start, max(size - 1, 0)), end if end >= 0 else None, step)


@typed(slice_)
def _(node: Node) -> Type:
    x = node.operands[0].type
    starts, ends = known_dims(node.operands[1]), known_dims(node.operands[2])
    axes, steps = optional(node, 3), optional(node, 4)
    if axes is not None:
        known_axes = known_ints(axes)
        if known_axes is None:
            return Type(x.dtype, tuple(fresh() for _ in x.shape))
        over = axes_of(known_axes, x.rank)
    else:
        over = axes_of(range(count_of(node.operands[1])), x.rank)
    by = (1,) * len(over) if steps is None else known_ints(steps)
    dims = list(x.shape)
    if starts is None or ends is None or by is None:
        for axis in over:
            dims[axis] = fresh()
        return Type(x.dtype, tuple(dims))
    if not len(starts) == len(ends) == len(by) == len(over):
        raise Error("starts, ends, axes and steps differ in length")
    for axis, start, end, step in zip(over, starts, ends, by, strict=True):
        size = dims[axis]
        if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
            dims[axis] = len(range(*_slice_of(start, end, step, size).indices(size)))
        else:
            dims[axis] = _count(size, start, end, step)
    return Type(x.dtype, tuple(dims))


def _count(size: Dim, start: Dim, end: Dim, step: int) -> Dim:
    """How many elements a slice of or to an open size has, if it ends inside: what relies on that
    proves it, or runs in which it does not fail.
    """
    if step < 0:
        whole = start == -1 and isinstance(end, int) and end <= np.iinfo(np.int32).min
        return settled((Size.of(size) - (step + 1)) // -step) if whole else fresh()
    if isinstance(end, int) and end >= np.iinfo(np.int32).max:
        end = size
    elif isinstance(end, int) and end < 0:
        end = settled(Size.of(size) + end)
    elif isinstance(end, int) and not (isinstance(size, str) and _inside(end, size)):
        return fresh()
    if isinstance(start, int) and start < 0:
        start = settled(Size.of(size) + start)
    if never_below_0(Size.of(end) - size):
        end = size
    elif isinstance(size, str) and isinstance(end, str) and not never_below_0(Size.of(size) - end):
        note_least(end, size)  # no range of one of them tells whether it ends inside
    return settled((Size.of(end) - start + (step - 1)) // step)


def _inside(end: int, size: Dim) -> bool:
    """Is an end taken to lie inside an open size? For certain, or as it is near."""
    return end <= FEW or never_below_0(Size.of(size) - end)


FEW = 16
"""A slice that ends here at the latest is taken to lie inside an open size, longer ones may not."""

_PAD_MODES = ("constant", "reflect", "edge", "wrap")
"""Mode names shared with numpy."""


@operator("Pad", mode="constant")
def pad(
    node: Node,
    x: Numbers,
    pads: Numbers,
    value: Numbers | None = None,
    axes: Numbers | None = None,
) -> Numbers:
    if not pads.size:
        return x
    over = range(x.ndim) if axes is None else axes_of(ints(axes), x.ndim)
    begins, ends = np.split(pads.ravel(), 2)
    widths, cut = [(0, 0)] * x.ndim, [slice(None)] * x.ndim
    for axis, begin, end in zip(over, ints(begins), ints(ends), strict=True):
        cut[axis] = slice(max(-begin, 0), x.shape[axis] - max(-end, 0))
        widths[axis] = (max(begin, 0), max(end, 0))
    kept = x[tuple(cut)]
    if node.str("mode") == "constant":
        fill = 0 if value is None else value.ravel()[0]
        return np.pad(kept, widths, constant_values=fill)
    return np.pad(kept, widths, mode=node.str("mode"))  # type: ignore[call-overload,no-any-return]


@typed(pad)
def _(node: Node) -> Type:
    x, pads = node.operands[0].type, known_dims(node.operands[1])
    if node.str("mode") not in _PAD_MODES:
        raise Error(f"unknown mode {node.str('mode')!r}")
    axes = optional(node, 3)
    over = tuple(range(x.rank)) if axes is None else known_ints(axes)
    if pads is None or over is None:
        return Type(x.dtype, tuple(fresh() for _ in x.shape))
    over = axes_of(over, x.rank)
    if len(pads) != 2 * len(over):
        raise Error(f"pads {list(pads)} are not two for each of {len(over)} axes")
    dims = list(x.shape)
    for i, axis in enumerate(over):
        begin, end, size = pads[i], pads[i + len(over)], dims[axis]
        if isinstance(size, int) and isinstance(begin, int) and isinstance(end, int):
            left = size + min(begin, 0) + min(end, 0)
            if left < 0 or (left == 0 and max(begin, end) > 0 and node.str("mode") != "constant"):
                raise Error(f"pads {begin} and {end} leave nothing of {size} values")
        dims[axis] = together((size, begin, end))
    return Type(x.dtype, tuple(dims))


@operator("CenterCropPad", axes=None)
def center_crop_pad(node: Node, x: Numbers, target: Numbers) -> Numbers:
    over = _axes_attribute(node, x.ndim)
    cut, widths = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
    for axis, wanted in zip(over, ints(target), strict=True):
        size = x.shape[axis]
        if wanted < size:
            cut[axis] = slice((size - wanted) // 2, (size - wanted) // 2 + wanted)
        else:
            widths[axis] = ((wanted - size) // 2, wanted - size - (wanted - size) // 2)
    return np.pad(x[tuple(cut)], widths) if widths else x


def _axes_attribute(node: Node, rank: int) -> tuple[int, ...]:
    return axes_of(node.ints("axes") if node.attrs["axes"] is not None else range(rank), rank)


@typed(center_crop_pad)
def _(node: Node) -> Type:
    x, known = node.operands[0].type, known_dims(node.operands[1])
    over = _axes_attribute(node, x.rank)
    if known is not None and len(known) != len(over):
        raise Error(f"shape {list(known)} is not one number for each of {len(over)} axes")
    dims = list(x.shape)
    for i, axis in enumerate(over):
        dims[axis] = fresh() if known is None else known[i]
    return Type(x.dtype, tuple(dims))
