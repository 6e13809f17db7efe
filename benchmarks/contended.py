"""Models beside busy processes -> how long runs take, of this compiler and of onnxruntime.

    python -m benchmarks.contended digits.onnx resnet8.onnx --busy 0 1 2 4

For every model and number of busy processes: the median and the 99th percentile of a run, with the
threads that are used unless one asks, with one, and onnxruntime's likewise. All take turns within
one process, a few runs each, so a slow minute slows all of them; nothing is stopped by a signal, so
each has the other's waiting threads beside it, too. A busy process adds numbers without end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

import qcompiler
from benchmarks.networks import NETWORKS
from benchmarks.subjects import Feed, Subject, prepare
from qcompiler.hardware import cpu

RUNS_A_TURN = 10
"""So many runs of one engine, then the next one's."""

TURN_SECONDS = 0.1
"""A turn ends sooner after so long."""


@dataclass
class Contender:
    """An engine with a number of threads, and the seconds of its runs by busy processes."""

    name: str
    run: Callable[[], object]
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def turn(self, busy: int) -> None:
        """A few runs."""
        taken = self.seconds.setdefault(busy, [])
        begin = time.perf_counter()
        for _ in range(RUNS_A_TURN):
            start = time.perf_counter()
            self.run()
            end = time.perf_counter()
            taken.append(end - start)
            if end - begin > TURN_SECONDS:
                break

    def quantile(self, busy: int, share: float) -> float:
        """Milliseconds."""
        return float(np.quantile(self.seconds[busy], share)) * 1e3


def _spin() -> None:
    while True:
        sum(range(10_000))


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many processes that want a core all the time."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in busy:
        process.start()
    time.sleep(1.0 if busy else 0.0)
    try:
        yield
    finally:
        for process in busy:
            process.terminate()
            process.join()


def contenders(subject: Subject, threads: int, precision: str) -> list[Contender]:
    """The engines, loaded and warm."""
    feed = subject.samples()[0]
    found = []
    for wanted in (0, 1):
        run = _own(subject, feed, wanted, precision)
        found.append(Contender(f"qcompiler {f'{wanted} thread' if wanted else 'default'}", run))
        run = _onnxruntime(subject, feed, wanted or threads)
        found.append(Contender(f"onnxruntime {f'{wanted} thread' if wanted else 'default'}", run))
    for each in found:
        for _ in range(3):
            each.run()
    return found


def _own(subject: Subject, feed: Feed, threads: int, precision: str) -> Callable[[], object]:
    calibration = "synthetic" if precision == "int8" else None
    made = qcompiler.compile(
        subject.model, threads=threads, precision=precision, calibration=calibration
    )
    model = qcompiler.load(made)
    return lambda: model.run(feed)


def _onnxruntime(subject: Subject, feed: Feed, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(subject.model), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, dict(feed))


def measure(found: Sequence[Contender], busy: Sequence[int], seconds: float) -> None:
    """Run all of them in turn, beside so many busy processes, for so long each."""
    for count in busy:
        with others(count):
            end = time.perf_counter() + seconds * len(found)
            while time.perf_counter() < end:
                for each in found:
                    each.turn(count)


def table(results: Mapping[str, Sequence[Contender]], busy: Sequence[int]) -> str:
    """Markdown: a row a model and engine, p50 / p99 in milliseconds beside so many processes, and
    the worst p50 as a multiple of that beside none.
    """
    heads = ["model", "engine", *(f"beside {b}" for b in busy), "worst p50 / first"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in results.items():
        for each in found:
            cells = [f"{each.quantile(b, 0.5):.3f} / {each.quantile(b, 0.99):.2f}" for b in busy]
            worst = max(each.quantile(b, 0.5) for b in busy) / each.quantile(busy[0], 0.5)
            lines.append("| " + " | ".join([name, each.name, *cells, f"{worst:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def subjects(arguments: argparse.Namespace, work: Path) -> Iterator[Subject]:
    """Networks of random weights by name, and files."""
    sizes = {k: int(v) for k, _, v in (s.partition("=") for s in arguments.size)}
    for name in arguments.models:
        model = NETWORKS[name]() if name in NETWORKS else onnx.load(name)
        yield prepare(model, work / Path(name).stem, batch=1, sizes=sizes, given={})


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.contended", description=__doc__)
    p.add_argument("models", nargs="+", help=f"files, or networks: {', '.join(NETWORKS)}")
    p.add_argument("--busy", nargs="*", type=int, default=[0, 1, 2, 4], help="busy processes")
    p.add_argument("--seconds", type=float, default=5, help="for each engine and number of them")
    p.add_argument("--threads", type=int, default=cpu.cores(), help="onnxruntime's")
    p.add_argument("--precision", default="float32", help="qcompiler's: float32 or int8")
    p.add_argument("--size", nargs="*", default=[], metavar="SYMBOL=N")
    arguments = p.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="contended-") as work:
        for subject in subjects(arguments, Path(work)):
            found = contenders(subject, arguments.threads, arguments.precision)
            measure(found, arguments.busy, arguments.seconds)
            results[subject.name] = found
    sys.stdout.write(table(results, arguments.busy))


if __name__ == "__main__":
    main()
