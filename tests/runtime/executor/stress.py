"""Many clients, many shapes, and all that goes wrong, at once -> what became of every request.

Every request ends in one way that its client expected, results are bit-equal to those of a model
that runs alone, and nothing is left over.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

import models
import numpy as np
from clients import together

from qcompiler import Error, Executor, load
from qcompiler.ir import Array
from qcompiler.runtime import Model
from qcompiler.runtime.executor import Full, Late, WorkerLost


@dataclass
class Stress:
    """`shapes`: requests of 1 to so many samples. Others have one of 400 wrong widths."""

    path: Path
    requests: int
    clients: int = 16
    shapes: int = 8
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = load(self.path)
        self.samples = [models.sample(i, 1 + i % self.shapes) for i in range(40)]
        self.samples[7][0, 3] = np.nan
        self.samples[9][0, 5] = np.inf
        self.wanted = [self._alone(model, x) for x in self.samples]
        self._lock = threading.Lock()
        self._left = self.requests

    def _alone(self, model: Model, x: Array) -> list[Array]:
        if model.manifest.symbols:
            return list(model(x))
        whole = np.concatenate([x, np.zeros((self.shapes - len(x), models.WIDTH), np.float32)])
        return [y[: len(x)] for y in model(whole)]

    def run(self, executor: Executor) -> None:
        """All clients, until all requests have ended."""
        together(lambda i: self._client(executor, random.Random(i)), self.clients)

    def _more(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _client(self, executor: Executor, luck: random.Random) -> None:
        while self._more():
            kind = luck.choice(
                ("plain",) * 6 + ("named", "shape", "dtype", "cancel", "late", "slow")
            )
            try:
                end = self._one(executor, kind, luck)
            except Full:
                end = "refused"
            except BaseException as e:
                self.wrong.append(f"{kind}: {type(e).__name__}: {e}")
                end = "unexpected"
            with self._lock:
                self.ended[end] += 1

    def _one(self, executor: Executor, kind: str, luck: random.Random) -> str:
        """One request -> how it ended. Whatever it should not be is raised."""
        number = luck.randrange(len(self.samples))
        x, wanted = self.samples[number], self.wanted[number]
        priority = luck.randrange(3)
        if kind in ("shape", "dtype"):
            width = models.WIDTH + luck.randrange(1, 400)
            bad = np.zeros((1, width), np.float32) if kind == "shape" else x.astype(np.float64)
            error = executor.submit(bad, priority=priority).exception(300)
            assert type(error) is Error, error
            return "wrong"
        deadline_ms = luck.choice((0.001, 1.0, 20.0)) if kind == "late" else 0.0
        given = {"x": x} if kind == "named" else x
        future = executor.submit(given, priority=priority, deadline_ms=deadline_ms)
        if kind == "cancel" and luck.random() < 0.7:
            future.cancel()
        if kind == "slow":
            time.sleep(luck.random() * 0.01)
        try:
            result = future.result(300)
        except CancelledError:
            assert kind == "cancel"
            return "cancelled"
        except Late:
            assert kind == "late"
            return "late"
        except WorkerLost:
            return "lost"
        found = list(result.values()) if kind == "named" else list(result)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
        return "answered"


class Killer:
    """Kills a worker of this process now and then."""

    def __init__(self, children: Callable[[], list[int]], every_seconds: float) -> None:
        self._children, self._every = children, every_seconds
        self._stop = threading.Event()
        self.killed = 0
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        luck = random.Random(0)
        while not self._stop.wait(self._every):
            found = self._children()
            if found:
                os.kill(luck.choice(found), signal.SIGKILL)
                self.killed += 1


def held() -> tuple[int, int]:
    """Descriptors, and kB of memory, of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    (resident,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return len(os.listdir("/proc/self/fd")), int(resident)
