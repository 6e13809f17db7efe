"""Rows of elements -> a team of threads for each, and numbers that a team joins.

A team is a warp or several; a block holds some teams. Element e of a row belongs to thread
e % team, so that neighbours are read together; each thread keeps its own in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from tvm import tirx

from qcompiler.hardware.gpu import WARP
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.epilogue import Fused
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import across
from qcompiler.kernels.gpu.code.draft import GridDraft

LONGEST = 16384
"""Elements of the longest row: 16 registers of each of 1024 threads."""
_EACH = 8
"""Elements of a thread from which a row gets more threads."""
_BLOCK = 128

Join = Callable[[Vec, Vec], Vec]


def team_of(length: int) -> int:
    """Threads for a row."""
    team = WARP
    while team * _EACH < length and team < 1024:
        team *= 2
    return team


def threads_of(length: int) -> int:
    """Threads of a block for rows of a length."""
    return max(team_of(length), _BLOCK)


class Team:
    """The threads of one row, while their code is written. `d` has `threads_of(length)` threads."""

    def __init__(self, d: GridDraft, rows: int, length: int) -> None:
        self.d, self.b, self.m = d, d.b, d.m
        self.rows, self.length, self.size = rows, length, team_of(length)
        teams = self.b.threads // self.size
        self.b.blocks(-(-rows // teams))
        self.lane = self.b.let(tirx.floormod(self.b.thread, self.size), "lane")
        self.number = self.b.let(tirx.floordiv(self.b.thread, self.size), "team")
        asked = self.b.let(self.b.x * teams + self.number, "asked")
        self.whole = rows % teams == 0
        self.row = asked if self.whole else self.b.let(tirx.Min(asked, tir.const(rows - 1)), "row")
        self.inside = asked < rows
        self.each = -(-length // self.size)
        """Elements of a thread, the last of which may be behind the row's end."""

    def element(self, i: int) -> Value:
        """The number of a thread's element i in the row."""
        return self.b.let(self.lane + i * self.size, "element")

    def within(self, i: int, element: Value) -> AbstractContextManager[None]:
        """Statements for a thread's element i, if the row has it."""
        if (i + 1) * self.size <= self.length:
            return nullcontext()
        return self.b.when(element < self.length)

    def values(self, dtype: str, f: Fused, beyond: float) -> list[Vec]:
        """The thread's elements, by way of the prologue, in a dtype; `beyond` where the row ends
        before.
        """
        held = self.b.registers(dtype, 1, self.each, "held")
        for i in range(self.each):
            element = self.element(i)
            if (i + 1) * self.size > self.length:
                held[i] = self.m.splat(beyond, dtype).expr
            with self.within(i, element):
                held[i] = self.m.cast(self.at(f, element), dtype).expr
        return [Vec(self.m, held[i], dtype, 1) for i in range(self.each)]

    def only(self, i: int, value: Vec, beyond: float) -> Vec:
        """A value of the thread's element i; `beyond` where the row ends before."""
        if (i + 1) * self.size <= self.length:
            return value
        return self.m.where(self.m.vec(self.element(i) < self.length), value, beyond)

    def at(self, f: Fused, element: Value, given: Vec | None = None) -> Vec:
        """The value of `f` at an element of the team's row; `given`: the root's there."""
        known = {} if given is None else {self.d.root: given}
        if f.columns == self.length:
            return f.at(f.row(self.row), element, 1, 1, known)
        return self.d.at(f, self.b.let(self.row * self.length + element, "flat"), known)

    def joined(self, own: Vec, join: Join) -> Vec:
        """A number of each thread -> that of the team, the same in all its threads."""
        distance = WARP // 2
        while distance:
            other = self.m.vec(across("shuffle_xor", own.expr, tir.const(distance)))
            own, distance = join(own, other), distance // 2
        warps = self.size // WARP
        if warps == 1:
            return own
        partial = self.b.shared(own.dtype, self.b.threads // WARP, "partial")
        with self.b.when(tirx.EQ(tirx.floormod(self.b.thread, WARP), 0)):
            partial.store(self.b.let(tirx.floordiv(self.b.thread, WARP)), own.expr)
        self.b.barrier()
        first = self.b.let(self.number * warps, "first")
        total = self.m.vec(partial.load(first))
        for i in range(1, warps):
            total = join(total, self.m.vec(partial.load(first + i)))
        return total

    def give(self, f: Fused, value: Callable[[int, Value], Vec]) -> None:
        """Store value(i, element) for the thread's elements, by way of the epilogue."""
        with nullcontext() if self.whole else self.b.when(self.inside):
            for i in range(self.each):
                element = self.element(i)
                with self.within(i, element):
                    made = self.m.cast(value(i, element), self.d.root.dtype)
                    at = self.b.let(self.row * self.length + element, "at")
                    self.d.store(at, [self.at(f, element, made)])
