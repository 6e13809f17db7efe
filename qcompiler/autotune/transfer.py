"""What was chosen for other shapes -> what to try first for a task."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from qcompiler.autotune.tasks import Choice, Task
from qcompiler.tune.records import Line

NEAREST = 3
_NUMBER = re.compile(r"(?<![\w%])\d+(?!\w)")
"""A size or an attribute in a region's key, not a part of a name or of a reference."""


def hints(task: Task, chosen: Iterable[Line]) -> list[Choice]:
    """The choices for regions of the same operators on the same device, whose numbers are nearest,
    as far as the task offers them; the nearest first.
    """
    kind, numbers = _parted(task.key.region)
    near: list[tuple[float, Line]] = []
    for line in chosen:
        its, others = _parted(line.key.region)
        same = line.key.device == task.key.device and line.key != task.key
        if same and its == kind and len(others) == len(numbers):
            near.append((_distance(numbers, others), line))
    near.sort(key=lambda n: n[0])
    offered = {_mark(c): c for c in task.choices}
    marks = dict.fromkeys(_mark_of(line) for _, line in near)
    return [offered[m] for m in marks if m in offered][:NEAREST]


def _parted(region: str) -> tuple[str, list[int]]:
    """A key -> its text without numbers, and these."""
    return _NUMBER.sub("#", region), [int(n) for n in _NUMBER.findall(region)]


def _distance(some: list[int], others: list[int]) -> float:
    """Of two lists of sizes: the sum of the logarithms of their ratios."""
    return sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(some, others, strict=True))


def _mark(choice: Choice) -> tuple[object, ...]:
    return choice.generator, choice.version, choice.threads, tuple(sorted(choice.knobs))


def _mark_of(line: Line) -> tuple[object, ...]:
    r = line.record
    return r.generator, r.version, r.threads, tuple(sorted(r.knobs.items()))
