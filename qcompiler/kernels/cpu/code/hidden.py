"""Float operands that TVM would fold as if no number was infinite or NaN, hidden from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm_ffi

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.vec import Vec

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.math import TirMath


def twin(m: TirMath, a: Vec, b: Vec) -> Vec:
    """`b`, hidden where it is the same float as `a`: TVM takes x - x for 0 and x == x for true."""
    same = a.is_float and tvm_ffi.structural_equal(a.expr, b.expr)
    return _hidden(m, b) if same else b


def zero(m: TirMath, x: Vec) -> Vec:
    """A factor or dividend, hidden where it is zero: TVM takes 0 * x and 0 / x for 0."""
    return _hidden(m, x) if x.is_float and x.value == 0 else x


def _hidden(m: TirMath, x: Vec) -> Vec:
    """The same float; LLVM's fence keeps its value and says nothing of it."""
    return m.vec(tir.llvm(x.dtype, x.lanes, "llvm.arithmetic.fence", x.expr))
