"""Which model of what was measured finds fast kernels with the fewest measurements?

    python -m benchmarks.tuning_models resnet8.onnx mobilenetv2.onnx --precision int8

All candidates of the kernels that take most of the models' time are measured once. Then searches
are replayed on these times, some candidates a turn, ranked by the cost model alone, by the
regression of `autotune/learn.py`, and by gradient-boosted trees on the same features (xgboost, if
it is installed), which learn what the cost model has wrong. What counts is the time of all kernels
with the best of each that was found after so many turns, divided by that with the best there are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tuning_regret import results_of
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.learn import Model, features_of
from qcompiler.autotune.measure import Bench
from qcompiler.autotune.places import Here
from qcompiler.autotune.tasks import Choice, Task, tasks_of
from qcompiler.driver import Compilation
from qcompiler.ir import Array
from qcompiler.options import Options

TURNS, BATCH = 4, 6
Times = Mapping[Task, Mapping[Choice, float]]
"""Of every candidate, divided by the default's."""


class Predicted(Model):
    """The cost model alone."""

    def fit(self) -> None:
        """It learns nothing."""


class Boosted(Model):
    """Gradient-boosted trees on what the regression knows, for what the cost model has wrong."""

    _trees: Any = None
    _names: Sequence[str] = ()

    def fit(self) -> None:
        """Grow the trees anew."""
        import xgboost

        if not self.seen:
            return
        found = [features_of(task, choice) for task, choice, _ in self.seen]
        self._names = sorted({n for features in found for n in features})
        error = [y - f.get("predicted", 0.0) for (_, _, y), f in zip(self.seen, found, strict=True)]
        self._trees = xgboost.XGBRegressor(
            n_estimators=60, max_depth=4, learning_rate=0.2, min_child_weight=1, n_jobs=1
        )
        self._trees.fit(self._rows(found), np.array(error))

    def ratios(self, task: Task, choices: Sequence[Choice]) -> Array:
        """Predicted ratios to the default's time."""
        found = [features_of(task, c) for c in choices]
        logs = np.array([f.get("predicted", 0.0) for f in found])
        if self._trees is not None and found:
            logs = logs + self._trees.predict(self._rows(found))
        ratios: Array = np.exp(logs)
        return ratios

    def _rows(self, found: Sequence[Mapping[str, float]]) -> Array:
        return np.array([[f.get(n, 0.0) for n in self._names] for f in found])


def replayed(times: Times, make: Callable[[], Model]) -> list[float]:
    """Searches of all tasks with one model -> how far from the best they are after each turn."""
    model = make()
    best = {task: 1.0 for task in times}
    left = {task: list(found) for task, found in times.items()}
    whole = [task.seconds for task in times]
    ideal = sum(s * min([1.0, *f.values()]) for s, f in zip(whole, times.values(), strict=True))
    curve = []
    for _ in range(TURNS):
        for task, found in times.items():
            some = [c for _, c in model.ranked(task, left[task])][:BATCH]
            for choice in some:
                left[task].remove(choice)
                model.observe(task, choice, found[choice])
                best[task] = min(best[task], found[choice])
            model.fit()
        reached = sum(s * best[task] for s, task in zip(whole, times, strict=True))
        curve.append(reached / ideal)
    return curve


def measured(tasks: Sequence[Task], share: float, near: float) -> Times:
    """Measure the candidates of the kernels that take most of the time."""
    times: dict[Task, dict[Choice, float]] = {}
    whole, done = sum(t.seconds for t in tasks), 0.0
    bench = Bench(Here(tasks[0].device.threads), Builder())
    try:
        for task in tasks:
            if done > share * whole:
                break
            done += task.seconds
            some = [c for c in task.choices if c.seconds <= near * task.default.seconds]
            found = {r.choice: r.ratio for r in results_of(bench, task, some) if r.counts}
            if found:
                times[task] = found
                sys.stderr.write(f"{task.names[0]}: {len(found)} candidates\n")
    finally:
        bench.close()
    return times


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--near", type=float, default=2.0)
    a = parser.parse_args(words)
    data = "synthetic" if a.precision in ("int8", "int4") else None
    options = Options(threads=1, precision=a.precision, calibration=data)
    plans = [(Compilation(model, options).plan, "host") for model in a.models]
    times = measured(tasks_of(plans), a.share, a.near)
    ways: dict[str, Callable[[], Model]] = {"cost model": Predicted, "regression": Model}
    if find_spec("xgboost"):
        ways["xgboost"] = Boosted
    count = sum(map(len, times.values()))
    sys.stdout.write(f"{len(times)} kernels, {count} candidates; time after turns of {BATCH}\n")
    for name, make in ways.items():
        curve = "  ".join(f"{x:.4f}" for x in replayed(times, make))
        sys.stdout.write(f"{name:12} {curve}\n")


if __name__ == "__main__":
    main()
