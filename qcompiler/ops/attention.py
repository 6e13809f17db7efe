"""Attention and rotary position embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.contraction import multiply, sums_of
from qcompiler.ops.normalization import softmax_of
from qcompiler.ops.registry import Numbers, broadcast, fresh, operator, optional, typed
from qcompiler.ops.shapes import agree, note_divides, total, unite

_ATTENTION: Mapping[str, object] = {
    "is_causal": 0,
    "kv_num_heads": None,
    "left_window_size": -1,
    "q_num_heads": None,
    "qk_matmul_output_mode": 0,
    "right_window_size": -1,
    "scale": None,
    "softcap": 0.0,
    "softmax_precision": None,
    "outputs": 1,
}

LEAST = -3.0e38
"""Lower bound of the scores in the compiler's own attention, for masked keys: a fully masked query
attends to all keys equally if the mask is added, and gives 0 if it is boolean."""


@operator("Attention", **_ATTENTION)
def attention(
    node: Node,
    q: Numbers,
    k: Numbers,
    v: Numbers,
    mask: Numbers | None = None,
    past_key: Numbers | None = None,
    past_value: Numbers | None = None,
    lengths: Numbers | None = None,
) -> Numbers | tuple[Numbers, ...]:
    """softmax(q k' * scale + mask) v per head; heads of k and v may be shared (grouped queries)."""
    q4 = _heads(q, _count(node, "q_num_heads"))
    k4, v4 = (_heads(i, _count(node, "kv_num_heads")) for i in (k, v))
    present_key = k4 if past_key is None else np.concatenate((past_key, k4), 2)
    present_value = v4 if past_value is None else np.concatenate((past_value, v4), 2)
    allowed = _allowed(node, q4, present_key, past_key, lengths)
    bias = _bias(mask, allowed, sums_of(q.dtype.name))
    seen, scores = _scores(node, q4, present_key, bias)
    unseen = np.isneginf(bias.max(-1, keepdims=True, initial=-np.inf))
    weights = np.where(unseen, 0, softmax_of(scores, -1))
    y = multiply(weights.astype(q.dtype), _each_query_head(present_value, q4))
    y = like_queries(y.astype(q.dtype), q)
    seen = weights if node.int("qk_matmul_output_mode") == 3 else seen
    outputs = (y, present_key, present_value, seen.astype(q.dtype))
    return outputs[: node.int("outputs")] if node.int("outputs") > 1 else y


def _count(node: Node, key: str) -> int:
    value = node.attrs[key]
    if value is None:
        return 0
    if not isinstance(value, int):
        raise Error(f"{key} is {value!r}, not a count")
    return value


def _heads(x: Numbers, count: int) -> Numbers:
    """[batch, sequence, heads * size] -> [batch, heads, sequence, size]."""
    return x if x.ndim == 4 else np.moveaxis(x.reshape(*x.shape[:2], count, -1), 1, 2)


def _each_query_head(x: Numbers, q: Numbers) -> Numbers:
    """Repeat every head of k or v for the heads of q that share it."""
    return np.repeat(x, q.shape[1] // max(x.shape[1], 1), 1)


def _allowed(
    node: Node, q: Numbers, k: Numbers, past: Numbers | None, lengths: Numbers | None
) -> Numbers:
    """Which keys a query may see, by position: [1 or batch, 1, queries, keys]."""
    queries, keys = q.shape[2], k.shape[2]
    first = np.full((1, 1, 1, 1), 0 if past is None else past.shape[2])
    allowed: Numbers = np.ones((1, 1, queries, keys), np.bool_)
    places = np.arange(keys)
    if lengths is not None:
        valid = lengths.reshape(-1, 1, 1, 1)
        allowed = allowed & (places < valid)
        first = valid - queries
    distance = places - (first + np.arange(queries).reshape(-1, 1))
    left, right = node.int("left_window_size"), node.int("right_window_size")
    if node.int("is_causal"):
        allowed = allowed & (distance <= 0)
    if left >= 0:
        allowed = allowed & (distance >= -left)
    if right >= 0:
        allowed = allowed & (distance <= right)
    return allowed


def _bias(mask: Numbers | None, allowed: Numbers, dtype: str) -> Numbers:
    """The addend of the scores: the mask, and -inf for keys a query must not see."""
    bias: Numbers = np.where(allowed, 0, -np.inf).astype(dtype)
    if mask is None:
        return bias
    if mask.dtype == np.bool_:
        mask = np.where(mask, 0, -np.inf)
    missing = [(0, 0)] * (mask.ndim - 1) + [(0, allowed.shape[-1] - mask.shape[-1])]
    given: Numbers = np.pad(mask.astype(dtype), missing, constant_values=-np.inf)
    return bias + given


def _scores(node: Node, q: Numbers, k: Numbers, bias: Numbers) -> tuple[Numbers, Numbers]:
    """-> (the scores as the fourth output requests them, the scores for the softmax)."""
    given = node.attrs["scale"]
    scale = 1 / sqrt(q.shape[-1]) if given is None else node.float("scale")
    keys = np.swapaxes(_each_query_head(k, q), -1, -2)
    scores = multiply(q, keys)
    scores = scores * scores.dtype.type(scale)
    cap = node.float("softcap")
    capped = scores if cap <= 0 else np.tanh(scores / cap) * cap
    biased = np.where(np.isneginf(bias), bias, capped + bias)  # NaN is masked, too
    seen = {0: scores, 1: capped, 2: biased}.get(node.int("qk_matmul_output_mode"), biased)
    return np.broadcast_to(seen, biased.shape), biased


@operator("attention", **_ATTENTION)
def own_attention(
    node: Node,
    q: Numbers,
    k: Numbers | None = None,
    v: Numbers | None = None,
    mask: Numbers | None = None,
    scale: Numbers | None = None,
) -> Numbers:
    """Attention on floats as in ONNX, or on int8. Without k and v, all three are packed in q's
    rows, [B, S, (q_num_heads + 2 * kv_num_heads) * size].

    int8 inputs (zero points 0) give float32, in units of v's scale. Scores are exact sums times
    `scale`, a float32 operand, so that one kernel serves layers of any scale. Weights are
    round(255 * exp(score - the row's maximum)); the output is the exact sum of weights times v,
    divided by the sum of the weights.
    """
    if q.dtype != np.int8:
        made = attention(node, *_apart(node, q, k, v), mask)
        assert not isinstance(made, tuple)
        return made
    weights, values, seen = weights_of_bytes(node, q, k, v, mask, scale)
    weights = np.rint(weights)
    y = np.where(seen, multiply(weights, values) / weights.sum(-1, keepdims=True), 0)
    return like_queries(np.asarray(y, np.float32), q)


def weights_of_bytes(
    node: Node,
    q: Numbers,
    k: Numbers | None = None,
    v: Numbers | None = None,
    mask: Numbers | None = None,
    scale: Numbers | None = None,
) -> tuple[Numbers, Numbers, Numbers]:
    """An attention of int8 -> (its weights before they are rounded, float32 [batch, heads, queries,
    keys]; values, int8 [batch, heads, keys, size]; whether a boolean mask lets each query see any
    key, [batch or 1, heads or 1, queries, 1]).
    """
    assert scale is not None
    q, k, v = _apart(node, q, k, v)
    q4 = _heads(q, _count(node, "q_num_heads"))
    k4, v4 = (_heads(i, _count(node, "kv_num_heads")) for i in (k, v))
    bias = _bias(mask, _allowed(node, q4, k4, None, None), "float32")
    steps = Node(node.op, node.inputs, {**node.attrs, "scale": float(scale)}, node.types)
    scores = np.maximum(_scores(steps, q4, k4, bias)[1], LEAST).astype(np.float32)
    weights = 255 * np.exp(scores - scores.max(-1, keepdims=True))
    boolean = mask is not None and mask.dtype == np.bool_
    seen = ~np.isneginf(bias.max(-1, keepdims=True)) | (not boolean)
    return weights, _each_query_head(v4, q4), seen


def like_queries(y: Numbers, q: Numbers) -> Numbers:
    """[batch, heads, queries, size] -> the layout of the queries."""
    return y if q.ndim == 4 else np.moveaxis(y, 1, 2).reshape(*q.shape[:2], -1)


def _apart(
    node: Node, q: Numbers, k: Numbers | None, v: Numbers | None
) -> tuple[Numbers, Numbers, Numbers]:
    """Queries, keys and values that are operands of their own, or side by side in q's rows."""
    if k is not None and v is not None:
        return q, k, v
    size = q.shape[-1] // _all_heads(node)
    ends = np.cumsum([_count(node, key) * size for key in ("q_num_heads", "kv_num_heads")])
    queries, keys, values = np.split(q, ends, -1)
    return queries, keys, values


def _all_heads(node: Node) -> int:
    return _count(node, "q_num_heads") + 2 * _count(node, "kv_num_heads")


@typed(own_attention)
def _(node: Node) -> Type:
    if node.int("outputs") != 1 or (optional(node, 1) is None) != (optional(node, 2) is None):
        raise Error("it has one output, and k and v come together")
    q, mask = node.operands[0], optional(node, 3)
    if optional(node, 1) is not None:
        dims = [_head_dims(node, i, "int8") for i in range(3)]
    else:
        heads = _all_heads(node)
        if q.type.rank != 3 or heads < 3 or not q.type.static or q.type.dims[2] % heads:
            raise Error(f"{q.type} does not divide into {heads} heads")
        images, positions, width = q.type.dims
        dims = [(images, _count(node, key), positions, width // heads) for key in _SIDES]
    _check_fit(*dims)
    dtype = "float32" if q.dtype == "int8" else q.dtype
    scale = optional(node, 4)
    given = None if scale is None else scale.type
    if given != (Type("float32", ()) if q.dtype == "int8" else None):
        raise Error(f"{q.dtype} with a scale of {given}")
    _check_mask(mask, (*dims[0][:3], dims[1][2]), dtype, "float32")
    batch, count, length, size = dims[0][0], dims[0][1], dims[0][2], dims[2][3]
    if q.type.rank == 3:
        return Type(dtype, (batch, length, total((count, size))))
    return Type(dtype, (batch, count, length, size))


_SIDES = ("q_num_heads", "kv_num_heads", "kv_num_heads")


@typed(attention)
def _(node: Node) -> tuple[Type, ...]:
    q, k, v = (_head_dims(node, i) for i in range(3))
    _check_fit(q, k, v)
    past_key, past_value, lengths = (optional(node, i) for i in (4, 5, 6))
    if (past_key is None) != (past_value is None) or (past_key and lengths):
        raise Error("past keys and values come together, without lengths")
    keys = k[2] if past_key is None else _joined(past_key, k)
    if past_value is not None:
        _joined(past_value, v)
    _check_mask(optional(node, 3), (q[0], q[1], q[2], keys), node.operands[0].dtype)
    dtype = node.operands[0].dtype
    together = node.operands[0].type.rank == 3
    y = (q[0], q[2], total((q[1], v[3]))) if together else (*q[:3], v[3])
    shapes = (y, (*k[:2], keys, k[3]), (*v[:2], keys, v[3]), (*q[:3], keys))
    return tuple(Type(dtype, shape) for shape in shapes[: node.int("outputs")])


def _check_fit(q: tuple[Dim, ...], k: tuple[Dim, ...], v: tuple[Dim, ...]) -> None:
    equal = ((k[1], v[1]), (q[0], k[0]), (k[0], v[0]), (k[2], v[2]))
    if not all(agree(a, b) for a, b in equal):
        raise Error(f"queries {q}, keys {k} and values {v} do not fit together")
    if not agree(q[3], k[3]) or (isinstance(q[1], int) and isinstance(k[1], int) and q[1] % k[1]):
        raise Error(f"queries {q} and keys {k} do not fit together")
    if q[1] != k[1]:
        note_divides(q[1], k[1])


def _head_dims(node: Node, index: int, besides: str = "") -> tuple[Dim, ...]:
    """The dimensions [batch, heads, sequence, size] of q, k or v, floats or `besides`."""
    x, first = node.operands[index].type, node.operands[0].type
    number = "float" in x.dtype or x.dtype == besides
    if x.rank != first.rank or x.dtype != first.dtype or not number:
        raise Error(f"{x} does not match {first}")
    if x.rank == 4:
        return x.shape
    count = _count(node, "kv_num_heads" if index else "q_num_heads")
    if x.rank != 3 or count < 1 or (isinstance(x.shape[2], int) and x.shape[2] % count):
        raise Error(f"{x} does not divide into {count} heads")
    size = Size.of(x.shape[2]).over(count)
    if size is None:
        note_divides(x.shape[2], count)
    return (x.shape[0], count, x.shape[1], fresh() if size is None else settled(size))


def _joined(past: Node, new: tuple[Dim, ...]) -> Dim:
    """Sequence length of the past and the new keys together."""
    old = past.shape
    if len(old) != 4 or not all(agree(old[i], new[i]) for i in (0, 1, 3)):
        raise Error(f"the past {past.type} does not fit {list(new)}")
    a, b = old[2], new[2]
    return a + b if isinstance(a, int) and isinstance(b, int) else b if a == 0 else fresh()


def _check_mask(mask: Node | None, scores: tuple[Dim, ...], *dtypes: str) -> None:
    if mask is None:
        return
    have, want = mask.shape[-1] if mask.shape else 1, scores[-1]
    short = isinstance(have, int) and isinstance(want, int) and have < want
    shape = (*mask.shape[:-1], want) if short else mask.shape
    if mask.dtype not in ("bool", *dtypes) or len(broadcast(scores, shape)) > 4:
        raise Error(f"the mask {mask.type} does not fit scores {list(scores)}")
    if any(not agree(a, b) for a, b in zip(broadcast(scores, shape), scores, strict=True)):
        raise Error(f"the mask {mask.type} does not fit scores {list(scores)}")


_ROTARY: Mapping[str, object] = {"interleaved": 0, "num_heads": None, "rotary_embedding_dim": 0}


@operator("RotaryEmbedding", **_ROTARY)
def rotary_embedding(
    node: Node, x: Numbers, cos: Numbers, sin: Numbers, positions: Numbers | None = None
) -> Numbers:
    """Rotate pairs of values by an angle that depends on the position, the nearest that has one."""
    rows = _heads(x, _count(node, "num_heads"))
    rotated = node.int("rotary_embedding_dim") or rows.shape[-1]
    half = rotated // 2
    cosine, sine = (
        c if positions is None else c[np.clip(positions, 0, len(c) - 1)] for c in (cos, sin)
    )
    cosine, sine = (c[:, None].astype(sums_of(x.dtype.name)) for c in (cosine, sine))
    if node.int("interleaved"):
        places = (slice(0, rotated, 2), slice(1, rotated, 2))
    else:
        places = (slice(0, half), slice(half, rotated))
    a, b = (rows[..., p].astype(cosine.dtype) for p in places)
    made = rows.copy()
    made[..., places[0]] = (cosine * a - sine * b).astype(x.dtype)
    made[..., places[1]] = (sine * a + cosine * b).astype(x.dtype)
    return made if x.ndim == 4 else np.moveaxis(made, 1, 2).reshape(x.shape)


@typed(rotary_embedding)
def _(node: Node) -> Type:
    x, cos, sin = (i.type for i in node.operands[:3])
    count = _count(node, "num_heads")
    if x.rank not in (3, 4) or (x.rank == 3 and count < 1):
        raise Error(f"{x} with {count} heads")
    batch, sequence = x.shape[0], x.shape[-2]
    size = x.shape[-1]
    if x.rank == 3 and isinstance(size, int):
        if size % count:
            raise Error(f"{x} does not divide into {count} heads")
        size = size // count
    part = node.int("rotary_embedding_dim") or size
    if isinstance(part, int) and (part % 2 or part < 0 or (isinstance(size, int) and part > size)):
        raise Error(f"{part} of {size} values cannot be rotated in pairs")
    half: Dim = fresh()
    if isinstance(part, int):
        half = part // 2
    elif cos.rank:
        half = cos.shape[-1]
        agree(x.shape[-1], settled(Size.of(half) * (2 * (count if x.rank == 3 else 1))))
    positions = optional(node, 3)
    if positions is not None and len(unite_all(positions.shape, (batch, sequence))) != 2:
        raise Error(f"positions {positions.type} do not fit {x}")
    wanted = (batch, sequence, half) if positions is None else (fresh(), half)
    for table in (cos, sin):
        if table.dtype != x.dtype or len(unite_all(table.shape, wanted)) != len(wanted):
            raise Error(f"{table} does not fit {x}")
    return x


def unite_all(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Unify two equal shapes dimension by dimension; () if the ranks differ."""
    return tuple(map(unite, a, b)) if len(a) == len(b) else ()
