"""Unrolled Loop and Scan, against onnxruntime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import parser
from oracles import onnxruntime_outputs

from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate

POWERS = """
    <ir_version: 8, opset_import: ["": 17]>
    powers (float[3] x) => (float[3] last, float[N, 3] all)
    <int64 count = {4}, bool yes = {1}>
    {
        last, all = Loop <body = iteration (int64 i, bool going, float[3] now)
            => (bool on, float[3] next, float[3] seen) {
                three = Constant <value = int64 {3}> ()
                on = Less(i, three)
                step = Cast <to = 1> (i)
                more = Mul(now, x)
                next = Add(more, step)
                seen = Neg(next)
            }> (count, yes, x)
    }
"""
SCAN = """
    <ir_version: 8, opset_import: ["": 17]>
    running (float[2] start, float[2, 5] x, float[5, 2] y) => (float[2] end, float[2, 5] all)
    {
        end, all = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0],
            scan_input_directions = [0, 1], scan_output_axes = [1], scan_output_directions = [1],
            body = iteration (float[2] before, float[2] a, float[2] b)
            => (float[2] after, float[2] seen) {
                product = Mul(a, b)
                after = Add(before, product)
                seen = Sub(after, a)
            }> (start, x, y)
    }
"""


def agrees(text: str, feed: dict[str, Array]) -> None:
    model = parser.parse_model(text)
    ours = evaluate(read(model), feed)
    for name, want in onnxruntime_outputs(model, feed).items():
        np.testing.assert_allclose(ours[name], want, rtol=1e-6)


def test_a_loop_of_known_iterations() -> None:
    agrees(POWERS, {"x": np.array([0.5, -1, 2], np.float32)})


def test_a_loop_ends_when_its_condition_says_so() -> None:
    agrees(POWERS.replace("{4}", "{9}"), {"x": np.array([0.5, -1, 2], np.float32)})


def test_a_scan_forwards_and_backwards() -> None:
    rng = np.random.default_rng(0)
    shapes = {"start": (2,), "x": (2, 5), "y": (5, 2)}
    agrees(SCAN, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})


def test_a_loop_that_only_running_the_model_ends_is_refused() -> None:
    model = parser.parse_model(POWERS.replace("count = {4}", "count = {9223372036854775807}"))
    (loop,) = model.graph.node
    (body,) = (a.g for a in loop.attribute)
    body.node[1].CopyFrom(onnx.helper.make_node("IsInf", ["now"], ["each"]))
    body.node.insert(2, onnx.helper.make_node("ReduceMax", ["now"], ["most"], keepdims=0))
    body.node.insert(3, onnx.helper.make_node("IsInf", ["most"], ["on"]))
    with pytest.raises(Error, match="known at run time only"):
        read(model)


UNTIL = """
    <ir_version: 8, opset_import: ["": 17]>
    until (float[3] x, float limit) => (float[3] last, float[n, 3] all)
    <int64 count = {5}, bool yes = {1}>
    {
        last, all = Loop <body = iteration (int64 i, bool going, float[3] now)
            => (bool on, float[3] next, float[3] seen) {
                next = Add(now, x)
                total = ReduceSum <keepdims = 0> (next)
                on = Less(total, limit)
                seen = Neg(next)
            }> (count, yes, x)
    }
"""


def test_a_loop_stacks_as_many_rows_as_it_has_iterations() -> None:
    model = parser.parse_model(UNTIL)
    graph = read(model)
    for limit in (-1.0, 7.0, 10.0, 100.0):
        given = {"x": np.array([0.5, 1, 1], np.float32), "limit": np.array(limit, np.float32)}
        found = evaluate(graph, given)
        for name, want in onnxruntime_outputs(model, given).items():
            assert found[name].shape == want.shape
            np.testing.assert_allclose(found[name], want, rtol=1e-6)


def test_a_loop_without_end_is_refused() -> None:
    endless = POWERS.replace("Less(i, three)", "Identity(going)").replace(
        "{4}", "{9223372036854775807}"
    )
    with pytest.raises(Error, match="make more than 20448 nodes"):
        read(parser.parse_model(endless))


NEVER = """
    <ir_version: 8, opset_import: ["": 17]>
    never (float[2, 3] x, int64[1] axis, int64 times) => (float[2, 3] last, float[0, 3] rows)
    <int64 none = {0}, bool yes = {1}>
    {
        last, rows = Loop <body = iteration (int64 i, bool going, float[2, 3] now)
            => (bool on, float[2, 3] next, float[3] row) {
                row = ReduceSum <keepdims = 0> (now, axis)
                next = Add(now, row)
                on = Identity(going)
            }> (times, yes, x)
    }
"""


@pytest.mark.parametrize("times", ["none", "times"])
def test_what_the_body_of_a_loop_that_never_runs_checks_matters_to_no_run(times: str) -> None:
    """The sums along axis 1 do not have the shape that the body declares."""
    model = parser.parse_model(NEVER.replace("(times, yes", f"({times}, yes"))
    graph = read(model)
    given = {
        "x": np.ones((2, 3), np.float32),
        "axis": np.array([1], np.int64),
        "times": np.array(0, np.int64),
    }
    found = evaluate(graph, given)
    assert (found["last"].shape, found["rows"].shape) == ((2, 3), (0, 3))
    held = evaluate(
        replace(graph, outputs=(*graph.checks.values(),), output_names=(*graph.checks,)), given
    )
    assert len(held) == (times == "times")  # its own, that it ends at once
    assert all(np.all(holds) for holds in held.values())


def test_a_body_of_another_number_of_inputs_is_refused() -> None:
    model = parser.parse_model(POWERS)
    model.graph.node[0].input.append("x")
    with pytest.raises(Error, match="inputs where"):
        read(model)
