"""How good are choices that nothing was measured for? ONNX models -> for each kernel the rank of
the analytic choice among the candidates that were measured, and its regret.

    python -m benchmarks.tuning_regret resnet50.onnx mobilenetv2.onnx --precision int8 --threads 1

The candidates that are predicted to take up to `--near` times as long as the choice are all
measured, those of the same code once; kernels until `--share` of the predicted time is reached.
The least of many noisy times is too low, so the fastest few are measured anew, and these times
alone count: regret is by how much the choice is slower than the best of them; of a model, that of
its kernels by their measured time. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qcompiler.autotune.builder import Builder
from qcompiler.autotune.measure import Bench, Result
from qcompiler.autotune.places import Here
from qcompiler.autotune.tasks import Choice, Task, tasks_of
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.options import Options

BATCH = 8
"""Candidates that are measured side by side."""
FASTEST, REQUESTS = 3, 7
"""Candidates that are measured anew, and how often."""


@dataclass(frozen=True)
class Regret:
    """A kernel: its measured seconds in a run of the model, candidates of different code, the rank
    of the analytic choice among them, and how much slower it is than the best.
    """

    step: str
    seconds: float
    candidates: int
    rank: int
    regret: float
    noise: float
    best: str


def regret(bench: Bench, task: Task, near: float) -> Regret:
    """Measure a kernel's candidates. Raises Error where the default does not run."""
    some = [c for c in task.choices if c.seconds <= near * task.default.seconds]
    results = list(results_of(bench, task, some))
    distinct = {r.code: r for r in results if r.counts}
    faster = sorted((r for r in distinct.values() if r.ratio < 1), key=lambda r: r.ratio)
    finalists = [r.choice for r in faster[:FASTEST]]
    again = bench.start(lambda: bench.results(task, finalists, REQUESTS, anew=True)).result()
    best = min((r for r in again if r.counts and r.ratio < 1), key=lambda r: r.ratio, default=None)
    return Regret(
        task.names[0],
        task.count * bench.baseline(task).seconds,
        len(distinct) + 1,
        len(faster) + 1,
        0.0 if best is None else 1 / best.ratio - 1,
        0.0 if best is None else best.noise,
        str(task.default if best is None else best.choice),
    )


def results_of(bench: Bench, task: Task, choices: Sequence[Choice]) -> Iterator[Result]:
    """Measure choices of a kernel."""
    for i in range(0, len(choices), BATCH):
        part = choices[i : i + BATCH]
        yield from bench.start(lambda part=part: bench.results(task, part)).result()  # type: ignore[misc]


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each model, or everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--near", type=float, default=1.5)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args(words)
    data = "synthetic" if a.precision in ("int8", "int4") else None
    found: dict[str, list[Regret]] = {}
    for model in a.models:
        options = Options(
            target=a.target, threads=a.threads, precision=a.precision, calibration=data
        )
        tasks = tasks_of([(Compilation(model, options).plan, a.target)])
        found[str(model)] = list(_regrets(tasks, a.threads, a.share, a.near))
        if not a.json:
            sys.stdout.write(table(str(model), found[str(model)]))
    if a.json:
        told = {model: [asdict(r) for r in rows] for model, rows in found.items()}
        sys.stdout.write(json.dumps(told, indent=1) + "\n")


def _regrets(tasks: Sequence[Task], threads: int, share: float, near: float) -> Iterator[Regret]:
    whole, done = sum(t.seconds for t in tasks), 0.0
    bench = Bench(Here(threads), Builder())
    try:
        for task in tasks:
            if done > share * whole:
                return
            done += task.seconds
            try:
                yield regret(bench, task, near)
            except Error as e:
                sys.stderr.write(f"{task.names[0]}: {e}\n")
    finally:
        bench.close()


def table(model: str, rows: Sequence[Regret]) -> str:
    """The kernels of a model, and its own regret."""
    lines = [f"{model}: step, us a run, rank of candidates, regret +- noise, best"]
    for r in rows:
        lines.append(
            f"  {r.step[:36]:36} {r.seconds * 1e6:9.1f} {r.rank:4} of {r.candidates:4}"
            f" {r.regret:7.2%} +- {r.noise:.2%}  {r.best}"
        )
    whole = sum(r.seconds for r in rows) or 1.0
    best = sum(r.seconds / (1 + r.regret) for r in rows) or 1.0
    return "\n".join([*lines, f"  of all these kernels: {whole / best - 1:.2%}", ""])


if __name__ == "__main__":
    main()
