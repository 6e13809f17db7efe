"""A model whose sizes stay open, in runs of several sizes: here, in onnxruntime, and in OpenVINO,
whose kernels are made, or memory laid out, when a size is first seen.

    python -m benchmarks.open_sizes minilm.onnx --dim N=1..8 --dim S=1..256 --run N=1,S=17 N=8,S=128

Float32. Every engine runs each size once, which is the first call of that size; then all engines
take turns, size by size. One thread, in one process: threads of several engines would take the
cores from each other. Run it where nothing else runs.
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


def measured(engines: Mapping[str, Run], feeds: Sequence[Feed]) -> list[dict[str, Timed]]:
    """Every size by every engine."""
    firsts = [{name: _seconds(run, feed) for name, run in engines.items()} for feed in feeds]
    found = []
    for feed, first in zip(feeds, firsts, strict=True):
        taken: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(ROUNDS):
            for name, run in engines.items():
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


def table(runs: Sequence[str], found: Sequence[Mapping[str, Timed]], ours_first: str) -> str:
    """Milliseconds, and how much faster ours is than the faster of the others."""
    names = list(found[0])
    lines = ["| sizes | " + " | ".join(f"{n}, first" for n in names) + " | times the faster peer |"]
    lines.append("|---|" + "---:|" * (len(names) + 1))
    ratios = []
    for text, row in zip(runs, found, strict=True):
        cells = [f"{t.later * 1e3:.3g}, {t.first * 1e3:.3g}" for t in row.values()]
        ratios.append(
            min(t.later for n, t in row.items() if n != ours_first) / row[ours_first].later
        )
        lines.append(f"| {text} | {' | '.join(cells)} | {ratios[-1]:.2f} |")
    return "\n".join([*lines, f"geometric mean {geometric_mean(ratios):.2f}", ""])


def main() -> None:
    """Compile once with open sizes, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dim", action="append", default=[], help="NAME=LO..HI, as of compile")
    parser.add_argument("--opt-dim", action="append", default=[], help="NAME=N, as of compile")
    parser.add_argument("--run", nargs="+", required=True, help="NAME=N,NAME=N: the sizes of a run")
    a = parser.parse_args()
    model = onnx.load(a.model)
    feeds = [feed_of(model, {k: int(v) for k, v in _pairs(text.split(","))}) for text in a.run]
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        made = Path(folder) / "model.qc"
        best = {k: int(v) for k, v in _pairs(a.opt_dim)}
        qcompiler.compile(a.model, dims=dict(_pairs(a.dim)), opt_dims=best, threads=1).save(made)
        engines = {
            "qcompiler": ours.load(made, SETTINGS),
            "onnxruntime": ort.load(a.model, SETTINGS),
            "OpenVINO": openvino.loader("f32")(a.model, SETTINGS),
        }
        sys.stdout.write(table(a.run, measured(engines, feeds), "qcompiler"))


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(k, v) for k, _, v in (t.partition("=") for t in texts)]


if __name__ == "__main__":
    main()
