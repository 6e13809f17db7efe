"""Models under many requests -> requests a second of the executor, OpenVINO and onnxruntime.

    python -m benchmarks.executor resnet50 mobilenetv2 bert_base --precision int8
    python -m benchmarks.executor mobilenetv2 --rates --seconds 60
    python -m benchmarks.executor resnet50 mobilenetv2 bert_base --folder kept --prepare

Closed loop: every engine is kept busy for a turn, then the next one, again and again, so a slow
minute slows all of them; the medians of the turns count. Engines: the executor as its throughput
hint chooses and with one stream of one thread; OpenVINO with its THROUGHPUT hint, and with a stream
a core; onnxruntime with one request at a time on all cores, and with one thread a request and as
many requests as cores; with --http, `qcompiler serve` too, under clients on this machine. With
--rates also the largest rate of random arrivals (a Poisson process) at which the 99th percentile
stays within twice the latency of a request alone, found by halving, of every maker's fastest.
--folder keeps what is compiled for the next time, and --prepare measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx

import qcompiler
from benchmarks.engines import ENGINES, Job, Settings
from benchmarks.networks import NETWORKS
from benchmarks.served import Clients, client, server
from benchmarks.subjects import Feed, Subject, prepare
from qcompiler.hardware import cpu

Submit = Callable[[Callable[[], None]], object]
"""Begins a request, and calls back when it is answered; waits where it cannot be begun."""

WITHIN = 2.0
"""Times the latency of a request alone, for the 99th percentile."""
HALVINGS = 6
TRIES = 3
"""So often a rate is tried, and the median counts: a pause of the machine fails one of them."""
ARRIVALS = 150
"""So many at the least, however few seconds there are,"""
LONGEST = 8.0
"""except where they would take more seconds than this."""


@dataclass
class Contender:
    """An engine, and what was measured of it."""

    name: str
    submit: Submit
    concurrency: int
    """Requests that keep it busy."""
    maker: str = "qcompiler"
    rates: list[float] = field(default_factory=list)
    """Requests a second, of every turn."""
    latency: float = 0.0
    """Seconds of a request alone."""
    open_rate: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return statistics.median(self.rates)


def busy(each: Contender, seconds: float) -> float:
    """Keep an engine busy -> requests answered a second."""
    room, lock, answered = threading.Semaphore(each.concurrency), threading.Lock(), 0

    def done() -> None:
        nonlocal answered
        with lock:
            answered += 1
        room.release()

    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        room.acquire()
        each.submit(done)
    for _ in range(each.concurrency):
        room.acquire()
    return answered / (time.perf_counter() - begin)


def arrivals(each: Contender, rate: float, seconds: float, seed: int) -> list[float]:
    """Random arrivals -> latencies, from when each should have come."""
    random, found, lock = np.random.default_rng(seed), [], threading.Lock()
    least = max(20, min(ARRIVALS, int(rate * LONGEST)))
    count, left = max(least, int(rate * seconds)), threading.Semaphore(0)

    def done(due: float) -> None:
        with lock:
            found.append(time.perf_counter() - due)
        left.release()

    due = time.perf_counter()
    for gap in random.exponential(1 / rate, count):
        due += float(gap)
        time.sleep(max(0.0, due - time.perf_counter()))
        each.submit(partial(done, due))
    for _ in range(count):
        left.acquire()
    return found


def alone(each: Contender, seconds: float) -> float:
    """Median latency of one request after the other."""
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 5:
        over = threading.Event()
        start = time.perf_counter()
        each.submit(over.set)
        over.wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def largest_rate(each: Contender, seconds: float) -> float:
    """The most arrivals a second whose 99th percentile stays within the limit."""
    low, high = 0.0, each.rate
    for turn in range(HALVINGS):
        rate = (low + high) / 2
        seeds = range(turn * TRIES, (turn + 1) * TRIES)
        tails = [float(np.percentile(arrivals(each, rate, seconds, s), 99)) for s in seeds]
        within = statistics.median(tails) <= WITHIN * each.latency
        low, high = (rate, high) if within else (low, rate)
    return low


def contenders(subject: Subject, precision: str, folder: Path) -> Iterator[Contender]:
    """All engines, loaded and warm."""
    feed, cores = subject.samples()[0], cpu.cores()
    paths = {maker: built(maker, precision, subject, folder) for maker in MAKERS}
    yield executor_of(paths["qcompiler"], feed, hint="throughput")
    yield executor_of(paths["qcompiler"], feed, streams=1, threads=1)
    yield _openvino(paths["openvino"], feed, {"PERFORMANCE_HINT": "THROUGHPUT"})
    yield _openvino(paths["openvino"], feed, {"NUM_STREAMS": cores})
    yield _onnxruntime(paths["onnxruntime"], feed, requests=1, threads=cores)
    yield _onnxruntime(paths["onnxruntime"], feed, requests=cores, threads=1)


MAKERS = ("qcompiler", "openvino", "onnxruntime")


def built(maker: str, precision: str, subject: Subject, folder: Path) -> Path:
    """A maker's own form of a subject: what was made before, if it is there."""
    place = folder / maker
    note = place / f"{precision}.txt"
    if not note.exists():
        place.mkdir(parents=True, exist_ok=True)
        job = Job(subject, place, Settings(cpu.cores()))
        made = ENGINES[f"{maker} {precision}"].build(job)
        note.write_text(str(made.relative_to(place)))
    return place / note.read_text()


def subject_of(name: str, folder: Path, sizes: Mapping[str, int]) -> Subject:
    """A network, or a file, prepared in a folder: what was prepared before, if it is there."""
    if (folder / "samples.npz").exists():
        return Subject(folder)
    model = NETWORKS[name]() if name in NETWORKS else onnx.load(name)
    return prepare(model, folder, batch=1, sizes=sizes, given={})


@contextmanager
def over_http(path: Path, feed: Feed) -> Iterator[Contender]:
    """The executor behind its server, for twice as many clients as streams."""
    with server(path, "--hint", "throughput") as place:
        name, make = client(place, feed)
        count = 2 * cpu.cores()
        yield Contender(f"executor by HTTP, {name} x {count}", Clients(make, count).submit, count)


def executor_of(path: Path, feed: Feed, **options: object) -> Contender:
    """An executor with these keywords."""
    executor = qcompiler.Executor(path, **options)  # type: ignore[arg-type]

    def submit(done: Callable[[], None]) -> None:
        executor.submit(feed).add_done_callback(lambda _: done())

    choice = executor.choice
    name = f"executor, {choice.streams} x {choice.threads}"
    if choice.bounds:
        name = f"executor, {choice.stages} stages x {choice.threads}"
    return Contender(name, submit, choice.streams)


def _openvino(path: Path, feed: Feed, options: Mapping[str, object]) -> Contender:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", dict(options))
    jobs = int(model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    queue = openvino.AsyncInferQueue(model, max(64, jobs))
    queue.set_callback(lambda request, done: done())
    streams = model.get_property("NUM_STREAMS")
    told = ", ".join(map(str, options.values()))

    def submit(done: Callable[[], None]) -> None:
        queue.start_async(feed, userdata=done, share_inputs=True)

    return Contender(f"OpenVINO {told}, {streams} streams", submit, jobs, "openvino")


def _onnxruntime(path: Path, feed: Feed, *, requests: int, threads: int) -> Contender:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    pool = ThreadPoolExecutor(requests)

    def run(done: Callable[[], None]) -> None:
        session.run(None, feed)
        done()

    name = f"onnxruntime, {requests} x {threads}"
    return Contender(name, lambda done: pool.submit(run, done), requests, "onnxruntime")


def measure(found: Sequence[Contender], seconds: float, turns: int, *, rates: bool = False) -> None:
    """All of them in turns; then, with `rates`, the fastest of every maker with random arrivals."""
    for each in found:
        busy(each, 0.5)
    for _ in range(turns):
        for each in found:
            each.rates.append(busy(each, seconds / turns))
    fastest = {each.maker: each for each in sorted(found, key=lambda each: each.rate)}
    for each in fastest.values() if rates else ():
        each.latency = alone(each, seconds / 10)
        each.open_rate = largest_rate(each, seconds / (HALVINGS * TRIES))


def table(results: Mapping[str, Sequence[Contender]], *, rates: bool) -> str:
    """Markdown: a row a model and engine, and how many times as much the executor answers."""
    heads = ["model", "engine", "requests/s", "executor is"]
    heads += ["alone, ms", "most at p99 within twice that"] if rates else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in results.items():
        for each in found:
            cells = [name, each.name, f"{each.rate:.1f}", f"{found[0].rate / each.rate:.2f}x"]
            if rates:
                told = (f"{each.latency * 1e3:.2f}", f"{each.open_rate:.1f}")
                cells += told if each.latency else ("", "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.executor", description=__doc__)
    p.add_argument("models", nargs="+", help=f"files, or networks: {', '.join(NETWORKS)}")
    p.add_argument("--precision", default="int8", help="float32, bfloat16 or int8")
    p.add_argument("--seconds", type=float, default=20, help="for each engine")
    p.add_argument("--turns", type=int, default=10)
    p.add_argument("--rates", action="store_true", help="also find the largest rate of arrivals")
    p.add_argument("--http", action="store_true", help="also `qcompiler serve` and its clients")
    p.add_argument("--size", nargs="*", default=[], metavar="SYMBOL=N")
    p.add_argument("--folder", type=Path, help="keeps what is compiled")
    p.add_argument("--prepare", action="store_true", help="compile only, into --folder")
    a = p.parse_args()
    sizes = {k: int(v) for k, _, v in (s.partition("=") for s in a.size)}
    results: dict[str, list[Contender]] = {}
    with tempfile.TemporaryDirectory(prefix="executor-") as work:
        for name in a.models:
            folder = (a.folder or Path(work)) / Path(name).stem
            subject = subject_of(name, folder, sizes)
            own = built("qcompiler", a.precision, subject, folder)
            if a.prepare:
                for maker in MAKERS:
                    built(maker, a.precision, subject, folder)
                continue
            with ExitStack() as stack:
                found = results[subject.name] = list(contenders(subject, a.precision, folder))
                if a.http:
                    feed = subject.samples()[0]
                    found.insert(1, stack.enter_context(over_http(own, feed)))
                measure(found, a.seconds, a.turns, rates=a.rates)
    sys.stdout.write(table(results, rates=a.rates))


if __name__ == "__main__":
    main()
