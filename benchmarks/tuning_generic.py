"""How fast are operators that no generator of their own makes, and would TVM's MetaSchedule make
them faster? Kernels of one thread, microseconds.

    python -m benchmarks.tuning_generic --seconds 30

`one` is the loop through all elements one by one (for products: one sum after the other), `chosen`
what the cost model takes of all loops, `best` the fastest of them, all measured side by side.
MetaSchedule gets the operator alone, as TVM's own library defines it, and `--seconds` of trials.
Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.tuning_metaschedule import searched
from benchmarks.tuning_regret import results_of
from qcompiler import plugins
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.measure import Bench
from qcompiler.autotune.places import Here
from qcompiler.autotune.tasks import Task, tasks_of
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.plan.plan import plan


@dataclass(frozen=True)
class Case:
    """An operator, and the same as MetaSchedule takes it."""

    root: Node
    theirs: Callable[[Any, Any], Any]
    """(te, topi) -> its tensors, the output last."""


def given(name: str, dtype: str, *shape: int) -> Node:
    """An input."""
    return placeholder(name, Type(dtype, shape))


def cases() -> Mapping[str, Case]:
    """What is compared."""
    weights = np.random.default_rng(0).standard_normal((3, 3, 32, 64))
    wide = make("conv", given("x", "float64", 1, 28, 28, 32), constant(weights), pads=(1,) * 4)
    square = [given(n, "float64", 256, 256) for n in "xy"]
    image, grid = given("x", "float32", 1, 64, 56, 56), given("g", "float32", 1, 56, 56, 2)
    sampled = make("GridSample", image, grid, align_corners=1)
    across = make("Trilu", given("x", "float32", 16, 256, 256), None, upper=0)
    hot = make(
        "OneHot",
        given("i", "int32", 4096),
        constant(np.array(128)),
        constant(np.array([0, 1], np.float32)),
    )
    each = [given(n, "float32", 64) for n in "sbmv"]
    normal = make("BatchNormalization", given("x", "float32", 4, 64, 56, 56), *each)
    return {
        "conv float64": Case(wide, _wide),
        "matmul float64": Case(make("matmul", *square), _square),
        "GridSample": Case(sampled, _sampled),
        "Trilu": Case(across, _across),
        "OneHot": Case(hot, _hot),
        "BatchNormalization": Case(normal, _normal),
    }


def _wide(te: Any, topi: Any) -> Any:
    x = te.placeholder((1, 28, 28, 32), "float64", "x")
    w = te.placeholder((3, 3, 32, 64), "float64", "w")
    return [x, w, topi.nn.conv2d_nhwc(x, w, 1, 1, 1, "float64")]


def _square(te: Any, topi: Any) -> Any:
    x, y = (te.placeholder((256, 256), "float64", n) for n in "xy")
    return [x, y, topi.matmul(x, y)]


def _sampled(te: Any, topi: Any) -> Any:
    x = te.placeholder((1, 64, 56, 56), "float32", "x")
    grid = te.placeholder((1, 2, 56, 56), "float32", "g")
    return [x, grid, topi.image.grid_sample(x, grid)]


def _across(te: Any, topi: Any) -> Any:
    from tvm import tirx

    x = te.placeholder((16, 256, 256), "float32", "x")
    return [x, topi.trilu(x, tirx.const(0, "int32"), False)]


def _hot(te: Any, topi: Any) -> Any:
    from tvm import tirx

    i = te.placeholder((4096,), "int32", "i")
    on, off = (tirx.const(v, "float32") for v in (1, 0))
    return [i, topi.one_hot(i, on, off, 128, -1, "float32")]


def _normal(te: Any, topi: Any) -> Any:
    x = te.placeholder((4, 64, 56, 56), "float32", "x")
    s, b, m, v = (te.placeholder((64,), "float32", n) for n in "sbmv")

    def value(n: Any, c: Any, i: Any, j: Any) -> Any:
        return (x[n, c, i, j] - m[c]) * (s[c] / te.sqrt(v[c] + 1e-5)) + b[c]

    return [x, s, b, m, v, te.compute(x.shape, value, "y")]


def task(root: Node) -> Task:
    """An operator -> what is tuned of it."""
    device = plugins.device("host", 1)
    seen = [n for n in root.operands if not n.is_constant]
    (found,) = tasks_of([(plan(Graph(tuple(seen), (root,), ("y",)), device), "host")])
    return found


def ours(found: Task) -> tuple[float, float, float]:
    """Seconds of the simplest way, of the one that is chosen, and of the fastest."""
    bench = Bench(Here(1), Builder())
    try:
        usual = bench.start(lambda: bench.baseline(found)).result().seconds
        results = list(results_of(bench, found, found.choices))
    finally:
        bench.close()
    taken = {r.choice.knobs: r.ratio * usual for r in results if r.counts}
    return taken.get((), usual), usual, min([usual, *taken.values()])


def theirs(case: Case, found: Task, seconds: float) -> float:
    """Seconds of the fastest that MetaSchedule finds; nan where it finds none."""
    from tvm import te, topi

    func = te.create_prim_func(case.theirs(te, topi))
    times = [t for _, t in searched(func, found.device.isa, time.monotonic() + seconds)]
    return min(times, default=float("nan"))


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each operator."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("operators", nargs="*")
    parser.add_argument("--seconds", type=float, default=30.0, help="of MetaSchedule, for each")
    a = parser.parse_args(words)
    plugins.load_all()
    sys.stdout.write(
        f"{'operator':20} {'one':>10} {'chosen':>10} {'best':>10} {'MetaSchedule':>12}\n"
    )
    for name, case in cases().items():
        if a.operators and name not in a.operators:
            continue
        found = task(case.root)
        times = [*ours(found), theirs(case, found, a.seconds) if a.seconds else float("nan")]
        one, chosen, best, other = (t * 1e6 for t in times)
        sys.stdout.write(f"{name:20} {one:10.1f} {chosen:10.1f} {best:10.1f} {other:12.1f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
