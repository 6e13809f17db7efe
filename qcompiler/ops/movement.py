"""Data movement: the same values in another shape, order or number."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Array, Dim, Node, Type, numpy_dtype
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.registry import Numbers, broadcast, fresh, operator, optional, required, typed
from qcompiler.ops.shapes import (
    agree,
    axes_of,
    axis_of,
    count_of,
    known_dims,
    known_ints,
    need_rank,
    need_shape,
    note_divides,
    target_dims,
    total,
)


def ints(values: Numbers) -> tuple[int, ...]:
    """An integer tensor -> its numbers, flattened."""
    return tuple(int(v) for v in values.ravel())


# Shapes.


@operator("Identity")
def identity(node: Node, x: Array) -> Array:
    return x


@operator("BitCast", to=required())
def bit_cast(node: Node, x: Numbers) -> Numbers:
    """The same bits as another type."""
    return np.ascontiguousarray(x).view(numpy_dtype(node.dtype)).reshape(x.shape)


@typed(bit_cast)
def _(node: Node) -> Type:
    x, to = node.operands[0].type, node.str("to")
    packed = {"int4", "uint4"} & {x.dtype, to}
    if packed or numpy_dtype(to).itemsize != numpy_dtype(x.dtype).itemsize:
        raise Error(f"the bits of {x.dtype} are not those of {to}")
    return Type(to, x.shape)


@operator("Dropout", seed=None, outputs=1)
def dropout(
    node: Node, x: Numbers, ratio: Array | None = None, training_mode: Array | None = None
) -> Numbers | tuple[Numbers, ...]:
    """The identity at inference; the mask is all true."""
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


def reshaped(shape: Sequence[Dim], target: Sequence[Dim], allowzero: bool) -> tuple[Dim, ...]:
    """0 copies a dimension (unless `allowzero`), -1 is inferred."""
    given = [d for d in target if isinstance(d, int)]
    if given.count(-1) > 1 or min(given, default=0) < -1:
        raise Error(f"cannot reshape to {list(target)}")
    dims: list[Dim] = []
    for i, d in enumerate(target):
        if d == 0 and not allowzero:
            if i >= len(shape):
                raise Error(f"0 in {list(target)} copies a dimension that {list(shape)} lacks")
            dims.append(shape[i])
        else:
            dims.append(d)
    have, want = total(shape), total([d for d in dims if d != -1])
    if -1 in target:
        whole = Size.of(have).over(want) if want else None
        numbers = isinstance(have, int) and isinstance(want, int)
        if whole is None and (numbers or not want):
            raise Error(f"{list(shape)} does not divide into {list(target)}")
        if whole is None:
            note_divides(have, want)
        dims[target.index(-1)] = fresh() if whole is None else settled(whole)
    elif not agree(have, want):
        raise Error(f"cannot reshape {list(shape)} to {list(target)}")
    return tuple(dims)


@operator("Reshape", allowzero=0)
def reshape(node: Node, x: Numbers, target: Numbers) -> Numbers:
    dims = reshaped(x.shape, ints(target), bool(node.int("allowzero")))
    return x.reshape(tuple(int(d) for d in dims))


@typed(reshape)
def _(node: Node) -> Type:
    x, target = node.operands
    sizes = tuple(fresh() if d is None else d for d in target_dims(target))
    return Type(x.dtype, reshaped(x.shape, sizes, bool(node.int("allowzero"))))


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
        if not x.static:
            raise Error(f"it is not known which dimensions of {x} are 1", hint="name the axes")
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
        raise Error(f"perm {list(order)} is not a permutation of {rank} dimensions")
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
    sizes = target_dims(target)
    if min((d for d in sizes if isinstance(d, int)), default=0) < 0:
        raise Error(f"cannot expand to {list(sizes)}")
    dims = list(broadcast(x.shape, tuple(1 if d is None else d for d in sizes)))
    for i, size in enumerate(reversed(sizes), 1):
        if size is None:  # a run may say a size that does not fit, or a larger one
            dims[-i] = fresh()
    return Type(x.dtype, tuple(dims))


@operator("Tile")
def tile(node: Node, x: Numbers, repeats: Numbers) -> Numbers:
    return np.tile(x, ints(repeats))


@typed(tile)
def _(node: Node) -> Type:
    x, repeats = node.operands
    known = known_dims(repeats)
    need_shape(repeats, (x.type.rank,), "repeats")
    if known is None:
        return Type(x.dtype, tuple(fresh() for _ in x.shape))
    if min((r for r in known if isinstance(r, int)), default=0) < 0:
        raise Error(f"negative repeats {list(known)}")
    dims = (total((d, r)) for d, r in zip(x.shape, known, strict=True))
    return Type(x.dtype, tuple(dims))


# Order.


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
        if Size.of(size).over(by) is None:
            note_divides(size, by)
        return size // by if isinstance(size, int) else settled(Size.of(size) // by)

    if node.op == "DepthToSpace":
        return Type(x.dtype, (n, over(c, b * b), total((h, b)), total((w, b))))
    return Type(x.dtype, (n, total((c, b * b)), over(h, b), over(w, b)))


@operator("ReverseSequence", batch_axis=1, time_axis=0)
def reverse_sequence(node: Node, x: Numbers, lengths: Numbers) -> Numbers:
    """Reverse the first `lengths` steps of each sequence: none of fewer than 0, all of more."""
    batch, time = (axis_of(node.int(k), x.ndim) for k in ("batch_axis", "time_axis"))
    rows = np.moveaxis(x, (batch, time), (0, 1))
    made = rows.copy()
    for i, given in enumerate(ints(lengths)):
        n = max(given, 0)
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
