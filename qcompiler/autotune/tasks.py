"""Plans -> what there is to tune: every region once, with all ways to make its kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest

from qcompiler.errors import Error
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Offer, Record, Region, asked, offered, setting
from qcompiler.plan.choose import APART
from qcompiler.plan.places import Place
from qcompiler.plan.plan import Plan, Step
from qcompiler.plan.regions import split
from qcompiler.tune.records import APART_VERSION, Key, described

MOST_EVICTED = 64 << 20
NARROW = 3
"""This many of a generator's candidates for fewer threads, the best, are tried."""


@dataclass(frozen=True)
class Choice:
    """A way to make a region's kernel, and the seconds that it is predicted to take."""

    generator: str
    version: int
    knobs: tuple[tuple[str, int | str], ...] = ()
    threads: int = 0
    """That it is made for; 0: all that the device has."""
    seconds: float = field(default=0.0, compare=False)

    def record(self, seconds: float) -> Record:
        """What a file says of it."""
        return Record(self.generator, self.version, dict(self.knobs), seconds, self.threads)

    def __str__(self) -> str:
        knobs = " ".join(f"{k}={v}" for k, v in self.knobs)
        some = f" threads={self.threads}" if self.threads else ""
        return f"{self.generator} {knobs}{some}".strip()


@dataclass(frozen=True, eq=False)
class Task:
    """A region of one or more models on a device."""

    region: Region
    """Of the first graph that it was found in, with its constants."""
    key: Key
    device: Device
    target: str
    """The name that gives the device."""
    names: tuple[str, ...]
    """Of the steps that it is the kernel of; one for each time that it runs."""
    default: Choice
    choices: tuple[Choice, ...]
    """All ways but the default, the best predicted first."""
    evicted: int
    """Distinct bytes that the model touches between two runs of the step."""
    ages: tuple[int, ...] = ()
    """For what it reads besides constants, then for what it writes: distinct bytes that the model
    touches between the last use of that memory and the step; the median where it runs several
    times.
    """

    @property
    def count(self) -> int:
        """Times that it runs, in all models."""
        return len(self.names)

    @property
    def seconds(self) -> float:
        """Predicted, of all runs."""
        return self.count * self.default.seconds


def tasks_of(plans: Iterable[tuple[Plan, str]], only: Sequence[str] = ()) -> list[Task]:
    """Plans, made without records, and the name of each one's target -> tasks, the longest first.

    Raises Error for one of `only` that names no step.
    """
    found: dict[Key, Task] = {}
    seen: dict[Key, list[tuple[int, ...]]] = {}
    unused = set(only)
    for plan, target in plans:
        touched = evicted(plan)
        for i, step in enumerate(plan.steps):
            hits = {w for w in only if _names(w, step.name)}
            unused -= hits
            if only and not hits:
                continue
            made = _task(step, plan.device, target, touched)
            if made is not None:
                known = found.get(made.key, made)
                more = (step.name,) * plan.parts
                names = more if known is made else (*known.names, *more)
                seen.setdefault(made.key, []).append(_ages(plan, i, touched))
                found[made.key] = replace(known, names=names)
    if unused:
        raise Error(f"no step is called {min(unused)!r}", where="--only", hint="inspect --plan")
    made_of = [replace(t, ages=_medians(seen[key])) for key, t in found.items()]
    return sorted(made_of, key=lambda t: -t.seconds)


def evicted(plan: Plan) -> int:
    """Distinct bytes that a plan's run touches between two runs of a step, as far as they matter:
    none where all stays near the core, no more than throw everything out of the last cache.
    """
    touched = _distinct([p for s in plan.steps for p in _touched(s)])
    device = plan.device
    assert isinstance(device, Cpu), "only kernels of CPUs are tuned"
    if touched <= device.l2_bytes // 2:
        return 0
    return min(touched, 2 * device.l3_bytes, MOST_EVICTED)


def _ages(plan: Plan, at: int, most: int) -> tuple[int, ...]:
    """Of what a step reads besides constants, and of what it writes."""
    step = plan.steps[at]
    read = [p for p, n in zip(step.operands, step.region.inputs, strict=True) if not n.is_constant]
    return tuple(min(_age(plan, at, place), most) for place in (*read, step.output))


def _age(plan: Plan, at: int, place: Place) -> int:
    """Distinct bytes touched since some step before used the place's memory; the caller has written
    inputs just before the first step.
    """
    since: list[Place] = []
    for step in reversed(plan.steps[:at]):
        if any(_overlap(place, p) for p in _touched(step)):
            return _distinct(since)
        since += _touched(step)
    return _distinct(since) if place.space == "input" else MOST_EVICTED


def _touched(step: Step) -> tuple[Place, ...]:
    return (*step.operands, *step.writes)


def _overlap(a: Place, b: Place) -> bool:
    (one, begin, end), (other, first, last) = _span(a), _span(b)
    return one == other and begin < last and first < end


def _distinct(places: Iterable[Place]) -> int:
    """Bytes of all these places, each byte once."""
    found, space, reached = 0, "", 0
    for where, begin, end in sorted(map(_span, places)):
        if where != space:
            space, reached = where, 0
        found += max(end - max(begin, reached), 0)
        reached = max(reached, end)
    return found


def _span(place: Place) -> tuple[str, int, int]:
    """A place's memory, and its first byte and the one after its last."""
    if place.space in ("input", "output"):
        return f"{place.space} {place.offset}", 0, place.bytes
    return place.space, place.offset, place.offset + place.bytes


def _medians(seen: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted(ages)[len(ages) // 2] for ages in zip(*seen, strict=True))


def _names(word: str, step: str) -> bool:
    try:
        return word == step or re.fullmatch(word, step) is not None
    except re.error as e:
        raise Error(f"{word!r} is no regular expression: {e}", where="--only") from e


def _task(step: Step, device: Device, target: str, touched: int) -> Task | None:
    """None where nothing was chosen, or the step runs side by side with others, for one thread."""
    how = step.decision
    if how is None or how.chosen is None or step.branch is not None:
        return None
    region = sealed(step.region, device)
    default = _choice(how.chosen, region, device, 0)
    others = [c for c in choices(step.region, device) if c != default]
    others.sort(key=lambda c: c.seconds)
    key = Key(region.key, described(device))
    return Task(step.region, key, device, target, (), default, tuple(others), touched)


def choices(region: Region, device: Device) -> list[Choice]:
    """All ways to make a region's kernel: every candidate of every generator, the best ones for
    fewer threads, and kernels of its own for each of its parts.
    """
    handed = sealed(region, device)
    found = [
        _choice(Offer(g.name, c), handed, device, 0)
        for g in asked(handed, device)
        for c in offered(g, handed, device)
    ]
    threads = device.threads // 2
    while threads:
        for g in asked(handed, device):
            few = nsmallest(NARROW, offered(g, handed, device, threads), key=lambda c: c.seconds)
            found += [_choice(Offer(g.name, c), handed, device, threads) for c in few]
        threads //= 2
    return [*found, *_apart(region, device)]


def _choice(offer: Offer, region: Region, device: Device, threads: int) -> Choice:
    (version,) = (g.version for g in asked(region, device) if g.name == offer.generator)
    knobs = tuple(setting(offer.candidate.knobs).items())
    return Choice(offer.generator, version, knobs, threads, offer.candidate.seconds)


def _apart(region: Region, device: Device) -> list[Choice]:
    """The region in parts, each as it is predicted to be fastest; none where one has no kernel."""
    total = 0.0
    for part in split(region):
        handed = sealed(part, device)
        found = [c.seconds for g in asked(handed, device) for c in offered(g, handed, device)]
        if not found:
            return []
        total += min(found)
    return [Choice(APART, APART_VERSION, seconds=total)] if total else []
