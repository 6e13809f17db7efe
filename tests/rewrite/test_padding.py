"""Graphs with open sizes, padded to the largest, in numpy: at every size what the model means
there, with NaN wherever nothing counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

import numpy as np
import onnx
import pytest

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error, Skip
from qcompiler.ir import SIZE, Array, Graph
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from qcompiler.rewrite.padding import rules
from qcompiler.rewrite.padding.frame import Padding
from qcompiler.rewrite.padding.pad import Result, padded
from qcompiler.rewrite.padding.pinned import Paddings

Ranges = Mapping[str, tuple[int, int]]
SEQ: Ranges = {"s": (2, 9)}
IMAGE: Ranges = {"h": (9, 20), "w": (9, 20)}


def model_of(text: str, opset: int = 23) -> onnx.ModelProto:
    """A model in ONNX's text, where @N stands for N numbers."""
    whole = re.sub(
        r"@(\d+)", lambda n: ",".join(f"{np.sin(i):.3f}" for i in range(int(n[1]))), text
    )
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {whole}')


def opened(model: onnx.ModelProto, ranges: Ranges) -> Result:
    """The model with these sizes open, padded."""
    dims = {k: f"{low}..{high}" for k, (low, high) in ranges.items()}
    graph = read_pinned(model, {}, dims, False, {k: Size.of(k) for k in ranges})
    return padded(graph, [Symbol(k, *r, r[1]) for k, r in ranges.items()])


def behind_nan(
    graph: Graph, feed: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, Array]:
    """Inputs of the largest sizes, with NaN, or many for integers, behind those given."""
    made = {}
    for node in graph.inputs:
        if node.name.startswith(SIZE):
            made[node.name] = np.array([Size.of(node.name[len(SIZE) :]).at(sizes)], np.int32)
            continue
        given = feed[node.name]
        kind = given.dtype.kind
        whole = np.full(node.type.dims, np.nan if kind == "f" else kind != "b", given.dtype)
        whole[tuple(map(slice, given.shape))] = given
        made[node.name] = whole
    return made


def random_feed(model: onnx.ModelProto, sizes: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Inputs of a model in these sizes: floats, or integers from 0 to 6."""
    rng, feed = np.random.default_rng(seed), {}
    for value in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
        if kind.kind == "f":
            feed[value.name] = rng.standard_normal(shape).astype(kind)
        else:
            feed[value.name] = rng.integers(0, 2 if kind.kind == "b" else 7, shape).astype(kind)
    return feed


def check(text: str, ranges: Ranges, opset: int = 23) -> Result:
    """Compare at the ends, and between."""
    model = model_of(text, opset)
    made = opened(model, ranges)
    each = [sorted({low, low + 1, (low + high) // 2, high}) for low, high in ranges.values()]
    for seed, numbers in enumerate(product(*each)):
        sizes = dict(zip(ranges, numbers, strict=True))
        feed = random_feed(model, sizes, seed)
        wanted = evaluate(read_pinned(model, {}, sizes, False, {}), feed)
        found = evaluate(made.graph, behind_nan(made.graph, feed, sizes))
        for name, value in wanted.items():
            cut = found[name][tuple(map(slice, value.shape))]
            np.testing.assert_allclose(cut, value, 2e-4, 2e-5, err_msg=f"{name} at {sizes}")
    return made


SEQUENCES = {
    "attention": """(float[2,s,8] x) => (float[2,s,8] y) {
        k = Transpose<perm=[0,2,1]>(x) a = MatMul(x, k) w = Softmax<axis=-1>(a) y = MatMul(w, x)
        }""",
    "masked attention": """(float[2,s,8] x, bool[2,s] keep) => (float[2,s,8] y) {
        k = Transpose<perm=[0,2,1]>(x) a = MatMul(x, k)
        one = Constant<value_float=1.0>() low = Constant<value_float=-3.4e38>()
        kept = Cast<to=1>(keep) hide = Sub(one, kept) bias = Mul(hide, low)
        ax = Constant<value_ints=[1]>() mask = Unsqueeze(bias, ax) b = Add(a, mask)
        w = Softmax<axis=-1>(b) y = MatMul(w, x) }""",
    "causal attention": """(float[1,s,8] x) => (float[1,s,8] y) {
        k = Transpose<perm=[0,2,1]>(x) a = MatMul(x, k) sh = Shape(x) i = Constant<value_ints=[1]>()
        n = Gather(sh, i) square = Concat<axis=0>(n, n)
        ones = ConstantOfShape<value=float[1]{-1e30}>(square) one = Constant<value_int=1>()
        up = Trilu<upper=1>(ones, one) b = Add(a, up)
        w = Softmax<axis=-1>(b) y = MatMul(w, x) }""",
    "mask from positions": """(float[1,s,8] x) => (float[1,s,8] y) {
        k = Transpose<perm=[0,2,1]>(x) a = MatMul(x, k) sh = Shape(x) i = Constant<value_int=1>()
        n = Gather(sh, i) z = Constant<value_int=0>() p = Range(z, n, i)
        ax = Constant<value_ints=[1]>() rows = Unsqueeze(p, ax) near = LessOrEqual(p, rows)
        zero = Constant<value_float=0.0>() low = Constant<value_float=-1e30>()
        m = Where(near, zero, low) b = Add(a, m) w = Softmax<axis=-1>(b) y = MatMul(w, x) }""",
    "Attention": """(float[2,s,8] x) => (float[2,s,8] y, float[2,s,8] z) {
        y = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x)
        z = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>(x, x, x) }""",
    "heads": """(float[2,s,8] x) => (float[2,s,8] y) {
        sh = Constant<value_ints=[0,-1,2,4]>() h = Reshape(x, sh) q = Transpose<perm=[0,2,1,3]>(h)
        k = Transpose<perm=[0,2,3,1]>(h) a = MatMul(q, k) w = Softmax<axis=-1>(a) o = MatMul(w, q)
        t = Transpose<perm=[0,2,1,3]>(o) back = Constant<value_ints=[0,-1,8]>() y = Reshape(t,
        back) }""",
    "reductions": """(float[2,s,3] x) => (float[2,3] a, float[2,1,3] b, float[3] c, float[2,3] d,
        float[2,3] e, float[2,3] f, float[2,3] g, float[2,3] h, float i) {
        t = Constant<value_ints=[1]>() u = Constant<value_ints=[0,1]>()
        a = ReduceMean<keepdims=0>(x, t) b = ReduceMax(x, t) c = ReduceMin<keepdims=0>(x, u)
        d = ReduceSum<keepdims=0>(x, t) e = ReduceProd<keepdims=0>(x, t) f =
        ReduceL2<keepdims=0>(x, t)
        g = ReduceLogSumExp<keepdims=0>(x, t) h = ReduceL1<keepdims=0>(x, t)
        i = ReduceMean<keepdims=0>(x) }""",
    "last": """(float[2,s,3] x) => (float[2,3] a, float[2,n,3] b, float[2,m,3] c, float[2,2,3] d) {
        last = Constant<value_int=-1>() a = Gather<axis=1>(x, last)
        one = Constant<value_ints=[1]>() far = Constant<value_ints=[9223372036854775807]>()
        minus = Constant<value_ints=[-1]>() zero = Constant<value_ints=[0]>()
        two = Constant<value_ints=[-2]>()
        b = Slice(x, one, far, one) c = Slice(x, zero, minus, one) d = Slice(x, two, far, one) }""",
    "table of positions": """(float[1,s,4] x) => (float[1,s,4] y)
        <float[1,9,4] table = {@36}> {
        sh = Shape(x) i = Constant<value_ints=[1]>() n = Gather(sh, i) z =
        Constant<value_ints=[0]>()
        t = Slice(table, z, n, i) y = Add(x, t) }""",
    "embedding": """(int64[1,s] ids) => (float[1,4] y) <float[7,4] table = {@28}> {
        e = Gather(table, ids) i = Constant<value_ints=[1]>() y = ReduceSum<keepdims=0>(e, i) }""",
    "size as a number": """(float[1,s,4] x) => (float[1,s,4] y) {
        sh = Shape(x) i = Constant<value_int=1>() n = Gather(sh, i) f = Cast<to=1>(n) r = Sqrt(f)
        y = Div(x, r) }""",
    "scans": """(float[2,s,3] x) => (float[2,s,3] a, float[2,s,3] b, float[2,s,3] c) {
        i = Constant<value_int=1>() a = CumSum(x, i) b = CumSum<reverse=1>(x, i)
        c = CumSum<exclusive=1, reverse=1>(x, i) }""",
    "extremes": """(float[2,s,3] x) => (int64[2,1,3] a, int64[2,1,3] b, float[2,2,3] v,
        int64[2,2,3] i,
        float[2,s,3] h) {
        a = ArgMax<axis=1>(x) b = ArgMin<axis=1>(x) k = Constant<value_ints=[2]>()
        v, i = TopK<axis=1>(x, k) h = Hardmax<axis=1>(x) }""",
    "pieces": """(float[2,s,3] x, float[2,4,3] z) => (float[2,m,3] a, float[2,n,3] b, float[2,s,6]
        c) {
        a = Concat<axis=1>(z, x) b = Concat<axis=1>(x, z, x) sizes = Constant<value_ints=[1,2]>()
        p, q = Split<axis=2>(x, sizes) c = Concat<axis=2>(q, p, x) }""",
    "rows of all samples": """(float[2,s,3] x) => (float[m,3] y, float[2,3] z) {
        t = Constant<value_ints=[-1,3]>() r = Reshape(x, t) y = Tanh(r) sh = Shape(x)
        b = Reshape(y, sh) i = Constant<value_ints=[1]>() z = ReduceSum<keepdims=0>(b, i) }""",
    "split between samples": """(float[2,s,3] x) => (float[m] y, float[s,6] z) {
        t = Constant<value_ints=[-1]>() y = Reshape(x, t) u = Constant<value_ints=[-1,6]>()
        z = Reshape(y, u) }""",
    "elements by index": """(float[2,s,3] x) => (float[2,1,3] y, float[2,1,3] z) {
        a = ArgMax<axis=1>(x) y = GatherElements<axis=1>(x, a) two = Constant<value_int=2>()
        k = Mod(a, two) one = Constant<value_int=1>() b = Add(k, one) c = Neg(b)
        z = GatherElements<axis=1>(x, c) }""",
    "outer product": """(float[2,s,3] x) => (float[2,3,3] y) {
        t = Transpose<perm=[0,2,1]>(x) y = MatMul(t, x) }""",
    "Einsum": """(float[2,s,3] x) => (float[2,3,3] y, float[2,s,s] z) {
        y = Einsum<equation="bsi,bsj->bij">(x, x) z = Einsum<equation="bsi,bti->bst">(x, x) }""",
    "LSTM": """(float[s,2,3] x) => (float[s,2,2,4] y, float[2,2,4] h, float[2,2,4] c)
        <float[2,16,3] w = {@96}, float[2,16,4] r = {@128}> {
        y0, h, c = LSTM<hidden_size=4, direction="bidirectional">(x, w, r)
        y = Transpose<perm=[0,1,2,3]>(y0) }""",
    "convolution": """(float[1,2,s] x) => (float[1,3,s] y, float[1,3,n] z) <float[3,2,3] w =
        {@18}> {
        y = Conv<pads=[1,1]>(x, w) e = Exp(y) i = Identity(e) z = Conv<pads=[2,0], strides=[2]>(x,
        w) }""",
    "layers": """(float[2,s,4] x) => (float[2,s,4] y) <float[4] g = {1,2,3,4}, float[4] b =
        {4,3,2,1},
        float[4,4] w = {@16}> {
        n = LayerNormalization<axis=-1>(x, g, b) p = MatMul(n, w) q = Add(p, b)
        k = Transpose<perm=[0,2,1]>(q) a = MatMul(q, k) s0 = Softmax<axis=-1>(a) v = MatMul(n, w)
        u = Add(v, g) o = MatMul(s0, u) r = Add(o, x) e = Gelu(r) y = Exp(e) }""",
    "Pad and Tile": """(float[2,s,3] x) => (float[2,n,3] y, float[2,m,3] z, float[2,6,3] o) {
        p = Constant<value_ints=[0,1,0,0,2,0]>() y = Pad(x, p) t = Constant<value_ints=[1,2,1]>()
        z = Tile(x, t) i = Constant<value_ints=[1]>() a = ReduceSum(z, i)
        e = Constant<value_ints=[2,6,3]>() o = Expand(a, e) }""",
}
IMAGES = {
    "convolutions": """(float[1,2,h,w] x) => (float[1,2] y) <float[2,2,3,3] k = {@36}> {
        a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, k)
        d = Add(b, c) e = GlobalAveragePool(d) f = Flatten(e) y = Exp(f) }""",
    "pools": """(float[1,2,h,w] x) => (float[1,2,m,n] a, float[1,2,o,p] b, float[1,2,q,r] c,
        float[1,2,1,1] d) {
        a = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)
        b = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)
        c = AveragePool<kernel_shape=[3,3], strides=[2,1], pads=[1,1,1,1], count_include_pad=1>(x)
        d = GlobalMaxPool(x) }""",
    "up and down": """(float[1,2,h,w] x) => (float[1,2,m,n] a, float[1,2,o,p] b, float[1,2,q,r] c)
        <float[2,2,3,3] k = {@36}> {
        s = Constant<value_floats=[1.0,1.0,2.0,2.0]>()
        a = Resize<mode="linear">(x, , s) e = Resize<coordinate_transformation_mode="asymmetric",
        nearest_mode="floor">(x, , s) b = Conv<pads=[1,1,1,1]>(e, k)
        c = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, k) }""",
    "patches": """(float[1,2,h,w] x) => (float[1,n,2] y, float[1,2] z) <float[2,2,3,3] k = {@36},
        float[1,1,2] cls = {1,2}> {
        p = Conv<strides=[3,3]>(x, k) t = Constant<value_ints=[1,2,-1]>() f = Reshape(p, t)
        g = Transpose<perm=[0,2,1]>(f) c = Concat<axis=1>(cls, g) u = Transpose<perm=[0,2,1]>(c)
        a = MatMul(c, u) w0 = Softmax<axis=-1>(a) y = MatMul(w0, c) i = Constant<value_int=0>()
        z = Gather<axis=1>(y, i) }""",
    "rows": """(float[1,2,h,w] x) => (float[1,n,2] y, float[1,n,n] z) {
        t = Constant<value_ints=[1,2,-1]>() f = Reshape(x, t) y = Transpose<perm=[0,2,1]>(f)
        z = MatMul(y, f) }""",
    "norms": """(float[1,4,h,w] x) => (float[1,4,h,w] y, float[1,4,h,w] z)
        <float[4] g = {1,2,3,4}, float[4] b = {4,3,2,1}> {
        y = InstanceNormalization(x, g, b) z = GroupNormalization<num_groups=2>(x, g, b) }""",
    "every second": """(float[1,2,h,w] x) => (float[1,4,m,n] y) <float[4,4,3,3] k = {@144}> {
        a = Constant<value_ints=[0]>() b = Constant<value_ints=[1]>() t = Constant<value_ints=[2]>()
        far = Constant<value_ints=[9223372036854775807]>() three = Constant<value_ints=[3]>()
        r = Slice(x, a, far, t, t) e = Slice(r, b, far, three, t) o = Slice(r, b, far, three, t)
        c = Concat<axis=1>(e, o) y = Conv<pads=[1,1,1,1]>(c, k) }""",
    "shuffled": """(float[1,4,h,w] x) => (float[1,1,m,n] y, float[1,4,h,w] z) {
        y = DepthToSpace<blocksize=2>(x) i = Constant<value_ints=[1,2,2,-1]>() sh = Shape(x)
        z0 = Transpose<perm=[0,1,3,2]>(x) z = Transpose<perm=[0,1,3,2]>(z0) }""",
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_of_any_length_is_computed_alone(name: str) -> None:
    check(f"g {SEQUENCES[name]}", SEQ)


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_of_any_size_is_computed_alone(name: str) -> None:
    check(f"g {IMAGES[name]}", IMAGE)


def test_two_sizes_of_equal_names_are_one() -> None:
    text = "g (float[s,4] x, float[s,4] z) => (float[s,4] y) { y = Mul(x, z) }"
    assert not check(text, SEQ).sizes


REFUSED = {
    "one size equal to a number, or 1": """(float[s,4] x, float[9,4] z) => (float[9,4] y)
        <int64[1] one = {1}, int64[1] far = {99999999999}, int64[1] nil = {0}> {
        r = Slice(x, one, far, nil) y = Add(r, z) }""",
    "nothing left": """(float[s,4] x) => (float[n,4] y) { k = Constant<value_ints=[5]>()
        f = Constant<value_ints=[99999999999]>() z = Constant<value_ints=[0]>()
        y = Slice(x, k, f, z) }""",
    "a table that is too short": """(float[s,4] x) => (float[s,4] y) <float[5,4] t = {@20}> {
        sh = Shape(x) z = Constant<value_ints=[0]>() n = Gather(sh, z) u = Slice(t, z, n, z)
        y = Add(x, u) }""",
    "channels that become blocks": """(float[1,s,4,4] x) => (float[1,m,8,8] y) {
        y = DepthToSpace<blocksize=2>(x) }""",
    "the best of a branch, of which there may be fewer": """(float[s] x, bool c) => (float[5] y)
        <int64[1] five = {5}, float[5] none = {@5}> {
        y = If(c) <then_branch = yes () => (float[5] v) { v, i = TopK(x, five) },
        else_branch = no () => (float[5] w) { w = Identity(none) }> }""",
    "a data-dependent size": """(float[s,2] x, int64[2] t) => (float[m,n] y) {
        y = Reshape(x, t) }""",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_proven_is_refused_and_the_node_is_named(name: str) -> None:
    with pytest.raises(Error) as e:
        opened(model_of(f"g {REFUSED[name]}"), SEQ)
    assert e.value.where
    assert "--dim" in e.value.hint


def test_an_operator_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rules.RULES, "Trilu")
    with pytest.raises(Error, match="Trilu is not known to work with open sizes"):
        opened(model_of("g (float[s,s] x) => (float[s,s] y) { y = Trilu(x) }"), SEQ)


NONE = {
    "the word before": """(float[2,s,3] x) => (float[2,s,6] y)
        <int64[1] one = {1}, int64[1] nil = {0}, int64[1] end = {-1},
        int64[6] pads = {0,1,0,0,0,0}> {
        before = Slice(x, nil, end, one) b = Pad(before, pads) y = Concat<axis=-1>(b, x) }""",
    "products, and softmax": """(float[2,s,3] x) => (float[2,m,m] a, float[2,m,3] y, float[2,3,3] z)
        <int64[1] one = {1}, int64[1] far = {99999999999}> {
        r = Slice(x, one, far, one) t = Transpose<perm=[0,2,1]>(r) a = MatMul(r, t)
        w = Softmax<axis=-1>(a) y = MatMul(w, r) z = MatMul(t, r) }""",
    "reshapes that move elements": """(float[s,h,4] x) => (float[n] y, float[k,l] z)
        <int64[1] one = {1}, int64[1] nil = {0}, int64[1] far = {99999999999},
        int64[1] all = {-1}> {
        r = Slice(x, one, far, nil) y = Reshape(r, all) t = Transpose<perm=[1,0,2]>(r)
        sh = Shape(t) k = Slice(sh, nil, one) l = Slice(sh, one, far) p = ReduceProd(l)
        kl = Concat<axis=0>(k, p) z = Reshape(t, kl) }""",
    "running sums, and elements by index": """(float[s,4] x) => (float[n,4] y, float[n,4] z,
        float[s,4] w) <int64[1] one = {1}, int64[1] nil = {0}, int64[1] far = {99999999999},
        int64 zero = {0}> {
        r = Slice(x, one, far, nil) y = CumSum(r, zero) z = CumSum<reverse=1>(r, zero)
        none = Sub(r, r) at = Cast<to=7>(none)
        w = ScatterElements<axis=0, reduction="add">(x, at, r) }""",
    "sums, rows by index, pieces": """(float[s,4] x, int64[2] i) => (float[4] y, float[n,2] z,
        float[m,4] w) <int64[1] one = {1}, int64[1] nil = {0}, int64[1] far = {99999999999}> {
        r = Slice(x, one, far, nil) y = ReduceSum<keepdims=0>(r, nil) at = Mod(i, four)
        four = Constant<value_int=4>() z = Gather<axis=1>(r, at) n = Exp(r)
        w = Concat<axis=0>(r, n, x) }""",
}
"""Of what they compute with there is nothing where s is 1."""


@pytest.mark.parametrize("name", NONE)
def test_a_size_inside_may_be_0(name: str) -> None:
    ranges = {"s": (1, 6), "h": (1, 3)} if "float[s,h" in NONE[name] else {"s": (1, 6)}
    made = check(f"g {NONE[name]}", ranges)
    assert 1 in [s.low for s in made.symbols]


def test_the_greatest_of_nothing_is_refused() -> None:
    source = NONE["sums, rows by index, pieces"].replace("ReduceSum", "ReduceMax")
    with pytest.raises(Error, match=r"the size s - 1 of float32\[s - 1,4\] may be below 1"):
        opened(model_of(f"g {source}"), {"s": (1, 6)})
    check(f"g {source}", {"s": (2, 6)})


LESS = """g (float[s,4] x, float[h,4] z) => (float[n,4] y, float[h,4] t) {
    sh = Shape(z) k = Gather(sh, at) f = Constant<value_ints=[99999999999]>() y = Slice(x, k, f, at)
    t = Neg(z) }"""


def test_a_size_that_shrinks_with_another_is_refused() -> None:
    """At the ends of ranges, s - h is not as large as it may be; memory would not do for it."""
    text = LESS.replace(") {", ") <int64[1] at = {0}> {", 1)
    with pytest.raises(Error, match="-h \\+ s is not largest where all sizes are"):
        opened(model_of(text), {"s": (10, 20), "h": (1, 5)})
    check(text.replace("float[h,4]", "float[5,4]"), {"s": (10, 20)})


def test_bounds_of_products_are_found_though_there_are_many_runs() -> None:
    symbols = [Symbol("s", 3, 90_000, 9), Symbol("b", 1, 50_000, 8)]
    p = Padding(symbols)
    q = (Size.of("s") + 1) // 4 - Size.of("s") // 4 + Size.of("s") // 3
    assert p.at_least(q, 1)
    assert not p.at_least(q, 2)
    assert p.at_least(q * "b", 1)
    assert not p.at_least(q * "b" - 2, 0)
    p.demand_largest(Size.of("s") * "b" * "b" - Size.of("b") * "b" * 2)
    with pytest.raises(Error, match="is not largest"):
        p.demand_largest((100 - Size.of("s") // 900) * Size.of("b"))


def test_a_size_that_repeats_is_as_large_as_its_sizes_need() -> None:
    """s - 4*(s // 4), 0 for 4, is largest at the end of 1 to 7, and of no smaller range."""
    text = """g (float[s,4] x) => (float[n,4] y) <int64[1] four = {4}, int64[1] at = {0}> {
        sh = Shape<end=1>(x) q = Div(sh, four) k = Mul(q, four)
        f = Constant<value_ints=[99999999999]>() y0 = Slice(x, k, f, at)
        pads = Constant<value_ints=[1,0,0,0]>() y = Pad(y0, pads) }"""
    check(text, {"s": (1, 7)})
    shifted = text.replace("Div(sh, four)", "Div(less, four)").replace(
        "q = ", "one = Constant<value_ints=[1]>() less = Sub(sh, one) q = "
    )
    check(shifted, {"s": (1, 8)})
    graph = read_pinned(model_of(shifted), {}, {"s": "1..32"}, False, {"s": Size.of("s")})
    sizes = Paddings(graph, [Symbol("s", 1, 32, 10)], one=False)
    assert isinstance(sizes.at((16,)), Result)
    assert isinstance(sizes.at((10,)), Skip)  # 9 needs more
    with pytest.raises(Error, match="is not largest"):
        opened(model_of(shifted), {"s": (1, 6)})
