"""Parts and wholes of what data decide the size of: Slice, Split, Concat, Pad, Tile -> calls on
operands of the largest sizes (carried.py), with what is there in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qcompiler.artifact import sizes as expressions
from qcompiler.artifact.sizes import Size
from qcompiler.ir import Dim, Node, constant
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call, Result, axis_of
from qcompiler.onnx_io.carried import carries, followed
from qcompiler.onnx_io.settle import Settling, zeros
from qcompiler.ops import known_value
from qcompiler.ops.known_sizes import known_sizes, never_below_0
from qcompiler.ops.shapes import together

_END = (1 << 31) - 1
"""At least so large is the end of a slice that has none."""


@carries("Slice")
def _slice(call: Call, bounds: Bounds) -> Node:
    x, s = call.need(0), bounds.settling(call)
    axes, steps = (known_value(call.input(i)) for i in (3, 4))
    starts, ends = (known_sizes(bounds.twin(call.need(i))) for i in (1, 2))
    absent = (call.input(3) is None, call.input(4) is None)
    if starts is None or ends is None or (axes is None and not absent[0]):
        raise bounds.refusal(call)
    if steps is None and not absent[1]:
        raise bounds.refusal(call)
    named = range(starts.size) if axes is None else axes.ravel()
    places = [axis_of(call, int(a), x.type.rank) for a in named]
    dims, begins, limits = list(bounds.twin(x).shape), starts.ravel().tolist(), list[Dim]()
    for i, axis in enumerate(places):
        step = 1 if steps is None else int(steps.ravel()[i])
        start, end = begins[i], ends.ravel()[i]
        if not any(map(bounds.varies, (dims[axis], start, end))):
            limits.append(end)
            continue
        if step != 1 or not bounds.reaches(start, 0):
            raise bounds.refusal(call)
        size, dims[axis] = dims[axis], _cut(s, bounds, dims[axis], start, end)
        if bounds.varies(start):
            x, begins[i] = _from_there(s, bounds, x, axis, (start, size, dims[axis])), 0
        limits.append(expressions.settled(Size.of(bounds.most(dims[axis])) + begins[i]))
        x = _as_long(s, x, axis, limits[-1])
    cut = call.but(inputs=(x, s.ints(begins), s.ints(limits), *call.inputs[3:]))
    made = bounds.typed(cut, cut.inputs)
    touched = [a for a in range(x.type.rank) if bounds.varies(dims[a])]
    true = [dims[a] if a in touched else d for a, d in enumerate(made.shape)]
    if any(bounds.most(d) != room for d, room in zip(true, made.shape, strict=True)):
        raise bounds.refusal(call)
    own = [bounds.twin(call.need(0)), *call.inputs[1:]]
    moves = begins != starts.ravel().tolist()
    twin = bounds.typed(call, own) if not touched and not moves else None
    return bounds.put_sizes(made, true) if twin is None else bounds.twinned(call, made, twin)


def _from_there(s: Settling, bounds: Bounds, x: Node, axis: int, cut: tuple[Dim, Dim, Dim]) -> Node:
    """A value from a place of the run on: (the place, how many there are, how many it then has)."""
    start, size, count = cut
    places = s.node("Add", s.steps(bounds.most(count)), bounds.number(start))
    last = s.node("Max", s.node("Sub", bounds.number(size), 1), 0)
    return s.node("Gather", x, s.node("Min", places, last), axis=axis)


def _as_long(s: Settling, x: Node, axis: int, least: Dim) -> Node:
    """A value whose memory is at least so long along an axis: where it is open, zeros follow."""
    if not isinstance(least, int) or isinstance(x.shape[axis], int):
        return x
    return followed(s, x, axis, least, 0)


def _cut(s: Settling, bounds: Bounds, size: Dim, start: Dim, end: Dim) -> Dim:
    """How many elements of so many a slice of step 1 has."""
    last = expressions.settled(Size.of(size) + end) if isinstance(end, int) and end < 0 else end
    if isinstance(last, int) and last >= _END:
        last = size
    last = bounds.smaller([size, last])
    length = expressions.settled(Size.of(last) - start)
    if bounds.reaches(length, 0):
        return length
    count = s.node("Max", s.node("Sub", bounds.number(last), bounds.number(start)), 0)
    most = bounds.most(length)
    if isinstance(most, str) and not never_below_0(most):
        most = bounds.most(last)  # as many as there are, at least
    return bounds.size(
        ("length", last, start), count, most if isinstance(most, str) else max(most, 0)
    )


@carries("Split")
def _split(call: Call, bounds: Bounds) -> Result:
    x = call.need(0)
    axis = axis_of(call, call.number("axis"), x.type.rank)
    if axis not in bounds.counted(x):
        return bounds.carried(call)
    if call.outputs == 1:  # the whole; its size is checked
        sizes = call.input(1)
        own = None if sizes is None else known_sizes(bounds.twin(sizes))
        if own is not None and own.ravel().tolist() == [bounds.counted(x)[axis]]:
            return (x,)
    raise bounds.refusal(call)


@carries("Concat")
def _concat(call: Call, bounds: Bounds) -> Node:
    nodes = [i for i in call.inputs if i is not None]
    axis = axis_of(call, call.number("axis"), nodes[0].type.rank)
    shapes = [bounds.twin(n).shape for n in nodes]
    for shape, node in zip(shapes[1:], nodes[1:], strict=True):
        for a in range(len(shape)):
            if a != axis and shape[a] != shapes[0][a]:
                if node.shape[a] != nodes[0].shape[a]:
                    raise bounds.refusal(call)
                bounds.same(call, shapes[0][a], shape[a])
    if not any(bounds.varies(shape[axis]) for shape in shapes[:-1]):
        return bounds.carried(call)
    made, s = bounds.typed(call, nodes), bounds.settling(call)
    along = [(shape[axis], n.shape[axis]) for shape, n in zip(shapes, nodes, strict=True)]
    picked = s.node("Gather", made, _packed(s, bounds, along), axis=axis)
    dims = list(shapes[0])
    dims[axis] = together([size for size, _ in along])
    return bounds.put_sizes(picked, dims)


def _packed(s: Settling, bounds: Bounds, along: Sequence[tuple[Dim, Dim]]) -> Node:
    """(size, room) of parts that lie behind each other -> where what is there lies, in order."""
    key = ("packed", tuple(along))
    if key not in bounds.masks:
        parts = [
            constant(np.ones(size, np.bool_))
            if isinstance(size, int)
            else bounds.there(s, size, room)
            for size, room in along
        ]
        flags = s.node("Cast", s.node("Concat", *parts, axis=0), to="int64")
        room = together([r for _, r in along])
        ends = s.node("CumSum", flags, 0)
        before = s.node("Sub", ends, flags)
        to = s.node("Where", s.node("Equal", flags, 1), before, room)
        empty = zeros(s, together((room, 1)))
        moved = s.node("ScatterElements", empty, to, s.steps(room), axis=0)
        bounds.masks[key] = s.node("Slice", moved, [0], [room])
    return bounds.masks[key]


@carries("Tile")
def _tile(call: Call, bounds: Bounds) -> Node:
    """Along other axes."""
    x, numbers = call.need(0), known_value(call.need(1))
    counted = bounds.counted(x)
    if counted and (numbers is None or any(numbers.ravel()[a] != 1 for a in counted)):
        raise bounds.refusal(call)
    return bounds.carried(call)


@carries("Pad")
def _pad(call: Call, bounds: Bounds) -> Node:
    """Behind an axis whose size data decide, or by so many as they decide: a number instead of what
    is not there.
    """
    x, pads, value = call.need(0), known_sizes(bounds.twin(call.need(1))), call.input(2)
    rank, s = x.type.rank, bounds.settling(call)
    if pads is None or pads.size != 2 * rank or call.input(3) is not None:
        raise bounds.refusal(call)
    begins, ends = (half.tolist() for half in np.split(pads.ravel(), 2))
    dims = list(bounds.twin(x).shape)
    moving = [
        a for a in range(rank) if bounds.varies(ends[a]) or (bounds.varies(dims[a]) and ends[a])
    ]
    known = None if value is None else known_value(value)
    if any(begins[a] for a in {*moving, *bounds.counted(x)}) or not _all_ints(begins):
        raise bounds.refusal(call)
    if moving and (call.get("mode") != "constant" or (value is not None and known is None)):
        raise bounds.refusal(call)
    fill = 0 if known is None else known.ravel()[0]
    made = bounds.masked(s, x, moving, fill)
    for axis in moving:
        dims[axis] = expressions.settled(Size.of(dims[axis]) + ends[axis])
        made = _of_room(s, made, axis, bounds.most(dims[axis]), fill)
        ends[axis] = 0
    others = [i for i in range(rank) if begins[i] or ends[i]]
    if others:
        made = s.node("Pad", made, s.ints([*begins, *ends]), value, **call.attrs)
        dims = [made.shape[a] if a in others else d for a, d in enumerate(dims)]
    if not all(
        bounds.known(d) and bounds.most(d) == r for d, r in zip(dims, made.shape, strict=True)
    ):
        raise bounds.refusal(call)
    return bounds.put_sizes(made, dims)


def _all_ints(sizes: Sequence[Dim]) -> bool:
    return all(isinstance(d, int) for d in sizes)


def _of_room(s: Settling, x: Node, axis: int, room: Dim, fill: Any) -> Node:
    """A value with memory for so many along an axis, a number in what is added."""
    more = expressions.settled(Size.of(room) - x.shape[axis])
    if not isinstance(more, int):
        raise s.refusal()
    return followed(s, x, axis, more, fill) if more > 0 else s.node("Slice", x, [0], [room], [axis])
