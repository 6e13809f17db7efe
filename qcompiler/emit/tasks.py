"""A kernel with loops over tasks -> its phases, each a function of one unit's share.

    kernel(pointers...)  ->  phase(pointers..., rounds..., unit), one after the other

Of `units`, a phase's unit runs iterations unit, unit + units, ... of a parallel loop; a statement
outside the loops that writes memory is a phase of one unit. What only names values or fills
registers outside the loops, every unit repeats. A serial loop of phases is `Rounds`: its phases get
the number of the round. All units of a phase finish before any of the next begins, so the alias
facts of a kernel's pointers hold within a phase: no other thread writes what this one reads.
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
    """A function and how many units can share it; `whole`: it is the unchanged kernel, which takes
    pointers only.
    """

    name: str
    func: Any
    units: int
    whole: bool = False
    length: int = 1
    """Number of sections it takes in a run."""


@dataclass(frozen=True)
class Rounds:
    """A serial loop of phases and of other such loops."""

    iterations: int
    parts: tuple[Phase | Rounds, ...]

    @property
    def length(self) -> int:
        """Number of sections it takes in a run."""
        return self.iterations * sum(p.length for p in self.parts)


Part = Phase | Rounds


def phases(kernel: Kernel, units: int) -> tuple[Part, ...]:
    """A kernel -> its phases, for up to `units` units."""
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
        """The phases and rounds of the kernel."""
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
        iterations = _number(leaf.extent, self.kernel.name) if _is_parallel(leaf) else 1
        return Phase(name, made, min(iterations, self.units))

    def share(self, leaf: Statement) -> Statement:
        """A unit's iterations of a parallel loop."""
        if not _is_parallel(leaf):
            return leaf
        iterations, units = _number(leaf.extent, self.kernel.name), self.units
        if iterations <= units:
            return _sequence([tirx.Bind(leaf.loop_var, self.unit), leaf.body])
        iteration = tvm.ir.Var("iteration", tvm.ir.PrimType("int32"))
        mine = tirx.truncdiv(tirx.IntImm("int32", iterations + units - 1) - self.unit, units)
        body = _sequence([tirx.Bind(leaf.loop_var, self.unit + iteration * units), leaf.body])
        return tirx.For(iteration, tirx.IntImm("int32", 0), mine, tirx.ForKind.SERIAL, body)


class _Kept:
    """A kernel's body reduced to one of its numbered parts, and the private statements before."""

    def __init__(self, splitter: _Splitter, number: int, rounds: tuple[Any, ...]) -> None:
        self.splitter, self.number = splitter, number
        self.rounds = list(rounds)
        self.seen = 0

    def visit(self, stmt: Statement) -> Statement:
        """What is kept of a statement; zero where nothing is."""
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
        raise Error(f"{extent} iterations of a loop around or over tasks", where=name)
    return int(extent.value)


def _flat(stmt: Statement) -> list[Statement]:
    """The statements of a body outside loops and conditions."""
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
    """Does a statement outside the loops touch only the unit's own registers and names?"""
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
