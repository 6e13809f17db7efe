"""Artifacts of a whole model -> which is faster: both stay loaded, in processes of their own, and
run in turn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from qcompiler.artifact.artifact import open_artifact
from qcompiler.autotune.places import Place, Runs
from qcompiler.autotune.trial import numbers
from qcompiler.ir import Array, Type

_TURNS, _TURN_SECONDS, _MOST_RUNS = 5, 0.1, 200
_ROUNDS = 5
"""Runs step by step, of each turn."""
_LIMIT_SECONDS = 120.0
_FAR, _ROUNDED = 0.05, 0.5
"""Norms of outputs' differences, relative to their own: a model whose every kernel is right is
nearer, also where it rounds otherwise to int8."""


@dataclass(frozen=True)
class Verdict:
    """A model's seconds before, and those after divided by them; how far such ratios were from each
    other; what is wrong with its outputs.
    """

    seconds: float
    ratio: float
    noise: float
    wrong: str = ""

    @property
    def faster(self) -> bool:
        """By more than noise?"""
        return not self.wrong and self.ratio + self.noise < 1


class Pair:
    """Two processes at a place."""

    def __init__(self, place: Place) -> None:
        self._places = (place.again(), place.again())

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *error: object) -> None:
        for place in self._places:
            place.close()

    def compare(
        self, before: Path, after: Path, seconds: float, *, rounded: bool = False
    ) -> Verdict:
        """Run both in turn, for `seconds` or a few times; `rounded`: not the same values are int8
        in both. Raises Error where one of them does not run, and Gone where the place is lost.
        """
        inputs = inputs_of(before)
        end = time.monotonic() + seconds
        ratios: list[float] = []
        times: list[float] = []
        runs, wrong = 1, ""
        while len(ratios) < _TURNS or (time.monotonic() < end and len(ratios) < 10 * _TURNS):
            ran = [
                place.run(path, inputs, Runs(iterations=runs, limit=_LIMIT_SECONDS))
                for place, path in zip(self._places, (before, after), strict=True)
            ]
            usual, mine = (median(r.times) for r in ran)
            if not times:
                far = _ROUNDED if rounded else _FAR
                wrong = difference(ran[0].outputs, ran[1].outputs, far)
                runs = min(max(1, int(_TURN_SECONDS / max(usual, 1e-9))), _MOST_RUNS)
                times.append(usual)
                continue
            ratios.append(mine / usual)
            times.append(usual)
        middle = median(ratios)
        noise = median(abs(r - middle) for r in ratios)
        return Verdict(median(times[1:]), middle, noise, wrong)

    def steps(self, before: Path, after: Path) -> tuple[Sequence[float], Sequence[float]]:
        """Run both step by step, in turn -> the median seconds of the steps of each. Raises as
        `compare`.
        """
        inputs = inputs_of(before)
        runs = Runs(rounds=_ROUNDS, limit=_LIMIT_SECONDS)
        turns = [
            [p.run(path, inputs, runs).steps for p, path in zip(self._places, paths, strict=True)]
            for paths in [(before, after)] * _TURNS
        ]
        mine, other = (
            [median(t) for t in zip(*some, strict=True)] for some in zip(*turns, strict=True)
        )
        return mine, other


def inputs_of(artifact: Path) -> Mapping[str, Array]:
    """Random numbers for an artifact's inputs."""
    rng = np.random.default_rng(0)
    manifest = open_artifact(artifact).manifest
    return {v.name: numbers(Type(v.dtype, v.shape), rng) for v in manifest.inputs}


def difference(meant: Sequence[Array], found: Sequence[Array], far: float) -> str:
    """What is wrong with a model's outputs, or nothing."""
    for i, (right, mine) in enumerate(zip(meant, found, strict=True)):
        if right.dtype.kind in "biu":
            continue  # classes: any near tie may change them
        wide, other = right.astype(np.float64), mine.astype(np.float64)
        if not np.array_equal(np.isfinite(wide), np.isfinite(other)):
            return f"output {i} is not finite where it was"
        known = np.isfinite(wide)
        norm = float(np.linalg.norm(wide[known]))
        error = float(np.linalg.norm(wide[known] - other[known]))
        if error > far * norm:
            return f"output {i} is off by {error / max(norm, 1e-300):.1%}"
    return ""
