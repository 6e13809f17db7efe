"""Steps with their slots -> the sections of a run: units that may run at the same time.

A section lasts from one barrier to the next (plan/barriers.py); a unit is what one task does in it.
Each phase of a step of several phases is a section.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qcompiler.emit.tasks import Part, Phase
from qcompiler.plan.barriers import SHARED, Slot


@dataclass(frozen=True)
class Call:
    """A step in a section: its number, its phases, and its owner, a unit or SHARED."""

    step: int
    parts: tuple[Part, ...]
    owner: int

    @property
    def mask(self) -> int:
        """The units that have work, one bit each; for a step of one phase."""
        (phase,) = self.parts
        assert isinstance(phase, Phase)
        return (1 << phase.units) - 1 if self.owner == SHARED else 1 << self.owner

    @property
    def length(self) -> int:
        """Number of sections it takes."""
        return sum(p.length for p in self.parts)


@dataclass(frozen=True)
class Section:
    """Steps of one phase that need not wait for each other, or one step of several phases, which
    takes `length` section numbers; the first is `begin`.
    """

    begin: int
    calls: list[Call] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of section numbers it takes."""
        return max(c.length for c in self.calls)

    @property
    def masks(self) -> list[int]:
        """The units of each section number, one bit each."""
        if self.length == 1:
            mask = 0
            for call in self.calls:
                mask |= call.mask
            return [mask]
        (call,) = self.calls
        return _masks(call.parts)


def _masks(parts: Sequence[Part]) -> list[int]:
    found: list[int] = []
    for part in parts:
        if isinstance(part, Phase):
            found.append((1 << part.units) - 1)
        else:
            found += _masks(part.parts) * part.iterations
    return found


def sections(steps: Sequence[tuple[Part, ...]], order: Sequence[Slot]) -> list[Section]:
    """The phases of every step, and their slots -> sections in order."""
    found: list[Section] = []
    for number, (parts, slot) in enumerate(zip(steps, order, strict=True)):
        call = Call(number, parts, slot.owner)
        last = found[-1] if found else None
        if last is None or slot.waits or call.length > 1 or last.length > 1:
            found.append(Section(last.begin + last.length if last else 0))
        found[-1].calls.append(call)
    return found
