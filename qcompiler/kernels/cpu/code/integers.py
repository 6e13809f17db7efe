"""Quotients and powers of integers, for which there are no vector instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm import tirx

from qcompiler.kernels.cpu.code import tir

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.math import TirMath
    from qcompiler.kernels.cpu.code.vec import Vec


def divide_long(m: TirMath, a: Vec, b: Vec) -> Vec:
    """64-bit division a lane at a time, of absolute values, so that neither 0 nor -1 traps. A
    maximum replaces the divisor 0 by 1, because LLVM (22) drops a select that is repeated later.
    """
    sign = (a ^ b) >> 63 if a.is_signed else None
    x, y = (m.bits(m.abs(v), "uint64") for v in (a, b))
    y = m.llvm("llvm.umax", y, m.like(1, y))
    quotient = m.bits(m.vec(tirx.Div(x.expr, y.expr)), a.dtype)
    return quotient if sign is None else (quotient ^ sign) - sign


def power(m: TirMath, x: Vec, y: Vec) -> Vec:
    """Repeated squaring, once for each bit of the exponent."""
    negative = y < 0
    if y.value is not None and 0 <= y.value < 8:
        made = m.like(1, x)
        for _ in range(int(y.value)):
            made = made * x
        return made
    left = m.where(negative, 0, y)
    made, square = m.widen(m.like(1, x), max(x.lanes, y.lanes)), x
    for _ in range(tir.bits(y.dtype) - y.is_signed):
        made = m.where((left & 1) != 0, made * square, made)
        left, square = left >> 1, square * square
    if not y.is_signed:
        return made
    odd = (y & 1) != 0
    return m.where(negative, m.trunc_div(1, m.where(odd, x, x * x)), made)
