"""Artifacts with two open sizes beside artifacts of each pair of sizes alone: the sizes are those
around the tiles of the kernels that the plan has, and the sizes that it was made for; equal ones
are among them.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.artifact.artifact import Artifact
from tests.networks.test_open_sizes import encoder, sentence
from tests.rewrite.test_padding import Ranges, model_of, random_feed

pytestmark = pytest.mark.slow

PAIR = """g (float[1,a,16] x, float[1,b,16] y) => (float[1,a,16] z, float[1,a,b] s)
    <float[16,16] wq = {@256}, float[16,16] wk = {@256}, float[16] g = {@16}> {
    q = MatMul(x, wq) k0 = MatMul(y, wk) k = Transpose<perm=[0,2,1]>(k0) s0 = MatMul(q, k)
    s = Softmax<axis=-1>(s0) v = MatMul(s, y) r = Add(v, x)
    z = LayerNormalization<axis=-1>(r, g) }"""
CELLS = """g (float[a,b,8] x) => (float[a,2,b,6] y, float[2,b,6] h)
    <float[2,24,8] w = {@384}, float[2,24,6] r = {@288}> {
    y, h = LSTM<hidden_size=6, direction="bidirectional">(x, w, r) }"""
PIXELS = """g (float[1,3,a,b] x) => (float[1,16,n,m] y, float[1,16,1,1] z)
    <float[16,3,3,3] k = {@432}, float[16,16,3,3] w = {@2304}, float[16,1,3,3] d = {@144},
     float[16,16,1,1] p = {@256}> {
    c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k) r = Relu(c) t = Tanh(r)
    e = Conv<pads=[1,1,1,1]>(t, w) s = Conv<pads=[1,1,1,1], group=16>(e, d)
    u = Conv(s, p) v = Add(u, e) y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(v)
    z = GlobalAveragePool(y) }"""
BYTES = """g (uint8[1,4,a,b] x) => (uint8[1,16,n,m] y, uint8[1,q,16] o)
    <int8[16,4,3,3] k = {BYTES576}, int8[16,16,1,1] p = {BYTES256}, int8[16,16] w = {BYTES256},
     float f = {0.02}, uint8 n0 = {128}, int8 s0 = {0}, float o0 = {1.5}> {
    c = QLinearConv<pads=[1,1,1,1], strides=[2,2]>(x, f, n0, k, f, s0, o0, n0)
    y = QLinearConv(c, f, n0, p, f, s0, o0, n0) t = Transpose<perm=[0,2,3,1]>(y)
    l = Constant<value_ints=[1,-1,16]>() r = Reshape(t, l)
    o = QLinearMatMul(r, f, n0, w, f, s0, o0, n0) }"""

NETWORKS: dict[str, tuple[str, Ranges]] = {
    "texts": ("", {"batch": (1, 40), "seq": (1, 40)}),
    "a text by another": (PAIR, {"a": (1, 40), "b": (1, 40)}),
    "recurrent": (CELLS, {"a": (1, 40), "b": (1, 40)}),
    "images": (PIXELS, {"a": (1, 40), "b": (1, 40)}),
    "images of bytes": (BYTES, {"a": (1, 40), "b": (1, 40)}),
}


def _model(name: str) -> onnx.ModelProto:
    if name == "texts":
        return encoder()
    rng = np.random.default_rng(0)
    text = re.sub(
        r"BYTES(\d+)",
        lambda n: ",".join(map(str, rng.integers(-127, 128, int(n[1])))),
        NETWORKS[name][0],
    )
    return model_of(text)


def _feed(name: str, model: onnx.ModelProto, pair: tuple[int, int]) -> dict[str, np.ndarray]:
    if name == "texts":
        return sentence(*pair)
    if name == "images of bytes":
        return {"x": np.random.default_rng(pair).integers(0, 256, (1, 4, *pair), np.uint8)}
    return random_feed(model, dict(zip(NETWORKS[name][1], pair, strict=True)), sum(pair))


def tile_of(artifact: Artifact) -> int:
    """The most rows of a small tile in the plan: 20 of matmul_f32f32_40x16x16_20x16_add."""
    found = (re.search(r"_\d+x\d+x\d+_(\d+)x\d+", s.kernel) for s in artifact.manifest.steps)
    return max(rows for f in found if f is not None and 1 < (rows := int(f[1])) <= 24)


@pytest.mark.parametrize("name", NETWORKS)
def test_open_sizes_around_tiles_are_as_artifacts_of_each_alone(name: str) -> None:
    model, ranges = _model(name), NETWORKS[name][1]
    top = max(high for _, high in ranges.values())
    dims = {k: f"{low}..{high}" for k, (low, high) in ranges.items()}
    artifact = qcompiler.compile(model, dims=dims, threads=1)
    opened, tile = qcompiler.load(artifact), tile_of(artifact)
    turn = min(max(p.sizes) for p in artifact.manifest.variants[0].pinned if max(p.sizes) > 1)
    pairs = [(1, tile - 1), (tile, tile), (tile + 1, 1), (13, tile + 1), (top, top)]
    for pair in [*pairs, (turn, min(turn + 1, top)), (1, 1)]:
        alone = qcompiler.compile(model, dims=dict(zip(ranges, pair, strict=True)), threads=1)
        feed = _feed(name, model, pair)
        found, wanted = opened.run(feed), qcompiler.load(alone).run(feed)
        for output, value in wanted.items():
            assert found[output].shape == value.shape
            if value.dtype.kind == "f":
                np.testing.assert_allclose(found[output], value, 1e-4, 1e-4, err_msg=f"{pair}")
            else:
                np.testing.assert_array_equal(found[output], value, f"{output} at {pair}")
