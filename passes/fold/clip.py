"""Merge consecutive bounds.

Min(Max(x, a), b), Max(Min(x, b), a)   ->  Clip(x, a, b)          a, b: numbers, a <= b
Clip(Clip(x, a, b), c, d)              ->  Clip(x, max(a, c), min(b, d))
Clip(x, 0, none)                       ->  Relu(x)
Clip(x, [a], [b])                      ->  Clip(x, a, b)
Clip(x), Relu(x)                       ->  x, where x is already within the bounds
"""

from __future__ import annotations

import math

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule, taken
from qcompiler.rewrite.matching import FLOATS, const, either, input_at, number, rebuilt

X, C = taken(ANY), taken(CONST)

RANGES = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Erf": (-1.0, 1.0),
    "Relu": (0.0, math.inf),
    "Abs": (0.0, math.inf),
    "Sqrt": (0.0, math.inf),
    "Exp": (0.0, math.inf),
}
"""Operators with outputs in a fixed range."""

BOUNDED = "Clip|Relu|Sigmoid|HardSigmoid|Softmax|Tanh|Erf|Abs|Sqrt|Exp"


@rule(op("Min|Max", op("Min|Max", X, C, commutes=True), C, commutes=True))
def fold_min_of_max(outer: Node, inner: Node, x: Node, c: Node, d: Node) -> Node | Skip | None:
    """Min(Max(x, a), b), Max(Min(x, b), a) -> Clip(x, a, b)."""
    if outer.op == inner.op:
        return None
    a, b = number(c), number(d)
    if a is None or b is None or x.type != outer.type:
        return Skip("a bound is not a scalar")
    low, high = (a, b) if inner.op == "Max" else (b, a)
    if low > high:
        return Skip("the bounds cross")
    return make("Clip", x, const(low, like=x), const(high, like=x))


@rule(op("Clip|Relu|Max|Min", op(BOUNDED, shared=True), OPTIONAL, OPTIONAL))
def fold_bounds(outer: Node, inner: Node) -> Node | Skip | None:
    """Clip(Clip(x, a, b), c, d) -> Clip(x, max(a, c), min(b, d)), or simpler."""
    if outer.op in ("Max", "Min") and len(outer.inputs) != 2:
        return None
    limits, known = _bounds(outer), _bounds(inner)
    if limits is None or known is None or inner.type != outer.type:
        return Skip("a bound is not a scalar")
    if limits[0] <= known[0] and known[1] <= limits[1]:
        return inner
    if inner.op not in ("Clip", "Relu"):
        return None
    low = max(limits[0], known[0])
    high = min(limits[1], max(known[1], limits[0]))
    if low > high:
        return Skip("the bounds cross")
    x = inner.operands[0]
    return make("Clip", x, _bound(low, x), _bound(high, x))


@rule(op("Clip", ANY, OPTIONAL, OPTIONAL))
def fold_clip_at_zero(clip: Node) -> Node | None:
    """Clip(x, 0, none) -> Relu(x); Clip(x, none, none) -> x."""
    x, bounds = clip.operands[0], _bounds(clip)
    if bounds is None or clip.dtype not in FLOATS:
        return None
    if bounds == (-math.inf, math.inf):
        return x
    return make("Relu", x) if bounds == (0, math.inf) else None


@rule(op("Clip", ANY, OPTIONAL, OPTIONAL))
def fold_clip_bounds(clip: Node) -> Node | None:
    """Clip(x, [a], [b]) -> Clip(x, a, b): bounds become scalars."""
    bounds = [input_at(clip, i) for i in (1, 2)]
    plain = [
        const(b.array.reshape(())) if b and b.is_constant and b.type.size == 1 and b.shape else b
        for b in bounds
    ]
    same = all(a is b for a, b in zip(plain, bounds, strict=True))
    made = None if same else rebuilt(clip, (clip.operands[0], *plain))
    return made if made and made.type == clip.type else None


@rule(op("Max", X, C, commutes=True))
def fold_max_with_zero(maximum: Node, x: Node, c: Node) -> Node | None:
    """Max(x, 0) -> Relu(x)."""
    if (
        number(c) != 0
        or x.type != maximum.type
        or x.dtype not in FLOATS
        or len(maximum.inputs) != 2
    ):
        return None
    return make("Relu", x)


def _bounds(node: Node) -> tuple[float, float] | None:
    """The range of a node's values; None if a bound is not a constant scalar."""
    if node.op in RANGES:
        return RANGES[node.op]
    if node.op == "Clip":
        low, high = input_at(node, 1), input_at(node, 2)
    else:
        found = either(node, lambda i: i.is_constant)
        if found is None:
            return None
        bound, _ = found
        low, high = (bound, None) if node.op == "Max" else (None, bound)
    values = [number(b) for b in (low, high) if b is not None]
    if None in values:
        return None
    lowest, highest = number(low), number(high)
    return -math.inf if lowest is None else lowest, math.inf if highest is None else highest


def _bound(value: float, like: Node) -> Node | None:
    return None if math.isinf(value) else const(value, like=like)
