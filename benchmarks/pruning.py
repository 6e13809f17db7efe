"""Trained models and labelled data -> what pruning costs, before and after repair, and saves.

    python -m benchmarks.pruning FOLDER
    python -m benchmarks.pruning FOLDER --models resnet20_cifar10 --prune channels:0.5 --speed
    python -m benchmarks.pruning --network resnet50.onnx --prune channels:0.5 --speed

FOLDER is described in labelled.py. A row is a model and what was asked for, as `--prune` takes it;
`none` is the model as it is. Scores are per cent, of networks that onnxruntime runs as they were
written out: merely cut, repaired, and repaired and in int8 (calibrated after that). Files are
artifacts for this machine, batch 1, against the whole network's in float32: as they are, with
`--compress`, and in int8 with `--compress`; `zip` is the plain artifact deflated by Python's
zipfile, for comparison. `opened` is the time to open the compressed one. `--speed` times float32
artifacts, one thread, next to the whole network in the same process.
`--network` times a model of random weights: for speed only, nothing is repaired.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks.accuracy import (
    Settings,
    as_written,
    in_onnxruntime,
    outputs_of,
    prepared,
    quantized,
)
from benchmarks.labelled import TASKS, Task, tasks
from qcompiler import plugins
from qcompiler.artifact.artifact import Artifact, open_artifact
from qcompiler.data.calibrate import Calibration
from qcompiler.driver import Compilation
from qcompiler.ir import Graph
from qcompiler.onnx_io.writer import write
from qcompiler.options import Options
from qcompiler.pruning.request import pruning
from qcompiler.runtime import Model, load
from qcompiler.stages import Choice, build, parse

WISHES = ("none", "magnitude:0.7", "2:4", "block:0.5", "channels:0.25", "channels:0.5")
PRODUCTS = ("Conv", "MatMul")
NAN = float("nan")


@dataclass(frozen=True)
class Row:
    """One model, pruned one way. `ms` is [this, the whole network], `opened` milliseconds; NaN: not
    measured.
    """

    model: str
    wish: str
    cut: float
    repaired: float
    int8: float
    weights: int
    zeros: float
    bytes: int
    zipped: int
    compressed: int
    compressed_int8: int
    opened: float
    ms: tuple[float, float] = (NAN, NAN)


def pruned(graph: Graph, wish: str, data: Calibration | None) -> Graph:
    """A fused graph -> after the passes asked for, `name{options}` or as `--prune` takes it;
    without data merely cut.
    """
    if wish == "none":
        return graph
    if "{" in wish:
        name, options = parse(wish)
        asked = {name: options}
    else:
        asked = {k: dict(v) for k, v in pruning([wish], (), ()).items()}
    for name, options in asked.items():
        if data is None:
            options = {**options, "recovery": "none", "importance": "magnitude"}
            options.pop("scope", None)
        graph = build(name, options, plugins.device("host"), data=data)(graph)
    return graph


def row(task: Task, wish: str, samples: int, calibration: int, speed: Model | None) -> Row:
    """Prune one model and score it."""
    graph = prepared(task.model(), task)
    data = Calibration(list(task.batches(task.calibration, calibration)))
    settings = Settings(samples=samples)

    def score(made: Graph) -> float:
        return task.score(outputs_of(task, settings, in_onnxruntime(write(made))))

    repaired = pruned(graph, wish, data)
    cut = score(pruned(graph, wish, None))
    small = quantized(repaired, task, settings)
    int8 = task.score(outputs_of(task, settings, as_written(small)))
    return _with_files(task.name, wish, repaired, small, (cut, score(repaired), int8), speed)


def _with_files(
    name: str,
    wish: str,
    graph: Graph,
    coarse: Graph | None,
    scores: tuple[float, float, float],
    dense: Model | None,
) -> Row:
    arrays = [n.operands[1].array for n in graph.nodes if n.op in PRODUCTS if _constant(n)]
    weights = sum(a.size for a in arrays)
    zeros = sum(int((a == 0).sum()) for a in arrays) / weights
    artifact = compiled(graph)
    with tempfile.TemporaryDirectory() as folder:
        saved = artifact.save(Path(folder) / "plain.qc")
        plain = saved.stat().st_size
        with zipfile.ZipFile(Path(folder) / "z.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.write(saved, "plain.qc")
        deflated = (Path(folder) / "z.zip").stat().st_size
        tight = compiled(graph, compress=True).save(Path(folder) / "small.qc", compress=True)
        small = tight.stat().st_size
        start = time.perf_counter()
        open_artifact(tight)
        opened = 1e3 * (time.perf_counter() - start)
        tiny = 0
        if coarse is not None:
            made = compiled(coarse, compress=True)
            tiny = made.save(Path(folder) / "tiny.qc", compress=True).stat().st_size
    ms = (NAN, NAN)
    if dense is not None:
        both = milliseconds(load(artifact, threads=1), dense)
        ms = (both[0], both[1])
    sizes = (plain, deflated, small, tiny)
    return Row(name, wish, *scores, weights, zeros, *sizes, opened, ms)


def _constant(node: object) -> bool:
    return bool(node.operands[1].is_constant)  # type: ignore[attr-defined]


def compiled(graph: Graph, *, compress: bool = False) -> Artifact:
    """A fused graph -> the artifact for this machine, one thread."""
    here = plugins.device("host", 1)
    asked = Choice({"layout_compact": {}} if compress else {})
    return Compilation.of(graph, here, asked).artifact


def milliseconds(*models: Model, seconds: float = 0.5) -> list[float]:
    """The medians of models that take turns."""
    feeds = [{v.name: np.ones(v.shape, v.dtype) for v in m.inputs} for m in models]
    times: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds * len(models)
    while time.perf_counter() < end or len(times[0]) < 5:
        for model, feed, took in zip(models, feeds, times, strict=True):
            start = time.perf_counter()
            model.run(feed)
            took.append(time.perf_counter() - start)
    return [1e3 * float(np.median(t)) for t in times]


def table(rows: Sequence[Row]) -> str:
    """Rows -> Markdown; ratios are against the row `none` of the same model."""
    lines = [
        "| model | pruned | cut | repaired | + int8 | weights left | file | zip | --compress |"
        " opened | int8, --compress | faster |",
        "|---" * 12 + "|",
    ]
    whole = {r.model: r for r in rows if r.wish == "none"}
    for r in rows:
        dense = whole.get(r.model, r)
        files = (r.bytes, r.zipped, r.compressed, r.compressed_int8)
        plain, zipped, tight, int8 = (_ratio(dense.bytes, n) for n in files)
        left = r.weights * (1 - r.zeros) / (dense.weights * (1 - dense.zeros))
        faster = "" if np.isnan(r.ms[0]) else f"{r.ms[1] / r.ms[0]:.2f}x ({r.ms[0]:.2f} ms)"
        lines.append(
            f"| {r.model} | {r.wish} | {r.cut:.2f} | {r.repaired:.2f} | {r.int8:.2f} "
            f"| {100 * left:.0f}% | {plain} | {zipped} | {tight} | {r.opened:.0f} ms | {int8} "
            f"| {faster} |"
        )
    return "\n".join(lines)


def _ratio(whole: int, size: int) -> str:
    return f"{size / 1e3:.0f} kB, {whole / size:.2f}x" if size else ""


def _of_network(path: Path, wishes: Sequence[str]) -> list[Row]:
    """A model of random weights: files and times only."""
    model = onnx.load(path)
    shapes = {
        i.name: [d.dim_value or 1 for d in i.type.tensor_type.shape.dim] for i in model.graph.input
    }
    graph = Compilation(model, Options(input_shapes=shapes)).float_graph
    dense = load(compiled(graph), threads=1)
    found = []
    for wish in wishes:
        made = pruned(graph, wish, None)
        found.append(_with_files(path.stem, wish, made, None, (NAN, NAN, NAN), dense))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--network", type=Path, help="an ONNX file of random weights")
    parser.add_argument("--models", default="", help=", ".join(TASKS))
    parser.add_argument("--prune", action="append", default=[], help=", ".join(WISHES))
    parser.add_argument("--samples", type=int, default=0, help="score at most this many")
    parser.add_argument("--calibration", type=int, default=200, help="repair by this many")
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args(argv)
    plugins.load_all()
    wishes = given.prune or list(WISHES)
    rows: list[Row] = []
    if given.network:
        rows = _of_network(given.network, ["none", *(w for w in wishes if w != "none")])
    names = [n for n in given.models.split(",") if n]
    for found in tasks(given.folder, names) if given.folder else ():
        task = replace(found, batch=1)
        dense = load(compiled(prepared(task.model(), task)), threads=1) if given.speed else None
        for wish in wishes:
            rows.append(row(task, wish, given.samples, given.calibration, dense))
            print(table(rows).splitlines()[-1], flush=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
