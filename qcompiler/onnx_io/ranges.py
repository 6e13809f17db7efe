"""Arithmetic on open sizes whose result depends on what these may be -> the same, known for every
run.

    height = 32..512:   (height - 1) / 2  ->  quotient,   Max(height - 5, 0)  ->  height - 5

Type rules and `known_sizes` know that sizes are positive, and nothing more. The ranges that a user
gives say which of two sizes is the larger, whether a Slice ends inside, and that what is divided is
not below 0, where ONNX would round it up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.ir import MAX_ELEMENTS, Dim, Node, constant
from qcompiler.ops import make
from qcompiler.ops.known_sizes import Sizes, known_sizes
from qcompiler.ops.shapes import axes_of, known_ints

Ranges = Mapping[str, tuple[int, int]]
"""Symbols in types, and the least and the largest number of each."""
_TO_THE_END = int(np.iinfo(np.int64).max)


def by_ranges(node: Node, ranges: Ranges) -> Node:
    """A node -> one of the same values in all runs, whose sizes are known; itself where they are
    already, or cannot be.
    """
    if node.op == "Slice" and ranges:
        return _sliced(node, ranges)
    rule = _RULES.get(node.op) if ranges else None
    if rule is None or (known_sizes(node) is not None and node.op != "Mod"):
        return node
    operands = [o for o in map(known_sizes, node.operands) if o is not None]
    if len(node.operands) != 2 or len(operands) != 2:
        return node
    a, b = operands
    return rule(node, [_bounds(o, ranges) for o in operands], _difference(a, b, ranges))


def _bounds(sizes: Sizes, ranges: Ranges) -> tuple[int, int] | None:
    """The least and the largest of some sizes; None where one is not known by ranges."""
    each = [Size.of(size).bounds_if_known(ranges) for size in sizes.ravel()]
    if not each or None in each:
        return None
    return min(low for low, _ in each), max(high for _, high in each)  # type: ignore[misc]


def largest(size: Dim, ranges: Ranges) -> int | None:
    """The largest that a size may be, at most as many as a tensor may have; None where that is not
    known.
    """
    found = Size.of(size).bounds_if_known(ranges)
    return found[1] if found is not None and found[1] < MAX_ELEMENTS else None


def _difference(a: Sizes, b: Sizes, ranges: Ranges) -> tuple[int, int] | None:
    """The least and the largest difference of two arrays of sizes."""
    a, b = np.broadcast_arrays(a, b)
    less = np.empty(a.size, object)
    less[:] = [Size.of(x) - y for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    return _bounds(less, ranges)


def _sliced(node: Node, ranges: Ranges) -> Node:
    """A Slice whose end is a number, as [:512] of a length: to the end where no run has more, and
    so many elements where all runs have as many.
    """
    x, *given = (*node.inputs, None, None)[:5]
    if x is None or any(i is not None and known_ints(i) is None for i in given):
        return node
    starts, ends, axes, steps = map(known_ints, given)
    assert starts is not None
    assert ends is not None
    over = axes_of(range(len(starts)) if axes is None else axes, x.type.rank)
    made, left = x, []
    for start, end, axis, step in zip(starts, ends, over, steps or (1,) * len(over), strict=True):
        size, more = x.shape[axis], None
        if isinstance(size, str) and step == 1 and 0 <= start < end:
            more = (Size.of(size) - end).bounds_if_known(ranges)
        if more is not None and more[0] >= 0:
            made = make("Gather", made, constant(np.arange(start, end)), axis=axis, name=node.name)
        else:
            to_end = more is not None and more[1] <= 0
            left.append((start, _TO_THE_END if to_end else end, axis, step))
    if made is x and [cut[1] for cut in left] == [*ends]:
        return node
    cuts = (constant(np.array(numbers, np.int64)) for numbers in zip(*left, strict=True))
    return make("Slice", made, *cuts, name=node.name) if left else made


Bounds = tuple[int, int] | None
Rule = Callable[[Node, list[Bounds], Bounds], Node]


def _div(node: Node, each: list[Bounds], _: Bounds) -> Node:
    above, below = each
    if above is None or below is None or above[0] < 0 or below[0] < 1:
        return node
    return make("quotient", *node.operands, name=node.name)


def _mod(node: Node, each: list[Bounds], less: Bounds) -> Node:
    """The rest of what is smaller than its divisor: 4 of 4 by a size from 8 on; size - 4 of -4."""
    above, below = each
    if above is None or below is None or less is None or node.attrs["fmod"]:
        return node
    if above[0] >= 0 and less[1] < 0 and node.operands[0].type == node.type:
        return node.operands[0]
    behind = above[1] < 0 and below[0] >= -above[0]
    return make("Add", *node.operands, name=node.name) if behind else node


def _larger(sign: int) -> Rule:
    """The larger operand, or the smaller one."""

    def rule(node: Node, each: list[Bounds], less: Bounds) -> Node:
        if less is None or less[0] < 0 < less[1]:
            return node
        chosen = node.operands[0 if (less[0] if sign > 0 else -less[1]) >= 0 else 1]
        return chosen if chosen.type == node.type else node

    return rule


def _equal(node: Node, each: list[Bounds], less: Bounds) -> Node:
    """Equal in no run, or in all."""
    if less is None or less[0] <= 0 <= less[1] != less[0]:
        return node
    return constant(np.full(node.type.dims, less == (0, 0)), node.name)


def _compared(holds: Callable[[int], bool]) -> Rule:
    """A comparison that comes out the same for the least and the largest difference, and so for all
    between.
    """

    def rule(node: Node, each: list[Bounds], less: Bounds) -> Node:
        if less is None or holds(less[0]) != holds(less[1]):
            return node
        return constant(np.full(node.type.dims, holds(less[0])), node.name)

    return rule


_RULES: Mapping[str, Rule] = {
    "Div": _div,
    "Mod": _mod,
    "Max": _larger(1),
    "Min": _larger(-1),
    "Equal": _equal,
    "Less": _compared(lambda d: d < 0),
    "LessOrEqual": _compared(lambda d: d <= 0),
    "Greater": _compared(lambda d: d > 0),
    "GreaterOrEqual": _compared(lambda d: d >= 0),
}
