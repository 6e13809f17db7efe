"""Tasks and seconds -> what was found of them: measured where most of the models' time may be
won.

Every turn goes to the task that is predicted to win most: its share of the time, times the gain
that the corrected cost model predicts for what is left of it, with its doubt, which every turn that
found nothing better makes smaller. A turn measures the best predicted choices, and one that the
model knows least of. The search ends with its time, or where no task can win more than noise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial

from qcompiler.autotune.learn import Model
from qcompiler.autotune.measure import FAULTS, Bench, Fault, Result, Wrong
from qcompiler.autotune.places import Gone
from qcompiler.autotune.tasks import Choice, Task
from qcompiler.errors import Error
from qcompiler.tune.records import Key

log = logging.getLogger(__name__)

BATCH, SPARE = 6, 4
"""Choices of a turn, and times as many to take them from."""
WORTH = 0.002
"""Less than this part of all tasks' time is not worth a turn."""
SURE = 0.01
"""A choice that gains no more is not one."""
FINALISTS, _FINAL_REQUESTS = 3, 5
_MOST_BYTES = 128 << 20
"""Of outputs in one answer."""
_NEAR = 4.0
"""What is predicted to take more than this many times as long as the default is tried last."""
_HOPE = 2.0
"""Standard deviations of the model that a choice may be better than predicted."""
_CALM = 0.5
"""What is left of a task's doubt after a turn that found nothing better."""


@dataclass(eq=False)
class State:
    """What is known of a task."""

    task: Task
    left: list[Choice]
    results: dict[Choice, Result] = field(default_factory=dict)
    hints: list[Choice] = field(default_factory=list)
    """What to try first."""
    seconds: float = 0.0
    """Of the default, measured; 0: not yet."""
    doubts: float = 1.0
    busy: bool = False
    broken: str = ""
    """Why it cannot be tuned."""
    faults: int = 0
    settled: bool = False
    final: Result | None = None
    """The best, measured again, once it is settled; None: the default."""

    @property
    def share(self) -> float:
        """Seconds of all its runs, with the default."""
        return self.task.count * (self.seconds or self.task.default.seconds)

    @property
    def best(self) -> Result | None:
        """The fastest until now, where it is faster than the default."""
        found = [r for r in self.results.values() if r.counts and r.ratio < 1]
        return min(found, key=lambda r: r.ratio, default=None)

    @property
    def ratio(self) -> float:
        """Of the fastest's time to the default's."""
        if self.settled:
            return 1.0 if self.final is None else self.final.ratio
        return 1.0 if self.best is None else self.best.ratio


@dataclass(frozen=True)
class Point:
    """Where a search stood: the seconds since its begin, choices tried, and the predicted ratio of
    all tasks' time to that of their defaults.
    """

    seconds: float
    tried: int
    ratio: float


Notify = Callable[["Search"], None]
OnResult = Callable[[Task, Result], None]


class Search:
    """The tasks, places to measure them, and what is found."""

    def __init__(
        self,
        tasks: Sequence[Task],
        benches: Sequence[Bench],
        on_result: OnResult,
        notify: Notify | None = None,
    ) -> None:
        """`on_result` is called with every result, before anything else is done with it; `notify`
        whenever there is news.
        """
        self.states = [State(t, list(t.choices)) for t in tasks]
        self.benches = list(benches)
        self.models: dict[str, Model] = {}
        self.points: list[Point] = []
        self.interrupted = False
        """By Ctrl-C: no more turns are given; a second one ends all at once."""
        self._on_result, self._notify = on_result, notify or (lambda _: None)
        self._begin = time.monotonic()

    @property
    def tried(self) -> int:
        """Choices that were measured or thrown away."""
        return sum(len(s.results) for s in self.states)

    @property
    def ratio(self) -> float:
        """Of all tasks' time with the best of each to that with the defaults."""
        whole = sum(s.share for s in self.states)
        return sum(s.share * s.ratio for s in self.states) / whole if whole else 1.0

    def remember(self, key: Key, result: Result) -> None:
        """A result of an earlier search, which is not measured again."""
        for state in self.states:
            if state.task.key == key and result.choice in state.left:
                self._take(state, result)

    def fit(self) -> None:
        """Learn from what was remembered."""
        for model in self.models.values():
            model.fit()

    def run(self, seconds: float) -> None:
        """Measure for `seconds`, or until it is not worth it, or Ctrl-C."""
        end = time.monotonic() + seconds
        self._each(lambda: None if time.monotonic() > end else self._next())

    def settle(self, seconds: float) -> None:
        """Measure the best of each task again, beside the default, for about `seconds`: they count
        if they are faster by more than noise. The most promising ones come first.
        """
        end, self.interrupted = time.monotonic() + seconds, False
        todo = [s for s in self.states if s.best is not None and not s.broken]
        todo.sort(key=lambda s: s.share * (s.ratio - 1))
        turns = iter(todo)

        def turn() -> Turn | None:
            state = next(turns, None) if time.monotonic() < end else None
            if state is None:
                return None
            found = sorted((r for r in state.results.values() if r.counts), key=lambda r: r.ratio)
            first = {r.code or r.choice: r.choice for r in reversed(found)}
            return Turn(state, list(reversed(first.values()))[:FINALISTS], final=True)

        self._each(turn)

    def _each(self, turn: Callable[[], Turn | None]) -> None:
        """Give every place turns until there are no more; Ctrl-C lets those end that run."""
        running: dict[Future[Found], tuple[Bench, Turn]] = {}
        idle = list(self.benches)
        while True:
            try:
                self._start(turn, idle, running)
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    bench, made = running.pop(future)
                    if self._ended(future, bench, made):
                        idle.append(bench)
            except KeyboardInterrupt:
                if self.interrupted:
                    raise
                self.interrupted = True

    def _start(
        self,
        turn: Callable[[], Turn | None],
        idle: list[Bench],
        running: dict[Future[Found], tuple[Bench, Turn]],
    ) -> None:
        while idle and not self.interrupted:
            made = turn()
            if made is None:
                return
            made.state.busy = True
            bench = idle.pop(0)
            running[bench.start(partial(_measured, bench, made))] = bench, made

    def _ended(self, future: Future[Found], bench: Bench, turn: Turn) -> bool:
        """Take over what a turn found -> whether its place goes on."""
        state = turn.state
        state.busy = False
        try:
            found = future.result()
        except Gone as e:
            return self._lost(bench, str(e))
        except Fault as e:
            state.faults += not bench.faults  # several in a row are the place's
            bench.faults += 1
            state.broken = e.what if state.faults >= FAULTS else ""
            return bench.faults < FAULTS or self._lost(bench, e.what)
        except Error as e:
            state.broken = e.what
            log.info("%s cannot be tuned: %s", state.task.names[0], e)
            if isinstance(e, Wrong):
                self._on_result(state.task, Result(state.task.default, why=e.what, wrong=True))
            return True
        bench.faults = 0
        self._found(state, found, final=turn.final)
        return True

    def _lost(self, bench: Bench, why: str) -> bool:
        """A place that is of no use any more. Raises Error where it was the last one."""
        self.benches.remove(bench)
        if not self.benches:
            hint = "what was measured is kept; run the same command again"
            raise Error(f"nothing is left to measure on: {why}", where=bench.place.name, hint=hint)
        log.warning("%s is lost, and its work goes elsewhere: %s", bench.place.name, why)
        return False

    def _found(self, state: State, found: Found, *, final: bool) -> None:
        before = state.ratio
        state.seconds = found.seconds
        for result in found.results:
            self._on_result(state.task, result)
            if not final:
                self._take(state, result)
        if final:
            state.final = _winner(found.results)
            state.settled = True
        else:
            self._model(state.task).fit()
            better = state.ratio < before * (1 - SURE)
            state.doubts = 1.0 if better else state.doubts * _CALM
        self.points.append(Point(time.monotonic() - self._begin, self.tried, self.ratio))
        self._notify(self)

    def _take(self, state: State, result: Result) -> None:
        state.results[result.choice] = result
        if result.choice in state.left:
            state.left.remove(result.choice)
        if result.counts:
            self._model(state.task).observe(state.task, result.choice, result.ratio)

    def _model(self, task: Task) -> Model:
        return self.models.setdefault(task.key.device, Model())

    def _next(self) -> Turn | None:
        """The turn that is predicted to win most; None where none is worth it."""
        open_ = [s for s in self.states if s.left and not s.busy and not s.broken]
        whole = sum(s.share for s in self.states)
        gains = [(self.gain(s), s) for s in open_]
        gain, state = max(gains, key=lambda g: g[0], default=(0.0, None))
        if state is None or gain < WORTH * whole:
            return None
        return Turn(state, self._some(state))

    def gain(self, state: State) -> float:
        """Seconds that a task's untried choices may win, of all that it takes."""
        if not state.left or state.broken:
            return 0.0
        model = self._model(state.task)
        best = float(model.ratios(state.task, state.left).min())
        hoped = best * (1 - min(_HOPE * model.doubt, 0.5) * state.doubts)
        return state.share * max(0.0, state.ratio - hoped)

    def _some(self, state: State) -> list[Choice]:
        """What to measure next: hints, then the best predicted, after the first two one with
        something that was not yet tried (a generator, a number of threads, a knob's value), else
        the middle of what is left; more than of a turn, since several may be the same code.
        """
        ranked = [c for _, c in self._model(state.task).ranked(state.task, state.left)]
        some, rest = ranked[: SPARE * BATCH], ranked[SPARE * BATCH :]
        near = [c for c in rest if c.seconds < _NEAR * state.task.default.seconds]
        tried = {k for c in (*state.results, *some[:2], state.task.default) for k in _marks(c)}
        new = [c for c in near if not tried.issuperset(_marks(c))]
        more = new[:1] or rest[len(rest) // 2 : len(rest) // 2 + 1]
        first = [c for c in state.hints if c in state.left]
        return list(dict.fromkeys([*first, *some[:2], *more, *some[2:]]))


def _marks(choice: Choice) -> set[tuple[object, ...]]:
    """What choices may have in common."""
    own = {(choice.generator, name, value) for name, value in choice.knobs}
    return {(choice.generator, choice.threads), *own}


@dataclass(frozen=True)
class Turn:
    """Choices of a task to measure; `final`: again, and for longer."""

    state: State
    choices: list[Choice]
    final: bool = False


@dataclass(frozen=True)
class Found:
    """What a turn found, and the seconds of the default."""

    seconds: float
    results: list[Result]


def _measured(bench: Bench, turn: Turn) -> Found:
    task = turn.state.task
    seconds = bench.baseline(task).seconds
    room = _MOST_BYTES // max(task.region.output.type.bytes, 1)
    most = max(1, min(BATCH, room - 2))  # the default's outputs are there twice
    if turn.final:
        found = bench.results(task, turn.choices[:most], _FINAL_REQUESTS, anew=True)
    else:
        found = bench.results(task, turn.choices, most=most)
    return Found(seconds, found)


def _winner(found: Sequence[Result]) -> Result | None:
    """The fastest, if it is faster than the default by more than noise."""
    sure = [r for r in found if r.counts and r.ratio + max(2 * r.noise, SURE) < 1]
    return min(sure, key=lambda r: r.ratio, default=None)
