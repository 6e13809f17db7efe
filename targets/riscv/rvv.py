"""The vector extension of 64-bit RISC-V (RVV 1.0, in every RVA23 processor), by vectors of 16
bytes: whatever the length of a processor's own registers, they hold these.

Source: RISC-V "V" Standard Extension for Vector Operations, version 1.0.
"""

from tvm import tirx

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value, llvm


def vfmacc(sums: Value, left: Value, right: Value) -> Value:
    """float32: left * right + sums in one rounding."""
    return tir.fma(left, right, sums)


def _halves(vector: Value, dtype: str, wide: str) -> list[Value]:
    """The lower and the upper half, widened."""
    whole = tir.reinterpret(vector, dtype)
    half = tir.lanes_of(whole) // 2
    return [tir.cast(tir.shuffle(whole, range(i, i + half)), wide) for i in (0, half)]


def vwmul2(left: Value, right: Value) -> Value:
    """int8 in two parts: one product of each, added in 16 bits."""
    a, b = (_halves(v, "int8", "int16") for v in (left, right))
    return a[0] * b[0] + a[1] * b[1]


def add_pairs(sums: Value, words: Value) -> Value:
    """int16: two neighbours are added to a sum of 32 bits."""
    whole, shift = tir.reinterpret(words, "int32"), tir.const(16, "int32", 4)
    even = (whole << shift) >> shift
    return tir.wrapping("+", tir.wrapping("+", sums, even), whole >> shift)


def _pairs(vector: Value, dtype: str, wide: str) -> list[Value]:
    """The even and the odd elements, widened."""
    whole = tir.reinterpret(vector, dtype)
    count = tir.lanes_of(whole)
    return [tir.cast(tir.shuffle(whole, range(odd, count, 2)), wide) for odd in (0, 1)]


def vwmul(sums: Value, left: Value, right: Value) -> Value:
    """int8: four products of a lane are added in 32 bits, each made in 16."""
    for a, b in zip(*(_pairs(v, "int8", "int16") for v in (left, right)), strict=True):
        sums = add_pairs(sums, a * b)
    return sums


def vwmacc(sums: Value, left: Value, right: Value) -> Value:
    """int16 pairs: both products of a lane are added in 32 bits."""
    for a, b in zip(*(_pairs(v, "int16", "int32") for v in (left, right)), strict=True):
        sums = tir.wrapping("+", sums, tir.wrapping("*", a, b))
    return sums


def vfcvt(x: Value) -> Value:
    """float32 -> int32, halves to even; out of range the nearest, NaN gives the largest."""
    return llvm("int32", 4, "llvm.lrint", x)


def trunc(x: Value) -> Value:
    """float32: rounded towards zero."""
    most, none = (tir.const(v, "float32", 4) for v in (2.0**23, 0.0))
    size = llvm("float32", 4, "llvm.fabs", x)
    near = llvm("float32", 4, "llvm.nearbyint", size)
    beyond = tirx.Select(near > size, tir.const(-1.0, "float32", 4), none)
    whole = tirx.Select(size < most, near + beyond, size)
    return llvm("float32", 4, "llvm.copysign", whole, x)


def towards_zero(x: Value) -> Value:
    """float32 -> int32 as C does. There is an instruction for it (vfcvt.rtz), at which qemu before
    8.0 stops, so that nothing could be tested.
    """
    return vfcvt(trunc(x))


RVV = isa(
    "riscv_v",
    family="riscv64",
    triple="riscv64-unknown-linux-gnu",
    llvm="generic-rv64 +m +a +f +d +c +v +zfhmin +zvl128b"
    " +unaligned-scalar-mem +unaligned-vector-mem",
    cpu_flags="v",
    registers=32,
    vector_bytes=16,
    masked=frozenset(),
    macs=(
        VectorMac(("f32", "f32", "f32"), lanes=4, k=1, emit=vfmacc),
        VectorMac(
            ("i8", "i8", "i32"),
            lanes=4,
            k=4,
            emit=vwmul,
            temporaries=6,
            pairs=vwmul2,
            join=add_pairs,
            most=255,
            parts=2,
        ),
        VectorMac(("i16", "i16", "i32"), lanes=4, k=2, emit=vwmacc, temporaries=3),
    ),
    intrinsics={
        "round_to_int": vfcvt,
        "llvm.lrint": vfcvt,
        "llvm.trunc": trunc,
        "fptosi": towards_zero,
    },
)
