"""Cortex-M4, M7 and M33, without an operating system: scalar registers of 32 bits, whose two halves
are multiplied and added at once (SMLAD), and floating-point registers of 32 bits.

A vector here is four words in four registers: kernels keep four independent sums, and LLVM splits
the vectors.
Source: ARMv7-M Architecture Reference Manual (DDI 0403), chapter A7.7.
"""

from collections.abc import Callable, Sequence

from tvm import tirx

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value, llvm


def fma(sums: Value, left: Value, right: Value) -> Value:
    """float32: left * right + sums in one rounding."""
    return tir.fma(left, right, sums)


def _words(vector: Value) -> list[Value]:
    """A vector's four 32-bit words."""
    whole = tir.reinterpret(vector, "int32")
    return [tir.shuffle(whole, [i]) for i in range(4)]


def _vector(words: list[Value]) -> Value:
    return tirx.Shuffle(words, [tir.const(i, "int32") for i in range(4)])


def _smlad(sums: Value, left: Value, right: Value) -> Value:
    """Both products of two words' halves, added to a third word."""
    return llvm("int32", 1, "llvm.arm.smlad", left, right, sums)


def smlad(sums: Value, left: Value, right: Value) -> Value:
    """int16 pairs: both products of a lane are added in 32 bits."""
    lanes = zip(_words(sums), _words(left), _words(right), strict=True)
    return _vector([_smlad(s, a, b) for s, a, b in lanes])


def _halves(word: Value, name: str) -> list[Value]:
    """Four bytes of a word -> the even ones and the odd ones, in 16 bits each."""
    rotated = llvm("int32", 1, "llvm.fshr", word, word, tir.const(8))
    return [llvm("int32", 1, name, w) for w in (word, rotated)]


def _bytes(widen: str) -> Callable[..., Value]:
    """Products of four bytes: even and odd bytes are widened to 16 bits on both sides, the left
    ones by the instruction `widen`, the right ones as signed.
    """

    def product(sums: Value, left: Value, right: Value) -> Value:
        made = []
        for s, a, b in zip(_words(sums), _words(left), _words(right), strict=True):
            pairs = zip(_halves(a, widen), _halves(b, "llvm.arm.sxtb16"), strict=True)
            for x, y in pairs:
                s = _smlad(s, x, y)
            made.append(s)
        return _vector(made)

    return product


def vcvtr(x: Value) -> Value:
    """A float32 -> int32, halves to even; out of range the nearest, NaN gives 0."""
    return tir.reinterpret(llvm("float32", 1, "llvm.arm.vcvtr.f32", x), "int32")


def round_to_int(x: Value) -> Value:
    """Four float32 -> int32, as by `vcvtr`."""
    return _vector([vcvtr(tir.shuffle(x, [i])) for i in range(4)])


def quantize(
    vectors: Sequence[Value],
    zero: Value | None,
    dtype: str,
    *,
    bounded: bool = False,
    numbers: bool = False,
) -> Value:
    """The intrinsic "quantize" (see `Isa`); `numbers` makes no difference here."""
    clip, least = {"uint8": "usat", "int8": "ssat"}[dtype], tir.const(-1e9, "float32")

    def packed(x: Value) -> Value:
        whole = vcvtr(x if bounded else tirx.Select(x > least, x, least))
        if zero is not None:
            whole = llvm("int32", 1, "llvm.sadd.sat", whole, zero)
        kept = llvm("int32", 1, f"llvm.arm.{clip}", whole, tir.const(8))
        return kept if dtype == "uint8" else kept & tir.const(255)

    made = []
    for vector in vectors:
        parts = [packed(tir.shuffle(vector, [i])) << (8 * i) for i in range(4)]
        made.append(parts[0] | parts[1] | parts[2] | parts[3])
    words = tirx.Shuffle(made, [tir.const(i) for i in range(len(made))])
    return tir.reinterpret(words, dtype)


M4 = isa(
    "arm_m4",
    triple="thumbv7em-none-eabihf",
    llvm="cortex-m4",
    cpu_flags="armv7em dsp fpv4sp",
    registers=4,
    vector_bytes=16,
    masked=frozenset(),
    macs=(
        VectorMac(("f32", "f32", "f32"), lanes=4, k=1, emit=fma),
        VectorMac(("u8", "i8", "i32"), lanes=4, k=4, emit=_bytes("llvm.arm.uxtb16"), temporaries=1),
        VectorMac(("i8", "i8", "i32"), lanes=4, k=4, emit=_bytes("llvm.arm.sxtb16"), temporaries=1),
        VectorMac(("i16", "i16", "i32"), lanes=4, k=2, emit=smlad),
    ),
    intrinsics={"round_to_int": round_to_int, "quantize": quantize},
    family="cortex-m",
)

M7 = isa("arm_m7", extends=M4, llvm="cortex-m7 -fp64", cpu_flags="fpv5sp")

M33 = isa("arm_m33", extends=M4, triple="thumbv8m.main-none-eabihf", llvm="cortex-m33 -fp64")
