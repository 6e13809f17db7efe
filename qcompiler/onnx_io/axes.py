"""Reductions, Squeeze, Unsqueeze and running sums along axes known at run time only -> a choice
among the few that the output's shape permits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

from qcompiler.ir import Dim, Node
from qcompiler.onnx_io.call import Result
from qcompiler.onnx_io.settle import Settling, Shape, settles
from qcompiler.ops import make
from qcompiler.ops.reduce import REDUCTIONS
from qcompiler.ops.shapes import may_equal

MOST = 64
"""Most results among which a choice is made at run time."""


def _mask(s: Settling, axes: Node, rank: int) -> Node:
    """Axes -> the sum of 2 ** axis, in a vector of one: it tells sets of axes apart."""
    powers = s.ints([1 << a for a in range(rank)])
    return s.node("ReduceSum", s.node("Gather", powers, axes, axis=0), [0], keepdims=1)


def _sets(s: Settling, axes: Node, rank: int, fits: Callable[[Shape], bool]) -> list[Shape]:
    """The sets of axes, of as many as are given, that fit the output's shape; checked at run
    time.
    """
    found = [c for c in combinations(range(rank), axes.type.size) if fits(c)]
    if not found:
        raise s.call.error(f"no axes give the output's shape {list(s.shape)}")
    if len(found) > MOST or rank > 60:
        raise s.refusal()
    return found


def _checked_mask(s: Settling, axes: Node, rank: int, found: Sequence[Shape]) -> Node:
    """Which of some sets of axes is given, by its mask; that it is one of them is checked."""
    mask = _mask(s, axes, rank)
    s.one_of(mask, [sum(1 << a for a in c) for c in found], "its axes do not give")
    return mask


@settles("Squeeze", operands=(1,))
def _squeeze(s: Settling) -> Result:
    """Of several sets of axes that fit, all give the same."""
    x, axes = s.call.need(0).shape, s.vector(1)

    def fits(gone: Shape) -> bool:
        left = tuple(d for i, d in enumerate(x) if i not in gone)
        return left == s.shape and all(x[i] == 1 for i in gone)

    found = _sets(s, axes, len(x), fits)
    _checked_mask(s, axes, len(x), found)
    return make("Squeeze", s.call.need(0), s.ints(found[0]), name=s.call.name)


@settles("Unsqueeze", operands=(1,))
def _unsqueeze(s: Settling) -> Result:
    """Of several sets of axes that fit, all give the same."""
    x, axes = s.call.need(0).shape, s.vector(1)

    def fits(new: Shape) -> bool:
        left = tuple(d for i, d in enumerate(s.shape) if i not in new)
        return left == x and all(s.shape[i] == 1 for i in new)

    rank = len(s.shape)
    found = _sets(s, axes, rank, fits)
    _checked_mask(s, axes, rank, found)
    return make("Unsqueeze", s.call.need(0), s.ints(found[0]), name=s.call.name)


@settles(*REDUCTIONS, operands=(1,))
def _reduce(s: Settling) -> Result:
    x, axes = s.call.need(0).type.shape, s.vector(1)
    keep = bool(s.call.get("keepdims"))

    def kept(over: Shape) -> tuple[Dim, ...]:
        return tuple(1 if i in over else d for i, d in enumerate(x) if keep or i not in over)

    def fits(over: Shape) -> bool:
        made = kept(over)
        return len(made) == len(s.shape) and all(map(may_equal, made, s.shape))

    found = _sets(s, axes, len(x), fits)
    found = [over for over in found if kept(over) == s.shape] or found
    if len(set(map(kept, found))) > 1:
        raise s.refusal()
    mask = _checked_mask(s, axes, len(x), found)
    results = []
    for over in found:
        made = s.node(s.call.op, s.call.need(0), list(over), **s.call.attrs)
        results.append((sum(1 << a for a in over), made))
    return s.chosen(mask, results)


@settles("CumSum", "CumProd", operands=(1,))
def _cumulate(s: Settling) -> Result:
    """An axis out of range, of which the meaning is open, counts as the last."""
    x, axis = s.call.need(0), s.vector(1)
    results = [(1 << a, s.node(s.call.op, x, a, **s.call.attrs)) for a in range(x.type.rank)]
    in_range(s, axis, x.type.rank)
    return s.chosen(_mask(s, axis, x.type.rank), results)


def in_range(s: Settling, axes: Node, rank: int) -> None:
    """Check that axes exist."""
    low, high = s.node("GreaterOrEqual", axes, -rank), s.node("Less", axes, rank)
    s.check(s.node("And", low, high), f"an axis does not exist in {rank} dimensions")
