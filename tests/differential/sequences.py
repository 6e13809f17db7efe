"""Steps over sequences: recurrent layers and attention."""

from __future__ import annotations

import numpy as np

from qcompiler.errors import Error

from .builder import Builder, Value
from .moves import ranked

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(b: Builder) -> None:
    x = b.pick(lambda v: v.rank == 3 and v.shape[0] <= 12 and v.shape[2] > 0)
    steps, batch, width = x.shape
    op, hidden = b.choose(("LSTM", "GRU", "RNN")), b.choose((1, 3, 4, 8, 9, 16))
    direction = b.choose(("forward", "reverse", "bidirectional"))
    ways, gates = 1 + (direction == "bidirectional"), GATES[op]
    w = b.constant(b.normal(ways, gates * hidden, width, scale=width**-0.5))
    r = b.constant(b.normal(ways, gates * hidden, hidden, scale=hidden**-0.5))
    bias = b.constant(b.numbers(ways, 2 * gates * hidden)) if b.chance(0.6) else None
    lengths, first = None, None
    if b.chance(0.2):
        lengths = b.constant(b.rng.integers(1, steps + 1, batch).astype(np.int32))
    if b.chance(0.3):
        first = b.constant(b.numbers(ways, batch, hidden))
    attrs = {"hidden_size": hidden, "direction": direction}
    if op == "GRU":
        attrs["linear_before_reset"] = b.choose((0, 1))
    given = [x, w, r, bias, lengths, first]
    if op == "LSTM":
        given.append(b.constant(b.numbers(ways, batch, hidden)) if b.chance(0.3) else None)
    while given[-1] is None:
        given.pop()
    y = b.add_all(op, *given, outputs=3 if op == "LSTM" else 2, **attrs)[0]
    if ways == 1:
        b.add("Squeeze", y, b.ints(1))


def attention(b: Builder) -> None:
    """Heads, scores, softmax and the mean, spelled out."""
    x = b.pick(lambda v: v.rank == 3 and v.shape[2] > 1)
    batch, steps, width = x.shape
    heads = b.choose([h for h in (1, 2, 4) if width % h == 0])
    each = width // heads
    q, k, v = (projected(b, x, heads) for _ in range(3))
    k = b.add("Transpose", k, perm=[0, 1, 3, 2])
    s = b.add("MatMul", q, k)
    s = b.add("Mul", s, b.constant(np.float32(each**-0.5)))
    if b.chance(0.4):
        mask = np.triu(np.full((steps, steps), -1e4, np.float32), 1)
        s = b.add("Add", s, b.constant(mask))
    y = b.add("MatMul", b.add("Softmax", s, axis=-1), v)
    y = b.add("Transpose", y, perm=[0, 2, 1, 3])
    y = b.add("Reshape", y, b.ints(batch, steps, width))
    b.add("Add", x, y)


def projected(b: Builder, x: Value, heads: int, made: int = 0) -> Value:
    """x W as [batch, made (0: heads), steps, width / heads]."""
    batch, steps, width = x.shape
    made = made or heads
    wide = width // heads * made
    y = b.add("MatMul", x, b.constant(b.normal(width, wide, scale=width**-0.5)))
    if b.chance(0.5):
        y = b.add("Add", y, b.constant(b.numbers(wide)))
    y = b.add("Reshape", y, b.ints(batch, steps, made, width // heads))
    return b.add("Transpose", y, perm=[0, 2, 1, 3])


def attention_itself(b: Builder) -> None:
    """The operator of opset 23, 3-D or 4-D."""
    if b.opset < 23:
        raise Error("the opset has no Attention")
    if b.chance(0.5):
        x = b.pick(lambda v: v.rank == 3 and v.shape[2] % 2 == 0)
        y = b.pick(lambda v: v.rank == 3 and (v.shape[0], v.shape[2]) == (x.shape[0], x.shape[2]))
        b.add("Attention", x, y, y, q_num_heads=2, kv_num_heads=2, is_causal=b.choose((0, 1)))
    else:
        x = ranked(b, 4, 4)
        y = b.pick(lambda v: v.rank == 4 and v.shape == x.shape)
        b.add("Attention", x, y, x, is_causal=b.choose((0, 1)))


def masked(b: Builder) -> None:
    """Heads of products, and what is added to their scores, by another product."""
    if b.opset < 23:
        raise Error("the opset has no Attention")
    x = b.pick(lambda v: v.rank == 3 and v.shape[2] > 1)
    batch, steps, width = x.shape
    heads = b.choose([h for h in (1, 2, 4) if width % h == 0])
    shared = b.choose([h for h in (1, 2, 4) if heads % h == 0])
    q = projected(b, x, heads)
    k, v = (projected(b, x, heads, shared) for _ in range(2))
    mask = b.add("MatMul", x, b.constant(b.normal(width, steps, scale=width**-0.5)))
    if batch > 1:
        mask = b.add("Unsqueeze", mask, b.ints(1))
    y = b.add("Attention", q, k, v, mask if b.chance(0.7) else None)
    y = b.add("Reshape", b.add("Transpose", y, perm=[0, 2, 1, 3]), b.ints(batch, steps, width))
    b.add("MatMul", y, b.constant(b.normal(width, width, scale=width**-0.5)))


def feed_forward(b: Builder) -> None:
    """Norm, wide, narrow, the input added."""
    x = b.pick(lambda v: v.rank == 3 and v.shape[2] > 2)
    n = x.shape[2]
    y = b.add("LayerNormalization", x, b.constant(b.numbers(n)), b.constant(b.numbers(n)))
    y = b.add("MatMul", y, b.constant(b.normal(n, 2 * n, scale=n**-0.5)))
    y = b.add(b.choose(("Gelu", "Relu", "Sigmoid")), b.add("Add", y, b.constant(b.numbers(2 * n))))
    y = b.add("MatMul", y, b.constant(b.normal(2 * n, n, scale=(2 * n) ** -0.5)))
    b.add("Add", x, y)
