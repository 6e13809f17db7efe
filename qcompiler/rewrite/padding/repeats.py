"""Heads that are repeated as often as an open size says.

    [b, n, 1, d] -> Expand [b, n, r, d] -> Reshape [b, n*r, d]

In runs of few heads each may be repeated more often than in the run of the most heads, so a tensor
of n and r would need room for more than any run has. The two are read as one Gather along n*r.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Dim, Node
from qcompiler.ops import make
from qcompiler.ops.shapes import total
from qcompiler.rewrite.matching import const
from qcompiler.rewrite.padding.digits import digits_of
from qcompiler.rewrite.padding.frame import Padded, Padding


def is_repeat(p: Padding, node: Node) -> bool:
    """Is it an Expand along a dimension of 1 to a size that is not largest where all sizes are?"""
    axis = _axis(node)
    size = Size.of(node.type.shape[axis]) if axis else Size.of(1)
    return axis > 0 and size.symbols <= p.ranges.keys() and not p.is_largest(size)


def _axis(node: Node) -> int:
    """The only dimension along which an Expand repeats its operand, to an open size; else 0."""
    if node.op != "Expand" or node.operands[0].type.rank != node.type.rank:
        return 0
    sides = zip(node.operands[0].shape, node.type.shape, strict=True)
    differ = [i for i, (old, new) in enumerate(sides) if old != new]
    only = differ[0] if len(differ) == 1 else 0
    return only if isinstance(node.type.shape[only], str) and only else 0


def joined(p: Padding, expand: Node, shape: tuple[Dim, ...]) -> Padded:
    """Repeats, joined with the dimension in front of them, as a value of this shape."""
    axis, wide = _axis(expand), expand.type.shape
    whole = total(wide[axis - 1 : axis + 1])
    if shape != (*wide[: axis - 1], whole, *wide[axis + 1 :]):
        raise p.refused(
            f"the size {wide[axis]} of {expand.type} is not largest where all sizes are"
        )
    x = p.value(expand.operands[0])
    flat = p.reshaped(x, (*wide[:axis], *wide[axis + 1 :]))
    return repeated(p, flat, axis - 1, wide[axis], whole)


def repeated(p: Padding, value: Padded, axis: int, times: Dim, whole: Dim) -> Padded:
    """Each position along a dimension so many times in a row, `whole` in all: 0, 0, 0, 1, 1, ..."""
    if not p.at_least(times, 1):
        raise p.refused(f"{whole} may be none", "a larger LO in --dim NAME=LO..HI may help")
    value = replace(p.prefix(value, axis), zero=frozenset(), calm=frozenset())
    place = make("Div", p.steps(p.at(whole)), p.size(times))
    last = const([p.whole(value.dims[axis]) - 1], "int32")
    return p.take(value, axis, make("Min", place, last), digits_of([whole]))
