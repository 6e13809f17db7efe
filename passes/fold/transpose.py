"""Transposes that meet become one, or none.

Transpose(Transpose(x))  ->  Transpose(x)  ->  x, where the axes end up in order
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import op, rule
from qcompiler.rewrite.matching import perm_of, transpose


@rule(op("Transpose", op("Transpose", shared=True)))
def fold_transpose_twice(outer: Node, inner: Node) -> Node:
    """Transpose(Transpose(x)) -> Transpose(x) with the two orders in one."""
    first, second = perm_of(inner), perm_of(outer)
    return transpose(inner.operands[0], tuple(first[a] for a in second))
