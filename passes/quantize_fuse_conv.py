"""A convolution of dequantized bytes is an integer convolution and one product a channel.

Conv(dequantize(x, s, z), dequantize(w, t), b)  ->  Mul(Cast(ConvInteger(x, w, z)), s * t) + b

t: a number, or one for each output channel. quantize_fuse_bias takes b into the int32 sum.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.matching import channel_shape, input_at, per_channel
from qcompiler.ops import make
from qcompiler.rewrite import OPTIONAL, Skip, op, rule
from qcompiler.scales import (
    DATA,
    WEIGHTS,
    Numbers,
    activation,
    real,
    rescaled,
    weights,
)


@rule(op("Conv", DATA, WEIGHTS, OPTIONAL))
def quantize_fuse_conv(conv: Node, data: Node, weight: Node) -> Node | Skip:
    """Conv(dq(x), dq(w), b) -> Mul(Cast(ConvInteger(x, w, z)), s * t) + b."""
    x, w = activation(data), weights(weight)
    if isinstance(x, Skip):
        return x
    if isinstance(w, Skip):
        return w
    rank = conv.type.rank
    channels = per_channel(w.scale, rank, 0)
    if channels is None:
        return Skip("the weights' scales are not one for each output channel")
    bias = input_at(conv, 2)
    b = None if bias is None else real(bias)
    if bias is not None and b is None:
        return Skip("the bias is not constant")
    attrs = dict(conv.attrs)
    sums = make("ConvInteger", x.node, w.node, x.zero_point, name=conv.name, **attrs)
    step: Numbers = x.scale * channels
    shape = channel_shape(rank, 1) if step.size > 1 else ()
    made = rescaled(sums, step.reshape(shape), conv.name)
    if b is None or isinstance(made, Skip):
        return made
    return make("Add", made, constant(b.astype(np.float32).reshape(channel_shape(rank, 1))))
