"""Operators that work along a few dimensions and treat what lies along the others alone."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite.matching import const, to_dtype
from qcompiler.rewrite.padding.along import reduced
from qcompiler.rewrite.padding.digits import digits_of
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.rules import demand_axis, demand_closed, made_of, outputs, pads


@pads("CastLike", "BitCast")
def _cast(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    if node.op == "CastLike":
        return Padded(make("Cast", x.node, to=node.dtype, name=node.name), x.dims)
    return Padded(made_of(p, node, x.node), x.dims)


@pads("Det")
def _det(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    demand_axis(p, x, (x.rank - 2, x.rank - 1))
    return Padded(made_of(p, node, x.node), x.dims[:-2])


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
    demand_axis(p, x, [x.rank - 1])
    tables = others if len(others) < 3 else others[2:]
    if len(others) > 2 and any(t.open for t in others[:2]):
        raise p.refused("tables of an open size")
    for table in tables:
        if table.dims[:2] != (x.dims[0], x.dims[-2]):
            raise p.refused("its tables are only as long for some sizes")
    rows = [p.masked(t, t.open, 0).node for t in tables]
    nodes = [*(t.node for t in others[:-1]), *rows] if len(others) > 2 else rows
    return Padded(make(node.op, x.node, *nodes, name=node.name, **node.attrs), x.dims)


@pads("RoiAlign")
def _roi_align(p: Padding, node: Node) -> Padded:
    """Any number of regions of images of one size."""
    x, regions, images = (p.value(i) for i in node.operands)
    demand_axis(p, x, [2, 3])
    if regions.dims[0] != images.dims[0]:
        regions, images = p.prefix(regions, 0), p.prefix(images, 0)
    if regions.dims[0] != images.dims[0]:
        raise p.refused("regions and images are only equally many for some sizes")
    of_none = p.masked(images, [0], -1)
    made = make(node.op, x.node, regions.node, of_none.node, name=node.name, **node.attrs)
    return Padded(
        made, (regions.dims[0], x.dims[1], *(digits_of([d]) for d in node.type.shape[2:]))
    )
