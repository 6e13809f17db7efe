"""One engine in a process of its own: prepares a model, starts cold, or times rounds when told.

    python -m benchmarks.worker TASK    where TASK is the JSON of a `Task`

Everything it has to say goes as one line of JSON each to the standard output it was started with;
what libraries print goes to the standard error.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from benchmarks.engines import ENGINES, Job, Settings, Unavailable
from benchmarks.subjects import Subject

WARM_UP = 3
"""Runs before anything is timed, the first of which builds what an engine builds late."""


@dataclass(frozen=True)
class Task:
    """What a worker is started for: one of the functions below, as `verb`."""

    verb: str
    engine: str
    subject: str
    folder: str
    settings: Settings
    artifact: str = ""

    def dumps(self) -> str:
        """-> JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Task:
        """JSON ->."""
        fields = json.loads(text)
        return Task(**{**fields, "settings": Settings(**fields["settings"])})


def build(task: Task, answer: TextIO) -> None:
    """Prepare the model ahead of time; say where the artifact is and what it cost."""
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(Subject(Path(task.subject)), folder, task.settings)
    start = time.perf_counter()
    artifact = ENGINES[task.engine].build(job)
    seconds = time.perf_counter() - start
    say(answer, {"artifact": str(artifact), "seconds": seconds, "bytes": size(artifact)})


def first(task: Task, answer: TextIO) -> None:
    """Import, load and run in a process that has done none of it; keep the outputs."""
    feed = Subject(Path(task.subject)).samples()[0]
    start = time.perf_counter()
    run = ENGINES[task.engine].load(Path(task.artifact), task.settings)
    outputs = run(feed)
    seconds = time.perf_counter() - start
    np.savez(Path(task.folder) / "outputs.npz", allow_pickle=False, **outputs)
    for _ in range(WARM_UP):
        run(feed)
    say(answer, {"seconds": seconds, "peak_bytes": peak_bytes()})


def serve(task: Task, answer: TextIO) -> None:
    """For every line that names a number of seconds: run as long, say how long each run took."""
    feed = Subject(Path(task.subject)).samples()[0]
    run = ENGINES[task.engine].load(Path(task.artifact), task.settings)
    for _ in range(WARM_UP):
        run(feed)
    say(answer, {"ready": True})
    for line in sys.stdin:
        run(feed)  # the caches hold what another engine left there
        taken: list[float] = []
        while not taken or sum(taken) + statistics.median(taken) / 2 < float(line):
            start = time.perf_counter()
            run(feed)
            taken.append(time.perf_counter() - start)
        say(answer, {"seconds": taken})


def size(artifact: Path) -> int:
    """Bytes of a file and of the one that holds its weights, where that is another."""
    beside = [artifact.with_suffix(".bin"), artifact.with_name(artifact.name + ".data")]
    return sum(p.stat().st_size for p in {artifact, *beside} if p.exists())


def peak_bytes() -> int:
    """The most memory this process had at once.

    Not getrusage: its figure starts with that of the process that forked this one (exec_mmap in
    Linux's fs/exec.c), VmHWM starts anew.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def say(answer: TextIO, message: object) -> None:
    """One line of JSON."""
    answer.write(json.dumps(message) + "\n")
    answer.flush()


def main() -> None:
    """Do one task. An engine that cannot take part says why and ends well."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = Task.loads(sys.argv[1])
    try:
        {"build": build, "first": first, "serve": serve}[task.verb](task, answer)
    except (Unavailable, ImportError) as e:
        say(answer, {"unavailable": f"{e}"})


if __name__ == "__main__":
    main()
