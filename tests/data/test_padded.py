"""What calibration counts of graphs with open sizes: positions of the samples alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.data.calibrate import Observe, value_names
from qcompiler.data.padded import Sampled
from qcompiler.ir import Array, Graph, substitute
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from qcompiler.rewrite.padding.pad import padded
from qcompiler.rewrite.padding.traced import regrouped
from tests.rewrite.test_padding import model_of

HEADS = """g (float[1,s,8] x) => (float[1,s,8] y) <float[8,8] w = {@64}, float[8] b = {@8}> {
    p = MatMul(x, w) a = Add(p, b) f = Constant<value_ints=[0,-1,2,4]>() h = Reshape(a, f)
    q = Transpose<perm=[0,2,1,3]>(h) k = Transpose<perm=[0,2,3,1]>(h) m = MatMul(q, k)
    u = Softmax(m) o = MatMul(u, q) t = Transpose<perm=[0,2,1,3]>(o)
    z = Concat<axis=1>(x, x) n = Constant<value_ints=[1]>() s = ReduceSum(z, n)
    back = Constant<value_ints=[0,-1,8]>() r = Reshape(t, back) y = Add(r, s) }"""
LONG = {"s": "1..9"}


MOVES = ("Reshape", "Transpose", "Add", "Where", "Cast", "Softmax")


def unnamed(graph: Graph) -> Graph:
    """The graph as passes may leave it: some of what moves values has no name."""
    return substitute(graph, lambda n: replace(n, name="") if n.op in MOVES else n)


def seen(graph: Graph, sampled: Sampled, sample: Mapping[str, Array]) -> dict[str, Array]:
    """What calibration is told of each value."""
    names, found = value_names(graph), dict[str, Array]()

    def run(feed: Mapping[str, Array], observe: Observe) -> None:
        evaluate(graph, feed, lambda n, a: observe(names[n], a) if n in names else None)

    sampled.running(run, graph)(sample, lambda name, array: found.update({name: array}))
    return found


def test_values_without_names_count_where_their_operands_do() -> None:
    symbols = [Symbol("s", 1, 9, 9)]
    graph = read_pinned(model_of(HEADS), {}, LONG, False, {"s": Size.of("s")})
    made = padded(graph, symbols)
    sampled = Sampled(made, {"x": (1, "s", 8)}, symbols)
    sample = {"x": np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32)}
    for graph in (made.graph, unnamed(made.graph)):
        found = seen(graph, sampled, sample)
        floats = {n: a.shape for n, a in found.items() if a.dtype == np.float32}
        assert floats["MatMul_p"] == (1, 4, 8)
        assert floats["MatMul_m"] == (1, 2, 4, 4)
        behind = [n for n, shape in floats.items() if 9 in shape]
        assert not behind, "what has a place for each word counts up to the last of the sample"


def test_digits_are_regrouped_as_a_reshape_does() -> None:
    top = {"s": 9}
    assert regrouped((("s",), (8,)), (9, 2, 4), top) == (("s",), (2,), (4,))
    assert regrouped((("s",), (2,), (4,)), (1, 9, 8), top) == ((), ("s",), (2, 4))
    assert regrouped(((2, "s"), (4,)), (2, 9, 4), top) == ((2,), ("s",), (4,))
    assert regrouped((("s",), (8,)), (3, 24), top) is None, "a digit would be cut"


def test_of_what_a_sample_has_none_calibration_is_not_told() -> None:
    text = """g (float[1,s,8] x) => (float[1,n,8] y)
        <int64[1] one = {1}, int64[1] far = {99999999999}> {
        r = Slice(x, one, far, one) e = Exp(r) y = Concat<axis=1>(x, e) }"""
    symbols = [Symbol("s", 1, 9, 9)]
    made = padded(read_pinned(model_of(text), {}, LONG, False, {"s": Size.of("s")}), symbols)
    sampled = Sampled(made, {"x": (1, "s", 8)}, symbols)
    for count in (1, 4):
        found = seen(made.graph, sampled, {"x": np.ones((1, count, 8), np.float32)})
        assert all(a.size for a in found.values())
        assert ("Exp_e" in found) == (count > 1)
