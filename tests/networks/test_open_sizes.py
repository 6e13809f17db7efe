"""Artifacts with open sizes answer for every size as those for that size do, with NaN wherever
nothing counts.
"""

import resource
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler import Error
from qcompiler.artifact.manifest import Symbol
from qcompiler.driver import Compilation
from qcompiler.ir import Array
from qcompiler.onnx_io.dims import error_as_asked, read_pinned
from qcompiler.ops import evaluate
from qcompiler.options import Options, Watch
from qcompiler.runtime import Model, open_sizes
from qcompiler.runtime.open_batch import sizes_of
from tests.onnx_io.test_given_open import CASES, check_runs, model_and_ranges
from tests.rewrite.test_padding import IMAGE, IMAGES, SEQ, SEQUENCES, model_of, random_feed
from tests.rewrite.test_padding_rules import MORE
from tests.runtime.test_variants import forged, parts_of

LAYER = """
    q0{i} = MatMul(x{i}, wq) q1{i} = Add(q0{i}, b) q2{i} = Reshape(q1{i}, heads)
    q{i} = Transpose<perm=[0,2,1,3]>(q2{i})
    k0{i} = MatMul(x{i}, wk) k1{i} = Add(k0{i}, c) k2{i} = Reshape(k1{i}, heads)
    k{i} = Transpose<perm=[0,2,3,1]>(k2{i})
    v0{i} = MatMul(x{i}, wv) v1{i} = Add(v0{i}, b) v2{i} = Reshape(v1{i}, heads)
    v{i} = Transpose<perm=[0,2,1,3]>(v2{i})
    s0{i} = MatMul(q{i}, k{i}) s1{i} = Mul(s0{i}, half) s2{i} = Add(s1{i}, bias)
    p{i} = Softmax<axis=-1>(s2{i}) o0{i} = MatMul(p{i}, v{i})
    o1{i} = Transpose<perm=[0,2,1,3]>(o0{i}) o2{i} = Reshape(o1{i}, back)
    r0{i} = MatMul(o2{i}, wo) r1{i} = Add(r0{i}, x{i})
    n{i} = LayerNormalization<axis=-1>(r1{i}, g, b)
    f0{i} = MatMul(n{i}, wk) f1{i} = Gelu(f0{i}) f2{i} = MatMul(f1{i}, wq) f3{i} = Add(f2{i}, n{i})
    x{j} = LayerNormalization<axis=-1>(f3{i}, g, c)
"""
ENCODER = f"""(int64[batch,seq] ids, int64[batch,seq] keep) =>
    (float[batch,seq,16] h, float[batch,16] y)
    <float[7,16] words = {{@112}}, float[1,48,16] table = {{@768}}, float[16,16] wq = {{@256}},
     float[16,16] wk = {{@256}}, float[16,16] wv = {{@256}}, float[16,16] wo = {{@256}},
     float[16] b = {{@16}}, float[16] c = {{@16}}, float[16] g = {{@16}}> {{
    shape = Shape(ids) one = Constant<value_ints=[1]>() zero = Constant<value_ints=[0]>()
    seq = Gather(shape, one) four = Constant<value_ints=[4]>() wide = Constant<value_ints=[16]>()
    batch = Gather(shape, zero) heads = Concat<axis=0>(batch, seq, four, four)
    back = Concat<axis=0>(batch, seq, wide) half = Constant<value_float=0.5>()
    e = Gather(words, ids) p = Slice(table, zero, seq, one) x0 = Add(e, p)
    axes = Constant<value_ints=[1,2]>() m0 = Unsqueeze(keep, axes) m1 = Cast<to=1>(m0)
    all = Constant<value_float=1.0>() m2 = Sub(all, m1) low = Constant<value_float=-3.4e38>()
    bias = Mul(m2, low) {LAYER.format(i=0, j=1)} {LAYER.format(i=1, j=2)}
    h = Identity(x2) y = ReduceMean<keepdims=0>(x2, one) }}"""
LENGTHS = (1, 2, 15, 16, 17, 23, 33, 48, 5)
"""One, a vector less one to one more, primes, the most; then fewer again."""


@pytest.fixture(autouse=True)
def nan_behind_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_sizes, "BEHIND", {"f": float("nan"), "i": 1})


def encoder() -> onnx.ModelProto:
    return model_of(f"g {ENCODER}")


def sentence(batch: int, length: int) -> dict[str, Array]:
    """Ids, and which of them count; of the first sample none do."""
    random = np.random.default_rng(length)
    keep = (random.random((batch, length)) < 0.7).astype(np.int64)
    keep[0] = 0
    return {"ids": random.integers(0, 7, (batch, length)), "keep": keep}


def meant(model: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
    shapes = {k: v.shape for k, v in feed.items()}
    return evaluate(read_pinned(model, shapes, {}, False, {}), feed)


def answers(
    model: Model, feed: Mapping[str, Array], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Array]]:
    """What each of the sizes answers that kernels were made for and these fit, the largest last."""
    found = []
    sizes = sizes_of(model.manifest, [feed[v.name].shape for v in model.inputs]).values()
    for at, pinned in enumerate(reversed(model.variant.pinned)):
        if any(n > most for n, most in zip(sizes, pinned.sizes, strict=True)):
            continue
        with monkeypatch.context() as patch:
            patch.setattr(open_sizes.Sizes, "fitting", lambda self, _, at=at: self._pinned[at])
            patch.setattr(model, "_sizes", open_sizes.Sizes(model.manifest, model.variant))
            found.append(model.run(feed))
    return found


@pytest.mark.parametrize("name", ["masked attention", "LSTM", "reductions", "pieces", "last"])
def test_an_artifact_takes_sequences_of_any_length(name: str) -> None:
    compare(f"g {SEQUENCES[name]}", SEQ)


@pytest.mark.parametrize("name", ["convolutions", "patches"])
def test_an_artifact_takes_images_of_any_size(name: str) -> None:
    compare(f"g {IMAGES[name]}", IMAGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_operands_that_a_run_is_given_hold_in_artifacts(name: str) -> None:
    model, ranges = model_and_ranges(name)
    dims = {k: f"{low}..{high}" for k, (low, high) in ranges.items()}
    made = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1))
    check_runs(name, lambda feed, _: made.run(feed)["y"])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_rules_hold_in_artifacts(name: str) -> None:
    text, ranges, opset = MORE[name]
    compare(f"g {text}", ranges, opset)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEQUENCES, *IMAGES])
def test_every_rule_holds_in_artifacts(name: str) -> None:
    compare(f"g {SEQUENCES.get(name) or IMAGES[name]}", SEQ if name in SEQUENCES else IMAGE)


def compare(text: str, ranges: Mapping[str, tuple[int, int]], opset: int = 23) -> None:
    model = model_of(text, opset)
    dims = {k: f"{low}..{high}" for k, (low, high) in ranges.items()}
    opened = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1))
    each = [sorted({low, (low + high) // 2, high}) for low, high in ranges.values()]
    for seed, numbers in enumerate(product(*each)):
        sizes = dict(zip(ranges, numbers, strict=True))
        feed = random_feed(model, sizes, seed)
        found = opened.run(feed)
        for key, value in meant(model, feed).items():
            np.testing.assert_allclose(found[key], value, 2e-3, 2e-4, err_msg=f"{key} at {sizes}")


def test_an_encoder_takes_texts_of_any_length() -> None:
    model = encoder()
    artifact = qcompiler.compile(model, dims={"batch": 2, "seq": "1..48"}, threads=1)
    opened = qcompiler.load(artifact)
    assert len(artifact.manifest.variants[0].pinned) > 1
    assert "attention" in " ".join(s.kernel for s in artifact.manifest.steps)
    for length in LENGTHS:
        feed = sentence(2, length)
        found = opened.run(feed)
        for name, value in meant(model, feed).items():
            assert found[name].shape == value.shape
            np.testing.assert_allclose(found[name], value, 1e-4, 1e-4, err_msg=f"{length}")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("precision", "error"), [("bfloat16", 0.05), ("int8-weights", 1e-4), ("int8-dynamic", 0.01)]
)
def test_an_encoder_of_few_bits_is_as_one_of_that_length(
    precision: str, error: float, batch: int
) -> None:
    options = {"precision": precision, "threads": 1}
    dims = {"batch": batch, "seq": "1..48"}
    opened = qcompiler.load(qcompiler.compile(encoder(), dims=dims, **options))
    for length in (15, 33):
        pinned = {"batch": batch, "seq": length}
        alone = qcompiler.load(qcompiler.compile(encoder(), dims=pinned, **options))
        feed = sentence(batch, length)
        found, wanted = (m.run(feed)["h"].astype(np.float32) for m in (opened, alone))
        assert np.linalg.norm(found - wanted) <= error * np.linalg.norm(wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_text_costs_what_its_words_do(threads: int) -> None:
    """One plan has all lengths but 1: its kernels end where the words do."""
    model = encoder()
    dims = {"batch": 1, "seq": "1..48"}
    made = Compilation(model, Options(dims=dims, threads=threads), Watch())
    many = replace(made.device, core=replace(made.device.core, launch_ns=1e-6, wake_ns=1e-6))
    opened = qcompiler.load(made.having(device=many).artifact, threads=threads)
    assert [p.sizes for p in opened.variant.pinned] == [(48,), (1,)]
    for length in (*range(48, 0, -1), 31, 47):
        feed = sentence(1, length)
        found = opened.run(feed)
        for name, value in meant(model, feed).items():
            np.testing.assert_allclose(found[name], value, 1e-4, 1e-4, err_msg=f"{length}")


def test_texts_of_any_length_and_number(tmp_path: Path) -> None:
    dims = {"batch": "1..5", "seq": "1..24"}
    saved = qcompiler.compile(encoder(), dims=dims, threads=1).save(tmp_path / "encoder.qc")
    opened = qcompiler.load(saved)
    assert str(opened.inputs[0]) == "ids: int64[batch,seq]"
    for batch, length in ((1, 1), (5, 24), (3, 17), (2, 2)):
        feed = sentence(batch, length)
        found = opened.run(feed)
        for name, value in meant(encoder(), feed).items():
            np.testing.assert_allclose(found[name], value, 1e-4, 1e-4)


def test_an_encoder_is_calibrated_with_texts_of_different_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = [sentence(1, length) for length in (3, 9, 17, 24, 30, 40, 48)]
    dims = {"batch": 1, "seq": "1..48"}
    options = {"opt_dims": {"seq": 16}, "precision": "int8", "threads": 1}
    made = qcompiler.compile(encoder(), dims=dims, calibration=data, **options)
    opened = qcompiler.load(made)
    for length in (1, 16, 17, 48):
        feed = sentence(1, length)
        y, wanted = opened.run(feed)["y"], meant(encoder(), feed)["y"]
        assert np.abs(y - wanted).max() < 0.2 * np.abs(wanted).max()
    *smaller, largest = answers(opened, sentence(1, 5), monkeypatch)
    assert smaller
    for found, (key, value) in product(smaller, largest.items()):
        # Softmax and norms are float: its last bits may move a value by a step of 256.
        np.testing.assert_allclose(found[key], value, atol=0.02 * np.abs(value).max())


DYNAMIC = """g (float[s,24] x) => (float[s,5] y, float scale)
    <int8[24,5] w = {@}, float step = {0.01}> {
    q, scale, zero = DynamicQuantizeLinear(x) sums = MatMulInteger(q, w, zero)
    real = Cast<to=1>(sums) both = Mul(scale, step) y = Mul(real, both) }"""


def test_scales_of_a_run_see_nothing_behind_its_ends() -> None:
    """Of whole tensors, as onnxruntime quantizes models, and of rows, as int8-dynamic does."""
    random = np.random.default_rng(5)
    weights = ",".join(map(str, random.integers(-127, 128, 120)))
    text = model_of(DYNAMIC.replace("@", weights))
    opened = qcompiler.load(qcompiler.compile(text, dims={"s": "1..40"}, threads=1))
    for length in (1, 7, 33, 40):
        feed = {"x": random.standard_normal((length, 24)).astype(np.float32)}
        for name, value in meant(text, feed).items():
            np.testing.assert_allclose(opened.run(feed)[name], value, 1e-5, err_msg=f"{length}")
    rows = model_of("g (float[s,24] x) => (float[s,24] y) <float[24,24] w = {@576}> "
                    "{ y = MatMul(x, w) }")  # fmt: skip
    options = {"precision": "int8-dynamic", "threads": 1}
    opened = qcompiler.load(qcompiler.compile(rows, dims={"s": "1..40"}, **options))
    assert "i8" in " ".join(s.kernel for s in opened.variant.steps)
    for length in (1, 7, 33, 40):
        alone = qcompiler.load(qcompiler.compile(rows, dims={"s": length}, **options))
        feed = {"x": random.standard_normal((length, 24)).astype(np.float32)}
        np.testing.assert_array_equal(opened.run(feed)["y"], alone.run(feed)["y"])


def test_sizes_that_do_not_fit_are_refused() -> None:
    dims = {"batch": 1, "seq": "2..16"}
    opened = qcompiler.load(qcompiler.compile(encoder(), dims=dims, threads=1))
    for feed, words in (
        (sentence(1, 17), "seq is 17, the artifact takes seq = 2 to 16"),
        (sentence(1, 1), "seq is 1"),
        ({"ids": sentence(1, 3)["ids"], "keep": sentence(1, 4)["keep"]}, "not the same in all"),
        (sentence(2, 3), "shape"),
    ):
        with pytest.raises(Error, match=words):
            opened.run(feed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dims": {"batch": 1, "seq": "1.."}}, "no upper bound"),
        ({"dims": {"batch": 1, "seq": "1..64"}}, "may reach beyond"),
    ],
)
def test_what_cannot_stay_open_is_refused(options: dict, words: str) -> None:
    with pytest.raises(Error, match=words):
        qcompiler.compile(encoder(), **options)


def test_a_refusal_names_sizes_that_may_be_0_as_they_were_asked_for() -> None:
    model = model_of("""g (float[1,2,h,w] x) => (float[1,2,w] y) {
        a = Sqrt(x) axis = Constant<value_ints=[2]>() y = ReduceMax<keepdims=0>(a, axis) }""")
    with pytest.raises(Error) as refused:
        qcompiler.compile(model, dims={"h": "0..8", "w": "2..8"})
    assert refused.value.what.endswith("the size h of float32[1,2,h,w] may be below 1")
    sizes = "2*h - 2 and h*w, h*((w)//(2)) - 1, ((h + 1)//(2)) of 3 to w"
    said = error_as_asked(Error(sizes), [Symbol("h", 0, 8, 8), Symbol("w", 2, 8, 8)])
    assert said.what == "2*h and h*w + w, (h + 1)*((w)//(2)) - 1, ((h + 2)//(2)) of 3 to w"


def test_an_axis_that_a_run_is_given_is_checked_in_runs_of_any_size() -> None:
    model = model_of("g (float[2,s,3] x, int64[1] a) => (float[2,1,3] y) { y = ReduceSum(x, a) }")
    opened = qcompiler.load(qcompiler.compile(model, dims={"s": "2..9"}, threads=1))
    for length in (2, 5, 9):
        x = random_feed(model, {"s": length}, length)["x"]
        found = opened.run({"x": x, "a": np.array([1])})["y"]
        np.testing.assert_allclose(found, x.sum(1, keepdims=True), 1e-5, 1e-5)
        with pytest.raises(Error, match="its axes do not give the shape"):
            opened.run({"x": x, "a": np.array([0])})


SELECTED = """g (float[1,1,h,w] x) => (int64[4,n] places, float[m] values) {
    sizes = Constant<value_ints=[1,1,4,4]>() r = Resize<mode="linear">(x, , , sizes)
    zero = Constant<value_float=0.0>() above = Greater(r, zero) places = NonZero(above)
    flat = Constant<value_ints=[-1]>() f = Reshape(above, flat) v = Reshape(r, flat)
    values = Compress(v, f) }"""


def test_data_select_from_what_is_of_one_size_in_images_of_any() -> None:
    model = model_of(SELECTED)
    dims = {"h": "3..9", "w": "3..9"}
    opened = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1))
    for h, w in ((3, 9), (9, 9), (5, 4)):
        feed = random_feed(model, {"h": h, "w": w}, h * w)
        found = opened.run(feed)
        for name, value in meant(model, feed).items():
            assert found[name].shape == value.shape
            np.testing.assert_allclose(found[name], value, 1e-4, 1e-5)


PYRAMID = """(float[1,3,h,w] x) => (float[1,7,h,w] y, float[1,n,4] z)
    <float[4,12,3,3] k = {@432}, float[4,4,3,3] l = {@144}> {
    zero = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>()
    two = Constant<value_ints=[2]>() far = Constant<value_ints=[9223372036854775807]>()
    three = Constant<value_ints=[3]>() flat = Constant<value_ints=[1,4,-1]>()
    scales = Constant<value_floats=[1.0,1.0,4.0,4.0]>()
    r0 = Slice(x, zero, far, two, two) r1 = Slice(x, one, far, two, two)
    a = Slice(r0, zero, far, three, two) b = Slice(r0, one, far, three, two)
    c = Slice(r1, zero, far, three, two) d = Slice(r1, one, far, three, two)
    focus = Concat<axis=1>(a, b, c, d) fine = Conv<pads=[1,1,1,1]>(focus, k)
    coarse = Conv<pads=[1,1,1,1], strides=[2,2]>(fine, l)
    up = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor">(coarse, , scales)
    y = Concat<axis=1>(up, x)
    p = Reshape(coarse, flat) q = Reshape(fine, flat) places = Concat<axis=2>(p, q)
    z = Transpose<perm=[0,2,1]>(places) }"""
"""Every second row beside every other one, a level above one of half its size: multiples of 4."""


def test_a_pyramid_takes_multiples_and_is_refused_without_a_step(tmp_path: Path) -> None:
    model = model_of(f"g {PYRAMID}")
    with pytest.raises(Error, match="only equal for some sizes") as refused:
        qcompiler.compile(model, dims={"h": "4..12", "w": "4..12"}, threads=1)
    assert "LO..HI:STEP" in refused.value.hint
    made = qcompiler.compile(model, dims={"h": "4..12:4", "w": "4..12:4"}, threads=1)
    assert [str(s) for s in made.manifest.symbols] == [f"{k} = 4 to 12 in steps of 4" for k in "hw"]
    opened = qcompiler.load(made.save(tmp_path / "pyramid.qc"))
    assert [str(v) for v in opened.inputs] == ["x: float32[1,3,h,w]"]
    for h, w in product((4, 8, 12), repeat=2):
        feed = random_feed(model, {"h": h, "w": w}, h * w)
        found = opened.run(feed)
        for key, value in meant(model, feed).items():
            assert found[key].shape == value.shape
            np.testing.assert_allclose(found[key], value, 2e-3, 2e-4, err_msg=f"{key} {h}x{w}")
    for h, w in ((8, 10), (6, 8), (16, 8)):
        with pytest.raises(Error, match=r"takes [hw] = 4 to 12 in steps of 4"):
            opened.run(random_feed(model, {"h": h, "w": w}, 1))


@pytest.mark.parametrize("step", [None, 1, 2, 0, 5])
def test_a_manifest_with_another_step_is_refused(step: int | None, tmp_path: Path) -> None:
    """None: as a runtime that does not know of steps reads it."""
    text = "g (float[1,s] x) => (float[1,s] y) { y = Relu(x) }"
    made = qcompiler.compile(model_of(text), dims={"s": "4..12:4"}, threads=1)
    manifest, others = parts_of(made.save(tmp_path / "made.qc"))
    if step is None:
        del manifest["symbols"][0]["step"]
    else:
        manifest["symbols"][0]["step"] = step
    with pytest.raises(Error):
        qcompiler.load(forged(tmp_path / "made.qc", manifest, others))


@pytest.mark.parametrize(
    ("dims", "opt_dims", "words"),
    [
        ("4..21:4", {}, "21 is no multiple of the step 4"),
        ("5..20:4", {}, "5 is no multiple of the step 4"),
        ("4..:4", {}, "no range of sizes from 4 by 4"),
        ("4..20:0", {}, "no range of sizes from 4 by 0"),
        ("4:4", {}, "'4:4' is no range of sizes"),
        ("4..20:4", {"h": 6}, "6 is no multiple of the step 4"),
    ],
)
def test_a_step_that_does_not_fit_its_range_is_refused(
    dims: str, opt_dims: dict[str, int], words: str
) -> None:
    with pytest.raises(Error, match=words):
        qcompiler.compile(model_of(f"g {PYRAMID}"), dims={"h": dims, "w": 4}, opt_dims=opt_dims)


def test_samples_are_multiples_of_the_step_too() -> None:
    text = "g (float[1,2,s] x) => (float[1,2,s] y) <float[2,2,1] k = {@4}> { y = Conv(x, k) }"
    model, dims = model_of(text), {"s": "8..16:4"}
    good = [random_feed(model, {"s": s}, s) for s in (8, 12, 16)]
    opened = qcompiler.load(
        qcompiler.compile(model, dims=dims, precision="int8", calibration=good, threads=1)
    )
    y, wanted = opened.run(good[1])["y"], meant(model, good[1])["y"]
    assert np.abs(y - wanted).max() < 0.1 * np.abs(wanted).max()
    bad = [*good, random_feed(model, {"s": 10}, 1)]
    with pytest.raises(Error, match="s is 10 in a sample, and is to be s = 8 to 16 in steps of 4"):
        qcompiler.compile(model, dims=dims, precision="int8", calibration=bad, threads=1)


def test_a_batch_may_be_a_multiple() -> None:
    text = """g (float[batch,3] x) => (float[half,6] y) { s = Constant<value_ints=[-1,6]>()
        r = Reshape(x, s) y = Tanh(r) }"""
    model = model_of(text)
    opened = qcompiler.load(qcompiler.compile(model, dims={"batch": "2..8:2"}, threads=1))
    for batch in (2, 4, 8):
        feed = random_feed(model, {"batch": batch}, batch)
        np.testing.assert_allclose(opened.run(feed)["y"], meant(model, feed)["y"], 1e-5, 1e-5)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_memory_stays_flat_over_many_sizes() -> None:
    """400 pairs of sizes, twice: what Python and numpy hold, and what the process does."""
    source = SEQUENCES["attention"].replace("float[2,s,8]", "float[b,s,8]")
    dims = {"b": "1..20", "s": "1..20"}
    model = qcompiler.load(qcompiler.compile(model_of(f"g {source}"), dims=dims, threads=1))
    x = np.random.default_rng(0).random((20, 20, 8), np.float32)

    def all_sizes() -> tuple[int, int]:
        for b, s in product(range(1, 21), range(1, 21)):
            model.run({"x": x[:b, :s]})
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return tracemalloc.get_traced_memory()[0], pages * resource.getpagesize()

    tracemalloc.start()
    try:
        first, second = all_sizes(), all_sizes()
    finally:
        tracemalloc.stop()
    assert second[0] - first[0] < 64 << 10
    assert second[1] - first[1] < 4 << 20
