"""Hides float operands from TVM, which folds them as if none were infinite or NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm_ffi

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.vec import Vec

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.math import TirMath


def twin(m: TirMath, a: Vec, b: Vec) -> Vec:
    """`b`, hidden if it is the same value as `a`: TVM folds x - x to 0 and x == x to true."""
    same = a.is_float and tvm_ffi.structural_equal(a.expr, b.expr)
    return _hidden(m, b) if same else b


def zero(m: TirMath, x: Vec) -> Vec:
    """A factor or dividend, hidden if it is zero: TVM folds 0 * x and 0 / x to 0."""
    return _hidden(m, x) if x.is_float and x.value == 0 else x


def _hidden(m: TirMath, x: Vec) -> Vec:
    """The same float behind LLVM's fence, which TVM knows nothing about."""
    return m.vec(tir.llvm(x.dtype, x.lanes, "llvm.arithmetic.fence", x.expr))
