"""A plan -> its real machine code, run once here: how often each block ran and what tiles did."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.assembly import ASKED, COUNTS, Block, instrument
from qcompiler.emit.native import ENTRY, module
from qcompiler.ir import numpy_dtype
from qcompiler.kernels.tir import build
from qcompiler.plan import Plan
from qcompiler.runtime.library import start, tensor
from qcompiler.runtime.model import aligned_empty

_CORES = 64
_SLOT = "__TVMBackendParallelLaunch"
"""The pointer in the code through which it launches its tasks."""


@dataclass(frozen=True)
class Tiles:
    """What a task's tile instructions did; lines are those of caches."""

    products: int = 0
    product_rows: int = 0
    loads: int = 0
    load_lines: int = 0
    beyond_l1: int = 0
    beyond_l2: int = 0
    asked_far: int = 0
    """Lines that a prefetch brought from beyond the second-level cache."""
    stores: int = 0
    store_rows: int = 0


@dataclass(frozen=True)
class Task:
    """One task of a step: how often each block of the code ran, and the tiles."""

    counts: NDArray[np.uint64]
    tiles: Tiles


@dataclass(frozen=True)
class Code:
    """A plan's functions in assembly, and one run of each of its steps, a task at a time."""

    functions: list[list[Block]]
    steps: list[list[Task]]


def trace(plan: Plan, feed: dict[str, NDArray[np.generic]]) -> Code:
    """Plan, inputs by name -> what ran."""
    with tempfile.TemporaryDirectory(prefix="prediction-") as folder:
        text = build(module(plan), plan.device.isa).inspect_source("asm")
        counted, functions = instrument(text)
        library = Path(folder) / "code.so"
        (Path(folder) / "code.s").write_text(counted)
        command = ["gcc", "-shared", "-o", str(library), str(Path(folder) / "code.s")]
        subprocess.run(command, check=True)
        number = sum(map(len, functions))
        return Code(functions, list(_steps(plan, library, number, feed)))


def _emulator() -> ModuleType:
    """tests/emulator: the same that the tests use."""
    import importlib.util
    import sys

    path = Path(__file__).parents[2] / "tests" / "emulator" / "__init__.py"
    spec = importlib.util.spec_from_file_location("emulator", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["emulator"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _steps(
    plan: Plan, library: Path, blocks: int, feed: dict[str, NDArray[np.generic]]
) -> Iterator[list[Task]]:
    start()
    import tvm_ffi

    emulator = _emulator()
    emulator.load()
    tracer = emulator.compile_library(Path(__file__).with_name("trace.c"))
    loaded = tvm_ffi.load_module(str(library))
    raw = ctypes.CDLL(str(library))
    launch = ctypes.cast(tracer.trace_launch, ctypes.c_void_p)
    ctypes.c_void_p.in_dll(raw, _SLOT).value = launch.value
    counters, asked = (ctypes.addressof(ctypes.c_uint64.in_dll(raw, n)) for n in (COUNTS, ASKED))
    found = np.zeros((_CORES, blocks), np.uint64)
    tracer.trace_begin(
        ctypes.c_void_p(counters),
        ctypes.c_void_p(asked),
        ctypes.c_size_t(blocks),
        ctypes.c_void_p(found.ctypes.data),
        plan.device.threads,
        plan.device.l1_bytes,
        plan.device.l2_bytes,
    )
    emulator.observe(ctypes.cast(tracer.trace_tile, ctypes.c_void_p))
    arrays = [_flat(np.ascontiguousarray(feed[n.name])) for n in plan.graph.inputs]
    arrays += [_flat(np.zeros(n.type.dims, numpy_dtype(n.dtype))) for n in plan.graph.outputs]
    places = [tensor(a) for a in (*arrays, _flat(plan.weights), _empty(plan.workspace_bytes))]
    entry = getattr(loaded, ENTRY)
    tiles = np.zeros((_CORES, len(fields(Tiles))), np.uint64)
    for i in range(len(plan.steps)):
        entry(*places, i, i + 1)
        tracer.trace_step(ctypes.c_void_p(tiles.ctypes.data))
        count = max(1, plan.steps[i].kernel.tasks)
        yield [Task(found[t].copy(), Tiles(*map(int, tiles[t]))) for t in range(count)]
        found[:] = 0
    emulator.observe(None)


def _empty(size: int) -> NDArray[np.uint8]:
    memory: NDArray[np.uint8] = aligned_empty(max(size, 1))
    memory[:] = 0
    return memory


def _flat(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    memory = _empty(array.nbytes)
    memory[: array.nbytes] = array.reshape(-1).view(np.uint8)
    return memory
