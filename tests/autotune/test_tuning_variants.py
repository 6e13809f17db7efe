"""Models compiled otherwise, and records that make them so again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuning_harness import product, small

from qcompiler.autotune.places import Here
from qcompiler.autotune.request import Tuning
from qcompiler.autotune.tasks import tasks_of
from qcompiler.autotune.tune import Tuner, subject_of
from qcompiler.autotune.variants import (
    Without,
    float_artifact,
    in_float,
    plan_choices,
    predicted,
    variant,
    without_of,
    without_passes,
)
from qcompiler.autotune.whole import difference
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.kernels.registry import Record
from qcompiler.ops import make
from qcompiler.options import Options
from qcompiler.plan.plan import plan
from qcompiler.tune.journal import Journal
from qcompiler.tune.records import (
    CHOSEN,
    MODEL,
    MODEL_VERSION,
    Key,
    Line,
    Measured,
    described,
    model_key,
    names_in,
    write,
)

INT8 = Options(threads=1, precision="int8", calibration="synthetic")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Compilation:
    path = tmp_path_factory.mktemp("variants") / "small.onnx"
    small(path)
    return Compilation(path, INT8)


def recorded(made: Compilation, record: Record, path: Path) -> Compilation:
    key = Key(model_key(made.float_graph, "int8"), described(made.device))
    write(path, Measured((Line(CHOSEN, key, record),)))
    return Compilation(made.model, replace(made.options, tuning_records=path))


def test_nodes_that_int8_makes_slower_stay_in_float(quantized: Compilation, tmp_path: Path) -> None:
    steps = {"first": 1.0, "second": 3.0, "x/quantize": 9.0, "other": 1.0}
    found = list(in_float(quantized, steps, {"first": 2.0, "second": 1.0, "other": 0.5}))
    assert [json.loads(str(v.record.knobs["exclude"])) for v in found] == [["second"]]
    asked = Compilation(quantized.model, replace(INT8, exclude=("second",)))
    again = recorded(quantized, found[0].record, tmp_path / "records.jsonl")
    assert str(again.plan) == str(found[0].made.plan) == str(asked.plan) != str(quantized.plan)
    assert predicted(again.plan) == predicted(asked.plan)


def test_steps_of_the_model_and_of_its_float_form_are_told_apart(
    quantized: Compilation, tmp_path: Path
) -> None:
    floats = float_artifact(quantized)
    assert floats is not None
    with (
        Journal(tmp_path / "records.jsonl") as journal,
        Tuner([subject_of(quantized)], Tuning(), journal, [Here(1)]) as tuner,
    ):
        for artifact in (quantized.built, floats):
            found = tuner._steps(artifact)
            assert set(found) == {s.name for s in artifact.manifest.variants[0].steps}


def test_what_is_left_out_adds_to_what_was_left_out_before(quantized: Compilation) -> None:
    before = Without(exclude=("second",), disabled=("integer_matmul",))
    best = variant(quantized, before).made.planned()
    found = [v for v in without_passes(quantized, lambda: (before, best)) if v is not None]
    for other in found:
        exclude, disabled = (names_in(other.record, k) for k in ("exclude", "disabled"))
        assert exclude == ("second",)
        assert disabled[0] == "integer_matmul"
        assert len(disabled) == 2
        assert without_of(other.record) == Without(exclude, disabled)
    assert without_of(None) == Without()


def test_a_pass_is_left_out_as_a_record_says(quantized: Compilation, tmp_path: Path) -> None:
    made = variant(quantized, Without(disabled=("integer_matmul",)))
    asked = Compilation(quantized.model, replace(INT8, disabled_passes=("integer_matmul",)))
    again = recorded(quantized, made.record, tmp_path / "records.jsonl")
    assert str(again.plan) == str(made.made.plan) == str(asked.plan) != str(quantized.plan)


def test_a_record_of_a_model_that_says_nothing_changes_nothing(
    quantized: Compilation, tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    same = recorded(quantized, Record(MODEL, MODEL_VERSION, {}, 0.0), path)
    assert str(same.plan) == str(quantized.plan)
    broken = recorded(quantized, Record(MODEL, MODEL_VERSION, {"exclude": "3"}, 0.0), path)
    with pytest.raises(Error, match="no list of names"):
        _ = broken.plan


@pytest.mark.parametrize(
    "knobs",
    [
        {"exclude": '["("]'},
        {"exclude": '["no such node"]'},
        {"disabled": '["no_such_pass"]'},
        {"disabled": '["fold_constants"]'},
        {"disabled": '["quantize_static"]', "exclude": '["second"]'},
    ],
)
def test_a_record_of_other_nodes_or_passes_is_left_out(
    quantized: Compilation, knobs: dict[str, str], tmp_path: Path
) -> None:
    record = Record(MODEL, MODEL_VERSION, knobs, 0.0)
    assert str(recorded(quantized, record, tmp_path / "r.jsonl").plan) == str(quantized.plan)


def test_threads_and_parts_of_a_plan_are_varied(quantized: Compilation) -> None:
    usual = quantized.plan
    found = plan_choices(quantized, usual)
    assert {(r.threads, r.knobs["parts"]) for r in found} == {(1, 2), (1, 4)}
    two = replace(usual, device=replace(usual.device, threads=2), parts=4)
    made = quantized.having(device=replace(quantized.device, threads=2))
    assert {(r.threads, r.knobs["parts"]) for r in plan_choices(made, two)} == {
        (1, 4),
        *((2, p) for p in (1, 2, 5, 8, 10)),
    }


def test_records_of_one_model_serve_another_with_the_same_kernels() -> None:
    (task,) = tasks_of([(product(), "host")])
    record = task.choices[3].record(1e-6)
    line = Line(CHOSEN, task.key, record)
    x = placeholder("x", Type("float32", (64, 96)))
    found = []
    for i in range(5):
        w = constant(np.full((96, 80), i, np.float32), f"w{i}")
        found.append(make("Relu", make("matmul", x, w, name=f"layer{i}")))
    longer = Graph((x,), tuple(found), tuple(f"y{i}" for i in range(5)))
    steps = plan(longer, task.device, records=Measured((line,))).steps
    assert len(steps) == 5
    for step in steps:
        assert step.decision is not None
        assert step.decision.recorded


def test_outputs_of_whole_models_are_compared_by_their_norm() -> None:
    right = np.arange(8, dtype=np.float32)
    assert not difference([right], [right * np.float32(1.04)], 0.05)
    assert "off by 10.0%" in difference([right], [right * np.float32(1.1)], 0.05)
    assert "not finite" in difference([right], [np.where(right > 3, np.nan, right)], 0.05)
    assert not difference([right.astype(np.int64)], [right.astype(np.int64) + 1], 0.05)
