"""A dimension of an open size inside one of the largest size: which of its positions count.

A dimension is a number in digits of mixed radix, the outermost first: of [h, w] as one dimension, h
and then w. A digit is a number or an open size. In memory, every digit has its largest size; a
position is *valid* if each digit is below its size in this run. So a dimension of one open digit is
valid up to that size, and a Reshape that joins or splits whole digits moves no element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim

Digits = tuple[Dim, ...]


def digits_of(found: Iterable[Dim]) -> Digits:
    """Digits -> the fewest that are valid at the same positions: numbers join what stands before
    them.
    """
    made: list[Dim] = []
    for d in found:
        if d == 1:
            continue
        if isinstance(d, int) and made:
            made[-1] = settled(Size.of(made[-1]) * d)
        else:
            made.append(d)
    return tuple(made)


def is_open(digits: Digits) -> bool:
    """Are there positions that are not valid in every run?"""
    return any(isinstance(d, str) for d in digits)


Sourced = list[tuple[Dim, int]]
"""Digits of a dimension, and the dimensions that they come from."""


def regrouped(dims: Sequence[Digits], target: Sequence[Dim]) -> list[Sourced] | None:
    """Dimensions reshaped to sizes -> the digits of each; None where elements would move."""
    left = [(d, i) for i, digits in enumerate(dims) for d in digits]
    made: list[Sourced] = []
    for size in target:
        group: Sourced = []
        need: Dim = size
        while need != 1:
            if not left or need == 0:
                return None
            digit, source = left[0]
            outer = Size.of(need).over(digit)
            if outer is not None:
                group.append(left.pop(0))
                need = settled(outer)
                continue
            inner = Size.of(digit).over(need)
            rest = None if inner is None else settled(inner)
            if not isinstance(rest, int):
                return None
            group.append((need, source))
            left[0], need = (rest, source), 1
        made.append(group)
    return None if left else made
