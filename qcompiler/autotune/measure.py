"""Choices of a task's kernel -> what each takes, of what is chosen without records.

All of one trial run in one process, in turn, the default first and last; the whole is repeated, and
what counts of each time is its ratio to the default's beside it. A trial that crashes or hangs is
taken apart: each of its choices runs alone, beside the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeVar

from qcompiler.autotune import check, region_file, trial
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.places import Gone, Place, Ran, Runs
from qcompiler.autotune.tasks import Choice, Task
from qcompiler.errors import Error, Skip
from qcompiler.ir import Array

T = TypeVar("T")

REQUESTS = 3
"""Ratios that are taken of every choice."""
DRIFT = 0.03
"""Where the default's two times differ by more, they are taken again."""
AGAIN = 3
"""So many times at most."""
_TURN_SECONDS, _MOST_ROUNDS, _LEAST_ROUNDS = 0.04, 20, 3
_STARTING_SECONDS = 15.0
"""What opening an artifact may take on a busy machine, and a hang costs at least."""
_DEFAULT_SECONDS = 120.0
_PATIENCE = 10.0
"""Times that a trial may take longer than if all of it were as fast as the default."""
FAULTS = 3
"""A place where the default fails this many times in a row is of no use."""
SEED = 7


@dataclass(frozen=True)
class Result:
    """What was found of a choice: `ratio` and `noise` as of records.Line; `wrong`: its outputs."""

    choice: Choice
    ratio: float = 0.0
    noise: float = 0.0
    seconds: float = 0.0
    why: str = ""
    """Why it was thrown away."""
    wrong: bool = False
    code: str = ""
    drifted: bool = False

    @property
    def counts(self) -> bool:
        """Was it measured?"""
        return not self.why


@dataclass(frozen=True)
class Baseline:
    """What is chosen without records: seconds of the kernel, and of all that a round does for one
    choice; what it reads and makes.
    """

    seconds: float
    round_seconds: float
    inputs: Mapping[str, Array] = field(repr=False)
    output: Array = field(repr=False)


class Bench:
    """A place, and a process that builds for it. One thread of its own uses both, as long as it
    lives: a child process ends with the thread that started it.
    """

    def __init__(self, place: Place, builder: Builder) -> None:
        self.place, self.builder = place, builder
        self.known: dict[Task, Baseline] = {}
        self.codes: dict[Task, dict[str, Result]] = {}
        self.faults = 0
        """In a row, that are the place's."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=place.name)

    def start(self, do: Callable[[], T]) -> Future[T]:
        """Have its thread do something."""
        return self._thread.submit(do)

    def close(self) -> None:
        """End what runs, and the thread."""
        self.builder.close()
        self.place.close()
        self._thread.shutdown(cancel_futures=True)

    def baseline(self, task: Task) -> Baseline:
        """The default, measured once. Raises Error where it fails itself."""
        if task not in self.known:
            artifact, places = self.builder.trial(task, [task.default])
            try:
                self.known[task] = self._baseline(task, artifact, places)
            finally:
                artifact.unlink(missing_ok=True)
        return self.known[task]

    def _baseline(
        self, task: Task, artifact: Path, places: Sequence[trial.Place | Skip | None]
    ) -> Baseline:
        (mine,) = places
        assert isinstance(mine, trial.Place)
        inputs = trial.values(region_file.alone(task.region), SEED)
        try:
            ran = self.place.run(artifact, inputs, Runs(_DEFAULT_SECONDS, rounds=_LEAST_ROUNDS))
        except Error as e:
            raise Fault(e.what, where=e.where, hint=e.hint) from e
        seconds = sum(ran.steps[s] for s in mine.steps)
        meant = check.meaning(task.region, inputs)
        output = ran.outputs[mine.output]
        if meant is not None and (why := check.difference(output, meant, task.region)):
            raise Wrong(why)
        return Baseline(seconds, sum(ran.steps) / 2, inputs, output)

    def results(
        self,
        task: Task,
        choices: Sequence[Choice],
        requests: int = REQUESTS,
        *,
        most: int = 0,
        anew: bool = False,
    ) -> list[Result]:
        """The result of each choice, or of at most `most` of different code; those of code
        that was measured take its result, unless all is to be measured `anew`. Raises Gone where
        the place is lost.
        """
        codes = {} if anew else self.codes.setdefault(task, {})
        try:
            return self._together(task, choices, requests, codes, most)
        except Wrong:
            raise
        except Error as e:
            self._demand_sound(task, e)
            if len(choices) == 1:
                return [Result(choices[0], why=e.what)]
        choices = choices[: most or None]
        return [r for c in choices for r in self.results(task, [c], requests, anew=anew)]

    def _demand_sound(self, task: Task, fault: Error) -> None:
        """After a fault: the default has to run, or the place is lost."""
        for left in reversed(range(FAULTS)):
            self.known.pop(task, None)
            try:
                self.baseline(task)
                return
            except Wrong:
                raise
            except Error as e:
                if not left:
                    raise Gone(f"nothing runs there any more: {e.what}") from fault

    def _together(
        self,
        task: Task,
        choices: Sequence[Choice],
        requests: int,
        codes: dict[str, Result],
        most: int,
    ) -> list[Result]:
        base = self.baseline(task)
        artifact, places = self.builder.trial(task, [task.default, *choices], list(codes), most)
        count = len({p.output for p in places if isinstance(p, trial.Place)}) + 1
        try:
            runs = self._runs(artifact, base, count, requests, places[0])
        finally:
            artifact.unlink(missing_ok=True)
        found = []
        for choice, place in zip(choices, places[1:], strict=True):
            if place is None:
                continue
            if isinstance(place, Skip):
                result = Result(choice, why=place.reason)
            elif place.output < 0:
                result = _as(codes[place.code], choice)
            else:
                result = _judged(task, choice, place, runs, base)
                codes[place.code] = result
            found.append(result)
        return found

    def _runs(
        self,
        artifact: Path,
        base: Baseline,
        count: int,
        requests: int,
        default: trial.Place | Skip | None,
    ) -> list[tuple[Ran, float, bool]]:
        """Requests of an artifact of `count` choices: what each gave, the default's seconds in it,
        and whether these drifted.
        """
        assert isinstance(default, trial.Place)
        round_seconds = count * base.round_seconds
        rounds = int(_TURN_SECONDS / max(round_seconds, 1e-9))
        rounds = min(max(rounds, _LEAST_ROUNDS), _MOST_ROUNDS)
        limit = _STARTING_SECONDS + _PATIENCE * (rounds + 1) * round_seconds
        steady: list[tuple[Ran, float, bool]] = []
        drifted: list[tuple[Ran, float, bool]] = []
        while len(steady) < requests and len(steady) + len(drifted) < requests + AGAIN:
            ran = self.place.run(artifact, base.inputs, Runs(limit, rounds=rounds))
            length = len(default.steps)
            first = sum(ran.steps[s] for s in default.steps)
            last = sum(ran.steps[-length:])
            moved = abs(first - last) > DRIFT * min(first, last)
            (drifted if moved else steady).append((ran, (first + last) / 2, moved))
        return [*steady, *drifted][:requests]


class Fault(Error):
    """Not even what is chosen without records runs at a place."""


class Wrong(Error):
    """What is chosen without records computes something else."""


def _as(result: Result, choice: Choice) -> Result:
    """The result of the same code under another choice."""
    return Result(**{**vars(result), "choice": choice})


def _judged(
    task: Task,
    choice: Choice,
    place: trial.Place,
    runs: Sequence[tuple[Ran, float, bool]],
    base: Baseline,
) -> Result:
    """A choice's times and outputs -> what is found of it."""
    for ran, _, _ in runs[:1]:
        if why := check.difference(ran.outputs[place.output], base.output, task.region):
            return Result(choice, why=why, wrong=True, code=place.code)
    seconds = [sum(ran.steps[s] for s in place.steps) for ran, _, _ in runs]
    ratios = [s / whole for s, (_, whole, _) in zip(seconds, runs, strict=True)]
    middle = median(ratios)
    noise = median(abs(r - middle) for r in ratios) + (max(ratios) - min(ratios)) / 4
    drifted = any(moved for _, _, moved in runs)
    return Result(choice, middle, noise, median(seconds), code=place.code, drifted=drifted)
