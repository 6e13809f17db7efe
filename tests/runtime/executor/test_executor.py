"""Requests of an executor: each answered once, as the model answers, or failed clearly."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from clients import fork_while_busy

from qcompiler import Error, Executor, load
from qcompiler.hardware import cpu
from qcompiler.ir import Array
from qcompiler.runtime.executor import Closed, Full, Late, Pool, pool

TWO = {"streams": 2, "threads": 1}


class Gate:
    """Holds an executor's streams: its pool has a turn only for those that are let through."""

    def __init__(self, streams: int = 1) -> None:
        self.pool = Pool(streams)
        for _ in range(streams):
            self.pool.enter(1)
        self._held = streams

    def open(self) -> None:
        for _ in range(self._held):
            self.pool.leave(1)
        self._held = 0


def occupied(executor: Executor, sample: Array) -> Any:
    """A request that the only stream has begun, and nothing else: it stands at the shut gate."""
    future = executor.submit(sample)
    while not executor.options.pool._waiting:  # type: ignore[union-attr]
        time.sleep(1e-3)
    return future


def same(found: tuple[Array, ...], wanted: tuple[Array, ...]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("streams", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_results_are_those_of_the_model(product: Path, streams: int, threads: int) -> None:
    model = load(product, threads=threads)
    samples = [models.sample(i) for i in range(40)]
    wanted = [model(x) for x in samples]
    with Executor(product, streams=streams, threads=threads) as executor:
        futures = [executor.submit(x) for x in samples]
        for future, expected in zip(futures, wanted, strict=True):
            same(future.result(), expected)
        for found, expected in zip(executor.map(samples), wanted, strict=True):
            same(found, expected)
        named = executor.submit({"x": samples[0]}).result()
        same((named["y"], named["z"]), wanted[0])
        same(executor.run(samples[1]), wanted[1])


def test_an_artifact_in_memory_will_do() -> None:
    with Executor(models.doubling(), **TWO) as executor:
        x = np.arange(8, dtype=np.float32)
        np.testing.assert_array_equal(executor.run(x), 2 * x)


def test_a_request_that_is_wrong_fails_alone(doubling: Path) -> None:
    x = np.arange(8, dtype=np.float32)
    wrong = [
        (x[:3],),
        (x.astype(np.float64),),
        (x, x),
        (),
        ({"y": x},),
        ({"x": None},),
        ("no array",),
    ]
    with Executor(doubling, **TWO) as executor:
        mixed = [executor.submit(*inputs) for pair in ((w, (x,)) for w in wrong) for inputs in pair]
        for bad, good in zip(mixed[::2], mixed[1::2], strict=True):
            assert type(bad.exception()) is Error
            np.testing.assert_array_equal(good.result(), 2 * x)
    counts = executor.counts
    assert (counts.accepted, counts.answered, counts.failed) == (14, 7, 7)


def test_not_a_number_comes_through(doubling: Path) -> None:
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38, 1, 0], np.float32)
    with Executor(doubling, **TWO) as executor:
        np.testing.assert_array_equal(executor.run(x), load(doubling)(x))


def test_samples_come_from_a_generator_a_few_at_a_time(doubling: Path) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield np.full(8, taken, np.float32)

    with Executor(doubling, **TWO) as executor:
        results = executor.map(endless())
        for number in range(1, 101):
            assert next(results)[0] == 2 * number
            assert taken <= number + 6
        results.close()


def test_what_is_wrong_with_a_sample_comes_in_its_place(doubling: Path) -> None:
    x = np.arange(8, dtype=np.float32)
    samples = [x, x[:2], x]
    with Executor(doubling, **TWO) as executor:
        first, second, third = executor.map(samples, return_errors=True)
        np.testing.assert_array_equal(first, third)
        assert isinstance(second, Error)
        results = executor.map(samples)
        next(results)
        with pytest.raises(Error, match="shape"):
            next(results)


def test_the_highest_priority_runs_first(doubling: Path) -> None:
    gate, order = Gate(), []
    x = np.zeros(8, np.float32)
    with Executor(doubling, streams=1, threads=1, pool=gate.pool) as executor:
        occupied(executor, x)
        futures = []
        for number, priority in enumerate([0, 5, -1, 5, 0]):
            future = executor.submit(x, priority=priority)
            future.add_done_callback(lambda _, n=number: order.append(n))  # type: ignore[misc]
            futures.append(future)
        gate.open()
        wait(futures)
    assert order == [1, 3, 0, 4, 2]


def test_a_full_queue_refuses(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    options = {"streams": 1, "threads": 1, "max_queue_size": 3, "pool": gate.pool}
    with Executor(doubling, when_full="refuse", **options) as executor:
        accepted = [occupied(executor, x), *(executor.submit(x) for _ in range(3))]
        with pytest.raises(Full, match="3 requests wait"):
            executor.submit(x)
        assert executor.waiting == 3
        assert executor.submit(x[:2]).exception() is not None  # what is wrong is told first
        gate.open()
        assert all(np.array_equal(f.result(), 2 * x) for f in accepted)
    assert executor.counts.refused == 1


def test_a_full_queue_makes_submitters_wait(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    with Executor(doubling, streams=1, threads=1, max_queue_size=1, pool=gate.pool) as executor:
        futures = [occupied(executor, x), executor.submit(x)]
        third = threading.Thread(target=lambda: futures.append(executor.submit(x)))
        third.start()
        third.join(0.1)
        assert third.is_alive()
        assert len(futures) == 2
        gate.open()
        third.join(30)
        assert all(np.array_equal(f.result(), 2 * x) for f in futures)
        assert len(futures) == 3


def test_who_waits_for_cancelled_requests_is_told(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    with Executor(doubling, streams=1, threads=1, pool=gate.pool) as executor:
        first = occupied(executor, x)
        futures = [executor.submit(x) for _ in range(5)]
        assert all(f.cancel() for f in futures)
        done, left = wait(futures, timeout=60)
        assert (len(done), len(left)) == (5, 0)
        gate.open()
        assert np.array_equal(first.result(), 2 * x)
    assert executor.counts.cancelled == 5


def test_a_cancelled_request_makes_room(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    options = {"streams": 1, "threads": 1, "max_queue_size": 1, "pool": gate.pool}
    with Executor(doubling, when_full="refuse", **options) as executor:
        first = occupied(executor, x)
        for _ in range(300):
            waiting = executor.submit(x)
            assert waiting.cancel()
        assert executor.waiting == 0
        last = executor.submit(x)
        assert not first.cancel()
        gate.open()
        assert np.array_equal(last.result(), 2 * x)
        with pytest.raises(CancelledError):
            waiting.result()
    counts = executor.counts
    assert (counts.accepted, counts.answered, counts.cancelled) == (302, 2, 300)


def test_what_cannot_be_in_time_is_refused_at_once(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    with Executor(doubling, streams=1, threads=1, pool=gate.pool) as executor:
        occupied(executor, x)
        executor._tally.predicted = 0.1
        waiting = [executor.submit(x) for _ in range(5)]
        late = executor.submit(x, deadline_ms=400)
        assert late.done()
        assert isinstance(late.exception(), Late)
        early = executor.submit(x, deadline_ms=3_600_000)
        assert not early.done()
        gate.open()
        wait([*waiting, early])
        assert early.exception() is None


def test_a_request_whose_time_is_over_is_not_run(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    with Executor(doubling, streams=1, threads=1, pool=gate.pool) as executor:
        first = occupied(executor, x)
        late = executor.submit(x, deadline_ms=20)
        assert not late.done()
        time.sleep(0.05)
        gate.open()
        assert isinstance(late.exception(), Late)
        assert first.exception() is None
    counts = executor.counts
    assert (counts.late, counts.answered, counts.runs) == (1, 1, 1)


def test_results_can_be_awaited(doubling: Path) -> None:
    x = np.arange(8, dtype=np.float32)

    async def many() -> None:
        with Executor(doubling, max_queue_size=2, **TWO) as executor:
            np.testing.assert_array_equal(await executor.submit(x), 2 * x)
            found = await asyncio.gather(*(executor.arun(x * i) for i in range(100)))
            for i, y in enumerate(found):
                np.testing.assert_array_equal(y, 2 * i * x)
            with pytest.raises(Error, match="shape"):
                await executor.arun(x[:1])

    asyncio.run(many())


def test_a_task_that_is_cancelled_takes_its_request_with_it(doubling: Path) -> None:
    gate, x = Gate(), np.arange(8, dtype=np.float32)

    async def some(executor: Executor) -> None:
        tasks = [asyncio.ensure_future(executor.arun(x)) for _ in range(6)]
        await asyncio.sleep(0.02)
        for task in tasks[2:5]:
            task.cancel()
        await asyncio.sleep(0.02)
        gate.open()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(d, asyncio.CancelledError) for d in done] == [0, 0, 1, 1, 1, 0]

    with Executor(doubling, streams=1, threads=1, max_queue_size=2, pool=gate.pool) as executor:
        asyncio.run(some(executor))
    counts = executor.counts
    assert counts.accepted == counts.answered + counts.cancelled


def test_a_callback_that_fails_or_asks_for_more_does_no_harm(doubling: Path) -> None:
    x, more = np.arange(8, dtype=np.float32), []
    with Executor(doubling, **TWO) as executor:
        future = executor.submit(x)
        future.add_done_callback(lambda _: 1 // 0)
        future.add_done_callback(lambda _: more.append(executor.submit(x)))
        future.result()
        while not more:
            time.sleep(1e-3)
        np.testing.assert_array_equal(more[0].result(), 2 * x)


def test_a_callback_does_not_wait_for_its_own_stream(doubling: Path) -> None:
    gate, x, said = Gate(), np.ones(8, np.float32), []
    with Executor(doubling, streams=1, threads=1, max_queue_size=1, pool=gate.pool) as executor:

        def ask(_: Any) -> None:
            try:
                executor.submit(x)
            except Full as e:
                said.append(e)

        first = occupied(executor, x)
        first.add_done_callback(ask)
        second = executor.submit(x)
        gate.open()
        np.testing.assert_array_equal(second.result(30), 2 * x)
    assert len(said) == 1


def test_closing_runs_what_was_taken(slow: Path) -> None:
    x = np.ones((256, 256), np.float32)
    executor = Executor(slow, **TWO)
    futures = [executor.submit(x) for _ in range(10)]
    executor.close()
    assert all(f.done() and f.exception() is None for f in futures)
    with pytest.raises(Closed):
        executor.submit(x)
    executor.close()


def test_closing_without_waiting_fails_what_was_not_begun(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    executor = Executor(doubling, streams=1, threads=1, pool=gate.pool)
    first = occupied(executor, x)
    others = [executor.submit(x) for _ in range(3)]
    executor.close(wait=False)
    assert all(isinstance(f.exception(), Closed) for f in others)
    gate.open()
    np.testing.assert_array_equal(first.result(), 2 * x)


def test_an_exception_in_the_block_does_not_wait_for_the_queue(doubling: Path) -> None:
    gate, x = Gate(), np.ones(8, np.float32)
    executor = Executor(doubling, streams=1, threads=1, pool=gate.pool)

    def interrupted() -> Any:
        with executor:
            occupied(executor, x)
            waiting.append(executor.submit(x))
            raise KeyboardInterrupt

    waiting: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert isinstance(waiting[0].exception(), Closed)
    gate.open()


def test_who_waits_for_room_is_told_of_the_end(doubling: Path) -> None:
    gate, x, said = Gate(), np.ones(8, np.float32), []
    executor = Executor(doubling, streams=1, threads=1, max_queue_size=1, pool=gate.pool)
    occupied(executor, x)
    executor.submit(x)

    def submit() -> None:
        try:
            executor.submit(x)
        except Closed as e:
            said.append(e)

    blocked = [threading.Thread(target=submit) for _ in range(3)]
    for thread in blocked:
        thread.start()
    time.sleep(0.05)
    executor.close(wait=False)
    for thread in blocked:
        thread.join(30)
    assert len(said) == 3
    gate.open()


def test_a_dropped_executor_answers_what_it_took(doubling: Path) -> None:
    x = np.ones(8, np.float32)
    futures = [Executor(doubling, **TWO).submit(x) for _ in range(5)]
    gc.collect()
    assert all(np.array_equal(f.result(30), 2 * x) for f in futures)


def test_an_executor_may_be_dropped_wherever_the_garbage_collector_runs(doubling: Path) -> None:
    """Also in a thread that has the lock of its queue, as streams that take a request."""
    gate, x, dropped = Gate(), np.ones(8, np.float32), threading.Event()
    held = [Executor(doubling, streams=1, threads=1, pool=gate.pool)]
    future, queue, (stream,) = held[0].submit(x), held[0]._queue, held[0]._streams._started

    def drop() -> None:
        with queue._lock:
            held.clear()
            gc.collect()
        dropped.set()

    threading.Thread(target=drop, daemon=True).start()
    assert dropped.wait(30), "it waits for itself"
    gate.open()
    assert np.array_equal(future.result(30), 2 * x)
    stream.join(30)
    assert not stream.is_alive()


def threads_now() -> int:
    """Threads of this process, those that have just ended left out."""
    for _ in range(100):
        if threading.active_count() == 1:
            break
        time.sleep(0.01)
    return threading.active_count()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
@pytest.mark.parametrize("end", ["close", "drop"])
def test_executors_leave_nothing_behind(product: Path, end: str) -> None:
    x = models.sample(0)

    def cycle() -> None:
        executor = Executor(product, streams=2, threads=2, pool=Pool(4))
        executor.run(x)
        if end == "close":
            executor.close()

    def held() -> tuple[int, int]:
        gc.collect()
        deadline = time.monotonic() + 10
        while any("stream" in t.name for t in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(1e-3)
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:qcompiler")

    cycle()
    before = (*held(), threading.active_count())
    for _ in range(30):
        cycle()
    after = (*held(), threading.active_count())
    assert after == before


def test_two_executors_share_the_cores_of_a_pool(slow: Path) -> None:
    pool = Pool(2)
    x, most = np.ones((256, 256), np.float32), []
    lock = threading.Lock()
    enter = pool.enter

    def watched(threads: int) -> None:
        enter(threads)
        with lock:
            most.append(pool._running)

    pool.enter = watched  # type: ignore[method-assign]
    with Executor(slow, pool=pool, **TWO) as one, Executor(slow, pool=pool, **TWO) as two:
        wait([e.submit(x) for _ in range(20) for e in (one, two)])
    assert len(most) == 40
    assert max(most) == 2


def test_turns_are_given_first_come_first_served() -> None:
    pool, order = Pool(4), []
    pool.enter(3)

    def turn(name: str, threads: int) -> None:
        pool.enter(threads)
        order.append(name)

    waiting = []
    for name, threads in (("wide", 4), ("narrow", 1)):
        waiting.append(threading.Thread(target=turn, args=(name, threads)))
        waiting[-1].start()
        while len(pool._waiting) < len(waiting):
            time.sleep(1e-3)
    pool.leave(3)
    waiting[0].join(30)
    assert order == ["wide"]
    pool.leave(4)
    waiting[1].join(30)
    assert order == ["wide", "narrow"]
    pool.leave(1)
    pool.enter(9)  # more than there are, alone
    pool.leave(9)


def test_an_executor_is_not_pickled(doubling: Path) -> None:
    with Executor(doubling, **TWO) as executor, pytest.raises(Error, match="other processes"):
        pickle.dumps(executor)


def test_unknown_and_invalid_options_are_refused(doubling: Path) -> None:
    with pytest.raises(Error, match="no option 'stream'"):
        Executor(doubling, stream=1)  # type: ignore[call-arg]
    with pytest.raises(Error, match="unknown hint"):
        Executor(doubling, hint="speed")
    with pytest.raises(Error, match="-1 streams"):
        Executor(doubling, streams=-1)


FORKED = """
import os, sys, time
import numpy as np
from qcompiler import Error, Executor
from qcompiler.runtime.executor import Pool
x = np.ones(8, np.float32)
shut = Pool(1)
shut.enter(1)
executor = Executor(sys.argv[1], streams=2, threads=1)
held = Executor(sys.argv[1], streams=1, threads=1, pool=shut)
mine = held.submit(x)
executor.run(x)
ended = Executor(sys.argv[1], streams=1, threads=1)
ended.close()
pid = os.fork()
if not pid:
    try:
        assert np.array_equal(executor.run(x), 2 * x)
        try:
            mine.result(5)
        except Error as e:
            assert "forked" in str(e)
        try:
            ended.submit(x)
        except Error as e:
            assert "closed" in str(e)
        shut.enter(1)  # nobody runs in the child
        shut.leave(1)
        assert np.array_equal(held.run(x), 2 * x)
        executor.close()
        sys.exit(0)
    except BaseException as e:
        os._exit(0 if isinstance(e, SystemExit) and not e.code else 1)
status = os.waitpid(pid, 0)[1]
shut.leave(1)
assert np.array_equal(mine.result(), 2 * x)
assert np.array_equal(executor.run(x), 2 * x)
sys.exit(status != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_streams_of_its_own(doubling: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKED, str(doubling)], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_requests_is_safe(doubling: Path) -> None:
    fork_while_busy(doubling, 20, streams=2)


IDLE = """
import sys, time
import numpy as np
from qcompiler import Executor
options = {"streams": 2, "threads": 2}, {"pipeline": 2, "threads": 2}, {"streams": 1, "threads": 1}
executors = [Executor(sys.argv[1], **o) for o in options]
for executor in executors:
    list(executor.map(np.ones((64, 48), np.float32) for _ in range(200)))
time.sleep(0.1)
before = time.process_time()
time.sleep(2)
sys.exit(time.process_time() - before > 0.02)
"""


def test_idle_streams_do_not_spin(product: Path) -> None:
    subprocess.run([sys.executable, "-c", IDLE, str(product)], check=True, timeout=120)


ENDED = """
import signal, sys, threading, time
import numpy as np
from qcompiler import Executor
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
x = np.ones((256, 256), np.float32)
executor = Executor(sys.argv[1], streams=2, threads=1)
staged = Executor(sys.argv[1], pipeline=2, threads=1)
def busy(some):
    while True:
        some.run(x)
for some in 3 * (executor, staged): threading.Thread(target=busy, args=[some], daemon=True).start()
executor.run(x)
staged.run(x)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_end_the_process_in_the_middle_of_requests(slow: Path, name: str) -> None:
    command = [sys.executable, "-c", ENDED, str(slow)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        number = getattr(signal, name)
        process.send_signal(number)
        assert process.wait(120) in (-number, 130, 1)


ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from qcompiler import Executor
with Executor(sys.argv[1], hint="throughput", remember=False) as executor:
    assert (executor.choice.streams, executor.choice.threads) == (1, 1), executor.choice
    executor.run(np.ones((64, 48), np.float32))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_one_core_gets_one_stream_of_one_thread(product: Path) -> None:
    subprocess.run([sys.executable, "-c", ONE_CORE, str(product)], check=True, timeout=120)


@pytest.mark.parametrize(("share", "wanted"), [(1.5, (1, 1)), (3.0, (3, 1))])
def test_a_quota_of_the_control_group_bounds_streams_and_pool(
    slow: Path, share: float, wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "quota", lambda: share)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(pool, "_default", [])
    with Executor(slow, hint="throughput", remember=False) as executor:
        assert (executor.choice.streams, executor.choice.threads) == wanted
        assert pool.default_pool().threads == wanted[0]
