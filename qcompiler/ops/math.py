"""The arithmetic that formulas are written in: one protocol, read by numpy here and by TIR in the kernels.

Values add, subtract, multiply, divide, negate and compare with the usual signs (among themselves and with Python
numbers, which take the value's dtype). Everything else is a method of `m`. Formulas of `+ - * / max min round cast` are
bit-exact between numpy and kernels in float32: neither side contracts a product and a sum into one rounding.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from qcompiler.ir import Array, Type, numpy_dtype

V = Any
"""A value of whichever arithmetic reads the formula: a numpy array or a vector of TIR."""


class Math(Protocol):
    """What a formula may use."""

    def max(self, a: V, b: V) -> V: ...
    def min(self, a: V, b: V) -> V: ...
    def clip(self, x: V, low: V, high: V) -> V: ...
    def where(self, condition: V, a: V, b: V) -> V: ...
    def abs(self, x: V) -> V: ...
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
    def pow(self, x: V, y: V) -> V: ...
    def trunc_div(self, a: V, b: V) -> V:
        """Integer division that rounds towards zero."""

    def remainder(self, a: V, b: V) -> V:
        """With the sign of the divisor, as Python's %."""

    def logical_not(self, x: V) -> V: ...
    def is_nan(self, x: V) -> V: ...
    def cast(self, x: V, dtype: str) -> V:
        """C conversion: floats to integers round towards zero."""

    def saturate(self, x: V, dtype: str) -> V:
        """Clip to the integer dtype's range, then cast."""


class NumpyMath:
    """`Math` on numpy arrays, in the dtype of the operands."""

    def max(self, a: V, b: V) -> V:
        return np.maximum(a, b)

    def min(self, a: V, b: V) -> V:
        return np.minimum(a, b)

    def clip(self, x: V, low: V, high: V) -> V:
        return np.minimum(np.maximum(x, low), high)

    def where(self, condition: V, a: V, b: V) -> V:
        return np.where(condition, a, b)

    def abs(self, x: V) -> V:
        return np.abs(x)

    def floor(self, x: V) -> V:
        return np.floor(x)

    def ceil(self, x: V) -> V:
        return np.ceil(x)

    def round(self, x: V) -> V:
        return np.rint(x)

    def sqrt(self, x: V) -> V:
        with np.errstate(invalid="ignore"):
            return np.sqrt(x)

    def exp(self, x: V) -> V:
        with np.errstate(over="ignore"):
            return np.exp(x)

    def log(self, x: V) -> V:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(x)

    def tanh(self, x: V) -> V:
        return np.tanh(x)

    def erf(self, x: V) -> V:
        """Error function in float64 (Abramowitz and Stegun 7.1.6 series and continued fraction 7.1.14)."""
        return _erf(np.asarray(x, np.float64)).astype(np.asarray(x).dtype)

    def sin(self, x: V) -> V:
        return np.sin(x)

    def cos(self, x: V) -> V:
        return np.cos(x)

    def pow(self, x: V, y: V) -> V:
        with np.errstate(all="ignore"):
            return np.power(x, y)

    def trunc_div(self, a: V, b: V) -> V:
        quotient = np.abs(a) // np.where(b == 0, 1, np.abs(b))
        return (quotient * np.sign(a) * np.sign(b)).astype(np.asarray(a).dtype)

    def remainder(self, a: V, b: V) -> V:
        return np.remainder(a, b)

    def logical_not(self, x: V) -> V:
        return np.logical_not(x)

    def is_nan(self, x: V) -> V:
        return np.isnan(x)

    def cast(self, x: V, dtype: str) -> V:
        with np.errstate(invalid="ignore"):
            return np.asarray(x).astype(numpy_dtype(dtype))

    def saturate(self, x: V, dtype: str) -> V:
        info = np.iinfo(dtype)
        return np.clip(x, info.min, info.max).astype(dtype)

    def finish(self, x: V, type: Type) -> Array:
        """A formula's result -> an array of just this type."""
        array = np.asarray(x)
        return np.broadcast_to(array, type.dims).astype(numpy_dtype(type.dtype), copy=False)


def _erf(x: V) -> V:
    import math

    flat = np.frompyfunc(math.erf, 1, 1)(x)
    return np.asarray(flat, np.float64)


NUMPY = NumpyMath()
