"""ONNX model, target -> a table of its steps with their predicted times, and the sum."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.assembly import loops
from benchmarks.prediction.machine import uses
from benchmarks.prediction.overlap import Cost, cost
from benchmarks.prediction.trace import trace
from qcompiler import plugins
from qcompiler.driver import Compilation
from qcompiler.options import Options
from qcompiler.plan.plan import Plan, Step

HERTZ = 3.03e9
_UNITS = ("products", "loads", "stores", "vectors", "instructions", "L2", "memory")
BARRIER = 0.3
"""Microseconds until all tasks have met."""


@dataclass(frozen=True)
class Predicted:
    """A step: what each task takes, and the barriers before and in it."""

    step: Step
    tasks: tuple[Cost, ...]
    barriers: int

    @property
    def cost(self) -> Cost:
        """The slowest task's."""
        return max(self.tasks, key=lambda c: c.total)

    @property
    def microseconds(self) -> float:
        """With its barriers."""
        return self.cost.total / HERTZ * 1e6 + BARRIER * self.barriers


def predict(plan: Plan, feed: dict[str, NDArray[np.generic]]) -> list[Predicted]:
    """Plan, inputs by name -> every step's prediction."""
    code = trace(plan, feed)
    functions = [loops(f) for f in code.functions]
    table = uses({i for f in code.functions for b in f for i in b.instructions})
    return [
        Predicted(step, tuple(cost(functions, t, table) for t in tasks), barriers)
        for step, (tasks, barriers) in zip(plan.steps, code.steps, strict=True)
    ]


def whole(steps: Sequence[Predicted]) -> float:
    """Microseconds of all steps: between barriers each task goes its own way."""
    total, phase = 0.0, [0.0] * len(steps[0].tasks)
    for p in steps:
        if p.barriers:
            total, phase = (
                total + max(phase) + p.barriers * BARRIER * 1e-6 * HERTZ,
                [0.0] * len(phase),
            )
        phase = [a + c.total for a, c in zip(phase, p.tasks, strict=True)]
    return (total + max(phase)) / HERTZ * 1e6


def report(steps: Sequence[Predicted], *, peak: float) -> str:
    """A table, what costs most first, steps of one kernel together; `peak`: operations a second of
    one core's tiles.
    """
    lines = [
        f"{'us in all':>9} {'steps':>5} {'us each':>7} {'TOP/s':>6} {'limit':>5} |"
        + "".join(f"{unit[:8]:>9}" for unit in _UNITS)
        + f" |{'total':>9} | bound        kernel"
    ]
    groups: dict[str, list[Predicted]] = {}
    for p in steps:
        groups.setdefault(re.sub(r"_\d+$", "", p.step.kernel.name), []).append(p)
    summed = {name: sum(p.microseconds for p in group) for name, group in groups.items()}
    for name in sorted(groups, key=lambda n: -summed[n]):
        group = groups[name]
        each = summed[name] / len(group)
        kernel, c = group[0].step.kernel, group[0].cost
        rate = 2 * kernel.macs / each * 1e6
        units = "".join(f"{c.times[unit] / 1e3:9.1f}" for unit in _UNITS)
        lines.append(
            f"{summed[name]:9.1f} {len(group):5} {each:7.1f} {rate / 1e12:6.2f}"
            f" {rate / (peak * max(kernel.tasks, 1)):5.0%} |{units} |{c.total / 1e3:9.1f} |"
            f" {c.bound:12} {name} ({kernel.tasks} tasks)"
        )
    total, barriers = whole(steps), sum(p.barriers for p in steps)
    macs = sum(p.step.kernel.macs for p in steps)
    lines.append(
        f"{total:9.1f} us PREDICTED, not measured; {barriers} barriers;"
        f" {2 * macs / total / 1e6:.2f} TOP/s; between the bars: thousands of cycles of the slowest"
        " task, by what is busy"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--target", default="sapphire_rapids")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME=1x3x224x224")
    options = parser.parse_args(arguments)
    plugins.load_all()
    shapes = {}
    for text in options.input_shape:
        name, _, sizes = text.partition("=")
        shapes[name] = tuple(map(int, sizes.split("x")))
    made = Compilation(
        options.model,
        Options(
            target=options.target,
            precision=options.precision,
            calibration="synthetic" if options.precision == "int8" else None,
            calibration_samples=2,
            threads=options.threads,
            input_shapes=shapes,
        ),
    ).plan
    rng = np.random.default_rng(0)
    feed = {n.name: _drawn(rng, n.dtype, n.type.dims) for n in made.graph.inputs}
    print(report(predict(made, feed), peak=2 * 16 * 16 * 64 / 16 * HERTZ))


def _drawn(rng: np.random.Generator, dtype: str, dims: tuple[int, ...]) -> NDArray[np.generic]:
    if dtype.startswith("float"):
        return rng.standard_normal(dims).astype(dtype)
    return rng.integers(0, 2, dims).astype(dtype)


if __name__ == "__main__":
    main()
