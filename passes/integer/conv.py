"""A convolution of dequantized bytes -> an integer convolution and one multiply per channel.

Conv(dequantize(x, s, z), dequantize(w, t), b)  ->  Mul(Cast(ConvInteger(x, w, z)), s * t) + b

t: scalar, or per output channel. s: scalar, or per channel if every channel is a group of its own.
integer_bias moves b into the int32 sum.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.ops import make
from qcompiler.quantization.scales import (
    DATA,
    WEIGHTS,
    Numbers,
    activation,
    real,
    rescaled,
    weights,
)
from qcompiler.rewrite import OPTIONAL, Skip, op, rule
from qcompiler.rewrite.matching import channel_shape, input_at, per_channel


@rule(op("Conv", DATA, WEIGHTS, OPTIONAL))
def integer_conv(conv: Node, data: Node, weight: Node) -> Node | Skip:
    """Conv(dq(x), dq(w), b) -> Mul(Cast(ConvInteger(x, w, z)), s * t) + b."""
    rank = conv.type.rank
    depthwise = conv.int("group") == conv.operands[0].shape[1]
    x, w = activation(data, 1 if depthwise else None), weights(weight)
    if isinstance(x, Skip):
        return x
    if isinstance(w, Skip):
        return w
    scales, bias = per_channel(w.scale, rank, 0), input_at(conv, 2)
    if scales is None:
        return Skip("the weights' scales are not per output channel")
    b = None if bias is None else real(bias)
    if bias is not None and b is None:
        return Skip("the bias is not constant")
    sums = make("ConvInteger", x.node, w.node, x.zero_point, name=conv.name, **dict(conv.attrs))
    repeats = w.node.type.dims[0] // x.scale.size if x.scale.size > 1 else 1
    step: Numbers = np.repeat(x.scale, repeats) * scales
    made = rescaled(sums, channels(step, rank), conv.name)
    if b is None or isinstance(made, Skip):
        return made
    return make("Add", made, constant(channels(b.astype(np.float32), rank)))


def channels(values: Numbers, rank: int) -> Numbers:
    """[C] -> [C,1,1], to broadcast along the channels of `rank` dimensions; [1] -> []."""
    return values.reshape(channel_shape(rank, 1) if values.size > 1 else ())
