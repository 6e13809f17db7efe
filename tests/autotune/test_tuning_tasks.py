"""What there is to tune of plans, and trials of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuning_harness import digits, others, product, task

from qcompiler import plugins
from qcompiler.autotune import check, region_file, trial
from qcompiler.autotune.builder import choice_of, written
from qcompiler.autotune.tasks import Choice, evicted, tasks_of
from qcompiler.errors import Error, Skip
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Region
from qcompiler.ops import make
from qcompiler.plan.choose import APART
from qcompiler.plan.places import Place
from qcompiler.plan.plan import plan
from qcompiler.runtime import load

WEIGHTS = np.ones((32, 8), np.int8)


def test_a_task_stands_for_all_steps_of_its_region() -> None:
    plan = digits("int8").plan
    tasks = tasks_of([(plan, "host"), (plan, "host")])
    assert len(tasks) == len({sealed(s.region, plan.device).key for s in plan.steps})
    assert sum(t.count for t in tasks) == 2 * len(plan.steps)
    assert [t.seconds for t in tasks] == sorted((t.seconds for t in tasks), reverse=True)
    for t in tasks:
        assert t.default not in t.choices
        assert len({*t.choices}) == len(t.choices)
        assert [c.seconds for c in t.choices] == sorted(c.seconds for c in t.choices)


def test_a_batch_in_parts_counts_every_part() -> None:
    plan = product()
    assert [t.count for t in tasks_of([(replace(plan, parts=3), "host")])] == [6]


def test_what_a_model_touches_is_written_between_runs() -> None:
    """All bytes that its steps touch, each once: both read the same input."""
    plan = product()
    touched = sum(s.bytes for s in plan.steps) - plan.steps[0].operands[0].bytes
    for l2_bytes, l3_bytes, found in (
        (4 * touched, 1 << 30, 0),
        (touched, 1 << 30, touched),
        (touched, touched // 4, 2 * (touched // 4)),
        (1 << 10, 1 << 40, touched),
    ):
        device = replace(plan.device, l2_bytes=l2_bytes, l3_bytes=l3_bytes)
        assert evicted(replace(plan, device=device)) == found


def test_ages_are_what_is_touched_since_the_memory_was_used() -> None:
    """Memory byte by byte, with the number of the step that touched it last."""
    plan = digits("float32").plan
    plan = replace(plan, device=replace(plan.device, l2_bytes=0, l3_bytes=1 << 40))
    found = {n: t.ages for t in tasks_of([(plan, "host")]) for n in t.names}
    whole = evicted(plan)
    assert any(0 < age < whole for ages in found.values() for age in ages)
    last = {b: -1 for p in plan.steps[0].operands if p.space == "input" for b in bytes_of(p)}
    for i, step in enumerate(plan.steps):
        read = [p for p in step.operands if p.space != "weights"]
        meant = []
        for place in (*read, step.output):
            used = max(last.get(b, -2) for b in bytes_of(place))
            since = sum(n > used for n in last.values() if n >= 0)
            meant.append(whole if used == -2 else since)
        assert found[step.name] == tuple(meant)
        last |= {b: i for p in (*step.operands, *step.writes) for b in bytes_of(p)}
    assert whole == len(last)


def bytes_of(p: Place) -> list[tuple[str, int]]:
    if p.space in ("input", "output"):
        return [(f"{p.space} {p.offset}", i) for i in range(p.bytes)]
    return [(p.space, p.offset + i) for i in range(p.bytes)]


def test_memory_is_used_as_long_before_a_choice_as_in_the_model() -> None:
    """What is written before the step, what it reads, and where it writes, in turn."""
    plugins.load_all()
    t = task()
    region = region_file.alone(t.region)
    ages = (1 << 18, 1 << 17)
    made = trial.trial(region, t.device, [t.default], evicted=1 << 20, ages=ages)
    assert isinstance(made, trial.Trial)
    steps = made.artifact.manifest.variants[0].steps
    kinds = [s.kernel.split("_")[0] for s in steps]
    assert kinds[:6] == ["expand", "transpose", "expand", "expand", "expand", "matmul"]
    sizes = [s.bytes for s in steps[:5] if s.kernel.startswith("expand")]
    assert sizes == pytest.approx([3 << 18, 1 << 17, 64 * 80 * 4, 1 << 17], abs=64)


def test_only_some_steps_are_tuned() -> None:
    plan = digits("int8").plan
    (name, *_) = (s.name for s in plan.steps if s.name.startswith("block2"))
    assert {n for t in tasks_of([(plan, "host")], [name]) for n in t.names} == {name}
    found = tasks_of([(plan, "host")], [r"block\d.*"])
    assert found
    assert all(n.startswith("block") for t in found for n in t.names)
    with pytest.raises(Error, match="no step is called 'nowhere'"):
        tasks_of([(plan, "host")], [name, "nowhere"])
    with pytest.raises(Error, match="no regular expression"):
        tasks_of([(plan, "host")], ["("])


def test_fewer_threads_and_parts_of_a_region_are_ways_too() -> None:
    found = task(threads=2).choices
    assert {c.threads for c in found} == {0, 1}
    assert [c.generator for c in found].count(APART) == 1
    assert {c.threads for c in task().choices} == {0}


def test_a_choice_comes_back_from_json() -> None:
    for c in task(threads=2).choices:
        assert choice_of(written(c)) == c


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_region_comes_back_from_its_files(tmp_path: Path, precision: str) -> None:
    plan = digits(precision).plan
    for t in tasks_of([(plan, "host")]):
        region_file.save(t.region, tmp_path / "region", more=3)
        found, told = region_file.load(tmp_path / "region")
        assert sealed(found, t.device).key == t.key.region
        assert told["more"] == 3
        inputs = trial.values(found, 1)
        meant = check.meaning(found, inputs)
        alone = check.meaning(region_file.alone(t.region), inputs)
        assert meant is not None
        np.testing.assert_array_equal(meant, alone)
    with pytest.raises(Error, match="cannot be read"):
        region_file.load(tmp_path / "nowhere")


def test_a_region_of_open_rows_comes_back_with_the_least_of_them(tmp_path: Path) -> None:
    x, count = placeholder("x", Type("float32", (4, 3))), placeholder("n", Type("int32", (1,)))
    y = make("Relu", x)
    region = Region(None, (y,), (x, count), y, least=(2,))
    region_file.save(region, tmp_path / "region")
    for found in (region_file.load(tmp_path / "region")[0], region_file.alone(region)):
        assert found.least == (2,)
        assert found.count is not None


@pytest.mark.parametrize(
    ("written_between", "age"), [(0, 0), (1 << 16, 0), (1 << 18, 1 << 17), (1 << 16, 1 << 20)]
)
def test_a_trial_runs_every_choice_as_the_region_means(written_between: int, age: int) -> None:
    plugins.load_all()
    t = task(threads=2)
    region = region_file.alone(t.region)
    some = [t.default, *t.choices[:4], *(c for c in t.choices if c.threads or c.generator == APART)]
    ages = [age] * len(t.ages)
    made = trial.trial(region, t.device, some, evicted=written_between, ages=ages)
    assert isinstance(made, trial.Trial)
    inputs = trial.values(region, 5)
    meant = check.meaning(region, inputs)
    assert meant is not None
    outputs = list(load(made.artifact).run(dict(inputs)).values())
    for output in outputs:
        assert not check.difference(output, meant, region)
    steps = made.artifact.manifest.variants[0].steps
    places = [p for p in made.places if isinstance(p, trial.Place)]
    assert len(places) == len(some)
    assert len({p.output for p in places}) + 1 == len(outputs)
    apart = places[[c.generator for c in some].index(APART)]
    assert len(apart.steps) == 2
    assert all(steps[s].kernel.startswith("matmul") for p in places for s in p.steps[:1])
    assert any("expand" in s.kernel for s in steps) == bool(written_between)


def test_choices_of_the_same_code_share_a_place_and_known_code_has_none() -> None:
    plugins.load_all()
    t = task()
    region = region_file.alone(t.region)
    some = others(t)[:3]
    made = trial.trial(region, t.device, [t.default, *some, *some])
    assert isinstance(made, trial.Trial)
    places = [p for p in made.places if isinstance(p, trial.Place)]
    assert places[1:4] == places[4:]
    again = trial.trial(region, t.device, [t.default, *some], known=[places[1].code])
    assert isinstance(again, trial.Trial)
    (_, first, *_) = again.places
    assert first == trial.Place(-1, (), places[1].code)


def test_the_default_is_always_measured_though_its_code_is_known() -> None:
    plugins.load_all()
    t = task()
    region = region_file.alone(t.region)
    some = others(t)[:2]
    made = trial.trial(region, t.device, [t.default, *some])
    assert isinstance(made, trial.Trial)
    codes = [p.code for p in made.places if isinstance(p, trial.Place)]
    again = trial.trial(region, t.device, [t.default, *some, t.default], known=codes)
    assert isinstance(again, trial.Trial)
    assert again.places[0] == made.places[0]
    assert again.places[3] == made.places[0]
    assert all(isinstance(p, trial.Place) and not p.steps for p in again.places[1:3])


def test_no_more_different_code_is_made_than_wanted() -> None:
    plugins.load_all()
    t = task()
    made = trial.trial(region_file.alone(t.region), t.device, [t.default, *t.choices], most=2)
    assert isinstance(made, trial.Trial)
    assert len(made.artifact.manifest.outputs) == 4  # the default first and last, and two
    assert made.places[-1] is None


def test_what_is_not_offered_is_left_out() -> None:
    plugins.load_all()
    t = task()
    none = Choice("tiled", 1, (("rows", 12345),))
    made = trial.trial(region_file.alone(t.region), t.device, [t.default, none])
    assert isinstance(made, trial.Trial)
    assert made.places[1] == Skip("it is not offered")


def test_outputs_are_compared_as_their_kind_allows() -> None:
    t = task()
    region = region_file.alone(t.region)
    right = check.meaning(region, trial.values(region, 3))
    assert right is not None
    assert not check.difference(right * np.float32(1 + 1e-6), right, region)
    assert "off by" in check.difference(right + np.float32(0.01 * right.max()), right, region)
    broken = right.copy()
    broken[3, 4] = np.nan
    assert "not finite" in check.difference(broken, right, region)
    assert "instead of" in check.difference(right[:1], right, region)


@pytest.mark.parametrize(
    ("function", "wrong"), [("Relu", "off by 1, where 0 may be"), ("Gelu", "")]
)
def test_bytes_may_be_next_to_each_other_where_a_function_is_rounded(
    function: str, wrong: str
) -> None:
    sums = make("matmul", placeholder("x", Type("uint8", (4, 32))), constant(WEIGHTS, "w"))
    floats = make(function, make("Cast", sums, to="float32"))
    scale, zero = constant(np.float32(0.1)), constant(np.int32(3))
    made = make("quantize", floats, scale, zero, dtype="uint8")
    graph = Graph(tuple(i for i in sums.inputs if i and not i.is_constant), (made,), ("y",))
    (step,) = plan(graph, plugins.device("host", 1)).steps
    right = np.full((4, 8), 7, np.uint8)
    assert check.difference(right + np.uint8(1), right, step.region) == wrong
    assert "off by 2" in check.difference(right + np.uint8(2), right, step.region)


@pytest.mark.parametrize(("factor", "most"), [(0.5, 2), (3.0, 7)])
def test_a_weight_of_attention_in_bytes_may_be_rounded_the_other_way(
    factor: float, most: int
) -> None:
    shape = Type("int8", (1, 2, 8, 16))
    q, k, v = (placeholder(name, shape) for name in "qkv")
    scale = constant(np.float32(1e-3))
    floats = make("attention", q, k, v, None, scale)
    made = make("quantize", floats, constant(np.float32(factor)), constant(np.int32(0)))
    (step,) = plan(Graph((q, k, v), (made,), ("y",)), plugins.device("host", 1)).steps
    right = np.full((1, 2, 8, 16), 100, np.uint8)
    assert not check.difference(right + np.uint8(most), right, step.region)
    assert "off by" in check.difference(right + np.uint8(most + 1), right, step.region)
