"""Small models to tune, and places that answer as a test says."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper, save

from qcompiler import plugins
from qcompiler.artifact.artifact import open_artifact
from qcompiler.autotune import region_file, trial
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.measure import Baseline, Bench, Result
from qcompiler.autotune.places import Here, Ran, Runs
from qcompiler.autotune.request import Tuning
from qcompiler.autotune.tasks import Choice, Task, tasks_of
from qcompiler.autotune.tune import Report, Tuner, subject_of
from qcompiler.demo import MODEL
from qcompiler.driver import Compilation
from qcompiler.ir import Array, Graph, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.options import Options
from qcompiler.plan.plan import Plan, plan
from qcompiler.tune.journal import Journal

DIGITS = {"input_shapes": {"image": (1, 1, 8, 8)}, "threads": 1}


@cache
def digits(precision: str = "float32", target: str = "host") -> Compilation:
    data = "synthetic" if precision == "int8" else None
    options = Options(**DIGITS, precision=precision, calibration=data, target=target)
    return Compilation(MODEL, options)


@cache
def small(path: Path, seed: int = 0, copies: int = 1, rows: int = 40) -> Compilation:
    """Two layers of products, or some copies of them beside each other, compiled for one thread;
    their file is written there.
    """
    rng = np.random.default_rng(seed)
    arrays, nodes = {}, []
    for i in range(copies):
        n = "" if copies == 1 else str(i)
        arrays[f"w{n}"] = rng.standard_normal((64, 96)).astype(np.float32)
        arrays[f"v{n}"] = rng.standard_normal((96, 48)).astype(np.float32)
        nodes += [
            helper.make_node("MatMul", ["x", f"w{n}"], [f"a{n}"], name=f"first{n}"),
            helper.make_node("Relu", [f"a{n}"], [f"b{n}"], name=f"relu{n}"),
            helper.make_node("MatMul", [f"b{n}", f"v{n}"], [f"y{n}"], name=f"second{n}"),
        ]
    outs = [node.output[0] for node in nodes[2::3]]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, (rows, 64))],
        [helper.make_tensor_value_info(n, 1, (rows, 48)) for n in outs],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return Compilation(path, Options(threads=1))


def product(threads: int = 1, rows: int = 64, inner: int = 96, columns: int = 80) -> Plan:
    """relu(x @ w) twice, of equal shapes."""
    plugins.load_all()
    rng = np.random.default_rng(0)
    x = placeholder("x", Type("float32", (rows, inner)))
    found = []
    for name in ("first", "second"):
        w = constant(rng.standard_normal((inner, columns)).astype(np.float32), f"{name}_w")
        found.append(make("Relu", make("matmul", x, w, name=name)))
    graph = Graph((x,), tuple(found), ("y", "z"))
    return plan(graph, plugins.device("host", threads))


def task(threads: int = 1) -> Task:
    (found,) = tasks_of([(product(threads), "host")])
    return found


def others(task: Task) -> list[Choice]:
    """Of the choices predicted to be best, one for each code that is not the default's: which ones
    are predicted to be best depends on the machine.
    """
    some = task.choices[:12]
    made = trial.trial(region_file.alone(task.region), task.device, [task.default, *some])
    assert isinstance(made, trial.Trial)
    places = [p for p in made.places if isinstance(p, trial.Place)]
    made_by = {p.code: c for c, p in zip(some, places[1:], strict=True)}
    return [c for code, c in made_by.items() if code != places[0].code]


class Guessed(Bench):
    """Measures nothing: times are what a function says, faults what another raises."""

    def __init__(
        self,
        seconds: Callable[[Task, Choice], float],
        fault: Callable[[Task, Choice], Exception | None] = lambda task, choice: None,
    ) -> None:
        super().__init__(Here(1), Builder())
        self.seconds, self.fault = seconds, fault
        self.asked: list[Choice] = []

    def baseline(self, task: Task) -> Baseline:
        self.raised(task, task.default)
        seconds = self.seconds(task, task.default)
        return Baseline(seconds, seconds, {}, np.zeros(1))

    def results(
        self,
        task: Task,
        choices: Sequence[Choice],
        requests: int = 3,
        *,
        most: int = 0,
        anew: bool = False,
    ) -> list[Result]:
        found, usual = [], self.baseline(task).seconds
        for c in choices[: most or None]:
            self.asked.append(c)
            self.raised(task, c)
            seconds = self.seconds(task, c)
            found.append(Result(c, seconds / usual, 0.001, seconds, code=str(c)))
        return found

    def raised(self, task: Task, choice: Choice) -> None:
        if (fault := self.fault(task, choice)) is not None:
            raise fault


@dataclass
class Scripted:
    """A place that runs nothing: `answer` says what a run gives, or raises."""

    answer: Callable[[Path, Mapping[str, Array]], Ran]
    name: str = "scripted"
    host: str = "scripted"
    runs: list[Path] = field(default_factory=list)

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        self.runs.append(artifact)
        return self.answer(artifact, inputs)

    def again(self) -> Scripted:
        return self

    def close(self) -> None:
        pass


def made_up(kernel: str) -> float:
    """Seconds that are always the same, whatever else is in an artifact."""
    name, _, _ = kernel.rpartition("_")
    return 1e-5 * (0.7 + zlib.crc32(name.encode()) % 16 / 100)


class MadeUp(Here):
    """Runs artifacts, and makes up how long that takes: the default's kernel longest."""

    after = 0.9
    """Of a tuned model's time, of that before."""

    def run(self, artifact: Path, inputs: Mapping[str, Array], runs: Runs) -> Ran:
        few = replace(runs, rounds=min(runs.rounds, 1), iterations=0)
        found = super().run(artifact, inputs, few)
        facts = open_artifact(artifact).manifest.variants[0].steps
        products = [s.kernel for s in facts if s.kernel.startswith("matmul")]
        steps = [made_up(s.kernel) if s.kernel not in products[:1] else 1e-5 for s in facts]
        whole = 1e-3 * (self.after if artifact.name == "after.qc" else 1.0)
        return Ran(found.outputs, steps if runs.rounds else [], [whole] * runs.iterations)

    def again(self) -> MadeUp:
        other = MadeUp(1)
        other.after = self.after
        return other


def tuned(model: Path, path: Path, time: float, place: MadeUp | None = None) -> Report:
    subject = subject_of(small(model))
    with Journal(path) as journal:
        asked = Tuning(time=time, plans=False)
        with Tuner([subject], asked, journal, [place or MadeUp(1)]) as tuner:
            return tuner.run()
