"""Slice, Pad, Tile and Range by operands known at run time only -> gathers by indices.

The declared shape of the output says how many indices there are along each axis; every run checks
that the operands say the same.
"""

from __future__ import annotations

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node, constant
from qcompiler.onnx_io.axes import in_range
from qcompiler.onnx_io.call import Result, axis_of
from qcompiler.onnx_io.settle import Bound, Settling, listed, settles
from qcompiler.ops import known_value
from qcompiler.ops.shapes import total


def _each_axis(s: Settling, values: Node, axes: Node | None, rank: int, default: int) -> list[Node]:
    """A vector of a number for each of some axes -> a vector of one for every axis."""
    if axes is None and not values.type.static:
        each = s.steps(rank)
        last = s.node("Sub", s.node("Shape", values), 1)
        held = s.node("Gather", values, s.node("Min", each, last), axis=0)
        full = s.node("Where", s.node("LessOrEqual", each, last), held, default)
        s.check(s.node("Less", last, rank), f"more than {rank} numbers")
        return [s.node("Slice", full, [a], [a + 1]) for a in range(rank)]
    known = range(values.type.size) if axes is None else known_value(axes)
    if known is not None:
        places = [axis_of(s.call, int(a), rank) for a in np.asarray(known).ravel()]
        none = s.ints([default])
        return [
            s.node("Slice", values, [places.index(a)], [places.index(a) + 1])
            if a in places
            else none
            for a in range(rank)
        ]
    assert axes is not None
    flat = s.flat(axes)
    in_range(s, flat, rank)
    whole = s.ints([default] * rank)
    full = s.node("ScatterElements", whole, flat, values, axis=0)
    return [s.node("Slice", full, [a], [a + 1]) for a in range(rank)]


def _length(s: Settling, start: Node, end: Node, step: Node) -> Node:
    """max(ceil((end - start) / step), 0), exact, as vectors of float64."""
    distance, by = (s.node("Cast", i, to="float64") for i in (s.node("Sub", end, start), step))
    steps = s.node("Ceil", s.node("Div", distance, by))
    return s.node("Max", steps, constant(np.zeros(1, np.float64)))


def _clipped(s: Settling, value: Node, low: Node, high: Node) -> Node:
    return s.node("Max", s.node("Min", value, high), low)


@settles("Slice", operands=(1, 2, 3, 4))
def _slice(s: Settling) -> Result:
    x = s.call.need(0)
    rank = x.type.rank
    if s.shapes[0] is None and s.bound is not None:
        return _bounded_slice(s, s.bound)
    wanted = s.shape
    if len(wanted) != rank:
        raise s.call.error(f"a slice of {x.type} has {rank} dimensions, not {len(wanted)}")
    axes = s.call.input(3)
    ends = [(1 << 63) - 1, 1]
    starts = _each_axis(s, s.vector(1), axes, rank, 0)
    ends_of = _each_axis(s, s.vector(2), axes, rank, ends[0])
    steps = (
        [s.ints([1])] * rank
        if s.call.input(4) is None
        else _each_axis(s, s.vector(4), axes, rank, 1)
    )
    made = x
    for axis, size in enumerate(x.shape):
        places = _slice_places(s, (starts[axis], ends_of[axis], steps[axis]), size, wanted[axis])
        known = known_value(places)
        if wanted[axis] == 0:
            made = s.node("Slice", made, [0], [0], [axis])
        elif known is None or known.tolist() != list(range(_count(size))):
            made = s.node("Gather", made, places, axis=axis)
    if made.type.static and 0 in wanted:
        return constant(np.zeros(wanted, np.int8).astype(x.dtype), s.call.name)
    return made


def _count(size: Dim) -> int:
    return size if isinstance(size, int) else -1


def _bounded_slice(s: Settling, bound: Bound) -> Node:
    """A slice of step 1 whose length a run decides: as long as the whole may be, and how much of it
    there is goes with it.
    """
    x, axes = s.call.need(0), known_value(s.call.input(3))
    steps = known_value(s.call.input(4))
    if s.call.input(3) is not None and axes is None:
        raise s.refusal()
    if s.call.input(4) is not None and (steps is None or (steps != 1).any()):
        raise s.refusal()
    starts, ends = s.vector(1), s.vector(2)
    named = range(starts.type.size) if axes is None else axes.ravel()
    made, counts = x, {}
    along = [axis_of(s.call, int(a), x.type.rank) for a in named]
    if any(isinstance(d, str) for axis, d in enumerate(x.shape) if axis not in along):
        raise s.refusal()
    for i, axis in enumerate(along):
        size = x.shape[axis]
        if not size:
            raise s.refusal()
        cut = [s.node("Slice", ends_of, [i], [i + 1]) for ends_of in (starts, ends)]
        start, end = (
            _clipped(
                s,
                s.node("Where", s.node("Less", at, 0), s.node("Add", at, size), at),
                s.ints([0]),
                s.ints([size]),
            )
            for at in cut
        )
        counts[axis] = s.node("Max", s.node("Sub", end, start), 0)
        last = s.ints([settled(Size.of(size) - 1)])
        places = s.node("Min", s.node("Add", start, s.steps(s.room(size))), last)
        made = s.node("Gather", made, places, axis=axis)
    bound(made, counts)
    return made


def _slice_places(s: Settling, cut: tuple[Node, Node, Node], size: Dim, count: Dim) -> Node:
    """The places that a slice reads along an axis; their number is checked."""
    start, end, step = cut
    back, zero = s.node("Less", step, 0), s.ints([0])
    last = settled(Size.of(size) - 1)
    high = s.node("Where", back, [last], [size])
    start, end = (s.node("Where", s.node("Less", i, 0), s.node("Add", i, size), i) for i in cut[:2])
    start = _clipped(s, start, zero, high)
    end = _clipped(s, end, s.node("Where", back, [-1], [0]), high)
    right = s.node("Equal", _length(s, start, end, step), s.node("Cast", [count], to="float64"))
    s.check(right, f"a slice of {size} values does not have {count}")
    places = s.node("Add", start, s.node("Mul", step, s.steps(count)))
    return places if isinstance(count, int) else _clipped(s, places, zero, s.ints([last]))


@settles("Pad", operands=(1, 3))
def _pad(s: Settling) -> Result:
    x, wanted, pads = s.call.need(0), s.shape, s.vector(1)
    axes, rank = s.call.input(3), x.type.rank
    count: Dim = rank if axes is None else s.flat(axes).shape[0]
    if pads.shape[0] != total((2, count)):
        raise s.refusal()
    before = _each_axis(s, s.node("Slice", pads, [0], [count]), axes, rank, 0)
    after = _each_axis(s, s.node("Slice", pads, [count], [pads.shape[0]]), axes, rank, 0)
    mode, made = s.call.get("mode"), x
    inside: Node | None = None
    for axis, (size, new) in enumerate(zip(x.shape, wanted, strict=True)):
        whole = s.node("Add", s.node("Add", before[axis], after[axis]), size)
        s.same(whole, [new], "the size of a padded dimension")
        places = s.node("Sub", s.steps(new), before[axis])
        if mode == "constant":
            own = s.node("And", s.node("GreaterOrEqual", places, 0), s.node("Less", places, size))
            column = s.node("Reshape", own, [new] + [1] * (rank - 1 - axis))
            inside = column if inside is None else s.node("And", inside, column)
        if size == 0 or new == 0:
            continue
        made = s.node("Gather", made, _padding_places(s, places, size, str(mode)), axis=axis)
    if inside is None:
        return made
    value = s.call.input(2)
    if value is None:
        value = constant(np.zeros((), np.int8).astype(x.dtype))
    if 0 in x.shape:
        made = s.node("Expand", s.node("Reshape", value, [1]), list(wanted))
    return s.node("Where", inside, made, s.node("Reshape", value, [1]))


def _padding_places(s: Settling, places: Node, size: Dim, mode: str) -> Node:
    """Places of a padded dimension -> those of the operand that they show."""
    last = s.ints([settled(Size.of(size) - 1)])
    if mode == "reflect":
        if size == 1:
            return s.node("Mul", places, 0)
        period = s.node("Max", s.node("Mul", last, 2), 1)  # 1: of one value, all that there is
        folded = s.node("Mod", places, period)
        folded = s.node("Min", folded, s.node("Sub", period, folded))
        return folded if isinstance(size, int) else s.node("Min", folded, last)
    if mode == "wrap":
        return s.node("Mod", places, size)
    return _clipped(s, places, s.ints([0]), last)


@settles("Tile", operands=(1,))
def _tile(s: Settling) -> Result:
    x, wanted, given = s.call.need(0), s.shape, s.vector(1)
    if x.type.static and all(isinstance(d, int) for d in wanted):
        return _tile_of_known(s, x.type.dims)
    if len(x.shape) != len(wanted):
        raise s.call.error(f"{x.type} does not repeat to {listed(wanted)}")
    for axis, (size, new) in enumerate(zip(x.shape, wanted, strict=True)):
        times = s.node("Slice", given, [axis], [axis + 1])
        s.same(s.node("Mul", times, [size]), [new], "the size of a repeated dimension")
        if size != new:
            x = s.node("Gather", x, s.node("Mod", s.steps(new), [size]), axis=axis)
    return x


def _tile_of_known(s: Settling, x: tuple[int, ...]) -> Result:
    if len(x) != len(s.shape) or any(b % a if a else b for a, b in zip(x, s.shape, strict=True)):
        raise s.call.error(f"{list(x)} does not repeat to {list(s.shape)}")
    if 0 in x:
        return s.replaced(1, [1] * len(x))
    repeats = [b // a for a, b in zip(x, s.shape, strict=True)]
    s.same(s.vector(1), repeats, "the number of repeats")
    return s.replaced(1, repeats)


@settles("Range", operands=(0, 1, 2))
def _range(s: Settling) -> Result:
    (count,) = s.shape
    ends = [s.node("Reshape", s.call.need(i), [1]) for i in range(3)]
    start, limit, step = (s.node("Cast", i, to="float64") for i in ends)
    steps = s.node("Ceil", s.node("Div", s.node("Sub", limit, start), step))
    steps = s.node("Max", steps, constant(np.zeros(1, np.float64)))
    right = s.node("Equal", steps, s.node("Cast", [count], to="float64"))
    s.check(right, f"the range does not have {count} numbers")
    dtype = ends[0].dtype
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    first, by = (s.node("Cast", i, to=wide) for i in (ends[0], ends[2]))
    numbers = s.node("Cast", s.steps(count), to=wide)
    return s.node("Cast", s.node("Add", first, s.node("Mul", numbers, by)), to=dtype)
