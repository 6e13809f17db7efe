"""Facts of one core per cycle, measured by small kernels with a single bottleneck.

The clock comes first: a chain of one-cycle integer instructions, alongside vector products.
Everything else is counted in its cycles. Each kernel is run many times and its least time counts:
disturbances make a run longer, never shorter.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from qcompiler.emit.machine import machine_code
from qcompiler.hardware import cpu
from qcompiler.hardware.core import REFERENCE
from qcompiler.hardware.isa import Cpu
from qcompiler.hardware.products import Mac, MacKey, TileMac, VectorMac
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.tune import limits

FLOAT: MacKey = ("f32", "f32", "f32")
ITERATIONS = 2_000
OUT_BYTES = 4096
"""Bytes of memory that a kernel writes."""
NOISY = 0.1
"""Allowed relative difference of the clock, measured first and last."""
_HOPS = 2_000
"""Loads of a chain in a timed call."""
_FAR_BYTES = (64 << 20, 256 << 20)
"""Least and most bytes of memory beyond all caches: four times the last one."""
_FILLERS = (32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Approximate numbers of instructions between two loads from memory."""
_LOADS_SUSTAINED, _BYTES_SUSTAINED = 0.75, 0.5
"""Fractions of the rates of pure load loops that the models assume, since products, stores and
other loads run alongside. The reference's facts were found so, and facts of other cores mean the
same.
"""


@dataclass(frozen=True)
class Fact:
    """A fact of a core, and how it was found."""

    name: str
    value: float | int
    how: str


def clock(device: Cpu) -> tuple[float, tuple[str, ...]]:
    """Cycles per second, and reasons to doubt the measurement."""
    b, chain = Builder("clock"), 16
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    filler = Filler(b, (source.load(0), source.load(1)))
    mac = _floats(device)
    floats = source.view("float32")
    sums = b.registers("float32", mac.lanes, 8, "sum")
    sums.fill(0)
    with b.serial(ITERATIONS):
        filler.run(chain)
        right = b.let(floats.load(0, mac.lanes))
        left = b.let(tir.broadcast(floats.load(1), mac.lanes))
        for i in range(sums.count):
            sums[i] = mac.emit(sums[i], left, right)
    filler.keep(out)
    for i in range(sums.count):
        out.view("float32").store((i + 1) * mac.lanes, sums[i])
    code = limits.built(b, device)
    taken = limits.runs(code, 1, OUT_BYTES, OUT_BYTES)
    hz = ITERATIONS * chain * 2 / min(taken)
    if _unsteady(taken) > 2 * NOISY:
        return hz, (f"half of the runs took {_unsteady(taken):.0%} longer than the shortest",)
    return hz, ()


def _floats(device: Cpu) -> VectorMac:
    """The float32 vector product, which every instruction set has."""
    found = device.isa.vector(FLOAT)
    assert found is not None, f"{device.isa.name} has no product of float32"
    return found


def _unsteady(taken: Sequence[float]) -> float:
    """The fraction by which the median time exceeds the shortest."""
    return median(taken) / min(taken) - 1


class Filler:
    """Chains of one-cycle integer instructions. All chains differ, and their operands are unknown
    to LLVM, so it cannot vectorize them.
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
        """Two instructions per step and chain, each dependent on the one before."""
        for _ in range(steps):
            for i, (first, then) in enumerate(self.pairs):
                self.held[i] = _whole(then, _whole(first, self.held[i], self.one), self.other)

    def keep(self, out: Pointer) -> None:
        """Store the results, so that no instruction is dead code."""
        for i in range(self.held.count):
            out.store(i, self.held[i])


def _whole(operation: str, a: Value, b: Value) -> Value:
    """An integer operation."""
    bitwise = {"^": operator.xor, "|": operator.or_, "&": operator.and_}
    return bitwise[operation](a, b) if operation in bitwise else tir.wrapping(operation, a, b)


class Cycles:
    """Rates and latencies of one core in cycles, at a given clock."""

    def __init__(self, device: Cpu, hz: float) -> None:
        self.device, self.hz = device, hz
        self.vector_bytes = device.isa.vector_bytes
        self.mac = _floats(device)

    def arithmetic(self) -> list[Fact]:
        """Products, and instructions in general."""
        return [
            Fact(
                "latency_cycles",
                self._latency(self.mac),
                "a chain of float32 products, each added to the one before",
            ),
            Fact(
                "macs_per_cycle",
                self._throughput(self.mac),
                "float32 products into as many sums as fit in registers",
            ),
            Fact(
                "issue_per_cycle",
                self._issue(),
                "independent integer instructions and products, counted in the assembly",
            ),
        ]

    def memory(self) -> list[Fact]:
        """Rates and latencies of loads and stores, and bytes per cycle from each level."""
        d = self.device
        near, far = 4 * d.l1_bytes, far_bytes(d)
        l1 = self._loaded(d.l1_bytes // 2) / self.vector_bytes * _LOADS_SUSTAINED
        sizes = (d.l2_bytes // 2, d.l3_bytes // 2, far)
        l2, l3, memory = (self._loaded(size) * _BYTES_SUSTAINED for size in sizes)
        latency = self._chased(ring(near, 1), 20 * _HOPS)
        furthest = self._chased(ring(far, 1))
        ahead = 1 << round(np.log2(max(furthest * l2, 1024)))
        found = self._window()
        window = [] if found is None else [Fact("window", found, _WINDOW)]
        return [
            Fact(
                "loads_per_cycle",
                l1,
                f"{_LOADS_SUSTAINED:.0%} of sequential vector loads from half of L1",
            ),
            Fact(
                "load_latency_cycles",
                self._chased(ring(4096, 1), 20 * _HOPS),
                "a chain of loads in 4 KiB",
            ),
            Fact("stores_per_cycle", self._stored(), "sequential vector stores to 4 KiB"),
            Fact(
                "l2_bytes_per_cycle",
                l2,
                f"{_BYTES_SUSTAINED:.0%} of sequential loads from half of L2",
            ),
            Fact("l3_bytes_per_cycle", l3, "the same from half of L3"),
            Fact("memory_bytes_per_cycle", memory, f"the same from {far >> 20} MiB"),
            Fact(
                "l2_latency_cycles",
                latency,
                f"a chain of loads over the lines of {near >> 10} KiB in random order",
            ),
            Fact(
                "prefetch_bytes",
                ahead,
                f"bytes from L2 in the {furthest:.0f} cycles of a load from memory",
            ),
            *window,
        ]

    def lines(self) -> list[Fact]:
        """Facts of the L1 cache reported by the system."""
        facts = (("line_bytes", cpu.line_bytes()), ("way_bytes", cpu.way_bytes()))
        return [Fact(name, size, "reported by the system") for name, size in facts if _power(size)]

    def notes(self) -> tuple[str, ...]:
        """Products of other operands, which the models treat like float32 ones."""
        found = []
        nearest = {(type(mac), mac.key): mac for mac in reversed(self.device.isa.inherited)}
        for mac in nearest.values():
            name = " by ".join(mac.key[:2])
            if isinstance(mac, TileMac):
                rate = limits.products(self.device, mac) / self.hz
                found.append(f"{name} in tiles: {rate:.0f} operations per cycle")
            elif mac.key != FLOAT:
                much, wait = self._throughput(mac), self._latency(mac)
                found.append(
                    f"{name}: {much:.3g} vector products per cycle, each added after {wait:.3g}"
                )
        return tuple(found)

    def _per_cycle(self, mac: Mac, sums: int) -> float:
        return limits.products(self.device, mac, sums) / (2 * mac.multiplies) / self.hz

    def _latency(self, mac: Mac) -> float:
        return 1 / self._per_cycle(mac, 1)

    def _throughput(self, mac: Mac) -> float:
        return self._per_cycle(mac, 0)

    def _loaded(self, size: int) -> float:
        return limits.bandwidth(self.device, size) / self.hz

    def _least(self, b: Builder, source: int | Array, out: int | Array) -> float:
        """The least cycles of a kernel."""
        return min(limits.times(b, self.device, source, out)) * self.hz

    def _stored(self) -> float:
        """Vector stores per cycle."""
        b, lanes = Builder("stores"), self.device.isa.lanes(4)
        source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
        each, blocks = 8, OUT_BYTES // (32 * lanes)
        with b.serial(ITERATIONS * 8, "i") as i:
            value = b.let(tir.broadcast(source.load(i % 8), lanes))
            at = b.let(i % blocks * (each * lanes), "at")
            for i in range(each):
                out.store(at + i * lanes, value)
        return ITERATIONS * 8 * each / self._least(b, OUT_BYTES, OUT_BYTES)

    def _chased(self, ring: Array, hops: int = _HOPS) -> float:
        """Cycles from a load to the next one, whose address depends on it."""
        b = Builder("chase")
        source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
        at = b.registers("int32", 1, 1, "at")
        at[0] = out.load(0)
        with b.serial(hops):
            at[0] = source.load(at[0])
        out.store(0, at[0])
        return self._least(b, ring, np.zeros(16, np.int32)) / hops

    def _issue(self) -> float:
        """Instructions per cycle of a loop without other bottlenecks."""
        b, mac = Builder("issue"), self.mac
        source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
        filler = Filler(b, (source.load(0), source.load(1)), 6)
        floats = source.view("float32")
        left = b.let(tir.broadcast(floats.load(1), mac.lanes))
        sums = b.registers("float32", mac.lanes, 8, "sum")
        sums.fill(0)
        with b.serial(ITERATIONS):
            right = b.let(floats.load(0, mac.lanes))
            for i in range(sums.count):
                filler.run(1)
                if i % 2:
                    sums[i] = mac.emit(sums[i], left, right)
        filler.keep(out)
        for i in range(sums.count):
            out.view("float32").store((i + 1) * mac.lanes, sums[i])
        count = max(map(len, loops(self._assembly(b))))
        return ITERATIONS * count / self._least(b, OUT_BYTES, OUT_BYTES)

    def _assembly(self, b: Builder) -> str:
        return str(machine_code({b.name: b.function()}, self.device.isa, "").inspect_source("asm"))

    def _window(self) -> int | None:
        """Number of instructions between two loads from memory that the core can have in flight;
        None if it cannot be determined.
        """
        b = _two_chains(self.device)
        counts = sorted(len(body) // 2 for body in loops(self._assembly(b)))
        if len(counts) != len(_FILLERS):
            return None
        code, memory = limits.built(b, self.device), ring(far_bytes(self.device), 2)
        taken = []
        for i in range(len(counts)):
            out = np.zeros(16, np.int32)
            out[:3] = 0, memory[memory.size // 2], i  # chains far apart
            taken.append(min(limits.runs(code, 1, memory, out)) * self.hz / _HOPS)
        fits = [t < 1.5 * taken[0] for t in taken]
        if all(fits):
            return None
        return counts[max(fits.index(False) - 1, 0)]


_WINDOW = "most instructions between two loads from memory that still overlap"


def far_bytes(device: Cpu) -> int:
    """Bytes of memory beyond all caches."""
    return min(max(4 * device.l3_bytes, _FAR_BYTES[0]), _FAR_BYTES[1]) >> 20 << 20


def _power(size: int) -> bool:
    return size > 0 and not size & (size - 1)


def ring(size: int, seed: int) -> Array:
    """Bytes -> int32: each line's first element is the start of the next line, in random order, all
    lines in one ring.
    """
    step = max(cpu.line_bytes(), REFERENCE.line_bytes) // 4
    order = np.random.default_rng(seed).permutation(size // (4 * step)).astype(np.int32) * step
    ring = np.zeros(size // 4, np.int32)
    ring[order] = np.roll(order, -1)
    return ring


def _two_chains(device: Cpu) -> Builder:
    """Two chains of loads with independent instructions between them, as many as the third element
    of `out` selects; the first two elements are the starts of the chains.
    """
    b = Builder("window")
    source, out = b.pointer("source", "int32"), b.pointer("out", "int32")
    choice = b.let(out.load(2))
    at = b.registers("int32", 1, 2, "at")
    for i in range(2):
        at[i] = out.load(i)
    filler = Filler(b, (source.load(1), source.load(2)), 4)
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
