"""NonZero, Compress, Unique, NonMaxSuppression: calls whose data decide how many results there are
-> calls of other operators, for the number that the model declares, which every run checks; where
it declares none, for the largest there may be, and every run tells how many there are (bounded.py).

How many are selected is a sum of flags; a selected value goes to the place that the flags before it
add up to.
"""

from __future__ import annotations

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Dim, Node, constant
from qcompiler.onnx_io.call import Result, axis_of
from qcompiler.onnx_io.settle import Settling, settles, zeros
from qcompiler.ops import known_value, make
from qcompiler.ops.known_sizes import never_below_0
from qcompiler.ops.shapes import together, total

MOST_PAIRS = 1 << 24
"""Most numbers that Unique compares."""
FEW = 1 << 12
"""A limit up to which NonMaxSuppression has room for as many boxes of a class, though there may be
fewer in all.
"""


def _count(s: Settling, axis: int) -> Dim | None:
    """The number of selected values that the model declares along an axis of the first output;
    None: a run counts them. Raises Open if nobody could be told.
    """
    shape = s.shapes[0]
    if shape is None and s.bound is None:
        raise s.refusal()
    return None if shape is None else shape[axis]


def _agreed(s: Settling, total: Node, count: Dim | None) -> None:
    """Check the number of selected values, if it is declared."""
    if count is not None:
        s.check(s.node("Equal", total, count), _not(count))


def _told(s: Settling, node: Node, axis: int, total: Node, count: Dim | None) -> Node:
    """A result, of which is said how many elements it has if that is not declared."""
    if count is None and s.bound is not None:
        s.bound(node, {axis: total})
    return node


def _selected(s: Settling, flags: Node, count: Dim | None) -> tuple[Node, Node]:
    """int64 flags[n] -> the places of the first `count` ones (None: of all, then zeros), and the
    number of all.
    """
    (size,) = flags.shape
    most = size if count is None else count
    if 0 in (size, most):
        total = s.node("ReduceSum", flags, [0], keepdims=1)
        _agreed(s, total, count)
        return s.ints(np.zeros(0, np.int64)), total  # type: ignore[arg-type]
    ends = s.node("CumSum", flags, 0)
    if isinstance(size, int):
        number = s.node("Slice", ends, [size - 1], [size])
    else:  # which may be 0
        number = s.node("ReduceSum", flags, [0], keepdims=1)
    _agreed(s, number, count)
    return _placed(s, flags, s.node("Sub", ends, 1), s.steps(size), most), number


def _not(count: Dim) -> str:
    return f"its data do not select {count} values, as the output's shape says"


def _placed(s: Settling, flags: Node, places: Node, values: Node, count: Dim) -> Node:
    """values[n] whose flag is 1, each at its place -> [count]; the others go to one place more."""
    chosen = s.node("Where", s.node("Equal", flags, 1), s.node("Min", places, count), count)
    none = zeros(s, together((count, 1)))
    return s.node("Slice", s.node("ScatterElements", none, chosen, values, axis=0), [0], [count])


def _flags(s: Settling, x: Node) -> Node:
    """A tensor -> 1 where it is not zero, as a vector of int64."""
    flat = s.node("Reshape", x, [total(x.shape)])
    if x.dtype != "bool":
        zero = constant(np.zeros((), np.int8).astype(x.dtype))
        flat = s.node("Not", s.node("Equal", flat, zero))
    return s.node("Cast", flat, to="int64")


@settles("NonZero", operands=(0,))
def _non_zero(s: Settling) -> Result:
    x = s.call.need(0)
    dims = x.shape or (1,)
    count = _count(s, 1)
    if _all_ones(x):  # as PyTorch exports arange
        places, number = s.steps(total(dims)), None
    else:
        places, number = _selected(s, _flags(s, x), count)
    rows = []
    for axis, size in enumerate(dims):
        behind = _at_least_1(s, total(dims[axis + 1 :]))
        index = places
        if len(dims) > 1:
            index = s.node("Mod", s.node("Div", places, behind), _at_least_1(s, size))
        rows.append(s.node("Unsqueeze", index, [0]))
    made = make("Concat", *rows, axis=0, name=s.call.name)
    return made if number is None else _told(s, made, 1, number, count)


def _all_ones(x: Node) -> bool:
    """Is nothing in a value 0, whatever its size?"""
    return x.op == "ConstantOfShape" and bool(np.all(x.attrs["value"]))  # type: ignore[arg-type]


def _at_least_1(s: Settling, size: Dim) -> Dim | Node:
    """A size to divide by; 1 instead of 0."""
    if isinstance(size, int):
        return max(size, 1)
    return size if never_below_0(Size.of(size) - 1) else s.node("Max", s.ints([size]), 1)


@settles("Compress", operands=(1,))
def _compress(s: Settling) -> Result:
    x, axis = s.call.need(0), s.call.get("axis")
    if axis is None:
        x, at = s.node("Reshape", x, [total(x.shape)]), 0
    else:
        at = axis_of(s.call, s.call.number("axis"), x.type.rank)
    count = _count(s, at)
    flags = s.node("Cast", s.call.need(1), to="int64")
    if flags.shape[0] != x.shape[at] and not (flags.type.static and x.type.static):
        inside = s.node("Less", s.steps(flags.shape[0]), x.shape[at])
        flags = s.node("Mul", flags, s.node("Cast", inside, to="int64"))
    places, number = _selected(s, flags, count)
    made = make("Gather", x, places, axis=at, name=s.call.name)
    return _told(s, made, at, number, count)


@settles("Unique", operands=(0,))
def _unique(s: Settling) -> Result:
    """By comparing all pairs of slices: a slice is new if none before it is equal; it is placed
    behind the new ones that are smaller, or, unsorted, that come before it.
    """
    x, given = s.call.need(0), s.call.get("axis")
    axis = 0 if given is None else axis_of(s.call, s.call.number("axis"), x.type.rank)
    rows = s.node("Reshape", x, [total(x.shape), 1]) if given is None else _slices(s, x, axis)
    n, length = rows.shape
    pairs = total((n, n, length or 1))
    if n == 0 or (isinstance(pairs, int) and pairs > MOST_PAIRS):
        raise s.call.unsupported(f"unique values among {n} slices of {length} values")
    stated = [h[0] for h in (*s.shapes[1:2], *s.shapes[3:4]) if h is not None]
    count = stated[0] if s.shapes[0] is None and stated else _count(s, axis)
    most = n if count is None else count
    equal, less = _compared(s, rows)
    first = s.node("ArgMax", s.node("Cast", equal, to="int32"), axis=1, keepdims=0)
    own = s.steps(n)
    new = s.node("Cast", s.node("Equal", first, own), to="int64")
    number = s.node("ReduceSum", new, [0], keepdims=1)
    _agreed(s, number, count)
    before = s.node("Cast", less, to="int64") if s.call.number("sorted") else _earlier(s, n)
    place = s.node("ReduceSum", s.node("Mul", before, new), [1], keepdims=0)
    indices = _placed(s, new, place, own, most)
    counts = s.node("ReduceSum", s.node("Cast", equal, to="int64"), [1], keepdims=0)
    values = s.node("Reshape", x, [n]) if given is None else x
    return (
        _told(s, s.node("Gather", values, indices, axis=axis), axis, number, count),
        _told(s, indices, 0, number, count),
        s.node("Gather", place, first, axis=0),
        _told(s, _placed(s, new, place, counts, most), 0, number, count),
    )


def _slices(s: Settling, x: Node, axis: int) -> Node:
    """A tensor -> its slices along an axis, as rows."""
    order = (axis, *(i for i in range(x.type.rank) if i != axis))
    moved = s.node("Transpose", x, perm=order)
    return s.node("Reshape", moved, [x.shape[axis], total([x.shape[a] for a in order[1:]])])


def _compared(s: Settling, rows: Node) -> tuple[Node, Node]:
    """rows[n, m] -> equal[n, n], less[n, n]: whether row j equals row i, and comes before it."""
    n, length = rows.shape
    mine, other = s.node("Unsqueeze", rows, [1]), s.node("Unsqueeze", rows, [0])
    if rows.dtype == "bool":
        mine, other = (s.node("Cast", i, to="uint8") for i in (mine, other))
    differs = s.node("Not", s.node("Equal", mine, other))
    number = s.node("Cast", differs, to="int32")
    equal = s.node("Equal", s.node("ReduceMax", number, [2], keepdims=0), _int32(0))
    at = s.node("ArgMax", number, axis=2, keepdims=1)  # where rows first differ
    smaller = s.node("Cast", s.node("Less", other, mine), to="int32")
    picked = s.node("GatherElements", smaller, at, axis=2) if length not in (0, 1) else smaller
    less = s.node("Equal", s.node("Reshape", picked, [n, n]), _int32(1))
    return equal, less


def _int32(value: int) -> Node:
    return constant(np.array(value, np.int32))


def _earlier(s: Settling, n: Dim) -> Node:
    """1 where j < i, [n, n]."""
    rows, columns = (s.node("Unsqueeze", s.steps(n), [a]) for a in (1, 0))
    return s.node("Cast", s.node("Less", columns, rows), to="int64")


@settles("NonMaxSuppression", operands=(0, 1, 2, 3, 4))
def _non_max_suppression(s: Settling) -> Result:
    boxes, scores = s.call.need(0), s.call.need(1)
    each = s.call.input(2) or s.ints([0])
    images, classes, size = scores.shape
    limit = known_value(each)
    kept = size if limit is None else _fewer(size, max(int(limit.ravel()[0]), 0))
    count = _count(s, 0)
    most = total((images, classes, kept)) if count is None else count
    thresholds = [
        s.call.input(3) or constant(np.zeros(1, np.float32)),
        s.call.input(4) or constant(np.full(1, -np.inf, np.float32)),
    ]
    flat = [s.node("Reshape", i, [1]) for i in (each, *thresholds)]
    found = s.node(
        "non_max_suppression",
        boxes,
        scores,
        *flat,
        most=most,
        center=s.call.number("center_point_box"),
    )
    last = s.node("Slice", found, [most, 0], [together((most, 1)), 1], [0, 1])
    number = s.node("Reshape", last, [1])
    _agreed(s, number, count)
    made = make("Slice", found, s.ints([0]), s.ints([most]), s.ints([0]), name=s.call.name)
    return _told(s, made, 0, number, count)


def _fewer(size: Dim, limit: int) -> Dim:
    """A number of boxes, and how many of them are kept -> room for those. Exporters write a limit
    that is no limit, so of an open number only a small one is taken.
    """
    if isinstance(size, int):
        return min(size, limit)
    return limit if limit <= FEW else size
