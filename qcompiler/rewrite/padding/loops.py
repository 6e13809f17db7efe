"""Loops over padded values: the body computes with the largest sizes, as often as this run needs.

A state has the same digits in all iterations: of each dimension, the first positions count.
"""

from __future__ import annotations

from qcompiler.ir import Node, Type, placeholder
from qcompiler.ops import make
from qcompiler.ops.loop import looped
from qcompiler.rewrite.padding.digits import digits_of
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.rules import pads, see


@pads("room")
def _room(p: Padding, node: Node) -> Padded:
    made = make("room", dtype=node.dtype, shape=tuple(map(p.at, node.shape)), name=node.name)
    return Padded(made, tuple(digits_of([d]) for d in node.shape))


@pads("loop")
def _loop(p: Padding, node: Node) -> tuple[Padded, ...]:
    body, around = node.graph("body"), p.known
    count = len(body.outputs)
    firsts = [_first(p, i) for i in node.operands[:count]]
    pairs = zip(body.inputs, firsts, strict=False)
    states = [Padded(placeholder(i.name, v.node.type), v.dims) for i, v in pairs]
    given = [*states, *map(p.value, node.operands[count:])]
    p.known = {**around, **{i: (v,) for i, v in zip(body.inputs, given, strict=True)}}
    for inner in body.nodes:
        see(p, inner)
    p.node = node
    news = [_in_order(p, p.value(o), o.type).node for o in body.outputs]
    p.known = around
    made = looped([v.node for v in firsts], [s.node for s in states], news, node.name)
    return tuple(Padded(n, s.dims) for n, s in zip(made, states, strict=True))


def _first(p: Padding, node: Node) -> Padded:
    """What a state is before the first iteration."""
    return _in_order(p, p.value(node), node.type)


def _in_order(p: Padding, value: Padded, type: Type) -> Padded:
    """A value whose valid positions come first in every dimension."""
    for axis in range(value.rank):
        value = p.prefix(value, axis)
    if value.dims != tuple(digits_of([d]) for d in type.shape):
        raise p.refused(f"a state, {type}, has {value.dims}")
    return value
