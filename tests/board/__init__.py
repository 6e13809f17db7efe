"""Code for another architecture -> what it computes, on a processor that qemu emulates.

    board = Board("cortex-a53", library)
    x = board.memory(array)
    board.call("function", x)
    board.answer(x, array.nbytes)
    made = board.run()[0]

The library is run by a small program (runner.c), which the cross compiler at hand builds once; it
is linked statically, so nothing of the emulated system has to be there. `-cpu` is kept to the
letter: an instruction that the processor lacks ends the program.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.artifact.abi import MOST_UNITS, Table, team_bytes
from qcompiler.artifact.artifact import Artifact, Value
from qcompiler.driver import Compilation
from qcompiler.dtypes import numpy_dtype
from qcompiler.emit.link import link
from qcompiler.emit.machine import Layer, build_objects
from qcompiler.emit.tasks import Part, Phase, flat, phases
from qcompiler.hardware.isa import ISAS, Isa
from qcompiler.ir import Array
from qcompiler.kernels.registry import Kernel

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("runner.c")
MACHINES = {183: "aarch64", 40: "arm", 243: "riscv64"}
"""What an ELF file's head calls a machine -> what qemu and compilers call it."""
ABIS = {"arm": "eabihf"}
_RVA22 = "rv64,v=true,vext_spec=v1.0,Zfhmin=true"
CPUS = {
    "arm_neon": ("cortex-a53", "cortex-a72"),
    "arm_fp16": ("cortex-a76",),
    "arm_dotprod": ("cortex-a76", "neoverse-n1"),
    "arm_i8mm": ("max",),
    "arm_bf16": ("max",),
    "arm_v7": ("cortex-a7", "cortex-a15"),
    "riscv_v": (f"{_RVA22},vlen=128", f"{_RVA22},vlen=512"),
}
"""Instruction set -> processors that have it and, but for the last, little more."""
FLUSHES = frozenset({"arm_v7", "arm_m55"})
"""Instruction sets whose vectors of float32 take numbers below 2^-126 for zeros."""
_CRASHED = (139, -11)
"""Status of what ended by SIGSEGV, as a shell says it and as Python does."""
_OLD = "decode_save_opc: Assertion"
"""What qemu before 8.0 says when it translates some conversions of RISC-V's vectors."""
_FENCE = 64
SECONDS = 300.0
"""After which a program has ended, or never will."""


chosen: list[str] = []
"""The instruction set and the processor that `--board` names; empty without it."""


class Unavailable(RuntimeError):
    """Why nothing can be run here: the text for `pytest.skip`."""


class Stopped(RuntimeError):
    """The program ended as it should not: its status and what it said."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"status {status}: {said.strip()[-400:]}")
        self.status = status


def with_bytes(made: Compilation) -> Compilation:
    """The same, which also tells the last of its integers, where there are any."""
    graph = made.lowered
    found = [n for n in graph.nodes if n.dtype in ("uint8", "int8") and n.op == "quantize"]
    if not found:
        return made
    outputs, names = (*graph.outputs, found[-1]), (*graph.output_names, "last integers")
    return made.having(lowered=replace(graph, outputs=outputs, output_names=names))


@functools.cache
def emulator(machine: str) -> str:
    """The command that emulates; raises Unavailable."""
    for name in (f"qemu-{machine}", f"qemu-{machine}-static"):
        if found := shutil.which(name):
            return found
    raise Unavailable(f"no qemu-{machine} (Debian: qemu-user)")


def compilers(machine: str) -> list[list[str]]:
    """The C compilers for the architecture that are at hand, each as a command."""
    found, abi = [], ABIS.get(machine, "")
    if gcc := shutil.which(f"{machine}-linux-gnu{abi}-gcc"):
        found.append([gcc])
    if importlib.util.find_spec("ziglang"):
        zig = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl{abi}"]
        found.append(zig)
    return found


@functools.cache
def runner(machine: str) -> Path:
    """The program, built for this source; raises Unavailable."""
    commands = compilers(machine)
    if not commands:
        raise Unavailable(f"no C compiler for {machine} (pip install ziglang)")
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(commands[0]).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"qcompiler-runner-{os.getuid()}-{digest}"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "runner"
            command = [*commands[0], "-O1", "-static", str(SOURCE), "-o", str(made), "-lm"]
            subprocess.run([*command, "-lpthread"], check=True, capture_output=True)
            new = path.with_suffix(f".{os.getpid()}")
            shutil.copy(made, new)
            new.replace(path)
    return path


def machine_of(library: bytes) -> str:
    """What qemu calls the machine that a library is for."""
    return MACHINES[int.from_bytes(library[18:20], "little")]


def demand(machine: str = "aarch64") -> None:
    """Skip the running test, with the reason, where nothing can be run."""
    try:
        emulator(machine), runner(machine)
    except Unavailable as reason:
        pytest.skip(str(reason))


def demand_for(isa: str) -> None:
    """The same, for an instruction set by its name."""
    named = ISAS[isa].triple.partition("-")[0]
    demand("arm" if named.startswith("armv7") else named)


class Board:
    """Orders to a program on one processor, all carried out by `run`."""

    def __init__(self, cpu: str, library: bytes) -> None:
        self.cpu, self.library = cpu, library
        self._orders: list[bytes] = []
        self._answers: list[int] = []
        self._count = 0

    def _order(self, *words: int) -> None:
        self._orders.append(struct.pack(f"<{len(words)}q", *words))

    def space(self, size: int) -> int:
        """Allocate bytes followed by an inaccessible page -> the block's number."""
        self._order(1, size)
        self._count += 1
        return self._count - 1

    def aligned(self, size: int) -> int:
        """The same from a multiple of 64 on, and as many bytes to read behind them."""
        return self.space(-(-size // _FENCE) * _FENCE + _FENCE)

    def write(self, memory: int, array: Array, offset: int = 0) -> None:
        """Copy an array there."""
        raw = np.ascontiguousarray(array).tobytes()
        self._order(2, memory, offset, len(raw))
        self._orders.append(raw + bytes(-len(raw) % 8))

    def fill(self, memory: int, offset: int, size: int, byte: int) -> None:
        """Set bytes."""
        self._order(3, memory, offset, size, byte)

    def address(self, memory: int, offset: int, of: int) -> None:
        """Write where a memory begins."""
        self._order(4, memory, offset, of, 0)

    def answer(self, memory: int, size: int) -> None:
        """What is there now is one of the answers."""
        self._order(5, memory, 0, size)
        self._answers.append(size)

    def call(self, name: str, *memories: int, numbers: Sequence[int] = ()) -> None:
        """Call a function of pointers, and numbers after them."""
        operands = [w for m in memories for w in (m, 0)] + [w for n in numbers for w in (-1, n)]
        self._named(6, name, len(operands) // 2, *operands)

    def start(self, name: str, memory: int, number: int) -> None:
        """Call a function of a pointer and a number in a thread of its own."""
        self._named(7, name, number, memory, 0)

    def launch(self, name: str, one: int, other: int, number: int) -> None:
        """Call a function of two pointers and a number."""
        self._named(8, name, one, 0, other, 0, number)

    def _named(self, order: int, name: str, *words: int) -> None:
        self._order(order)
        self._orders.append(name.encode().ljust(32, b"\0"))
        self._order(*words)

    def run(self, *options: str, seconds: float = SECONDS) -> list[bytes]:
        """Carry out everything -> the answers. Raises Stopped where the program ends early, and
        TimeoutExpired where it does not end.
        """
        with tempfile.TemporaryDirectory(prefix="qcompiler-board-") as folder:
            paths = [Path(folder) / n for n in ("code.so", "orders", "answers")]
            paths[0].write_bytes(self.library)
            paths[1].write_bytes(b"".join(self._orders))
            machine = machine_of(self.library)
            program = str(runner(machine))
            command = [emulator(machine), *options, "-cpu", self.cpu, program, *map(str, paths)]
            done = _tried(command, seconds)
            if _OLD in done.stderr:
                pytest.skip("this qemu stops at a conversion towards zero (vfcvt.rtz)")
            if done.returncode:
                raise Stopped(done.returncode, done.stderr)
            self.said = done.stderr
            made = paths[2].read_bytes()
        found, at = [], 0
        for size in self._answers:
            found.append(made[at : at + size])
            at += size
        assert at == len(made)
        return found


def _tried(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """A crash of qemu is tried once more: now and then it is its own (Brooooooklyn/lzma#390)."""
    for attempt in (1, 2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode not in _CRASHED or attempt == 2:
            return done
        log.warning("qemu ended with %d, once more: %s", done.returncode, " ".join(command))
    raise AssertionError


def run_artifact(
    artifact: Artifact,
    inputs: Sequence[Mapping[str, Array]],
    cpu: str,
    *,
    threads: int = 1,
    poison: int = 0xFF,
    options: Sequence[str] = (),
    steps: Sequence[int] = (),
    said: list[str] | None = None,
    seconds: float = SECONDS,
) -> list[dict[str, Array]]:
    """An artifact of one variant on arrays by name, several times -> what it makes of each, on an
    emulated processor; all memory but the inputs is full of a byte at first. `options` are qemu's,
    `steps` the first that runs and the one after the last, `said` takes what was printed, and
    `seconds` are what it may take.
    """
    m = artifact.manifest
    (variant,), (binary,) = m.variants, artifact.binaries
    board = Board(cpu, binary.code)
    weights = board.aligned(binary.weights.nbytes)
    board.write(weights, binary.weights)
    workspace = board.aligned(variant.workspace_bytes)
    taken = [board.aligned(_bytes(v)) for v in m.inputs]
    made = [board.aligned(_bytes(v)) for v in m.outputs]
    words = Table(len(taken) + len(made))
    table = board.aligned(words.words * 8)
    first, last = steps or (0, len(variant.steps))
    ends = {words.first: first, words.last: last, words.permission: 0}
    for at, memory in enumerate((*taken, *made, weights, workspace)):
        board.address(table, at * 8, memory)
    for at, number in ends.items():
        board.write(table, np.array(number, np.int64), at * 8)
    team = board.aligned(team_bytes(threads)) if threads > 1 else -1
    for number in range(1, threads):
        board.start("qcompiler_work", team, number)
    for arrays in inputs:
        board.fill(workspace, 0, variant.workspace_bytes, poison)
        for value, memory in zip(m.inputs, taken, strict=True):
            board.write(memory, arrays[value.name])
        for value, memory in zip(m.outputs, made, strict=True):
            board.fill(memory, 0, _bytes(value), poison)
        if threads > 1:
            board.launch("qcompiler_launch", team, table, threads)
        else:
            board.call("qcompiler_run", table)
        for value, memory in zip(m.outputs, made, strict=True):
            board.answer(memory, _bytes(value))
    answers = iter(board.run(*options, seconds=seconds))
    if said is not None:
        said.append(board.said)
    return [{v.name: _array(v, next(answers)) for v in m.outputs} for _ in inputs]


def run_function(function: Any, isa: Isa, cpu: str, arrays: Sequence[Array]) -> list[Array]:
    """A TIR function of pointers on arrays -> what they hold afterwards."""
    board = Board(cpu, link(build_objects([Layer({"called": function})], isa), isa.triple))
    held = [board.space(array.nbytes) for array in arrays]
    for memory, array in zip(held, arrays, strict=True):
        board.write(memory, array)
    board.call("called", *held)
    for memory, array in zip(held, arrays, strict=True):
        board.answer(memory, array.nbytes)
    found = zip(board.run(), arrays, strict=True)
    return [np.frombuffer(raw, array.dtype).reshape(array.shape) for raw, array in found]


def run_kernel(
    kernel: Kernel,
    isa: Isa,
    cpu: str,
    rounds: Sequence[tuple[Sequence[tuple[int, Array]], int]],
    outputs: Sequence[int],
) -> list[bytes]:
    """A kernel on operands, each with so many bytes behind it that may be read, and on outputs and
    scratch of so many bytes -> the first output of every round, before which all other memory is
    filled with its byte. Its units run one after the other.
    """
    parts = phases(kernel, min(kernel.tasks, MOST_UNITS))
    names = {phase.name: f"phase{i}" for i, phase in enumerate(flat(parts))}
    layer = Layer({names[phase.name]: phase.func for phase in flat(parts)})
    board = Board(cpu, link(build_objects([layer], isa), isa.triple))
    given = [board.space(array.nbytes + more) for more, array in rounds[0][0]]
    made = [board.space(size) for size in outputs]
    for operands, poison in rounds:
        for memory, (more, array) in zip(given, operands, strict=True):
            board.write(memory, array)
            board.fill(memory, array.nbytes, more, poison)
        for memory, size in zip(made, outputs, strict=True):
            board.fill(memory, 0, size, poison)
        for phase, numbers in _calls(parts):
            board.call(names[phase.name], *given, *made, numbers=numbers)
        board.answer(made[0], outputs[0])
    return board.run()


def _calls(
    parts: Sequence[Part], rounds: tuple[int, ...] = ()
) -> Iterator[tuple[Phase, tuple[int, ...]]]:
    """Every call of a run, in order: a phase and the numbers that follow its pointers."""
    for part in parts:
        if isinstance(part, Phase):
            for unit in range(part.units):
                yield part, () if part.whole else (*rounds, unit)
        else:
            for iteration in range(part.iterations):
                yield from _calls(part.parts, (*rounds, iteration))


def _bytes(value: Value) -> int:
    return int(np.prod(value.shape, dtype=np.int64)) * numpy_dtype(value.dtype).itemsize


def _array(value: Value, raw: bytes) -> Array:
    return np.frombuffer(raw, numpy_dtype(value.dtype)).reshape(value.shape)
