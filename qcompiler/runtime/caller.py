"""A model for one thread that calls it again and again: arrays -> arrays, with a workspace and a
thread team of its own, which nobody else waits for or takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.artifact.manifest import Variant
from qcompiler.runtime.arrays import Array, Context
from qcompiler.runtime.library import Code, Crew, Frame, Memory

Outputs = Callable[[Context, Sequence[Array]], "list[Array]"]
"""Runs a model in a context: inputs -> new outputs."""


class _OneByOne:
    """A crew that runs one step at a time, and adds the seconds of each to those `taken`; steps of
    loops (`Variant.repeats`) as often as in a run.
    """

    def __init__(self, crew: Crew, taken: Array, repeats: Sequence[tuple[int, int, int]]) -> None:
        self._crew, self._taken, self._repeats = crew, taken, repeats

    def run(self, frame: Frame, code: Code, first: int, last: int) -> None:
        """Run steps `first` to `last` - 1."""
        step = first
        while step < last:
            start = time.perf_counter()
            self._crew.run(frame, code, step, step + 1)
            self._taken[step] += time.perf_counter() - start
            step = self._behind(step + 1, frame.workspace.array)

    def _behind(self, step: int, memory: Array) -> int:
        """The step where a run goes on (emit/repeats.py)."""
        for first, last, going in reversed(self._repeats):
            if step == last and memory[going]:
                return first
        for first, last, going in self._repeats:
            if step == first and not memory[going]:
                return self._behind(last, memory)
        return step

    def end(self) -> None:
        """It holds nothing."""


class Caller:
    """One thread uses it at a time: best the one that made it, which is the first to touch its
    workspace. It keeps code, weights and its crew, which runs it, until `end`.
    """

    def __init__(
        self,
        outputs: Outputs,
        code: Code,
        context: Context,
        variant: Variant,
        crew: Crew,
    ) -> None:
        self._outputs, self._code, self._steps = outputs, code, len(variant.steps)
        self._repeats = variant.repeats
        self._context, self._crew = context, crew
        context.frame.crew = crew

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs just as the model takes them -> new outputs."""
        return self._outputs(self._context, arrays)

    def run_in(self, arrays: Sequence[Memory]) -> None:
        """Run where all inputs, then all outputs lie; of a model of fixed sizes."""
        self._context.demand_whole()
        self._context.frame.fill(arrays)
        self._crew.run(self._context.frame, self._code, 0, self._steps)
        self._context.demand_fit()

    def seconds(self, arrays: Sequence[Array], rounds: int) -> list[float]:
        """Inputs -> median seconds of every step in a run, each timed alone: of all its turns
        together where sizes are open, 0 if it has none. Every round runs the steps in order, so
        each finds its input in the caches as in a run.
        """
        times = np.zeros((rounds, self._steps))
        frame = self._context.frame
        try:
            for taken in times:
                frame.crew = _OneByOne(self._crew, taken, self._repeats)
                self.run(arrays)
        finally:
            frame.crew = self._crew
        return [float(t) for t in np.median(times, axis=0)]

    def close(self) -> None:
        """The same as `end`, for contextlib.closing."""
        self.end()

    def end(self) -> None:
        """End its threads; it cannot be called again."""
        self._crew.end()
