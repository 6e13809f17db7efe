"""Products in int8, bfloat16 and float32 side by side: which is in what, and in what order to leave
int8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qcompiler.mentions import exactly

_LEAST_SECONDS = 1e-9
BFLOAT16, FLOAT32 = "bfloat16", "float32"


@dataclass(frozen=True)
class Mixture:
    """Which products are float32, and which bfloat16; the rest is int8. `ranges`: products, and the
    calibration method for what they read, where it is not the one of all.
    """

    floats: tuple[str, ...] = ()
    halves: tuple[str, ...] = ()
    ranges: tuple[tuple[str, str], ...] = ()

    @property
    def left(self) -> frozenset[str]:
        """The products that are not int8."""
        return frozenset((*self.floats, *self.halves))

    def key(self, method: str) -> str:
        """What a measurement of it is kept under."""
        return json.dumps([method, sorted(self.floats), sorted(self.halves), sorted(self.ranges)])

    def options(self, asked: Mapping[str, Any] | None = None) -> dict[str, tuple[str, ...]]:
        """What quantize_static is told: `exclude`, `layers` and `ranges`, with what users `asked`
        for besides. Of layers the last that matches counts there, of ranges the first.
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
    """One product: its seconds in float32, in int8 and in bfloat16, and the loss when it alone is
    int8, or bfloat16. NaN: it cannot be bfloat16.
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
        """Its seconds in the form that a mixture gives it."""
        if self.name in mixture.floats:
            return self.float_seconds
        return self.half_seconds if self.name in mixture.halves else self.int8_seconds

    def steps(self) -> list[tuple[float, str, str]]:
        """(loss that ends for a second more, name, what it becomes), the most worth first.

        By bfloat16 only where that is on the way: no slower than float32, and worth more than going
        to float32 at once.
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
"""(product, what it becomes)."""


def ordered(layers: Iterable[Layer]) -> list[Step]:
    """Products -> the order in which they leave int8: those that disturb most for the least time
    first. It is the greedy solution of a knapsack with several choices for every item.
    """
    steps = [s for layer in layers for s in layer.steps()]
    return [(name, kind) for _, name, kind in sorted(steps, key=lambda s: -s[0])]


def mixed(steps: Sequence[Step], ranges: Iterable[tuple[str, str]] = ()) -> Mixture:
    """Steps taken in turn -> where the products are then."""
    now = dict(steps)
    floats, halves = (tuple(n for n in now if now[n] == k) for k in (FLOAT32, BFLOAT16))
    return Mixture(floats, halves, tuple(ranges))


@dataclass(frozen=True)
class Trial:
    """One choice that was tried: which products were float32 or bfloat16, whose ranges were others
    ("NAME=METHOD"), what it scored and took.

    `score` is in points, `loss` the divergence from the float model's outputs; `seconds` is
    measured where the choice was compiled and timed, else predicted from the products' own times.
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
        """Where its products are; all that time depends on."""
        return Mixture(self.floats, self.halves)

    def form(self, name: str) -> str:
        """What a product is multiplied in."""
        if self.method == FLOAT32 or name in self.floats:
            return FLOAT32
        return BFLOAT16 if name in self.halves else "int8"


def untimed(method: str, mixture: Mixture, score: float, loss: float) -> Trial:
    """What a mixture gave, not timed."""
    ranges = tuple(f"{n}={m}" for n, m in mixture.ranges)
    return Trial(method, mixture.floats, score, loss, math.nan, False, mixture.halves, ranges)


def predicted(trial: Trial, measured: Trial, layers: Sequence[Layer]) -> Trial:
    """A trial that was not timed, with the time that its layers' own times make likely."""
    if trial.measured or not layers:
        return trial
    own = sum(x.seconds(trial.mixture) for x in layers)
    likely = measured.seconds + own - sum(x.seconds(measured.mixture) for x in layers)
    return replace(trial, seconds=max(likely, own))


def chosen_ranges(losses: Mapping[str, Mapping[str, float]], usual: str) -> dict[str, str]:
    """{product: {calibration method: loss}} -> those products that another method than the usual
    one serves better by a tenth or more, and that method.
    """
    found = {}
    for name, by in losses.items():
        best = min(by, key=lambda m: by[m])
        if by[best] < 0.9 * by[usual]:
            found[name] = best
    return found
