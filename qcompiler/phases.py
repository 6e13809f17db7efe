"""Steps in order -> their turns: where all tasks must wait for each other, and which task runs a
step that is not shared.

Two steps need a barrier between them only where one writes bytes that the other reads or writes,
unless one and the same task runs both. Between two barriers, steps of one task that have nothing to
do with each other go to different tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

SHARED = -1


class Span(Protocol):
    """Where bytes are (`plan.Place`)."""

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
    """A step as its order sees it. `shared`: all tasks have a part in it; else one runs it, for
    about `cost` (of any unit)."""

    reads: tuple[Span, ...]
    writes: tuple[Span, ...]
    shared: bool
    cost: float = 1.0


@dataclass(frozen=True)
class Turn:
    """`waits`: a barrier stands before the step. `owner`: the task that runs it, or SHARED."""

    waits: bool
    owner: int


def turns(steps: Sequence[Work], tasks: int) -> list[Turn]:
    """Steps in the order they run, for so many tasks -> a turn for each."""
    found: list[Turn] = []
    phase = _Phase(tasks)
    for step in steps:
        turn = phase.turn(step)
        if turn.waits:
            phase = _Phase(tasks)
        phase.add(step, turn.owner)
        found.append(turn)
    return found


@dataclass
class _Phase:
    """What ran since the last barrier: bytes read and written, with who did; work of each task."""

    tasks: int
    reads: list[tuple[Span, int]] = field(default_factory=list)
    writes: list[tuple[Span, int]] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.load = [0.0] * self.tasks

    def turn(self, step: Work) -> Turn:
        before = _touching(step.reads, self.writes)
        before |= _touching(step.writes, [*self.reads, *self.writes])
        lightest = min(range(self.tasks), key=lambda t: self.load[t])
        if not before:
            return Turn(False, SHARED if step.shared else lightest)
        if not step.shared and len(before) == 1 and SHARED not in before:
            return Turn(False, before.pop())
        return Turn(True, SHARED if step.shared else 0)

    def add(self, step: Work, owner: int) -> None:
        self.reads += [(s, owner) for s in step.reads]
        self.writes += [(s, owner) for s in step.writes]
        for task in range(self.tasks) if owner == SHARED else [owner]:
            self.load[task] += step.cost / (self.tasks if owner == SHARED else 1)


def _touching(spans: Iterable[Span], others: list[tuple[Span, int]]) -> set[int]:
    """The owners of spans that share a byte with one of these."""
    return {owner for s in spans for other, owner in others if _overlap(s, other)}


def _overlap(a: Span, b: Span) -> bool:
    if a.space != b.space or a.space == "weights":
        return False
    if a.space in ("input", "output"):
        return a.offset == b.offset
    return a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes
