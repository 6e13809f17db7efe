"""Merge consecutive Transposes.

Transpose(Transpose(x))  ->  Transpose(x)  ->  x, if the permutations cancel
"""

from __future__ import annotations

from qcompiler.ir import Node
from qcompiler.rewrite import op, rule
from qcompiler.rewrite.matching import perm_of, transpose


@rule(op("Transpose", op("Transpose", shared=True)))
def fold_transpose_twice(outer: Node, inner: Node) -> Node:
    """Transpose(Transpose(x)) -> Transpose(x) with the composed permutation."""
    first, second = perm_of(inner), perm_of(outer)
    return transpose(inner.operands[0], tuple(first[a] for a in second))
