"""Steps in order -> their slots: where all tasks wait at a barrier, and which task runs a step that
is not shared.

Two steps need a barrier between them only if one writes bytes that the other reads or writes and
they run on different tasks. Between two barriers, independent steps that are not shared go to
different tasks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

SHARED = -1


class Span(Protocol):
    """Where bytes are (`plan.places.Place`)."""

    @property
    def space(self) -> str:
        """Which memory; "weights" is never written."""

    @property
    def offset(self) -> int:
        """First byte in it; for an input or output, which one."""

    @property
    def bytes(self) -> int:
        """How many."""


@dataclass(frozen=True)
class Work:
    """A step's accesses. `shared`: all tasks take part in it; else one runs it, for about `cost`
    (in any unit)."""

    reads: tuple[Span, ...]
    writes: tuple[Span, ...]
    shared: bool
    cost: float = 1.0
    thread: int = SHARED
    """The task that a step which is not shared is meant for; SHARED: whichever has least to do."""
    group: int = 0
    """With it begin so many steps that are meant to run side by side: a barrier that one of them
    needs stands before all."""
    begins: bool = False
    """A barrier stands before it in any case."""


@dataclass(frozen=True)
class Slot:
    """`waits`: a barrier stands before the step. `owner`: the task that runs it, or SHARED."""

    waits: bool
    owner: int

    def __str__(self) -> str:
        """ "| all" (a barrier before it, shared), "  all" or "| 0", "  0" (by task 0 alone)."""
        return f"{'|' if self.waits else ' '} {'all' if self.owner == SHARED else self.owner}"


AFTER_ALL = Slot(True, SHARED)
"""The slot of a shared step that waits for all steps before it."""


def slots(steps: Sequence[Work], tasks: int) -> list[Slot]:
    """Steps in the order they run, number of tasks -> a slot for each step."""
    found: list[Slot] = []
    phase = _Phase(tasks)
    for i, step in enumerate(steps):
        slot = phase.slot(step)
        others = steps[i + 1 : i + step.group]
        if step.begins or any(phase.slot(other).waits for other in others):
            slot = Slot(True, slot.owner)
        if slot.waits:
            phase = _Phase(tasks)
        phase.add(step, slot.owner)
        found.append(slot)
    return found


@dataclass
class _Phase:
    """The steps since the last barrier: bytes read and written, by task; load of each task."""

    tasks: int
    reads: _Touched = field(default_factory=lambda: _Touched())
    writes: _Touched = field(default_factory=lambda: _Touched())
    load: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.load = [0.0] * self.tasks

    def slot(self, step: Work) -> Slot:
        earlier = self.writes.owners(step.reads)
        earlier |= self.writes.owners(step.writes) | self.reads.owners(step.writes)
        if step.shared:
            return Slot(bool(earlier), SHARED)
        if step.thread != SHARED:
            return Slot(bool(earlier - {step.thread}), step.thread)
        if not earlier:
            return Slot(False, min(range(self.tasks), key=lambda t: self.load[t]))
        if len(earlier) == 1 and SHARED not in earlier:
            return Slot(False, earlier.pop())
        return Slot(True, 0)

    def add(self, step: Work, owner: int) -> None:
        self.reads.add(step.reads, owner)
        self.writes.add(step.writes, owner)
        for task in range(self.tasks) if owner == SHARED else [owner]:
            self.load[task] += step.cost / (self.tasks if owner == SHARED else 1)


Stretch = tuple[int, int, frozenset[int]]
"""(First byte, the one after the last, their owners)."""


@dataclass
class _Touched:
    """Bytes and their owners: for each memory disjoint stretches in order, neighbours of the same
    owners joined, so that owners are found by binary search.
    """

    found: dict[str, list[Stretch]] = field(default_factory=dict)

    def owners(self, spans: Iterable[Span]) -> set[int]:
        """The owners of any bytes of these spans."""
        owners: set[int] = set()
        for space, first, end in filter(None, map(_stretch, spans)):
            found = self.found.get(space, [])
            for at in range(bisect_right(found, first, key=_end), len(found)):
                if found[at][0] >= end:
                    break
                owners |= found[at][2]
        return owners

    def add(self, spans: Iterable[Span], owner: int) -> None:
        """Add an owner to the bytes of these spans."""
        for space, first, end in filter(None, map(_stretch, spans)):
            found = self.found.setdefault(space, [])
            low = bisect_left(found, first, key=_end)
            high = bisect_right(found, end, key=_start)
            found[low:high] = _joined(_with(found[low:high], first, end, owner))


def _start(stretch: Stretch) -> int:
    return stretch[0]


def _end(stretch: Stretch) -> int:
    return stretch[1]


def _with(found: Sequence[Stretch], first: int, end: int, owner: int) -> Iterator[Stretch]:
    """Stretches in order, with one more owner of the bytes from `first` to `end`; some empty."""
    at = first
    for start, stop, owners in found:
        yield start, min(stop, first), owners
        yield at, min(start, end), frozenset((owner,))
        yield max(start, first), min(stop, end), owners | {owner}
        yield max(start, end), stop, owners
        at = max(at, stop)
    yield at, end, frozenset((owner,))


def _joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Stretches in order, some empty -> the others, neighbours of the same owners joined."""
    made: list[Stretch] = []
    for start, end, owners in stretches:
        if start >= end:
            continue
        if made and made[-1][1] == start and made[-1][2] == owners:
            start = made.pop()[0]
        made.append((start, end, owners))
    return made


def _stretch(span: Span) -> tuple[str, int, int] | None:
    """A span -> its memory, first byte and the one after the last; None for weights, which are
    never written.
    """
    if span.space == "weights":
        return None
    whole = span.space in ("input", "output")
    return span.space, span.offset, span.offset + (1 if whole else span.bytes)
