"""The same values in another shape, order or number: nothing here computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Dim, Node, Type
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.registry import Numbers, broadcast, fresh, operator, optional, required, typed
from qcompiler.ops.shapes import (
    agree,
    axes_of,
    axis_of,
    count_of,
    known_ints,
    need_rank,
    total,
    unite,
)


def ints(values: Numbers) -> tuple[int, ...]:
    """An integer tensor -> its numbers, flattened."""
    return tuple(int(v) for v in values.ravel())


# Shapes.


@operator("Identity")
def identity(node: Node, x: Array) -> Array:
    return x


@operator("Dropout", seed=None, outputs=1)
def dropout(
    node: Node, x: Numbers, ratio: Array | None = None, training_mode: Array | None = None
) -> Numbers | tuple[Numbers, ...]:
    """At inference the identity, and a mask of all."""
    return x if node.int("outputs") == 1 else (x, np.ones(x.shape, np.bool_))


@typed(identity)
def _(node: Node) -> Type:
    return node.operands[0].type


@typed(dropout)
def _(node: Node) -> tuple[Type, ...]:
    training = optional(node, 2)
    value = known_value(training)
    if training is not None and (value is None or value.any()):
        raise Error("dropout in training mode", hint="export the model for inference")
    x = node.operands[0].type
    return (x, Type("bool", x.shape))[: node.int("outputs")]


@operator("Shape", start=0, end=None)
def shape(node: Node, x: Array) -> Array:
    end = node.int("end") if node.attrs["end"] is not None else None
    return np.array(x.shape[node.int("start") : end], np.int64)


@typed(shape)
def _(node: Node) -> Type:
    end = node.int("end") if node.attrs["end"] is not None else None
    return Type("int64", (len(node.operands[0].shape[node.int("start") : end]),))


@operator("Size")
def size(node: Node, x: Array) -> Array:
    return np.array(prod(x.shape), np.int64)


@typed(size)
def _(node: Node) -> Type:
    return Type("int64", ())


def reshaped(shape: Sequence[Dim], target: Sequence[int], allowzero: bool) -> tuple[Dim, ...]:
    """0 copies a dimension (unless `allowzero`), -1 is what is left over."""
    if target.count(-1) > 1 or min(target, default=0) < -1:
        raise Error(f"cannot reshape to {list(target)}")
    dims: list[Dim] = []
    for i, d in enumerate(target):
        if d == 0 and not allowzero:
            if i >= len(shape):
                raise Error(f"0 in {list(target)} copies a dimension that {list(shape)} lacks")
            dims.append(shape[i])
        else:
            dims.append(d)
    copied = [d for d in dims if isinstance(d, str)]
    rest = list((Counter(d for d in shape if isinstance(d, str)) - Counter(copied)).elements())
    have = prod(d for d in shape if isinstance(d, int))
    want = prod(d for d in dims if isinstance(d, int) and d != -1)
    if -1 in target:
        at = target.index(-1)
        if rest:
            dims[at] = rest[0] if len(rest) == 1 and have == want else fresh()
        elif not want or have % want:
            raise Error(f"{list(shape)} does not divide into {list(target)}")
        else:
            dims[at] = have // want
    elif not rest and have != want:
        raise Error(f"cannot reshape {list(shape)} to {list(target)}")
    return tuple(dims)


@operator("Reshape", allowzero=0)
def reshape(node: Node, x: Numbers, target: Numbers) -> Numbers:
    dims = reshaped(x.shape, ints(target), bool(node.int("allowzero")))
    return x.reshape(tuple(int(d) for d in dims))


@typed(reshape)
def _(node: Node) -> Type:
    x, target = node.operands
    known = known_ints(target)
    if known is None:
        return Type(x.dtype, tuple(fresh() for _ in range(count_of(target))))
    return Type(x.dtype, reshaped(x.shape, known, bool(node.int("allowzero"))))


@operator("Flatten", axis=1)
def flatten(node: Node, x: Numbers) -> Numbers:
    axis = _split_at(node, x.ndim)
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _split_at(node: Node, rank: int) -> int:
    axis = node.int("axis")
    return rank if axis == rank else axis_of(axis, rank)


@typed(flatten)
def _(node: Node) -> Type:
    x = node.operands[0].type
    axis = _split_at(node, x.rank)
    return Type(x.dtype, (total(x.shape[:axis]), total(x.shape[axis:])))


@operator("Squeeze")
def squeeze(node: Node, x: Numbers, axes: Numbers | None = None) -> Numbers:
    return x.squeeze(None if axes is None else axes_of(ints(axes), x.ndim))


@typed(squeeze)
def _(node: Node) -> Type:
    x, axes = node.operands[0].type, optional(node, 1)
    if axes is None:
        return Type(x.dtype, tuple(d for d in x.shape if d != 1))
    known = known_ints(axes)
    if known is None:
        return Type(x.dtype, tuple(fresh() for _ in range(x.rank - count_of(axes))))
    away = axes_of(known, x.rank)
    if not all(agree(x.shape[a], 1) for a in away):
        raise Error(f"axes {list(away)} of {x} are not all 1")
    return Type(x.dtype, tuple(d for i, d in enumerate(x.shape) if i not in away))


@operator("Unsqueeze")
def unsqueeze(node: Node, x: Numbers, axes: Numbers) -> Numbers:
    return np.expand_dims(x, axes_of(ints(axes), x.ndim + axes.size))


@typed(unsqueeze)
def _(node: Node) -> Type:
    x, axes = node.operands
    known = known_ints(axes)
    if known is None:
        return Type(x.dtype, tuple(fresh() for _ in range(x.type.rank + count_of(axes))))
    new = axes_of(known, x.type.rank + len(known))
    old = iter(x.shape)
    return Type(x.dtype, tuple(1 if i in new else next(old) for i in range(len(new) + x.type.rank)))


@operator("Transpose", perm=None)
def transpose(node: Node, x: Numbers) -> Numbers:
    return x.transpose(_order(node, x.ndim))


def _order(node: Node, rank: int) -> tuple[int, ...]:
    if node.attrs["perm"] is None:
        return tuple(reversed(range(rank)))
    order = axes_of(node.ints("perm"), rank)
    if len(order) != rank:
        raise Error(f"perm {list(order)} does not order {rank} dimensions")
    return order


@typed(transpose)
def _(node: Node) -> Type:
    x = node.operands[0].type
    return Type(x.dtype, tuple(x.shape[i] for i in _order(node, x.rank)))


@operator("Expand")
def expand(node: Node, x: Numbers, target: Numbers) -> Numbers:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, ints(target)))


@typed(expand)
def _(node: Node) -> Type:
    x, target = node.operands
    known = known_ints(target)
    if known is None:
        rank = max(x.type.rank, count_of(target))
        return Type(x.dtype, tuple(fresh() for _ in range(rank)))
    if min(known, default=0) < 0:
        raise Error(f"cannot expand to {list(known)}")
    return Type(x.dtype, broadcast(x.shape, known))


@operator("Tile")
def tile(node: Node, x: Numbers, repeats: Numbers) -> Numbers:
    return np.tile(x, ints(repeats))


@typed(tile)
def _(node: Node) -> Type:
    x, repeats = node.operands
    known = known_ints(repeats)
    if known is None:
        return Type(x.dtype, tuple(fresh() for _ in x.shape))
    if len(known) != x.type.rank or min(known, default=0) < 0:
        raise Error(f"repeats {list(known)} do not fit {x.type}")
    dims = (total((d, r)) for d, r in zip(x.shape, known, strict=True))
    return Type(x.dtype, tuple(dims))


# Pieces.


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
            raise Error(f"cannot join {first} and {x.type}")
        others = [*x.shape[:axis], dims[axis], *x.shape[axis + 1 :]]
        dims = [unite(a, b) for a, b in zip(dims, others, strict=True)]
        along.append(x.shape[axis])
    wide = [d for d in along if d != 0]
    numbers = [d for d in wide if isinstance(d, int)]
    if len(numbers) == len(wide):
        dims[axis] = sum(numbers)
    else:
        dims[axis] = wide[0] if len(wide) == 1 else fresh()
    return Type(first.dtype, tuple(dims))


@operator("Split", axis=0, num_outputs=None)
def split(node: Node, x: Numbers, sizes: Numbers | None = None) -> tuple[Numbers, ...]:
    axis = axis_of(node.int("axis"), x.ndim)
    lengths = ints(sizes) if sizes is not None else _even(node, x.shape[axis])
    if sum(lengths) != x.shape[axis]:
        raise Error(f"pieces of {list(lengths)} do not make up {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis))


def _even(node: Node, size: int) -> tuple[int, ...]:
    """Pieces of the same size, the last one smaller where it does not go up."""
    count = node.int("num_outputs")
    each = -(-size // count)
    return (*[each] * (count - 1), size - each * (count - 1))


@typed(split)
def _(node: Node) -> tuple[Type, ...]:
    x, sizes = node.operands[0].type, optional(node, 1)
    axis = axis_of(node.int("axis"), x.rank)
    known = known_ints(sizes)
    lengths: tuple[Dim, ...]
    if known is not None:
        if min(known, default=-1) < 0 or not agree(sum(known), x.shape[axis]):
            raise Error(f"pieces of {list(known)} do not make up {x.shape[axis]}")
        lengths = known
    else:
        given = node.attrs["num_outputs"]
        count = node.int("num_outputs") if given is not None or sizes is None else count_of(sizes)
        whole = x.shape[axis]
        if not 1 <= count <= 1 << 16:
            raise Error(f"a split into {count} pieces")
        even = sizes is None and isinstance(whole, int)
        lengths = _even(node, int(whole)) if even else tuple(fresh() for _ in range(count))
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
    """ONNX's slice of `size` values -> Python's, whose ends count from the end when negative."""
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
    starts, ends = known_ints(node.operands[1]), known_ints(node.operands[2])
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
        raise Error("starts, ends, axes and steps are not equally many")
    for axis, start, end, step in zip(over, starts, ends, by, strict=True):
        size = dims[axis]
        if isinstance(size, int):
            dims[axis] = len(range(*_slice_of(start, end, step, size).indices(size)))
        elif not (start == 0 and step == 1 and end >= np.iinfo(np.int32).max):
            dims[axis] = fresh()
    return Type(x.dtype, tuple(dims))


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


@operator("Pad", mode="constant")
def pad(
    node: Node,
    x: Numbers,
    pads: Numbers,
    value: Numbers | None = None,
    axes: Numbers | None = None,
) -> Numbers:
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
    return np.pad(kept, widths, mode=_PAD_MODES[node.str("mode")])  # type: ignore[call-overload,no-any-return]


@typed(pad)
def _(node: Node) -> Type:
    x, pads = node.operands[0].type, known_ints(node.operands[1])
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
        if isinstance(size, int):
            left = size + min(begin, 0) + min(end, 0)
            if left < 0 or (left == 0 and max(begin, end) > 0 and node.str("mode") != "constant"):
                raise Error(f"pads {begin} and {end} leave nothing of {size} values")
            dims[axis] = size + begin + end
        elif begin or end:
            dims[axis] = fresh()
    return Type(x.dtype, tuple(dims))


# Blocks.


@operator("DepthToSpace", blocksize=required(), mode="DCR")
def depth_to_space(node: Node, x: Numbers) -> Numbers:
    n, c, h, w = x.shape
    b = node.int("blocksize")
    if node.str("mode") == "DCR":
        blocks = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // b**2, h * b, w * b)


@operator("SpaceToDepth", blocksize=required(), mode="DCR")
def space_to_depth(node: Node, x: Numbers) -> Numbers:
    n, c, h, w = x.shape
    b = node.int("blocksize")
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if node.str("mode") == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, c * b**2, h // b, w // b)


@typed(depth_to_space, space_to_depth)
def _(node: Node) -> Type:
    x, b = node.operands[0].type, node.int("blocksize")
    if x.rank != 4 or b < 1 or node.str("mode") not in ("DCR", "CRD"):
        raise Error(f"{x} does not rearrange in blocks of {b}, mode {node.str('mode')}")
    n, c, h, w = x.shape

    def over(size: Dim, by: int) -> Dim:
        if isinstance(size, int) and size % by:
            raise Error(f"{by} does not divide {size} of {x}")
        return size // by if isinstance(size, int) else fresh()

    if node.op == "DepthToSpace":
        return Type(x.dtype, (n, over(c, b * b), total((h, b)), total((w, b))))
    return Type(x.dtype, (n, total((c, b * b)), over(h, b), over(w, b)))


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
    return np.pad(x[tuple(cut)], widths)


def _axes_attribute(node: Node, rank: int) -> tuple[int, ...]:
    return axes_of(node.ints("axes") if node.attrs["axes"] is not None else range(rank), rank)


@typed(center_crop_pad)
def _(node: Node) -> Type:
    x, known = node.operands[0].type, known_ints(node.operands[1])
    over = _axes_attribute(node, x.rank)
    if known is not None and len(known) != len(over):
        raise Error(f"shape {list(known)} is not one number for each of {len(over)} axes")
    dims = list(x.shape)
    for i, axis in enumerate(over):
        dims[axis] = fresh() if known is None else known[i]
    return Type(x.dtype, tuple(dims))


@operator("ReverseSequence", batch_axis=1, time_axis=0)
def reverse_sequence(node: Node, x: Numbers, lengths: Numbers) -> Numbers:
    """The first `lengths` steps of each sequence, backwards."""
    batch, time = (axis_of(node.int(k), x.ndim) for k in ("batch_axis", "time_axis"))
    rows = np.moveaxis(x, (batch, time), (0, 1))
    made = rows.copy()
    for i, n in enumerate(ints(lengths)):
        made[i, :n] = rows[i, :n][::-1]
    return np.moveaxis(made, (0, 1), (batch, time))


@typed(reverse_sequence)
def _(node: Node) -> Type:
    x, lengths = node.operands
    need_rank(x, 2, "input")
    batch, _ = axes_of((node.int("batch_axis"), node.int("time_axis")), x.type.rank)
    if lengths.type.rank != 1 or not agree(lengths.shape[0], x.shape[batch]):
        raise Error(f"{lengths.type} is not one length for each of {x.shape[batch]} sequences")
    return x.type


@operator("Trilu", upper=1)
def trilu(node: Node, x: Numbers, k: Numbers | None = None) -> Numbers:
    by = 0 if k is None else ints(k)[0]
    by = max(-max(x.shape), min(by, max(x.shape)))
    return np.triu(x, by) if node.int("upper") else np.tril(x, by)


@typed(trilu)
def _(node: Node) -> Type:
    return need_rank(node.operands[0], 2, "input")
