"""This machine -> facts of its core (hardware/core.py), measured by small kernels that one thing
holds up.

The clock comes first: a chain of integer instructions that take a cycle each, beside vector
products. Everything else is counted in its cycles. Each kernel is run many times and its least time
counts: what disturbs a run makes it longer, never shorter.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median

import numpy as np

from qcompiler.emit.machine import machine_code
from qcompiler.emit.native import emit_kernel
from qcompiler.hardware import cpu
from qcompiler.hardware.core import REFERENCE, Core
from qcompiler.hardware.isa import Device
from qcompiler.hardware.products import Mac, MacKey, TileMac, VectorMac
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.registry import Kernel
from qcompiler.runtime.library import Code
from qcompiler.tune import limits

FLOAT: MacKey = ("f32", "f32", "f32")
_TURNS = 2_000
_OUT_BYTES = 4096
_HOPS = 2_000
"""Loads of a chain in one timed call."""
_FAR_BYTES = (64 << 20, 256 << 20)
"""At least and at most: memory that no cache holds, as four times the last cache."""
_FILLERS = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Instructions, about, between two loads from memory."""
_ROUNDS = 200
_SLEEP_SECONDS = 0.002
"""Longer than workers spin (emit/team.py)."""
_NOISY = 0.1
"""The clock, measured first and last, may differ by this share."""
_LOADS_SUSTAINED, _BYTES_SUSTAINED = 0.75, 0.5
"""Of loops that only load: what the models count on where products, stores and other loads go on
beside. So the facts of the reference were found, and facts of other cores mean the same.
"""


@dataclass(frozen=True)
class Fact:
    """A fact of a core, and how it was found."""

    name: str
    value: float | int
    how: str


@dataclass(frozen=True)
class Probe:
    """What was found: facts of the core, what else was measured, and doubts about all of it."""

    device: Device
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


def probe(device: Device) -> Probe:
    """Measure this machine, held to an instruction set; a few seconds. `device` gives the
    instruction set, threads and caches.
    """
    one = replace(device, threads=1)
    begin, own = time.perf_counter(), time.process_time()
    hz, before = _clock(one)
    cycles = _Cycles(one, hz)
    facts = [
        Fact("hz", hz, "a chain of integer instructions of one cycle, beside vector products"),
        *cycles.arithmetic(),
        *cycles.memory(),
        *cycles.lines(),
    ]
    notes = cycles.notes()
    again, after = _clock(one)
    doubts = [*before, *after]
    if abs(again / hz - 1) > _NOISY:
        doubts.append(f"the clock was {hz / 1e9:.2f} GHz before, {again / 1e9:.2f} GHz after")
    share = (time.process_time() - own) / (time.perf_counter() - begin)
    if share < 1 - _NOISY:
        doubts.append(f"for {1 - share:.0%} of the time others had this process's core")
    shared, waited = _threads(device)
    facts += shared
    known = {f.name: f.value for f in facts}
    core, said = Core.of(known), (*notes, *_left(facts))
    return Probe(replace(device, core=core), tuple(facts), said, (*doubts, *waited))


def _left(facts: Sequence[Fact]) -> list[str]:
    """What was not found, and is left as of the reference."""
    missing = {f.name for f in fields(Core)} - {f.name for f in facts}
    said = [f"not found, so as of the reference: {name}" for name in sorted(missing)]
    return [f"{s} (0: a core in order)" if s.endswith("window") else s for s in said]


def toml(found: Probe, day: str) -> str:
    """A probe -> the text of a device's file; `day` as it is to stand there."""
    d = found.device
    head = [
        f'description = "Measured on the machine itself, {day}"',
        'source = "qcompiler targets --probe: the least of many times of small kernels"',
        f'isa = "{d.isa.name}"',
        f"threads = {d.threads} # processors that the process may use all the time",
        f"l1_bytes = {d.l1_bytes} # data, one core, by the system",
        f"l2_bytes = {d.l2_bytes} # one core, by the system",
        f"l3_bytes = {d.l3_bytes} # by the system",
    ]
    warned = [f"# Doubtful, measure again when nothing else runs: {text}" for text in found.doubts]
    notes = [f"# {text}" for text in found.notes]
    facts = [f"{f.name} = {_rounded(f.value)} # {f.how}" for f in found.facts]
    return "\n".join([*warned, *head, "", "[core]", *facts, *notes]) + "\n"


def _rounded(value: float) -> str:
    """To three digits, which is more than two measurements agree in."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if value < 1e6 else f"{value:.3e}"


def _clock(device: Device) -> tuple[float, tuple[str, ...]]:
    """Cycles a second, and what makes that doubtful."""
    b, chain = Builder("clock"), 16
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    filler = _Filler(b, (source.load(0), source.load(1)))
    mac = _floats(device)
    floats = source.view("float32")
    sums = b.registers("float32", mac.lanes, 8, "sum")
    sums.fill(0)
    with b.serial(_TURNS):
        filler.run(chain)
        right = b.let(floats.load(0, mac.lanes))
        left = b.let(tir.broadcast(floats.load(1), mac.lanes))
        for i in range(sums.count):
            sums[i] = mac.emit(sums[i], left, right)
    filler.keep(out)
    for i in range(sums.count):
        out.view("float32").store((i + 1) * mac.lanes, sums[i])
    code = _code(b, device)
    taken = limits.runs(code, 1, _OUT_BYTES, _OUT_BYTES)
    hz = _TURNS * chain * 2 / min(taken)
    if _unsteady(taken) > 2 * _NOISY:
        return hz, (f"half of the runs took {_unsteady(taken):.0%} longer than the shortest",)
    return hz, ()


def _floats(device: Device) -> VectorMac:
    """The product of float32 vectors, which every instruction set has."""
    found = device.isa.vector(FLOAT)
    assert found is not None, f"{device.isa.name} has no product of float32"
    return found


def _unsteady(taken: Sequence[float]) -> float:
    """How much longer than the shortest half of the times are."""
    return median(taken) / min(taken) - 1


def _code(b: Builder, device: Device) -> Code:
    return Code(emit_kernel(Kernel(b.name, b.function(), tasks=device.threads), device.isa))


class _Filler:
    """Chains of integer instructions that take a cycle each. No chain is like another one, so LLVM
    makes no vectors of them; nor does it know their operands.
    """

    _PAIRS = (("^", "+"), ("-", "^"), ("|", "-"), ("&", "+"), ("+", "|"), ("-", "&"))

    def __init__(
        self, b: Builder, operands: tuple[Value, Value], chains: int = 1, *, first: int = 0
    ) -> None:
        self.one, self.other = (b.let(value) for value in operands)
        self.pairs = self._PAIRS[:chains]
        self.held = b.registers("int32", 1, chains, "chain")
        for i in range(chains):
            self.held[i] = tir.const(first + i)

    def run(self, steps: int) -> None:
        """Two instructions a step and chain, each of which waits for the one before it."""
        for _ in range(steps):
            for i, (first, then) in enumerate(self.pairs):
                self.held[i] = _whole(then, _whole(first, self.held[i], self.one), self.other)

    def keep(self, out: Pointer) -> None:
        """Store the ends, so that all of it is needed."""
        for i in range(self.held.count):
            out.store(i, self.held[i])


def _whole(operation: str, a: Value, b: Value) -> Value:
    """An operation on integers."""
    bitwise = {"^": operator.xor, "|": operator.or_, "&": operator.and_}
    return bitwise[operation](a, b) if operation in bitwise else tir.wrapping(operation, a, b)


class _Cycles:
    """What one core does in a cycle of so many hertz."""

    def __init__(self, device: Device, hz: float) -> None:
        self.device, self.hz = device, hz
        self.vector_bytes = device.isa.vector_bytes
        self.mac = _floats(device)

    def arithmetic(self) -> list[Fact]:
        """Products, and instructions of any kind."""
        return [
            Fact(
                "latency_cycles",
                self._latency(self.mac),
                "a chain of float32 products, each added to the one before",
            ),
            Fact(
                "macs_per_cycle",
                self._throughput(self.mac),
                "float32 products added to as many sums as registers hold",
            ),
            Fact(
                "issue_per_cycle",
                self._issue(),
                "integer instructions and products that wait for nothing, counted in the assembly",
            ),
        ]

    def memory(self) -> list[Fact]:
        """Loads, stores and bytes from each level, and how long they take."""
        d = self.device
        near, far = 4 * d.l1_bytes, _far(d)
        l1 = self._loaded(d.l1_bytes // 2) / self.vector_bytes * _LOADS_SUSTAINED
        sizes = (d.l2_bytes // 2, d.l3_bytes // 2, far)
        l2, l3, memory = (self._loaded(size) * _BYTES_SUSTAINED for size in sizes)
        latency = self._chased(_ring(near, 1), 20 * _HOPS)
        furthest = self._chased(_ring(far, 1))
        ahead = 1 << round(np.log2(max(furthest * l2, 1024)))
        found = self._window()
        window = [] if found is None else [Fact("window", found, _WINDOW)]
        return [
            Fact(
                "loads_per_cycle",
                l1,
                f"{_LOADS_SUSTAINED:.0%} of vectors loaded in order from half of the first cache",
            ),
            Fact(
                "load_latency_cycles",
                self._chased(_ring(4096, 1), 20 * _HOPS),
                "a chain of loads in 4 KiB",
            ),
            Fact("stores_per_cycle", self._stored(), "vectors stored in order to 4 KiB"),
            Fact(
                "l2_bytes_per_cycle",
                l2,
                f"{_BYTES_SUSTAINED:.0%} of what is loaded in order from half of the second cache",
            ),
            Fact("l3_bytes_per_cycle", l3, "the same of half of the third"),
            Fact("memory_bytes_per_cycle", memory, f"the same of {far >> 20} MiB"),
            Fact(
                "l2_latency_cycles",
                latency,
                f"a chain of loads, line after line of {near >> 10} KiB at random",
            ),
            Fact(
                "ahead_bytes",
                ahead,
                f"what the second cache gives in the {furthest:.0f} cycles of a load from memory",
            ),
            *window,
        ]

    def lines(self) -> list[Fact]:
        """What the system tells of the first cache."""
        facts = (("line_bytes", cpu.line_bytes()), ("way_bytes", cpu.way_bytes()))
        return [Fact(name, size, "by the system") for name, size in facts if _power(size)]

    def notes(self) -> tuple[str, ...]:
        """Products of other operands, which the models do not tell from those of float32."""
        said = []
        nearest = {(type(mac), mac.key): mac for mac in reversed(self.device.isa.inherited)}
        for mac in nearest.values():
            name = " by ".join(mac.key[:2])
            if isinstance(mac, TileMac):
                rate = limits.products(self.device, mac) / self.hz
                said.append(f"{name} in tiles: {rate:.0f} operations a cycle")
            elif mac.key != FLOAT:
                much, wait = self._throughput(mac), self._latency(mac)
                said.append(
                    f"{name}: {much:.3g} products of vectors a cycle, each added after {wait:.3g}"
                )
        return tuple(said)

    def _per_cycle(self, mac: Mac, sums: int) -> float:
        return limits.products(self.device, mac, sums) / (2 * mac.multiplies) / self.hz

    def _latency(self, mac: Mac) -> float:
        return 1 / self._per_cycle(mac, 1)

    def _throughput(self, mac: Mac) -> float:
        return self._per_cycle(mac, 0)

    def _loaded(self, size: int) -> float:
        return limits.bandwidth(self.device, size) / self.hz

    def _least(self, b: Builder, source: int | Array, out: int | Array) -> float:
        """Cycles of a kernel."""
        return min(limits.times(b, self.device, source, out)) * self.hz

    def _stored(self) -> float:
        """Stores of vectors a cycle."""
        b, lanes = Builder("stores"), self.device.isa.lanes(4)
        source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
        each, blocks = 8, _OUT_BYTES // (32 * lanes)
        with b.serial(_TURNS * 8, "turn") as turn:
            value = b.let(tir.broadcast(source.load(turn % 8), lanes))
            at = b.let(turn % blocks * (each * lanes), "at")
            for i in range(each):
                out.store(at + i * lanes, value)
        return _TURNS * 8 * each / self._least(b, _OUT_BYTES, _OUT_BYTES)

    def _chased(self, ring: Array, hops: int = _HOPS) -> float:
        """Cycles from a load to the next, whose address it gives."""
        b = Builder("chase")
        source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
        at = b.registers("int32", 1, 1, "at")
        at[0] = out.load(0)
        with b.serial(hops):
            at[0] = source.load(at[0])
        out.store(0, at[0])
        return self._least(b, ring, np.zeros(16, np.int32)) / hops

    def _issue(self) -> float:
        """Instructions a cycle of a loop that holds up nothing else."""
        b, mac = Builder("issue"), self.mac
        source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
        filler = _Filler(b, (source.load(0), source.load(1)), 6)
        floats = source.view("float32")
        left = b.let(tir.broadcast(floats.load(1), mac.lanes))
        sums = b.registers("float32", mac.lanes, 8, "sum")
        sums.fill(0)
        with b.serial(_TURNS):
            right = b.let(floats.load(0, mac.lanes))
            for i in range(sums.count):
                filler.run(1)
                if i % 2:
                    sums[i] = mac.emit(sums[i], left, right)
        filler.keep(out)
        for i in range(sums.count):
            out.view("float32").store((i + 1) * mac.lanes, sums[i])
        count = max(map(len, loops(self._assembly(b))))
        return _TURNS * count / self._least(b, _OUT_BYTES, _OUT_BYTES)

    def _assembly(self, b: Builder) -> str:
        return str(machine_code({b.name: b.function()}, self.device.isa, "").inspect_source("asm"))

    def _window(self) -> int | None:
        """Instructions between two loads from memory that the core still has under way at a time;
        None where that cannot be told.
        """
        b = _two_chains(self.device)
        counts = sorted(len(body) // 2 for body in loops(self._assembly(b)))
        if len(counts) != len(_FILLERS):
            return None
        code, ring = _code(b, self.device), _ring(_far(self.device), 2)
        taken = []
        for i in range(len(counts)):
            out = np.zeros(16, np.int32)
            out[:3] = 0, ring[ring.size // 2], i  # chains that are far apart
            taken.append(min(limits.runs(code, 1, ring, out)) * self.hz / _HOPS)
        fits = [t < 1.5 * taken[0] for t in taken]
        if all(fits):
            return None
        return counts[max(fits.index(False) - 1, 0)]


_WINDOW = "most instructions between two loads from memory that still overlap"


def _far(device: Device) -> int:
    """Bytes of memory that no cache holds."""
    return min(max(4 * device.l3_bytes, _FAR_BYTES[0]), _FAR_BYTES[1]) >> 20 << 20


def _power(size: int) -> bool:
    return size > 0 and not size & (size - 1)


def _ring(size: int, seed: int) -> Array:
    """Bytes -> int32: each line's first element is where the next line begins, at random, all
    lines in one ring.
    """
    step = max(cpu.line_bytes(), REFERENCE.line_bytes) // 4
    order = np.random.default_rng(seed).permutation(size // (4 * step)).astype(np.int32) * step
    ring = np.zeros(size // 4, np.int32)
    ring[order] = np.roll(order, -1)
    return ring


def _two_chains(device: Device) -> Builder:
    """Two chains of loads, and instructions that need neither between their loads: as many as the
    third element of `out` chooses; the first two are where the chains are.
    """
    b = Builder("window")
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    choice = b.let(out.load(2))
    at = b.registers("int32", 1, 2, "at")
    for i in range(2):
        at[i] = out.load(i)
    filler = _Filler(b, (source.load(1), source.load(2)), 4)
    for i, count in enumerate(_FILLERS):
        with b.when(choice == i), b.serial(_HOPS):
            for chain in range(2):
                at[chain] = source.load(at[chain])
                filler.run(count // 8)
    for i in range(2):
        out.store(i, at[i])
    filler.keep(out + 3)
    return b


def loops(text: str) -> list[list[str]]:
    """Assembly text -> the instructions of its innermost loops: from a label to the jump back."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and line[0] not in "#;/"]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.match(r"\.L\w+:$", line)}
    found: list[tuple[int, int]] = []
    for end, line in enumerate(lines):
        words = re.split(r"[\s,]+", line)
        jumps = len(words) > 1 and not line.startswith(".")
        start = labels.get(words[-1], end) if jumps else end
        if start < end and not any(start <= first for first, _ in found):
            found.append((start, end))
    return [
        [x for x in lines[start + 1 : end + 1] if not x.startswith(".")] for start, end in found
    ]


def _threads(device: Device) -> tuple[list[Fact], list[str]]:
    """What it costs that threads share work, and what makes that doubtful; nothing of one."""
    if device.threads == 1:
        return [], []
    barrier, doubts = _barrier(device)
    wake = _wake(device)
    launch = f"forty times a barrier of threads, {barrier:.0f} ns"
    found = {
        "launch_ns": (40 * barrier, launch),
        "barrier_ns": (5 * barrier, "five times a barrier: lines move, shares are not quite even"),
        "wake_ns": (wake, "how much longer a run takes that finds its workers asleep"),
    }
    return [Fact(name, *fact) for name, fact in found.items() if fact[0] > 0], doubts


def _barrier(device: Device) -> tuple[float, list[str]]:
    """Nanoseconds of a barrier, of steps with a microsecond of work for each thread; doubts."""
    b = Builder("barriers")
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    with b.serial(_ROUNDS), b.parallel(device.threads) as task:
        _work(b, source, out, task, _TURNS // 10)
    code = _code(b, device)
    together, alone = (limits.runs(code, n, _OUT_BYTES, _OUT_BYTES) for n in (device.threads, 1))
    barrier = (min(together) - min(alone) / device.threads) / _ROUNDS * 1e9
    if _unsteady(together) > 5 * _NOISY:
        return barrier, ["threads waited for cores that others had"]
    return barrier, []


def _wake(device: Device) -> float:
    """Nanoseconds that a run takes longer where workers sleep."""
    b = Builder("shares")
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    with b.parallel(device.threads) as task:
        _work(b, source, out, task, 5 * _TURNS)
    code = _code(b, device)
    longer = [_least(code, n, _sleep) - _least(code, n) for n in (device.threads, 1)]
    return longer[0] - longer[1]


def _work(b: Builder, source: Pointer, out: Pointer, task: Value, turns: int) -> None:
    """Sixteen cycles a turn, with a cache line of a task's own."""
    filler = _Filler(b, (source.load(0), source.load(1)))
    with b.serial(turns):
        filler.run(8)
    filler.keep(out + task * 16)


def _least(code: Code, threads: int, before: Callable[[], None] = lambda: None) -> float:
    """Nanoseconds."""
    return min(limits.runs(code, threads, _OUT_BYTES, _OUT_BYTES, before)) * 1e9


def _sleep() -> None:
    time.sleep(_SLEEP_SECONDS)
