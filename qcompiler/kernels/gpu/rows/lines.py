"""A tensor's dimensions and some of its axes -> lines along these axes: where each begins, and
where its elements lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Builder, Value

Steps = tuple[tuple[int, int], ...]
"""(size, elements from one index to the next) of some axes, outermost first."""


@dataclass(frozen=True)
class Lines:
    """The axes between lines, and those along them; neighbours that are stepped through as one are
    one.
    """

    between: Steps
    along: Steps

    @staticmethod
    def of(dims: Sequence[int], axes: Sequence[int]) -> Lines:
        """Lines along some axes (which may count from the end) of a tensor that lies in order."""
        inside = {a % len(dims) for a in axes}
        sizes = [(size, prod(dims[i + 1 :])) for i, size in enumerate(dims)]
        between = [s for i, s in enumerate(sizes) if i not in inside]
        return Lines(_merged(between), _merged([sizes[i] for i in sorted(inside)]))

    @property
    def count(self) -> int:
        """Number of lines."""
        return prod(size for size, _ in self.between)

    @property
    def length(self) -> int:
        """Elements of a line."""
        return prod(size for size, _ in self.along)

    @property
    def beside(self) -> bool:
        """Whether neighbours in memory belong to different lines."""
        return bool(self.between) and self.between[-1][1] == 1

    @property
    def in_order(self) -> bool:
        """Whether lines lie one after the other, each in order."""
        steps = [*self.between, *self.along]
        return len(self.between) < 2 and len(self.along) < 2 and steps == _whole(steps)

    def start(self, b: Builder, line: Value) -> Value:
        """Where a line begins."""
        return _at(b, line, self.between)

    def offset(self, b: Builder, element: Value) -> Value:
        """How far behind the line's beginning its element lies."""
        return _at(b, element, self.along)


def _merged(steps: Sequence[tuple[int, int]]) -> Steps:
    found: list[tuple[int, int]] = []
    for size, step in steps:
        if size == 1:
            continue
        if found and found[-1][1] == size * step:
            size *= found.pop()[0]
        found.append((size, step))
    return tuple(found)


def _whole(steps: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    sizes = [size for size, _ in steps]
    return [(size, prod(sizes[i + 1 :])) for i, size in enumerate(sizes)]


def _at(b: Builder, index: Value, steps: Steps) -> Value:
    if not steps:
        return tir.const(0)
    places = indices(b, index, tuple(size for size, _ in steps))
    pairs = zip(places, steps, strict=True)
    return b.let(sum((p * step for p, (_, step) in pairs), start=tir.const(0)), "at")
