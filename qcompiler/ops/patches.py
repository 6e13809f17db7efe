"""Windows scattered back into an image: Col2Im, MaxUnpool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Attr, Dim, Node, Type
from qcompiler.ops.contraction import numbers, sums_of
from qcompiler.ops.math import NUMPY
from qcompiler.ops.registry import Numbers, fresh, operator, optional, required, typed
from qcompiler.ops.shapes import known_ints, need_rank, need_shape
from qcompiler.ops.window import Window


def patches(node: Node, sizes: Sequence[int], block: Sequence[int]) -> tuple[Window, Sequence[int]]:
    """The window that extracted a Col2Im's patches from an image of `sizes`, and the number of
    patches along each dimension.
    """
    window = Window.of(node, tuple(sizes), tuple(block))
    counts = window.outputs(tuple(sizes))
    return window, tuple(int(c) for c in counts)


@operator("Col2Im", dilations=None, pads=None, strides=None)
def col2im(node: Node, x: Numbers, image: Numbers, block: Numbers) -> Numbers:
    """x[N, C * prod(block), patches] summed at the patches' positions -> [N, C, *image]."""
    return _added(node, x, *([int(n) for n in given.ravel()] for given in (image, block)))


def _added(node: Node, x: Numbers, sizes: Sequence[int], blocks: Sequence[int]) -> Numbers:
    window, counts = patches(node, sizes, blocks)
    channels = x.shape[1] // prod(blocks)
    columns = x.reshape(len(x), channels, prod(blocks), *counts).astype(sums_of(x.dtype.name))
    begins = [p[0] for p in window.pads if p is not None]
    full = [n + sum(p or ()) for n, p in zip(sizes, window.pads, strict=True)]
    total = np.zeros((len(x), channels, *full), columns.dtype)
    bare = replace(window, pads=((0, 0),) * len(sizes))
    for tap, seen in enumerate(bare.taps(total, counts, first=2)):
        seen += columns[:, :, tap]
    cut = (slice(b, b + n) for b, n in zip(begins, sizes, strict=True))
    made = NUMPY.cast(total[(slice(None), slice(None), *cut)], x.dtype.name)
    return NUMPY.finish(made, x.dtype.name)


@typed(col2im)
def _(node: Node) -> Type:
    x = need_rank(node.operands[0], 3, "input")
    sizes, blocks = known_ints(node.operands[1]), known_ints(node.operands[2])
    rank = node.operands[1].shape[0] if node.operands[1].type.rank == 1 else 0
    if x.dtype == "bool":
        raise Error(f"sums of {x}")
    if x.rank != 3 or not isinstance(rank, int) or node.operands[2].shape != (rank,):
        raise Error(f"{x} is not a batch of columns for {node.operands[1].type}")
    if sizes is None or blocks is None:
        return Type(x.dtype, (x.shape[0], fresh(), *(fresh() for _ in range(rank))))
    return _image(node, x, sizes, blocks)


def _image(node: Node, x: Type, sizes: Sequence[int], blocks: Sequence[int]) -> Type:
    if min((*sizes, *blocks), default=0) < 1:
        raise Error(f"blocks of {list(blocks)} of an image of {list(sizes)}")
    _, counts = patches(node, sizes, blocks)
    rows, columns = x.shape[1:]
    if isinstance(rows, int) and rows % prod(blocks):
        raise Error(f"{rows} rows are not whole blocks of {list(blocks)}")
    if isinstance(columns, int) and columns != prod(counts):
        raise Error(f"{columns} columns, where an image of {list(sizes)} has {prod(counts)}")
    channels = rows // prod(blocks) if isinstance(rows, int) else fresh()
    return Type(x.dtype, (x.shape[0], channels, *sizes))


@operator("col2im", image=required(), block=required(), dilations=None, pads=None, strides=None)
def col2im_known(node: Node, x: Numbers) -> Numbers:
    """Col2Im with known image and block sizes."""
    return _added(node, x, node.ints("image"), node.ints("block"))


@typed(col2im_known)
def _(node: Node) -> Type:
    return _image(node, node.operands[0].type, node.ints("image"), node.ints("block"))


@operator("MaxUnpool", kernel_shape=required(), pads=None, strides=None)
def max_unpool(node: Node, x: Numbers, places: Numbers, shape: Numbers | None = None) -> Numbers:
    """Scatter values to the positions where MaxPool found them, zeros elsewhere.

    `places` index the flattened unpooled tensor. A larger `shape` is padded with zeros at its end.
    """
    whole = numbers(unpooled(node.attrs, x.shape))
    made = np.zeros(prod(whole), x.dtype)
    if places.size and not 0 <= places.min() <= places.max() < made.size:
        raise Error(f"an index outside of {list(whole)}")
    made[places.ravel()] = x.ravel()
    made = made.reshape(whole)
    if shape is None:
        return made
    return np.pad(made, [(0, int(n) - m) for n, m in zip(shape.ravel(), whole, strict=True)])


def unpooled(attrs: Mapping[str, Attr], shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape of MaxPool's input, as far as the attributes determine it."""
    window = Window.of(Node("MaxUnpool", (), attrs, ()), ["?"] * (len(shape) - 2))
    steps = zip(shape[2:], window.strides, window.kernel, window.pads, strict=True)
    whole = (Size.of(n) * s + (k - s - sum(p or ())) for n, s, k, p in steps)
    return (*shape[:2], *map(settled, whole))


@typed(max_unpool)
def _(node: Node) -> Type:
    x = need_rank(node.operands[0], 3, "input")
    places, given = node.operands[1], optional(node, 2)
    need_shape(places, x.shape, "places")
    if places.dtype != "int64":
        raise Error(f"indices of {places.dtype}")
    whole = unpooled(node.attrs, x.shape)
    if given is None:
        return Type(x.dtype, whole)
    wanted = known_ints(given)
    if wanted is None:
        return Type(x.dtype, tuple(fresh() for _ in x.shape))
    if len(wanted) != x.rank or any(
        isinstance(n, int) and m < n for n, m in zip(whole, wanted, strict=True)
    ):
        raise Error(f"output_shape {list(wanted)} is smaller than {list(whole)}")
    return Type(x.dtype, wanted)
