"""Plan -> modules of TIR -> one shared library, of plain C functions that need libc only:

    int qcompiler_run(table, task, count)                     one task's share in all steps
    int qcompiler_launch(crew, function, table, count)        all shares, by a crew's workers
    int qcompiler_work(crew, task)                            a worker: waits for launches
    int qcompiler_signature(int32 *found)                     what the code takes for granted

`table` is an array of 8-byte words: the addresses of the inputs, the outputs, the weights, the
workspace and the crew, then the first step to run and the one after the last (all of them in one
run; one alone when a step is timed). A run allocates nothing and keeps nothing, so there may be
several at once, each with a workspace and a crew of its own. All arrays are 64-byte aligned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import tvm
from tvm import tirx

from qcompiler.artifact import signature
from qcompiler.emit import crew as crew_text
from qcompiler.emit.link import link
from qcompiler.emit.machine import build_objects, modules
from qcompiler.emit.tasks import WAIT, Crew, Statement, task_function
from qcompiler.isa import Isa
from qcompiler.kernels.registry import Kernel
from qcompiler.kernels.tir import Builder, Value, const
from qcompiler.phases import SHARED, Turn, Work, turns
from qcompiler.plan import Place, Plan, Step

log = logging.getLogger(__name__)

STEPS_A_PART = 50
"""`run` calls parts of so many steps, so that no function grows with the model."""

Layers = tuple[dict[str, tirx.PrimFunc], dict[str, tirx.PrimFunc]]
"""Kernels, and the functions that call them, by name."""

_BYTES = tvm.ir.PointerType(tvm.ir.PrimType("uint8"))
_INT = tvm.ir.PrimType("int32")


def emit(plan: Plan) -> bytes:
    """Plan -> the bytes of a shared library."""
    return _library(layers(plan), plan.device.isa)


def emit_kernel(kernel: Kernel, isa: Isa) -> bytes:
    """A kernel -> a shared library that runs it on the first arrays of the table, for timing."""
    pointers = len(kernel.func.params)
    table = _Table(pointers, 0)
    places = [Place("input", i, 0) for i in range(pointers)]
    calls = _call(kernel, places, table)
    only = tirx.Bind(table.part, tirx.IntImm("int32", 0))
    body = [*table.statements, only, calls, table.crew.barrier()]
    return _library(
        ({kernel.name: _shared(kernel)}, _entries(_function(table.params(), body))), isa
    )


def _library(found: Layers, isa: Isa) -> bytes:
    return link(build_objects(modules(*found), isa, crew_text.text(isa)), isa.triple)


def _shared(kernel: Kernel) -> tirx.PrimFunc:
    """A kernel, as the tasks of a crew call it."""
    return task_function(kernel.name, kernel.func) if kernel.tasks > 1 else kernel.func


def _entries(run: tirx.PrimFunc) -> dict[str, tirx.PrimFunc]:
    """What the runtime calls."""
    return {
        "qcompiler_run": run,
        "qcompiler_launch": _shell("crew_launch", [_BYTES, _BYTES, _BYTES, _INT]),
        "qcompiler_work": _shell("crew_work", [_BYTES, _INT]),
        WAIT: _shell("crew_barrier", [_BYTES, _INT]),
    }


def layers(plan: Plan) -> Layers:
    """Plan -> the functions by name: every kernel once; the parts of the run and the entries."""
    kernels: dict[str, tirx.PrimFunc] = {}
    for step in plan.steps:
        if step.kernel.name not in kernels:
            kernels[step.kernel.name] = _shared(step.kernel)
    order = turns([_work(s) for s in plan.steps], plan.device.threads)
    starts = range(0, len(plan.steps), STEPS_A_PART)
    parts = {f"qcompiler_part{start}": _part(plan, order, start) for start in starts}
    signed = {"qcompiler_signature": _signature(plan)}
    return kernels, {**parts, **_entries(_run(list(parts), plan)), **signed}


def _signature(plan: Plan) -> tirx.PrimFunc:
    """What the manifest has to agree with (artifact.signature)."""
    graph = plan.graph
    inputs = [(n.name, n.dtype, n.type.dims) for n in graph.inputs]
    named = zip(graph.output_names, graph.outputs, strict=True)
    outputs = [(name, n.dtype, n.type.dims) for name, n in named]
    sizes = (plan.weights.nbytes, plan.workspace_bytes, len(plan.steps), plan.device.threads)
    signed = signature(inputs, outputs, sizes, plan.device.isa.cpu_flags)
    b = Builder("qcompiler_signature")
    b.pointer("found", "int32").store(0, const(signed))
    return b.function()


def _work(step: Step) -> Work:
    writes = (step.output, *([step.scratch] if step.scratch else []))
    cost = 1000 + step.kernel.macs + sum(p.bytes for p in (*step.operands, step.output))
    return Work(step.operands, writes, step.kernel.tasks > 1, cost)


class _Table:
    """The parameters of a part, read from the table."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.table = tvm.ir.Var("table", _BYTES)
        self.part = tvm.ir.Var("part", _INT)
        self.crew = Crew()
        self.inputs = inputs
        self.statements: list[Statement] = []
        self.buffers: dict[int, Value] = {}
        shared = inputs + outputs
        self.weights, self.workspace, crew, self.first_at, self.last_at = range(shared, shared + 5)
        self.statements.append(tirx.Bind(self.crew.memory, self._pointer(crew)))

    def params(self) -> list[Value]:
        """Of an entry."""
        return [self.table, self.crew.task, self.crew.count]

    def _pointer(self, index: int) -> Value:
        at = tirx.IntImm("int32", index)
        return tirx.call_pure_extern(_BYTES, "crew_pointer", self.table, at)

    def number(self, index: int, name: str) -> Value:
        at = tirx.IntImm("int32", index)
        var = tvm.ir.Var(name, _INT)
        value = tirx.call_pure_extern("int32", "crew_number", self.table, at)
        self.statements.append(tirx.Bind(var, value))
        return var

    def address(self, place: Place) -> Value:
        """Where a place lies in this run."""
        if place.space in ("input", "output"):
            index = place.offset + (self.inputs if place.space == "output" else 0)
            offset = tirx.Cast("int64", self.part) * tirx.IntImm("int64", place.bytes)
        else:
            index = self.weights if place.space == "weights" else self.workspace
            offset = tirx.IntImm("int64", place.offset)
        if index not in self.buffers:
            pointer = tvm.ir.Var(f"memory{index}", _BYTES)
            self.statements.append(tirx.Bind(pointer, self._pointer(index)))
            buffer = tirx.decl_buffer((1 << 40,), "uint8", f"bytes{index}", layout=None)
            self.statements.append(tirx.DeclBuffer(buffer, data=pointer))
            self.buffers[index] = buffer
        return tirx.address_of(tirx.BufferLoad(self.buffers[index], [offset]))


def _part(plan: Plan, order: Sequence[Turn], start: int) -> tirx.PrimFunc:
    """A guarded call a step, for the steps from one on."""
    table = _Table(len(plan.graph.inputs), len(plan.graph.outputs))
    first, last = table.number(table.first_at, "first"), table.number(table.last_at, "last")
    calls = []
    for index in range(start, min(start + STEPS_A_PART, len(plan.steps))):
        here = tirx.IntImm("int32", index)
        wanted = tirx.And(tirx.LE(first, here), tirx.LT(here, last))
        made = _turn(plan.steps[index], order[index], table)
        calls.append(tirx.IfThenElse(wanted, made, None))
    return _function([*table.params(), table.part], [*table.statements, *calls])


def _turn(step: Step, turn: Turn, table: _Table) -> Statement:
    """One step, as all tasks run it."""
    places = [*step.operands, step.output, *([step.scratch] if step.scratch else [])]
    made = _call(step.kernel, places, table)
    if turn.owner != SHARED:
        made = table.crew.only(turn.owner, made)
    return tirx.SeqStmt([table.crew.wait(), made]) if turn.waits else made


def _call(kernel: Kernel, places: Sequence[Place], table: _Table) -> Statement:
    pointers = [table.address(p) for p in places]
    share = table.crew.params if kernel.tasks > 1 else []
    return tirx.Evaluate(tirx.call_extern("int32", kernel.name, *pointers, *share))


def _run(parts: Sequence[str], plan: Plan) -> tirx.PrimFunc:
    """All steps for one part of the batch after the other; when a last barrier opens, everything of
    a part is written, and the workspace is free for the next.
    """
    table = _Table(len(plan.graph.inputs), len(plan.graph.outputs))
    params = [*table.params(), table.part]
    calls = [tirx.Evaluate(tirx.call_extern("int32", p, *params)) for p in parts]
    turn = tirx.SeqStmt([*calls, table.crew.barrier()])
    none, all_ = (tirx.IntImm("int32", n) for n in (0, plan.parts))
    loop = tirx.For(table.part, none, all_, tirx.ForKind.SERIAL, turn)
    return _function(table.params(), [*table.statements, loop])


def _shell(name: str, types: Sequence[Value]) -> tirx.PrimFunc:
    """A function of the crew's text, as one that can be called from outside."""
    params = [tvm.ir.Var(f"p{i}", t) for i, t in enumerate(types)]
    return _function(params, [tirx.Evaluate(tirx.call_extern("void", name, *params))])


def _function(params: Sequence[Value], statements: Sequence[Statement]) -> tirx.PrimFunc:
    zero = tirx.Return(tirx.IntImm("int32", 0))
    return tirx.PrimFunc(list(params), tirx.SeqStmt([*statements, zero]), _INT)
