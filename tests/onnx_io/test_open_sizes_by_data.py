"""Sizes that data decide among values of open sizes: each selecting operator at every size what it
means there, in numpy with NaN behind what counts, and as an artifact; results belong to their run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.ir import Array
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from tests.onnx_io.test_sizes_by_data import CASES as WHAT_FOLLOWS
from tests.onnx_io.test_sizes_by_data import HEAD
from tests.oracles import session
from tests.rewrite.test_padding import Ranges, behind_nan, model_of, opened

Sizes = Mapping[str, int]

TWO: Ranges = {"a": (1, 5), "b": (1, 7)}
CASES: dict[str, tuple[str, Ranges]] = {
    "NonZero": (
        """g (float[a,b] x) => (int64[2,n] y, int64[2,m] z) {
        zero = Constant<value_float=0.0>() p = Greater(x, zero) y = NonZero(p) z = NonZero(x) }""",
        TWO,
    ),
    "NonZero of a vector": ("g (float[b] x) => (int64[1,n] y) { y = NonZero(x) }", {"b": (1, 7)}),
    "Compress": (
        """g (float[a,b] x, bool[a] r, bool[b] c) => (float[n,b] y, float[a,m] z, float[k] w) {
        y = Compress<axis=0>(x, r) z = Compress<axis=-1>(x, c) w = Compress(x, c) }""",
        TWO,
    ),
    "Compress by fewer flags": (
        """g (float[a,3] x, bool[b] r) => (float[n,3] y) { y = Compress<axis=0>(x, r) }""",
        {"a": (7, 9), "b": (1, 7)},
    ),
    "Unique": (
        """g (float[a,b] x) => (float[n] y, int64[n] i, int64[m] r, int64[n] c,
        float[k] z, int64[k] j, int64[m] s, int64[k] d) {
        y, i, r, c = Unique(x) z, j, s, d = Unique<sorted=0>(x) }""",
        TWO,
    ),
    "Unique rows": (
        """g (float[a,b] x) => (float[n,b] y, int64[n] i, int64[a] r, int64[n] c,
        float[a,k] z, int64[k] j, int64[b] s, int64[k] d) {
        y, i, r, c = Unique<axis=0>(x) z, j, s, d = Unique<axis=1, sorted=0>(x) }""",
        TWO,
    ),
    "boxes": (
        """g (float[i,n,4] boxes, float[i,c,n] scores) => (int64[k,3] y,
        int64[l,3] z, int64[o,3] w) {
        many = Constant<value_ints=[9223372036854775807]>() two = Constant<value_ints=[2]>()
        half = Constant<value_floats=[0.5]>() low = Constant<value_floats=[0.4]>()
        y = NonMaxSuppression(boxes, scores, many, half, low)
        z = NonMaxSuppression<center_point_box=1>(boxes, scores, two, half)
        w = NonMaxSuppression(boxes, scores) }""",
        {"i": (1, 3), "c": (1, 3), "n": (1, 11)},
    ),
    **{
        f"boxes, if there are any, at most 20 of {most}": (
            """g (float[1,n,4] boxes, float[1,1,n] scores) => (int64[k] y, float[k,4] b) {
            sh = Shape(boxes) count = ReduceProd<keepdims=0>(sh) nil = Constant<value_int=0>()
            none = Equal(count, nil) k = If (none) <then_branch = t () => (int64[m] e) {
                e = Constant<value = int64[0] {}>() }, else_branch = f () => (int64[m] e) {
                many = Constant<value_ints=[9223372036854775807]>()
                half = Constant<value_floats=[0.9]>() two = Constant<value_int=2>()
                s = NonMaxSuppression(boxes, scores, many, half) e = Gather<axis=1>(s, two) }>
            first = Constant<value_ints=[0]>() last = Constant<value_ints=[20]>()
            y = Slice(k, first, last) flat = Squeeze(boxes, first) b = Gather(flat, y) }""",
            {"n": (1, most)},
        )
        for most in (9, 20, 26)
    },
    "boxes, so many as a run says": (
        """g (float[1,n,4] boxes, float[1,2,n] scores, int64[1] most) => (int64[k,3] y) {
        y = NonMaxSuppression(boxes, scores, most) }""",
        {"n": (1, 11)},
    ),
}


def feed_of(model: onnx.ModelProto, sizes: Sizes, seed: int) -> dict[str, Array]:
    """Inputs in these sizes, of few values, so that some are equal, and some are 0."""
    rng, feed = np.random.default_rng(seed), {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feed[value.name] = rng.integers(-1, 3, shape).astype(kind)
        if value.name in ("boxes", "scores"):
            feed[value.name] = rng.random(shape).astype(kind)
    return feed


def runs_of(ranges: Ranges) -> list[Sizes]:
    """The largest sizes, the least, ones between, and the largest again."""
    each = [
        sorted({low, min(low + 1, high), (low + high) // 2, high}) for low, high in ranges.values()
    ]
    every = [dict(zip(ranges, numbers, strict=True)) for numbers in product(*each)]
    return [every[-1], *every]


@pytest.mark.parametrize("name", CASES)
def test_as_many_are_selected_as_at_each_size_alone(name: str) -> None:
    text, ranges = CASES[name]
    model = model_of(text)
    made, engine = opened(model, ranges), session(model)
    assert not all(n.type.static for n in made.graph.inputs) or made.sizes
    for seed, sizes in enumerate(runs_of(ranges)):
        feed = feed_of(model, sizes, seed)
        found = evaluate(made.graph, behind_nan(made.graph, feed, sizes))
        wanted = evaluate(read_pinned(model, {}, sizes, False, {}), feed)
        other = dict(zip(wanted, engine.run(None, feed), strict=True))
        for output, value in wanted.items():
            cut = found[output][tuple(map(slice, value.shape))]
            np.testing.assert_array_equal(value, other[output], f"{output} at {sizes}")
            np.testing.assert_array_equal(cut, value, f"{output} at {sizes}")


@pytest.mark.parametrize("name", ["NonZero", "Unique rows", "boxes"])
def test_an_artifact_selects_in_runs_of_any_size(name: str) -> None:
    text, ranges = CASES[name]
    model = model_of(text)
    dims = {k: f"{low}..{high}" for k, (low, high) in ranges.items()}
    loaded = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1))
    kept = []
    for seed, sizes in enumerate(runs_of(ranges)[::3]):
        feed = feed_of(model, sizes, seed)
        wanted = evaluate(read_pinned(model, {}, sizes, False, {}), feed)
        kept.append((loaded.run(feed), wanted))
    for found, wanted in kept:  # after all runs: none has changed another's results
        for output, value in wanted.items():
            assert found[output].shape == value.shape
            np.testing.assert_array_equal(found[output], value, output)


FOLLOWING = {
    name: lines.replace("{{", "{").replace("}}", "}")
    for name, lines in WHAT_FOLLOWS.items()
    if "7" not in lines and name not in ("parts", "cut short")
}
"""Those that hold for any number of rows."""


@pytest.mark.parametrize("name", FOLLOWING)
def test_what_data_select_of_any_number_goes_through(name: str) -> None:
    model = _following(name)
    made, engine = opened(model, {"n": (1, 7)}), session(model)
    for n in (7, 1, 2, 5, 7):
        rng = np.random.default_rng(n)
        feed = {
            "x": rng.standard_normal((n, 3)).astype(np.float32),
            "z": np.maximum(rng.random(n), np.arange(n) == n // 2).astype(np.float32),
        }
        (want,) = engine.run(None, feed)
        found = evaluate(made.graph, behind_nan(made.graph, feed, {"n": n}))["y"]
        np.testing.assert_allclose(found[tuple(map(slice, want.shape))], want, 1e-5, 1e-6)


def _following(name: str) -> onnx.ModelProto:
    head = HEAD.replace("[7", "[n").replace("{{", "{").replace("}}", "}")
    text = head.replace("{kind}", "float[?]").replace("{lines}", FOLLOWING[name])
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


STEPS = """g (float[h,w] x, bool[p] c, float[p,2] e) => (int64[2,n] y, float[h,m] z, float[k] s,
    float[l] t, int64[2,o] u) { u = NonZero(e)
    y = NonZero(x) b = Constant<value_float=0.0>() i = Gather<axis=0>(x, zero) f = Greater(i, b)
    zero = Constant<value_int=0>() z = Compress<axis=1>(x, f) d = Constant<value_ints=[1]>()
    s = ReduceMax<keepdims=0>(z, d) t = Compress(x, c) }"""


def test_sizes_with_steps_and_such_as_may_be_0_are_selected_from() -> None:
    model = model_of(STEPS)
    dims = {"h": "4..12:4", "w": "2..6:2", "p": "0..9"}
    loaded, engine = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1)), session(model)
    for h, w, p in ((12, 6, 9), (4, 2, 1), (8, 4, 0), (4, 6, 5)):
        feed = feed_of(model, {"h": h, "w": w, "p": p}, h * w)
        feed["x"][0, 0] = 1
        names = [o.name for o in model.graph.output]
        for name, want in zip(names, engine.run(None, feed), strict=True):
            found = loaded.run(feed)[name]
            np.testing.assert_array_equal(found, want, name)


DETECTOR = """g (float[a,3] scores, float[a,4] boxes) => (float[m] s, int64[m] l, float[m,4] b) {
    all = Constant<value_ints=[-1]>() zero = Constant<value_ints=[0]>()
    one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>()
    few = Constant<value_ints=[4]>() kinds = Constant<value_ints=[3]>()
    flat = Reshape(scores, all) least = Constant<value_float=0.3>() keep = Greater(flat, least)
    places = NonZero(keep) rows = Transpose<perm=[1,0]>(places) kept = GatherND(flat, rows)
    count = Shape(kept) either = Concat<axis=0>(few, count) k = ReduceMin<keepdims=1>(either)
    v, i = TopK(kept, k) where = Squeeze(places, zero) at = Gather(where, i)
    anchor = Div(at, kinds) label = Mod(at, kinds) own = Gather(boxes, anchor)
    far = ReduceMax<keepdims=0>(own) above = Constant<value_float=1.0>() step = Add(far, above)
    number = Cast<to=1>(label) moved = Mul(number, step) column = Unsqueeze(moved, one)
    apart = Add(own, column) whole = Unsqueeze(apart, zero) both = Constant<value_ints=[0,1]>()
    rank = Unsqueeze(v, both) many = Constant<value_ints=[9223372036854775807]>()
    half = Constant<value_floats=[0.5]>() found = NonMaxSuppression(whole, rank, many, half)
    three = Constant<value_ints=[3]>() column3 = Slice(found, two, three, one)
    best = Squeeze(column3, one) s = Gather(v, best) l = Gather(label, best)
    b = Gather(own, best) }"""
"""The end of torchvision's detectors: the few best of those above a score, and of these what does
not overlap.
"""


def test_the_end_of_a_detector_takes_any_number_of_anchors() -> None:
    model = model_of(DETECTOR)
    engine = session(model)
    loaded = qcompiler.load(qcompiler.compile(model, dims={"a": "1..11"}, threads=1))
    for a in (11, 1, 2, 7, 11):
        rng = np.random.default_rng(a)
        feed = {k: rng.random((a, n)).astype(np.float32) for k, n in (("scores", 3), ("boxes", 4))}
        feed["scores"][a // 2, 1] = 0.9
        feed["boxes"][:, 2:] += 0.5
        names = [o.name for o in model.graph.output]
        for name, want in zip(names, engine.run(None, feed), strict=True):
            found = loaded.run(feed)[name]
            assert found.shape == want.shape
            np.testing.assert_allclose(found, want, 1e-5, 1e-6)
