"""Streams in a Ray cluster: the same results, in order, also where actors die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import models
import numpy as np
import pytest

from qcompiler import Error, Executor, load
from qcompiler.runtime.executor import WorkerLost, ray_engine

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

pytestmark = pytest.mark.slow  # a cluster of one machine takes ten seconds to start


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    options = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(num_cpus=2, object_store_memory=100 << 20, **options)
    yield
    ray.shutdown()


def pids() -> list[int]:
    """Processes of this machine's actors."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_Worker"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def test_results_are_those_of_the_model(product: Path) -> None:
    model = load(product)
    samples = [models.sample(i) for i in range(30)]
    with Executor(product, engine="ray") as executor:
        assert executor.choice.streams == 2
        for x, found in zip(samples, executor.map(samples), strict=True):
            for a, b in zip(found, model(x), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.flags.writeable
        with pytest.raises(Error, match="shape"):
            executor.run(samples[0][:1])
    deadline = time.monotonic() + 60
    while pids():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_goes_on_when_actors_are_killed(doubling: Path) -> None:
    samples = (np.full(8, i, np.float32) for i in range(600))
    with Executor(doubling, engine="ray") as executor:
        for number, found in enumerate(executor.map(samples)):
            np.testing.assert_array_equal(found, np.full(8, 2 * number, np.float32))
            if number in (100, 300):
                os.kill(pids()[0], signal.SIGKILL)
        counts = executor.counts
    assert (counts.answered, counts.failed) == (600, 0)
    assert counts.restarted >= 1


def test_a_request_that_kills_two_actors_fails(doubling: Path) -> None:
    x = np.ones(8, np.float32)
    with Executor(doubling, engine="ray", streams=1) as executor:
        real = ray_engine.Actor._run

        def deadly(self: ray_engine.Actor, arrays: object) -> object:
            ray.kill(self._actor)
            with suppress(ray.exceptions.RayActorError):
                while True:  # until it is dead
                    ray.get(self._actor.ready.remote())
            return real(self, arrays)  # type: ignore[arg-type]

        ray_engine.Actor._run = deadly  # type: ignore[method-assign, assignment]
        try:
            assert isinstance(executor.submit(x).exception(120), WorkerLost)
        finally:
            ray_engine.Actor._run = real  # type: ignore[method-assign]
        np.testing.assert_array_equal(executor.run(x), 2 * x)
