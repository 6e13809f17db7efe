"""Replace powers by cheaper operators.

x ** 2     ->  x * x                 x ** 3     ->  x * x * x
x ** 0.5   ->  Sqrt(x)               x ** -0.5  ->  1 / Sqrt(x)
x ** -1    ->  1 / x

Roots differ from these powers at -0 (where a power is 0) and -inf (where a power is infinite): if x
may be one of them, the root is taken of |x| there.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, op, rule
from qcompiler.rewrite.matching import FLOATS, number


@rule(op("Pow", ANY, CONST))
def fold_power(power: Node) -> Node | None:
    """x ** 2 -> x * x, and the others above."""
    x, exponent = power.operands[0], number(power.operands[1])
    if x.dtype not in FLOATS or x.type != power.type:
        return None
    if exponent == 2:
        return make("Mul", x, x)
    if exponent == 3:
        return make("Mul", make("Mul", x, x), x)
    if exponent == 0.5:
        return _root(x)
    if exponent == -0.5:
        return make("Reciprocal", _root(x))
    return make("Reciprocal", x) if exponent == -1 else None


def _root(x: Node) -> Node:
    """x ** 0.5. Zeros and infinities are the numbers with x + x == x."""
    if _is_positive(x):
        return make("Sqrt", x)
    return make("Sqrt", make("Where", make("Equal", make("Add", x, x), x), make("Abs", x), x))


def _is_positive(x: Node, depth: int = 8) -> bool:
    """Is the sign bit known to be 0, even of zeros? NaN is ignored."""
    if x.dtype not in FLOATS:
        return False  # sums of integers may wrap around
    if x.is_constant:
        return not np.signbit(x.array.astype(np.float64)).any()
    if x.op in _POSITIVE or depth == 0:
        return x.op in _POSITIVE
    operands = x.operands
    if x.op == "Mul" and operands[0] is operands[1]:
        return True
    if x.op == "Pow":
        return number(operands[1]) == 2
    count = _KEEPING.get(x.op, 0)
    return count > 0 and all(_is_positive(o, depth - 1) for o in operands[:count])


_POSITIVE = frozenset({"Abs", "Exp", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Sigmoid"})
_KEEPING = {
    **{"Add": 2, "Cast": 1, "Div": 2, "GlobalAveragePool": 1, "Identity": 1, "Max": 2, "Mul": 2},
    **{"ReduceMean": 1, "ReduceSum": 1, "Reshape": 1, "Unsqueeze": 1},
}
"""Operators whose results are positive if their first operands, this many, are."""
