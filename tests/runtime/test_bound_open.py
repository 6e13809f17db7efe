"""Caches that grow: a model with an open cache length reads what its last run wrote, in place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops.evaluate import evaluate
from qcompiler.runtime import open_sizes

HEADS, SIZE, WORDS = 2, 4, 7
HEAD = """<ir_version: 10, opset_import: ["": 23]>
step (int64[1,seq] ids, float[1,2,past,4] past_key, float[1,2,past,4] past_value)
  => (float[1,seq,7] scores, float[1,2,all,4] present_key, float[1,2,all,4] present_value) {
  x = Gather(words, ids) apart = Constant<value_ints = [0,0,2,4]>()
  q0 = MatMul(x, wq) q1 = Reshape(q0, apart) q = Transpose<perm = [0,2,1,3]>(q1)
  k0 = MatMul(x, wk) k1 = Reshape(k0, apart) k = Transpose<perm = [0,2,1,3]>(k1)
  v0 = MatMul(x, wv) v1 = Reshape(v0, apart) v = Transpose<perm = [0,2,1,3]>(v1)
"""
TAIL = """
  y1 = Transpose<perm = [0,2,1,3]>(y) flat = Constant<value_ints = [0,0,8]>()
  y2 = Reshape(y1, flat) y3 = Add(y2, x) scores = MatMul(y3, out) }"""
CONCAT = """
  present_key = Concat<axis = 2>(past_key, k) present_value = Concat<axis = 2>(past_value, v)
  kt = Transpose<perm = [0,1,3,2]>(present_key) s0 = MatMul(q, kt)
  half = Constant<value_float = 0.5>() s1 = Mul(s0, half) p = Softmax<axis = -1>(s1)
  y = MatMul(p, present_value)
"""
ATTENTION = """
  y, present_key, present_value = Attention<is_causal = 1>(q, k, v, , past_key, past_value)
"""
CACHES = {"past_key": "present_key", "past_value": "present_value"}


def decoder(body: str, batch: str = "1") -> onnx.ModelProto:
    head = HEAD.replace("float[1,", f"float[{batch},").replace("int64[1,", f"int64[{batch},")
    model = onnx.parser.parse_model(head + body + TAIL)
    rng = np.random.default_rng(2)
    shapes = {"words": (WORDS, 8), "out": (8, WORDS), **dict.fromkeys(("wq", "wk", "wv"), (8, 8))}
    for name, shape in shapes.items():
        value = (rng.standard_normal(shape) / 2).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def meant(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    shapes = {k: v.shape for k, v in feed.items()}
    return evaluate(read_pinned(model, shapes, {}, False, {}), feed)


def empty(batch: int = 1) -> dict[str, Array]:
    return {name: np.zeros((batch, HEADS, 0, SIZE), np.float32) for name in CACHES}


def close(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, 1e-4, 1e-5)


def bound(model: qcompiler.Model) -> qcompiler.runtime.state.Bound:
    (first, second), *more = CACHES.items()
    session = model.bind(first, second)
    for past, present in more:
        session = session.bind(past, present)
    return session


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cache_grows_token_by_token(precision: str) -> None:
    text = decoder(CONCAT)
    dims = {"seq": 1, "past": "0..39"}
    model = qcompiler.load(qcompiler.compile(text, dims=dims, threads=2, precision=precision))
    assert len(model.variant.pinned) > 1
    if precision == "float32":
        assert set(model.variant.in_place) == set(CACHES.items())
    session = bound(model)
    assert session.value("past_key").shape == (1, HEADS, 0, SIZE)
    ids = np.random.default_rng(0).integers(0, WORDS, 40)
    past = empty()
    for token in ids:
        feed = {"ids": np.array([[token]])}
        wanted = meant(text, {**feed, **past})
        found = session.run(feed)
        assert list(found) == ["scores"]
        if precision == "float32":
            close(found["scores"], wanted["scores"])
        else:
            np.testing.assert_allclose(found["scores"], wanted["scores"], 0.1, 0.1)
        past = {k: wanted[v] for k, v in CACHES.items()}
    if precision == "float32":
        close(session.value("past_key"), past["past_key"])
    with pytest.raises(Error, match="past is 40, the artifact takes past = 0 to 39"):
        session.run({"ids": np.array([[1]])})


def test_a_prompt_is_read_at_once_and_what_follows_one_by_one() -> None:
    text = decoder(ATTENTION)
    model = qcompiler.load(
        qcompiler.compile(text, dims={"seq": "1..8", "past": "0..24"}, threads=1)
    )
    session, past = bound(model), empty()
    for count in (5, 1, 1, 8, 3, 1):
        feed = {"ids": np.random.default_rng(count).integers(0, WORDS, (1, count))}
        wanted = meant(text, {**feed, **past})
        close(session.run(feed)["scores"], wanted["scores"])
        past = {k: wanted[v] for k, v in CACHES.items()}
        for name, array in past.items():
            close(session.value(name), array)


def test_caches_are_given_and_taken_back() -> None:
    text = decoder(CONCAT)
    model = qcompiler.load(qcompiler.compile(text, dims={"seq": 1, "past": "0..20"}, threads=1))
    session, other = bound(model), bound(model)
    feed = {"ids": np.array([[3]])}
    for _ in range(4):
        session.run(feed)
    kept = {name: session.value(name) for name in CACHES}
    wanted = session.run(feed)["scores"]
    for name, array in kept.items():
        other.put(name, array)
    np.testing.assert_array_equal(other.run(feed)["scores"], wanted)
    session.reset()
    first = session.run(feed)["scores"]
    close(first, meant(text, {**feed, **empty()})["scores"])
    whole = model.run({**feed, **kept})
    np.testing.assert_array_equal(whole["scores"], wanted)
    assert whole["present_key"].shape == (1, HEADS, 5, SIZE)
    with pytest.raises(Error, match="wanted"):
        other.put("past_key", kept["past_key"][:, :1])
    with pytest.raises(Error, match="float64 given"):
        other.put("past_key", kept["past_key"].astype(np.float64))
    with pytest.raises(Error, match="does not fit"):
        model.bind("past_key", "scores")
    for name, array in kept.items():  # more than there was, and that kernels for few take
        other.put(name, np.tile(array, (1, 1, 5, 1)))
    whole = model.run({**feed, **{n: np.tile(a, (1, 1, 5, 1)) for n, a in kept.items()}})
    np.testing.assert_array_equal(other.run(feed)["scores"], whole["scores"])
    other.put("past_key", kept["past_key"][:, :, :1])
    with pytest.raises(Error, match="past is not the same in all inputs"):
        other.run(feed)


@pytest.fixture(scope="module")
def batched() -> Iterator[qcompiler.Model]:
    """A decoder of which batch, prompt and caches are open; NaN lie behind a prompt's end."""
    text = decoder(ATTENTION, "batch")
    dims = {"batch": "1..5", "seq": "1..4", "past": "0..20"}
    model = qcompiler.load(qcompiler.compile(text, dims=dims, threads=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_sizes, "BEHIND", {"f": np.nan})
        yield model


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_caches_of_an_open_batch_grow_in_place(batched: qcompiler.Model, batch: int) -> None:
    assert set(batched.variant.in_place) == set(CACHES.items())
    session, past = bound(batched), empty(batch)
    held = None
    for count in (3, 1, 1, 4, 4, 4, 2, 1):
        rng = np.random.default_rng(count)
        feed = {"ids": rng.integers(0, WORDS, (batch, count))}
        wanted = batched.run({**feed, **past})
        np.testing.assert_array_equal(session.run(feed)["scores"], wanted["scores"])
        past = {k: wanted[v] for k, v in CACHES.items()}
        for name, array in past.items():
            np.testing.assert_array_equal(session.value(name), array)
        held = held or session._now["past_key"].address
        assert session._now["past_key"].address == session._next["past_key"].address == held
    assert past["past_key"].shape == (batch, HEADS, 20, SIZE)


def test_a_session_has_the_batch_of_its_first_run(batched: qcompiler.Model) -> None:
    text, session = decoder(ATTENTION, "batch"), bound(batched)
    feeds = {n: {"ids": np.random.default_rng(n).integers(0, WORDS, (n, 2))} for n in range(7)}
    for wrong in (0, 6):
        with pytest.raises(Error, match=f"batch is {wrong}, the artifact takes batch = 1 to 5"):
            session.run(feeds[wrong])
    for count in (3, 1, 4):
        close(
            session.run(feeds[count])["scores"],
            meant(text, {**feeds[count], **empty(count)})["scores"],
        )
        with pytest.raises(Error, match=f"batch is 2, and {count} in what is bound") as found:
            session.run(feeds[2])
        assert "reset" in found.value.hint
        kept = {name: session.value(name) for name in CACHES}
        assert kept["past_key"].shape == (count, HEADS, 2, SIZE)
        again = session.run(feeds[count])["scores"]
        with pytest.raises(Error, match="batch is 2, and"):
            session.put("past_key", kept["past_key"][:1].repeat(2, 0))
        session.reset()
        for name, array in kept.items():
            session.put(name, array)
        np.testing.assert_array_equal(session.run(feeds[count])["scores"], again)
        session.reset()


OVERWRITTEN = "half = Constant<value_float = 0.5>() kept = Mul(seen, half) more = Add(kept, x)"
READ_AGAIN = "mixed = MatMul(seen, w) sum = Add(mixed, x) more = Tanh(sum)"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("state", [OVERWRITTEN, READ_AGAIN])
def test_a_state_is_computed_once_for_each_sample(state: str, threads: int) -> None:
    """Where rounds of many samples do not come out even, none of a state that is overwritten may
    begin with samples that are done.
    """
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 23]>
    step (float[batch,64] x, float[batch,64] seen) => (float[batch,64] more, float[batch,64] y) {{
      {state} y = MatMul(x, w) }}""")
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    opened = qcompiler.load(qcompiler.compile(model, dims={"batch": "1.."}, threads=threads))
    most = opened.variant.batches[0].samples
    assert most > 1
    assert opened.variant.in_place == ((("seen", "more"),) if state == OVERWRITTEN else ())
    for batch in (1, most - 1, most, most + 1, 2 * most - 1):
        session, seen = opened.bind("seen", "more"), np.zeros((batch, 64), np.float32)
        for step in range(3):
            x = np.random.default_rng(step).standard_normal((batch, 64)).astype(np.float32)
            wanted = opened.run({"x": x, "seen": seen})
            np.testing.assert_array_equal(session.run({"x": x})["y"], wanted["y"])
            seen = wanted["more"]
            np.testing.assert_array_equal(session.value("seen"), seen)


def test_a_run_that_fails_a_check_leaves_what_was_there() -> None:
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 23]>
    step (float[2,past,3] seen, float[2,1,3] row, int64[1] axis)
      => (float[2,all,3] more, float[2,1,3] y) {
      more = Concat<axis = 1>(seen, row) y = ReduceSum(more, axis) }""")
    opened = qcompiler.load(qcompiler.compile(model, dims={"past": "0..9"}, threads=1))
    assert opened.variant.in_place == ()
    session, row = opened.bind("seen", "more"), np.ones((2, 1, 3), np.float32)
    for count in (1, 2):
        np.testing.assert_array_equal(session.run({"row": row, "axis": [1]})["y"], count * row)
        with pytest.raises(Error, match="its axes do not give the shape"):
            session.run({"row": row, "axis": [0]})
    assert session.value("seen").shape == (2, 2, 3)


@pytest.mark.parametrize("calibration", ["samples", "synthetic"])
def test_a_cache_in_int8_may_be_empty(calibration: str) -> None:
    """It is calibrated with caches of any length, none of them too, and runs with any."""
    text, rng = decoder(CONCAT), np.random.default_rng(4)

    def sample(word: int, length: int) -> dict[str, Array]:
        shape = (1, HEADS, length, SIZE)
        caches = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name in CACHES}
        return {"ids": np.full((1, 1), word), **caches}

    each = [sample(word, length) for word in range(WORDS) for length in (0, 1, 9, 20)]
    given = each if calibration == "samples" else calibration
    dims, how = {"seq": 1, "past": "0..20"}, {"precision": "int8", "calibration": given}
    artifact = qcompiler.compile(text, dims=dims, threads=1, **how)
    model = qcompiler.load(artifact)
    for feed in each:
        found, wanted = model.run(feed), meant(text, feed)
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
        if calibration == "samples":
            np.testing.assert_allclose(found["scores"], wanted["scores"], atol=0.1)
    session = bound(model)
    for length in range(3):
        assert session.value("past_key").shape == (1, HEADS, length, SIZE)
        session.run({"ids": np.full((1, 1), length)})


def test_samples_longer_than_a_cache_may_be_are_refused() -> None:
    caches = {name: np.zeros((1, HEADS, 21, SIZE), np.float32) for name in CACHES}
    with pytest.raises(Error, match="past is 21 in a sample, and is to be past = 0 to 20"):
        qcompiler.compile(
            decoder(CONCAT),
            dims={"seq": 1, "past": "0..20"},
            precision="int8",
            calibration=[{"ids": np.zeros((1, 1), np.int64), **caches}],
        )
