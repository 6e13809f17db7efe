"""A kernel with a loop over tasks -> a function of the share that one task of a crew has in it.

    kernel(pointers...)  ->  kernel(pointers..., task, count, crew)

Of `count` tasks, this one runs turns task, task + count, ... of every parallel loop, so any number
of tasks, one too, does all the work. What stands beside the loops runs in every task when it only
names things or fills registers, in task 0 when it writes memory. After every part that writes
memory, but the last, all tasks wait for each other. A serial loop of such parts is run by all
tasks, which wait after every part of every turn.
"""

from __future__ import annotations

from math import inf
from typing import Any

import tvm
from tvm import tirx

from qcompiler.errors import Error
from qcompiler.kernels.tir import Value

Statement = Any
WAIT = "qcompiler_wait"
_PARALLEL = tirx.ForKind.PARALLEL


class Crew:
    """The three parameters by which a function knows its share: `task` of `count`, and the crew."""

    def __init__(self) -> None:
        self.task = tvm.ir.Var("task", tvm.ir.PrimType("int32"))
        self.count = tvm.ir.Var("count", tvm.ir.PrimType("int32"))
        self.memory = tvm.ir.Var("crew", tvm.ir.PointerType(tvm.ir.PrimType("uint8")))

    @property
    def params(self) -> list[Value]:
        """In the order in which they are passed."""
        return [self.task, self.count, self.memory]

    def barrier(self) -> Statement:
        """All tasks wait for each other; inlined, so that no access of memory moves across."""
        return tirx.Evaluate(tirx.call_extern("void", "crew_barrier", self.memory, self.count))

    def wait(self) -> Statement:
        """The same by a call: between kernels, where a thousand copies would take LLVM seconds."""
        return tirx.Evaluate(tirx.call_extern("int32", WAIT, self.memory, self.count))

    def only(self, owner: int, statement: Statement) -> Statement:
        """A statement for one task."""
        mine = owner % self.count if owner else tirx.IntImm("int32", 0)
        return tirx.IfThenElse(tirx.EQ(self.task, mine), statement, None)


def task_function(name: str, kernel: Any) -> Any:
    """A kernel's PrimFunc -> the PrimFunc of one task's share in it."""
    crew = Crew()
    parts = _Parts(name, crew)
    body = parts.rewritten(kernel.body)
    params = [*kernel.params, *crew.params]
    return tirx.PrimFunc(params, body, kernel.ret_type, kernel.attrs)


class _Parts:
    """The statements of a kernel, in order, as one task runs them."""

    def __init__(self, name: str, crew: Crew) -> None:
        self.name = name
        self.crew = crew
        self.left = 0.0  # parts that write memory and are still to come

    def rewritten(self, body: Statement) -> Statement:
        self.left = sum(not _is_private(s, self.name) for s in _flat(body))
        return self.visit(body)

    def visit(self, stmt: Statement) -> Statement:
        if isinstance(stmt, tirx.SeqStmt):
            return tirx.SeqStmt([self.visit(s) for s in stmt.seq])
        if isinstance(stmt, tirx.AttrStmt):
            return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, self.visit(stmt.body))
        if _is_private(stmt, self.name):
            return stmt
        if _has_rounds(stmt):
            self.left -= 1
            return self.rounds(stmt)
        made = self.share(stmt) if _is_parallel(stmt) else self.crew.only(0, stmt)
        self.left -= 1
        return tirx.SeqStmt([made, self.crew.barrier()]) if self.left else made

    def rounds(self, loop: Statement) -> Statement:
        """A serial loop of parts: the last of a turn, too, is waited for, by the next turn's."""
        inner = _Parts(self.name, self.crew)
        inner.left = inf
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, inner.visit(loop.body))

    def share(self, loop: Statement) -> Statement:
        """This task's turns of a parallel loop."""
        crew = self.crew
        turn = tvm.ir.Var("turn", tvm.ir.PrimType("int32"))
        turns = tirx.truncdiv(loop.extent - crew.task + crew.count - 1, crew.count)
        number = tirx.Bind(loop.loop_var, crew.task + turn * crew.count)
        body = tirx.SeqStmt([number, loop.body])
        return tirx.For(turn, tirx.IntImm("int32", 0), turns, tirx.ForKind.SERIAL, body)


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
    """Does a statement beside the loops touch nothing but what is the task's own?"""
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
