"""A model's steps, cut into stages -> threads for each stage, through which samples pass in turn.

A sample takes its workspace along, so nothing is copied where the steps are cut; while a stage
works on it, the stages before work on samples that came later. Each stage reads its part of the
weights only, which so may stay in the caches of its cores.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import accumulate
from queue import SimpleQueue

from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array
from qcompiler.runtime.caller import Caller
from qcompiler.runtime.executor.pool import Pool
from qcompiler.runtime.library import Code, Frame, Team
from qcompiler.runtime.model import Model

_ROUNDS = 9
"""How many times steps are timed before they are cut into stages."""
_HALVINGS = 40


@dataclass(eq=False)
class _Pass:
    """A sample on its way."""

    frame: Frame
    code: Code
    over: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    error: BaseException | None = None


class Line:
    """The stages of one model. They are begun with its first crew, and end with its last; there is
    a crew for each sample on its way, so with one more than stages, none waits for a new sample.
    """

    def __init__(self, bounds: Sequence[int], pool: Pool, *, threads: int, spin_us: int) -> None:
        """`bounds`: the first step of every stage, and the one after the last; `threads`: of each
        stage.
        """
        self._spans = list(zip(bounds, bounds[1:]))
        self._pool, self._threads, self._spin_us = pool, threads, spin_us
        self._lock, self._crews = threading.Lock(), 0
        self._inboxes: list[SimpleQueue[_Pass | None]] = []
        self._workers: list[threading.Thread] = []

    def caller(self, model: Model) -> Caller:
        """What runs the model for one sample after the other."""
        crew = _Passage(self)
        try:
            return model.caller(crew=crew)
        except BaseException:
            crew.end()
            raise

    def enter(self) -> None:
        """There is a crew more."""
        with self._lock:
            self._crews += 1
            if self._crews > 1:
                return
            self._inboxes = [SimpleQueue() for _ in self._spans]
            self._workers = [
                threading.Thread(
                    target=self._work, args=(i,), name=f"qcompiler-stage-{i}", daemon=True
                )
                for i in range(len(self._spans))
            ]
            for worker in self._workers:
                worker.start()

    def leave(self) -> None:
        """There is a crew less, and nothing of it under way."""
        with self._lock:
            self._crews -= 1
            if self._crews:
                return
            for inbox in self._inboxes:
                inbox.put(None)
            for worker in self._workers:
                worker.join()

    def through(self, frame: Frame, code: Code) -> None:
        """Run all stages. Raises what went wrong in one."""
        sample = _Pass(frame, code)
        self._inboxes[0].put(sample)
        sample.over.acquire()
        if sample.error is not None:
            raise sample.error

    def _work(self, stage: int) -> None:
        """Run this stage of whatever comes, in order."""
        team: Team | None = None
        inbox, span = self._inboxes[stage], self._spans[stage]
        following = self._inboxes[stage + 1 :][:1]
        while (sample := inbox.get()) is not None:
            try:
                team = team or Team(self._threads, sample.code, self._spin_us)
                self._pool.enter(self._threads)
                try:
                    team.run(sample.frame, sample.code, *span)
                finally:
                    self._pool.leave(self._threads)
            except BaseException as e:
                sample.error = e
            if following and sample.error is None:
                following[0].put(sample)
            else:
                sample.over.release()
            del sample  # what it holds is freed without waiting for the next
        if team is not None:
            team.end()


class _Passage:
    """A caller's crew: the stages, which others use as well."""

    def __init__(self, line: Line) -> None:
        self._line = line
        line.enter()

    def run(self, frame: Frame, code: Code, first: int, last: int) -> None:
        """Run all steps: the stages know which."""
        self._line.through(frame, code)

    def end(self) -> None:
        """Leave the stages."""
        self._line.leave()


def demand_stages(model: Model) -> None:
    """Raise Error for a model whose steps cannot be cut into stages."""
    for symbol in model.manifest.symbols:
        raise Error(f"steps are not cut into stages where {symbol.name} is open")
    if model.variant.repeats:
        raise Error("it cannot be cut into stages: some of its steps repeat, as loops do")
    if parts(model) > 1:
        what = f"all steps run for {parts(model)} parts of the batch, one after the other"
        raise Error(f"it cannot be cut into stages: {what}", hint="compile it for a smaller batch")


def parts(model: Model) -> int:
    """The parts of a batch that use one workspace in turn."""
    return int({**model.manifest.notes, **model.variant.notes}.get("parts", 1))


def stages_of(model: Model, stages: int, threads: int, arrays: Sequence[Array]) -> tuple[int, ...]:
    """The first step of every stage and the one after the last, by what the steps take on these
    inputs with so many threads: fewer stages where there are fewer steps.
    """
    with closing(model.caller(threads=threads)) as alone:
        return cut(alone.seconds(arrays, _ROUNDS), stages)


def cut(seconds: Sequence[float], stages: int) -> tuple[int, ...]:
    """Seconds of every step -> bounds of at most so many stages, of which the longest is as short
    as can be.
    """
    until = [0.0, *accumulate(seconds)]
    low, high = max(seconds), until[-1]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_within(until, middle)) <= stages + 1 else (middle, high)
    return _within(until, high)


def _within(until: Sequence[float], most: float) -> tuple[int, ...]:
    """Bounds of stages that take at most so many seconds, or are one step."""
    bounds = [0]
    while bounds[-1] < len(until) - 1:
        end = bisect_right(until, until[bounds[-1]] + most) - 1
        bounds.append(max(end, bounds[-1] + 1))
    return tuple(bounds)
