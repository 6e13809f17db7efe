"""Sizes of different names that must be equal: one is replaced by the other, and runs check it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest

import qcompiler
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import CHECK
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops import evaluate
from tests.oracles import session
from tests.rewrite.test_padding import behind_nan, model_of, opened, random_feed

Sizes = dict[str, int]
Ranges = Mapping[str, tuple[int, int]]

HEADS = """g (float[2,n,w] q, float[2,k,w] x) => (float[2,n,w] y) {
    y = Attention<q_num_heads=3, kv_num_heads=3>(q, x, x) }"""
CHANNELS = """g (float[1,c,n] x) => (float[1,3,m] y) <float[3,4,2] w = {@24}>
    { y = Conv(x, w) }"""

LEAST = (
    "g (float[2,n] x, float[k] y) => (float[2,k] v) { k = Shape(y) v, i = TopK(x, k) }",
    {"n": "1..9", "k": "1..4"},
)

CASES: dict[str, tuple[str, Ranges, str]] = {
    "two names of a batch": (
        "g (float[a,3] x, float[b,2] y) => (float[a,5] z) { z = Concat<axis=1>(x, y) }",
        {"a": (1, 5), "b": (1, 9)},
        "a == b",
    ),
    "two names of a batch, the last the smaller": (
        "g (float[a,3] x, float[b,2] y) => (float[a,5] z) { z = Concat<axis=1>(x, y) }",
        {"a": (1, 9), "b": (1, 5)},
        "a == b",
    ),
    "what is summed": (
        "g (float[a,k] x, float[l,b] y) => (float[a,b] z) { z = MatMul(x, y) }",
        {"a": (1, 4), "k": (1, 6), "l": (1, 6), "b": (1, 3)},
        "k == l",
    ),
    "channels of weights": (CHANNELS, {"c": (1, 7), "n": (2, 9)}, "c == 4"),
    "a kernel that an attribute names": (
        """g (float[1,2,n] x, float[3,2,k] w) => (float[1,3,m] y) {
        y = Conv<kernel_shape=[3]>(x, w) }""",
        {"n": (3, 9), "k": (1, 6)},
        "k == 3",
    ),
    "heads": (HEADS, {"n": (1, 5), "k": (1, 4), "w": (3, 13)}, "w % 3 == 0"),
    "heads of two widths": (
        """g (float[2,n,v] q, float[2,n,w] x) => (float[2,n,u] y) {
        y = Attention<q_num_heads=4, kv_num_heads=2>(q, x, x) }""",
        {"n": (1, 5), "v": (4, 13), "w": (2, 7)},
        "v == 2 * w and w % 2 == 0",
    ),
    "a length and its parts": (
        """g (float[2,p] x, float[2,n] y, float[2,t] z) => (float[2,t] s) {
        c = Concat<axis=1>(x, y) s = Add(c, z) }""",
        {"p": (1, 4), "n": (2, 5), "t": (2, 9)},
        "t == p + n",
    ),
    "rotated heads": (
        """g (float[2,2,n,w] x, float[2,n,h] c, float[9,h] t, int64[2,n] i, float[2,n,1] f) =>
        (float[2,2,n,w] y, float[2,2,n,w] z, float[2,2,n,w] u) {
        k = Constant<value_ints=[9]>() j = Mod(i, k) y = RotaryEmbedding(x, c, c)
        z = RotaryEmbedding<interleaved=1>(x, t, t, j)
        u = RotaryEmbedding<rotary_embedding_dim=2>(x, f, f) }""",
        {"n": (1, 4), "w": (2, 9), "h": (1, 5)},
        "w == 2 * h",
    ),
    "rotated heads of a width": (
        """g (float[2,n,w] x, float[m,h] t, int64[2,n] i) => (float[2,n,w] y) {
        k = Constant<value_ints=[4]>() j = Mod(i, k)
        y = RotaryEmbedding<num_heads=3>(x, t, t, j) }""",
        {"n": (1, 3), "w": (6, 13), "h": (1, 3), "m": (4, 5)},
        "w == 6 * h",
    ),
    "a product of sizes": (
        """g (float[a,b] x) => (float[3,4] y) {
        s = Constant<value_ints=[3,4]>() y = Reshape(x, s) }""",
        {"a": (1, 12), "b": (1, 12)},
        "a * b == 12",
    ),
    "sizes that are added": (
        "g (float[a] x, float[b] y) => (float[a] z) { z = Add(x, y) }",
        {"a": (2, 6), "b": (2, 7)},
        "a == b",
    ),
    "a size above 1, and a number": (
        "g (float[a] x) => (float[4] y) <float[4] w = {@4}> { y = Add(x, w) }",
        {"a": (2, 6)},
        "a == 4",
    ),
    "a slope": (
        "g (float[a,b] x) => (float[a,b] y) <float[4] w = {@4}> { y = PRelu(x, w) }",
        {"a": (1, 3), "b": (1, 6)},
        "b == 4",
    ),
    "real and imaginary parts": (
        "g (float[n,4,c] x) => (float[n,4,2] y) { y = DFT(x) }",
        {"n": (1, 5), "c": (2, 4)},
        "c == 2",
    ),
    "indices of elements": (
        """g (float[3,3] x, int64[n,d] i, float[n] u) => (float[3,3] y) {
        k = Constant<value_ints=[3]>() j = Mod(i, k) y = ScatterND<reduction="add">(x, j, u) }""",
        {"n": (1, 4), "d": (1, 3)},
        "d == 2",
    ),
    "grouped heads": (
        """g (float[1,q,n,4] x, float[1,k,m,4] y) => (float[1,q,n,4] z, float[1,q,n,4] c) {
        z = Attention(x, y, y) c = Attention<is_causal=1, scale=0.3>(x, y, y) }""",
        {"q": (3, 12), "k": (1, 3), "n": (1, 3), "m": (1, 3)},
        "q % k == 0",
    ),
    "grouped heads that may be fewer": (
        "g (float[1,q,n,4] x, float[1,k,n,4] y) => (float[1,q,n,4] z) { z = Attention(x, y, y) }",
        {"q": (1, 7), "k": (1, 5), "n": (1, 2)},
        "q % k == 0",
    ),
    "grouped heads of a cache": (
        """g (float[1,q,n,4] x, float[1,k,n,4] y, float[1,k,p,4] past) => (float[1,q,n,4] z,
        float[1,k,t,4] keys, float[1,k,t,4] values) {
        z, keys, values = Attention(x, y, y, , past, past) }""",
        {"q": (4, 9), "k": (1, 3), "n": (1, 2), "p": (1, 3)},
        "q % k == 0",
    ),
    "heads that are repeated": (
        """g (float[2,q,n,3] x, float[2,k,n,3] y) => (float[2,q,n,3] z) {
        heads = Shape<start=1,end=2>(x) own = Shape<start=1,end=2>(y) n = Shape<start=2,end=3>(y)
        times = Div(heads, own) two = Constant<value_ints=[2]>() three = Constant<value_ints=[3]>()
        target = Concat<axis=0>(two, own, times, n, three) u = Unsqueeze(y, two)
        e = Expand(u, target) to = Shape(x) r = Reshape(e, to) z = Sub(x, r) }""",
        {"q": (3, 12), "k": (1, 3), "n": (1, 4)},
        "q % k == 0",
    ),
    "halves of equal width": (
        """g (float[2,n] x) => (float[2,m] y) { a, b = Split<axis=1, num_outputs=2>(x)
        y = Mul(a, b) }""",
        {"n": (4, 11)},
        "n % 2 == 0",
    ),
    "halves of thirds": (
        """g (float[2,n] x) => (float[2,3,m] y) { s = Constant<value_ints=[2,3,-1]>()
        t = Reshape(x, s) a, b = Split<axis=2, num_outputs=2>(t) y = Mul(a, b) }""",
        {"n": (12, 24)},
        "n % 6 == 0",
    ),
    "every second position": (
        """g (float[2,n] x) => (float[2,m] y) { zero = Constant<value_ints=[0]>()
        one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>() end = Shape<start=1>(x)
        a = Slice(x, zero, end, one, two) b = Slice(x, one, end, one, two) y = Mul(a, b) }""",
        {"n": (4, 11)},
        "n % 2 == 0",
    ),
    "the largest of as many as there are": (
        """g (float[2,n] x, float[k] y) => (float[2,k] v, int64[2,k] i,
        float[2,3] w, int64[2,3] j) {
        k = Shape(y) v, i = TopK(x, k) three = Constant<value_ints=[3]>()
        w, j = TopK<largest=0>(x, three) }""",
        {"n": (1, 9), "k": (1, 6)},
        "k <= n and n >= 3",
    ),
    "a table that is as long": (
        """g (float[2,n] x, float[2,t] table) => (float[2,n] y) { end = Shape<start=1>(x)
        zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>()
        rows = Slice(table, zero, end, one) y = Add(x, rows) }""",
        {"n": (1, 5), "t": (1, 7)},
        "n <= t",
    ),
    "positions that are named": (
        """g (float[2,n] x) => (float[2,2] y, float[2] z) { i = Constant<value_ints=[0,3]>()
        y = Gather<axis=1>(x, i) j = Constant<value_int=-5>() z = Gather<axis=1>(x, j) }""",
        {"n": (1, 7)},
        "n >= 5",
    ),
    "what a scan carries": (
        """g (float[a] s, float[t,b] x) => (float[a] e, float[t,b] y) {
        e, y = Scan<num_scan_inputs=1, body = step (float[a] i, float[b] r)
        => (float[b] o, float[b] p) { o = Add(i, r) p = Neg(o) }>(s, x) }""",
        {"a": (2, 4), "t": (1, 3), "b": (2, 5)},
        "a == b",
    ),
    "hidden states": (
        """g (float[n,2,i] x, float[1,9,j] w, float[1,9,h] r) => (float[n,1,2,3] y) {
        y = GRU<hidden_size=3>(x, w, r) }""",
        {"n": (1, 4), "i": (1, 5), "j": (1, 5), "h": (1, 4)},
        "i == j and h == 3",
    ),
}


def runs(ranges: Ranges, condition: str) -> tuple[list[Sizes], list[Sizes]]:
    """Sizes at the ends and between, for which a condition holds, and a few others."""
    each = [
        sorted({n for n in (low, low + 1, 3, 4, 6, high - 1, high) if low <= n <= high})
        for low, high in ranges.values()
    ]
    every = [dict(zip(ranges, numbers, strict=True)) for numbers in product(*each)]
    right = [s for s in every if eval(condition, {}, s)]
    return right, [s for s in every if s not in right][::7]


@pytest.mark.parametrize("name", CASES)
def test_runs_of_equal_sizes_are_exact_and_others_fail(name: str) -> None:
    """In numpy: the model of the largest sizes, with NaN behind what counts."""
    text, ranges, condition = CASES[name]
    model = model_of(text)
    made = opened(model, ranges)
    right, wrong = runs(ranges, condition)
    assert right
    assert wrong
    for seed, sizes in enumerate(right):
        feed = random_feed(model, sizes, seed)
        found = evaluate(made.graph, behind_nan(made.graph, feed, sizes))
        wanted = evaluate(read_pinned(model, {}, sizes, False, {}), feed)
        for output, value in wanted.items():
            cut = found[output][tuple(map(slice, value.shape))]
            np.testing.assert_allclose(cut, value, 2e-4, 2e-5, err_msg=f"{output} at {sizes}")
    for sizes in wrong:
        feed = random_feed(model, sizes, 0)
        with pytest.raises(Error, match="the size"):
            evaluate(made.graph, behind_nan(made.graph, feed, sizes))


CAUSAL = """g (float[b,c,n] x, float[d,1,k] w, float[c] v) => (float[b,c,n] y, float[b,c,m] s,
    float[b,c,n] z, float[b,c,m] t, float[b,3,n] u) {
    y, s = CausalConvWithState(x, w, v) z, t = CausalConvWithState<activation="silu">(y, w, , s)
    p = Concat<axis=2>(s, x) u = Conv<group=3>(p, w) }"""


def test_causal_convolutions_of_any_kernel_keep_states() -> None:
    """The same as ONNX's own function, and a Conv, compute."""
    model = model_of(CAUSAL, 27)
    made = opened(model, {"b": (1, 2), "c": (3, 5), "n": (1, 4), "d": (2, 5), "k": (2, 4)})
    for seed, (n, k) in enumerate(product((1, 2, 4), (2, 3, 4))):
        sizes = {"b": 1 + seed % 2, "c": 3, "n": n, "d": 3, "k": k}
        feed = random_feed(model, sizes, seed)
        found = evaluate(made.graph, behind_nan(made.graph, feed, sizes))
        for output, value in evaluate(read_pinned(model, {}, sizes, False, {}), feed).items():
            cut = found[output][tuple(map(slice, value.shape))]
            np.testing.assert_allclose(cut, value, 2e-4, 2e-5, err_msg=f"{output} at {sizes}")


def compiled(text: str, dims: Mapping[str, str]) -> qcompiler.Artifact:
    return qcompiler.compile(model_of(text), dims=dims, threads=1)


def test_an_artifact_keeps_the_names_and_says_which_sizes_differ(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        made = compiled(CHANNELS, {"c": "1..7", "n": "2..9"})
    assert "the size c can only be 4: " in caplog.text
    assert "(Conv)" in caplog.text
    assert [s.name for s in made.manifest.symbols] == ["c", "n"]
    model = qcompiler.load(made)
    assert model.run({"x": np.ones((1, 4, 5), np.float32)})["y"].shape == (1, 3, 4)
    with pytest.raises(Error, match="the size c is not 4"):
        model.run({"x": np.ones((1, 5, 5), np.float32)})


def test_runs_that_have_too_few_fail_by_name_and_others_go_on() -> None:
    made = compiled(*LEAST)
    model = qcompiler.load(made)
    x = np.random.default_rng(5).permutation(20).reshape(2, 10).astype(np.float32)
    for n, k in ((9, 4), (3, 4), (5, 4), (1, 1), (2, 4), (9, 1), (4, 4)):
        feed = {"x": x[:, :n], "y": np.zeros(k, np.float32)}
        if k > n:
            with pytest.raises(Error, match=r"TopK.*: the size n is below k"):
                model.run(feed)
        else:
            np.testing.assert_array_equal(model.run(feed)["v"], -np.sort(-x[:, :n])[:, :k])


def test_a_range_without_the_only_size_is_refused() -> None:
    with pytest.raises(Error, match="the size c can only be 4, and not 5 to 7"):
        compiled(CHANNELS, {"c": "5..7", "n": "2..9"})


def test_a_size_that_may_be_1_need_not_equal_what_it_is_added_to() -> None:
    text = "g (float[a] x, float[b] y) => (float[a] z) { z = Add(x, y) }"
    with pytest.raises(Error, match="sizes cannot stay open"):
        compiled(text, {"a": "1..6", "b": "2..7"})


def test_what_a_branch_needs_says_nothing_of_runs_that_do_not_take_it() -> None:
    text = """g (float[a,3] x, float[b,3] y, bool c) => (float[a,m] z) {
        z = If(c) <then_branch = yes () => (float[a,m] s) { s = Concat<axis=1>(x, y) },
        else_branch = no () => (float[a,m] t) { t = Concat<axis=1>(x, x) }> }"""
    with pytest.raises(Error, match="dimension 'b' is unknown"):
        compiled(text, {"a": "1..6", "b": "1..6"})


def test_old_operators_add_what_is_of_one_size_unless_they_may_broadcast() -> None:
    add = "g (float[a] x) => (float[m] y) <float[4] w = {@4}> { y = Add(x, w) }"
    graph = read_pinned(model_of(add, 6), {}, {"a": "1..6"}, False, {"a": Size.of("a")})
    assert graph.results["y"].type.shape == (4,)
    spread = model_of(add.replace("Add(", "Add<broadcast=1>(").replace("a]", "3,a]"), 6)
    graph = read_pinned(spread, {}, {"a": "1..6"}, False, {"a": Size.of("a")})
    assert not any(name.startswith(CHECK) for name in graph.results)


HEAD = """nil = Constant<value_int=0>() one = Constant<value_int=1>()
    i0 = Constant<value_ints=[0]>() i1 = Constant<value_ints=[1]>() n1 = Shape<end=1>(x)
    n = Squeeze(n1, i0) p1 = Shape<end=1>(w) p = Squeeze(p1, i0)"""

PLACES = {
    "from the past on": (
        """(float[n,2] x, float[p,2] w) => (float[n,2] y) <float[8,2] t = {@16}> { HEAD
        end = Add(n, p) r = Range(p, end, one) e = Gather(t, r) y = Add(x, e) }""",
        "8 is below n [+] p",
    ),
    "as PyTorch exports arange": (
        """(float[n,2] x, float[p,2] w) => (float[n,2] y) <float[8,2] t = {@16}> { HEAD
        sn = Shape<end=1>(x) ones = ConstantOfShape<value = int64[1] {1}>(sn) z = NonZero(ones)
        r = Squeeze(z, i0) q = Add(r, p) e = Gather(t, q) y = Add(x, e) }""",
        "8 is below n [+] p",
    ),
    "rows and columns": (
        """(float[n,2] x, float[p,2] w) => (float[n,p] y) <float[20] t = {@20}> { HEAD
        a = Range(nil, n, one) b = Range(nil, p, one) six = Constant<value_int=6>()
        c = Mul(a, six) d = Unsqueeze(c, i1) at = Add(d, b) y = Gather(t, at) }""",
        "20 is below 6[*]n [+] p - 6",
    ),
    "of a table of a run": (
        """(float[n,2] x, float[p,2] w) => (float[n,2] y) { HEAD two = Constant<value_int=2>()
        r0 = Range(nil, n, one) r = Add(r0, two) e = Gather(w, r) y = Add(x, e) }""",
        "p is below n [+] 2",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_made_of_sizes_lie_within_what_they_index(name: str) -> None:
    """onnxruntime fails at the same runs."""
    text, why = PLACES[name]
    model = model_of(f"g {text.replace('HEAD', HEAD)}")
    made, engine = opened(model, {"n": (1, 8), "p": (1, 9)}), session(model)
    failed = 0
    for n, p in ((4, 4), (1, 7), (3, 5), (5, 4), (8, 9), (2, 8), (6, 4), (2, 2), (7, 1)):
        feed = random_feed(model, {"n": n, "p": p}, n)
        given = behind_nan(made.graph, feed, {"n": n, "p": p})
        try:
            (want,) = engine.run(None, feed)
        except Exception:
            failed += 1
            with pytest.raises(Error, match=why):
                evaluate(made.graph, given)
            continue
        found = evaluate(made.graph, given)["y"][tuple(map(slice, want.shape))]
        np.testing.assert_array_equal(found, want, f"{n} {p}")
    assert 1 < failed < 8
    assert not opened(model, {"n": (1, 2), "p": (4, 6)}).graph.checks


def test_a_run_that_needs_a_longer_table_names_sizes_as_they_were_asked_for() -> None:
    model = model_of(f"g {PLACES['from the past on'][0].replace('HEAD', HEAD)}")
    dims = {"n": "1..8", "p": "0..9"}
    (what,) = read_pinned(model, {}, dims, False, {k: k for k in dims}).checks
    assert what == "Gather_e (Gather): the size 8 is below n + p"
