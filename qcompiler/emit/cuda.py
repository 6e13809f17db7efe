"""Kernels for a GPU -> CUDA C++, and the launches of each.

TVM writes the code of every function; what it calls is in device_code.cuh. A kernel that has no
grid but tasks (kernels/registry.py) becomes a launch for each of its phases, with a thread for each
unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx
from tvm.target import codegen

from qcompiler.emit.tasks import Part, Phase, phases
from qcompiler.hardware.isa import Isa
from qcompiler.kernels.gpu.code.block import bound
from qcompiler.kernels.registry import Grid, Kernel

Function = Any
"""A TIR PrimFunc."""

_FIRST = 'extern "C" __global__'
"""How TVM's code begins, after lines that device_code.cuh replaces."""
_THREADS = 64
"""Threads of a block that runs tasks, which have no memory in common."""
_MOST_UNITS = 1 << 20


@dataclass(frozen=True)
class Launch:
    """A function's name, its grid, and the numbers that it gets after its pointers."""

    function: str
    grid: Grid
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Launched:
    """The functions of a kernel, and its launches in order."""

    functions: Mapping[str, Function]
    launches: tuple[Launch, ...]


def launched(kernel: Kernel) -> Launched:
    """A kernel -> its functions and launches."""
    if kernel.grid is not None:
        functions, launches = {kernel.name: kernel.func}, [Launch(kernel.name, kernel.grid)]
        names = [f"{kernel.name}_after{i}" for i in range(len(kernel.after))]
        functions |= {n: a.func for n, a in zip(names, kernel.after, strict=True)}
        rounds: list[tuple[int, ...]] = [(i,) for i in range(kernel.rounds)]
        for numbers in rounds or [()]:
            pairs = zip(names, kernel.after, strict=True)
            launches += [Launch(n, a.grid, numbers) for n, a in pairs]
        return Launched(functions, tuple(launches))
    parts = phases(kernel, _MOST_UNITS)
    found = list(_in_order(parts, ()))
    made = {phase.name: _of_threads(phase) for phase, _ in found}
    return Launched(made, tuple(Launch(p.name, _grid(p), numbers) for p, numbers in found))


def _in_order(
    parts: Sequence[Part], rounds: tuple[int, ...]
) -> Iterator[tuple[Phase, tuple[int, ...]]]:
    """Phases as often as they run, each with the numbers of its rounds."""
    for part in parts:
        if isinstance(part, Phase):
            yield part, rounds
        else:
            for i in range(part.iterations):
                yield from _in_order(part.parts, (*rounds, i))


def _grid(phase: Phase) -> Grid:
    threads = min(_THREADS, phase.units)
    return Grid((-(-phase.units // threads), 1, 1), threads)


def _of_threads(phase: Phase) -> Function:
    """A phase -> the function of a grid, each of whose threads is a unit."""
    grid, func = _grid(phase), phase.func
    thread, block = (tvm.ir.Var(n, tvm.ir.PrimType("int32")) for n in ("threadIdx.x", "blockIdx.x"))
    params, body = list(func.params), _without_ends(func.body)
    if not phase.whole:
        unit = params.pop()
        inside = tirx.LT(unit, tirx.IntImm("int32", phase.units))
        mine = tirx.Bind(unit, block * grid.threads + thread)
        body = tirx.SeqStmt([mine, tirx.IfThenElse(inside, body, None)])
    body = bound(thread, grid.threads, body)
    body = bound(block, grid.blocks[0], body)
    return tirx.PrimFunc(params, body, None, func.attrs)


def _without_ends(stmt: Any) -> Any:
    """A function's body without what it returns, and without the CPU that it names."""
    if isinstance(stmt, tirx.AttrStmt) and stmt.attr_key in ("device_type", "device_id"):
        return _without_ends(stmt.body)
    if isinstance(stmt, tirx.Return):
        return tirx.Evaluate(tirx.IntImm("int32", 0))
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_without_ends(s) for s in stmt.seq])
    return stmt


def source(functions: Mapping[str, Function], isa: Isa) -> str:
    """Functions by name -> CUDA C++, the same for the same functions."""
    if not functions:
        return device_code()
    _lower_instructions()
    target = tvm.target.Target({"kind": "cuda", "arch": isa.name})
    marks = {"target": target, "calling_conv": 2, "tirx.is_global_func": True}
    made = {n: f.with_attrs({"global_symbol": n, **marks}) for n, f in functions.items()}
    x = tirx.transform
    passes = [x.FlattenBuffer(), x.StmtSimplify(), x.LowerIntrin()]
    lowered = tvm.ir.transform.Sequential(passes)(tvm.IRModule(made))
    text = tvm.get_global_func("target.build.cuda")(lowered, target).inspect_source()
    code = text[text.index(_FIRST) :]
    halves = "#include <cuda_fp16.h>\n" if "half" in code else ""
    return f"{halves}{device_code()}\n{code}"


@cache
def device_code() -> str:
    """Functions that all kernels may call."""
    return (Path(__file__).parent / "device_code.cuh").read_text(encoding="utf-8")


@cache
def _lower_instructions() -> None:
    """Teach TVM what becomes of LLVM's instructions in code for a GPU."""
    for op in ("call_llvm_pure_intrin", "call_llvm_intrin"):
        tirx.register_intrin_lowering(f"tirx.{op}", target="cuda", f=_function_of)
    tirx.register_intrin_lowering("tirx.reinterpret", target="cuda", f=_same_bits)


def _function_of(call: Any) -> Any:
    """A call of an instruction of LLVM -> of the function of the same name in device_code.cuh."""
    name = str(codegen.llvm_get_intrinsic_name(int(call.args[0].value)))
    if name.startswith("llvm.prefetch"):
        return tirx.const(0, "int32")
    short = name.removeprefix("llvm.").replace(".", "_")
    return tirx.call_pure_extern(call.ty.dtype, f"math_{short}", *call.args[1:])


def _same_bits(call: Any) -> Any:
    """The same bits as another dtype; TVM's own code takes the address of any expression. What has
    several lanes stays with TVM.
    """
    name = _C_NAMES.get(str(call.ty.dtype))
    if name is None or str(call.args[0].ty.dtype) not in _C_NAMES:
        return call
    return tirx.call_pure_extern(call.ty.dtype, f"bits_as<{name}>", call.args[0])


_C_NAMES = {
    "float32": "float",
    "float64": "double",
    "float16": "half",
    **{f"int{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"uint{bits}_t" for bits in (8, 16, 32, 64)},
}
