"""Loops in graphs with open sizes: as many iterations as a run's sizes say, in numpy and compiled,
with NaN wherever nothing counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
from oracles import onnxruntime_outputs

import qcompiler
from qcompiler import Error
from qcompiler.runtime import open_sizes
from tests.rewrite.test_padding import Ranges, check, model_of, random_feed

TIME: Ranges = {"t": (1, 9)}
BOTH: Ranges = {"t": (2, 7), "n": (1, 4)}

RNN = """(float[n,4] start, float[t,n,4] x) => (float[n,4] end, float[t,n,4] all, float[t,n] most)
    <float[4,4] w = {@16}> {
    end, all, most = Scan<num_scan_inputs=1, scan_output_directions=[0,1],
        body = iteration (float[n,4] before, float[n,4] a)
        => (float[n,4] after, float[n,4] seen, float[n] one) {
            p = MatMul(before, w) q = Add(p, a) after = Tanh(q) seen = Sub(after, a)
            one = ReduceMax<axes=[1], keepdims=0>(seen) }>(start, x) }"""
BATCH_FIRST = """(float[n,4] start, float[n,t,4] x) => (float[n,4] end, float[n,t,4] all)
    <float[4,4] w = {@16}> {
    end, all = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1],
        scan_output_axes=[1], body = iteration (float[n,4] before, float[n,4] a)
        => (float[n,4] after, float[n,4] seen) {
            p = MatMul(before, w) q = Add(p, a) after = Tanh(q)
            seen = Sub(after, a) }>(start, x) }"""
COUNTED = """(float[n,4] start, float[n,t,4] x) => (float[n,4] end, float[u,n,4] all)
    <bool yes = {1}, int64 one = {1}, int64[1] here = {1}> {
    shape = Shape(x) t = Gather(shape, one)
    end, all = Loop<body = iteration (int64 i, bool going, float[n,4] before)
        => (bool on, float[n,4] after, float[n,4] seen) {
            a = Gather<axis=1>(x, i) rows = Shape(x) count = Gather(rows, here)
            wide = Cast<to=1>(count) q = Div(a, wide) p = Add(q, before) after = Tanh(p)
            seen = Sub(after, a) on = Identity(going) }>(t, yes, start) }"""
ALL_BUT_ONE = """(float[t,4] x) => (float[4] end, float[u,4] all)
    <bool yes = {1}, int64 one = {1}, int64[1] nil = {0}> {
    shape = Shape(x) whole = Gather(shape, nil) flat = Squeeze(whole) trips = Sub(flat, one)
    zero = Sub(one, one) start = Gather<axis=0>(x, zero)
    end, all = Loop<body = iteration (int64 i, bool going, float[4] before)
        => (bool on, float[4] after, float[4] seen) {
            j = Add(i, one) a = Gather<axis=0>(x, j) after = Max(before, a) seen = Identity(after)
            on = Identity(going) }>(trips, yes, start) }"""
READS_ALL = """(float[t,4] x, float[4] start) => (float[4] end, float[t] weights, float[t,4] all)
    <float[4,4] w = {@16}> {
    first = ReduceSum<keepdims=0>(x, axes) axes = Constant<value_ints=[1]>()
    end, weights, all = Scan<num_scan_inputs=1,
        body = iteration (float[4] before, float[t] old, float[4] a)
        => (float[4] after, float[t] new, float[4] row) {
            s = MatMul(x, before) u = Add(s, old) new = Softmax<axis=0>(u) c = MatMul(new, x)
            r = MatMul(c, w) q = Add(r, a) after = Tanh(q)
            row = Identity(c) }>(start, first, x) }"""
UNTIL = """(float[t,4] x, float[4] start) => (float[4] end, int64 turns)
    <bool yes = {1}, int64 many = {1000}, int64 nil = {0}, int64[1] ax = {0}> {
    end, turns = Loop<body = iteration (int64 i, bool going, float[4] before, int64 count)
        => (bool on, float[4] after, int64 more) {
            total = ReduceSum<keepdims=0>(x, ax) part = Abs(total) after = Add(before, part)
            one = Constant<value_int=1>() more = Add(count, one)
            shape = Shape(x) rows = Gather(shape, nil) on = Less(more, rows)
        }>(many, yes, start, nil) }"""
INSIDE = """(float[t,n,4] x, float[n,4] start) => (float[n,4] end)
    <int64 one = {1}, bool yes = {1}> {
    shape = Shape(x) trips = Gather(shape, one)
    end = Loop<body = outer (int64 i, bool going, float[n,4] before)
        => (bool on, float[n,4] after) {
        after = Scan<num_scan_inputs=1,
            body = inner (float[n,4] old, float[n,4] a) => (float[n,4] new) {
                s = Add(old, a) new = Tanh(s) }>(before, x)
        on = Identity(going) }>(trips, yes, start) }"""
CASES: Mapping[str, tuple[str, Ranges]] = {
    "a Scan": (RNN, BOTH),
    "a Scan along the second dimension, from behind": (BATCH_FIRST, BOTH),
    "a Loop that counts": (COUNTED, BOTH),
    "one iteration less than rows": (ALL_BUT_ONE, {"t": (1, 9)}),
    "a state of an open size, and products over it": (READS_ALL, TIME),
    "a condition on a size": (UNTIL, TIME),
    "a loop inside a loop": (INSIDE, BOTH),
}


@pytest.mark.parametrize("name", CASES)
def test_a_loop_over_open_sizes_means_what_that_of_fixed_ones_does(name: str) -> None:
    source, ranges = CASES[name]
    check(f"g {source}", ranges, opset=17)


@pytest.mark.parametrize("name", CASES)
def test_compiled_loops_run_as_often_as_their_sizes_say(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_sizes, "BEHIND", {"f": float("nan"), "i": 1})
    source, ranges = CASES[name]
    model = model_of(f"g {source}", opset=17)
    dims = {k: f"{low}..{high}" for k, (low, high) in ranges.items()}
    artifact = qcompiler.compile(model, dims=dims, threads=1)
    (variant,) = artifact.manifest.variants
    assert variant.repeats
    made = qcompiler.load(artifact)
    for seed, numbers in enumerate(
        product(*((high, low, low + 1) for low, high in ranges.values()))
    ):
        feed = random_feed(model, dict(zip(ranges, numbers, strict=True)), seed)
        found = made.run(feed)
        for key, want in onnxruntime_outputs(model, feed).items():
            assert found[key].shape == want.shape
            np.testing.assert_allclose(found[key], want, rtol=1e-4, atol=1e-5)


def test_a_batch_with_a_loop_runs_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.onnx_io.rolled.UNROLLED", -1)
    model = model_of(f"g {BATCH_FIRST}", opset=17)
    artifact = qcompiler.compile(model, dims={"n": "1..", "t": 30}, threads=1)
    (variant,) = artifact.manifest.variants
    assert variant.batches
    assert variant.repeats
    made = qcompiler.load(artifact)
    for count in (3, 1, 8, 17):
        feed = random_feed(model, {"n": count, "t": 30}, count)
        for key, want in onnxruntime_outputs(model, feed).items():
            np.testing.assert_allclose(made.run(feed)[key], want, rtol=1e-4, atol=1e-5)


def test_a_loop_that_mixes_samples_is_no_batch() -> None:
    mixing = BATCH_FIRST.replace("q = Add(p, a)", "s = ReduceMean<axes=[0]>(p) q = Add(s, a)")
    model = model_of(f"g {mixing}", opset=17)
    with pytest.raises(Error, match="the size n cannot stay open"):
        qcompiler.compile(model, dims={"n": "1..", "t": "1..30"})
