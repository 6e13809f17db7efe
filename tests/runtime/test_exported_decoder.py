"""A decoder as exporters write it: its mask is as long as the cache and the new words together,
which its file says by a `dim_param` that is a sum.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qcompiler
from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.onnx_io.dims import read_pinned
from qcompiler.ops.evaluate import evaluate
from qcompiler.runtime import open_sizes

WORDS, WIDTH, HEADS = 11, 8, 2
BATCH, NEW, PAST = "batch_size", "sequence_length", "past_sequence_length"
Feed = dict[str, Array]

TEXT = """<ir_version: 10, opset_import: ["": 17]>
decoder (int64[batch_size,sequence_length] input_ids, int64[batch_size,all] attention_mask,
         int64[batch_size,sequence_length] position_ids,
         float[batch_size,2,past_sequence_length,4] past_key_values_0_key,
         float[batch_size,2,past_sequence_length,4] past_key_values_0_value)
  => (float[batch_size,sequence_length,11] logits, float[batch_size,2,all,4] present_0_key,
      float[batch_size,2,all,4] present_0_value) {
  zero = Constant<value_ints = [0]>() one = Constant<value_ints = [1]>()
  none = Constant<value = int64 {0}>() step = Constant<value = int64 {1}>()
  batches = Shape<start = 0, end = 1>(input_ids) new = Shape<start = 1, end = 2>(input_ids)
  past = Shape<start = 2, end = 3>(past_key_values_0_key)
  total = Add(past, new) past0 = Squeeze(past, zero) total0 = Squeeze(total, zero)
  token = Gather(words, input_ids) place = Gather(places, position_ids) x = Add(token, place)
  heads = Constant<value_ints = [2, 4]>() apart = Concat<axis = 0>(batches, new, heads)
  q0 = MatMul(x, wq) q1 = Reshape(q0, apart) q = Transpose<perm = [0,2,1,3]>(q1)
  k0 = MatMul(x, wk) k1 = Reshape(k0, apart) k = Transpose<perm = [0,2,1,3]>(k1)
  v0 = MatMul(x, wv) v1 = Reshape(v0, apart) v = Transpose<perm = [0,2,1,3]>(v1)
  present_0_key = Concat<axis = 2>(past_key_values_0_key, k)
  present_0_value = Concat<axis = 2>(past_key_values_0_value, v)
  rows0 = Range(past0, total0, step) columns = Range(none, total0, step)
  rows = Unsqueeze(rows0, one) causal = LessOrEqual(columns, rows)
  seen0 = Cast<to = 9>(attention_mask) middle = Constant<value_ints = [1, 2]>()
  seen = Unsqueeze(seen0, middle) both = And(causal, seen)
  low = Constant<value_float = -1e9>() nothing = Constant<value_float = 0.0>()
  bias = Where(both, nothing, low)
  kt = Transpose<perm = [0,1,3,2]>(present_0_key) s0 = MatMul(q, kt)
  half = Constant<value_float = 0.5>() s1 = Mul(s0, half) s2 = Add(s1, bias)
  p = Softmax<axis = -1>(s2) y = MatMul(p, present_0_value)
  y1 = Transpose<perm = [0,2,1,3]>(y) width = Constant<value_ints = [8]>()
  whole = Concat<axis = 0>(batches, new, width) y2 = Reshape(y1, whole)
  y3 = Add(y2, x) logits = MatMul(y3, head)
}"""


def decoder(total: str = f"{PAST} + {NEW}") -> onnx.ModelProto:
    """The decoder, whose `attention_mask` is of a size that is spelled so."""
    model = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(1)
    shapes = {"words": (WORDS, WIDTH), "places": (32, WIDTH), "head": (WIDTH, WORDS)}
    for name, shape in {**shapes, **dict.fromkeys(("wq", "wk", "wv"), (WIDTH, WIDTH))}.items():
        value = (rng.standard_normal(shape) / 2).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    for info in (*model.graph.input, *model.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param == "all":
                dim.dim_param = total
    return model


def feed(batch: int, new: int, past: int) -> Feed:
    rng = np.random.default_rng([batch, new, past])
    mask = np.ones((batch, past + new), np.int64)
    mask[0, : min(past, 2)] = 0  # padded on the left
    rows = (rng.standard_normal((batch, HEADS, past, 4)).astype(np.float32) for _ in range(2))
    return {
        "input_ids": rng.integers(0, WORDS, (batch, new)),
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(past, past + new), (batch, 1)),
        **dict(zip(("past_key_values_0_key", "past_key_values_0_value"), rows, strict=True)),
    }


def meant(model: onnx.ModelProto, given: Feed) -> Feed:
    shapes = {k: v.shape for k, v in given.items()}
    return evaluate(read_pinned(model, shapes, {}, False, {}), given)


def equal(found: Feed, wanted: Feed) -> None:
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, 1e-4, 1e-5, err_msg=name)


@pytest.fixture
def _nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind the ends of inputs is NaN, or no index."""
    monkeypatch.setattr(open_sizes, "BEHIND", {"f": np.nan, "i": 1 << 20})


@pytest.mark.usefixtures("_nothing_behind")
@pytest.mark.parametrize("total", [f"{PAST} + {NEW}", f"{NEW}+{PAST}"])
def test_the_mask_is_as_long_as_cache_and_words(total: str) -> None:
    model = decoder(total)
    dims = {BATCH: "1..3", NEW: "1..6", PAST: "0..12"}
    run = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1)).run
    for sizes in ((1, 1, 0), (2, 6, 0), (3, 1, 12), (1, 4, 7), (3, 6, 12), (2, 1, 1)):
        given = feed(*sizes)
        equal(run(given), meant(model, given))
    for wrong in (5, 7):  # of 2 and 4
        given = {**feed(1, 2, 4), "attention_mask": np.ones((1, wrong), np.int64)}
        with pytest.raises(Error, match=rf"{PAST} \+ {NEW} is {wrong}, and 6 by other inputs"):
            run(given)


@pytest.mark.parametrize(("batch", "count"), [(1, 1), ("1..3", 3)])
def test_its_caches_stay_in_memory(batch: int | str, count: int) -> None:
    model = decoder()
    dims = {BATCH: batch, NEW: "1..4", PAST: "0..20"}
    loaded = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1))
    caches = {f"past_key_values_0_{k}": f"present_0_{k}" for k in ("key", "value")}
    assert set(loaded.variant.in_place) == set(caches.items())
    (one, other) = caches.items()
    session = loaded.bind(*one).bind(*other)
    rows = {name: array for name, array in feed(count, 1, 0).items() if name in caches}
    for new in (4, 1, 3, 1):
        past = rows[one[0]].shape[2]
        given = {k: v for k, v in feed(count, new, past).items() if k not in caches}
        wanted = meant(model, {**given, **rows})
        equal(session.run(given), {"logits": wanted["logits"]})
        rows = {name: wanted[present] for name, present in caches.items()}
    with pytest.raises(Error, match="is 3, and 10 by other inputs"):
        session.run({**given, "attention_mask": np.ones((count, 3), np.int64)})


def test_sizes_of_the_mask_follow_from_pinned_ones() -> None:
    model = decoder()
    dims = {BATCH: 2, NEW: 3, PAST: 5}
    loaded = qcompiler.load(qcompiler.compile(model, dims=dims, threads=1))
    assert {v.name: v.shape for v in loaded.inputs}["attention_mask"] == (2, 8)
    given = feed(2, 3, 5)
    equal(loaded.run(given), meant(model, given))
