"""What an expression of open sizes may be, among all runs that there may be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Number, Size, settled
from qcompiler.ops.registry import Numbers

_RUNS = 1 << 20
"""At most so many combinations of sizes are looked at one by one."""


@lru_cache(maxsize=4096)
def extremes(size: Size, symbols: tuple[Symbol, ...]) -> tuple[int, int] | None:
    """The least and the largest value of a size among all runs; None if these are too many to be
    looked at one by one.
    """
    named = [s for s in symbols if s.name in size.symbols]
    each = [np.arange(s.low, s.high + 1, s.step) for s in named]
    if prod(map(len, each)) > _RUNS:
        return None
    grid = np.meshgrid(*each, indexing="ij", sparse=True)
    runs = {s.name: g for s, g in zip(named, grid, strict=True)}
    found: Numbers = np.asarray(size.at(runs))  # type: ignore[arg-type]  # arrays count alike
    return int(found.min()), int(found.max())


def bounds(size: Number, symbols: Sequence[Symbol]) -> tuple[int, int]:
    """The least and the largest number that a size may be, or beyond."""
    ranges = {s.name: (s.low, s.high) for s in symbols}
    return Size.of(size).bounds(ranges)


def at_least(size: Number, least: int, symbols: tuple[Symbol, ...]) -> bool:
    """Is a size as large in all runs? `least`: from 0 up."""
    low, high = bounds(size, symbols)
    if low >= least or high < least:
        return low >= least
    factor = factor_of(size, symbols)
    if factor is not None and at_least(factor, least, symbols):
        return True
    found = extremes(Size.of(size), symbols)
    return found is not None and found[0] >= least


def factor_of(size: Number, symbols: Sequence[Symbol]) -> Number | None:
    """A size divided by one that is open, if it is a multiple of it."""
    each = (Size.of(size).over(s.name) for s in symbols if s.low >= 1)
    return next((settled(d) for d in each if d is not None), None)
