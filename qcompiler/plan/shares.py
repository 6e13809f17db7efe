"""Steps and their places -> the bytes of memory that each step takes.

RAM of a step is the workspace in use while it runs: what it reads and writes there, its scratch
memory, and what a later step still reads. Weights that several steps read count for the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qcompiler.plan.places import Place, room
from qcompiler.plan.plan import Plan, Step

_Spans = list[tuple[int, int]]
"""Bytes of the workspace as [first, end), in order, apart from each other."""


@dataclass(frozen=True)
class Share:
    """Bytes of one step."""

    ram: int
    weights: int


def shares(plan: Plan) -> tuple[Share, ...]:
    """A plan -> what each of its steps takes."""
    left = [*plan.checks.values(), *plan.extents.values()]
    held = _held(plan.steps, left)
    seen: set[int] = set()
    found = []
    for step, ram in zip(plan.steps, held, strict=True):
        weights = {p.offset: p.bytes for p in step.operands if p.space == "weights"}
        found.append(Share(ram, sum(room(n) for at, n in weights.items() if at not in seen)))
        seen |= weights.keys()
    return tuple(found)


def _held(steps: Sequence[Step], left: Iterable[Place]) -> list[int]:
    """Bytes of the workspace in use at every step, from the last to the first; `left`: what is
    still there after a run.
    """
    alive = _joined(_spans(left))
    held = []
    for step in reversed(steps):
        writes, reads = _spans(step.writes), _spans(step.operands)
        held.append(sum(end - first for first, end in _joined([*alive, *writes, *reads])))
        alive = _joined([*_without(alive, writes), *reads])
    return held[::-1]


def _spans(places: Iterable[Place]) -> _Spans:
    return [(p.offset, p.offset + room(p.bytes)) for p in places if p.space == "workspace"]


def _joined(spans: _Spans) -> _Spans:
    """Spans that may overlap -> those of the same bytes that do not."""
    found: _Spans = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found


def _without(spans: _Spans, cuts: _Spans) -> _Spans:
    """Spans less the bytes of others."""
    for low, high in cuts:
        spans = [
            part
            for first, end in spans
            for part in ((first, min(end, low)), (max(first, high), end))
            if part[0] < part[1]
        ]
    return spans
