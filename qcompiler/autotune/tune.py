"""Models, options, seconds, places -> a file of records with which they are faster, and a report.

First the plans as wholes (threads, parts of a batch), then the kernels; at last every model is
compiled with what was found and measured against the one without. What does not make it faster is
not chosen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from qcompiler.artifact.artifact import Artifact
from qcompiler.autotune import check
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.measure import SEED, Bench, Result
from qcompiler.autotune.places import Gone, Place
from qcompiler.autotune.request import Tuning
from qcompiler.autotune.search import Search, State
from qcompiler.autotune.tasks import Task, tasks_of
from qcompiler.autotune.whole import Pair, Verdict
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Error
from qcompiler.kernels.registry import Record
from qcompiler.plan.batches import parts_of
from qcompiler.plan.plan import Plan
from qcompiler.plan.sharing import VERSION, WHOLE, key_of
from qcompiler.tune.journal import Journal
from qcompiler.tune.records import CHOSEN, FAILED, MEASURED, Key, Line, Measured, described
from qcompiler.version import __version__

log = logging.getLogger(__name__)

_PLANS, _SEARCH, _SETTLE = 0.15, 0.65, 0.15
"""Shares of the time: for plans, for kernels, for the best of these again; what is left of all goes
to whole models."""
_LEAST_SECONDS = 0.1
_WRONG = "wrong: "
_STRONG = 0.95
"""Where all that was found makes a model no faster, what makes its kernel so much faster may."""


@dataclass(eq=False)
class Subject:
    """A model that is tuned: its compilation, its plan without records, what was found."""

    made: Compilation
    plan: Plan
    line: Line | None = None
    """What is best for its plan as a whole."""
    verdict: Verdict | None = None
    build_seconds: float = 0.0
    """That compiling it takes."""
    chosen: int = 0
    """Records that make it faster."""

    @property
    def name(self) -> str:
        """The model's."""
        return self.plan.graph.name

    @property
    def target(self) -> str:
        """The name of its device."""
        given = self.made.options.target
        return given if isinstance(given, str) else given[0]


@dataclass
class Report:
    """What a run found."""

    subjects: list[Subject]
    search: Search
    seconds: float = 0.0
    wrong: list[Path] = field(default_factory=list)
    """Reproducers of candidates that were wrong."""
    interrupted: bool = False


Told = Callable[[Search, float], None]
"""Told of news, with the seconds that are left."""


class Tuner:
    """A run of it."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        tuning: Tuning,
        journal: Journal,
        places: Sequence[Place],
        told: Told | None = None,
    ) -> None:
        self.subjects, self.tuning, self.journal = list(subjects), tuning, journal
        self.benches = [Bench(p, Builder()) for p in places]
        self.host = places[0].host
        self.compiler = f"qcompiler {__version__}, tvm {version('apache-tvm')}"
        self.wrong: list[Path] = []
        self._told = told or (lambda search, left: None)
        self._begin = time.monotonic()

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *error: object) -> None:
        for bench in self.benches:
            bench.close()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.tuning.time - (time.monotonic() - self._begin)

    def run(self) -> Report:
        """All of it. Its time begins when the models are compiled as they are."""
        for subject in self.subjects:
            begin = time.monotonic()
            _ = subject.made.built
            subject.build_seconds = time.monotonic() - begin
        self._begin = time.monotonic()
        if self.tuning.plans and not self.tuning.only:
            for subject in self.subjects:
                self._tune_plan(subject, _PLANS * self.tuning.time / len(self.subjects))
        search = self._kernels()
        self._confirm(search)
        seconds = time.monotonic() - self._begin
        return Report(self.subjects, search, seconds, self.wrong, search.interrupted)

    def _kernels(self) -> Search:
        plans = [(s.plan, s.target) for s in self.subjects]
        tasks = tasks_of(plans, self.tuning.only)
        search = Search(tasks, self.benches, self._saw, lambda s: self._told(s, self.left))
        for line, result in remembered(self.journal.found, tasks, self.host, self.compiler):
            search.remember(line.key, result)
        usable = [t for t in tasks if t.choices]
        if usable:
            search.run(max(_LEAST_SECONDS, self.left * _SEARCH))
            stopped = search.interrupted
            search.settle(max(_SETTLE * self.tuning.time, 1.0))
            search.interrupted |= stopped
        return search

    def _saw(self, task: Task, result: Result) -> None:
        """Write a result down at once; keep what is needed to see a wrong one again."""
        if result.wrong:
            folder = self.journal.path.with_suffix(".wrong")
            path = check.keep(task, result.choice, result.why, SEED, folder)
            self.wrong.append(path)
            log.error("%s: %s is wrong: %s; %s", task.names[0], result.choice, result.why, path)
        line = MEASURED if result.counts else FAILED
        self.journal.add(self._line(line, task, result))

    def _line(self, line: str, task: Task, result: Result) -> Line:
        return Line(
            line,
            task.key,
            result.choice.record(result.seconds),
            result.ratio,
            result.noise,
            task.names[0],
            f"{_WRONG}{result.why}" if result.wrong else result.why,
            self.host,
            self.compiler,
        )

    def _tune_plan(self, subject: Subject, seconds: float) -> None:
        """Try other threads and parts of a batch for a whole plan, as far as so long allows."""
        end = time.monotonic() + seconds - subject.build_seconds
        whole_key = Key(key_of(subject.made.lowered), described(subject.made.device))
        for record in plan_choices(subject):
            if time.monotonic() > end:
                return
            line = Line(CHOSEN, whole_key, record, step=subject.name, host=self.host)
            verdict = self._compared(subject, Measured((line,)), min(1.0, seconds / 4))
            if verdict is None:
                continue
            seen = replaced(line, verdict, self.compiler)
            self.journal.add(Line(**{**vars(seen), "line": MEASURED}))
            best = 1.0 if subject.line is None else subject.line.ratio
            if verdict.faster and verdict.ratio + verdict.noise < best:
                subject.line = seen
        if subject.line is not None:
            subject.plan = subject.made.planned(Measured((subject.line,)))

    def _compared(self, subject: Subject, records: Measured, seconds: float) -> Verdict | None:
        """A model with records, measured against the one without; None where it cannot be."""
        try:
            after = assemble(subject.made.planned(records))
        except Error as e:
            log.info("%s cannot be compiled so: %s", subject.name, e)
            return None
        bench = self.benches[0]
        folder = bench.builder.folder
        usual = saved(subject.made.built, folder / "before.qc")
        mine = saved(after, folder / "after.qc")
        try:
            return bench.start(lambda: _compare(bench.place, usual, mine, seconds)).result()
        except Gone as e:
            self.benches.remove(bench)
            bench.close()
            if not self.benches:
                raise Error(f"nothing is left to measure on: {e}", where=bench.place.name) from e
            log.warning("%s is lost: %s", bench.place.name, e)
            return self._compared(subject, records, seconds)

    def _confirm(self, search: Search) -> None:
        """Compile every model with what was found, and choose what makes all of them faster."""
        won = [s for s in search.states if s.final is not None]
        refused: set[Key] = set()
        for subject in self.subjects:
            kept = self._kept(subject, won)
            refused |= {s.task.key for s in won if _of(subject, s)} - {s.task.key for s in kept}
        chosen = [s for s in won if s.task.key not in refused]
        lines = [self._chosen(s) for s in chosen]
        lines += [s.line for s in self.subjects if s.line is not None]
        known = self.journal.found.chosen
        for state in search.states:  # what was chosen before, and is not any more
            if state.task.key in known and state not in chosen and state.results:
                usual = Result(state.task.default, 1.0, seconds=state.seconds)
                lines.append(self._line(CHOSEN, state.task, usual))
        self.journal.add(*lines)

    def _kept(self, subject: Subject, won: Sequence[State]) -> list[State]:
        """Of the kernels that won those that make a model faster; its verdict is noted."""
        mine = [s for s in won if _of(subject, s)]
        strong = [s for s in mine if s.ratio < _STRONG]
        tries = [mine, *([strong] if len(strong) < len(mine) else [])]
        own = () if subject.line is None else (subject.line,)
        for some in tries:
            if not some and not own:
                break
            records = Measured((*own, *map(self._chosen, some)))
            seconds = max(self.left / len(self.subjects) / len(tries), 1.0)
            subject.verdict = self._compared(subject, records, min(seconds, 10.0))
            if subject.verdict is not None and subject.verdict.faster:
                subject.chosen = len(records.lines)
                return list(some)
        subject.line = None
        return []

    def _chosen(self, state: State) -> Line:
        assert state.final is not None
        return self._line(CHOSEN, state.task, state.final)


def subject_of(made: Compilation) -> Subject:
    """A compilation -> what is tuned of it: the plan that it has without records."""
    return Subject(made, made.planned(None))


def plan_choices(subject: Subject) -> list[Record]:
    """Other numbers of threads, and of parts of a batch, than a plan has."""
    plan, device = subject.plan, subject.made.device
    threads = {device.threads >> i for i in range(device.threads.bit_length())}
    found = [(t, plan.parts) for t in sorted(threads - {plan.device.threads})]
    fitting = parts_of(plan.graph)
    near = [p for p in fitting if p != plan.parts and plan.parts / 4 <= p <= plan.parts * 4]
    found += [(plan.device.threads, p) for p in near]
    return [Record(WHOLE, VERSION, {"parts": p}, 0.0, t) for t, p in found]


def remembered(
    found: Measured, tasks: Sequence[Task], host: str, compiler: str
) -> list[tuple[Line, Result]]:
    """Of a file's lines those that need not be measured again: of the same hardware and compiler.
    What was wrong is tried again, and reported again.
    """
    ways = {(t.key, _mark(c.record(0.0))): c for t in tasks for c in t.choices}
    results = []
    for line in found.lines:
        choice = ways.get((line.key, _mark(line.record)))
        if choice is None or line.line == CHOSEN or (line.host, line.compiler) != (host, compiler):
            continue
        if line.why.startswith(_WRONG):
            continue
        why = line.why or "it failed"
        what = "" if line.line == MEASURED else why
        seconds = line.record.seconds
        results.append((line, Result(choice, line.ratio, line.noise, seconds, what)))
    return results


def _mark(record: Record) -> tuple[object, ...]:
    knobs = tuple(sorted(record.knobs.items()))
    return record.generator, record.version, record.threads, knobs


def replaced(line: Line, verdict: Verdict, compiler: str) -> Line:
    """A line with what was measured of it."""
    r = line.record
    seconds = verdict.seconds * verdict.ratio
    record = Record(r.generator, r.version, r.knobs, seconds, r.threads)
    more = {"ratio": verdict.ratio, "noise": verdict.noise, "compiler": compiler}
    return Line(**{**vars(line), "record": record, **more})


def saved(artifact: Artifact, path: Path) -> Path:
    """An artifact -> its file."""
    artifact.save(path)
    return path


def _compare(place: Place, before: Path, after: Path, seconds: float) -> Verdict:
    with Pair(place) as pair:
        return pair.compare(before, after, seconds)


def _of(subject: Subject, state: State) -> bool:
    """Is a task one of a model's?"""
    names = {s.name for s in subject.plan.steps}
    device = described(subject.plan.device)
    return state.task.key.device == device and not names.isdisjoint(state.task.names)
