"""Models with an open batch, and records of one model that another takes over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper, save
from tuning_harness import product

from qcompiler.autotune.inside import won
from qcompiler.autotune.sized import Sized, sized
from qcompiler.autotune.tasks import tasks_of
from qcompiler.autotune.tune import keys_of, subject_of
from qcompiler.demo import MODEL
from qcompiler.driver import Compilation
from qcompiler.kernels.facts import sealed
from qcompiler.options import Options
from qcompiler.plan.choose import APART
from qcompiler.plan.regions import split
from qcompiler.runtime import load
from qcompiler.tune.records import (
    APART_VERSION,
    CHOSEN,
    Key,
    Line,
    Measured,
    Record,
    described,
    write,
)

OPEN = Options(threads=1, dims={"N": "1..40"}, opt_dims={"N": 16})


@pytest.fixture(scope="module")
def made() -> Compilation:
    return Compilation(MODEL, OPEN)


def test_every_size_of_an_open_batch_is_tuned_by_itself(made: Compilation) -> None:
    found = sized(made)
    opened = made.plan.opened
    assert opened is not None
    assert len(found) == len(opened.batches)
    subjects = [subject_of(m) for m in found]
    assert not any(s.whole for s in subjects)
    assert [s.plan.graph.inputs[0].type.dims[0] for s in subjects] == [
        b.samples for b in opened.batches
    ]
    assert len({s.name for s in subjects}) == len(subjects)
    theirs = {k for s in subjects for k in keys_of(s.plan)}
    assert theirs == keys_of(made.plan)
    tasks = tasks_of([(s.plan, s.target) for s in subjects])
    assert sum(t.count for t in tasks) == len(made.plan.steps)


def test_records_of_a_size_serve_the_open_batch(made: Compilation, tmp_path: Path) -> None:
    tasks = tasks_of([(m.planned(), "host") for m in sized(made)])
    others = [(t, next((c for c in t.choices if c.generator != APART), None)) for t in tasks]
    lines = [Line(CHOSEN, t.key, c.record(1e-6)) for t, c in others if c is not None]
    write(path := tmp_path / "records.jsonl", Measured(tuple(lines)))
    again = Compilation(MODEL, replace(OPEN, tuning_records=path))
    taken = [s for s in again.plan.steps if s.decision is not None and s.decision.recorded]
    assert len(taken) >= len(lines) > 0
    assert again.plan.opened == made.plan.opened  # what was measured changes no size
    rng = np.random.default_rng(0)
    for count in (1, 17):
        (value,) = load(made.artifact).inputs
        x = {value.name: rng.random((count, *value.shape[1:]), np.float32)}
        mine, usual = (load(m.artifact).run(x) for m in (again, made))
        for name, output in usual.items():
            np.testing.assert_allclose(mine[name], output, rtol=1e-4, atol=1e-5)


def test_other_open_sizes_are_tuned_together(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    sides = [helper.make_tensor_value_info(n, 1, (1, "S", d)) for n, d in (("x", 32), ("y", 64))]
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    parts = [product], "open", sides[:1], sides[1:], [numpy_helper.from_array(weights, "w")]
    model = helper.make_model(
        helper.make_graph(*parts), opset_imports=[helper.make_opsetid("", 20)]
    )
    save(model, tmp_path / "open.onnx")
    options = Options(threads=1, dims={"S": "1..256"})
    (one,) = sized(made := Compilation(tmp_path / "open.onnx", options))
    assert one is made
    subject = subject_of(one)
    assert not subject.whole
    found = {t.region.output.type.dims for t in tasks_of([(subject.plan, "host")])}
    assert made.plan.opened is not None
    assert len(found) >= len(made.plan.opened.pinned) > 0


def test_a_fixed_batch_is_tuned_as_it_is() -> None:
    fixed = Compilation(MODEL, Options(threads=1, input_shapes={"image": (1, 1, 8, 8)}))
    assert sized(fixed) == [fixed]
    assert not isinstance(fixed, Sized)


def test_what_is_slower_inside_the_model_does_not_count() -> None:
    plan = product()
    (task,) = tasks_of([(plan, "host")])
    line = Line(CHOSEN, task.key, task.choices[0].record(1e-6), 0.9)
    assert won(plan, ([2.0, 2.0], [1.0, 2.5]), [line]) == [line]
    assert won(plan, ([2.0, 2.0], [2.5, 2.0]), [line]) == []
    apart = replace(line, record=Record(APART, APART_VERSION, {}, 1e-6))
    parts = len(split(plan.steps[0].region))
    assert parts == 2
    assert won(plan, ([2.0, 2.0], [0.5, 1.0, 0.5, 1.0]), [apart]) == [apart]
    assert won(plan, ([2.0, 2.0], [1.5, 1.0, 1.5, 1.0]), [apart]) == []
    assert won(plan, ([2.0, 2.0], [1.5, 1.0]), [apart]) == [apart]  # who knows which is which
    other = replace(line, key=Key("another", described(plan.device)))
    assert won(plan, ([2.0, 2.0], [1.0, 1.0]), [other]) == []
    assert sealed(plan.steps[0].region, plan.device).key == task.key.region
