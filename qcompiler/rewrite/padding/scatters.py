"""Writes into padded values, and reads from them, by indices of several dimensions.

What is written at positions that are not valid goes to a row behind the last, which is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qcompiler.ir import Dim, Node
from qcompiler.ops import known_value, make
from qcompiler.rewrite.matching import const, int64s, reshape, to_dtype
from qcompiler.rewrite.padding.digits import is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.moves import counted
from qcompiler.rewrite.padding.rules import demand_axis, pads


@pads("ScatterElements")
def _scatter_elements(p: Padding, node: Node) -> Padded:
    x, index, updates = (p.value(i) for i in node.operands)
    axis = node.int("axis") % x.rank
    for a in range(x.rank):
        if a == axis or not x.dims[a] == index.dims[a] == updates.dims[a]:
            x, index, updates = (p.prefix(v, a) for v in (x, index, updates))
    if index.dims != updates.dims:
        raise p.refused("indices and updates are only equally many for some sizes")
    at = index.node
    if index.open or is_open(x.dims[axis]):
        at = counted(p, node.operands[1], at, node.operands[0].type.shape[axis])
    if not index.open:
        made = make(node.op, x.node, at, updates.node, name=node.name, **node.attrs)
        return Padded(made, x.dims)
    to = p.masked(replace(index, node=at), index.open, p.whole(x.dims[axis])).node
    made = make(node.op, _longer(x, axis), to, updates.node, name="", **node.attrs)
    return _shorter(made, x, axis, node.name)


def _longer(x: Padded, axis: int) -> Node:
    """A value with one more row along a dimension."""
    shape = list(x.node.type.dims)
    shape[axis] = 1
    return make("Concat", x.node, const(np.zeros(shape), x.node.dtype), axis=axis)


def _shorter(made: Node, x: Padded, axis: int, name: str) -> Padded:
    """The same without it."""
    cut = (int64s([n]) for n in (0, x.node.type.dims[axis], axis))
    return Padded(make("Slice", made, *cut, name=name), x.dims)


@pads("ScatterND")
def _scatter_nd(p: Padding, node: Node) -> Padded:
    x, index, updates = (p.value(i) for i in node.operands)
    outer, depth = index.rank - 1, index.node.type.dims[-1]
    demand_axis(p, index, [outer])
    for axis in range(depth):
        x = p.prefix(x, axis)
    for axis in range(depth, x.rank):
        x, updates = _matched(p, x, axis, updates, outer + axis - depth)
    for axis in range(outer):
        index, updates = _matched(p, index, axis, updates, axis)
    sizes = node.operands[0].type.shape[:depth]
    at = _counted(p, node.operands[1], index, sizes)
    if not index.open:
        made = make(node.op, x.node, at, updates.node, name=node.name, **node.attrs)
        return Padded(made, x.dims)
    behind = const([p.whole(x.dims[0]), *[0] * (depth - 1)], at.dtype)
    to = p.masked(replace(index, node=at), index.open, behind).node
    made = make(node.op, _longer(x, 0), to, updates.node, name="", **node.attrs)
    return _shorter(made, x, 0, node.name)


@pads("GatherND")
def _gather_nd(p: Padding, node: Node) -> Padded:
    x, index = (p.value(i) for i in node.operands)
    batch, depth = node.int("batch_dims"), index.node.type.dims[-1]
    demand_axis(p, index, [index.rank - 1])
    for axis in range(batch):
        x, index = _matched(p, x, axis, index, axis)
    picked = range(batch, batch + depth)
    for axis in picked:
        x = p.prefix(x, axis)
    at = index.node
    if any(is_open(x.dims[a]) for a in picked):
        at = _counted(p, node.operands[1], index, [node.operands[0].shape[a] for a in picked])
    made = make(node.op, x.node, at, name=node.name, **node.attrs)
    return Padded(made, (*index.dims[:-1], *x.dims[batch + depth :]))


def _matched(p: Padding, a: Padded, i: int, b: Padded, j: int) -> tuple[Padded, Padded]:
    """Two values that are of one size along dimensions of theirs -> with equal digits there."""
    if a.dims[i] != b.dims[j]:
        a, b = p.prefix(a, i), p.prefix(b, j)
    if a.dims[i] != b.dims[j]:
        raise p.refused("indices and values are only equally many for some sizes")
    return a, b


def _counted(p: Padding, index: Node, value: Padded, sizes: Sequence[Dim]) -> Node:
    """Indices of several dimensions in the last one, each counted from its begin."""
    known, at = known_value(index), value.node
    if known is not None:
        columns = known.reshape(-1, len(sizes)).astype(np.int64)
        most = np.maximum(columns.max(0, initial=-1) + 1, -columns.min(0, initial=0))
        if not all(p.at_least(s, int(n)) for s, n in zip(sizes, most, strict=True)):
            raise p.refused("an index may reach beyond", "a larger LO in --dim NAME=LO..HI helps")
        if columns.min(initial=0) >= 0:
            return at
    each = [p.size(s, at.dtype) for s in sizes]
    whole = make("Concat", *each, axis=0) if len(each) > 1 else each[0]
    below = make("Less", at, const(0, at.dtype))
    return make("Where", below, make("Add", at, whole), at)


@pads("TensorScatter")
def _tensor_scatter(p: Padding, node: Node) -> Padded:
    """Rows are written; or, where a run decides how many, or where the end is at which a circular
    one begins anew, each place reads the row that is written there, if there is one.
    """
    x, update = (p.value(i) for i in node.operands[:2])
    axis = node.int("axis") % x.rank
    for other in range(x.rank):
        if other != axis:
            x, update = _matched(p, x, other, update, other)
    x, update = p.prefix(x, axis), p.prefix(update, axis)
    starts: Padded | None = None
    if len(node.operands) > 2:
        starts, x = _matched(p, p.value(node.operands[2]), 0, x, 0)
    circular = node.str("mode") == "circular"
    if is_open(update.dims[axis]) or (circular and is_open(x.dims[axis])):
        return _written(p, node, x, update, axis, starts)
    nodes = [x.node, update.node]
    if starts is not None:
        nodes.append(p.masked(starts, starts.open, 0).node)
    return Padded(make(node.op, *nodes, name=node.name, **node.attrs), x.dims)


def _written(
    p: Padding, node: Node, x: Padded, update: Padded, axis: int, starts: Padded | None
) -> Padded:
    size, count = (p.size(i.shape[axis]) for i in node.operands[:2])
    row = p.along(p.steps(p.whole(x.dims[axis])), axis, x.rank)
    if starts is not None:
        start = to_dtype(starts.node, "int32")
        row = make("Sub", row, reshape(start, (start.type.size, *[1] * (x.rank - 1))))
    zero, one = const([0], "int32"), const([1], "int32")
    if node.str("mode") == "circular":  # the last of those that are written to one place
        last = make("Sub", count, one)
        row = make("Sub", last, make("Mod", make("Sub", last, row), size))
    there = make("And", make("GreaterOrEqual", row, zero), make("Less", row, count))
    end = const([p.whole(update.dims[axis]) - 1], "int32")
    index = make("Expand", make("Min", make("Max", row, zero), end), int64s(x.node.type.dims))
    rows = make("GatherElements", update.node, index, axis=axis)
    return Padded(make("Where", there, rows, x.node, name=node.name), x.dims)


@pads("ReverseSequence")
def _reverse(p: Padding, node: Node) -> Padded:
    """What is behind a sequence stays where it is. None is longer than a run's."""
    x = p.prefix(p.value(node.operands[0]), node.int("time_axis"))
    lengths, x = _matched(p, p.value(node.operands[1]), 0, x, node.int("batch_axis") % x.rank)
    ends, steps = lengths.node, node.operands[0].shape[node.int("time_axis") % x.rank]
    if not isinstance(steps, int):
        ends = make("Min", ends, p.size(steps, ends.dtype))
    return Padded(make(node.op, x.node, ends, name=node.name, **node.attrs), x.dims)
