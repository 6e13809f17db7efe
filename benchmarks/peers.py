"""Models -> every engine's speed, memory and size, side by side on this machine in one run.

    python -m benchmarks.peers --networks resnet50 bert_base --out results
    python -m benchmarks.peers --models-dir ~/models --engines onnxruntime openvino
    python -m benchmarks.peers --trained ~/material --only dtln yolox

Each engine lives in a process of its own. One round times all of them, one after the other, in an
order that turns by one from round to round; a process that waits is stopped by a signal (unless
`--unstopped`), so that its spinning threads cannot take the cores from the one that runs. Ratios
are medians of the ratios within a round, so a machine that slows down for a while slows both sides
of them.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx

from benchmarks import trained
from benchmarks.engines import ENGINES, Engine, Settings
from benchmarks.networks import NETWORKS
from benchmarks.report import Machine, Row, markdown, to_json
from benchmarks.subjects import Array, Subject, prepare
from benchmarks.worker import Task

Answer: TypeAlias = dict[str, object]

REFERENCE = "onnxruntime float32"
"""Whose outputs all others are compared with."""
SLOW_ROUNDS = 3


class Failed(Exception):
    """Why a worker did not answer."""


class Worker:
    """A process that serves one engine: stopped unless it is asked for something."""

    def __init__(
        self, task: Task, environment: Mapping[str, str], patience: float, *, stops: bool = True
    ) -> None:
        self.patience, self.stops = patience, stops
        folder = Path(task.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{task.verb}.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", task.dumps()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            env=dict(environment),
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, seconds: float) -> Answer:
        """Let it run for about so long."""
        assert self.process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self.process.stdin.write(f"{seconds}\n")
        except BrokenPipeError:
            raise Failed(self.last_words()) from None
        answer = self.answer()
        self._signal(signal.SIGSTOP)
        return answer

    def answer(self) -> Answer:
        """The next line that it says."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], self.patience)
        if not ready:
            raise Failed(f"no answer in {self.patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self.last_words())
        answer: Answer = json.loads(line)
        if "unavailable" in answer:
            raise Failed(str(answer["unavailable"]))
        return answer

    def pause(self) -> None:
        """Stop it until it is asked."""
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        if self.stops:
            self.process.send_signal(number)

    def last_words(self) -> str:
        """The last line of its log."""
        status = self.process.wait()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with status {status}"


@dataclass(frozen=True)
class Bench:
    """How to measure."""

    settings: Settings
    environment: Mapping[str, str]
    rounds: int
    round_seconds: float
    patience: float
    reuse: bool = False
    stops: bool = True
    """An engine that waits is stopped by a signal."""

    def measure(self, subject: Subject, engines: Sequence[Engine]) -> list[Row]:
        """Prepare, start cold, then time in turns -> one row for each engine."""
        rows = [self.prepare(subject, engine) for engine in engines]
        _compare_outputs(subject, rows)
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for row in rows:
                if not row.reason:
                    self.start(subject, row, stack, workers)
            for number in range(self.rounds):
                turn = number % len(rows)
                for row in rows[turn:] + rows[:turn]:
                    if row.engine in workers and not (row.slow and number >= SLOW_ROUNDS):
                        self.round(row, workers)
        return rows

    def prepare(self, subject: Subject, engine: Engine) -> Row:
        """Build ahead of time and run once from cold, each in a fresh process."""
        say(f"{subject.name}: {engine.name}")
        row = Row(subject.name, engine.maker, engine.precision, slow=engine.slow)
        known = _folder(subject, row) / "built.json"
        if self.reuse and known.exists():
            return Row(**json.loads(known.read_text()))
        try:
            with self.worker("build", subject, row) as worker:
                built = worker.answer()
            row.artifact = str(built["artifact"])
            row.build_seconds = _number(built["seconds"])
            row.artifact_bytes = int(_number(built["bytes"]))
            with self.worker("first", subject, row) as worker:
                ran = worker.answer()
            row.first_seconds = _number(ran["seconds"])
            row.peak_bytes = int(_number(ran["peak_bytes"]))
        except Failed as e:
            row.reason = str(e)
            say(f"  left out: {e}")
        known.write_text(json.dumps(asdict(row)))
        return row

    def start(
        self, subject: Subject, row: Row, stack: ExitStack, workers: dict[str, Worker]
    ) -> None:
        """Load an engine in its own process, and stop it there."""
        worker = stack.enter_context(self.worker("serve", subject, row))
        try:
            worker.answer()
            worker.pause()
            workers[row.engine] = worker
        except Failed as e:
            row.reason = str(e)

    def round(self, row: Row, workers: dict[str, Worker]) -> None:
        """One engine's part of a round."""
        try:
            answer = workers[row.engine].ask(self.round_seconds)
            taken = answer["seconds"]
            assert isinstance(taken, list)
            row.rounds.append([float(t) for t in taken])
        except Failed as e:
            row.reason = str(e)
            del workers[row.engine]

    def worker(self, verb: str, subject: Subject, row: Row) -> Worker:
        """Start a process for one task."""
        task = Task(
            verb=verb,
            engine=row.engine,
            subject=str(subject.folder),
            folder=str(_folder(subject, row)),
            settings=self.settings,
            artifact=row.artifact,
        )
        return Worker(task, self.environment, self.patience, stops=self.stops)


def _folder(subject: Subject, row: Row) -> Path:
    return subject.folder / row.engine.replace(" ", "-")


def _compare_outputs(subject: Subject, rows: Iterable[Row]) -> None:
    """Fill in how like the reference's each engine's outputs are: the worst output's cosine."""
    outputs = {}
    for row in rows:
        if not row.reason:
            with np.load(_folder(subject, row) / "outputs.npz", allow_pickle=False) as stored:
                outputs[row.engine] = {
                    name: stored[name].astype(np.float64) for name in stored.files
                }
    wanted = outputs.get(REFERENCE)
    for row in rows:
        got = outputs.get(row.engine)
        if wanted and got and wanted.keys() <= got.keys():
            row.cosine = min(_cosine(wanted[name], got[name]) for name in wanted)


def _cosine(a: Array, b: Array) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return (
        float((a.ravel() * b.ravel()).sum()) / lengths if lengths else float(np.array_equal(a, b))
    )


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def say(text: str) -> None:
    """Tell the one who waits."""
    sys.stderr.write(text + "\n")


def subjects(arguments: argparse.Namespace, work: Path) -> Iterable[Subject]:
    """What the command line names -> prepared subjects, each when it is its turn."""
    sizes = {name: int(number) for name, _, number in (s.partition("=") for s in arguments.size)}
    others = arguments.trained or arguments.models_dir
    for name in arguments.networks or ([] if others else NETWORKS):
        model = NETWORKS[name]()
        yield prepare(model, work / name, batch=arguments.batch, sizes=sizes, given={})
    if arguments.trained:
        yield from trained.subjects(arguments.trained, arguments.only, work, arguments.batch)
    for folder in arguments.models_dir:
        for path in sorted(folder.rglob("*.onnx")):
            beside, given = path.with_suffix(".npz"), {}
            if beside.exists():
                with np.load(beside, allow_pickle=False) as stored:
                    given = {name: stored[name] for name in stored.files}
            model = onnx.load(path)
            yield prepare(model, work / path.stem, batch=arguments.batch, sizes=sizes, given=given)


def chosen(arguments: argparse.Namespace) -> list[Engine]:
    """The engines that take part."""
    wanted = arguments.engines or [""]
    return [
        engine
        for name, engine in ENGINES.items()
        if any(w in name for w in wanted) and (not engine.slow or arguments.tvm)
    ]


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """What the workers find in their environment."""
    threads = str(arguments.threads)
    own = {"OMP_NUM_THREADS": threads, "TVM_NUM_THREADS": threads, "TVM_BIND_THREADS": "0"}
    if arguments.openvino_isa:
        own["ONEDNN_MAX_CPU_ISA"] = arguments.openvino_isa
    return {**os.environ, **own}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--networks", nargs="*", choices=NETWORKS, default=[], help="random weights (all of them)")
    add("--trained", type=Path, metavar="FOLDER", help="the trained models of benchmarks/trained")
    add("--only", nargs="*", default=[], metavar="PART", help="those whose name holds one of these")
    add("--models-dir", nargs="*", type=Path, default=[], help="folders of trained ONNX files")
    add("--size", nargs="*", default=[], metavar="SYMBOL=N", help="other symbolic dimensions")
    add("--engines", nargs="*", metavar="PART", help="only those whose name holds one of these")
    add("--tvm", action="store_true", help="TVM's default build too (seconds a run)")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--batch", type=int, default=1)
    add("--rounds", type=int, default=30)
    add("--round-seconds", type=float, default=0.2, help="for each engine in each round")
    add("--patience", type=float, default=1800, help="seconds until a silent engine is left out")
    add("--target", default="host", help="qcompiler's target")
    add("--openvino-isa", metavar="ISA", help="hold OpenVINO to it, as AVX512_CORE_VNNI or AVX2")
    add("--unstopped", action="store_true", help="waiting engines go on spinning, if they do")
    add("--no-spin", action="store_true", help="onnxruntime's threads must not spin (they do)")
    add("--work", type=Path, help="keep models and artifacts here (else a temporary folder)")
    add("--reuse", action="store_true", help="take what an earlier run has built in --work")
    add("--out", type=Path, help="write NAME.md and NAME.json too", metavar="NAME")
    return p


def main() -> None:
    """Measure and print."""
    arguments = parser().parse_args()
    settings = Settings(arguments.threads, spin=not arguments.no_spin, target=arguments.target)
    bench = Bench(
        settings=settings,
        environment=environment(arguments),
        rounds=arguments.rounds,
        round_seconds=arguments.round_seconds,
        patience=arguments.patience,
        reuse=arguments.reuse,
        stops=not arguments.unstopped,
    )
    rows: list[Row] = []
    machine = Machine.this(settings, arguments.batch, arguments.openvino_isa or "")
    with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
        for subject in subjects(arguments, arguments.work or Path(temporary)):
            rows += bench.measure(subject, chosen(arguments))
            if (
                arguments.out
            ):  # after each network: a long run that is cut short has still said something
                arguments.out.with_suffix(".json").write_text(to_json(machine, rows))
                arguments.out.with_suffix(".md").write_text(markdown(machine, rows))
    sys.stdout.write(markdown(machine, rows))


if __name__ == "__main__":
    main()
