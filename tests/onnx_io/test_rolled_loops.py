"""Loops that stay loops in the plan, against onnxruntime: whatever their number of iterations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import parser
from onnx_cases import loaded, node_cases, outcome
from oracles import onnxruntime_outputs

import qcompiler
from qcompiler.errors import Error
from qcompiler.ir import Array, text
from qcompiler.onnx_io import rolled
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
COUNTED = f"""{HEAD}
g (float[3] x, int64 count) => (float[3] last)
<bool yes = {{1}}> {{
    last = Loop <body = iteration (int64 i, bool going, float[3] now) => (bool on, float[3] next) {{
        step = Cast <to = 1> (i)
        more = Mul(now, x)
        sum = Add(more, step)
        next = Tanh(sum)
        on = Identity(going)
    }}> (count, yes, x)
}}"""
UNTIL = f"""{HEAD}
g (float[3] x, float limit) => (float[3] last, float[n, 3] all, bool[n] low)
<int64 most = {{300}}, bool yes = {{1}}> {{
    last, all, low = Loop <body = iteration (int64 i, bool going, float[3] now)
        => (bool on, float[3] next, float[3] seen, bool less) {{
        next = Add(now, x)
        total = ReduceSum <keepdims = 0> (next)
        on = Less(total, limit)
        seen = Neg(next)
        eight = Constant <value = float {{8}}> ()
        less = Less(total, eight)
    }}> (most, yes, x)
}}"""
SWAPPED = f"""{HEAD}
g (float[2] a, float[2] b, int64 count) => (float[2] p, float[2] q, float[2] r)
<bool yes = {{1}}> {{
    p, q, r = Loop <body = iteration (int64 i, bool going, float[2] u, float[2] v, float[2] w)
        => (bool on, float[2] y, float[2] z, float[2] t) {{
        y = Identity(v)
        z = Identity(u)
        t = Add(u, w)
        on = Identity(going)
    }}> (count, yes, a, b, b)
}}"""
NESTED = f"""{HEAD}
g (float[4] x, int64 count) => (float[4] last, float[6, 4] all)
<bool yes = {{1}}, int64 six = {{6}}> {{
    last, all = Loop <body = outer (int64 i, bool going, float[4] now)
        => (bool on, float[4] next, float[4] row) {{
        next = Loop <body = inner (int64 j, bool go, float[4] old) => (bool on2, float[4] new) {{
            both = Add(i, j)
            step = Cast <to = 1> (both)
            more = Add(old, x)
            bent = Tanh(more)
            new = Add(bent, step)
            on2 = Identity(go)
        }}> (count, yes, now)
        row = Sub(next, now)
        on = Identity(going)
    }}> (six, yes, x)
}}"""
CHOSEN = f"""{HEAD}
g (float[4] x, bool c, int64 count) => (float[4] y)
<bool yes = {{1}}> {{
    y = If(c) <then_branch = a () => (float[4] p) {{
        p = Loop <body = iteration (int64 i, bool going, float[4] u) => (bool on, float[4] v) {{
            big = ReduceMax <keepdims = 0> (u)
            one = Constant <value = float {{1}}> ()
            low = Less(big, one)
            v = If(low) <then_branch = d () => (float[4] s) {{ t = Exp(u)  s = Mul(t, x) }},
                else_branch = e () => (float[4] s2) {{ t2 = Tanh(u)  s2 = Sub(t2, x) }}>
            on = Identity(going)
        }}> (count, yes, x)
    }}, else_branch = b () => (float[4] q) {{ q = Neg(x) }}>
}}"""
SUMMED = f"""{HEAD}
g (float[2, 2, 2] x, int64 at, int64 count) => (float[2, 2, 2] last)
<bool yes = {{1}}> {{
    none = Sub(x, x)
    last = Loop <body = turn (int64 i, bool going, float[2, 2, 2] now)
        => (bool on, float[2, 2, 2] next) {{
        axis = Add(i, at)
        sums = CumSum(x, axis)
        next = Add(now, sums)
        on = Identity(going)
    }}> (count, yes, none)
}}"""
RUNNING = f"""{HEAD}
g (float[2] start, float[2, 40] x, float[40, 2] y)
=> (float[2] end, float[2, 40] all, float[40] one) {{
    end, all, one = Scan <num_scan_inputs = 2, scan_input_axes = [1, 0],
        scan_input_directions = [0, 1], scan_output_axes = [1, 0], scan_output_directions = [1, 0],
        body = iteration (float[2] before, float[2] a, float[2] b)
        => (float[2] after, float[2] seen, float most) {{
            product = Mul(a, b)
            after = Add(before, product)
            seen = Sub(after, a)
            most = ReduceMax <keepdims = 0> (seen)
        }}> (start, x, y)
}}"""


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop that can be one stays one."""
    monkeypatch.setattr(rolled, "UNROLLED", -1)


def given(model: onnx.ModelProto, seed: int, **values: object) -> dict[str, Array]:
    """Inputs: these, and random numbers for the others."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for i in model.graph.input:
        kind = i.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [d.dim_value for d in kind.shape.dim]
        value = values.get(i.name)
        found[i.name] = np.asarray(rng.standard_normal(shape) if value is None else value, dtype)
    return found


def agrees(source: str, feeds: Sequence[dict[str, object]], loops: int, threads: int = 1) -> None:
    """The plan has so many loops; its runs, and its meaning, are what onnxruntime computes."""
    model = parser.parse_model(source)
    graph = read(model)
    artifact = qcompiler.compile(model, threads=threads)
    made = qcompiler.load(artifact)
    assert len(artifact.manifest.variants[0].repeats) == loops
    for seed, values in enumerate(feeds):
        feed = given(model, seed, **values)
        ours, numpys = made.run(feed), evaluate(graph, feed)
        for name, want in onnxruntime_outputs(model, feed).items():
            for found in (ours[name], numpys[name]):
                assert found.shape == want.shape
                np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


COUNTS: list[dict[str, object]] = [{"count": n} for n in (3, 0, 1, 1000, 3)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("source", [COUNTED, SWAPPED])
def test_a_number_of_iterations_that_only_a_run_knows(source: str, threads: int) -> None:
    agrees(source, COUNTS, 1, threads)


def test_a_loop_may_end_early_and_stacks_a_row_for_each_iteration(always: None) -> None:
    feeds: list[dict[str, object]] = [
        {"x": [0.5, 1, 1], "limit": limit} for limit in (-1.0, 7.0, 10.0, 100.0, 1e9, 7.0)
    ]
    agrees(UNTIL, feeds, 1)


def test_loops_inside_loops(always: None) -> None:
    agrees(NESTED, COUNTS, 2)


def test_a_loop_in_a_branch_and_branches_in_a_loop() -> None:
    feeds: list[dict[str, object]] = [
        {"c": c, "count": n, "x": [0.2, 0.1, -0.3, 0.5]}
        for c, n in ((True, 5), (False, 5), (True, 0), (True, 50), (False, 0))
    ]
    agrees(CHOSEN, feeds, 1)


def test_a_branch_that_is_not_taken_does_not_loop_on() -> None:
    model = parser.parse_model(CHOSEN)
    made = qcompiler.load(qcompiler.compile(model))
    feed = given(model, 0, c=False, count=np.iinfo(np.int64).max)
    np.testing.assert_array_equal(made.run(feed)["y"], -feed["x"])


def test_a_check_in_a_body_holds_for_every_iteration(always: None) -> None:
    model = parser.parse_model(SUMMED)
    made = qcompiler.load(qcompiler.compile(model))
    for at, count in ((0, 3), (1, 2), (-3, 6), (2, 1), (0, 0), (7, 0)):
        feed = given(model, 1, at=at, count=count)
        want = sum((np.cumsum(feed["x"], at + i) for i in range(count)), np.zeros((2, 2, 2)))
        np.testing.assert_allclose(made.run(feed)["last"], want, rtol=1e-5, atol=1e-6)
    for at, count in ((2, 2), (-4, 3), (3, 1)):
        with pytest.raises(Error, match="an axis does not exist"):
            made.run(given(model, 1, at=at, count=count))


def test_a_scan_forwards_and_backwards(always: None) -> None:
    agrees(RUNNING, [{}, {}], 1)


def test_long_loops_stay_loops_and_short_ones_do_not() -> None:
    agrees(RUNNING, [{}], 0)
    agrees(RUNNING.replace("40", "1500"), [{}], 1)


def test_a_declared_length_is_checked() -> None:
    model = parser.parse_model(UNTIL.replace("[n", "[60").replace("{300}", "{3000}"))
    model.graph.node[0].attribute[0].g.node.append(
        onnx.helper.make_node("Identity", ["seen"], ["unused"])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rolled, "UNROLLED", -1)
        made = qcompiler.load(qcompiler.compile(model))
    x = np.full(3, 0.5, np.float32)
    feed = {"x": x, "limit": np.array(1.5 * 60.5, np.float32)}
    np.testing.assert_allclose(made.run(feed)["all"][:, 0], -0.5 * np.arange(2, 62), rtol=1e-6)
    for limit in (1.5 * 59, 1.5 * 70):
        with pytest.raises(Error, match="does not have 60 iterations"):
            made.run({"x": x, "limit": np.array(limit, np.float32)})


@pytest.mark.parametrize("case", [c.name for op in ("Loop", "Scan") for c in node_cases()[op]])
def test_node_cases_that_stay_loops(case: str, always: None) -> None:
    (found,) = [c for op in ("Loop", "Scan") for c in node_cases()[op] if c.name == case]
    kind, why = outcome(found)
    assert kind == "passed" or (kind == "refused" and "_seq" in case), why


def test_cases_of_loops_are_among_onnxs_own() -> None:
    names = {c.name for op in ("Loop", "Scan") for c in node_cases()[op]}
    assert {"test_loop11", "test_scan9_sum"} <= names
    assert all(loaded(c)[1] for op in ("Loop", "Scan") for c in node_cases()[op])


def test_a_graph_with_a_loop_is_written_and_read_back(always: None) -> None:
    graph = read(parser.parse_model(NESTED))
    written, arrays = text.write(graph)
    again = text.read(written, arrays)
    assert text.write(again)[0] == written
    feed = given(parser.parse_model(NESTED), 3, count=2)
    for name, want in evaluate(graph, feed).items():
        np.testing.assert_array_equal(evaluate(again, feed)[name], want)


def test_as_many_iterations_as_an_open_size_are_refused_by_name() -> None:
    """Where the loop cannot stay one: what it carries grows."""
    source = COUNTED.replace("float[3] x, int64 count", "float[n, 3] all, float[3] x")
    source = source.replace("last = Loop", "count = Shape <start = 0, end = 1> (all) last = Loop")
    source = source.replace("next = Tanh(sum)", "next = Concat <axis = 0> (sum, x)")
    model = parser.parse_model(source.replace("float[3] now", "float[k] now"))
    with pytest.raises(Error, match="n iterations, an open size: what it carries changes") as why:
        qcompiler.compile(model, dims={"n": "1..8"})
    assert "in Loop_last" in why.value.what
    assert "--dim" in why.value.hint


def test_errors_of_scans_and_trip_counts_name_the_node() -> None:
    wrong = RUNNING.replace("scan_output_axes = [1, 0]", "scan_output_axes = [1]")
    with pytest.raises(Error, match="1 scan_output_axes where 2 are needed") as refused:
        read(parser.parse_model(wrong))
    assert refused.value.where == "Scan_end (Scan)"
    two = COUNTED.replace(", int64 count)", ")").replace("<bool", "<int64[2] count = {1, 2}, bool")
    with pytest.raises(Error, match="its trip count is 2 numbers") as refused:
        read(parser.parse_model(two))
    assert refused.value.where == "Loop_last (Loop)"


@pytest.mark.parametrize("declared", ["n", "0"])
def test_what_no_iteration_stacks_has_no_rows(declared: str) -> None:
    """Nor is the body computed, whose indices may reach beyond what there is."""
    model = parser.parse_model(f"""{HEAD}
        g (float[1, 4] x, int64 count) => (float[4] end, float[{declared}, 4] all)
        <bool yes = {{1}}, int64 zero = {{0}}> {{
            first = Gather <axis = 0> (x, zero)
            end, all = Loop <body = iteration (int64 i, bool going, float[4] before)
                => (bool on, float[4] after, float[4] row) {{
                at = Constant <value_int = 1> ()
                row = Gather <axis = 0> (x, at)
                after = Add(before, row)
                on = Identity(going)
            }}> ({"count" if declared == "0" else "zero"}, yes, first)
        }}""")
    feed = given(model, 0, count=0)
    found = qcompiler.load(qcompiler.compile(model)).run(feed)
    assert found["all"].shape == (0, 4)
    np.testing.assert_array_equal(found["end"], feed["x"][0])
