"""Loops in the plan: which steps repeat, what is copied, what timing and stages make of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser
from oracles import onnxruntime_outputs

import qcompiler
from qcompiler.artifact.manifest import read, written
from qcompiler.driver import Compilation
from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.onnx_io.writer import write
from qcompiler.options import Options
from qcompiler.runtime.executor import Executor

TWO = """<ir_version: 8, opset_import: ["": 17]>
g (float[8, 8] x, int64 count) => (float[8, 8] y, float[2500, 8] rows)
<bool yes = {1}, int64 many = {2500}, int64 zero = {0}> {
    first, rows = Loop <body = one (int64 i, bool going, float[8, 8] now)
        => (bool on, float[8, 8] next, float[8] row) {
        m = MatMul(now, w)
        next = Tanh(m)
        row = ReduceMax <keepdims = 0, axes = [1]> (next)
        on = Identity(going)
    }> (many, yes, x)
    y = Loop <body = two (int64 j, bool go, float[8, 8] old) => (bool on2, float[8, 8] new) {
        s = Softmax(old)
        new = Add(s, x)
        on2 = Identity(go)
    }> (count, yes, first)
}"""


def model() -> onnx.ModelProto:
    """Two loops, one behind the other."""
    made = parser.parse_model(TWO)
    w = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32) / 4
    made.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return made


def inputs(count: int) -> dict[str, Array]:
    x = np.random.default_rng(count).standard_normal((8, 8)).astype(np.float32)
    return {"x": x, "count": np.array(count)}


def agrees(made: qcompiler.Model, count: int, atol: float = 1e-5) -> None:
    given = inputs(count)
    found = made.run(given)
    for name, want in onnxruntime_outputs(model(), given).items():
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=atol)


def test_rows_are_put_where_their_stack_lies() -> None:
    plan = Compilation(model(), Options(threads=1)).plan
    (put,) = [
        s for s in plan.steps if s.region.root is not None and s.region.root.op == "ScatterND"
    ]
    assert put.output in put.operands
    first, second = plan.repeats
    assert first.last <= second.first
    assert first.first <= plan.steps.index(put) < first.last
    copied = [s for s in plan.steps[first.first : first.last] if "next" in s.name]
    assert all(s.output.bytes < put.output.bytes for s in copied)
    assert str(plan).count("repeat steps") == 2


def test_what_a_body_reads_from_outside_is_not_written_in_it() -> None:
    plan = Compilation(model(), Options(threads=1)).plan
    for repeat in plan.repeats:
        body = plan.steps[repeat.first : repeat.last]
        fresh: set[int] = set()
        outside: set[tuple[int, int]] = set()
        for step in body:
            reads = [p for p in step.operands if p.space == "workspace"]
            outside |= {(p.offset, p.offset + p.bytes) for p in reads if p.offset not in fresh}
            fresh |= {p.offset for p in step.writes if p.space == "workspace"}
        states = {s.output.offset for s in plan.steps if "/begin" in s.name or "/next" in s.name}
        states |= {s.output.offset for s in body if s.output in s.operands} | {repeat.going.offset}
        kept = [(a, b) for a, b in outside if a not in states]
        for step in body:
            for p in step.writes:
                assert all(p.offset + p.bytes <= a or b <= p.offset for a, b in kept)


@pytest.mark.parametrize("threads", [1, 3])
def test_profiles_time_every_iteration(threads: int) -> None:
    made = qcompiler.load(qcompiler.compile(model(), threads=threads))
    agrees(made, 3)
    few, many = (sum(made.profile(inputs(n), repeat=1)) for n in (0, 20_000))
    assert many > few
    agrees(made, 0)
    agrees(made, 7)


def test_a_model_with_loops_is_not_cut_into_stages() -> None:
    artifact = qcompiler.compile(model())
    with pytest.raises(Error, match="repeat"):
        Executor(artifact, pipeline=2)
    with Executor(artifact) as executor:
        given = inputs(4)
        want = onnxruntime_outputs(model(), given)["y"]
        np.testing.assert_allclose(executor.run(given)["y"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic", "bfloat16"])
def test_bodies_are_computed_in_float(precision: str) -> None:
    data = [inputs(n) for n in range(4)] if precision == "int8" else None
    artifact = qcompiler.compile(model(), precision=precision, calibration=data)
    variant = artifact.manifest.variants[0]
    bodies = [s for a, b, _ in variant.repeats for s in variant.steps[a:b]]
    assert len(variant.repeats) == 2
    assert all(s.operands in ("", "float32") for s in bodies)
    agrees(qcompiler.load(artifact), 5)


def test_what_is_written_as_onnx_has_its_loops_unrolled() -> None:
    made = parser.parse_model(TWO.replace("2500", "250"))
    del made.graph.input[1]
    w = np.eye(8, dtype=np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(800), "count"))
    for rolls in (True, False):
        graph = Compilation(made, Options(), rolls=rolls).quantized
        assert any(n.op == "loop" for n in graph.nodes) == rolls
        if rolls:
            with pytest.raises(Error, match=r"loop|room") as refused:
                write(graph)
            assert "unrolled" in refused.value.hint
        else:
            assert len(write(graph).graph.node) > 2000


def test_a_manifest_of_loops_elsewhere_is_refused() -> None:
    manifest = qcompiler.compile(model()).manifest
    text = written(manifest)
    assert read(text, "m").variants[0].repeats == manifest.variants[0].repeats
    (a, b, at), _ = manifest.variants[0].repeats
    last, room = len(manifest.steps), manifest.variants[0].workspace_bytes
    for wrong in ((a, last + 1, at), (b, a, at), (a, b, room)):
        damaged = text.replace(f"[{a},{b},{at}]".encode(), str([*wrong]).encode())
        assert damaged != text
        with pytest.raises(ValueError, match="loop"):
            read(damaged, "m")
