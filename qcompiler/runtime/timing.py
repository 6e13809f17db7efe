"""Something that runs -> how long it takes, once or repeatedly."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MOST_RUNS = 1_000_000


@dataclass(frozen=True)
class Measured:
    """How long an artifact takes, in seconds, with `threads` threads."""

    times: list[float]
    """One for each timed run."""
    first_seconds: float
    load_seconds: float
    threads: int


def once(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def again(
    run: Callable[[], object], *, iterations: int, seconds: float, warmup: int
) -> list[float]:
    """Seconds of each of `iterations` runs after `warmup` untimed ones; `iterations` 0: of as many
    as fit into `seconds`, at least one.
    """
    for _ in range(warmup):
        run()
    times: list[float] = []
    most = min(iterations or MOST_RUNS, MOST_RUNS)
    end = time.perf_counter() + seconds
    while len(times) < most and (iterations or time.perf_counter() < end or not times):
        times.append(once(run))
    return times
