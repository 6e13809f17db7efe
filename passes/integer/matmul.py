"""A matrix product of dequantized bytes -> an integer one and one multiply per column.

MatMul(dequantize(a, s, z), dequantize(b, t, y))  ->  Mul(Cast(MatMulInteger(a, b, z, y)), s * t)

t: scalar, or per column of constant weights b.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.quantization.scales import DATA, Numbers, activation, rescaled, weights
from qcompiler.rewrite import Skip, op, rule
from qcompiler.rewrite.matching import per_channel


@rule(op("MatMul", DATA, DATA))
def integer_matmul(matmul: Node, left: Node, right: Node) -> Node | Skip:
    """MatMul(dq(a), dq(b)) -> Mul(Cast(MatMulInteger(a, b, z, y)), s * t)."""
    a = activation(left)
    b = weights(right) if right.operands[0].is_constant else activation(right)
    if isinstance(a, Skip):
        return a
    if isinstance(b, Skip):
        return b
    if min(a.node.type.rank, b.node.type.rank) < 2:
        return Skip("an operand is a vector")
    columns = per_channel(b.scale, b.node.type.rank, -1)
    if columns is None:
        return Skip("the weights' scales are not per column")
    sums = make("MatMulInteger", a.node, b.node, a.zero_point, b.zero_point, name=matmul.name)
    step: Numbers = a.scale * (columns if columns.size > 1 else columns.reshape(()))
    return rescaled(sums, step, matmul.name)
