"""Artifacts -> roofline plots (SVG): each step against this machine's measured limits.

    python -m benchmarks.roofline resnet50-int8.qc bert-float32.qc --out docs/roofline

A point is a step that multiplies: operations over the bytes it reads and writes, and operations a
second; its area is its share of the run. The roofs are what `qcompiler.tune.limits` measured
(Williams, Waterman and Patterson, "Roofline", CACM 2009).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler import load, plugins
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import numpy_dtype
from qcompiler.runtime import Model
from qcompiler.tune import limits
from qcompiler.tune.limits import Limits

_NAMES = ("first-level cache", "second-level cache", "third-level cache", "memory")


@dataclass(frozen=True)
class Point:
    """A step: its operations a byte, operations a second, and seconds."""

    name: str
    intensity: float
    rate: float
    seconds: float
    share_of_limit: float


def measured(model: Model, rounds: int) -> tuple[Limits, list[Point]]:
    """A loaded model on made-up inputs -> the limits of this machine, and its steps that
    multiply.
    """
    device = plugins.device(model.variant.isa, model.threads)
    assert isinstance(device, Cpu)
    rng = np.random.default_rng(0)
    inputs = {v.name: rng.random(v.shape).astype(numpy_dtype(v.dtype)) for v in model.inputs}
    gauge = limits.Gauge(device)
    most = gauge.read()
    seconds = model.profile(inputs, repeat=rounds)
    most |= gauge.read()
    steps = zip(model.variant.steps, seconds, strict=True)
    return most, [
        Point(
            s.name,
            2 * s.macs / max(s.bytes, 1),
            2 * s.macs / t,
            t,
            most.seconds(s) / t,
        )
        for s, t in steps
        if s.macs
    ]


def draw(path: Path, title: str, most: Limits, points: Sequence[Point], kind: str) -> None:
    """The plot, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "qcompiler"  # the same numbers give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    peak = most.ops[kind] / 1e9
    low = min((p.intensity for p in points), default=1.0) / 2
    high = max((p.intensity for p in points), default=1.0) * 2
    xs = np.geomspace(low, high, 200)
    for (_, rate), name in zip(most.levels, _NAMES, strict=True):
        axes.plot(
            xs, np.minimum(xs * rate / 1e9, peak), lw=1, label=f"{name}, {rate / 1e9:.0f} GB/s"
        )
    axes.axhline(peak, color="black", lw=1, label=f"{kind} products, {peak:.0f} GOP/s")
    whole = sum(p.seconds for p in points)
    axes.scatter(
        [p.intensity for p in points],
        [p.rate / 1e9 for p in points],
        s=[20 + 600 * p.seconds / whole for p in points],
        color="tab:red",
        alpha=0.45,
        edgecolors="none",
    )
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="operations a byte of operands", ylabel="GOP/s")
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.2)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Plot every artifact that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for path in given.artifacts:
        model = load(path, threads=given.threads)
        most, points = measured(model, given.rounds)
        kinds = {limits.kind_of(s.operands) for s in model.variant.steps if s.macs}
        kind = max(kinds & most.ops.keys(), key=lambda k: most.ops[k])
        title = f"{path.stem}, {model.variant.isa}, {model.threads} threads"
        draw(given.out / f"{path.stem}.svg", title, most, points, kind)
        least = sum(p.share_of_limit * p.seconds for p in points)
        whole = sum(p.seconds for p in points)
        print(f"{path.stem}: its products take {whole * 1e3:.3f} ms, at least {least * 1e3:.3f} ms")
        for p in sorted(points, key=lambda p: p.seconds * (p.share_of_limit - 1))[:8]:
            lost = p.seconds * (1 - p.share_of_limit) * 1e6
            print(f"  {p.name}: {100 * p.share_of_limit:.0f}% of its limit, {lost:.1f} us lost")


if __name__ == "__main__":
    main()
