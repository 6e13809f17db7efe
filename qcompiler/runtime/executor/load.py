"""An executor under load -> what its requests took.

Closed loop: a fixed number of requests is under way at any time; every answer starts the next. Open
loop: requests come at random times (a Poisson process) whether others were answered or not, and
their latencies count from when they should have come, so a queue that grows is seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qcompiler.errors import Error
from qcompiler.runtime.executor.errors import Full, Late
from qcompiler.runtime.executor.executor import Executor
from qcompiler.runtime.executor.requests import Future


@dataclass
class Load:
    """What came of it; times in seconds."""

    seconds: float = 0.0
    """From the first request to the last answer."""
    latencies: list[float] = field(default_factory=list)
    """Of those that were answered."""
    late: int = 0
    refused: int = 0
    failed: int = 0

    @property
    def answered_per_second(self) -> float:
        """Requests answered a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def add(self, future: Future, since: float) -> None:
        """Count a request that is done, which should have come then (time.perf_counter)."""
        error = future.exception()
        if error is None:
            self.latencies.append(time.perf_counter() - since)
        elif isinstance(error, Late):
            self.late += 1
        else:
            self.failed += 1


def closed(
    executor: Executor, inputs: Any, *, concurrency: int, requests: int, seconds: float
) -> Load:
    """`requests` of them (0: for `seconds`), `concurrency` at a time."""
    most = executor.options.max_queue_size
    if most and concurrency > most:
        raise Error(f"{concurrency} requests at a time, {most} may wait", hint="--max-queue-size")
    made, over = Load(), threading.Event()
    lock = threading.Lock()
    begin = time.perf_counter()
    left, live = requests, concurrency

    def more() -> bool:
        """Whether this client asks again."""
        nonlocal left, live
        with lock:
            going = left > 0 if requests else time.perf_counter() < begin + seconds
            left -= 1
            live -= not going
            if not live:
                over.set()
            return going

    def answered_at_once() -> bool:
        """Ask; whether the answer was there before this thread could leave."""
        since, here = time.perf_counter(), threading.get_ident()
        asking, answered = [True], []

        def done(future: Any) -> None:
            with lock:
                made.add(future, since)
            if asking and threading.get_ident() == here:
                answered.append(True)
            else:
                client()

        executor.submit(inputs).add_done_callback(done)
        asking.clear()
        return bool(answered)

    def client() -> None:
        """Ask, be it by the stream that answered the last time, until it is over."""
        while more() and answered_at_once():
            pass

    for _ in range(concurrency):
        client()
    over.wait()
    made.seconds = time.perf_counter() - begin
    return made


def poisson(
    executor: Executor,
    inputs: Any,
    *,
    rate: float,
    requests: int,
    seconds: float,
    seed: int = 0,
    deadline_ms: float = 0.0,
) -> Load:
    """`requests` of them (0: for `seconds`), `rate` a second on average."""
    rng, made, futures = np.random.default_rng(seed), Load(), []
    lock = threading.Lock()
    begin = due = time.perf_counter()
    while requests > 0 or due < begin + seconds:
        due += float(rng.exponential(1 / rate))
        while (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        try:
            future = executor.submit(inputs, deadline_ms=deadline_ms)
        except Full:
            made.refused += 1
        else:
            future.add_done_callback(_adding(made, due, lock))
            futures.append(future)
        if requests:
            requests -= 1
            if not requests:
                break
    wait(futures)
    made.seconds = time.perf_counter() - begin
    return made


def _adding(made: Load, since: float, lock: threading.Lock) -> Callable[[Any], None]:
    def done(future: Any) -> None:
        with lock:
            made.add(future, since)

    return done
