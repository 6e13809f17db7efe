"""Mixtures of products in int8, bfloat16 and float32; the order in which products leave int8."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qcompiler.rewrite.mentions import exactly

_LEAST_SECONDS = 1e-9
BFLOAT16, FLOAT32 = "bfloat16", "float32"


@dataclass(frozen=True)
class Mixture:
    """Which products are float32, and which bfloat16; the rest are int8. `ranges`: products whose
    input has another calibration method than usual, and that method.
    """

    floats: tuple[str, ...] = ()
    halves: tuple[str, ...] = ()
    ranges: tuple[tuple[str, str], ...] = ()

    @property
    def left(self) -> frozenset[str]:
        """The products that are not int8."""
        return frozenset((*self.floats, *self.halves))

    def key(self, method: str) -> str:
        """The key under which its measurements are stored."""
        return json.dumps([method, sorted(self.floats), sorted(self.halves), sorted(self.ranges)])

    def options(self, asked: Mapping[str, Any] | None = None) -> dict[str, tuple[str, ...]]:
        """Options of quantize_static: `exclude`, `layers` and `ranges`, combined with those that
        the user `asked` for. In `layers` the last match wins, in `ranges` the first.
        """
        spans = tuple(f"{p}={m}" for n, m in self.ranges for p in exactly([n]))
        sixteen = tuple(f"{p}=16" for p in exactly(self.halves))
        theirs = {k: tuple((asked or {}).get(k, ())) for k in ("exclude", "layers", "ranges")}
        return {
            "exclude": (*theirs["exclude"], *exactly(self.floats)),
            "layers": (*theirs["layers"], *sixteen),
            "ranges": (*spans, *theirs["ranges"]),
        }


@dataclass(frozen=True)
class Layer:
    """One product: its seconds in float32, int8 and bfloat16, and the loss if it alone is int8 or
    bfloat16. NaN: it cannot be bfloat16.
    """

    name: str
    op: str
    float_seconds: float
    int8_seconds: float
    sensitivity: float = math.nan
    half_seconds: float = math.nan
    half_sensitivity: float = math.nan

    @property
    def saved(self) -> float:
        """Seconds that int8 saves."""
        return self.float_seconds - self.int8_seconds

    def seconds(self, mixture: Mixture) -> float:
        """Its seconds in the precision that a mixture gives it."""
        if self.name in mixture.floats:
            return self.float_seconds
        return self.half_seconds if self.name in mixture.halves else self.int8_seconds

    def steps(self) -> list[tuple[float, str, str]]:
        """(loss avoided per additional second, name, new precision), best first.

        bfloat16 is a step only if it is no slower than float32, and better for its time than going
        to float32 directly.
        """
        whole = self.sensitivity / max(self.saved, _LEAST_SECONDS)
        if not self.half_seconds <= self.float_seconds:
            return [(whole, self.name, FLOAT32)]
        cost = max(self.half_seconds - self.int8_seconds, _LEAST_SECONDS)
        rest = max(self.float_seconds - self.half_seconds, _LEAST_SECONDS)
        first = (self.sensitivity - self.half_sensitivity) / cost
        second = self.half_sensitivity / rest
        if not first >= second:
            return [(whole, self.name, FLOAT32)]
        return [(first, self.name, BFLOAT16), (second, self.name, FLOAT32)]


Step = tuple[str, str]
"""(product, its new precision)."""


def ordered(layers: Iterable[Layer]) -> list[Step]:
    """Products -> the order in which they leave int8: the largest loss for the least time first.
    This is the greedy solution of a multiple-choice knapsack problem.
    """
    steps = [s for layer in layers for s in layer.steps()]
    return [(name, kind) for _, name, kind in sorted(steps, key=lambda s: -s[0])]


def mixed(steps: Sequence[Step], ranges: Iterable[tuple[str, str]] = ()) -> Mixture:
    """Steps, in order -> the resulting mixture."""
    now = dict(steps)
    floats, halves = (tuple(n for n in now if now[n] == k) for k in (FLOAT32, BFLOAT16))
    return Mixture(floats, halves, tuple(ranges))


@dataclass(frozen=True)
class Trial:
    """One mixture that was tried: which products were float32 or bfloat16, which had other ranges
    ("NAME=METHOD"), its score and time.

    `score` is in points, `loss` is the divergence from the float model's outputs. `seconds` is
    measured if the mixture was compiled and timed, else predicted from the times of its products.
    """

    method: str
    floats: tuple[str, ...]
    score: float
    loss: float
    seconds: float
    measured: bool
    halves: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()

    @property
    def mixture(self) -> Mixture:
        """The precisions of its products; its time depends on nothing else."""
        return Mixture(self.floats, self.halves)

    def form(self, name: str) -> str:
        """The precision of a product."""
        if self.method == FLOAT32 or name in self.floats:
            return FLOAT32
        return BFLOAT16 if name in self.halves else "int8"


def untimed(method: str, mixture: Mixture, score: float, loss: float) -> Trial:
    """The result of a mixture, not timed."""
    ranges = tuple(f"{n}={m}" for n, m in mixture.ranges)
    return Trial(method, mixture.floats, score, loss, math.nan, False, mixture.halves, ranges)


def predicted(trial: Trial, measured: Trial, layers: Sequence[Layer]) -> Trial:
    """A trial; if it was not timed, with a time predicted from the times of its layers."""
    if trial.measured or not layers:
        return trial
    own = sum(x.seconds(trial.mixture) for x in layers)
    likely = measured.seconds + own - sum(x.seconds(measured.mixture) for x in layers)
    return replace(trial, seconds=max(likely, own))


def chosen_ranges(losses: Mapping[str, Mapping[str, float]], usual: str) -> dict[str, str]:
    """{product: {calibration method: loss}} -> products for which another method than the usual one
    is better by a tenth or more, and that method.
    """
    found = {}
    for name, by in losses.items():
        best = min(by, key=lambda m: by[m])
        if by[best] < 0.9 * by[usual]:
            found[name] = best
    return found
