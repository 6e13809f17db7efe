"""Facts of one core of a processor (rates, latencies, sizes), which the cost models read.

The kernels' cost models were fitted on a wide out-of-order x86 core, `REFERENCE`, whose facts are
the defaults. What they count (products, loads, instructions, bytes) is divided by a core's own
rates; what was measured as a whole (the epilogue of a tile, a formula of some instructions) is
scaled from the reference by the rate that bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from qcompiler.errors import Error


@dataclass(frozen=True, kw_only=True)
class Core:
    """Facts of one core. Rates are those that good code sustains, not the peaks of data sheets."""

    hz: float = 3e9
    """Clock under vector code."""
    latency_cycles: float = 4.0
    """Latency of a multiply-accumulate, from sum to sum."""
    macs_per_cycle: float = 2.0
    """Multiply-accumulates of whole vectors."""
    loads_per_cycle: float = 1.5
    """Loads of whole vectors, most from the first-level cache."""
    load_latency_cycles: float = 5.0
    """From a load to its first use, in the first-level cache."""
    stores_per_cycle: float = 1.0
    """Stores of whole vectors, or of a tile's rows, to the first-level cache."""
    issue_per_cycle: float = 5.0
    """Instructions of any kind."""
    window: int = 250
    """Size of the out-of-order window in instructions; 0: in order."""
    l2_bytes_per_cycle: float = 24.0
    l3_bytes_per_cycle: float = 8.0
    memory_bytes_per_cycle: float = 4.0
    """Bandwidth from each level to one core that reads."""
    l2_latency_cycles: float = 14.0
    """Latency of a line from the second-level cache."""
    prefetch_bytes: int = 16384
    """Distance of prefetches in sequential reads that hides the latency beyond the second-level
    cache.
    """
    line_bytes: int = 64
    """Size of a cache line."""
    way_bytes: int = 4096
    """Addresses this far apart fall into the same set of the first-level cache."""
    launch_ns: float = 4_000.0
    """Work of one core that is not worth sharing among threads: a barrier takes about a fortieth
    of it, and what another core wrote comes from that core's cache."""
    wake_ns: float = 5_000.0
    """Waking a sleeping thread: two system calls, measured on a virtual machine."""
    barrier_ns: float = 500.0
    """Sharing a step among threads: cache lines move between cores, and shares are uneven."""

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
        """The table `core` of a device's file; missing facts are those of the reference."""
        known = [f.name for f in fields(Core)]
        unknown = sorted(set(facts) - set(known))
        if unknown:
            raise Error(f"unknown fact core.{unknown[0]}", hint=f"one of {', '.join(known)}")
        return Core(**facts)  # type: ignore[arg-type]  # checked above, and by __post_init__

    @property
    def in_order(self) -> bool:
        """Does it execute instructions in order?"""
        return self.window == 0

    @property
    def chains(self) -> int:
        """Independent sums needed to hide the latency of products."""
        return max(1, math.ceil(self.latency_cycles * self.macs_per_cycle))

    @property
    def adds(self) -> int:
        """Independent sums needed to hide the latency of additions, one for each load."""
        return max(1, math.ceil(self.latency_cycles))

    @property
    def bytes_per_cycle(self) -> tuple[float, float, float, float]:
        """From the first level (whose loads are counted instead), the second, the third, memory."""
        outer = (self.l2_bytes_per_cycle, self.l3_bytes_per_cycle, self.memory_bytes_per_cycle)
        return (1e9, *outer)

    @property
    def worth_sharing(self) -> float:
        """Cycles from which two threads finish a contraction sooner than one: half of what other
        kernels need, as its work is even.
        """
        return self.launch_ns / 2 * (self.hz / 1e9)

    def whole_lines(self, size: int) -> int:
        """Bytes rounded up to whole cache lines, so that what follows shares none."""
        return -(-size // self.line_bytes) * self.line_bytes

    def odd_lines(self, size: int) -> int:
        """Bytes rounded up to an odd number of cache lines: rows at this distance fall into
        different sets of a cache.
        """
        return (-(-size // self.line_bytes) | 1) * self.line_bytes

    def seconds(self, cycles: float) -> float:
        """Duration of cycles."""
        return cycles / self.hz

    def cycles(self, reference: float) -> float:
        """Cycles of mixed instructions on the reference -> on this core."""
        return reference * (REFERENCE.issue_per_cycle / self.issue_per_cycle)

    def mixed_ns(self, reference: float) -> float:
        """Nanoseconds of mixed instructions on the reference -> on this core."""
        return self.cycles(reference) * (REFERENCE.hz / self.hz)

    def product_ns(self, reference: float) -> float:
        """Nanoseconds of products on the reference -> on this core."""
        slower = REFERENCE.macs_per_cycle / self.macs_per_cycle
        return reference * slower * (REFERENCE.hz / self.hz)

    def moved_ns(self, size: float) -> float:
        """Nanoseconds to move bytes sequentially between registers and the outer caches; hardware
        prefetching makes that a quarter faster.
        """
        return size / (1.25 * self.l3_bytes_per_cycle * (self.hz / 1e9))

    def step_cycles(self, macs: float, loads: float, instructions: float) -> float:
        """Cycles of one step of a tile, by its products, loads, and instructions in all. In order,
        products wait for the step's loads, and the next step's loads for the products.
        """
        multiplied = macs / self.macs_per_cycle
        step = max(multiplied, loads / self.loads_per_cycle, instructions / self.issue_per_cycle)
        return max(step, self.load_latency_cycles + multiplied) if self.in_order else step

    def overlapped(self, arithmetic: float, fetch: float) -> float:
        """Cycles of arithmetic and memory accesses that overlap almost perfectly out of order, and
        not at all in order.
        """
        if self.in_order:
            return arithmetic + fetch
        return max(arithmetic, fetch) + 0.1 * min(arithmetic, fetch)


REFERENCE = Core()
"""The wide x86 core on which the models were fitted."""
