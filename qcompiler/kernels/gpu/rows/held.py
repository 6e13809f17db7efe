"""The elements of a line while kernels compute with them: in registers where these suffice, else
read again each time.

    line = line_of(team, reading, "float32")
    top = line.fold(m.max, -inf)                     # of the whole line, in all its threads
    powers = line.map(lambda v: m.exp(v - top))
    powers.give(lambda v, element: v / powers.fold(add, 0.0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.epilogue import Fused
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.rows.team import LONGEST, Join, Team

Each = Callable[[Vec], Vec]
_MOST_HELD = 16
"""Elements that a thread holds in registers."""


class Line(Protocol):
    """A line's elements, in the dtype of the computation."""

    def map(self, each: Each) -> Line:
        """The same line of a function of every element."""

    def fold(self, join: Join, start: float) -> Vec:
        """All elements joined, in all threads of the line; `start` changes nothing when joined."""

    def give(self, value: Callable[[Vec, Value], Vec]) -> None:
        """Store value(element's value, its number) for the elements, by way of the epilogue."""


def line_of(team: Team, f: Fused, dtype: str) -> Line:
    """The line of a team, read by way of a prologue."""
    if team.size == 1 or team.each > _MOST_HELD or team.length > LONGEST:
        return Streamed(team, f, dtype)
    return Held(team, team.values(dtype, f, 0))


@dataclass(frozen=True)
class Held:
    """In registers."""

    team: Team
    values: list[Vec]

    def map(self, each: Each) -> Line:
        """See Line."""
        return replace(self, values=[each(v) for v in self.values])

    def fold(self, join: Join, start: float) -> Vec:
        """See Line."""
        own = [self.team.only(i, v, start) for i, v in enumerate(self.values)]
        return self.team.joined(reduce(join, own), join)

    def give(self, value: Callable[[Vec, Value], Vec]) -> None:
        """See Line."""
        team = self.team
        f = team.d.writing(whole=True)
        with team.there():
            for i, v in enumerate(self.values):
                element = team.element(i)
                with team.within(i, element):
                    team.give(f, element, value(v, element))


@dataclass(frozen=True)
class Streamed:
    """Read again each time."""

    team: Team
    f: Fused
    dtype: str
    each: Each = lambda v: v

    def map(self, each: Each) -> Line:
        """See Line."""
        before = self.each
        return replace(self, each=lambda v: each(before(v)))

    def at(self, element: Value) -> Vec:
        """The value of an element."""
        return self.each(self.team.m.cast(self.team.at(self.f, element), self.dtype))

    def fold(self, join: Join, start: float) -> Vec:
        """See Line."""
        team, m = self.team, self.team.m
        total = team.b.registers(tir.stored(self.dtype), 1, 1, "total")
        total[0] = m.splat(start, self.dtype).expr
        with team.elements() as element:
            total[0] = join(Vec(m, total[0], self.dtype, 1), self.at(element)).expr
        return team.joined(m.vec(total[0], self.dtype), join)

    def give(self, value: Callable[[Vec, Value], Vec]) -> None:
        """See Line."""
        team = self.team
        f = team.d.writing(whole=True)
        with team.there(), team.elements() as element:
            team.give(f, element, value(self.at(element), element))
