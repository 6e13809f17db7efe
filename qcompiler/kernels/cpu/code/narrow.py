"""Floats and integers below 16 bits, a byte each in memory <-> float32, int8 and uint8.

Rounding is to nearest, ties to even, as ml_dtypes does it. Beyond the largest finite number comes
infinity, NaN where a type has none, and the largest number where it has neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.kernels.cpu.code.vec import Vec

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.math import TirMath


@dataclass(frozen=True)
class _Float:
    """Bits of exponent and mantissa; `most` is the code of the largest finite number, `over` that
    of what is larger. `nan` is None where every code is a number.
    """

    exponent: int
    mantissa: int
    bias: int
    most: int
    over: int
    nan: int | None
    negative_zero: bool = True
    infinite: bool = False

    @property
    def sign(self) -> int:
        """The place of the sign bit."""
        return self.exponent + self.mantissa


FLOATS = {
    "float8_e4m3fn": _Float(4, 3, 7, 0x7E, 0x7F, 0x7F),
    "float8_e4m3fnuz": _Float(4, 3, 8, 0x7F, 0x80, 0x80, negative_zero=False),
    "float8_e5m2": _Float(5, 2, 15, 0x7B, 0x7C, 0x7E, infinite=True),
    "float8_e5m2fnuz": _Float(5, 2, 16, 0x7F, 0x80, 0x80, negative_zero=False),
    "float4_e2m1fn": _Float(2, 1, 1, 7, 7, None),
}
INTEGERS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2}
"""dtype -> its bits."""

POWERS = "float8_e8m0fnu"
"""The exponent of a float32, and nothing else."""

NARROW = frozenset({*FLOATS, *INTEGERS, POWERS})


def widened(m: TirMath, x: Vec) -> Vec:
    """A narrow value -> float32, int8 or uint8."""
    code = Vec(m, x.expr, "uint8", x.lanes)
    if x.dtype in INTEGERS:
        return _integer(m, code, x.dtype)
    wide = m.cast(code, "int32")
    if x.dtype == POWERS:
        value = m.bits(m.where(wide == 0, 1 << 22, wide << 23), "float32")
        return m.where(wide == 255, np.nan, value)
    f = FLOATS[x.dtype]
    size = wide & ((1 << f.sign) - 1)
    normal = m.bits((size << (23 - f.mantissa)) + ((127 - f.bias) << 23), "float32")
    tiny = m.cast(size, "float32") * 2.0 ** (1 - f.bias - f.mantissa)
    value = m.where(size < (1 << f.mantissa), tiny, normal)
    if f.infinite:
        value = m.where(size == f.over, np.inf, value)
    if f.infinite or (f.nan is not None and f.negative_zero):
        value = m.where(size > (f.over if f.infinite else f.most), np.nan, value)
    value = m.where((wide >> f.sign) == 1, -value, value)
    return value if f.negative_zero else m.where(wide == f.over, np.nan, value)


def _integer(m: TirMath, code: Vec, dtype: str) -> Vec:
    bits = INTEGERS[dtype]
    kept = code & ((1 << bits) - 1)
    if dtype.startswith("u"):
        return kept
    half = 1 << (bits - 1)
    return (m.cast(kept, "int8") ^ half) - half


def narrowed(m: TirMath, x: Vec, dtype: str) -> Vec:
    """A wide value -> a narrow one: floats rounded, integers cut to their lowest bits."""
    if dtype in INTEGERS:
        whole = m.cast(x, "int32") if x.is_float or x.dtype == "bool" else x
        code = m.cast(whole, "uint8") & ((1 << INTEGERS[dtype]) - 1)
        return Vec(m, code.expr, dtype, code.lanes)
    x = m.cast(x, "float32")
    raw = m.bits(x, "int32")
    if dtype == POWERS:
        code = m.cast((raw >> 23) & 255, "uint8")
        return Vec(m, code.expr, dtype, code.lanes)
    f = FLOATS[dtype]
    size, shift = raw & 0x7FFFFFFF, 23 - f.mantissa
    odd = (size >> shift) & 1
    rounded = (size + odd + ((1 << (shift - 1)) - 1)) >> shift
    normal = rounded - ((127 - f.bias) << f.mantissa)
    scaled = m.min(m.abs(x), 2.0 ** (1 - f.bias)) * 2.0 ** (f.bias - 1 + f.mantissa)
    tiny = m.cast(m.round(scaled), "int32")
    code = m.where(m.abs(x) < 2.0 ** (1 - f.bias), tiny, normal)
    code = m.where(code > f.most, f.over, code)
    signed = code | (((raw >> 31) & 1) << f.sign)
    if not f.negative_zero:
        signed = m.where(code == 0, 0, m.where(code == f.over, f.over, signed))
    nan = 1 << f.sign if f.nan is None else f.nan
    made = m.cast(m.where(m.is_nan(x), nan, signed), "uint8")
    return Vec(m, made.expr, dtype, made.lanes)
