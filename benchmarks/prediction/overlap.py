"""A task's block counts and tile doings -> cycles, and what they go to.

A core looks some five hundred micro-operations ahead: what stands within that distance goes on at
the same time, on whichever unit it needs, so the busiest unit sets the pace of a short loop, and of
one whose inner loops are so short that their neighbours are within sight, too. Longer loops take
turns with what stands around them.

Cycles of tile instructions, Golden Cove: a product takes one for each row of its sums, and 52 until
they are there; a load half of one for each cache line; a store one for each row (Intel 64 and IA-32
Architectures Optimization Reference Manual, chapter on AMX; uops.info).

Two things were fitted to measured times of plain kernels (one block of 32 by 32 sums after the
other, no prefetches, requantized after the products) of eleven shapes on a 2-core machine with AMX:
rows that come from the second-level cache hold up the products, 60 bytes a cycle; nothing hides the
way of sums through memory. Speeds predicted for those are 0.85 to 1.24 of the measured ones, their
ranks correlate by 0.9. That prefetched rows hold up nothing, and that lines from beyond the second-
level cache come in the background at 10 bytes a cycle, is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.prediction.assembly import Block, Loop, everything
from benchmarks.prediction.machine import NOTHING, Use, is_tile
from benchmarks.prediction.trace import Task

WINDOW = 512.0
"""Micro-operations that a core looks ahead."""
LATENCY = 52.0
"""Cycles from a product's start to its sums."""
LOAD_UOPS, STORE_UOPS = 8.0, 16.0
L2_BYTES = 60.0
FAR_BYTES = 10.0
LINE = 64

Times = dict[str, float]
"""Unit -> cycles."""


@dataclass(frozen=True)
class Busy:
    """What units are busy with."""

    products: float = 0.0
    loaded: float = 0.0
    """Cycles of the load ports with tile rows."""
    stored: float = 0.0
    use: Use = NOTHING

    def __add__(self, other: Busy) -> Busy:
        return Busy(
            self.products + other.products,
            self.loaded + other.loaded,
            self.stored + other.stored,
            self.use + other.use,
        )

    def __mul__(self, count: float) -> Busy:
        loaded, stored = self.loaded * count, self.stored * count
        return Busy(self.products * count, loaded, stored, self.use * count)

    @property
    def times(self) -> Times:
        """Cycles of each unit."""
        return {
            "products": self.products,
            "vectors": self.use.vector_cycles,
            "loads": self.loaded + self.use.loads / 2,
            "stores": self.stored + self.use.stores,
            "instructions": self.use.issue_cycles,
        }

    @property
    def cycles(self) -> float:
        """Of the busiest unit."""
        return max(self.times.values())


@dataclass(frozen=True)
class Cost:
    """Predicted cycles of a task: what each unit is busy, and in all."""

    total: float
    times: Times

    @property
    def bound(self) -> str:
        """The busiest unit."""
        return max(self.times, key=lambda unit: self.times[unit])


def cost(functions: Sequence[Loop], task: Task, uses: Mapping[str, Use]) -> Cost:
    """What a task takes: its functions' loops, then the caches, which work in the background."""
    coster = _Coster(task, uses)
    total, busy = 0.0, Busy()
    for function in functions:
        if any(task.counts[b.number] for b in everything(function)):
            time, used = coster.loop(function)
            total, busy = total + time, busy + used
    near = task.tiles.beyond_l1 * LINE / L2_BYTES
    far = (task.tiles.beyond_l2 + task.tiles.asked_far) * LINE / FAR_BYTES
    return Cost(max(total + near, far), {**busy.times, "L2": near, "memory": far})


class _Coster:
    """One task's blocks and loops."""

    def __init__(self, task: Task, uses: Mapping[str, Use]) -> None:
        self.counts, self.uses = task.counts, uses
        t = task.tiles
        self.rows = t.product_rows / t.products if t.products else 16.0
        self.lines = t.load_lines / t.loads if t.loads else 16.0
        self.stored = t.store_rows / t.stores if t.stores else 16.0
        self._known: dict[Block, Busy] = {}

    def loop(self, loop: Loop) -> tuple[float, Busy]:
        """(cycles, what units are busy with) of all its turns."""
        turns = max(1.0, *(float(self.counts[b.number]) for b in loop.own))
        own = sum((self._block(b) for b in loop.own), Busy())
        inner = [
            self.loop(i) for i in loop.inner if any(self.counts[b.number] for b in everything(i))
        ]
        busy = sum((b for _, b in inner), own)
        longest = max((b.use.uops for _, b in inner), default=0.0)
        if busy.use.uops <= WINDOW * turns or (inner and longest <= WINDOW / 2 * turns):
            return max(busy.cycles, self._chain(loop, turns)), busy
        way_out = own.stored + (LATENCY * turns if own.stored else 0.0)
        return sum(t for t, _ in inner) + replace(own, stored=0.0).cycles + way_out, busy

    def _chain(self, loop: Loop, turns: float) -> float:
        """Cycles of the longest chain of products into one tile of sums, in a loop without others:
        what a turn adds to it must wait.
        """
        chains: Times = {}
        for b in everything(loop):
            for i in b.instructions:
                if i.startswith("tdp"):
                    sums = i.split(",")[-1].strip()
                    chains[sums] = chains.get(sums, 0.0) + float(self.counts[b.number]) * LATENCY
        begun = any(
            i.startswith(("tilezero", "tilestore"))
            for b in everything(loop)
            for i in b.instructions
        )
        return 0.0 if begun or not chains else max(chains.values())

    def _block(self, block: Block) -> Busy:
        if block not in self._known:
            self._known[block] = self._once(block)
        return self._known[block] * float(self.counts[block.number])

    def _once(self, block: Block) -> Busy:
        use, products, loaded, stored, uops = NOTHING, 0.0, 0.0, 0.0, 0.0
        for i in block.instructions:
            if not is_tile(i):
                use = use + self.uses[i]
            elif i.startswith("tdp"):
                products, uops = products + self.rows, uops + 1
            elif i.startswith("tileload"):
                loaded, uops = loaded + self.lines / 2, uops + LOAD_UOPS
            elif i.startswith("tilestore"):
                stored, uops = stored + self.stored, uops + STORE_UOPS
        return Busy(products, loaded, stored, replace(use, uops=use.uops + uops))
