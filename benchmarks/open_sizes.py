"""A model whose sizes stay open, in runs of several sizes: here, in onnxruntime, and in OpenVINO,
whose kernels are made, or memory laid out, when a size is first seen.

    python -m benchmarks.open_sizes minilm.onnx --dim N=1..8 --dim S=1..256 --run N=1,S=17 N=8,S=128

Float32. Every engine runs each size once, which is the first call of that size; then all engines
take turns, size by size; with `--alone` also an artifact of ours for that size alone. One thread,
in one process: threads of several engines would take the cores from each other. Run it where
nothing else runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np
import onnx

import qcompiler
from benchmarks.engines import Run, Settings, openvino, ort
from benchmarks.engines import qcompiler as ours
from benchmarks.subjects import Feed, draw

ROUNDS, ROUND_SECONDS = 15, 0.03
SETTINGS = Settings(threads=1)
OURS, ALONE = "qcompiler", "that size alone"


@dataclass(frozen=True)
class Timed:
    """Seconds of the first run of a size, and the median of later ones."""

    first: float
    later: float


def feed_of(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Feed:
    """Inputs of a run, one sample of what `subjects` draws."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                if dim.dim_param not in sizes:
                    raise SystemExit(f"--run says no number for {dim.dim_param} of {value.name}")
                dim.dim_value = sizes[dim.dim_param]
    weights, random = {w.name for w in sized.graph.initializer}, np.random.default_rng(0)
    inputs = [v for v in sized.graph.input if v.name not in weights]
    return {v.name: np.ascontiguousarray(draw(sized, v, random)[0]) for v in inputs}


def measured(
    engines: Mapping[str, Run], feeds: Sequence[Feed], alone: Sequence[Run]
) -> list[dict[str, Timed]]:
    """Every size by every engine, and by what was made for it alone, if anything was."""
    each = [{**engines, **({ALONE: alone[i]} if alone else {})} for i in range(len(feeds))]
    firsts = [
        {name: _seconds(run, feed) for name, run in own.items()}
        for feed, own in zip(feeds, each, strict=True)
    ]
    found = []
    for feed, first, own in zip(feeds, firsts, each, strict=True):
        taken: dict[str, list[float]] = {name: [] for name in own}
        for _ in range(ROUNDS):
            for name, run in own.items():
                _seconds(run, feed)  # the caches hold what another engine left there
                times = [_seconds(run, feed)]
                while sum(times) < ROUND_SECONDS:
                    times.append(_seconds(run, feed))
                taken[name].append(median(times))
        found.append({name: Timed(first[name], median(t)) for name, t in taken.items()})
    return found


def _seconds(run: Run, feed: Feed) -> float:
    begin = time.perf_counter()
    run(feed)
    return time.perf_counter() - begin


def table(runs: Sequence[str], found: Sequence[Mapping[str, Timed]]) -> str:
    """Milliseconds, how much faster ours is than the faster peer, and its time by that of what was
    made for the size alone.
    """
    names = list(found[0])
    more = ["times the faster peer", *(["by that size alone"] if ALONE in names else [])]
    lines = ["| sizes | " + " | ".join([*(f"{n}, first" for n in names), *more]) + " |"]
    lines.append("|---|" + "---:|" * (len(names) + len(more)))
    columns: list[list[float]] = []
    for text, row in zip(runs, found, strict=True):
        cells = [f"{t.later * 1e3:.3g}, {t.first * 1e3:.3g}" for t in row.values()]
        ours = row[OURS].later
        ratios = [min(t.later for n, t in row.items() if n not in (OURS, ALONE)) / ours]
        ratios += [ours / row[ALONE].later] if ALONE in row else []
        columns.append(ratios)
        lines.append(f"| {text} | {' | '.join([*cells, *(f'{r:.2f}' for r in ratios)])} |")
    means = (f"{geometric_mean(c):.3f}" for c in zip(*columns, strict=True))
    return "\n".join([*lines, f"geometric means {', '.join(means)}", ""])


def main() -> None:
    """Compile once with open sizes, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dim", action="append", default=[], help="NAME=LO..HI, as of compile")
    parser.add_argument("--opt-dim", action="append", default=[], help="NAME=N, as of compile")
    parser.add_argument("--run", nargs="+", required=True, help="NAME=N,NAME=N: the sizes of a run")
    parser.add_argument("--alone", action="store_true", help="compile each size alone, too")
    a = parser.parse_args()
    model = onnx.load(a.model)
    feeds = [feed_of(model, {k: int(v) for k, v in _pairs(text.split(","))}) for text in a.run]
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        made = Path(folder) / "model.qc"
        best = {k: int(v) for k, v in _pairs(a.opt_dim)}
        qcompiler.compile(a.model, dims=dict(_pairs(a.dim)), opt_dims=best, threads=1).save(made)
        engines = {
            OURS: ours.load(made, SETTINGS),
            "onnxruntime": ort.load(a.model, SETTINGS),
            "OpenVINO": openvino.loader("f32")(a.model, SETTINGS),
        }
        alone: list[Run] = []
        for i, feed in enumerate(feeds if a.alone else ()):
            shapes = {name: array.shape for name, array in feed.items()}
            one = Path(folder) / f"alone{i}.qc"
            qcompiler.compile(a.model, input_shapes=shapes, threads=1).save(one)
            alone.append(ours.load(one, SETTINGS))
        sys.stdout.write(table(a.run, measured(engines, feeds, alone)))


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(k, v) for k, _, v in (t.partition("=") for t in texts)]


if __name__ == "__main__":
    main()
