"""Attention of dequantized bytes -> the compiler's own, which multiplies bytes.

Attention(dequantize(q, s, 0), dequantize(k, t, 0), dequantize(v, u, 0), mask)
                           ->  Mul(attention(q, k, v, mask, scale * s * t), u)
quantize(Mul(attention(...), u), k, z)  ->  quantize(attention(...), u * k, z)

Attention weights are bytes too: see the definition of `attention`.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.quantization.scales import DATA, scalar, with_factor
from qcompiler.rewrite import CONST, OPTIONAL, Skip, op, rule

KEPT = ("is_causal", "kv_num_heads", "q_num_heads", "softcap")


@rule(op("Attention", DATA, DATA, DATA, OPTIONAL))
def integer_attention(attention: Node, *data: Node) -> Node | Skip | None:
    """Attention(dq(q), dq(k), dq(v)) -> Mul(attention(q, k, v), u)."""
    steps = []
    for dequantize in data[:3]:
        x, step, zero = dequantize.operands
        if x.dtype != "int8" or zero.array.any() or step.array.size > 1:
            return Skip("q, k and v are not int8 with zero point 0 and one scale each")
        steps.append(float(scalar(step)))
    windows = max(attention.int("left_window_size"), attention.int("right_window_size"))
    if any(attention.inputs[4:]) or len(attention.types) > 1 or windows >= 0:
        return Skip("past keys and values, or a window of keys")
    given = attention.attrs["scale"]
    size = _size(attention, data[0])
    scale = 1 / sqrt(size) if given is None else attention.float("scale")
    made = make(
        "attention",
        *(d.operands[0] for d in data[:3]),
        attention.inputs[3] if len(attention.inputs) > 3 else None,
        constant(np.array(scale * steps[0] * steps[1], np.float32)),
        name=attention.name,
        **{key: attention.attrs[key] for key in KEPT},
    )
    return make("Mul", made, constant(np.array(steps[2], np.float32)), name=attention.name)


def _size(attention: Node, q: Node) -> int:
    """The size of a head."""
    width = q.type.dims[-1]
    return width if q.type.rank == 4 else width // attention.int("q_num_heads")


@rule(op("quantize", op("Mul", op("attention"), CONST), CONST, CONST))
def integer_attention_scale(quantize: Node, mul: Node, attention: Node) -> Node | Skip | None:
    """quantize(Mul(attention, u), k, z) -> quantize(attention, u * k, z)."""
    return with_factor(quantize, attention, mul.operands[1])
