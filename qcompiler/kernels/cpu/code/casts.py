"""Values of one dtype -> of another: casts as in C, saturating casts, and quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import tirx

from qcompiler.kernels.cpu.code import narrow, tir

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.math import TirMath
    from qcompiler.kernels.cpu.code.vec import Vec

HALF_FLOATS = ("float16", "bfloat16")
"""16-bit floats, whose arithmetic is done in float32."""


def cast(m: TirMath, x: Vec, dtype: str) -> Vec:
    """Convert as C does: from floats towards zero; out of range to the lowest value of int32 or
    int64, then to the dtype (LLVM's own conversion is undefined there).
    """
    if dtype == x.dtype:
        return x
    if x.dtype in narrow.NARROW:
        return m.cast(narrow.widened(m, x), dtype)
    if dtype in narrow.NARROW:
        return narrow.narrowed(m, x, dtype)
    if x.value is not None and dtype not in (*HALF_FLOATS, "bool") and np.isfinite(x.value):
        return m.splat(int(x.value) if "int" in dtype else x.value, dtype, x.lanes)
    if dtype == "bool":
        return x != 0
    if x.dtype == "bool":
        if dtype in HALF_FLOATS:
            return m.cast(m.cast(x, "float32"), dtype)
        return m.where(x, m.splat(1, dtype, x.lanes), m.splat(0, dtype, x.lanes))
    if x.dtype in HALF_FLOATS and dtype != "float32":
        return m.cast(m.cast(x, "float32"), dtype)
    if dtype in HALF_FLOATS and x.dtype != "float32":
        return m.cast(m.cast(x, "float32"), dtype)
    if x.dtype == "bfloat16":
        wide = m.vec(tir.cast(x.expr, "int32")) << 16
        return m.bits(wide, "float32")
    if dtype == "bfloat16":
        return _to_bfloat16(m, x)
    if x.is_float and "int" in dtype:
        return _to_integer(m, x, dtype)
    return m.converted(x, dtype)


def _to_integer(m: TirMath, x: Vec, dtype: str) -> Vec:
    """A float's integer part; the lowest value for NaN and out of range."""
    if dtype in ("int8", "uint8", "int16", "uint16"):
        return m.cast(_to_integer(m, x, "int32"), dtype)
    if dtype == "uint32":
        return m.cast(_to_integer(m, x, "int64"), dtype)
    if dtype == "uint64":
        upper, held = x >= 2.0**63, (x >= 2.0**63) & (x < 2.0**64)
        high = m.converted(m.where(held, x, 0.0), dtype)
        return m.where(upper, high, m.cast(_to_integer(m, x, "int64"), dtype))
    most = 2.0 ** (tir.bits(dtype) - 1)
    fits = m.abs(x) < most
    return m.where(fits, m.converted(x, dtype), -int(most))


def _to_bfloat16(m: TirMath, x: Vec) -> Vec:
    """The upper half, rounded to nearest even; NaN stays NaN."""
    own = m.isa.lanes(4)
    if m.flush and "to_bfloat16" in m.isa.intrinsics and x.lanes % own == 0:
        half = m.isa.intrinsics["to_bfloat16"]
        parts = [tir.shuffle(x.expr, range(i, i + own)) for i in range(0, x.lanes, own)]
        return m.vec(tir.concat([half(p) for p in parts]), "bfloat16")
    raw = m.bits(x, "int32")
    even = (raw >> 16) & 1
    rounded = m.where(m.is_nan(x), raw | 0x400000, raw + (even + 0x7FFF))
    upper = m.bits(rounded, "uint32") >> 16
    return m.vec(tir.cast(upper.expr, "uint16"), "bfloat16")


def saturate(m: TirMath, x: Vec, dtype: str) -> Vec:
    """Clip to an integer dtype's range, then cast; NaN becomes the lowest value."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if x.dtype in HALF_FLOATS:
        x = m.cast(x, "float32")
    if not x.is_float:
        own = np.iinfo(x.dtype)
        x = m.max(x, low) if low > own.min else x
        return m.cast(m.min(x, high) if high < own.max else x, dtype)
    kind = np.dtype(x.dtype).type
    top = kind(high) if int(kind(high)) <= high else np.nextafter(kind(high), kind(0))
    least = m.where(x > low, x, low)  # NaN: low
    whole = _in_range(m, m.min(least, top), dtype)
    return whole if int(top) == high else m.where(x > top, high, whole)


def quantize(
    m: TirMath,
    x: Vec,
    factor: Vec,
    zero: Vec,
    *,
    dtype: str,
    divide: int = 0,
    fits: bool = False,
    numbers: bool = False,
    short: bool = False,
    least: bool = False,
) -> Vec:
    """The operator `quantize`, bit for bit, in half its instructions: clipped to integers before
    rounding, it needs no rounded sum in float32. `fits`, `short`: rounded values are known to fit
    int32, or int16; `numbers`: known not to be NaN; `least`: the zero point is known to be -128 and
    the dtype int8. Both `short` and `least` are known only where there is "quantize_short".
    """
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    shift = m.cast(zero, "float32")
    scaled = x / factor if divide else x * factor
    if high >= 1 << 22:  # float32 cannot hold the limits minus a zero point
        return m.saturate(m.round(scaled) + shift, dtype)
    lowest, most = low - shift, high - shift
    lanes = scaled.lanes
    several, own = m.isa.intrinsics.get("quantize"), m.isa.lanes()
    nothing = zero.value == 0
    if several and lanes in (2 * own, 4 * own) and high < 256 and (nothing or zero.lanes == 1):
        parts = (tir.shuffle(scaled.expr, range(i, i + own)) for i in range(0, lanes, own))
        held, add = [m.vec(p).expr for p in parts], None if nothing else zero.expr
        known = {"bounded": fits, "numbers": numbers}
        if short or least:
            several = m.isa.intrinsics["quantize_short"]
            known |= {"short": short, "least": least}
        made = several(held, add, dtype, **known)
        return m.vec(made, dtype)
    scaled = m.choose(tirx.GT, scaled, m.widen(lowest, lanes))  # NaN: the least
    scaled = m.choose(tirx.LT, scaled, m.widen(most, lanes))
    if "round_to_int" in m.isa.intrinsics and lanes == m.isa.lanes():
        whole = m.vec(m.isa.intrinsics["round_to_int"](scaled.expr))
    else:
        whole = rounded(m, scaled)
    return m.cast(whole + zero, dtype)


def dequantize_short(m: TirMath, x: Vec, scale: Vec, zero: Vec) -> Vec:
    """The operator `dequantize`, bit for bit, of bytes whose zero point is a byte, too: their
    differences fit 16 bits, of which a vector has twice as many.
    """
    return m.cast(m.cast(x, "int16") - m.cast(zero, "int16"), "float32") * scale


def own(m: TirMath, name: str, x: Vec) -> Vec | None:
    """A function that LLVM knows, of float32 in whole vectors, as the instruction set's own code
    for one vector (an intrinsic of LLVM's name); None where it has none.
    """
    function, lanes = m.isa.intrinsics.get(name), m.isa.lanes()
    if function is None or x.dtype != "float32" or x.lanes % lanes:
        return None
    parts = (tir.shuffle(x.expr, range(i, i + lanes)) for i in range(0, x.lanes, lanes))
    return m.vec(tir.concat([function(m.vec(part).expr) for part in parts]))


def rounded(m: TirMath, x: Vec) -> Vec:
    """Floats within the range of int32 -> int32, halves to even."""
    found = own(m, "llvm.lrint", x)
    return m.converted(m.round(x), "int32") if found is None else found


def _in_range(m: TirMath, x: Vec, dtype: str) -> Vec:
    """Floats within an integer dtype's range -> the dtype."""
    kind = {"uint32": "int64"}.get(dtype, "int32" if tir.bits(dtype) < 32 else dtype)
    return m.cast(m.converted(x, kind), dtype)
