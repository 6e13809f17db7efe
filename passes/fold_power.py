"""Powers that plainer operators compute.

x ** 2     ->  x * x                 x ** 3     ->  x * x * x
x ** 0.5   ->  Sqrt(x)               x ** -0.5  ->  1 / Sqrt(x)
x ** -1    ->  1 / x
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.matching import FLOATS, number
from qcompiler.ops import make
from qcompiler.rewrite import ANY, CONST, op, rule


@rule(op("Pow", ANY, CONST))
def fold_power(power: Node) -> Node | None:
    """x ** 2 -> x * x, and its kin."""
    x, exponent = power.operands[0], number(power.operands[1])
    if x.dtype not in FLOATS or x.type != power.type:
        return None
    if exponent == 2:
        return make("Mul", x, x)
    if exponent == 3:
        return make("Mul", make("Mul", x, x), x)
    if exponent == 0.5:
        return make("Sqrt", x)
    if exponent == -0.5:
        return make("Reciprocal", make("Sqrt", x))
    return make("Reciprocal", x) if exponent == -1 else None
