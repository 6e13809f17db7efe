"""Timing of functions in turn, and of a model's steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from qcompiler.ir import Array
from qcompiler.runtime import Model

_MIN_SECONDS = 0.5
_MIN_RUNS = 5


def medians(*functions: Callable[[], object]) -> tuple[float, ...]:
    """Median seconds of functions, timed in turn so that drift affects all alike."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + len(functions) * _MIN_SECONDS
    while time.perf_counter() < end or len(times[0]) < _MIN_RUNS:
        for function, kept in zip(functions, times, strict=True):
            function()  # brings its own code and data back into the caches
            start = time.perf_counter()
            function()
            kept.append(time.perf_counter() - start)
    return tuple(float(np.median(t)) for t in times)


def of_steps(model: Model, inputs: Mapping[str, Array]) -> dict[str, float]:
    """{step: median seconds}; the parts of a split product are added up."""
    found: dict[str, float] = {}
    for step, taken in zip(model.variant.steps, model.profile(inputs, repeat=9), strict=True):
        found[step.name] = found.get(step.name, 0.0) + taken
    return found
