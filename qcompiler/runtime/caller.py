"""A model for one thread that calls it again and again: arrays -> arrays, with a workspace and a
thread team of its own, which nobody else waits for or takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.artifact.abi import MOST_UNITS
from qcompiler.runtime.arrays import Array, Context
from qcompiler.runtime.library import Code, Memory, Team


class Caller:
    """One thread uses it at a time: best the one that made it, which is the first to touch its
    workspace. It keeps code, weights and team until `end`.
    """

    def __init__(
        self, keep: object, code: Code, context: Context, steps: int, threads: int, spin_us: int
    ) -> None:
        self._keep = keep  # whatever owns the weights
        self._code, self._context, self._steps = code, context, steps
        threads = min(threads, MOST_UNITS)
        self._team = Team(threads, code, spin_us) if threads > 1 else None

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs just as the model takes them -> new outputs."""
        kept = self._context.take(arrays)
        outputs = self._context.make()
        self._launch()
        del kept
        return self._context.cut(outputs)

    def run_in(self, arrays: Sequence[Memory]) -> None:
        """Run where all inputs, then all outputs lie."""
        self._context.demand_whole()
        self._context.frame.fill(arrays)
        self._launch()
        self._context.demand_fit()

    def _launch(self) -> None:
        frame = self._context.frame
        frame.table[frame.words.first], frame.table[frame.words.last] = 0, self._steps
        frame.launch(self._code, self._team)

    def close(self) -> None:
        """The same as `end`, for contextlib.closing."""
        self.end()

    def end(self) -> None:
        """End the team's threads; it cannot be called again."""
        team, self._team = self._team, None
        if team is not None:
            team.end()
