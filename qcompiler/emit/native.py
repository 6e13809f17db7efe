"""Plan -> one TIR module with one entry -> one shared library.

    main(inputs..., outputs..., weights, workspace, first, last)

calls the plan's kernels in order with raw pointers, steps `first` up to `last` (all of them in one
run; one alone when a step is timed). It allocates nothing and keeps nothing, so it may run in
several threads, each with its own workspace. All arrays are passed as flat uint8 arrays, 64-byte
aligned.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import tvm
from tvm import tirx

from qcompiler.emit.link import link
from qcompiler.kernels.tir import build
from qcompiler.plan import Place, Plan, Step

log = logging.getLogger(__name__)

ENTRY = "main"


def emit(plan: Plan) -> bytes:
    """Plan -> the bytes of a shared library that exports `main`."""
    machine_code = build(module(plan), plan.device.isa)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        code = Path(folder) / "code.o"
        machine_code.write_to_file(str(code))
        return link(code, plan.device.isa.triple)


def module(plan: Plan) -> tvm.IRModule:
    """Plan -> IRModule: every kernel once, as a private function, and `main`."""
    functions: dict[tvm.ir.GlobalVar, tirx.PrimFunc] = {}
    names: dict[str, tvm.ir.GlobalVar] = {}
    for step in plan.steps:
        if step.kernel.name not in names:
            names[step.kernel.name] = tvm.ir.GlobalVar(step.kernel.name)
            functions[names[step.kernel.name]] = step.kernel.func
    functions[tvm.ir.GlobalVar(ENTRY)] = _main(plan, names)
    return tvm.IRModule(functions)


def _main(plan: Plan, names: dict[str, tvm.ir.GlobalVar]) -> tirx.PrimFunc:
    """The entry: a guarded call a step."""
    inputs = [_bytes(f"input{i}", n.type.bytes) for i, n in enumerate(plan.graph.inputs)]
    outputs = [_bytes(f"output{i}", n.type.bytes) for i, n in enumerate(plan.graph.outputs)]
    weights = _bytes("weights", plan.weights.nbytes)
    workspace = _bytes("workspace", plan.workspace_bytes)
    first, last = (tvm.ir.Var(n, tvm.ir.PrimType("int32")) for n in ("first", "last"))

    def address(place: Place) -> tvm.ir.Expr:
        if place.space in ("input", "output"):
            buffer = (inputs if place.space == "input" else outputs)[place.offset]
            return _address(buffer, 0)
        return _address(weights if place.space == "weights" else workspace, place.offset)

    def call(index: int, step: Step) -> tirx.Stmt:
        places = [*step.operands, step.output, *([step.scratch] if step.scratch else [])]
        result = tvm.ir.PrimType("int32")
        made = tvm.ir.Call(names[step.kernel.name], [address(p) for p in places], ret_ty=result)
        here = tirx.IntImm("int32", index)
        wanted = tirx.And(tirx.LE(first, here), tirx.LT(here, last))
        return tirx.IfThenElse(wanted, tirx.Evaluate(made), None)

    calls = [call(i, s) for i, s in enumerate(plan.steps)] or [tirx.Evaluate(0)]
    params = [*inputs, *outputs, weights, workspace, first, last]
    function = tirx.PrimFunc(params, tirx.SeqStmt(calls) if len(calls) > 1 else calls[0])
    return function.with_attr("global_symbol", ENTRY).with_attr("s_tir", True)


def _bytes(name: str, size: int) -> tvm.ir.Var:
    return tirx.decl_buffer((max(size, 1),), "uint8", name)


def _address(buffer: tvm.ir.Var, offset: int) -> tvm.ir.Expr:
    return tirx.address_of(tirx.BufferLoad(buffer, [tirx.IntImm("int64", offset)]))
