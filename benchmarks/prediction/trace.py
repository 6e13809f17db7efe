"""A plan -> its real machine code, run once here: how often each block ran and what tiles did."""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.assembly import ASKED, COUNTS, Block, instrument
from qcompiler.emit.machine import machine_code, modules
from qcompiler.emit.native import layers, plan_sections
from qcompiler.hardware.isa import Cpu
from qcompiler.plan.plan import Plan
from qcompiler.runtime.library import Frame, Memory, aligned


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
    """A plan's functions in assembly, and one run of each of its steps: its tasks, and how many
    barriers every task met.
    """

    functions: list[list[Block]]
    steps: list[tuple[list[Task], int]]


def trace(plan: Plan, feed: dict[str, NDArray[np.generic]]) -> Code:
    """Plan, inputs by name -> what ran."""
    with tempfile.TemporaryDirectory(prefix="prediction-") as folder:
        counted, found = instrument(_assembly(plan))
        library = Path(folder) / "code.so"
        (Path(folder) / "code.s").write_text(counted)
        command = ["gcc", "-shared", "-o", str(library), str(Path(folder) / "code.s"), "-lm"]
        subprocess.run(command, check=True)
        return Code(found, list(_steps(plan, library, sum(map(len, found)), feed)))


def _assembly(plan: Plan) -> str:
    """All modules of a plan as one text; each has labels, and TVM's conversions, of its own."""
    texts = (
        machine_code(made.functions, plan.device.isa, made.text).inspect_source("asm")
        for made in modules(*layers(plan)[:-1])  # tasks run one after the other: no thread team
    )
    return "\n".join(
        re.sub(r"(\.L[\w$]+|\b__(?:trunc|extend)\w+f2\b)", rf"\1_m{i}", text)
        for i, text in enumerate(texts)
    )


def _emulator() -> ModuleType:
    """tests/emulator: the same that the tests use."""
    import importlib.util
    import sys

    path = Path(__file__).parents[2] / "tests" / "emulator" / "__init__.py"
    spec = importlib.util.spec_from_file_location("emulator", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["emulator"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _steps(
    plan: Plan, library: Path, blocks: int, feed: dict[str, NDArray[np.generic]]
) -> Iterator[tuple[list[Task], int]]:
    emulator, device = _emulator(), plan.device
    assert isinstance(device, Cpu)
    emulator.load()
    tracer = emulator.compile_library(Path(__file__).with_name("trace.c"))
    code = ctypes.CDLL(str(library))
    counters, asked = (ctypes.addressof(ctypes.c_uint64.in_dll(code, n)) for n in (COUNTS, ASKED))
    tracer.trace_begin(
        ctypes.c_void_p(counters),
        ctypes.c_void_p(asked),
        ctypes.c_size_t(blocks),
        device.l1_bytes,
        device.l2_bytes,
    )
    emulator.observe(ctypes.cast(tracer.trace_tile, ctypes.c_void_p))
    arrays = [_copied(np.ascontiguousarray(feed[n.name])) for n in plan.graph.inputs]
    arrays += [_zeros(n.type.bytes) for n in plan.graph.outputs]
    weights = _copied(plan.weights)
    frame = Frame(len(arrays), weights, max(plan.workspace_bytes, 1))
    frame.workspace.array[:] = 0
    frame.fill(arrays)
    table = ctypes.c_void_p(ctypes.addressof(frame.table))
    met = 1  # sections begun; the first is not waited for
    for step, (begin, end) in enumerate(_spans(plan)):
        frame.table[frame.words.first], frame.table[frame.words.last] = step, step + 1
        ran = []
        for task in range(plan.device.threads):
            tracer.trace_core(task)
            for section in range(begin, end):
                code.qcompiler_section(table, 0, section, task)
            counts = np.zeros(blocks, np.uint64)
            doings = np.zeros(len(fields(Tiles)), np.uint64)
            tracer.trace_end(
                ctypes.c_void_p(counts.ctypes.data), ctypes.c_void_p(doings.ctypes.data)
            )
            ran.append(Task(counts, Tiles(*map(int, doings))))
        yield ran, end - met
        met = end
    emulator.observe(None)


def _spans(plan: Plan) -> Iterator[tuple[int, int]]:
    """Every step's first section, and the one after its last."""
    for section in plan_sections(plan):
        for _ in section.calls:
            yield section.begin, section.begin + section.length


def _zeros(size: int) -> Memory:
    memory = aligned(np.dtype(np.uint8), (max(size, 1),))
    memory.array[:] = 0
    return memory


def _copied(array: NDArray[np.generic]) -> Memory:
    memory = _zeros(array.nbytes)
    memory.array[: array.nbytes] = array.reshape(-1).view(np.uint8)
    return memory
