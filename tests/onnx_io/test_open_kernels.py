"""Convolutions by weights whose windows are of open sizes mean what they do in known sizes, with
NaN wherever nothing counts, and at each of several sizes of one artifact.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from oracles import onnxruntime_outputs

import qcompiler
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from qcompiler.runtime import open_sizes
from tests.rewrite.test_padding import Ranges, behind_nan, check, model_of, opened, random_feed

IMAGE: Ranges = {"h": (1, 5), "w": (2, 7), "k": (1, 4), "l": (2, 3)}
CASES: dict[str, tuple[Ranges, str]] = {
    "transposed": (
        IMAGE,
        """(float[2,c,h,w] x, float[c,3,k,l] v, float[3] b) => (float[2,3,m,n] y) {
        y = ConvTranspose<strides=[2,3], dilations=[2,1], pads=[0,1,0,0], output_padding=[1,2]>
        (x, v, b) }""",
    ),
    "transposed, in groups": (
        {"s": (1, 5), "k": (1, 4)},
        "(float[2,4,s] x, float[4,2,k] v) => (float[2,4,m] y) { y = ConvTranspose<group=2>(x, v) }",
    ),
    "transposed, as large as strides make it": (
        IMAGE,
        """(float[1,2,h,w] x, float[2,3,k,l] v) => (float[1,3,m,n] y, float[1,3,m,n] z) {
        y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,3]>(x, v)
        z = ConvTranspose<auto_pad="SAME_LOWER", strides=[2,3]>(x, v) }""",
    ),
    "transposed, of a size of its own": (
        IMAGE,
        """(float[1,2,h,w] x, float[2,3,k,l] v) => (float[1,3,12,9] y) {
        y = ConvTranspose<output_shape=[12,9], strides=[2,1]>(x, v) }""",
    ),
    "as many as strides make it": (
        IMAGE,
        """(float[2,c,h,w] x, float[4,c,k,l] v, float[4] b) => (float[2,4,m,n] y,
        float[2,4,m,n] z) {
        y = Conv<auto_pad="SAME_UPPER", strides=[2,1], dilations=[1,2]>(x, v, b)
        z = Conv<auto_pad="SAME_LOWER", strides=[1,2]>(x, v) }""",
    ),
    "behind others": (
        {"s": (1, 6), "k": (2, 4)},
        """(float[1,4,s] x, float[1,4,k] past, float[6,2,k] v) => (float[1,6,n] y)
        <int64[1] one = {1}, int64[1] far = {9223372036854775807}, int64[1] two = {2}> {
        p = Slice(past, one, far, two) a = Concat<axis=2>(p, x) y = Conv<group=2>(a, v) }""",
    ),
    "integers": (
        IMAGE,
        """(uint8[1,3,h,w] x, uint8[4,3,k,l] v, uint8 p, uint8[4] q) => (int32[1,4,m,n] y) {
        y = ConvInteger<auto_pad="SAME_UPPER">(x, v, p, q) }""",
    ),
    "quantized": (
        IMAGE,
        """(uint8[1,3,h,w] x, int8[4,3,k,l] v, int32[4] b) => (uint8[1,4,m,n] y)
        <float s = {0.3}, uint8 p = {3}, float[4] t = {0.2,0.3,0.1,0.4}, int8[4] q = {1,0,2,0},
        float u = {0.9}, uint8 r = {50}> {
        y = QLinearConv<auto_pad="SAME_LOWER">(x, s, p, v, t, q, u, r, b) }""",
    ),
}  # fmt: skip


def ranges_of(name: str) -> Ranges:
    ranges, text = CASES[name]
    return {**ranges, **({"c": (1, 3)} if ",c," in text else {})}


@pytest.mark.parametrize("name", CASES)
def test_windows_of_any_size_mean_what_they_do_in_known_sizes(name: str) -> None:
    check(f"g {CASES[name][1]}", ranges_of(name))


@pytest.mark.parametrize("name", ["transposed", "as many as strides make it"])
def test_an_infinite_pixel_shows_where_its_windows_are(name: str) -> None:
    """Taps that are not there, and zeros between inputs, are not multiplied by it."""
    model, ranges = model_of(f"g {CASES[name][1]}"), ranges_of(name)
    made = opened(model, ranges)
    sizes = {k: min(low + 2, high) for k, (low, high) in ranges.items()}
    feed = random_feed(model, sizes, 3)
    feed["x"][0, 0, -1, -1] = np.inf
    feed["v"][-1, -1, 0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        wanted = evaluate(read_pinned(model, {}, sizes, False, {}), feed)
        found = evaluate(made.graph, behind_nan(made.graph, feed, sizes))
    for key, value in wanted.items():
        assert np.isfinite(value).any()
        assert not np.isfinite(value).all()
        cut = found[key][tuple(map(slice, value.shape))]
        np.testing.assert_array_equal(np.isfinite(cut), np.isfinite(value))


def test_an_artifact_takes_windows_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of a run do not show in later ones, of smaller sizes."""
    monkeypatch.setattr(open_sizes, "BEHIND", {"f": float("nan"), "i": 1})
    model = model_of(f"g {CASES['transposed'][1]}")
    ranges = ranges_of("transposed")
    dims = {k: f"{low}..{high}" for k, (low, high) in ranges.items()}
    artifact = qcompiler.compile(model, dims=dims, threads=1)
    assert {s.name for s in artifact.manifest.symbols} == ranges.keys()
    loaded = qcompiler.load(artifact)
    most = {k: high for k, (_, high) in ranges.items()}
    for seed, sizes in enumerate((most, {k: low for k, (low, _) in ranges.items()}, BETWEEN, most)):
        feed = random_feed(model, sizes, seed)
        wanted = onnxruntime_outputs(model, feed)["y"]
        np.testing.assert_allclose(loaded.run(feed)["y"], wanted, 1e-4, 1e-4, err_msg=str(sizes))


BETWEEN: Mapping[str, int] = {"h": 3, "w": 5, "k": 2, "l": 3, "c": 2}
