"""A float32 vector -> its exp, log, tanh, erf, sin, cos or pow, by polynomials: branch-free, except
for large angles.

Largest errors over all finite inputs, in units in the last place (the tests measure them):

    exp 1   log 0.9   tanh 1.4   erf 1.1   sin, cos 1.6   pow 0.6

Denormals, infinities and NaN come out right. The polynomials are minimax fits made for this file
(Lawson's iteratively reweighted least squares on Chebyshev points; coefficients rounded to float32
one at a time from the lowest power up, the rest refitted). The range reductions are the classic
ones: W. J. Cody and W. Waite, "Software Manual for the Elementary Functions", 1980; S. L. Moshier,
the Cephes library; for erf, the exponential form that N. Juffa has described.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf, nan, pi, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.kernels.cpu.code.math import TirMath
    from qcompiler.kernels.cpu.code.vec import Vec

# e^r = 1 + r + r^2 q(r), |r| <= ln(2)/2: relative error 2^-28.3
_EXP = ("0x1.fffffcp-2", "0x1.555492p-3", "0x1.5558aap-5", "0x1.12396ep-7", "0x1.6a524ep-10")
# log(1 + f) = f - f^2/2 + f^3 p(f), sqrt(1/2) <= 1 + f <= sqrt(2): 2^-27.4
_LOG = (
    *("0x1.555554p-2", "-0x1.000226p-2", "0x1.99a01cp-3", "-0x1.54728ap-3"),
    *("0x1.22d92ep-3", "-0x1.0d8242p-3", "0x1.055ec6p-3", "-0x1.38c9dep-4"),
)
# tanh(x) = x + x^3 p(x^2), |x| <= 0.625: 2^-27.7
_TANH = ("-0x1.555532p-2", "0x1.1106f6p-3", "-0x1.b835a4p-5", "0x1.51f8cep-6", "-0x1.750ce4p-8")
# erf(x) = x + x p(x^2), |x| <= 0.9277: 2^-25.8
_ERF_SMALL = (
    *("0x1.06eba6p-3", "-0x1.8126e4p-2", "0x1.ce19e8p-4"),
    *("-0x1.b681d8p-6", "0x1.46fcc6p-8", "-0x1.390398p-11"),
)
# erf(t) = 1 - exp(-(t + t p(t))), 0.9277 <= t <= 3.95: 2^-28.3
_ERF_LARGE = (
    *("0x1.073142p-3", "0x1.457df2p-1", "0x1.af1bccp-4"),
    *("-0x1.76ead4p-6", "0x1.a51d10p-9", "-0x1.c03998p-13"),
)
# sin(r) = r + r^3 p(r^2) and cos(r) = 1 - r^2/2 + r^4 p(r^2), |r| <= pi/4: 2^-32.5, 2^-33
_SIN = ("-0x1.555556p-3", "0x1.111174p-7", "-0x1.a05956p-13", "0x1.7c2d9cp-19")
_COS = ("0x1.55554ap-5", "-0x1.6c0c28p-10", "0x1.99e80cp-16")

# (1 - erf(x / sqrt(2))) = 2^(x p(x)), 0 <= x <= 5.75: error below 2^-24 of its square root
_GELU = (
    *("-0x1.26aef0p+0", "-0x1.d636a0p-2", "-0x1.ae6aaep-5", "0x1.d25fea0p-8", "-0x1.4d0a7ep-13"),
    *("-0x1.91c1eap-13", "0x1.89400ap-15", "-0x1.54dddcp-18", "0x1.db4aa2p-23"),
)
# gelu(x) = max(x, 0) - t p(t)^n, t = min(|x|, most): (most, n, p) by the formula and what the
# result is rounded to; errors 2^-15.8, 2^-18.8, 2^-15.5 and 2^-17 of x
_GELU_ROUNDED: Mapping[tuple[str, str], tuple[float, int, tuple[str, ...]]] = {
    ("none", "byte"): (
        4.4,
        4,
        (
            *("0x1.ae8908p-1", "-0x1.571c5ap-3", "-0x1.a1a122p-5"),
            *("0x1.656ae2p-8", "0x1.01a434p-8", "-0x1.49dd46p-11"),
        ),
    ),
    ("none", "bfloat16"): (
        5.2,
        8,
        (
            *("0x1.d5819cp-1", "-0x1.76b156p-4", "-0x1.0466dcp-5"),
            *("-0x1.0b33dcp-10", "0x1.f09428p-10", "-0x1.80505ap-13"),
        ),
    ),
    ("tanh", "byte"): (
        4.1,
        4,
        (
            *("0x1.ae88dcp-1", "-0x1.56f9a4p-3", "-0x1.a525c2p-5"),
            *("0x1.a6a4ecp-8", "0x1.bdbeccp-9", "-0x1.2a97f0p-11"),
        ),
    ),
    ("tanh", "bfloat16"): (
        4.6,
        8,
        (
            *("0x1.d58158p-1", "-0x1.766ad2p-4", "-0x1.0721b2p-5"),
            *("-0x1.b16adap-12", "0x1.b29cdap-10", "-0x1.83131ep-13"),
        ),
    ),
}
# x / (1 + e^x) = x / p(x)^2, 0 <= x <= 11: 2^-10.9 of the most that it is, 0.28, if all that
# follows is exact; coefficients are float16, in which it is computed
_SWISH_HALF = ("0x1.6a0p+0", "0x1.6e8p-2", "0x1.e58p-4", "0x1.490p-5", "-0x1.094p-8", "0x1.2d4p-10")
# 2^f / 2 = 1/2 + f p(f), |f| <= 1/2: 2^-23.4
_HALF_EXP2 = ("0x1.62e42ap-2", "0x1.ebf9c2p-4", "0x1.c6b6dcp-6", "0x1.3ce8c0p-8", "0x1.5bd898p-11")

# 2^f = 1 + f p(f), |f| <= 1/2: 2^-23.4
_EXP2 = ("0x1.62e42ap-1", "0x1.ebf9c2p-3", "0x1.c6b6dcp-5", "0x1.3ce8c0p-7", "0x1.5bd898p-10")
# 2^f, |f| <= 1/2: 2^-13.7
_EXP2_COARSE = ("0x1.fff692p-1", "0x1.62f31ap-1", "0x1.f0de1cp-3", "0x1.c3f762p-5")

_FAR_ANGLE = 2.0**40
"""From here on some float32 angles are closer to a multiple of pi/2 than a two-part float64 pi/2
resolves: the error, 1.6 ulp for every float32 below, is 7.5 at 2^40 and grows without limit.
"""
_TWO_BY_PI = 0x517CC1B727220A94FE13ABE8FA9A6EE06DB14ACC9E21C820FF2
_TWO_BY_PI_PARTS = 7
"""203 bits after the point, 29 a part: 128 for the largest exponent, 31 that may be zero, because
no float32 is closer to a multiple of pi/2 than 2^-30, and the rest for what is left.
"""

_LOG2_E = float.fromhex("0x1.715476p+0")
_LN2_HIGH = float.fromhex("0x1.62e430p-1")
_LN2_LOW = float.fromhex("-0x1.05c610p-29")
_ROUND = 1.5 * 2**23  # adding it leaves the nearest integer in the low bits of the sum
_ROUND_BITS = 0x4B400000
_ROUND_WIDE = 1.5 * 2**52  # the same for float64


def polynomial(m: TirMath, x: Vec, coefficients: Sequence[str | float]) -> Vec:
    """x and c0, c1, ... -> c0 + x (c1 + x (...)), each step in one rounding."""
    values = [float.fromhex(c) if isinstance(c, str) else c for c in coefficients]
    total = m.like(values[-1], x)
    for value in reversed(values[:-1]):
        total = m.fma(total, x, value)
    return total


def _exp_parts(m: TirMath, x: Vec) -> tuple[Vec, Vec]:
    """x within [-104, 89] -> (e^r in [0.7, 1.42], integer n) with e^x = 2^n e^r."""
    shifted = m.fma(x, _LOG2_E, _ROUND)
    n = shifted - _ROUND
    r = m.fma(n, -_LN2_LOW, m.fma(n, -_LN2_HIGH, x))
    fraction = m.fma(polynomial(m, r, _EXP), r * r, r) + 1.0
    return fraction, m.bits(shifted, "int32") - _ROUND_BITS


def _power_of_two(m: TirMath, n: Vec) -> Vec:
    """int32 n within [-126, 127] -> 2^n."""
    return m.bits((n << 23) + 0x3F800000, "float32")


def exp(m: TirMath, x: Vec) -> Vec:
    """e^x; the power of two is split in two factors, for gradual denormals and infinity."""
    fraction, n = _exp_parts(m, m.clip(x, -104.0, 89.0))
    half = n >> 1
    return fraction * _power_of_two(m, half) * _power_of_two(m, n - half)


def exp2_least(m: TirMath, x: Vec, *, rough: bool) -> Vec:
    """2^x for x <= 126, and 2^-126 where that is larger. For softmax, whose weights are rounded
    anyway. `rough`: with an error of 2^-13.7, for weights of 8 bits or bfloat16.
    """
    x = m.larger(m.like(-126.0, x), x)
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    if rough:
        power = polynomial(m, f, _EXP2_COARSE)
    else:
        power = m.fma(polynomial(m, f, _EXP2), f, 1.0)
    return m.bits(m.bits(power, "int32") + (m.bits(shifted, "int32") << 23), "float32")


def sigmoid(m: TirMath, x: Vec) -> Vec:
    """1 / (1 + e^-x); 0 where that is less than 2^-127.5 (as 2^128 is infinity), so that products
    with the largest numbers are 0 too.
    """
    fraction, n = _exp_parts(m, m.clip(-x, -87.0, 89.0))
    return 1.0 / (fraction * _power_of_two(m, n) + 1.0)


def swish(m: TirMath, x: Vec, *, alpha: float) -> Vec:
    """x sigmoid(alpha x)."""
    return x * sigmoid(m, x if alpha == 1 else x * alpha)


def swish_rounded(m: TirMath, x: Vec, *, alpha: float, to: str) -> Vec:
    """Swish for a result that is rounded `to` a "byte" or "bfloat16": error 2^-13.5 of it; to a
    byte where there is arithmetic in float16, 2^-10 of x, and below 2^-10.8 / alpha anywhere.

    The difference to max(x, 0) is |x| sigmoid(-|alpha x|), whose exponential is coarse.
    """
    if not 2.0**-4 <= alpha <= 2.0**4:
        return swish(m, x, alpha=alpha)
    if to == "byte" and "half_minimum" in m.isa.intrinsics:
        return _swish_by_halves(m, x, alpha)
    size = m.min(m.abs(x if alpha == 1 else x * alpha), 80.0)
    shifted = m.fma(size, -_LOG2_E, _ROUND)
    f = m.fma(size, -_LOG2_E, _ROUND - shifted)
    power = m.bits(polynomial(m, f, _EXP2_COARSE), "int32") + (m.bits(shifted, "int32") << 23)
    away = m.bits(power, "float32")
    tail = size * away / (away + 1.0)
    return m.max(x, 0.0) - tail if alpha == 1 else m.fma(tail, -1 / alpha, m.max(x, 0.0))


def _swish_by_halves(m: TirMath, x: Vec, alpha: float) -> Vec:
    """Swish whose difference to max(x, 0), 0.28 / alpha at most, is computed in float16, in vectors
    of twice as many numbers. From |x| = 11 / alpha on it is a constant below 2^-11 / alpha, so what
    is infinite in float16 comes right.
    """
    half = m.cast(x if alpha == 1 else x * alpha, "float16")
    most = m.like(11.0, half)
    size = m.vec(m.isa.intrinsics["half_minimum"](m.llvm("llvm.fabs", half).expr, most.expr))
    root = polynomial(m, size, _SWISH_HALF)
    tail = m.cast(m.vec(size.expr / (root.expr * root.expr)), "float32")
    return m.max(x, 0.0) - tail if alpha == 1 else m.fma(tail, -1 / alpha, m.max(x, 0.0))


def gelu(m: TirMath, x: Vec, *, approximate: str) -> Vec:
    """x times the cumulative normal distribution; error 2e-7 of x, 0 where that rounds to 0.

    Takes one exponential; the formula by erf also needs a polynomial near zero.
    """
    if approximate == "tanh":
        return x * sigmoid(m, (x + x * x * x * 0.044715) * (2 * sqrt(2 / pi)))
    size = m.min(m.abs(x), 5.75)
    power = polynomial(m, size, _GELU) * size
    shifted = power + _ROUND
    f = power - (shifted - _ROUND)
    half = m.fma(polynomial(m, f, _HALF_EXP2), f, 0.5)
    beyond = m.bits(m.bits(half, "int32") + (m.bits(shifted, "int32") << 23), "float32")
    share = m.where(x < 0.0, beyond, 1.0 - beyond)
    return x * m.where(x > -5.75, share, 0.0)


def gelu_rounded(m: TirMath, x: Vec, *, approximate: str, to: str) -> Vec:
    """Gelu for a result that is rounded `to` a "byte" (error 2^-15.5 of x, and below 7e-5 anywhere)
    or "bfloat16" (2^-17 of x, below 3e-5).

    The difference to max(x, 0) is x times a power of a polynomial, whose tail decays like that of
    the normal distribution.
    """
    most, times, coefficients = _GELU_ROUNDED[approximate, to]
    size = m.min(m.abs(x), most)
    power = polynomial(m, size, coefficients)
    while times > 1:
        power, times = power * power, times // 2
    return m.fma(-size, power, m.max(x, 0.0))


def log(m: TirMath, x: Vec) -> Vec:
    """Natural logarithm: -inf of zeros, NaN of negative numbers."""
    tiny = x < 2.0**-126
    scaled = m.where(tiny, x * 2.0**23, x)
    raw = m.bits(scaled, "int32") - 0x3F3504F3  # sqrt(1/2)
    f = m.bits((raw & 0x7FFFFF) + 0x3F3504F3, "float32") - 1.0
    e = m.cast(raw >> 23, "float32") - m.where(tiny, m.splat(23.0, "float32"), 0.0)
    square = f * f
    low = m.fma(e, _LN2_LOW, m.fma(square, -0.5, polynomial(m, f, _LOG) * square * f))
    result = m.fma(e, _LN2_HIGH, f + low)
    result = m.where(x < inf, result, x)  # infinity and NaN
    return m.where(x > 0.0, result, m.where(x == 0.0, -inf, m.where(x < 0.0, nan, x)))


def tanh(m: TirMath, x: Vec) -> Vec:
    """A polynomial near zero, 1 - 2 / (e^2x + 1) elsewhere."""
    size = m.abs(x)
    square = x * x
    near = m.fma(polynomial(m, square, _TANH) * square, x, x)
    fraction, n = _exp_parts(m, m.min(size + size, 20.0))
    far = 1.0 - 2.0 / (fraction * _power_of_two(m, n) + 1.0)
    return m.llvm("llvm.copysign", m.where(size < 0.625, near, far), x)


def erf(m: TirMath, x: Vec) -> Vec:
    """A polynomial near zero, 1 - exp(-p(|x|)) elsewhere."""
    size = m.abs(x)
    near = m.fma(polynomial(m, x * x, _ERF_SMALL), x, x)
    t = m.min(size, 4.0)
    fraction, n = _exp_parts(m, -m.fma(polynomial(m, t, _ERF_LARGE), t, t))
    far = 1.0 - fraction * _power_of_two(m, n)
    return m.where(size < 0.9277, near, m.llvm("llvm.copysign", far, x))


def sin(m: TirMath, x: Vec) -> Vec:
    """Sine; the angle is reduced in float64."""
    return _sine(m, x, 0)


def cos(m: TirMath, x: Vec) -> Vec:
    """Cosine."""
    return _sine(m, x, 1)


def _sine(m: TirMath, x: Vec, quarters: int) -> Vec:
    """sin(x + quarters * pi/2)."""
    wide = m.cast(x, "float64")
    far = m.abs(x) >= _FAR_ANGLE
    near = _near_reduced(m, wide)
    r, quarter = m.unless(far, near, lambda: _far_reduced(m, wide))
    quarter = quarter + quarters
    square = r * r
    # adds a negligible number, or -0 would become 0 - 0
    s = m.fma(m.fma(polynomial(m, square, _SIN), square, 2.0**-126), r, r)
    c = m.fma(polynomial(m, square, _COS) * square, square, m.fma(square, -0.5, 1.0))
    result = m.where((quarter & 1) == 1, c, s)
    return m.bits(m.bits(result, "int32") ^ ((quarter & 2) << 30), "float32")


def _near_reduced(m: TirMath, x: Vec) -> tuple[Vec, Vec]:
    """float64 below _FAR_ANGLE -> its remainder modulo pi/2 (float32), and the low bits of the
    quotient (int32).
    """
    shifted = m.fma(x, 2 / pi, _ROUND_WIDE)
    n = shifted - _ROUND_WIDE
    # pi/2 = its first 33 bits (products with n are exact up to n = 2^20) + the rest
    r = m.fma(n, -6.077100506506192601e-11, m.fma(n, -1.57079632673412561417, x))
    return m.cast(r, "float32"), m.cast(m.bits(shifted, "int64"), "int32")


def _far_reduced(m: TirMath, x: Vec) -> tuple[Vec, Vec]:
    """As `_near_reduced`, for every float32: M. Payne and R. Hanek's reduction, 1983.

    A product with 29 bits of 2/pi is exact, and so is its remainder modulo whole turns; only the
    rounding error of their sum must be kept.
    """
    total = rest = m.like(0.0, x)
    for i in range(1, _TWO_BY_PI_PARTS + 1):
        bits = _TWO_BY_PI >> 29 * (_TWO_BY_PI_PARTS - i) & (1 << 29) - 1
        part = x * (bits * 2.0 ** (-29 * i))
        part = part - m.round(part * 0.25) * 4.0
        longer = total + part
        taken = longer - total
        rest = rest + ((total - (longer - taken)) + (part - taken))
        total = longer
    shifted = total + _ROUND_WIDE
    r = (total - (shifted - _ROUND_WIDE) + rest) * (pi / 2)
    return m.cast(r, "float32"), m.cast(m.bits(shifted, "int64"), "int32")


def pow(m: TirMath, x: Vec, y: Vec) -> Vec:
    """x^y with C's special cases, through float64 logarithm and exponential."""
    short: Mapping[float | None, Callable[[Vec], Vec]] = {
        **{0.5: partial(_root, m), 1.0: _itself, 2.0: _square, 3.0: _cube, -1.0: _inverse}
    }
    if y.value in short:
        return short[y.value](x)
    size = m.abs(x)
    result = _pow_positive(m, size, y)
    whole = m.floor(y) == y
    odd = whole & (m.floor(y * 0.5) != y * 0.5)
    signed = m.where(odd, m.llvm("llvm.copysign", result, x), result)
    invalid = (x < 0.0) & m.logical_not(whole) & (size < inf)
    result = m.where(invalid, nan, signed)
    result = m.where((x == -1.0) & (m.abs(y) == inf), 1.0, result)
    return m.where((x == 1.0) | (y == 0.0), 1.0, result)


def _root(m: TirMath, x: Vec) -> Vec:
    """x^0.5, which is positive for -0 and minus infinity: x + x == x for both."""
    return m.sqrt(m.where(x + x == x, m.abs(x), x))


def _itself(x: Vec) -> Vec:
    return x


def _square(x: Vec) -> Vec:
    return x * x


def _cube(x: Vec) -> Vec:
    return x * x * x


def _inverse(x: Vec) -> Vec:
    return 1.0 / x


def _pow_positive(m: TirMath, x: Vec, y: Vec) -> Vec:
    """x^y for x >= 0: 2^(y log2 x), both in float64 to about 2^-40."""
    wide = m.cast(x, "float64")
    raw = m.bits(wide, "int64") - 0x3FE6A09E667F3BCD  # sqrt(1/2); no float32 is denormal in float64
    f = m.bits((raw & 0xFFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD, "float64")
    e = m.cast(raw >> 52, "float64")
    s = (f - 1.0) / (f + 1.0)  # log f = 2 (s + s^3/3 + s^5/5 + ...), |s| <= 0.172
    series = polynomial(m, s * s, [2 / 0.6931471805599453 / k for k in range(1, 17, 2)])
    log2 = m.fma(series, s, e)
    log2 = m.where(wide == 0.0, -inf, m.where(wide < inf, log2, wide))
    power = m.clip(m.cast(y, "float64") * log2, -200.0, 200.0)
    n = m.round(power)
    r = (power - n) * 0.6931471805599453
    taylor = polynomial(
        m, r, [1, 1, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880]
    )
    exponent = m.converted(m.where(m.is_nan(n), 0.0, n), "int64")
    result = taylor * m.bits((exponent + 1023) << 52, "float64")
    return m.cast(result, "float32")
