"""TIR functions and LLVM text -> machine code."""

from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from qcompiler.errors import Error
from qcompiler.files import size
from qcompiler.hardware import cpu
from qcompiler.hardware.isa import Isa
from qcompiler.kernels.cpu.code.tir import wrapping_ir

_BACKEND = "default"
_FUNCTIONS_A_MODULE = 8
_OBJECT_BYTES = 32 << 20
"""No object file of this few functions is larger: a few hundred kB are much for a kernel."""


def target(isa: Isa) -> Any:
    """An instruction set -> TVM's target."""
    return tvm.target.Target(_spec(isa))


def _spec(isa: Isa) -> dict[str, Any]:
    """TVM's description of a target. Words of `isa.llvm` with a sign are features; the last without
    one is LLVM's name of a CPU.
    """
    cpus = [word for word in isa.llvm if word[0] not in "+-"]
    features = [word for word in isa.llvm if word[0] in "+-"]
    spec: dict[str, Any] = {"kind": "llvm", "mtriple": isa.triple, "opt-level": 3}
    if cpus:
        spec["mcpu"] = cpus[-1]
    if features:
        spec["mattr"] = features
    return spec


def makes(isa: Isa) -> bool:
    """Whether the installed LLVM knows the architecture and every feature of an instruction set."""
    machine = isa.triple.partition("-")[0]
    known = tvm.get_global_func("target.llvm_get_targets")()
    if not any(machine.startswith(str(name)) for name in known):
        return False
    has, made = tvm.get_global_func("target.llvm_cpu_has_feature"), target(isa)
    return all(has(word[1:], made) for word in isa.llvm if word[0] == "+")


def build(module: Any, isa: Isa) -> Any:
    """IRModule of kernels (and a main that calls them) -> module of machine code.

    Runs only the passes that they need: TVM's default pipeline takes longer and may undo their
    loops.
    """
    t = target(isa)
    x = tirx.transform
    own = isa.intrinsics["llvm_ir"]() if "llvm_ir" in isa.intrinsics else ""
    module = _with_llvm(module, wrapping_ir() + own)
    passes = [
        x.BindTarget(t.with_host(t)),
        x.FlattenBuffer(),
        x.StmtSimplify(),
        x.VerifyMemory(),
        x.AnnotateEntryFunc(),
        x.SplitHostDevice(),
        x.MakePackedAPI(),
        x.LowerTVMBuiltin(),
        x.LowerIntrin(),
    ]
    lowered = tvm.ir.transform.Sequential(passes)(module)
    return tvm.get_global_func("target.build.llvm")(lowered, t)


@dataclass(frozen=True)
class Layer:
    """Functions by name, whose parameters are pointers and numbers, and LLVM text of what they call
    besides functions of earlier layers.
    """

    functions: Mapping[str, Any]
    text: str = ""


def modules(*layers: Layer) -> list[Layer]:
    """Layers, each of which calls earlier ones -> modules of a few functions each.

    No module has functions of two layers, so none is inlined into its callers: the alias facts of a
    kernel's pointers (`Kernel`) would then hold in the caller too, as if none read what another
    wrote. The division does not depend on the machine, so neither does the code.
    """
    return [
        Layer({n: layer.functions[n] for n in names[i : i + _FUNCTIONS_A_MODULE]}, layer.text)
        for layer in layers
        for names in [list(layer.functions)]
        for i in range(0, len(names), _FUNCTIONS_A_MODULE)
    ]


def build_objects(dealt: Sequence[Layer], isa: Isa) -> list[bytes]:
    """Modules -> object files of C functions of these names.

    They are compiled in parallel, as LLVM does not hold Python's lock. Raises Error where the
    system limits the size of files too much.
    """
    _need_room()
    with ThreadPoolExecutor(cpu.cores()) as pool:
        return list(pool.map(lambda made: _object(made, isa), dealt))


def _need_room() -> None:
    """Raise Error if files may exceed the limit of their size (`ulimit -f`), which holds in memory
    too: LLVM would end the process.
    """
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < _OBJECT_BYTES:
        raise Error(
            f"files may have {size(allowed)} here, machine code may need {size(_OBJECT_BYTES)}",
            where="code",
            hint="lift the limit of the size of files (ulimit -f)",
        )


def text_object(text: str, isa: Isa) -> bytes:
    """LLVM text of whole functions -> the bytes of an object file, which exports those that are not
    internal.
    """
    spec = json.dumps(_spec(isa)).replace('"', "\\22")
    flags = f'!llvm.module.flags = !{{!0}}\n!0 = !{{i32 2, !"tvm_target", !"{spec}"}}\n'
    _need_room()
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        path = Path(folder) / "code.ll"
        path.write_text(f"{_machine(isa)}\n{text}\n{flags}")
        return _written(tvm.runtime.load_module(str(path)))


def _machine(isa: Isa) -> str:
    """LLVM's description of a machine (data layout, triple), from an empty function's text."""
    empty = tirx.PrimFunc([], tirx.Return(tirx.IntImm("int32", 0)), tvm.ir.PrimType("int32"))
    text = machine_code({"empty": empty}, isa, "").inspect_source("ll")
    return "\n".join(line for line in text.splitlines() if line.startswith("target "))


def _object(layer: Layer, isa: Isa) -> bytes:
    """A module -> the bytes of an object file."""
    return _written(machine_code(layer.functions, isa, layer.text))


def _written(made: Any) -> bytes:
    """A module of machine code -> the bytes of an object file, written to memory because LLVM ends
    the process when a disk is full.
    """
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            path = Path(folder) / "code.o"
            made.write_to_file(str(path), "o")
            return path.read_bytes()
    with os.fdopen(os.memfd_create("code.o"), "rb") as file:
        made.write_to_file(f"/proc/self/fd/{file.fileno()}", "o")
        return file.read()


def machine_code(functions: Mapping[str, Any], isa: Isa, text: str) -> Any:
    """Functions as for `build_objects` -> one LLVM module; its `inspect_source("asm")` is its
    assembly text.
    """
    t = target(isa)
    x = tirx.transform
    own = isa.intrinsics["llvm_ir"]() if "llvm_ir" in isa.intrinsics else ""
    passes = [x.BindTarget(t), x.FlattenBuffer(), x.StmtSimplify(), x.LowerTVMBuiltin()]
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})
    module = _with_llvm(module, wrapping_ir() + own + text)
    lowered = tvm.ir.transform.Sequential([*passes, x.LowerIntrin()])(module)
    return tvm.get_global_func("target.build.llvm")(lowered, t)


def _with_llvm(module: Any, text: str) -> Any:
    """The module with functions in LLVM's text form added; unused ones vanish."""
    variable, first = next(iter(module.functions.items()))
    body = tirx.AttrStmt(_BACKEND, "pragma_import_llvm", tvm.ir.StringImm(text), first.body)
    return tvm.IRModule({**dict(module.functions.items()), variable: first.with_body(body)})


def compile_functions(functions: Sequence[tuple[str, Any]], isa: Isa) -> Any:
    """[(name, PrimFunc)] -> module; module[name] takes its pointers as ctypes.c_void_p."""
    return build(tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions}), isa)
