"""Requests that run in processes: those may die, and none is lost for it, nor answered twice."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import models
import numpy as np
import pytest

from qcompiler import Error, Executor, load
from qcompiler.runtime.executor import WorkerLost

TWO = {"streams": 2, "threads": 1, "isolation": "processes"}
ONE = {"streams": 1, "threads": 1, "isolation": "processes"}

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here")


def children(parent: int | None = None) -> list[int]:
    """Worker processes of this one, or another, that run."""
    parent, found = parent or os.getpid(), []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, of = path.read_text().rpartition(")")[2].split()[:2]
            words = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(of) == parent and state != "Z" and b"executor.worker" in words:
            found.append(int(path.parent.name))
    return sorted(found)


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_those_of_the_model(product: Path, threads: int) -> None:
    model = load(product)
    samples = [models.sample(i) for i in range(20)]
    with Executor(product, streams=2, threads=threads, isolation="processes") as executor:
        assert len(children()) == 2
        for x, found in zip(samples, executor.map(samples), strict=True):
            for a, b in zip(found, model(x), strict=True):
                np.testing.assert_array_equal(a, b)
        with pytest.raises(Error, match="shape"):
            executor.run(samples[0][:1])
    assert children() == []


def test_batches_are_gathered_for_processes_too(batched: Path) -> None:
    model = load(batched)
    x = models.sample(5, 8)
    with Executor(batched, max_batch=8, **ONE) as executor:
        futures = [executor.submit(x[i : i + 1]) for i in range(8)]
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result()[0][0], model(x)[0][i])


def test_a_worker_that_died_idle_is_replaced(doubling: Path) -> None:
    x = np.ones(8, np.float32)
    with Executor(doubling, **ONE) as executor:
        for _ in range(2):
            kill(children())
            np.testing.assert_array_equal(executor.run(x), 2 * x)
        assert (executor.counts.restarted, executor.counts.retried) == (2, 2)


def test_a_worker_that_dies_of_a_request_gets_it_once_more(slow: Path) -> None:
    x = np.ones((256, 256), np.float32)
    wanted = load(slow)(x)
    with Executor(slow, **TWO) as executor:
        for deaths in (1, 2, 3):
            futures = [executor.submit(x) for _ in range(10)]
            futures[2].result(60)
            kill(children()[:1])
            while executor.counts.restarted < deaths:  # all live again before the next one dies
                futures += [executor.submit(x) for _ in range(2)]
                wait(futures)
            assert all(np.array_equal(f.result(60), wanted) for f in futures)
        counts = executor.counts
    assert (counts.failed, counts.restarted, counts.retried) == (0, 3, 3)


def test_two_deaths_fail_the_request_and_nothing_else(
    doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcompiler.runtime.executor import processes

    x = np.ones(8, np.float32)
    real, left = processes.filled, [2]

    def deadly(arrays: object, places: object) -> None:
        real(arrays, places)  # type: ignore[arg-type]
        if left[0]:
            left[0] -= 1
            kill(children())
            time.sleep(0.1)

    monkeypatch.setattr(processes, "filled", deadly)
    with Executor(doubling, **ONE) as executor:
        bad, good = executor.submit(x), executor.submit(x)
        error = bad.exception(60)
        assert isinstance(error, WorkerLost)
        assert "SIGKILL" in str(error)
        np.testing.assert_array_equal(good.result(60), 2 * x)
        assert executor.counts.failed == 1


def hung(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """As many runs from now on find their worker stopped, and do not wait long for it."""
    from qcompiler.runtime.executor import processes

    real, left = processes.Process._ask, [times]

    def ask(self: processes.Process, words: bytes, seconds: float) -> None:
        if words == processes.GO and left[0]:
            left[0] -= 1
            assert self._child is not None
            os.kill(self._child.process.pid, signal.SIGSTOP)
            seconds = 0.1
        real(self, words, seconds)

    monkeypatch.setattr(processes.Process, "_ask", ask)


def test_a_worker_that_hangs_is_replaced_and_its_request_run_again(
    doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.ones(8, np.float32)
    hung(monkeypatch, times=1)
    with Executor(doubling, **ONE) as executor:
        np.testing.assert_array_equal(executor.run(x), 2 * x)
        counts = executor.counts
    assert (counts.restarted, counts.retried, counts.failed) == (1, 1, 0)
    assert children() == []


def test_a_request_of_which_two_workers_hang_fails_alone(
    doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.ones(8, np.float32)
    hung(monkeypatch, times=2)
    with Executor(doubling, **ONE) as executor:
        bad, good = executor.submit(x), executor.submit(x)
        error = bad.exception(60)
        assert isinstance(error, WorkerLost)
        assert "did not answer within 0.1 s" in str(error)
        np.testing.assert_array_equal(good.result(60), 2 * x)
        assert executor.counts.failed == 1


def test_a_model_that_no_process_can_load_is_an_error(
    doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Error, match="died when it started: exit status 1"):
        Executor(doubling, **TWO)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(Error, match="no worker process"):
        Executor(doubling, **TWO)


def test_weights_cannot_be_changed_by_a_worker(product: Path) -> None:
    from qcompiler.runtime.executor.shared import SharedModel

    shared = SharedModel(load(product).artifact)
    with pytest.raises(OSError, match="permitted"):
        os.pwrite(shared.file, b"x", 0)
    shared.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_executors_leave_no_descriptors_and_no_processes(doubling: Path) -> None:
    x = np.ones(8, np.float32)

    def cycle(*, killing: bool) -> None:
        with Executor(doubling, **ONE) as executor:
            executor.run(x)
            if killing:
                kill(children())
                executor.run(x)

    cycle(killing=True)
    gc.collect()  # a failed request's traceback holds what its stream had mapped
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(3):
        cycle(killing=bool(turn % 2))
    assert len(os.listdir("/proc/self/fd")) == before
    assert children() == []


ORPHANS = """
import os, sys, time
import numpy as np
from qcompiler import Executor
executor = Executor(sys.argv[1], streams=2, threads=1, isolation="processes")
executor.run(np.ones(8, np.float32))
print("ready", flush=True)
time.sleep(60)
"""


def test_workers_end_with_their_executors_process(doubling: Path) -> None:
    command = [sys.executable, "-c", ORPHANS, str(doubling)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        pids = children(process.pid)
        assert len(pids) == 2
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


FORKED = """
import os, sys
import numpy as np
from qcompiler import Executor
x = np.ones(8, np.float32)
executor = Executor(sys.argv[1], streams=1, threads=1, isolation="processes")
executor.run(x)
pid = os.fork()
if not pid:
    ok = np.array_equal(executor.run(x), 2 * x)
    executor.close()
    os._exit(0 if ok else 1)
status = os.waitpid(pid, 0)[1]
ok = np.array_equal(executor.run(x), 2 * x)
executor.close()
sys.exit(not ok or status != 0 or executor.counts.restarted)
"""


def test_a_forked_child_has_workers_of_its_own(doubling: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKED, str(doubling)], check=True, timeout=120)


def test_a_closed_executor_fails_nobody_silently(slow: Path) -> None:
    x = np.ones((256, 256), np.float32)
    executor = Executor(slow, **ONE)
    futures = [executor.submit(x) for _ in range(10)]
    executor.close(wait=False)
    wait(futures, timeout=60)
    assert all(f.done() for f in futures)
