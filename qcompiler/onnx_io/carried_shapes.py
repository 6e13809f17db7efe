"""Reshapes of what data decide the size of -> reshapes of the largest sizes (carried.py).

Neighbouring axes become others in groups. Where an axis that is not the first of its group is open,
elements move: in memory for 3 x 4, rows of 2 lie at 0, 4 and 8; as one axis they are the first 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Dim, Node, constant
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call
from qcompiler.onnx_io.carried import carries
from qcompiler.onnx_io.settle import Settling
from qcompiler.ops.known_sizes import never_below_0
from qcompiler.ops.shapes import total


@carries("Reshape", "Flatten")
def _reshape(call: Call, bounds: Bounds) -> Node:
    x = call.need(0)
    twin = bounds.typed(call, [i and bounds.twin(i) for i in call.inputs])
    new, old = twin.shape, bounds.twin(x).shape
    groups = _groups(old, new, bounds)
    if not all(map(bounds.known, new)) or groups is None:
        raise bounds.refusal(call)
    s, own = bounds.settling(call), x
    if not all(g.in_front(bounds) for g in groups):
        own = _packed_groups(s, x, groups, bounds)
    target = s.ints([bounds.most(d) for d in new])
    plain_call = call.but(op="Reshape", inputs=(own, target), drop=("axis",), allowzero=1)
    return bounds.twinned(call, bounds.typed(plain_call, plain_call.inputs), twin)


@dataclass(frozen=True)
class _Group:
    """Neighbouring axes that become others of as many elements."""

    old: list[Dim]
    new: list[Dim]

    def in_front(self, bounds: Bounds) -> bool:
        """Do elements that are there stay in front of those that are not? Only the first axis may
        be open.
        """
        return not any(bounds.varies(d) for d in (*self.old[1:], *self.new[1:]))


def _groups(old: Sequence[Dim], new: Sequence[Dim], bounds: Bounds) -> list[_Group] | None:
    """The smallest groups of axes, but those of one position; None where they are not known."""
    sides = [[d for d in dims if d != 1] for dims in (old, new)]
    made = []
    while sides[0] and sides[1]:
        groups: list[list[Dim]] = [[s.pop(0)] for s in sides]
        while (sizes := [total(g) for g in groups])[0] != sizes[1]:
            short = _shorter(sizes, bounds)
            if short is None or not sides[short]:
                return None
            groups[short].append(sides[short].pop(0))
        made.append(_Group(*groups))
    return None if sides[0] or sides[1] else made


def _shorter(sizes: Sequence[Dim], bounds: Bounds) -> int | None:
    """Which of two unlike sizes is the smaller: one that divides the other, or as the most that
    they may be say; None where that is not known.
    """
    a, b = map(Size.of, sizes)
    if a.over(b) is not None or b.over(a) is not None:
        return 1 if a.over(b) is not None else 0
    most = [Size.of(bounds.most(size)) for size in sizes]
    if most[0] == most[1]:
        return None
    return 1 if never_below_0(most[0] - most[1]) else 0


def _packed_groups(s: Settling, x: Node, groups: Sequence[_Group], bounds: Bounds) -> Node:
    """A value with one axis for each group, in which every element lies where the memory of the
    group's new axes has it.
    """
    rooms = [total([bounds.most(d) for d in g.old]) for g in groups]
    made = s.node("Reshape", x, rooms)
    for axis, group in enumerate(groups):
        if not group.in_front(bounds):
            made = s.node("Gather", made, _moved_places(s, group, bounds), axis=axis)
    return made


def _moved_places(s: Settling, group: _Group, bounds: Bounds) -> Node:
    """For each place in the memory of a group's new axes, that of the same element in the memory of
    the old ones: int64[places].
    """
    new, old = ([bounds.most(d) for d in side] for side in (group.new, group.old))
    if not all(isinstance(d, int) for d in (*new, *old)):
        raise bounds.refusal(s.call)
    places = np.arange(total(new))
    nth, behind = s.ints([0]), list[Dim]()
    for size, room in zip(reversed(group.new), reversed(new), strict=True):
        each = constant(places % room)
        nth = s.node("Add", nth, s.node("Mul", each, bounds.number(total(behind))))
        places //= room
        behind.append(size)
    found, step = s.ints([0]), 1
    rooms = [int(d) for d in reversed(old)]
    for i, (size, room) in enumerate(zip(reversed(group.old), rooms, strict=True)):
        number = s.node("Max", bounds.number(size), 1)
        digit = nth if i == len(old) - 1 else s.node("Mod", nth, number)
        nth = s.node("Div", nth, number)
        found = s.node("Add", found, s.node("Mul", digit, step))
        step *= room
    return s.node("Min", found, step - 1)
