"""Merge constants in sums and products; subtract a constant by adding its negative.

x - c           ->  x + (-c)                 integers wrap around
x / 2^k         ->  x * 2^-k                 exact: a power of two
(x + c) + d     ->  x + (c + d)
(x * c) * d     ->  x * (c * d)
x + -y          ->  x - y                    x - -y  ->  x + y
Sum(x, y)       ->  x + y
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.rewrite import ANY, CONST, Skip, op, rule, taken
from qcompiler.rewrite.matching import FLOATS, const, exact

X, C = taken(ANY), taken(CONST)

WHOLE = {"float64": 2.0**52, "float32": 2.0**23, "float16": 2.0**10, "bfloat16": 2.0**7}
"""From this magnitude on, all numbers of a dtype are integers."""


@rule(op("Sub", ANY, CONST))
def fold_difference(sub: Node) -> Node | None:
    """x - c -> x + (-c)."""
    x, c = sub.operands
    numbers: Numbers = c.array
    return make("Add", x, const(np.negative(numbers))) if c.dtype != "bool" else None


@rule(op("Div", ANY, CONST))
def fold_exact_division(div: Node) -> Node | None:
    """x / 2^k -> x * 2^-k."""
    x, c = div.operands
    if c.dtype not in FLOATS:
        return None
    values = exact(c)
    mantissa, exponent = np.frexp(values)
    powers = np.all((np.abs(mantissa) == 0.5) & (np.abs(exponent) < 14))
    return make("Mul", x, const(1 / values, like=c)) if powers and values.size else None


@rule(op("Add", op("Add", X, C, commutes=True), C, commutes=True))
def fold_sum_of_constants(outer: Node, inner: Node, x: Node, c: Node, d: Node) -> Node | Skip:
    """(x + c) + d -> x + (c + d)."""
    return _together(outer, x, c, d)


@rule(op("Mul", op("Mul", X, C, commutes=True), C, commutes=True))
def fold_product_of_constants(outer: Node, inner: Node, x: Node, c: Node, d: Node) -> Node | Skip:
    """(x * c) * d -> x * (c * d)."""
    return _together(outer, x, c, d)


def _together(outer: Node, x: Node, c: Node, d: Node) -> Node | Skip:
    left: Numbers = c.array
    right: Numbers = d.array
    with np.errstate(over="ignore", invalid="ignore"):
        both = left + right if outer.op == "Add" else left * right
    if both.size > max(c.array.size, d.array.size, 1):
        return Skip("the two constants broadcast to a larger one")
    if c.dtype in FLOATS and not np.all(np.isfinite(both.astype(np.float64))):
        return Skip("the two constants overflow")
    if outer.op == "Add" and c.dtype in FLOATS and _rounds(exact(c), exact(d), c.dtype):
        return Skip("the first sum rounds, and the second subtracts the constant again")
    return make(outer.op, x, const(both, like=c))


def _rounds(c: Numbers, d: Numbers, dtype: str) -> bool:
    """Is c so large that x + c loses its fraction, and does d cancel it, as 1.5 * 2^23 does?"""
    large = np.maximum(np.abs(c), np.abs(d)) >= WHOLE[dtype] / 8
    return bool(np.any(large & (np.sign(c) * np.sign(d) < 0)))


@rule(op("Add", X, op("Neg", ANY), commutes=True))
def fold_sum_with_negated(add: Node, x: Node, neg: Node) -> Node:
    """x + -y -> x - y."""
    return make("Sub", x, neg.operands[0])


@rule(op("Sub", ANY, op("Neg", ANY)))
def fold_difference_from_negated(sub: Node, neg: Node) -> Node:
    """x - -y -> x + y."""
    return make("Add", sub.operands[0], neg.operands[0])


@rule(op("Sum", ANY, ANY))
def fold_sum_of_two(total: Node) -> Node:
    """Sum(x, y) -> x + y."""
    return make("Add", *total.operands)
