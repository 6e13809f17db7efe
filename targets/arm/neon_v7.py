"""NEON of 32-bit ARM with VFPv4 (Cortex-A7, A15, A17): sixteen 16-byte registers; bytes are
multiplied to 16 bits, and pairs of products are added to 32.

Its vectors of float32 take numbers below 2^-126 for zero, and make zeros of results that small.
Source: Arm Architecture Reference Manual, ARMv7-A and ARMv7-R edition (DDI 0406), chapter A8.
"""

from collections.abc import Callable, Sequence

from tvm import tirx

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value, llvm

_LOW, _HIGH = range(8), range(8, 16)
_MAGIC = 1.5 * 2.0**23
"""Added to a float32 of at most 2^22, it leaves the rounded integer in the sum's lower bits."""
_MAGIC_BITS = 0x4B400000


def vfma(sums: Value, left: Value, right: Value) -> Value:
    """float32: left * right + sums in one rounding."""
    return tir.fma(left, right, sums)


def vmull(left: Value, right: Value) -> Value:
    """Eight products of int8, in 16 bits."""
    return llvm("int16", 8, "llvm.arm.neon.vmulls.v8i16", left, right)


def _half(left: Value, right: Value, half: range) -> Value:
    """int8: products of one half of both vectors, in 16 bits."""
    return vmull(*(tir.shuffle(tir.reinterpret(v, "int8"), half) for v in (left, right)))


def vpadal(sums: Value, words: Value) -> Value:
    """int16: two neighbours are added to a sum of 32 bits."""
    return llvm("int32", 4, "llvm.arm.neon.vpadals.v4i32.v8i16", sums, words)


def through_words(sums: Value, left: Value, right: Value) -> Value:
    """int8: four products of a lane are added in 32 bits, in pairs."""
    pairs = [
        llvm("int32", 4, "llvm.arm.neon.vpaddls.v4i32.v8i16", _half(left, right, half))
        for half in (_LOW, _HIGH)
    ]
    for part in (range(0, 8, 2), range(1, 8, 2)):
        sums = tir.wrapping("+", sums, tir.shuffle(tir.concat(pairs), part))
    return sums


def vmlal2(left: Value, right: Value) -> Value:
    """int8 in two parts: one product of each, added in 16 bits."""
    return _half(left, right, _LOW) + _half(left, right, _HIGH)


def vmlal(sums: Value, left: Value, right: Value) -> Value:
    """int16 pairs: both products of a lane are added in 32 bits."""
    a, b = (tir.reinterpret(v, "int16") for v in (left, right))
    for parity in (0, 1):
        x, y = (tir.shuffle(v, range(parity, 8, 2)) for v in (a, b))
        sums = tir.wrapping("+", sums, llvm("int32", 4, "llvm.arm.neon.vmulls.v4i32", x, y))
    return sums


def _nearest(x: Value) -> Value:
    """float32 of at most 2^22 -> int32, halves to even."""
    bits = tir.reinterpret(x + tir.const(_MAGIC, "float32", 4), "int32")
    return tir.wrapping("-", bits, tir.const(_MAGIC_BITS, "int32", 4))


def nearbyint(x: Value) -> Value:
    """float32: the nearest integer, halves to even; there is no instruction for it."""
    whole, one = (tir.const(v, "float32", 4) for v in (2.0**23, 1.0))
    size = llvm("float32", 4, "llvm.fabs", x)
    moved = tir.fma(size, one, whole)  # as a sum, TVM would take it back
    near = tirx.Select(size < whole, moved - whole, size)
    return llvm("float32", 4, "llvm.copysign", near, x)


def _beside(x: Value, beyond: Callable[[Value, Value], Value], step: float) -> Value:
    """The nearest integer, and a step from it where it lies `beyond`."""
    near, none = nearbyint(x), tir.const(0.0, "float32", 4)
    moved = near + tirx.Select(beyond(near, x), tir.const(step, "float32", 4), none)
    return llvm("float32", 4, "llvm.copysign", moved, x)


def floor(x: Value) -> Value:
    """float32: the largest integer not above."""
    return _beside(x, tirx.GT, -1.0)


def ceil(x: Value) -> Value:
    """float32: the smallest integer not below."""
    return _beside(x, tirx.LT, 1.0)


def trunc(x: Value) -> Value:
    """float32: rounded towards zero."""
    return llvm("float32", 4, "llvm.copysign", floor(llvm("float32", 4, "llvm.fabs", x)), x)


def quantize(
    vectors: Sequence[Value],
    zero: Value | None,
    dtype: str,
    *,
    bounded: bool = False,
    numbers: bool = False,
) -> Value:
    """The intrinsic "quantize" (see `Isa`): there is no conversion that rounds to nearest, so
    values are clipped, whatever is known of them; `bounded` and `numbers` make no difference.
    """
    most, least = (tir.const(sign * 2.0**20, "float32", 4) for sign in (1, -1))
    words = []
    for x in vectors:
        kept = tirx.Select(x > least, tirx.Select(x < most, x, most), least)
        words.append(llvm("int16", 4, "llvm.arm.neon.vqmovns.v4i16", _nearest(kept)))
    eights = [tir.concat(words[i : i + 2]) for i in range(0, len(words), 2)]
    if zero is not None:
        shift = tir.broadcast(tir.cast(zero, "int16"), 8)
        eights = [llvm("int16", 8, "llvm.sadd.sat", w, shift) for w in eights]
    saturating = {"uint8": "vqmovnsu", "int8": "vqmovns"}[dtype]
    made = [llvm("int8", 8, f"llvm.arm.neon.{saturating}.v8i8", w) for w in eights]
    return tir.reinterpret(tir.concat(made), dtype)


def pause() -> str:
    """LLVM text: a hint that this thread spins."""
    return "call void @llvm.arm.hint(i32 1)"


V7 = isa(
    "arm_v7",
    family="armv7",
    triple="armv7-unknown-linux-gnueabihf",
    llvm="cortex-a7 +neon +vfp4",
    cpu_flags="simd vfpv4",
    registers=16,
    vector_bytes=16,
    masked=frozenset(),
    macs=(
        VectorMac(("f32", "f32", "f32"), lanes=4, k=1, emit=vfma, temporaries=1),
        VectorMac(
            ("i8", "i8", "i32"),
            lanes=4,
            k=4,
            emit=through_words,
            temporaries=3,
            pairs=vmlal2,
            join=vpadal,
            most=255,
            parts=2,
        ),
        VectorMac(("i16", "i16", "i32"), lanes=4, k=2, emit=vmlal, temporaries=3),
    ),
    intrinsics={
        "round_to_int": _nearest,
        "quantize": quantize,
        "llvm.nearbyint": nearbyint,
        "llvm.floor": floor,
        "llvm.ceil": ceil,
        "llvm.trunc": trunc,
        "multiply_long": vmull,
        "pause": pause,
    },
)
