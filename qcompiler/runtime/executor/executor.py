"""Artifact -> Executor: requests in from anywhere, each answered once, with every core busy."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qcompiler.artifact.artifact import Artifact, Manifest
from qcompiler.errors import Error
from qcompiler.hardware import cpu
from qcompiler.options import takes
from qcompiler.runtime.cuda import CudaModel, place_of
from qcompiler.runtime.cuda import load as cuda_load
from qcompiler.runtime.executor.batches import parts, together
from qcompiler.runtime.executor.choose import Choice, chosen, piped
from qcompiler.runtime.executor.errors import Full, Late
from qcompiler.runtime.executor.gathering import gathering, most_samples
from qcompiler.runtime.executor.intake import Intake
from qcompiler.runtime.executor.nodes import Nodes
from qcompiler.runtime.executor.options import Executing
from qcompiler.runtime.executor.pipeline import Line
from qcompiler.runtime.executor.pool import Pool, default_pool
from qcompiler.runtime.executor.processes import Process
from qcompiler.runtime.executor.queue import RequestQueue
from qcompiler.runtime.executor.ray_engine import Actor, StoredModel, cluster_cores
from qcompiler.runtime.executor.requests import Future, Request
from qcompiler.runtime.executor.shared import SharedModel
from qcompiler.runtime.executor.streams import Runner, Streams
from qcompiler.runtime.executor.tally import Counts, Tally
from qcompiler.runtime.model import Interface, Model, load

if TYPE_CHECKING:
    from types import TracebackType

_executors: weakref.WeakSet[Executor] = weakref.WeakSet()


class Executor(Interface):
    """Runs requests of one model in streams, as soon as it can.

        with qcompiler.Executor("model.qc", hint="throughput") as executor:
            future = executor.submit(x)                     # or {"name": x}
            y = future.result()
            for y in executor.map(samples):                 # in order, a few ahead
                ...

    Any threads may use it at once. Arrays must stay as they are until their request is answered.
    """

    @takes(Executing)
    def __init__(self, artifact: str | Path | Artifact, keywords: Executing) -> None:
        """Path or artifact -> ready to run. Raises Error as `load` does. The keywords:"""
        self.options = keywords
        model = _loaded(artifact, keywords)
        self.manifest: Manifest = model.manifest
        self.variant = model.variant
        most = most_samples(self.manifest, keywords.max_batch)
        self._intake = Intake(self.manifest, most)
        self.choice = self._choose(model)
        self._nodes = Nodes(self.choice.threads)
        self._model = model
        self._shared: SharedModel | None = None
        self._stored: StoredModel | None = None
        if isinstance(model, CudaModel):
            pass  # its streams are here
        elif keywords.engine == "ray":
            self._stored = StoredModel(model.artifact)
            model.close()
        elif keywords.isolation == "processes":
            self._shared = SharedModel(model.artifact)
            model.close()  # what it held, the workers map
        self._closed = False
        self._forget()
        try:
            self._begin()
        except BaseException:
            self._release()
            raise
        _executors.add(self)

    def _choose(self, model: Model | CudaModel) -> Choice:
        """How many streams there are, threads of each, and stages."""
        asked = self.options
        if isinstance(model, CudaModel):
            usual = 1 if asked.hint == "latency" else _GPU_STREAMS
            why = "as asked" if asked.streams else f"what a GPU gets for {asked.hint}, not measured"
            return Choice(asked.streams or usual, 1, why)
        here = asked.isolation == "threads" and not asked.engine
        if asked.pipeline > 1 and not here:
            raise Error(
                "the stages of a pipeline are threads of one process",
                hint="leave out the pipeline, or isolation and engine",
            )
        if asked.engine == "ray":
            threads = max(1, asked.threads)
            streams = asked.streams or max(1, cluster_cores() // threads)
            return Choice(streams, threads, "the cores of the cluster")
        cores = asked.pool.threads if asked.pool else cpu.cores()
        if asked.pipeline > 1:
            given = {"streams": asked.streams, "threads": asked.threads}
            return piped(model, asked.pipeline, cores=cores, **given)
        return chosen(
            model,
            asked.hint,
            streams=asked.streams,
            threads=asked.threads,
            cores=cores,
            remember=asked.remember,
            stages=here and not asked.pipeline,
        )

    def _maker(self) -> Callable[[], Runner]:
        """What makes the runner of a stream, in its thread."""
        choice, options, model = self.choice, self.options, self._model
        if isinstance(model, CudaModel):
            return model.caller
        spin_us = 0 if choice.busy > cpu.cores() else options.spin_us
        threads, seconds = choice.threads, options.run_timeout_ms * 1e-3
        if self._stored is not None:
            actor = partial(Actor, self._stored, self._tally)
            return partial(actor, threads=threads, timeout_seconds=seconds)
        if choice.bounds:
            pool = options.pool or default_pool()
            line = Line(choice.bounds, pool, threads=threads, spin_us=spin_us)
            return partial(line.caller, model)
        if self._shared is None:
            call = partial(type(model).caller, threads=threads, spin_us=spin_us)
            return partial(self._nodes.settled, call, model)
        start = partial(Process, self._shared, self.manifest, self._tally)
        return partial(
            self._nodes.bound, start, threads=threads, spin_us=spin_us, timeout_seconds=seconds
        )

    def _forget(self) -> None:
        """Be without streams and requests: at first, and in the child of a fork, where the parent's
        threads are not, and its locks may be held for ever.
        """
        self._starting = threading.Lock()
        self._queue, self._tally = RequestQueue(self.options.max_queue_size), Tally()
        self._streams: Streams | None = None
        if self._closed:
            self._queue.close()

    def _begin(self) -> None:
        """Start the streams."""
        streams = Streams(
            self._queue,
            self._tally,
            self._pool(),
            self._maker(),
            [v.name for v in self.manifest.outputs],
            threads=self.choice.threads,
            gather=gathering(self.manifest, self.variant, self.options),
        )
        streams.start(self.choice.streams)
        self._streams = streams
        self._dropped = weakref.finalize(self, _close_apart, streams)
        self._dropped.atexit = False  # its threads end with the process

    def _pool(self) -> Pool:
        """The limit of running threads: streams of a cluster or a GPU need none, and the stages of
        a pipeline ask for their threads themselves.
        """
        elsewhere = bool(self.options.engine) or isinstance(self._model, CudaModel)
        if elsewhere or self.choice.bounds:
            return Pool(self.choice.streams * self.choice.threads)
        return self.options.pool or default_pool()

    def submit(self, *inputs: Any, priority: int = 0, deadline_ms: float = 0.0) -> Future:
        """Inputs in order, or one {name: array} -> a future of the outputs.

        What is wrong with the inputs is raised by the future. Of those that wait, the highest
        priority runs first. A request that cannot end within `deadline_ms` (0: no deadline) fails
        with Late: at once, if that can be predicted from what runs took so far, else when its turn
        comes. Where as many requests wait as may, this waits or, with when_full="refuse" and in
        callbacks of futures, raises Full. Raises Closed when the executor is closed.
        """
        request = self._request(inputs, priority, deadline_ms)
        self._put(request, wait=self.options.when_full == "wait")
        return request.future

    async def arun(self, *inputs: Any, priority: int = 0, deadline_ms: float = 0.0) -> Any:
        """The outputs, for `async` code: nothing blocks its loop, also where requests must wait."""
        request = self._request(inputs, priority, deadline_ms)
        if self.options.when_full == "refuse":
            self._put(request, wait=False)
            return await request.future
        while not request.accepted:
            signal = self._queue.offer(request)
            if signal is None:
                self._accepted(request)
            else:
                await asyncio.wrap_future(signal)
        return await request.future

    def run(self, *inputs: Any, priority: int = 0, deadline_ms: float = 0.0) -> Any:
        """The outputs. With max_batch, of any number of samples: they are split over the streams,
        and the results are put together.
        """
        most = self._intake.most
        arrays = self._intake.samples(inputs) if most else []
        if not most or arrays[0].shape[0] <= most:
            return self.submit(*inputs, priority=priority, deadline_ms=deadline_ms).result()
        named = isinstance(inputs[0], Mapping)
        names = [v.name for v in self.manifest.inputs]
        samples = [dict(zip(names, p)) if named else tuple(p) for p in parts(arrays, most)]
        return together(list(self.map(samples, priority=priority, deadline_ms=deadline_ms)))

    def map(
        self,
        samples: Iterable[Any],
        *,
        return_errors: bool = False,
        priority: int = 0,
        deadline_ms: float = 0.0,
    ) -> Iterator[Any]:
        """Samples (each an array, a tuple of the inputs, or {name: array}) -> their outputs, in
        order, as they are asked for: a few more than the streams run are taken ahead, so any number
        may come from a generator. What goes wrong with a sample is raised in its place, which ends
        it, or with `return_errors` comes in its place.
        """
        pending: deque[Future] = deque()
        ahead = 2 * self.choice.streams * max(1, self._intake.most)
        try:
            for sample in samples:
                inputs = sample if isinstance(sample, tuple) else (sample,)
                request = self._request(inputs, priority, deadline_ms)
                self._put(request, wait=True)
                pending.append(request.future)
                if len(pending) > ahead:
                    yield _outcome(pending.popleft(), return_errors)
            while pending:
                yield _outcome(pending.popleft(), return_errors)
        finally:
            for future in pending:
                future.cancel()

    def close(self, wait: bool = True) -> None:
        """Take no more requests. With `wait`, run all that were taken, then return; without, those
        that were not begun fail with Closed, and those that run end by themselves.
        """
        self._closed = True
        self._queue.close()
        streams = self._streams
        if streams is not None:
            streams.close(drain=wait)
            if wait:
                streams.join()
        if wait:
            self._release()
        else:
            self._model.close()

    def _release(self) -> None:
        """Give back the model, where no stream runs it."""
        self._model.close()
        self._nodes.close()
        if self._shared is not None:
            self._shared.close()

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(wait=error is None)

    def __reduce__(self) -> str:
        raise Error(
            "an executor is not sent to other processes",
            hint="send the artifact's path, or a Model",
        )

    @property
    def counts(self) -> Counts:
        """What became of the requests so far."""
        return self._tally.counts

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    def _request(self, inputs: tuple[Any, ...], priority: int, deadline_ms: float) -> Request:
        """A request; its future is done already where the inputs or the deadline cannot be met."""
        if self._streams is None and not self._closed:
            with self._starting:
                if self._streams is None:
                    self._begin()
        now = time.monotonic()
        due = now + deadline_ms * 1e-3 if deadline_ms > 0 else inf
        try:
            arrays, rows, named = self._intake.take(inputs)
        except Exception as e:
            return self._failed(Request((), 0, False), e)
        request = Request(arrays, rows, named, priority=priority, due=due, submitted=now)
        if due < inf and now + self._predicted() > due:
            ahead = len(self._queue)
            what = f"it cannot end within {deadline_ms:g} ms: {ahead} requests wait"
            return self._failed(request, Late(what))
        return request

    def _failed(self, request: Request, error: Exception) -> Request:
        self._accepted(request)
        request.future.set_running_or_notify_cancel()
        request.future.set_exception(error)
        return request

    def _predicted(self) -> float:
        """Seconds until a request that comes now has ended, at the least."""
        rounds = len(self._queue) // (self.choice.streams * max(1, self._intake.most))
        return self._tally.predicted * (1 + rounds)

    def _put(self, request: Request, *, wait: bool) -> None:
        if request.accepted:  # and failed
            return
        try:
            self._queue.put(request, wait=wait and not self._is_stream())
        except Full:
            self._tally.add("refused")
            raise
        self._accepted(request)

    def _is_stream(self) -> bool:
        """Whether a stream submits, in a callback: it must not wait for what it shall run."""
        return self._streams is not None and self._streams.is_one()

    def _accepted(self, request: Request) -> None:
        """Count what becomes of it; a cancelled one leaves the queue."""
        tally, queue = self._tally, self._queue

        def done(future: concurrent.futures.Future[Any]) -> None:
            if future.cancelled():
                if queue.withdraw(request):
                    future.set_running_or_notify_cancel()  # for concurrent.futures.wait
                tally.add("cancelled")
            elif future.exception() is None:
                tally.add("answered")
            else:
                tally.add("late" if isinstance(future.exception(), Late) else "failed")

        request.accepted = True
        tally.add("accepted")
        request.future.add_done_callback(done)


def _forget_all() -> None:
    for executor in list(_executors):
        executor._dropped.detach()
        executor._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


_GPU_STREAMS = 2
"""One request is copied while another runs."""


_Loaded = TypeVar("_Loaded", Model, CudaModel)


def _loaded(artifact: str | Path | Artifact, asked: Executing) -> Model | CudaModel:
    """The model, on the CPU or a GPU. Raises Error for what is not done on a GPU."""
    place = place_of(artifact, asked.device)
    if place == "cpu":
        return _of_arrays(load(artifact, variant=asked.variant))
    if asked.engine or asked.isolation != "threads" or asked.pipeline > 1:
        what = f"streams on {place} are threads of this process, each of which runs whole requests"
        raise Error(what, hint="leave out engine, isolation and pipeline, or run on the CPU")
    return _of_arrays(cuda_load(artifact, variant=asked.variant, device=place))


def _of_arrays(model: _Loaded) -> _Loaded:
    model.front.demand_no_strings("an executor")
    return model


def _close_apart(streams: Streams) -> None:
    """Close the streams of an executor that was dropped, in a thread of its own: where the garbage
    collector finds it, any thread may be interrupted, also one that has the lock of its queue.
    """
    with suppress(RuntimeError):  # no thread to be had: they end with the process
        _thread.start_new_thread(partial(streams.close, drain=True), ())


def _outcome(future: Future, return_errors: bool) -> Any:
    if not return_errors:
        return future.result()
    error = future.exception()
    return future.result() if error is None else error
