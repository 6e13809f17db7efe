"""Operators that work along a few dimensions and treat what lies along the others alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node
from qcompiler.ops import make
from qcompiler.ops.contraction import sums_of
from qcompiler.rewrite.matching import const, reshape, to_dtype
from qcompiler.rewrite.padding.along import reduced
from qcompiler.rewrite.padding.digits import digits_of, is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.moves import counted
from qcompiler.rewrite.padding.rules import (
    demand_axis,
    demand_closed,
    made_of,
    outputs,
    pads,
    together,
)


@pads("CastLike", "BitCast")
def _cast(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    if node.op == "CastLike":
        return Padded(make("Cast", x.node, to=node.dtype, name=node.name), x.dims)
    return Padded(made_of(p, node, x.node), x.dims)


@pads("Det")
def _det(p: Padding, node: Node) -> Padded:
    """Of an open size: that of the matrix and, behind its end, the identity."""
    x = p.value(node.operands[0])
    rows, columns = x.rank - 2, x.rank - 1
    x = p.prefix(p.prefix(x, rows), columns)
    if x.dims[rows] != x.dims[columns]:
        raise p.refused("its matrices are only square for some sizes")
    whole = const(np.eye(p.whole(x.dims[rows])), x.node.dtype)
    x = p.masked(x, [rows, columns], whole)
    return Padded(made_of(p, node, x.node), x.dims[:-2])


@pads("LRN")
def _lrn(p: Padding, node: Node) -> Padded:
    """Channels that are not there are 0, as beside the first."""
    x = p.masked(p.prefix(p.value(node.operands[0]), 1), [1], 0)
    return Padded(made_of(p, node, x.node), x.dims)


@pads("DFT")
def _dft(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    axis = (-2,) if len(node.inputs) < 3 or node.inputs[2] is None else p.numbers(node.inputs[2])
    if axis is None:
        raise p.refused("its axis is not known")
    demand_axis(p, x, [axis[0] % x.rank, x.rank - 1])
    new = zip(x.dims, node.type.shape, x.node.type.dims, strict=True)
    return Padded(
        made_of(p, node, x.node), tuple(d if p.at(n) == o else digits_of([n]) for d, n, o in new)
    )


@pads("Col2Im", "col2im")
def _col2im(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    demand_axis(p, x, range(1, x.rank))
    return Padded(
        made_of(p, node, x.node), (x.dims[0], *(digits_of([d]) for d in node.type.shape[1:]))
    )


@pads("STFT")
def _stft(p: Padding, node: Node) -> Padded:
    """Frames of a signal of any length: as many as lie within it."""
    x = p.prefix(p.value(node.operands[0]), 1)
    demand_closed(p, node)
    return Padded(
        made_of(p, node, x.node), (x.dims[0], *(digits_of([d]) for d in node.type.shape[1:]))
    )


@pads("DynamicQuantizeLinear")
def _dynamic(p: Padding, node: Node) -> tuple[Padded, ...]:
    """The range of what is seen always has 0 in it."""
    x = p.value(node.operands[0])
    hidden = p.masked(x, x.open, 0)
    return outputs(p, made_of(p, node, hidden.node), [x.dims, (), ()])


@pads("GlobalLpPool")
def _global_lp(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    over = range(2, x.rank)
    hidden = p.masked(x, over, 0)
    return Padded(made_of(p, node, hidden.node), (*x.dims[:2], *[()] * len(over)))


@pads("LpNormalization")
def _lp(p: Padding, node: Node) -> Padded:
    """By the norm of what is valid."""
    x = p.value(node.operands[0])
    hidden = p.masked(x, [node.int("axis") % x.rank], 0)
    return Padded(made_of(p, node, hidden.node), x.dims)


@pads("MeanVarianceNormalization")
def _mean_variance(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    axes = [a % x.rank for a in node.ints("axes")]
    wide = replace(x, node=to_dtype(x.node, "float32"))
    mean = reduced(p, "ReduceMean", wide, axes, node.type, keep=True)
    centred = replace(wide, node=make("Sub", wide.node, mean.node))
    squares = replace(wide, node=make("Mul", centred.node, centred.node))
    variance = reduced(p, "ReduceMean", squares, axes, node.type, keep=True)
    deviation = make("Add", make("Sqrt", variance.node), const(1e-9, "float32"))
    made = to_dtype(make("Div", centred.node, deviation), node.dtype)
    return Padded(made, x.dims)


@pads("RotaryEmbedding")
def _rotary(p: Padding, node: Node) -> Padded:
    """Every position by its own row of the tables."""
    x, *others = (p.value(i) for i in node.operands)
    if any(is_open(v.dims[-1]) for v in (x, *others[:2])):
        return _rotated(p, node, x, others)
    tables = others if len(others) < 3 else others[2:]
    if len(others) > 2 and any(t.open for t in others[:2]):
        raise p.refused("tables of an open size")
    for table in tables:
        if table.dims[:2] != (x.dims[0], x.dims[-2]):
            raise p.refused("its tables are only as long for some sizes")
    rows = [p.masked(t, t.open, 0).node for t in tables]
    nodes = [*(t.node for t in others[:-1]), *rows] if len(others) > 2 else rows
    return Padded(make(node.op, x.node, *nodes, name=node.name, **node.attrs), x.dims)


def _rotated(p: Padding, node: Node, x: Padded, given: list[Padded]) -> Padded:
    """Heads of an open size: each value, and its partner, by its cosine and sine."""
    (batch, *middle, width), part = node.type.shape, node.int("rotary_embedding_dim")
    heads = 1
    if x.rank == 3:  # [batch, sequence, heads, size]
        count = node.int("num_heads")
        size = Size.of(width).over(count)
        if size is None:
            raise p.refused(f"{width} does not divide into {count} heads for some sizes")
        width, heads = settled(size), 2
        x = p.reshaped(x, (batch, *middle, count, width))
    if not p.at_least(settled(Size.of(width) - part), 0):
        raise p.refused(f"there may be fewer than {part} values to rotate")
    x = p.prefix(x, 3)
    place = np.arange(p.whole(x.dims[3]))
    at, half = const(place, "int32"), p.size(settled(Size.of(part or width) // 2))
    first = make("Less", at, half)
    partner = make("Where", first, make("Add", at, half), make("Sub", at, half))
    row = make("Where", first, at, make("Sub", at, half))
    if node.int("interleaved"):
        first = const(place % 2 == 0, "bool")
        partner, row = const(place ^ 1, "int32"), const(place // 2, "int32")
    values = [x, p.take(x, 3, _up_to(partner, len(place)), x.dims[3])]
    for table, source in zip(given[:2], node.operands[1:3], strict=True):
        rows = table if len(given) < 3 else _looked_up(p, node, table, source.shape[0])
        rows = p.prefix(rows, 2)
        angles = p.take(rows, 2, _up_to(row, p.whole(rows.dims[2])), x.dims[3])
        shape = list(angles.node.type.dims)
        shape.insert(heads, 1)
        dims = (*angles.dims[:heads], (), *angles.dims[heads:])
        values.append(Padded(reshape(angles.node, shape), dims))
    (x, *values), dims = together(p, values, 4)
    wide = sums_of(node.dtype)
    own, other, cos, sin = (to_dtype(v.node, wide) for v in (x, *values))
    sign = make("Where", first, const([-1], wide), const([1], wide))
    turned = make("Mul", make("Mul", other, sin), sign)
    made = to_dtype(make("Add", make("Mul", own, cos), turned), node.dtype)
    if part:
        made = make("Where", make("Less", at, const([part], "int32")), made, x.node)
    return p.reshaped(Padded(made, dims), node.type.shape)


def _up_to(index: Node, count: int) -> Node:
    """Indices of which those that are not valid are below a number, too."""
    low, high = const([0], "int32"), const([count - 1], "int32")
    return make("Min", make("Max", index, low), high)


def _looked_up(p: Padding, node: Node, table: Padded, rows: Dim) -> Padded:
    """The rows of a table at the positions that are given."""
    places, table = p.value(node.operands[3]), p.prefix(table, 0)
    at = counted(p, node.operands[3], places.node, rows)
    index = p.masked(replace(places, node=at), places.open, 0)
    return Padded(make("Gather", table.node, index.node, axis=0), (*index.dims, table.dims[1]))


@pads("RoiAlign")
def _roi_align(p: Padding, node: Node) -> Padded:
    """Any number of regions of images of any size."""
    x, regions, images = (p.value(i) for i in node.operands)
    x = p.prefix(p.prefix(x, 2), 3)
    if regions.dims[0] != images.dims[0]:
        regions, images = p.prefix(regions, 0), p.prefix(images, 0)
    if regions.dims[0] != images.dims[0]:
        raise p.refused("regions and images are only equally many for some sizes")
    of_none = p.masked(images, [0], -1)
    nodes, name = [x.node, regions.node, of_none.node], node.op
    if is_open(x.dims[2]) or is_open(x.dims[3]):
        sizes = (p.size(d) for d in node.operands[0].type.shape[2:])
        nodes, name = [*nodes, make("Concat", *sizes, axis=0)], "roi_align"
    made = make(name, *nodes, name=node.name, **node.attrs)
    return Padded(
        made, (regions.dims[0], x.dims[1], *(digits_of([d]) for d in node.type.shape[2:]))
    )
