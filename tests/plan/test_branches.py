"""Which branches of a graph run side by side, where their values lie, and that results stay."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompiler import plugins
from qcompiler.autotune.variants import plan_choices
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.hardware.core import REFERENCE
from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Record, setting
from qcompiler.ops import evaluate, make
from qcompiler.options import Options
from qcompiler.plan import branches, memory
from qcompiler.plan.barriers import SHARED
from qcompiler.plan.plan import Plan, Step, plan
from qcompiler.plan.sharing import WHOLE, at_most, key_of, nanoseconds, planned, recorded, saving
from qcompiler.runtime import load
from qcompiler.tune.records import CHOSEN, Key, Line, Measured, described, write

ROWS, WIDTH = 8, 64


def layer(x: Node, name: str, rng: np.random.Generator) -> Node:
    """relu(x w): a microsecond or less."""
    w = rng.standard_normal((x.shape[1], WIDTH)) / np.sqrt(WIDTH)
    return make("Relu", make("matmul", x, constant(w.astype(np.float32), f"{name}_w"), name=name))


def towers(lengths: tuple[int, ...], rows: int = ROWS) -> Graph:
    """Chains of layers, each of an input of its own, whose ends are joined."""
    rng = np.random.default_rng(0)
    inputs, ends = [], []
    for t, length in enumerate(lengths):
        x = placeholder(f"x{t}", Type("float32", (rows, WIDTH)))
        inputs.append(x)
        for i in range(length):
            x = layer(x, f"t{t}_{i}", rng)
        ends.append(x)
    joined = make("Concat", *ends, axis=1, name="joined")
    return Graph(tuple(inputs), (joined,), ("y",), "towers")


def modules(count: int = 3) -> Graph:
    """Inception-like: branches of one, two and three layers that read one value, joined, again and
    again; the sum of all joined values at the end.
    """
    rng = np.random.default_rng(1)
    first = x = placeholder("x", Type("float32", (ROWS, WIDTH)))
    total: Node | None = None
    for m in range(count):
        ends = []
        for length in (1, 2, 3, 1):
            y = x
            for i in range(length):
                y = layer(y, f"m{m}_{length}_{i}", rng)
            ends.append(y)
        x = make("Concat", *ends, axis=1, name=f"m{m}")
        total = x if total is None else make("Add", total, x)
    assert total is not None
    return Graph((first,), (total,), ("y",), "modules")


def anything(seed: int) -> Graph:
    """Layers, sums and joins of whatever was made before."""
    rng, pick = np.random.default_rng(seed), random.Random(seed)
    inputs = [placeholder(f"x{i}", Type("float32", (ROWS, WIDTH))) for i in range(2)]
    made: list[Node] = list(inputs)
    for i in range(24):
        kind = pick.random()
        source = pick.choice(made)
        if kind < 0.7:
            made.append(layer(source, f"n{i}", rng))
        elif kind < 0.85:
            other = pick.choice([n for n in made if n.shape == source.shape])
            made.append(make("Tanh", make("Add", source, other), name=f"n{i}"))
        else:
            made.append(make("Concat", source, pick.choice(made), axis=1, name=f"n{i}"))
    read = {o for n in made for o in n.operands}
    ends = [n for n in made if n not in read and n not in inputs]
    names = tuple(f"y{i}" for i in range(len(ends)))
    return Graph(tuple(inputs), tuple(ends), names, "anything")


def host(threads: int) -> Device:
    """This machine, as if it computed as much in a cycle as with vectors of 64 bytes."""
    plugins.load_all()
    device = plugins.device("host", threads)
    rates = ("macs_per_cycle", "loads_per_cycle", "stores_per_cycle", "issue_per_cycle")
    wider = 64 / device.isa.vector_bytes
    core = replace(REFERENCE, **{r: wider * getattr(REFERENCE, r) for r in rates})
    return replace(device, core=core)


def ran(made: Plan, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = {n.name: rng.standard_normal(n.shape).astype(np.float32) for n in made.graph.inputs}
    model = load(assemble(made))
    found = [list(model.run(inputs).values()) for _ in range(3)]
    for again in found[1:]:
        for a, b in zip(found[0], again, strict=True):
            np.testing.assert_array_equal(a, b)
    meant = evaluate(made.graph, inputs)
    for a, name in zip(found[0], made.graph.output_names, strict=True):
        np.testing.assert_allclose(a, meant[name], rtol=1e-4, atol=1e-4)
    return found[0]


def threads_of(made: Plan, prefix: str) -> set[int]:
    found = [s.branch for s in made.steps if s.name.startswith(prefix)]
    assert all(b is not None for b in found)
    return {b.thread for b in found if b is not None}


def demand_apart(made: Plan) -> None:
    """Steps of one group on several threads touch no byte that another one writes, and none of the
    group waits but, maybe, the first.
    """
    groups: dict[int, list[Step]] = {}
    for i, step in enumerate(made.steps):
        if step.branch is not None:
            assert step.slot.owner == step.branch.thread != SHARED
            assert step.kernel.tasks == 1
            assert not step.slot.waits or step.branch.first == i
            groups.setdefault(step.branch.first, []).append(step)
    for first, steps in groups.items():
        assert len(steps) == steps[0].branch.last - first + 1  # type: ignore[union-attr]
        for a, b in combinations(steps, 2):
            if a.branch != b.branch:
                for one, other in ((a, b), (b, a)):
                    for place in one.writes:
                        for touched in (*other.operands, *other.writes):
                            assert not overlap(place, touched)


def overlap(a: object, b: object) -> bool:
    ends = [(p.space, p.offset, p.offset + p.bytes) for p in (a, b)]  # type: ignore[attr-defined]
    (space, first, end), (other, begin, stop) = ends
    if space != other or space == "weights":
        return False
    return first == begin if space in ("input", "output") else first < stop and begin < end


@pytest.mark.parametrize("threads", [2, 3])
def test_towers_run_side_by_side(threads: int) -> None:
    made = plan(towers((4, 5, 3)), host(threads))
    assert {len(threads_of(made, f"t{t}_")) for t in range(3)} == {1}
    assert len(threads_of(made, "t")) == threads
    assert sum(s.slot.waits for s in made.steps) == 1
    demand_apart(made)
    ran(made)


def test_steps_of_one_task_side_by_side_have_a_thread_each() -> None:
    made = plan(towers((3, 3)), host(4))
    assert {s.kernel.tasks for s in made.steps} == {1}
    with load(assemble(made), threads=4) as model:
        assert model.threads == made.useful_threads == 2
    single = plan(towers((3,)), host(4))
    assert load(assemble(single), threads=4).threads == single.useful_threads == 1


def test_the_longest_branch_is_dealt_out_first() -> None:
    made = plan(towers((2, 2, 6, 2)), host(2))
    others = [threads_of(made, f"t{t}_") for t in (0, 1, 3)]
    assert threads_of(made, "t2_").isdisjoint(set.union(*others))


def test_every_module_is_a_group_and_waits_once() -> None:
    made = plan(modules(), host(2))
    demand_apart(made)
    assert len({s.branch.first for s in made.steps if s.branch is not None}) == 3
    apart = plan(modules(), host(2), branches=False)
    assert not any(s.branch for s in apart.steps)
    assert {s.name for s in made.steps} == {s.name for s in apart.steps}
    for a, b in zip(ran(made), ran(apart), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_memory_of_branches_is_apart_beyond_the_largest_buffers_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "FITTED", 2)
    made = plan(modules(), host(2))
    demand_apart(made)
    ran(made)


def test_a_branch_that_is_cut_goes_on_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "MOST_STEPS", 2)
    made = plan(towers((5, 5), rows=64), host(2))
    assert len({s.branch.first for s in made.steps if s.branch is not None}) == 3
    demand_apart(made)
    ran(made)


def test_steps_that_share_threads_well_are_shared() -> None:
    made = plan(towers((2, 2), rows=4096), host(2))
    assert not any(s.branch for s in made.steps)
    assert not any(s.branch for s in plan(towers((4,)), host(2)).steps)
    assert not any(s.branch for s in plan(towers((4, 4)), host(1)).steps)


@pytest.mark.parametrize("seed", range(6))
def test_any_graph_keeps_its_meaning(seed: int) -> None:
    graph = anything(seed)
    made = plan(graph, host(2 + seed % 2))
    demand_apart(made)
    ran(made, seed)


def test_what_runs_side_by_side_does_not_depend_on_what_was_measured() -> None:
    device, graph = host(2), modules(1)
    usual = plan(graph, device)
    lines = []
    for step in plan(graph, device, branches=False).steps:
        assert step.decision is not None
        for offer in step.decision.lost[-1:]:
            candidate = offer.candidate
            other = Record(offer.generator, 1, setting(candidate.knobs), candidate.seconds)
            key = Key(sealed(step.region, device).key, described(device))
            lines.append(Line(CHOSEN, key, other))
    tuned = plan(graph, device, records=Measured(tuple(lines)), branches=False)
    assert any(s.decision is not None and s.decision.recorded for s in tuned.steps)
    again = plan(graph, device, records=Measured(tuple(lines)))
    assert [s.branch for s in again.steps] == [s.branch for s in usual.steps]
    beside = [s for s in again.steps if s.branch]
    assert beside
    assert not any(s.decision is not None and s.decision.recorded for s in beside)


def test_a_record_of_the_plan_says_that_branches_run_one_after_the_other(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 18]>
        g (float[8, 64] x, float[8, 64] z) => (float[8, 64] c, float[8, 64] f) {
            a = MatMul(x, w)
            b = Relu(a)
            c = MatMul(b, w)
            d = MatMul(z, w)
            e = Relu(d)
            f = MatMul(e, w)
        }
    """)
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    made = Compilation(model, Options(threads=2))
    assert any(s.branch for s in made.plan.steps)
    record = Record(WHOLE, 1, {"parts": 1, "branches": 0}, 0.0, 2)
    assert record in plan_choices(made, made.plan)
    path = tmp_path / "records.jsonl"
    line = Line(CHOSEN, Key(key_of(made.lowered), described(made.device)), record)
    write(path, Measured((line,)))
    again = Compilation(model, Options(threads=2, tuning_records=path))
    assert recorded(again.lowered, again.device, again.records) == record
    assert not any(s.branch for s in again.plan.steps)


@pytest.mark.parametrize(
    ("knobs", "threads"),
    [
        *(({"parts": p}, 2) for p in (-1, -8, 3, 1 << 40, "x", "2")),
        *(({"branches": b}, 2) for b in (-1, 2, "0")),
        *(({"parts": 1}, n) for n in (3, 1 << 40)),
    ],
)
def test_what_a_record_of_a_plan_says_that_cannot_be_is_left_out(
    knobs: Mapping[str, int | str], threads: int
) -> None:
    graph, device = towers((4, 4)), host(2)
    key = Key(key_of(graph), described(device))
    lines = (Line(CHOSEN, key, Record(WHOLE, 1, knobs, 0.0, threads)),)
    usual, made = (
        planned(graph, device, None, {}, asked=True, records=r) for r in (None, Measured(lines))
    )
    assert str(made) == str(usual)


def test_what_side_by_side_saves_is_counted() -> None:
    made, apart = (plan(towers((4, 4)), host(2), branches=b) for b in (True, False))
    assert saving(apart) < saving(made) <= at_most(made.graph, made.device)
    alone = sum(nanoseconds(s, made.device) for s in made.steps if s.branch)
    core = made.device.core
    assert saving(made) == pytest.approx(alone / 2 - core.barrier_ns - core.wake_ns, abs=1.0)
