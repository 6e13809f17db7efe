"""Small models to tune, and places that answer as a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper, save

from qcompiler import plugins
from qcompiler.autotune.builder import Builder
from qcompiler.autotune.measure import Baseline, Bench, Result
from qcompiler.autotune.places import Here, Ran, Runs
from qcompiler.autotune.tasks import Choice, Task, tasks_of
from qcompiler.demo import MODEL
from qcompiler.driver import Compilation
from qcompiler.ir import Array, Graph, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.options import Options
from qcompiler.plan.plan import Plan, plan

DIGITS = {"input_shapes": {"image": (1, 1, 8, 8)}, "threads": 1}


@cache
def digits(precision: str = "float32") -> Compilation:
    data = "synthetic" if precision == "int8" else None
    return Compilation(MODEL, Options(**DIGITS, precision=precision, calibration=data))


@cache
def small(path: Path) -> Compilation:
    """Two layers of products, compiled for one thread; their file is written there."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((64, 96)).astype(np.float32),
        "v": rng.standard_normal((96, 48)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", 1, (40, 64))],
        [helper.make_tensor_value_info("y", 1, (40, 48))],
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
