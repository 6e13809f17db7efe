"""NEON of every Armv8-A (Cortex-A53, A72 and later): thirty-two 16-byte registers; bytes are
multiplied to 16 bits, and pairs of products are added to 32.

Source: Arm Architecture Reference Manual for A-profile architecture (DDI 0487), chapter C7.
"""

from collections.abc import Sequence

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value, llvm

_LOW, _HIGH = range(8), range(8, 16)
_WHOLE = 1.5 * 2.0**23
"""What makes float32 a whole number when it is added, and leaves that in the lower bits."""


def fmla(sums: Value, left: Value, right: Value) -> Value:
    """float32: left * right + sums in one rounding."""
    return tir.fma(left, right, sums)


def smull(left: Value, right: Value) -> Value:
    """Eight products of int8, in 16 bits."""
    return llvm("int16", 8, "llvm.aarch64.neon.smull.v8i16", left, right)


def _half(left: Value, right: Value, half: range) -> Value:
    """int8: products of one half of both vectors, in 16 bits."""
    return smull(*(tir.shuffle(tir.reinterpret(v, "int8"), half) for v in (left, right)))


def saddlp(words: Value) -> Value:
    """int16: sums of two neighbours, in 32 bits."""
    return llvm("int32", 4, "llvm.aarch64.neon.saddlp.v4i32.v8i16", words)


def through_words(sums: Value, left: Value, right: Value) -> Value:
    """int8: four products of a lane are added in 32 bits, in pairs."""
    pairs = [saddlp(_half(left, right, half)) for half in (_LOW, _HIGH)]
    return tir.wrapping("+", sums, llvm("int32", 4, "llvm.aarch64.neon.addp.v4i32", *pairs))


def smlal2(left: Value, right: Value) -> Value:
    """int8 in two parts: one product of each, added in 16 bits."""
    return _half(left, right, _LOW) + _half(left, right, _HIGH)


def sadalp(sums: Value, words: Value) -> Value:
    """int16: two neighbours are added to a sum of 32 bits."""
    return tir.wrapping("+", sums, saddlp(words))


def smlal(sums: Value, left: Value, right: Value) -> Value:
    """int16 pairs: both products of a lane are added in 32 bits."""
    a, b = (tir.reinterpret(v, "int16") for v in (left, right))
    for parity in (0, 1):
        x, y = (tir.shuffle(v, range(parity, 8, 2)) for v in (a, b))
        sums = tir.wrapping("+", sums, llvm("int32", 4, "llvm.aarch64.neon.smull.v4i32", x, y))
    return sums


def fmax(a: Value, b: Value) -> Value:
    """Floats: the larger one, NaN if either is NaN."""
    return llvm(tir.dtype_of(a), tir.lanes_of(a), "llvm.maximum", a, b)


def fmin(a: Value, b: Value) -> Value:
    """Floats: the smaller one, NaN if either is NaN."""
    return llvm(tir.dtype_of(a), tir.lanes_of(a), "llvm.minimum", a, b)


def fcvtns(x: Value) -> Value:
    """float32 -> int32, halves to even; out of range the nearest, NaN gives 0."""
    return llvm("int32", 4, "llvm.aarch64.neon.fcvtns.v4i32.v4f32", x)


def quantize(
    vectors: Sequence[Value],
    zero: Value | None,
    dtype: str,
    *,
    bounded: bool = False,
    numbers: bool = False,
    short: bool = False,
    least: bool = False,
) -> Value:
    """The intrinsics "quantize" and "quantize_short" (see `Isa`). `short` numbers are rounded by an
    addition, which takes half as long as a conversion on many cores, and an even zero point may be
    added with it; their lower halves are the results (UZP1). Others saturate (SQXTN). To clip
    x - 128 to int8 is to clip x to uint8 and change the sign.
    """
    if short:
        added = tir.const(_WHOLE - 128 if least else _WHOLE, "float32", 4)
        whole = [tir.reinterpret(x + added, "int32") for x in vectors]
        eights = [tir.cast(tir.concat(whole[i : i + 2]), "int16") for i in range(0, len(whole), 2)]
        zero, least = None if least else zero, False
    else:
        if not bounded and not numbers:  # maxnum of NaN and a number is the number
            lowest = tir.const(-1e9, "float32", 4)
            vectors = [llvm("float32", 4, "llvm.maxnum", x, lowest) for x in vectors]
        words = [llvm("int16", 4, "llvm.aarch64.neon.sqxtn.v4i16", fcvtns(x)) for x in vectors]
        eights = [tir.concat(words[i : i + 2]) for i in range(0, len(words), 2)]
    if zero is not None and not least:
        shift = tir.broadcast(tir.cast(zero, "int16"), 8)
        eights = [llvm("int16", 8, "llvm.sadd.sat", w, shift) for w in eights]
    saturating = "sqxtn" if dtype == "int8" and not least else "sqxtun"
    made = [llvm("int8", 8, f"llvm.aarch64.neon.{saturating}.v8i8", w) for w in eights]
    found = tir.reinterpret(tir.concat(made), "uint8")
    if least:
        found = found ^ tir.const(128, "uint8", tir.lanes_of(found))
    return tir.reinterpret(found, dtype)


def tbl(index: Value, table: Sequence[Value]) -> Value:
    """16 indices into 256 bytes, given as sixteen vectors; each instruction searches four, and
    keeps earlier results for indices beyond them.
    """
    index, *parts = (tir.reinterpret(v, "int8") for v in (index, *table))
    found = llvm("int8", 16, "llvm.aarch64.neon.tbl4.v16i8", *parts[:4], index)
    for first in (64, 128, 192):
        here = index ^ tir.const(first - 256 if first > 127 else first, "int8", 16)
        four = parts[first // 16 : first // 16 + 4]
        found = llvm("int8", 16, "llvm.aarch64.neon.tbx4.v16i8", found, *four, here)
    return tir.reinterpret(found, "uint8")


def again(b: Builder, pointer: Pointer) -> Pointer:
    """The intrinsic "again" (see `Isa`): LDP loads two vectors, a copy takes the place of a
    multiplication.
    """
    return b.again(pointer)


def pause() -> str:
    """LLVM text: a hint that this thread spins."""
    return "call void @llvm.aarch64.hint(i32 1)"


NEON = isa(
    "arm_neon",
    family="aarch64",
    triple="aarch64-unknown-linux-gnu",
    llvm="cortex-a53 +neon",
    cpu_flags="asimd",
    registers=32,
    vector_bytes=16,
    masked=frozenset(),
    macs=(
        VectorMac(("f32", "f32", "f32"), lanes=4, k=1, emit=fmla, by_lane=4),
        VectorMac(
            ("i8", "i8", "i32"),
            lanes=4,
            k=4,
            emit=through_words,
            temporaries=3,
            pairs=smlal2,
            join=sadalp,
            most=255,
            parts=2,
            by_lane=4,
        ),
        VectorMac(("i16", "i16", "i32"), lanes=4, k=2, emit=smlal, temporaries=3),
    ),
    intrinsics={
        "round_to_int": fcvtns,
        "maximum": fmax,
        "minimum": fmin,
        "quantize": quantize,
        "quantize_short": quantize,
        "again": again,
        "table": tbl,
        "multiply_long": smull,
        "pause": pause,
    },
)
