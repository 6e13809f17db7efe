"""What was measured -> better predictions: the cost model's, corrected by a regression on knobs.

The logarithm of a choice's time, of the default's, is predicted as

    coefficient * log(predicted / predicted of the default) + sum of corrections of its knobs

where the corrections are linear in a knob's logarithm, or stand for a word, apart for each
generator. All tasks of a device together decide the coefficients (ridge regression, towards what
the cost model says: 1, and no corrections), so what one kernel shows is used for the next. Where a
device's facts are wrong, so are all predictions in the same way, and few measurements mend that.
What a regression cannot say, neighbours do: the errors left of choices of the same task that differ
in few knobs, averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qcompiler.autotune.tasks import Choice, Task
from qcompiler.ir import Array

_TRUST = 1.0
"""Measurements that the cost model's word is worth, for its own coefficient ..."""
_CAUTION = 4.0
"""... and for the absence of each correction."""
_DOUBT = 0.1
"""Standard deviation of predictions before anything was measured, as a logarithm."""
_APART, _ALONE = 4.0, 0.5
"""A neighbour with one more knob that differs weighs so many times less; what says that there is no
error weighs so much."""
_FAR = 4.0
"""Ratios beyond this, or below its inverse, count as this: what is so slow has other reasons."""


@dataclass
class Model:
    """A device's corrections, as they are learned."""

    seen: list[tuple[Task, Choice, float]] = field(default_factory=list)
    """Choices and the logarithms of their ratios."""
    weights: dict[str, float] = field(default_factory=dict)
    doubt: float = _DOUBT
    """Standard deviation of what remains."""
    _errors: dict[Task, tuple[list[Choice], Array]] = field(default_factory=dict)
    _known: dict[tuple[Task, Choice], dict[str, float]] = field(default_factory=dict)

    def observe(self, task: Task, choice: Choice, ratio: float) -> None:
        """One more measurement; `fit` takes it into account."""
        self.seen.append((task, choice, math.log(min(max(ratio, 1 / _FAR), _FAR))))

    def fit(self) -> None:
        """Find the coefficients."""
        if not self.seen:
            return
        found = [self._difference(task, choice) for task, choice, _ in self.seen]
        names = sorted({n for features in found for n in features} | {_PREDICTED})
        x = np.array([[features.get(n, 0.0) for n in names] for features in found])
        y = np.array([ratio for _, _, ratio in self.seen])
        prior = np.array([1.0 if n == _PREDICTED else 0.0 for n in names])
        penalty = np.array([_TRUST if n == _PREDICTED else _CAUTION for n in names])
        gram = x.T @ x + np.diag(penalty)
        solved: Array = np.linalg.solve(gram, x.T @ y + penalty * prior)
        self.weights = dict(zip(names, solved.tolist(), strict=True))
        errors = y - x @ solved
        known = len(y) / (len(y) + _CAUTION)
        spread = float(np.sqrt(np.mean(errors**2)))
        self.doubt = known * spread + (1 - known) * _DOUBT
        self._errors = _by_task(self.seen, errors)

    def ratio(self, task: Task, choice: Choice) -> float:
        """The predicted ratio of a choice's time to the default's."""
        return float(self.ratios(task, [choice])[0])

    def ratios(self, task: Task, choices: Sequence[Choice]) -> Array:
        """The same of several."""
        weights = self.weights or {_PREDICTED: 1.0}
        logs = [
            sum(weights.get(n, 0.0) * v for n, v in self._difference(task, c).items())
            for c in choices
        ]
        found: Array = np.exp(np.array(logs) + self._neighbours(task, choices))
        return found

    def ranked(self, task: Task, choices: Sequence[Choice]) -> list[tuple[float, Choice]]:
        """Choices and their predicted ratios, the best first; of equals as they were."""
        ratios = self.ratios(task, choices).tolist()
        return sorted(zip(ratios, choices, strict=True), key=lambda r: r[0])

    def _neighbours(self, task: Task, choices: Sequence[Choice]) -> Array:
        """What errors of neighbours add to the logarithms of ratios."""
        if task not in self._errors:
            return np.zeros(len(choices))
        near, errors = self._errors[task]
        codes: dict[object, int] = {}
        mine, others = _coded(choices, codes), _coded(near, codes)
        width = max(mine.shape[1], others.shape[1])
        mine, others = (np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (mine, others))
        differ = (mine[:, None, :] != others[None, :, :]).sum(-1)
        weigh = _APART ** (1.0 - np.maximum(differ, 1))
        weighted: Array = (weigh @ errors) / (weigh.sum(1) + _ALONE)
        return weighted

    def _difference(self, task: Task, choice: Choice) -> dict[str, float]:
        """What tells a choice from its task's default."""
        if (task, choice) not in self._known:
            self._known[task, choice] = features_of(task, choice)
        return self._known[task, choice]


_PREDICTED = "predicted"


def _by_task(
    seen: Sequence[tuple[Task, Choice, float]], errors: Array
) -> dict[Task, tuple[list[Choice], Array]]:
    rows: dict[Task, list[int]] = {}
    for i, (task, _, _) in enumerate(seen):
        rows.setdefault(task, []).append(i)
    return {task: ([seen[i][1] for i in own], errors[own]) for task, own in rows.items()}


def _coded(choices: Sequence[Choice], codes: dict[object, int]) -> Array:
    """Choices -> rows of numbers, equal where a generator, its threads or a knob are."""
    rows = [
        [
            codes.setdefault(mark, len(codes) + 1)
            for mark in (c.generator, ("threads", c.threads), *((c.generator, k) for k in c.knobs))
        ]
        for c in choices
    ]
    width = max(map(len, rows), default=0)
    return np.array([row + [0] * (width - len(row)) for row in rows]).reshape(len(rows), width)


def features_of(task: Task, choice: Choice) -> dict[str, float]:
    """What tells a choice from its task's default: the logarithm of the predicted ratio, and the
    differences of knobs.
    """
    mine, usual = _features(choice), _features(task.default)
    found = {n: mine.get(n, 0.0) - usual.get(n, 0.0) for n in (*mine, *usual)}
    ratio = choice.seconds / task.default.seconds if task.default.seconds > 0 else 1.0
    found[_PREDICTED] = math.log(min(max(ratio, 1 / _FAR), _FAR))
    return {n: v for n, v in found.items() if v}


def _features(choice: Choice) -> dict[str, float]:
    found = {choice.generator: 1.0}
    if choice.threads:
        found["threads"] = -1.0 / choice.threads
    for name, value in choice.knobs:
        if isinstance(value, str):
            found[f"{choice.generator}.{name}={value}"] = 1.0
        else:
            found[f"{choice.generator}.{name}"] = math.log2(1 + abs(value))
    return found
