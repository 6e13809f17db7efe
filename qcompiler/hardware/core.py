"""What one core of a processor does in a cycle, as plain facts, which the cost models read.

The models of kernels were fitted on a wide out-of-order x86 core, `REFERENCE`, whose facts are the
defaults. What they count (products, loads, instructions, bytes) is divided by a core's own rates;
what was measured as a whole (the end of a tile, a formula of some instructions) is scaled from the
reference by the rate that bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from qcompiler.errors import Error


@dataclass(frozen=True, kw_only=True)
class Core:
    """Facts of one core. Rates are those sustained by good code, not the peaks of a data sheet."""

    hz: float = 3e9
    """Cycles a second under vector code."""
    latency_cycles: float = 4.0
    """From a sum to the next product that is added to it."""
    macs_per_cycle: float = 2.0
    """Multiply-accumulates of whole vectors."""
    loads_per_cycle: float = 1.5
    """Loads of whole vectors from the first-level cache; some miss it."""
    load_latency_cycles: float = 5.0
    """From a load to the first use of what it loads, in the first-level cache."""
    stores_per_cycle: float = 1.0
    """Stores of whole vectors, or of rows of a tile, to the first-level cache."""
    issue_per_cycle: float = 5.0
    """Instructions of any kind."""
    window: int = 250
    """Instructions under way at a time, in any order; 0: each waits for those before it."""
    l2_bytes_per_cycle: float = 24.0
    l3_bytes_per_cycle: float = 8.0
    memory_bytes_per_cycle: float = 4.0
    """What arrives from each level, one core reading."""
    l2_latency_cycles: float = 14.0
    """From asking for a line to its arrival from the second-level cache."""
    ahead_bytes: int = 16384
    """How far ahead of what is read in order lines are asked for, that they come in time from
    beyond the second-level cache.
    """
    line_bytes: int = 64
    """Of a cache line."""
    way_bytes: int = 4096
    """Addresses this far apart fall into the same set of the first-level cache."""
    launch_ns: float = 4_000.0
    """Work of one core that is not worth sharing among threads: a barrier takes about a fortieth,
    and what another core wrote comes from its cache."""
    wake_ns: float = 5_000.0
    """A thread that sleeps is woken: two system calls, measured on a virtual machine."""
    barrier_ns: float = 500.0
    """Threads share a step: a few cache lines move between cores, and shares are not quite even."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise Error(f"core.{field.name} is {value!r}, not {kind}")
            least = field.name == "window" and value == 0
            if not math.isfinite(value) or (value <= 0 and not least):
                raise Error(f"core.{field.name} is {value!r}, not above 0")
        for name in ("line_bytes", "way_bytes"):
            if (size := getattr(self, name)) & (size - 1):
                raise Error(f"core.{name} is {size}, not a power of two")
        if self.way_bytes % self.line_bytes:
            raise Error(f"core.way_bytes is {self.way_bytes}: less than a line")

    @staticmethod
    def of(facts: Mapping[str, object]) -> Core:
        """The table `core` of a device's file; what it does not say is as of the reference."""
        known = [f.name for f in fields(Core)]
        unknown = sorted(set(facts) - set(known))
        if unknown:
            raise Error(f"unknown fact core.{unknown[0]}", hint=f"one of {', '.join(known)}")
        return Core(**facts)  # type: ignore[arg-type]  # checked above, and by __post_init__

    @property
    def in_order(self) -> bool:
        """Does every instruction wait for those before it?"""
        return self.window == 0

    @property
    def chains(self) -> int:
        """Sums that must be under way at a time to hide a product's latency."""
        return max(1, math.ceil(self.latency_cycles * self.macs_per_cycle))

    @property
    def adds(self) -> int:
        """Sums under way at a time that hide the latency of adding what each load brings."""
        return max(1, math.ceil(self.latency_cycles))

    @property
    def bytes_per_cycle(self) -> tuple[float, float, float, float]:
        """From the first level (its loads count instead), the second, the third, and memory."""
        far = (self.l2_bytes_per_cycle, self.l3_bytes_per_cycle, self.memory_bytes_per_cycle)
        return (1e9, *far)

    @property
    def worth_sharing(self) -> float:
        """Cycles of a contraction that two threads finish sooner than one: its work is even, so
        half of what other kernels need.
        """
        return self.launch_ns / 2 * (self.hz / 1e9)

    def whole_lines(self, size: int) -> int:
        """Bytes -> those of the cache lines that hold so many: what begins behind shares none."""
        return -(-size // self.line_bytes) * self.line_bytes

    def odd_lines(self, size: int) -> int:
        """Bytes -> those of an odd number of cache lines: rows so far apart fall into different
        sets of a cache.
        """
        return (-(-size // self.line_bytes) | 1) * self.line_bytes

    def seconds(self, cycles: float) -> float:
        """What so many cycles take."""
        return cycles / self.hz

    def cycles(self, reference: float) -> float:
        """Cycles that mixed instructions take on the reference -> on this core."""
        return reference * (REFERENCE.issue_per_cycle / self.issue_per_cycle)

    def mixed_ns(self, reference: float) -> float:
        """Nanoseconds that mixed instructions take on the reference -> on this core."""
        return self.cycles(reference) * (REFERENCE.hz / self.hz)

    def product_ns(self, reference: float) -> float:
        """Nanoseconds that products take on the reference -> on this core."""
        slower = REFERENCE.macs_per_cycle / self.macs_per_cycle
        return reference * slower * (REFERENCE.hz / self.hz)

    def moved_ns(self, size: float) -> float:
        """Nanoseconds to move so many bytes, in order, between vectors and the outer caches, which
        give a quarter more where lines are fetched ahead.
        """
        return size / (1.25 * self.l3_bytes_per_cycle * (self.hz / 1e9))

    def step_cycles(self, macs: float, loads: float, instructions: float) -> float:
        """One step of a tile: so many products, loads, and instructions in all. In order, products
        wait for what the step loads, and the next step's loads for the products.
        """
        multiplied = macs / self.macs_per_cycle
        step = max(multiplied, loads / self.loads_per_cycle, instructions / self.issue_per_cycle)
        return max(step, self.load_latency_cycles + multiplied) if self.in_order else step

    def overlapped(self, arithmetic: float, fetch: float) -> float:
        """Cycles of two things that go on at the same time, not quite perfectly; in order, nothing
        is computed while a line is awaited.
        """
        if self.in_order:
            return arithmetic + fetch
        return max(arithmetic, fetch) + 0.1 * min(arithmetic, fetch)


REFERENCE = Core()
"""The wide x86 core that the models were fitted on."""
