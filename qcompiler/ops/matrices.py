"""Numbers of a square matrix."""

from __future__ import annotations

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.registry import Numbers, operator, typed
from qcompiler.ops.shapes import agree, need_floats, need_rank


@operator("Det")
def det(node: Node, x: Numbers) -> Numbers:
    """The determinant of each matrix x[..., n, n]."""
    return np.asarray(np.linalg.det(x.astype(sums_of(x.dtype.name)))).astype(x.dtype)


@typed(det)
def _(node: Node) -> Type:
    need_floats(node)
    x = need_rank(node.operands[0], 2, "input")
    if not agree(x.shape[-1], x.shape[-2]):
        raise Error(f"{x} is not of square matrices")
    return Type(x.dtype, x.shape[:-2])
