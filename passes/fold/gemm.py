"""Lower Gemm to a matrix product and a sum.

Gemm(a, b, c, transA, transB, alpha, beta)  ->  MatMul(a', b' * alpha) + c * beta

A transposed constant is transposed here; alpha and beta fold into constants, or become products.
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.ops import make
from qcompiler.rewrite import op, rule
from qcompiler.rewrite.matching import const, exact, input_at, transpose


@rule(op("Gemm"))
def fold_gemm(gemm: Node) -> Node:
    """Gemm(a, b, c) -> MatMul(a, b) + c."""
    a, b = gemm.operands[:2]
    c = input_at(gemm, 2)
    if gemm.int("transA"):
        a = transpose(a, (1, 0))
    if gemm.int("transB"):
        b = transpose(b, (1, 0))
    alpha, beta = gemm.float("alpha"), gemm.float("beta")
    if b.is_constant:
        product = make("MatMul", a, _scaled(b, alpha), name=gemm.name)
    else:
        product = _scaled(make("MatMul", a, b, name=gemm.name), alpha)
    return product if c is None else make("Add", product, _scaled(c, beta))


def _scaled(x: Node, factor: float) -> Node:
    if factor == 1:
        return x
    if x.is_constant:
        return const(exact(x) * factor, like=x)
    return make("Mul", x, const(factor, like=x))
