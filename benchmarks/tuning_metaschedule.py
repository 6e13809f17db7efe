"""How fast does tuning find fast kernels, here and in TVM's MetaSchedule? The best time so far of
all layers of a set, against the seconds spent.

    python -m benchmarks.tuning_metaschedule resnet50 --seconds 3600 --plot resnet50.svg
    python -m benchmarks.tuning_metaschedule bert_base --layers 4 --seconds 600

The layers are the products (convolutions and matrix products, float32, one thread) that take most
of a network's predicted time. Ours also compute what is fused with them; MetaSchedule gets the
product alone, in the same layout. Run it where nothing else runs; MetaSchedule needs the extra
[bench].
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import inf, prod
from pathlib import Path
from typing import Any

import onnx

from benchmarks.networks import NETWORKS
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.measure import Bench, Result
from qcompiler.autotune.places import Here
from qcompiler.autotune.search import Search
from qcompiler.autotune.tasks import Task, tasks_of
from qcompiler.driver import Compilation
from qcompiler.hardware.isa import Isa
from qcompiler.options import Options

TRIALS = 16
"""That MetaSchedule makes of a layer before it turns to the next."""
BUILD_SECONDS = 300.0
"""For one of them, also where other programs run."""


@dataclass
class Curve:
    """What was found of each layer, and when."""

    found: list[tuple[float, int, float]] = field(default_factory=list)
    """(Seconds since the begin, layer, seconds of a run)."""

    def points(self, counts: Sequence[int]) -> Iterator[tuple[float, float]]:
        """(Seconds, seconds of all layers' runs with the best so far), once all were measured."""
        best: dict[int, float] = {}
        for when, layer, seconds in sorted(self.found):
            best[layer] = min(seconds, best.get(layer, seconds))
            if len(best) == len(counts):
                yield when, sum(counts[i] * s for i, s in best.items())


def layers(model: onnx.ModelProto, most: int) -> list[Task]:
    """The products of a network that take most of its time."""
    plan = Compilation(model, Options(threads=1)).plan
    found = [t for t in tasks_of([(plan, "host")]) if t.choices and workload(t) is not None]
    return found[:most]


def workload(task: Task) -> Any:
    """A task's product alone, as MetaSchedule takes it; None for other operators."""
    from tvm import te, topi

    root = task.region.root
    if root is None or root.op not in ("conv", "matmul") or root.dtype != "float32":
        return None
    left, right = (n.type.dims for n in root.operands[:2])
    if root.op == "matmul":
        if len(right) != 2 or root.attrs.get("transpose_b"):
            return None
        left = (prod(left[:-1]), left[-1])  # rows of one matrix, as the weights are the same
    x, w = (
        te.placeholder(dims, "float32", name)
        for dims, name in zip((left, right), "xw", strict=True)
    )
    if root.op == "matmul":
        return te.create_prim_func([x, w, topi.matmul(x, w)])
    if root.attrs.get("group", 1) != 1 or len(x.shape) != 4:
        return None
    attrs: Any = root.attrs
    strides, dilations = attrs.get("strides", (1, 1)), attrs.get("dilations", (1, 1))
    made = topi.nn.conv2d_nhwc(x, w, list(strides), list(attrs["pads"]), list(dilations))
    return te.create_prim_func([x, w, made])


def ours(tasks: Sequence[Task], seconds: float) -> Curve:
    """Our search; it may end before."""
    curve, begin = Curve(), time.monotonic()
    numbers = {id(t): i for i, t in enumerate(tasks)}
    bench = Bench(Here(1), Builder())
    try:
        for i, task in enumerate(tasks):
            base = bench.start(lambda task=task: bench.baseline(task)).result()  # type: ignore[misc]
            curve.found.append((time.monotonic() - begin, i, base.seconds))

        def on_result(task: Task, result: Result) -> None:
            if result.counts:
                took = result.ratio * bench.known[task].seconds
                curve.found.append((time.monotonic() - begin, numbers[id(task)], took))

        Search(tasks, [bench], on_result).run(seconds - (time.monotonic() - begin))
    finally:
        bench.close()
    return curve


def theirs(tasks: Sequence[Task], seconds: float) -> Curve:
    """MetaSchedule, some trials of each layer in turn."""
    curve, begin = Curve(), time.monotonic()
    isa, end = tasks[0].device.isa, begin + seconds
    searches = [searched(workload(task), isa, end) for task in tasks]
    while time.monotonic() < end:
        for i, search in enumerate(searches):
            for when, best in itertools.islice(search, 1):
                if best < inf:
                    curve.found.append((when - begin, i, best))
    return curve


def searched(func: Any, isa: Isa, end: float) -> Iterator[tuple[float, float]]:
    """A function, and when to end -> after each turn of MetaSchedule's trials the time, and the
    seconds of the fastest so far.
    """
    import tvm
    from tvm.s_tir import meta_schedule as ms

    target, trials = tvm.target.Target(_facts(isa)), 0
    builder = ms.builder.LocalBuilder(max_workers=1, timeout_sec=BUILD_SECONDS)
    strategy = ms.search_strategy.EvolutionarySearch(
        population_size=64, init_measured_ratio=0.1, init_min_unmeasured=16, genetic_num_iters=2
    )
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            trials += TRIALS
            found = ms.tune_tir(
                module,
                target,
                folder,
                max_trials_global=trials,
                num_trials_per_iter=TRIALS,
                cost_model=_cost_model(),
                builder=builder,
                strategy=strategy,
                seed=1,
            )
            times = [float(s) for r in found.get_all_tuning_records() for s in r.run_secs]
            yield time.monotonic(), min(times, default=inf)


def _facts(isa: Isa) -> dict[str, Any]:
    """What MetaSchedule is told of the device: one core of an instruction set."""
    cpus = [word for word in isa.llvm if word[0] not in "+-"]
    features = [word for word in isa.llvm if word[0] in "+-"]
    found = {"kind": "llvm", "mtriple": isa.triple, "mattr": features, "num-cores": 1}
    return {**found, "mcpu": cpus[-1]} if cpus else found


def _cost_model() -> str:
    """Its learned model needs xgboost."""
    return "xgb" if find_spec("xgboost") else "random"


def plotted(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Both curves as a picture."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    for name, points in curves.items():
        if points:
            axes.step(*zip(*points, strict=True), where="post", label=name)
    axes.set(xscale="log", xlabel="seconds of tuning", ylabel="seconds of all layers")
    axes.legend()
    figure.savefig(path)


def main(words: Sequence[str] | None = None) -> None:
    """Print the points of both curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3600.0, help="for each of both")
    parser.add_argument("--plot", type=Path)
    a = parser.parse_args(words)
    tasks = layers(NETWORKS[a.network](), a.layers)
    counts = [t.count for t in tasks]
    for task in tasks:
        sys.stdout.write(f"{task.names[0]} x {task.count}: {task.region.output.type}\n")
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, search in (("qcompiler", ours), ("MetaSchedule", theirs)):
        curves[name] = list(search(tasks, a.seconds).points(counts))
        for when, best in curves[name]:
            sys.stdout.write(f"{name} {when:8.1f} s {best * 1e3:9.3f} ms\n")
        sys.stdout.flush()
    if a.plot:
        plotted(curves, a.plot)


if __name__ == "__main__":
    main()
