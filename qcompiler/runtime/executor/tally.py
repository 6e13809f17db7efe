"""What became of the requests: counts, and how long they took."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

BOUNDS = tuple(m * 10.0**e for e in range(-5, 2) for m in (1.0, 2.0, 5.0))
"""Upper bounds of a histogram's buckets, in seconds; one more has all that took longer."""
_WEIGHT = 0.1
"""Of the latest run in what the next is predicted to take."""


@dataclass(frozen=True)
class Histogram:
    """Times by bucket."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    seconds: float = 0.0
    """The sum of all."""


@dataclass(frozen=True)
class Counts:
    """What became of the requests so far. Every accepted one is, in the end, one of answered,
    failed, late, cancelled.
    """

    accepted: int = 0
    answered: int = 0
    failed: int = 0
    late: int = 0
    cancelled: int = 0
    refused: int = 0
    """Never accepted: there was no room."""
    retried: int = 0
    restarted: int = 0
    """Workers that were started again."""
    runs: int = 0
    rows: int = 0
    """Samples of all runs."""
    waited: Histogram = field(default_factory=Histogram)
    """From submitting a request to its run."""
    ran: Histogram = field(default_factory=Histogram)
    """Of every run."""


class Tally:
    """Counts that any thread adds to, and what a run is predicted to take."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._waited = [0] * (len(BOUNDS) + 1)
        self._ran = [0] * (len(BOUNDS) + 1)
        self._seconds = [0.0, 0.0]
        self.predicted = 0.0
        """Seconds of a run; 0 before anything was run."""

    def add(self, what: str, count: int = 1) -> None:
        """Count an event, named as in Counts."""
        with self._lock:
            self._counts[what] = self._counts.get(what, 0) + count

    def ran(self, waited: Sequence[float], seconds: float, rows: int) -> None:
        """A run of requests that had `waited` that many seconds each."""
        with self._lock:
            for one in waited:
                self._waited[bisect_left(BOUNDS, one)] += 1
                self._seconds[0] += one
            self._ran[bisect_left(BOUNDS, seconds)] += 1
            self._seconds[1] += seconds
            self._counts["runs"] = self._counts.get("runs", 0) + 1
            self._counts["rows"] = self._counts.get("rows", 0) + rows
            before = self.predicted or seconds
            self.predicted = before + _WEIGHT * (seconds - before)

    @property
    def counts(self) -> Counts:
        """All of them, as they are now."""
        with self._lock:
            waited = Histogram(tuple(self._waited), self._seconds[0])
            ran = Histogram(tuple(self._ran), self._seconds[1])
            return replace(Counts(waited=waited, ran=ran), **self._counts)  # type: ignore[arg-type]
