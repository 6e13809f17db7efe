"""Models, options, seconds, places -> a file of records with which they are faster, and a report.

First the models as wholes (nodes in float, passes, threads, parts of a batch), then the kernels; at
last every model is compiled with what was found and measured against the one without. What does not
make it faster is not chosen.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from math import inf
from pathlib import Path

from qcompiler.artifact.artifact import Artifact
from qcompiler.autotune import check
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.inside import inside
from qcompiler.autotune.measure import SEED, Bench, Result
from qcompiler.autotune.places import Gone, Place, Runs
from qcompiler.autotune.request import Tuning
from qcompiler.autotune.search import Search, State
from qcompiler.autotune.sized import Sized
from qcompiler.autotune.tasks import Task, tasks_of
from qcompiler.autotune.transfer import hints
from qcompiler.autotune.variants import (
    Variant,
    Without,
    float_artifact,
    in_float,
    plan_choices,
    variant,
    without_of,
    without_passes,
)
from qcompiler.autotune.whole import Pair, Verdict, inputs_of
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Error
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Record
from qcompiler.plan.plan import Plan
from qcompiler.plan.sharing import key_of
from qcompiler.tune.journal import Journal
from qcompiler.tune.records import (
    CHOSEN,
    FAILED,
    MEASURED,
    Key,
    Line,
    Measured,
    described,
    model_key,
)
from qcompiler.version import __version__

log = logging.getLogger(__name__)

_PLANS, _SEARCH, _SETTLE = 0.2, 0.65, 0.15
"""Shares of the time: for plans, for kernels, for the best of these again; what is left of all goes
to whole models."""
_LEAST_SECONDS = 0.1
_WRONG = "wrong: "
_STRONG = 0.95
"""Where all that was found makes a model no faster, what makes its kernel so much faster may."""


@dataclass(eq=False)
class Subject:
    """A model that is tuned, and what was found."""

    base: Compilation
    """As it is compiled without records."""
    made: Compilation
    """As it is best compiled."""
    plan: Plan
    """Of that, without records of kernels."""
    lines: dict[Key, Line] = field(default_factory=dict)
    """What makes it so."""
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
        given = self.base.options.target
        return given if isinstance(given, str) else given[0]

    @property
    def device(self) -> str:
        """The device, as records have it."""
        return described(self.base.device)

    @property
    def keys(self) -> tuple[Key, Key]:
        """What records of its graph, and of its plan, are of."""
        graph = model_key(self.base.float_graph, self.precision)
        return Key(graph, self.device), Key(key_of(self.made.lowered), self.device)

    @property
    def whole(self) -> bool:
        """May it be compiled otherwise as a whole? Not where sizes are open: what makes one faster
        need not make the others so.
        """
        return self.base.opened is None and not isinstance(self.base, Sized)

    @property
    def precision(self) -> str:
        """That it is compiled with."""
        return self.base.options.precision


@dataclass
class Report:
    """What a run found."""

    subjects: list[Subject]
    search: Search
    seconds: float = 0.0
    wrong: list[Path] = field(default_factory=list)
    """Reproducers of candidates that were wrong."""
    interrupted: bool = False


Notify = Callable[[Search, float], None]
"""Notify of news, with the seconds that are left."""


class Tuner:
    """A run of it."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        tuning: Tuning,
        journal: Journal,
        places: Sequence[Place],
        notify: Notify | None = None,
    ) -> None:
        self.subjects, self.tuning, self.journal = list(subjects), tuning, journal
        self.benches = [Bench(p, Builder()) for p in places]
        self.host = places[0].host
        self.compiler = f"qcompiler {__version__}, tvm {version('apache-tvm')}"
        self.wrong: list[Path] = []
        self._notify = notify or (lambda search, left: None)
        self._names = itertools.count()
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
            _ = subject.base.built
            subject.build_seconds = time.monotonic() - begin
            self._adopt(subject)
        self._begin = time.monotonic()
        if self.tuning.plans and not self.tuning.only:
            for subject in filter(lambda s: s.whole, self.subjects):
                self._tune_whole(subject, _PLANS * self.tuning.time / len(self.subjects))
        search = self._kernels()
        self._confirm(search)
        seconds = time.monotonic() - self._begin
        return Report(self.subjects, search, seconds, self.wrong, search.interrupted)

    def _adopt(self, subject: Subject) -> None:
        """Begin where an earlier run has arrived with a model as a whole."""
        if not subject.whole:
            return
        known = self.journal.found.chosen
        graph, _ = subject.keys
        if graph in known and known[graph].record.knobs:
            subject.made = variant(subject.base, without_of(known[graph].record)).made
        subject.lines = {k: known[k] for k in subject.keys if k in known and known[k].record.knobs}
        if subject.lines:
            subject.plan = subject.made.planned(Measured(tuple(subject.lines.values())))

    def _kernels(self) -> Search:
        plans = [(s.plan, s.target) for s in self.subjects]
        tasks = tasks_of(plans, self.tuning.only)
        search = Search(tasks, self.benches, self._on_result, lambda s: self._notify(s, self.left))
        for line, result in remembered(self.journal.found, tasks, self.host, self.compiler):
            search.remember(line.key, result)
        search.fit()
        known = self.journal.found.chosen
        for state in search.states:
            state.hints = hints(state.task, known.values())
        usable = [t for t in tasks if t.choices]
        if usable:
            search.run(max(_LEAST_SECONDS, self.left * _SEARCH))
            stopped = search.interrupted
            search.settle(max(_SETTLE * self.tuning.time, 1.0))
            search.interrupted |= stopped
        return search

    def _on_result(self, task: Task, result: Result) -> None:
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

    def _tune_whole(self, subject: Subject, seconds: float) -> None:
        """Try other ways to compile a whole model, as far as `seconds` allow: first what becomes of
        its graph, then the plan.
        """
        end = time.monotonic() + seconds - subject.build_seconds
        key, _ = subject.keys
        for other in self._variants(subject, end):
            if other is not None and self._better(subject, other.made, key, other.record, seconds):
                subject.made, subject.plan = other.made, other.made.planned()
            if time.monotonic() > end:
                break
        _, key = subject.keys
        for record in plan_choices(subject.made, subject.plan):
            if time.monotonic() > end:
                break
            self._better(subject, subject.made, key, record, seconds)
        subject.plan = subject.made.planned(Measured(tuple(subject.lines.values())))

    def _variants(self, subject: Subject, end: float) -> Iterator[Variant | None]:
        """What may become of a graph; nothing where there is no time for it."""
        made, (key, _) = subject.base, subject.keys
        if time.monotonic() > end:
            return
        floats = float_artifact(made)
        if floats is not None:
            steps = [self._steps(artifact) for artifact in (made.built, floats)]
            yield from in_float(made, *steps)

        def best() -> tuple[Without, Plan]:
            line = subject.lines.get(key)
            return without_of(None if line is None else line.record), subject.plan

        yield from without_passes(made, best)

    def _better(
        self, subject: Subject, made: Compilation, key: Key, record: Record, seconds: float
    ) -> bool:
        """Measure a model compiled otherwise; what is faster than all before is kept."""
        line = Line(CHOSEN, key, record, step=subject.name, host=self.host, compiler=self.compiler)
        same = {k: x for k, x in subject.lines.items() if k.region.split()[0] != _kind(key)}
        known = self._known(line)
        if known is None:
            records = Measured((*same.values(), line))
            verdict = self._compared(subject, made, records, min(1.0, seconds / 4))
            if verdict is None:
                return False
            why = f"{_WRONG}{verdict.wrong}" if verdict.wrong else ""
            known = replace(measured(line, verdict), line=FAILED if why else MEASURED, why=why)
            self.journal.add(known)
        best = min((x.ratio for x in subject.lines.values()), default=1.0)
        if known.why or known.ratio + known.noise >= best:
            return False
        subject.lines = {**same, key: replace(known, line=CHOSEN)}
        return True

    def _known(self, line: Line) -> Line | None:
        """What an earlier run measured of a whole model that is compiled so."""
        wanted = line.key, _mark(line.record), line.host, line.compiler
        return next(
            (
                x
                for x in reversed(self.journal.found.lines)
                if x.line == MEASURED and (x.key, _mark(x.record), x.host, x.compiler) == wanted
            ),
            None,
        )

    def _steps(self, artifact: Artifact) -> dict[str, float]:
        """Seconds of a model's steps by name."""
        bench = self.benches[0]
        name = f"steps{next(self._names)}.qc"  # a place keeps the last artifact of a name
        path = saved(artifact, bench.builder.folder / name)
        inputs = inputs_of(path)
        try:
            run = partial(bench.place.run, path, inputs, Runs(rounds=9, limit=60.0))
            ran = bench.start(run).result()
        except (Gone, Error) as e:
            log.info("its steps were not timed: %s", e)
            return {}
        found: dict[str, float] = {}
        for step, taken in zip(artifact.manifest.variants[0].steps, ran.steps, strict=True):
            found[step.name] = found.get(step.name, 0.0) + taken
        return found

    def _compared(
        self, subject: Subject, made: Compilation, records: Measured, seconds: float
    ) -> Verdict | None:
        """A model compiled with records, measured against the one that is compiled without; None
        where it cannot be.
        """
        try:
            after = assemble(made.planned(records))
        except Error as e:
            log.info("%s cannot be compiled so: %s", subject.name, e)
            return None
        bench = self.benches[0]
        folder = bench.builder.folder
        usual = saved(subject.base.built, folder / "before.qc")
        mine = saved(after, folder / "after.qc")
        try:
            rounded = made.settled.options != subject.base.settled.options
            run = partial(_compare, bench.place, usual, mine, seconds, rounded=rounded)
            return bench.start(run).result()
        except Gone as e:
            self.benches.remove(bench)
            bench.close()
            if not self.benches:
                raise Error(f"nothing is left to measure on: {e}", where=bench.place.name) from e
            log.warning("%s is lost: %s", bench.place.name, e)
            return self._compared(subject, made, records, seconds)

    def _confirm(self, search: Search) -> None:
        """Compile every model with what was found, and choose what makes all of them faster. What
        an earlier run chose, and this one had no time for, stands with it.
        """
        known = self.journal.found.chosen
        found: dict[Key, Line] = {}
        for state in search.states:
            key = state.task.key
            if state.final is not None:
                found[key] = self._chosen(state)
            elif not state.settled and key in known and known[key].ratio < 1:
                found[key] = known[key]
        refused: set[Key] = set()
        for subject in self.subjects:
            own = keys_of(subject.plan)
            mine = [line for key, line in found.items() if key in own]
            kept = {x.key for x in self._kept(subject, mine)}
            refused |= {x.key for x in mine} - kept
        lines = [x for k, x in found.items() if k not in refused]
        lines += [x for s in self.subjects for x in s.lines.values()]
        lines += self._defaults(search, {x.key for x in lines})
        self.journal.add(*(x for x in lines if x != known.get(x.key)))

    def _defaults(self, search: Search, chosen: set[Key]) -> Iterator[Line]:
        """Lines that take back what an earlier run chose."""
        known = self.journal.found.chosen
        for state in search.states:
            key = state.task.key
            if key in known and key not in chosen and known[key].ratio < 1:
                usual = Result(state.task.default, 1.0, seconds=state.seconds)
                yield self._line(CHOSEN, state.task, usual)
        for subject in self.subjects:
            for key in subject.keys if subject.whole else ():
                if key in known and key not in chosen and known[key].record.knobs:
                    made = replace(known[key].record, knobs={}, threads=0, seconds=0.0)
                    yield replace(known[key], record=made, ratio=1.0, noise=0.0)

    def _kept(self, subject: Subject, mine: Sequence[Line]) -> Sequence[Line]:
        """Of the kernels that won those that make a model fastest; its verdict is noted. What wins
        is measured again in new processes, and has to win there: the best of several tries may be
        luck, as may be where a process has its memory.
        """
        own = tuple(subject.lines.values())
        tries = self._tries(subject, own, mine)
        comparisons = len(self.subjects) * max(2 * len(tries), 1)
        seconds = min(max(self.left / comparisons, 1.0), 10.0)

        def ratio(some: Sequence[Line]) -> float:
            """Of the model's times, in two new processes; infinite where it is not faster."""
            verdict = self._compared(subject, subject.made, Measured((*own, *some)), seconds)
            subject.verdict = verdict or subject.verdict
            return verdict.ratio if verdict is not None and verdict.faster else inf

        won = [x for x in ((ratio(some), some) for some in tries) if x[0] < inf]
        for _, some in sorted(won, key=lambda x: x[0]):
            if ratio(some) < inf:
                subject.chosen = len(own) + len(some)
                return some
        subject.lines = {}
        return []

    def _tries(
        self, subject: Subject, own: Sequence[Line], mine: Sequence[Line]
    ) -> list[Sequence[Line]]:
        """What may make a model faster: all kernels that won, those that also do inside it, those
        that won by much, none but what is known of the whole.
        """
        if not mine:
            return [[]] if own else []
        strong = [x for x in mine if x.ratio < _STRONG]
        found = [list(mine), self._inside(subject, own, mine), strong, *([[]] if own else [])]
        return [x for i, x in enumerate(found) if (x or own) and x not in found[:i]]

    def _inside(self, subject: Subject, own: Sequence[Line], mine: Sequence[Line]) -> list[Line]:
        try:
            return inside(self.benches[0], subject.made, own, mine)
        except Gone:  # the comparison that follows says so
            return list(mine)

    def _chosen(self, state: State) -> Line:
        assert state.final is not None
        return self._line(CHOSEN, state.task, state.final)


def subject_of(made: Compilation) -> Subject:
    """A compilation -> what is tuned of it: the plan that it has without records. Error for a GPU:
    only kernels of CPUs are tuned.
    """
    if not isinstance(made.device, Cpu):
        raise Error(f"kernels of GPUs cannot be tuned yet: {made.device.name}", where="--target")
    return Subject(made, made, made.planned())


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


def measured(line: Line, verdict: Verdict) -> Line:
    """A line with what was measured of it."""
    record = replace(line.record, seconds=verdict.seconds * verdict.ratio)
    return replace(line, record=record, ratio=verdict.ratio, noise=verdict.noise)


def _kind(key: Key) -> str:
    """What a record of a whole model is of: its graph or its plan."""
    return key.region.split()[0]


def saved(artifact: Artifact, path: Path) -> Path:
    """An artifact -> its file."""
    artifact.save(path)
    return path


def _compare(place: Place, before: Path, after: Path, seconds: float, *, rounded: bool) -> Verdict:
    with Pair(place) as pair:
        return pair.compare(before, after, seconds, rounded=rounded)


def keys_of(plan: Plan) -> set[Key]:
    """What records of a plan's kernels are of."""
    device = described(plan.device)
    return {Key(sealed(s.region, plan.device).key, device) for s in plan.steps}
