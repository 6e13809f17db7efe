"""Several processes, or several models in one process, on the same cores -> what sharing costs.

    python -m benchmarks.sharing resnet50 --processes 4
    python -m benchmarks.sharing resnet50 bert_base --seconds 10

With one model: it runs alone in one process, then in so many at once, in turns. With several: each
runs alone in an executor, then all at once in one process. Ideal is that the cores do as much in
all as for one alone; the figure is how many times as slow it is (1.0: ideal), the median of turns.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import onnx

from benchmarks.engines import ENGINES, Job, Settings
from benchmarks.executor import Contender, busy, executor_of
from benchmarks.networks import NETWORKS
from benchmarks.subjects import Feed, Subject, prepare
from qcompiler.hardware import cpu


def _child(path: Path, feed: Feed, hint: str, connection: Connection) -> None:
    """Seconds -> requests a second in them, again and again."""
    executor = executor_of(path, feed, hint=hint)
    busy(executor, 0.5)
    connection.send(True)
    while seconds := connection.recv():
        connection.send(busy(executor, seconds))


def processes(path: Path, feed: Feed, a: argparse.Namespace) -> list[float]:
    """One process alone, then all -> how many times as slow as ideal, of every turn."""
    context = multiprocessing.get_context("spawn")
    pipes, children = [], []
    for _ in range(a.processes):
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(path, feed, a.hint, theirs), daemon=True)
        child.start()
        ours.recv()  # one after the other: each measures its hint alone, or finds it remembered
        pipes.append(ours)
        children.append(child)

    def rate(some: Sequence[Connection]) -> float:
        for pipe in some:
            pipe.send(a.seconds / a.turns)
        return float(sum(pipe.recv() for pipe in some))

    found = [rate([pipes[i % len(pipes)]]) / rate(pipes) for i in range(a.turns)]
    for pipe, child in zip(pipes, children, strict=True):
        pipe.send(0)
        child.join()
    return found


def together(executors: Sequence[Contender], seconds: float) -> list[float]:
    """All at once in this process -> requests a second of each."""
    found = [0.0] * len(executors)

    def work(i: int) -> None:
        found[i] = busy(executors[i], seconds)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(executors))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def in_one(paths: Sequence[tuple[Path, Feed]], a: argparse.Namespace) -> list[float]:
    """Each model alone, then all -> how many times as slow as ideal, of every turn."""
    executors = [executor_of(path, feed, hint=a.hint) for path, feed in paths]
    found, seconds = [], a.seconds / a.turns
    for each in executors:
        busy(each, 0.5)
    for _ in range(a.turns):
        alone = [busy(each, seconds) for each in executors]
        shares = [b / s for b, s in zip(together(executors, seconds), alone, strict=True)]
        found.append(1 / sum(shares))
    return found


def artifact(name: str, precision: str, work: Path) -> tuple[Path, Feed]:
    """A network, or a file -> its artifact, and an input."""
    model = NETWORKS[name]() if name in NETWORKS else onnx.load(name)
    subject: Subject = prepare(model, work / Path(name).stem, batch=1, sizes={}, given={})
    job = Job(subject, subject.folder, Settings(cpu.cores()))
    return ENGINES[f"qcompiler {precision}"].build(job), subject.samples()[0]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    p.add_argument("models", nargs="+", help=f"files, or networks: {', '.join(NETWORKS)}")
    p.add_argument("--precision", default="int8", help="float32, bfloat16 or int8")
    p.add_argument("--processes", type=int, default=4, help="of a model that is given alone")
    p.add_argument("--hint", default="throughput")
    p.add_argument("--seconds", type=float, default=20, help="of every measurement, in all turns")
    p.add_argument("--turns", type=int, default=10)
    a = p.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="sharing-") as work:
        made = [artifact(name, a.precision, Path(work)) for name in a.models]
        if len(made) == 1:
            what, found = f"{a.processes} processes", processes(*made[0], a)
        else:
            what, found = f"{len(made)} models in one process", in_one(made, a)
    middle = statistics.median(found)
    noise = statistics.median(abs(f - middle) for f in found)
    names = ", ".join(Path(name).stem for name in a.models)
    sys.stdout.write(f"{names}, {what}: {middle:.3f} +- {noise:.3f} times as slow as ideal\n")


if __name__ == "__main__":
    main()
