"""Regions with their kernels, in the order they run -> the same, with independent branches side by
side: each on one thread, where that is predicted to be faster than all threads sharing every step.

A step of a few microseconds gains little from threads: they wait for each other before and after
it. Branches that do not need each other (those of an Inception module, heads of a detector, two
towers) keep the threads busy with one wait in all. List scheduling: whenever a region becomes
ready, the branches that begin at ready regions are dealt out to threads, the longest first, and
those that gain as a group become one; else the first ready region runs by itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from qcompiler.artifact.abi import MOST_UNITS
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.kernels.registry import Decision, Kernel, Region
from qcompiler.plan.regions import base

MOST_STEPS = 64
"""Of a branch: what is longer is cut, and goes on after the others have ended."""
MOST_BRANCHES = 16
"""Of a group that is considered together."""
GAIN = 1.1
"""A group must be predicted to be so many times as fast: predictions of single steps err."""
_LONG = 50.0
"""Steps that take so many times `launch_ns` share threads well: their branches are not tried."""


@dataclass(frozen=True)
class Branch:
    """Where a step stands that runs side by side with others: its group goes from step `first` to
    step `last`, and `thread` runs this one.
    """

    first: int
    last: int
    thread: int


class Kernels(Protocol):
    """Chooses kernels."""

    device: Device

    def alone(self, region: Region) -> Decision:
        """The kernel of a region for one thread."""


Made = tuple[Region, Decision]


def side_by_side(made: Sequence[Made], kernels: Kernels) -> tuple[list[Made], list[Branch | None]]:
    """Regions, each after those it reads, and their kernels -> the order in which they run, those
    of branches with kernels for one thread, and the branch of each.
    """
    device = kernels.device
    if device.threads == 1 or not isinstance(device, Cpu):
        return list(made), [None] * len(made)
    return _Schedule(made, kernels, device).run()


@dataclass(frozen=True)
class _Item:
    """Steps of a branch, in order, and their predicted seconds on one thread and on all."""

    steps: tuple[int, ...]
    alone: float
    shared: float


@dataclass
class _Schedule:
    made: Sequence[Made]
    kernels: Kernels
    device: Cpu
    order: list[Made] = field(default_factory=list)
    branches: list[Branch | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        makers = {region.output: i for i, (region, _) in enumerate(self.made)}
        self.reads = [
            {makers[b] for n in region.inputs if (b := base(n)) in makers} - {i}
            for i, (region, _) in enumerate(self.made)
        ]
        self.readers: list[list[int]] = [[] for _ in self.made]
        for i, reads in enumerate(self.reads):
            for maker in reads:
                self.readers[maker].append(i)
        self.missing = [len(reads) for reads in self.reads]
        self.items: dict[int, _Item | None] = {}
        """By the ready step that each begins with; None: it is not tried."""

    def run(self) -> tuple[list[Made], list[Branch | None]]:
        """All of it."""
        ready = [i for i, count in enumerate(self.missing) if not count]
        new = True
        while ready:
            group = self._group(ready) if new and len(ready) > 1 else []
            steps = self._side_by_side(group) if group else self._by_itself(ready[0])
            for begin in [item.steps[0] for item in group] or steps:
                del ready[bisect_left(ready, begin)]
            found = self._after(steps)
            for step in found:
                insort(ready, step)
            new = bool(found)
        return self.order, self.branches

    def _after(self, steps: Sequence[int]) -> list[int]:
        """What becomes ready when these steps are done."""
        inside = set(steps)
        found = []
        for step in steps:
            for reader in self.readers[step]:
                self.missing[reader] -= 1
                if not self.missing[reader] and reader not in inside:
                    found.append(reader)
        return found

    def _by_itself(self, step: int) -> list[int]:
        """Add a step that all threads may share."""
        self.order.append(self.made[step])
        self.branches.append(None)
        return [step]

    def _group(self, ready: Sequence[int]) -> list[_Item]:
        """The branches that gain most by running side by side; none where nothing does."""
        for i in ready[:MOST_BRANCHES]:
            if i not in self.items:
                self.items[i] = self._item(i)
        found = [item for i in ready[:MOST_BRANCHES] if (item := self.items[i]) is not None]
        found.sort(key=lambda item: -item.alone)
        barrier = self.device.core.barrier_ns * 1e-9
        best: list[_Item] = []
        most = 0.0
        for first in range(len(found) - 1):
            some = found[first:]
            shared = sum(item.shared for item in some)
            together = max(_loads(some, self._threads)[0]) + barrier
            if shared > GAIN * together and shared - together > most:
                best, most = some, shared - together
        return best

    @property
    def _threads(self) -> int:
        return min(self.device.threads, MOST_UNITS)

    def _item(self, begin: int) -> _Item | None:
        """The branch that begins with a ready step: what needs nothing else that is to be done."""
        inside = {begin: None}
        missing: dict[int, int] = {}
        todo = [begin]
        while todo and len(inside) < MOST_STEPS:
            for reader in self.readers[heappop(todo)]:
                left = missing.get(reader, self.missing[reader]) - 1
                missing[reader] = left
                if not left:
                    inside[reader] = None
                    heappush(todo, reader)
        steps = tuple(sorted(inside)[:MOST_STEPS])
        alone = shared = 0.0
        for step in steps:
            pair = self._seconds(step)
            if pair is None:
                return None
            alone, shared = alone + pair[0], shared + pair[1]
        return _Item(steps, alone, shared)

    def _seconds(self, step: int) -> tuple[float, float] | None:
        """Of a step on one thread, and on all; None where one thread is not tried."""
        region, how = self.made[step]
        core = self.device.core
        offers = [o for o in (how.chosen, *how.lost) if o is not None]
        if not offers or not isinstance(how.kernel, Kernel):
            return None
        shared = min(
            o.candidate.seconds for o in offers
        )  # by the model, also where one is recorded
        if how.kernel.tasks == 1:
            return shared, shared
        if shared > _LONG * core.launch_ns * 1e-9:
            return None
        single = self.kernels.alone(region)
        if single.chosen is None or not isinstance(single.kernel, Kernel):
            return None
        alone = single.chosen.candidate.seconds
        units = min(how.kernel.tasks, self._threads)
        return alone, min(shared, alone / units) + core.barrier_ns * 1e-9

    def _side_by_side(self, group: Sequence[_Item]) -> list[int]:
        """Add a group, thread by thread -> its steps."""
        _, dealt = _loads(group, self._threads)
        steps = [(thread, step) for thread, some in enumerate(dealt) for step in some]
        first, last = len(self.order), len(self.order) + len(steps) - 1
        for thread, step in steps:
            region, how = self.made[step]
            single = isinstance(how.kernel, Kernel) and how.kernel.tasks == 1
            self.order.append((region, how if single else self.kernels.alone(region)))
            self.branches.append(Branch(first, last, thread))
        return [step for _, step in steps]


def _loads(items: Iterable[_Item], threads: int) -> tuple[list[float], list[list[int]]]:
    """Branches, the longest first -> the seconds of each thread, and its steps: each branch goes to
    the thread that has least to do.
    """
    loads = [0.0] * threads
    dealt: list[list[int]] = [[] for _ in range(threads)]
    for item in items:
        thread = min(range(threads), key=lambda t: loads[t])
        loads[thread] += item.alone
        dealt[thread] += item.steps
    return loads, dealt
