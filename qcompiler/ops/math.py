"""The arithmetic of formulas, implemented by numpy here and by TIR in the kernels.

Values add, subtract, multiply, negate and compare with the usual signs, floats divide with `/`,
integers and booleans take `& | ^`, integers `<< >>` (on each other and on Python numbers, which
take the value's dtype). Everything else is a method of `m`. Formulas of `+ - * / max min round
cast` are bit-exact between numpy and kernels in float32: neither side contracts a multiply and an
add into one rounding.

The caller of a formula first widens low-precision operands (float16, bfloat16 and float8 to
float32, 4-bit integers to 8 bits) and casts the result to the output's dtype: such a formula rounds
once, at its end.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from qcompiler.ir import Array, numpy_dtype

V = Any
"""A value of the chosen arithmetic: a numpy array or a TIR vector."""


class Math(Protocol):
    """The operations available to formulas."""

    def max(self, a: V, b: V) -> V:
        """The larger one; NaN if either is NaN."""

    def min(self, a: V, b: V) -> V:
        """The smaller one; NaN if either is NaN."""

    def clip(self, x: V, low: V, high: V) -> V:
        """Not below `low`, then not above `high`; a bound of None or NaN is ignored."""

    def where(self, condition: V, a: V, b: V) -> V: ...
    def abs(self, x: V) -> V: ...
    def sign(self, x: V) -> V:
        """-1, 0 or 1; NaN for NaN."""

    def floor(self, x: V) -> V: ...
    def ceil(self, x: V) -> V: ...
    def round(self, x: V) -> V:
        """To the nearest integer, halves to even; the dtype stays."""

    def sqrt(self, x: V) -> V: ...
    def exp(self, x: V) -> V: ...
    def log(self, x: V) -> V: ...
    def tanh(self, x: V) -> V: ...
    def erf(self, x: V) -> V: ...
    def sin(self, x: V) -> V: ...
    def cos(self, x: V) -> V: ...
    def libm(self, name: str, x: V) -> V:
        """C's function of this name: tan asin acos atan sinh cosh asinh acosh atanh."""

    def pow(self, x: V, y: V) -> V:
        """x ** y, in x's dtype; y may have another."""

    def divide(self, a: V, b: V) -> V:
        """`/` on floats; integers round toward zero, and division by zero gives zero."""

    def trunc_div(self, a: V, b: V) -> V:
        """Integer division rounding toward zero; division by zero gives zero."""

    def remainder(self, a: V, b: V) -> V:
        """With the sign of the divisor, as Python's %."""

    def fmod(self, a: V, b: V) -> V:
        """With the sign of the dividend, as C's fmod; also for integers."""

    def logical_not(self, x: V) -> V: ...
    def is_nan(self, x: V) -> V: ...
    def cast(self, x: V, dtype: str) -> V:
        """C conversion: floats to integers round toward zero, to bool it is "not zero".

        Out-of-range values convert as on x86, everywhere: floats go to 32 bits or less by way of
        int32 (uint32 and wider: int64), whose lowest value stands for NaN and for out-of-range
        values (2^64 and more: 0 in uint64); integers keep their low bits.
        """

    def saturate(self, x: V, dtype: str) -> V:
        """Clip to the integer dtype's range, then cast; NaN becomes the lowest value."""

    def lookup(self, table: V, index: V) -> V:
        """table[index], a table of 256 entries; an int8 index counts from -128."""


class NumpyMath:
    """`Math` on numpy arrays, in the dtype of the operands."""

    def max(self, a: V, b: V) -> V:
        return np.maximum(a, b)

    def min(self, a: V, b: V) -> V:
        return np.minimum(a, b)

    def clip(self, x: V, low: V, high: V) -> V:
        if low is not None:
            x = np.maximum(x, _bound(low, -np.inf))
        return x if high is None else np.minimum(x, _bound(high, np.inf))

    def where(self, condition: V, a: V, b: V) -> V:
        return np.where(condition, a, b)

    def abs(self, x: V) -> V:
        return np.abs(x)

    def sign(self, x: V) -> V:
        return np.sign(x)

    def floor(self, x: V) -> V:
        return np.floor(x)

    def ceil(self, x: V) -> V:
        return np.ceil(x)

    def round(self, x: V) -> V:
        return np.rint(x)

    def sqrt(self, x: V) -> V:
        return np.sqrt(x)

    def exp(self, x: V) -> V:
        return np.exp(x)

    def log(self, x: V) -> V:
        return np.log(x)

    def tanh(self, x: V) -> V:
        return np.tanh(x)

    def erf(self, x: V) -> V:
        return _erf(np.asarray(x, np.float64)).astype(np.asarray(x).dtype)

    def sin(self, x: V) -> V:
        return np.sin(x)

    def cos(self, x: V) -> V:
        return np.cos(x)

    def libm(self, name: str, x: V) -> V:
        return getattr(np, name)(x)

    def pow(self, x: V, y: V) -> V:
        x, y = np.asarray(x), np.asarray(y)
        if x.dtype.kind == "f" and y.size == 1 and y == 0.5:
            # numpy takes the square root, which differs from the power at -0 and -inf.
            x = np.where(x + x == x, np.abs(x), x)
        if x.dtype.kind == "f" or y.dtype.kind == "f":
            return np.power(x, y.astype(x.dtype) if x.dtype.kind == "f" else y).astype(x.dtype)
        inverse = self.trunc_div(np.ones_like(x), np.where(y % 2 == 0, x * x, x))
        return np.where(y < 0, inverse, np.power(x, np.maximum(y, 0).astype(x.dtype)))

    def divide(self, a: V, b: V) -> V:
        return a / b if np.result_type(a, b).kind == "f" else self.trunc_div(a, b)

    def trunc_div(self, a: V, b: V) -> V:
        quotient = (a - np.fmod(a, b)) // np.where(b == 0, 1, b)
        return np.where(b == 0, 0, quotient).astype(np.asarray(a).dtype)

    def remainder(self, a: V, b: V) -> V:
        return np.remainder(a, b)

    def fmod(self, a: V, b: V) -> V:
        return np.fmod(a, b)

    def logical_not(self, x: V) -> V:
        return np.logical_not(x)

    def is_nan(self, x: V) -> V:
        return np.isnan(x)

    def cast(self, x: V, dtype: str) -> V:
        x, kind = np.asarray(x), numpy_dtype(dtype)
        if dtype == "float8_e8m0fnu":  # the exponent, whatever the mantissa and the sign
            raw = np.ascontiguousarray(x.astype(np.float32)).view(np.uint32).reshape(x.shape)
            return np.asarray(raw >> 23 & 0xFF, np.uint8).view(kind)
        whole = kind.kind in "iu" and x.dtype.kind == "f"
        return (_whole(x, kind) if whole else x).astype(kind)

    def saturate(self, x: V, dtype: str) -> V:
        info = ml_dtypes.iinfo(numpy_dtype(dtype))  # type: ignore[no-untyped-call]
        wide = np.asarray(x, np.float64 if np.asarray(x).dtype.kind == "f" else np.int64)
        return np.minimum(np.fmax(wide, int(info.min)), int(info.max)).astype(numpy_dtype(dtype))

    def lookup(self, table: V, index: V) -> V:
        return table[index.astype(np.int64) + (128 if index.dtype == np.int8 else 0)]

    def widen(self, x: Array) -> Array:
        """The array in a dtype numpy can compute in."""
        wide = _WIDE.get(x.dtype.name)
        return x if wide is None else x.astype(wide)

    def finish(self, x: V, dtype: str) -> Array:
        """A formula's result -> an array of this dtype."""
        array: Array = np.asarray(x).astype(numpy_dtype(dtype), copy=False)
        return array


_WIDE = {
    "float16": "float32",
    "bfloat16": "float32",
    "float8_e4m3fn": "float32",
    "float8_e4m3fnuz": "float32",
    "float8_e5m2": "float32",
    "float8_e5m2fnuz": "float32",
    "float8_e8m0fnu": "float32",
    "float4_e2m1fn": "float32",
    "int4": "int8",
    "uint4": "uint8",
    "int2": "int8",
    "uint2": "uint8",
}

_ERF_STEP = 1 / 512
_ERF_END = 6.0
"""erf rounds to 1 in float64 from here on."""
_ERF_TABLE = np.array([math.erf(i * _ERF_STEP) for i in range(round(_ERF_END / _ERF_STEP) + 1)])


def _erf(x: V) -> V:
    """float64: the nearest table entry and four terms of its Taylor series; error 1e-15."""
    positive = np.minimum(np.abs(x), _ERF_END)
    entry = np.rint(np.where(np.isnan(x), 0, positive) / _ERF_STEP).astype(np.int64)
    a = entry * _ERF_STEP
    h = positive - a
    slope = 2 / math.sqrt(math.pi) * np.exp(-a * a)
    series = 1 + h * (-a + h * ((2 * a * a - 1) / 3 + h * (3 * a - 2 * a**3) / 6))
    return np.copysign(_ERF_TABLE[entry] + slope * h * series, x)


def _bound(value: V, nothing: float) -> V:
    """A bound, with NaN replaced by a value that has no effect."""
    floats = isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f"
    return np.where(np.isnan(value), value.dtype.type(nothing), value) if floats else value


def _whole(x: V, kind: np.dtype[Any]) -> V:
    """Floats -> 64-bit integers, to be truncated to `kind`."""
    bits = 32 if kind.itemsize < 4 or kind == np.int32 else 64
    fits = np.abs(x) < 2.0 ** (bits - 1)
    made = np.where(fits, x, 0).astype(np.int64)
    made = np.where(fits, made, -(1 << (bits - 1)))
    if kind != np.uint64:
        return made
    upper, beyond = x >= 2.0**63, x >= 2.0**64
    high = np.where(upper & ~beyond, x, 0).astype(np.uint64)
    return np.where(upper, high, made.astype(np.uint64))


NUMPY = NumpyMath()
