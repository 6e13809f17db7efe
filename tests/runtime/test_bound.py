"""A model that reads what its last run wrote: caches that stay in memory of their own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.errors import Error
from qcompiler.ir import Array

LENGTH, SIZE, WORDS = 6, 4, 5


def decoder() -> onnx.ModelProto:
    """Attention of one token to all tokens so far, in a cache of LENGTH tokens."""
    rng = np.random.default_rng(2)
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 24]>
    step (int64[1,1] ids, int64[1] position, float[1,1,{LENGTH},{SIZE}] past_key,
          float[1,1,{LENGTH},{SIZE}] past_value)
      => (float[1,1,{WORDS}] scores, float[1,1,{LENGTH},{SIZE}] present_key,
          float[1,1,{LENGTH},{SIZE}] present_value) {{
      one = Constant<value = int64[1] {{1}}>()
      word = Gather<axis = 0>(words, ids)
      x = Unsqueeze(word, one)
      present_key = TensorScatter(past_key, x, position)
      v = Mul(x, x)
      present_value = TensorScatter(past_value, v, position)
      seen = Add(position, one)
      y = Attention(x, present_key, present_value, , , , seen)
      zero = Constant<value = int64[1] {{0}}>()
      row = Squeeze(y, zero)
      scores = MatMul(row, heads)
    }}""")
    for name, shape in (("words", (WORDS, SIZE)), ("heads", (SIZE, WORDS))):
        value = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def wanted(tokens: list[int]) -> Array:
    """The scores after the last token, without any cache."""
    words, heads = (onnx.numpy_helper.to_array(t) for t in decoder().graph.initializer)
    x = words[tokens]
    weights = np.exp(x @ x[-1] / np.sqrt(SIZE))
    return np.asarray((weights / weights.sum()) @ (x * x) @ heads)


@pytest.fixture(scope="module")
def model() -> qcompiler.Model:
    return qcompiler.load(qcompiler.compile(decoder(), threads=2))


def fed(token: int, position: int) -> dict[str, Array]:
    return {"ids": np.full((1, 1), token), "position": np.array([position])}


def test_caches_stay_in_the_models_memory(model: qcompiler.Model) -> None:
    session = model.bind("past_key", "present_key").bind("past_value", "present_value")
    assert [v.name for v in session.inputs] == ["ids", "position"]
    assert [v.name for v in session.outputs] == ["scores"]
    other = model.bind("past_key", "present_key").bind("past_value", "present_value")
    tokens = [3, 1, 4, 1, 0, 2]
    for i, token in enumerate(tokens):
        made = session.run(fed(token, i))
        np.testing.assert_allclose(made["scores"][0, 0], wanted(tokens[: i + 1]), rtol=1e-5)
        other.run(fed(4, i))  # two conversations of one model do not meet
    kept = session.value("past_key")
    session.reset()
    again = session.run(fed(tokens[0], 0))["scores"][0, 0]
    np.testing.assert_allclose(again, wanted(tokens[:1]), rtol=1e-5)
    session.put("past_key", kept)
    np.testing.assert_array_equal(session.value("past_key"), kept)


def test_rows_are_written_in_place(model: qcompiler.Model) -> None:
    pairs = {"past_key": "present_key", "past_value": "present_value"}
    assert set(model.variant.in_place) == set(pairs.items())
    session = model.bind("past_key", "present_key")
    before = session.value("past_key")
    session.put("past_key", np.full_like(before, np.nan))
    zeros = np.zeros_like(before)
    session.run({**fed(2, 1), "past_value": zeros})  # attention reads the first rows: NaN
    kept = session.value("past_key")
    assert np.isnan(kept[0, 0, [0, 2, 3, 4, 5]]).all()
    assert not np.isnan(kept[0, 0, 1]).any()


def test_what_is_read_twice_is_not_in_place() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    step (float[4] x, float[4] past) => (float[4] present, float[4] y) {
      present = Add(past, x) y = Mul(past, x) }"""
    model = qcompiler.load(qcompiler.compile(onnx.parser.parse_model(text), threads=1))
    assert model.variant.in_place == ()
    session, x = model.bind("past", "present"), np.arange(4, dtype=np.float32)
    for i in range(3):
        np.testing.assert_array_equal(session.run({"x": x})["y"], i * x * x)


def test_a_sum_is_kept_in_place() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    step (float[4] x, float[4] past) => (float[4] present) { present = Add(past, x) }"""
    model = qcompiler.load(qcompiler.compile(onnx.parser.parse_model(text), threads=1))
    assert ("past", "present") in model.variant.in_place
    session, x = model.bind("past", "present"), np.arange(4, dtype=np.float32)
    for _ in range(3):
        assert session.run({"x": x}) == {}
    np.testing.assert_array_equal(session.value("past"), 3 * x)


def test_what_does_not_fit_is_not_bound(model: qcompiler.Model) -> None:
    for given, output, what in (
        ("past", "present_key", "no such input"),
        ("past_key", "present", "no such output"),
        ("past_key", "scores", "does not fit"),
    ):
        with pytest.raises(Error, match=what):
            model.bind(given, output)
    session = model.bind("past_key", "present_key")
    with pytest.raises(Error, match="bound already"):
        session.bind("past_key", "present_value")
    with pytest.raises(Error, match="bound to two inputs"):
        session.bind("past_value", "present_key")
    with pytest.raises(Error, match="'past_value' is missing"):
        session.run(fed(1, 0))


def example_of() -> Any:
    """examples/generate.py."""
    place = Path(__file__).parents[2] / "examples" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", place)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_the_example_generates_with_caches_that_grow(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    step (int64[batch,seq] ids, float[batch,past,5] past_seen)
      => (float[batch,seq,5] scores, float[batch,all,5] present_seen) <float[5,5] words = {
      4.0,3.0,0.0,0.0,0.0, 0.0,4.0,3.0,0.0,0.0, 0.0,0.0,4.0,3.0,0.0, 0.0,0.0,0.0,4.0,3.0,
      3.0,0.0,0.0,0.0,4.0}> {
      x = Gather(words, ids) present_seen = Concat<axis = 1>(past_seen, x)
      one = Constant<value_ints = [1]>() sum = ReduceSum(present_seen, one)
      scores = Sub(x, sum) }"""
    model = onnx.parser.parse_model(text)
    onnx.save(model, tmp_path / "decoder.onnx")
    example = example_of()
    found = example.generate(example.decoder(tmp_path / "decoder.onnx"), [3, 1], 6)
    words = onnx.numpy_helper.to_array(model.graph.initializer[0])
    tokens = [3, 1]
    while len(tokens) < 8:
        tokens.append(int((words[tokens[-1]] - words[tokens].sum(0)).argmax()))
    assert found == tokens


def test_the_example_generates_with_caches_and_without(tmp_path: Path) -> None:
    example = example_of()
    onnx.save(decoder(), tmp_path / "decoder.onnx")
    found = example.generate(example.decoder(tmp_path / "decoder.onnx"), [3, 1], 4)
    tokens = [3, 1]
    while len(tokens) < LENGTH:
        tokens.append(int(wanted(tokens).argmax()))
    assert found == tokens
