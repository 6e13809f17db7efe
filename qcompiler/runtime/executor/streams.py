"""A queue of requests -> threads that run them, one or a batch at a time, and answer each once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qcompiler.errors import Error
from qcompiler.runtime.arrays import Array, Kind
from qcompiler.runtime.executor.batches import Batcher
from qcompiler.runtime.executor.errors import Closed, Late
from qcompiler.runtime.executor.pool import Pool
from qcompiler.runtime.executor.queue import RequestQueue
from qcompiler.runtime.executor.requests import Request
from qcompiler.runtime.executor.tally import Tally

log = logging.getLogger(__name__)

_STARTING_SECONDS = 120.0


class Runner(Protocol):
    """Runs the model for one stream; its thread makes it, uses it and ends it."""

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Inputs just as the model takes them -> new outputs."""

    def end(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class Gather:
    """How requests are gathered into batches."""

    inputs: Sequence[Kind]
    """The model's inputs, of the largest batch."""
    most: int
    """Samples of a batch."""
    least: int
    """Batches of fewer samples are filled up to this number."""
    preferred: Container[int] = ()
    """Numbers of samples at which a batch does not wait for more."""
    delay_seconds: float = 0.0
    """How long other batches wait for more samples."""


class Streams:
    """Threads that run what waits in `queue`, and end when it is closed. They know nothing of the
    executor, so that it can be dropped.

    `make` makes the runner of each; `names` are those of the outputs; `gather` says how requests
    are gathered, if they are.
    """

    def __init__(
        self,
        queue: RequestQueue,
        tally: Tally,
        pool: Pool,
        make: Callable[[], Runner],
        names: Sequence[str],
        *,
        threads: int,
        gather: Gather | None = None,
    ) -> None:
        self.queue, self.tally = queue, tally
        self._pool, self._make, self._names, self._threads = pool, make, names, threads
        self._gather = gather
        self._gathering = threading.Lock()
        """Held by the stream that waits for requests, where they are gathered: two would share what
        one could run as a whole batch.
        """
        self._started: list[threading.Thread] = []

    def start(self, count: int) -> None:
        """Start `count` streams. Raises Error where one of them cannot be."""
        failures: list[BaseException] = []
        ready = threading.Semaphore(0)
        for number in range(count):
            thread = threading.Thread(
                target=self._work,
                args=(ready, failures),
                name=f"qcompiler-stream-{number}",
                daemon=True,
            )
            thread.start()
            self._started.append(thread)
        for _ in range(count):
            if not ready.acquire(timeout=_STARTING_SECONDS):
                failures.append(Error("a stream has not started in time"))
                break
        if failures:
            self.queue.close()
            raise failures[0]

    def close(self, *, drain: bool) -> None:
        """Take no more requests. `drain`: those that wait are still run; else they fail at once."""
        self.queue.close()
        if not drain:
            for request in self.queue.clear():
                if request.future.set_running_or_notify_cancel():
                    closed = Closed("the executor was closed before the request was begun")
                    request.future.set_exception(closed)

    def is_one(self) -> bool:
        """Whether the calling thread is one of them."""
        return threading.current_thread() in self._started

    def join(self) -> None:
        """Wait until all have ended; who is one of them waits for the others."""
        for thread in self._started:
            if thread is not threading.current_thread():
                thread.join()

    def _work(self, ready: threading.Semaphore, failures: list[BaseException]) -> None:
        try:
            runner = self._make()
            gather = self._gather
            batcher = Batcher(gather.inputs, gather.least) if gather else None
        except BaseException as e:
            failures.append(e)
            return
        finally:
            ready.release()
        try:
            while requests := self._next():
                self._answer(runner, batcher, requests)
                del requests
        finally:
            runner.end()

    def _next(self) -> list[Request]:
        """What to run next, all in time and not cancelled; empty: nothing comes any more."""
        if self._gather is None:
            while first := self.queue.take():
                if self._begun(first):
                    return [first]
            return []
        with self._gathering:
            return self._gathered(self._gather)

    def _gathered(self, gather: Gather) -> list[Request]:
        """Requests of at most as many samples as a batch has."""
        found: list[Request] = []
        rows, until = 0, 0.0
        while rows < gather.most:
            if found:
                wait = 0.0 if rows in gather.preferred else until
                request = self.queue.take_fitting(gather.most - rows, wait)
            else:
                request = self.queue.take()
            if request is None:
                break
            if self._begun(request):
                until = until or time.monotonic() + gather.delay_seconds
                found.append(request)
                rows += request.rows
        return found

    def _begun(self, request: Request) -> bool:
        """Whether a request is to be run: it was not cancelled, and is not too late."""
        if not request.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() + self.tally.predicted > request.due:
            late = Late("its deadline would have passed before its end")
            request.future.set_exception(late)
            return False
        return True

    def _answer(self, runner: Runner, batcher: Batcher | None, requests: Sequence[Request]) -> None:
        """Run these, and answer each."""
        try:
            self._pool.enter(self._threads)
            start = time.monotonic()
            try:
                arrays = batcher.joined(requests) if batcher else requests[0].arrays
                outputs = runner.run(arrays)
            finally:
                self._pool.leave(self._threads)
            seconds = time.monotonic() - start
            split = batcher.split(requests, outputs) if batcher else [outputs]
            rows = sum(r.rows for r in requests)
            self.tally.ran([start - r.submitted for r in requests], seconds, rows)
        except BaseException as e:  # whatever it is, it is theirs, and the stream goes on
            for request in requests:
                request.arrays = ()
                request.future.set_exception(_of_its_own(e))
            return
        for request, results in zip(requests, split):
            request.arrays = ()
            request.future.set_result(self._shaped(results, request))

    def _shaped(
        self, results: Sequence[Array], request: Request
    ) -> Array | tuple[Array, ...] | Mapping[str, Array]:
        if request.named:
            return dict(zip(self._names, results))
        return results[0] if len(results) == 1 else tuple(results)


def _of_its_own(error: BaseException) -> BaseException:
    """An exception for one future: an Error made anew, so that no two share a traceback."""
    if type(error) is Error:
        return Error(error.what, where=error.where, hint=error.hint)
    return error
