"""Kernels that end where a run's images do answer as those made for that size, with NaN wherever
nothing counts.
"""

from typing import Any

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.driver import Compilation
from qcompiler.options import Options
from qcompiler.plan import open_plan
from qcompiler.runtime import Model, open_sizes
from tests.networks.test_open_sizes import meant
from tests.rewrite.test_padding import model_of, random_feed

SIZES = ((1, 1), (2, 3), (7, 5), (13, 17), (5, 20), (20, 1), (19, 20), (20, 20), (16, 16))
"""One pixel, less than a tile, primes, one side at its most, one less than the most, the most."""

IMAGES = {
    "windows": """(float[1,3,h,w] x) => (float[1,8,m,n] y) <float[16,3,3,3] a = {@432},
        float[16] b = {@16}, float[16,1,3,3] d = {@144}, float[8,16,1,1] p = {@128}> {
        x1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, a, b) x2 = Relu(x1)
        x3 = Conv<pads=[1,1,1,1], group=16>(x2, d) x4 = Relu(x3) y = Conv(x4, p) }""",
    "strides": """(float[1,16,h,w] x) => (float[1,16,m,n] y) <float[16,1,5,5] d = {@400},
        float[16,16,1,1] p = {@256}, float[16,16,3,3] a = {@2304}> {
        x1 = Conv<pads=[2,2,2,2], strides=[2,2], group=16>(x, d) x2 = Relu(x1)
        x3 = Conv<strides=[2,2]>(x, p) x4 = Add(x2, x3)
        y = Conv<pads=[2,2,2,2], dilations=[2,2]>(x4, a) }""",
    "sums": """(float[1,16,h,w] x) => (float[1,16] y, float[1,16,1,1] z)
        <float[16,16,3,3] a = {@2304}, float[16,16,1,1] p = {@256}> {
        x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Relu(x1) x3 = GlobalAveragePool(x2)
        s0 = Conv(x3, p) s = Sigmoid(s0) x4 = Mul(x2, s) x5 = Conv<pads=[1,1,1,1]>(x4, a)
        x6 = GlobalAveragePool(x5) y = Flatten(x6) z = GlobalMaxPool(x5) }""",
    "pools": """(float[1,16,h,w] x) => (float[1,16,m,n] y, float[1,16,h,w] z)
        <float[16,16,3,3] a = {@2304}> { x1 = Conv<pads=[1,1,1,1]>(x, a)
        x2 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x1)
        y = Conv<pads=[1,1,1,1]>(x2, a)
        z = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x1) }""",
    "many outputs": """(float[1,16,h,w] x) => (float[1,50,h,w] y) <float[48,16,3,3] a = {@6912},
        float[50,48,3,3] b = {@21600}> { x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Relu(x1)
        y = Conv<pads=[1,1,1,1]>(x2, b) }""",
    "ceil": """(float[1,16,h,w] x) => (float[1,16,m,n] r, float[1,16,o,p] s, float[1,16,m,n] t)
        <float[16,16,3,3] a = {@2304}> { x1 = Conv<pads=[1,1,1,1]>(x, a)
        x2 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[2,2,1,1], ceil_mode=1>(x1)
        x3 = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[2,2,1,1]>(x1)
        x4 = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[2,2,1,1], ceil_mode=1>(x1)
        r = Conv<pads=[1,1,1,1]>(x2, a) s = Conv<pads=[1,1,1,1]>(x3, a)
        t = Conv<pads=[1,1,1,1]>(x4, a) }""",
    "one side": """(float[1,16,h,9] x) => (float[1,16,m,9] y) <float[16,16,3,3] a = {@2304}> {
        x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Relu(x1) y = Conv<pads=[1,1,1,1], strides=[2,1]>(x2, a)
        }""",
    "a batch": """(float[2,16,h,w] x) => (float[2,16,h,w] y, float[2,16,1,1] z)
        <float[16,16,3,3] a = {@2304}, float[16,1,3,3] d = {@144}, float[16,16,1,1] p = {@256}> {
        x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Conv<pads=[1,1,1,1], group=16>(x1, d)
        x3 = Conv(x2, p) x4 = Add(x1, x3) y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x4)
        z = GlobalAveragePool(y) }""",
    "rows of words": """(float[1,16,h,w] x) => (float[1,h,w,16] y, float[1,h,16,16] z)
        <float[16,16,3,3] a = {@2304}, float[16,16] q = {@256}, float[16,16] k = {@256},
        float s = {0.3}, float t = {0.01}> { x0 = Conv<pads=[1,1,1,1]>(x, a) x1 = Mul(x0, t)
        x2 = Transpose<perm=[0,2,3,1]>(x1) x3 = MatMul(x2, q) x4 = MatMul(x2, k)
        x5 = Transpose<perm=[0,1,3,2]>(x4) x6 = MatMul(x3, x5) x7 = Softmax(x6) x8 = Mul(x2, s)
        y = MatMul(x7, x8) z = MatMul(x5, x8) }""",
    "a stride at the end": """(float[1,16,h,w] x) => (float[1,16,m,n] y)
        <float[16,16,3,3] a = {@2304}, float[16] b = {@16}> { x1 = Conv<pads=[1,1,1,1]>(x, a, b)
        y = Conv<pads=[1,1,1,1], strides=[2,2]>(x1, a) }""",
    "other operators": """(float[1,16,h,w] x) => (float[1,16,w,h] y, float[1,32,h,w] z)
        <float[16,16,3,3] a = {@2304}, float[16,32,1,1] p = {@512}> {
        x1 = Conv<pads=[1,1,1,1]>(x, a) y = Transpose<perm=[0,1,3,2]>(x1)
        x2 = Softmax<axis=3>(x1) x3 = Concat<axis=1>(x1, x2)
        x4 = Conv(x3, p) x5 = Conv<pads=[1,1,1,1]>(x4, a) z = Concat<axis=1>(x5, x4) }""",
    "joined, picked and repeated": """(float[1,3,h,w] x) => (float[1,16,m,n] y, float[1,16,h,w] z)
        <float[16,3,3,3] a = {@432}, float[16,29,3,3] b = {@4176}, float[16,32,3,3] c = {@4608},
        int64[3] first = {0,0,3}, int64[3] axes = {2,3,1},
        int64[3] end = {9223372036854775807,9223372036854775807,16},
        int64[3] by = {2,3,1}, int64[3] second = {0,0,0}, float[4] twice = {1.0,1.0,2.0,2.0},
        float t = {0.1}> { x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Relu(x1)
        p0 = Slice(x2, first, end, axes, by) p1 = Slice(x1, second, end, axes, by)
        p2 = Concat<axis=1>(p0, p1) p3 = Add(p2, t) y = Conv<pads=[1,1,1,1]>(p3, b)
        r0 = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor">(x2, , twice) r1 = Resize<mode="nearest">(x1, , twice)
        r2 = Concat<axis=1>(r0, r1) r3 = Relu(r2)
        z = Conv<pads=[1,1,1,1], strides=[2,2]>(r3, c) }""",
    "planes picked and joined": """(float[1,3,h,w] x) => (float[1,16,m,n] y, float[1,3,m,n] z)
        <float[16,9,3,3] a = {@1296}, int64[1] first = {0}, int64[2] both = {0,0},
        int64[1] end = {9223372036854775807}, int64[1] by = {2}, int64[2] steps = {2,2},
        int64[2] ends = {9223372036854775807,9223372036854775807}, int64[1] rows = {2},
        int64[1] columns = {3}, int64[2] axes = {3,2}> {
        p0 = Slice(x, first, end, rows, by) p1 = Slice(p0, first, end, columns, by)
        p2 = Slice(x, both, ends, axes, steps) p3 = Concat<axis=1>(p1, p2, p1)
        y = Conv<pads=[1,1,1,1]>(p3, a) z = Relu(p1) }""",
    "up and beside what was there": """(float[2,3,h,w] x) => (float[2,3,h,w] y)
        <float[16,3,3,3] a = {@432}, float[16,16,3,3] d = {@2304}, float[16,8,2,2] u = {@512},
        float[8] b = {@8}, float[8,8,3,3] f = {@576}, float[3,24,3,3] e = {@648}> {
        x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Relu(x1)
        x3 = Conv<pads=[1,1,1,1]>(x2, d) x4 = Relu(x3) x5 = ConvTranspose<strides=[2,2]>(x4, u, b)
        x6 = Relu(x5) x7 = Conv<pads=[1,1,1,1], strides=[2,2]>(x6, f) x8 = Concat<axis=1>(x7, x2)
        y = Conv<pads=[1,1,1,1]>(x8, e) }""",
    "joined with what is not an image": """(float[2,16,h,w] x) => (float[2,8,h,w] y)
        <float[16,16,3,3] a = {@2304}, float[8,48,3,3] b = {@3456}, float t = {0.1}> {
        x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Softmax<axis=3>(x1) x3 = Mul(x1, t)
        x4 = Concat<axis=1>(x2, x3, x1) y = Conv<pads=[1,1,1,1]>(x4, b) }""",
    "masks of halves, and of even sizes": """(float[1,16,h,w] x) =>
        (float[1,16,h,w] y, float[1,16,h,w] z)
        <float[16,16,3,3] a = {@2304}, float[16,16,1,1] p = {@256}, int64[1] two = {2},
        float t = {0.3}, int64 zero = {0}, int64 one = {1}, int64[1] first = {0},
        int64[1] last = {1}> {
        h1 = Shape<start=2, end=3>(x) w1 = Shape<start=3>(x) h2 = Div(h1, two) w2 = Div(w1, two)
        h3 = Cast<to=6>(h2) w3 = Cast<to=6>(w2) h4 = Mul(h2, two) w4 = Mul(w2, two)
        h5 = Cast<to=6>(h4) w5 = Cast<to=6>(w4) h6 = Squeeze(h1, first) w6 = Squeeze(w1, first)
        i0 = Range(zero, h6, one) j0 = Range(zero, w6, one) i1 = Cast<to=6>(i0) j = Cast<to=6>(j0)
        i = Unsqueeze(i1, last) m0 = Less(i, h3) m1 = Less(j, w3) m = And(m0, m1)
        e0 = Less(i, h5) e1 = Less(j, w5) e = And(e0, e1)
        x1 = Conv<pads=[1,1,1,1]>(x, a) x2 = Softmax<axis=1>(x1) x3 = Where(m, x2, t)
        x4 = Add(x3, x1) y = Conv<pads=[1,1,1,1]>(x4, a) x5 = Where(e, x2, t) z = Conv(x5, p)
        }""",
}


def rare(*values: object) -> list[object]:
    """Cases that every run of the tests leaves out."""
    return [pytest.param(v, marks=pytest.mark.slow) for v in values]


@pytest.fixture(autouse=True)
def nan_behind_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_sizes, "BEHIND", {"f": float("nan"), "i": 1})
    monkeypatch.setattr(open_plan, "MOSTLY", 0.0)  # small networks mostly move pixels


def opened(model: onnx.ModelProto, threads: int = 1) -> Model:
    names = {d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim}
    dims = {name: "1..20" for name in names if name}
    return qcompiler.load(qcompiler.compile(model, dims=dims, threads=threads))


def compilation(name: str, **options: Any) -> Compilation:
    dims = dict.fromkeys("hw" if ",w]" in IMAGES[name].split(")")[0] else "h", "1..20")
    model = model_of(f"g {IMAGES[name]}")
    return Compilation(model, Options(dims=dims, threads=1, **options))


@pytest.mark.parametrize(
    ("name", "roots"),
    {
        "windows": ["conv", "conv", "conv"],
        "strides": ["conv", "conv", "conv"],
        "sums": ["ReduceMax", "ReduceSum", "ReduceSum", "conv", "conv", "elementwise"],
        "pools": ["average_pool", "conv", "conv", "max_pool"],
        "ceil": ["average_pool", "conv", "conv", "conv", "conv", "max_pool", "max_pool"],
        "a batch": ["ReduceSum", "conv", "conv", "conv", "max_pool"],
        "a stride at the end": ["conv"],
        "other operators": ["Concat", "Concat", "conv", "conv", "conv"],
        "joined, picked and repeated": [
            *("Concat", "Concat", "Resize", "Resize", "Slice", "Slice"),
            *("conv", "conv", "conv", "elementwise"),
        ],
        "planes picked and joined": ["Concat", "Slice", "Slice", "Slice", "conv"],
        "joined with what is not an image": ["Concat", "conv", "conv", "elementwise"],
        "up and beside what was there": ["Concat", *["conv"] * 5, "depth_to_space"],
    }.items(),
)
def test_their_kernels_end_with_images(name: str, roots: list[str]) -> None:
    plan = compilation(name).plan
    assert plan.opened is not None
    first = plan.steps[: plan.opened.pinned[0].last]
    ends = [s.region.root for s in first if len(s.region.extents) == 2]
    assert sorted("elementwise" if r is None else r.op for r in ends) == roots


@pytest.mark.parametrize(
    "name",
    [
        "windows",
        "a stride at the end",
        *rare("strides", "pools", "a batch", "joined, picked and repeated"),
    ],
)
def test_integers_are_those_of_padded_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero points are not 0 here, and are what windows see behind an image's end."""
    model, both = model_of(f"g {IMAGES[name]}"), []
    data = [random_feed(model, {"h": 20, "w": 20}, seed) for seed in range(2)]
    for tries in (open_plan.TRIES, 0):
        monkeypatch.setattr(open_plan, "TRIES", tries)
        one = compilation(name, precision="int8", calibration=data)
        both.append(qcompiler.load(one.artifact))
    for seed, (height, width) in enumerate(SIZES):
        feed = random_feed(model, {"h": height, "w": width}, seed)
        own, padded = (m.run(feed) for m in both)
        for key, value in padded.items():
            np.testing.assert_array_equal(own[key], value, f"{key}, {height} x {width}")


SELDOM = ("joined with what is not an image", "up and beside what was there")


@pytest.mark.parametrize("threads", [*rare(1), 3])
@pytest.mark.parametrize("name", [*(n for n in IMAGES if n not in SELDOM), *rare(*SELDOM)])
def test_images_of_any_size(name: str, threads: int) -> None:
    model = model_of(f"g {IMAGES[name]}")
    found = opened(model, threads)
    for seed, (height, width) in enumerate(SIZES):
        feed = random_feed(model, {"h": height, "w": width}, seed)
        made = found.run(feed)
        for key, value in meant(model, feed).items():
            scale = float(np.abs(value).max())
            np.testing.assert_allclose(
                made[key], value, 1e-4, 5e-5 * scale, err_msg=f"{key}, {height} x {width}"
            )


def test_kernels_know_the_least_that_images_are() -> None:
    model = model_of(f"g {IMAGES['windows']}")
    one = Compilation(model, Options(dims={"h": "11..20", "w": "17..20"}, threads=1))
    told = [s.region.least for s in one.plan.steps if s.region.extents]
    assert told == [(11, 17), (6, 9), (6, 9)]
    found = qcompiler.load(one.artifact)
    for seed, (height, width) in enumerate([(11, 17), (13, 18), (20, 20)]):
        feed = random_feed(model, {"h": height, "w": width}, seed)
        made = found.run(feed)
        for key, value in meant(model, feed).items():
            np.testing.assert_allclose(made[key], value, 1e-4, 5e-5 * np.abs(value).max())


def test_biases_are_corrected_by_the_pixels_that_count() -> None:
    """Small samples of large images shift means as they do where images have that size."""
    model = model_of(f"g {IMAGES['a stride at the end']}")
    data = [random_feed(model, {"h": 5, "w": 7}, seed) for seed in range(2)]
    given = {"precision": "int4", "calibration": data, "threads": 1}
    own = qcompiler.load(qcompiler.compile(model, dims={"h": "5", "w": "7"}, **given))
    found = qcompiler.load(qcompiler.compile(model, dims={"h": "1..20", "w": "1..20"}, **given))
    np.testing.assert_allclose(found.run(data[0])["y"], own.run(data[0])["y"], 1e-4, 1e-4)
