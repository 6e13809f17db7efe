"""A kernel with loops over tasks -> its phases, each a function of one unit's share.

    kernel(pointers...)  ->  phase(pointers..., rounds..., unit), one after the other

Of `units`, a phase's unit runs turns unit, unit + units, ... of a parallel loop; a statement beside
the loops that writes memory is a phase of one unit. What stands beside the loops and only names
things or fills registers is done by every unit for itself. A serial loop of phases is `Rounds`:
they run so often, and are told which round it is. All units of a phase are finished before any of
the next begins, so what a kernel is told of its pointers holds within a phase, where no other
thread writes what this one reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import tvm
from tvm import tirx

from qcompiler.errors import Error
from qcompiler.kernels.registry import Kernel

Statement = Any
_PARALLEL = tirx.ForKind.PARALLEL


@dataclass(frozen=True)
class Phase:
    """A function's name, and how many units it is worth; `whole`: it is the kernel as it was, and
    takes its pointers only.
    """

    name: str
    func: Any
    units: int
    whole: bool = False
    length: int = 1
    """How many sections of a run it takes."""


@dataclass(frozen=True)
class Rounds:
    """Phases, and serial loops of them, that run `turns` times."""

    turns: int
    parts: tuple[Phase | Rounds, ...]

    @property
    def length(self) -> int:
        """How many sections of a run it takes."""
        return self.turns * sum(p.length for p in self.parts)


Part = Phase | Rounds


def phases(kernel: Kernel, units: int) -> tuple[Part, ...]:
    """A kernel -> its phases, for so many units."""
    if kernel.tasks == 1:
        return (Phase(kernel.name, kernel.func, 1, whole=True),)
    return _Splitter(kernel, units).parts()


def flat(parts: tuple[Part, ...]) -> Iterator[Phase]:
    """Every phase once, in order."""
    for part in parts:
        if isinstance(part, Phase):
            yield part
        else:
            yield from flat(part.parts)


class _Splitter:
    """The parts of a kernel that write memory, numbered in order."""

    def __init__(self, kernel: Kernel, units: int) -> None:
        self.kernel, self.units = kernel, units
        self.unit = tvm.ir.Var("unit", tvm.ir.PrimType("int32"))
        self.several = sum(1 for _ in self._leaves(_flat(kernel.func.body))) > 1
        if self.several and kernel.in_place:
            raise Error("phases may not take over what an earlier one reads", where=kernel.name)

    def parts(self) -> tuple[Part, ...]:
        """The phases, with a function for each."""
        return self._made(_flat(self.kernel.func.body), count(), ())

    def _leaves(self, stmts: list[Statement]) -> Iterator[Statement]:
        for stmt in stmts:
            if _has_rounds(stmt):
                yield from self._leaves(_flat(stmt.body))
            elif not _is_private(stmt, self.kernel.name):
                yield stmt

    def _made(
        self, stmts: list[Statement], numbers: Iterator[int], rounds: tuple[Any, ...]
    ) -> tuple[Part, ...]:
        found: list[Part] = []
        for stmt in stmts:
            if _has_rounds(stmt):
                var = tvm.ir.Var(stmt.loop_var.name, stmt.loop_var.ty)
                inner = self._made(_flat(stmt.body), numbers, (*rounds, var))
                found.append(Rounds(_number(stmt.extent, self.kernel.name), inner))
            elif not _is_private(stmt, self.kernel.name):
                found.append(self._phase(next(numbers), stmt, rounds))
        return tuple(found)

    def _phase(self, number: int, leaf: Statement, rounds: tuple[Any, ...]) -> Phase:
        func = self.kernel.func
        name = f"{self.kernel.name}_phase{number}" if self.several else self.kernel.name
        body = _Kept(self, number, rounds).visit(func.body)
        params = [*func.params, *rounds, self.unit]
        made = tirx.PrimFunc(params, body, func.ret_type, func.attrs)
        turns = _number(leaf.extent, self.kernel.name) if _is_parallel(leaf) else 1
        return Phase(name, made, min(turns, self.units))

    def share(self, leaf: Statement) -> Statement:
        """A unit's turns of a parallel loop."""
        if not _is_parallel(leaf):
            return leaf
        turns, units = _number(leaf.extent, self.kernel.name), self.units
        if turns <= units:
            return _sequence([tirx.Bind(leaf.loop_var, self.unit), leaf.body])
        turn = tvm.ir.Var("turn", tvm.ir.PrimType("int32"))
        mine = tirx.truncdiv(tirx.IntImm("int32", turns + units - 1) - self.unit, units)
        body = _sequence([tirx.Bind(leaf.loop_var, self.unit + turn * units), leaf.body])
        return tirx.For(turn, tirx.IntImm("int32", 0), mine, tirx.ForKind.SERIAL, body)


class _Kept:
    """A kernel's body with one of its numbered parts, and what is private up to there."""

    def __init__(self, splitter: _Splitter, number: int, rounds: tuple[Any, ...]) -> None:
        self.splitter, self.number = splitter, number
        self.rounds = list(rounds)
        self.seen = 0

    def visit(self, stmt: Statement) -> Statement:
        """Zero where nothing is kept."""
        return _sequence(list(self._kept(stmt)))

    def _kept(self, stmt: Statement) -> Iterator[Statement]:
        name = self.splitter.kernel.name
        if isinstance(stmt, tirx.SeqStmt):
            for s in stmt.seq:
                yield from self._kept(s)
        elif isinstance(stmt, tirx.AttrStmt):
            yield tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, self.visit(stmt.body))
        elif _has_rounds(stmt):
            yield from self._round(stmt)
        elif _is_private(stmt, name):
            if self.seen <= self.number or isinstance(stmt, tirx.Return):
                yield stmt
        else:
            if self.seen == self.number:
                yield self.splitter.share(stmt)
            self.seen += 1

    def _round(self, loop: Statement) -> Iterator[Statement]:
        within = sum(1 for _ in self.splitter._leaves(_flat(loop.body)))
        if self.seen <= self.number < self.seen + within:
            yield tirx.Bind(loop.loop_var, loop.min + self.rounds.pop(0))
            yield from self._kept(loop.body)
        else:
            self.seen += within


def _sequence(stmts: list[Statement]) -> Statement:
    if not stmts:
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(stmts)


def _number(extent: Any, name: str) -> int:
    if not isinstance(extent, tirx.IntImm):
        raise Error(f"{extent} turns of a loop around or over tasks", where=name)
    return int(extent.value)


def _flat(stmt: Statement) -> list[Statement]:
    """The statements of a body that no loop or condition holds."""
    if isinstance(stmt, tirx.SeqStmt):
        return [inner for s in stmt.seq for inner in _flat(s)]
    return _flat(stmt.body) if isinstance(stmt, tirx.AttrStmt) else [stmt]


def _is_parallel(stmt: Statement) -> bool:
    return isinstance(stmt, tirx.For) and stmt.kind == _PARALLEL


def _has_rounds(stmt: Statement) -> bool:
    """Is it a serial loop around parallel ones?"""
    if not isinstance(stmt, tirx.For) or _is_parallel(stmt):
        return False
    return any(_is_parallel(s) or _has_rounds(s) for s in _flat(stmt.body))


def _is_private(stmt: Statement, name: str) -> bool:
    """Does a statement beside the loops touch nothing but what is the unit's own?"""
    if _is_parallel(stmt) or _has_rounds(stmt):
        return False
    found = {_writes_memory(s, name) for s in _stores(stmt, name)}
    if len(found) > 1:
        raise Error("it fills registers and memory in one statement beside its tasks", where=name)
    return found != {True}


def _stores(stmt: Statement, name: str) -> list[Statement]:
    """The statements inside one that have an effect."""
    if isinstance(stmt, tirx.SeqStmt):
        return [inner for s in stmt.seq for inner in _stores(s, name)]
    if isinstance(stmt, tirx.IfThenElse):
        cases = [c for c in (stmt.then_case, stmt.else_case) if c is not None]
        return [inner for c in cases for inner in _stores(c, name)]
    if _is_parallel(stmt):
        raise Error("a parallel loop stands inside another statement", where=name)
    if isinstance(stmt, (tirx.For, tirx.While, tirx.AttrStmt)):
        return _stores(stmt.body, name)
    return [stmt] if isinstance(stmt, (tirx.BufferStore, tirx.Evaluate)) else []


def _writes_memory(stmt: Statement, name: str) -> bool:
    if isinstance(stmt, tirx.BufferStore):
        return bool(stmt.buffer.scope() != "local")
    if isinstance(stmt.value, tirx.IntImm):
        return False
    operator = getattr(getattr(stmt.value, "op", None), "name", "")
    if operator == "tirx.masked_store":
        return True
    raise Error(f"{operator or stmt.value} stands beside its tasks", where=name)
