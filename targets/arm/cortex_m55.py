"""Cortex-M55, without an operating system: eight vector registers of 16 bytes (MVE, Helium).

Source: Armv8-M Architecture Reference Manual (DDI 0553), chapter C2.4.
"""

from tvm import tirx

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value


def vfma(sums: Value, left: Value, right: Value) -> Value:
    """float32: left * right + sums in one rounding."""
    return tir.fma(left, right, sums)


def _widened(vector: Value, dtype: str) -> list[Value]:
    """The even and the odd elements, widened to twice the size."""
    count = tir.lanes_of(vector)
    return [tir.cast(tir.shuffle(vector, range(odd, count, 2)), dtype) for odd in (0, 1)]


def vmull(sums: Value, left: Value, right: Value) -> Value:
    """int8: even and odd bytes are multiplied to 16 bits (VMULLB, VMULLT); even and odd products
    are added in 32.
    """
    a, b = (_widened(tir.reinterpret(v, "int8"), "int16") for v in (left, right))
    for x, y in zip(a, b, strict=True):
        for part in _widened(tirx.Mul(x, y), "int32"):
            sums = tir.wrapping("+", sums, part)
    return sums


def vmull_words(sums: Value, left: Value, right: Value) -> Value:
    """int16 pairs: even and odd ones are multiplied to 32 bits."""
    a, b = (_widened(tir.reinterpret(v, "int16"), "int32") for v in (left, right))
    for x, y in zip(a, b, strict=True):
        sums = tir.wrapping("+", sums, tir.wrapping("*", x, y))
    return sums


def compared(vector: Value) -> Value:
    """The same, which LLVM does not take for one number in all lanes: with those as the second
    operand, where VCMP can have a scalar, it writes a > b as b < a, which holds for NaN in MVE (LT
    and LE are the inverses of GE and GT). So do LLVM 14 to 22 (PerformVCMPCombine).
    """
    lanes = tir.lanes_of(vector)
    return tir.llvm(tir.dtype_of(vector), lanes, "llvm.arithmetic.fence", vector)


M55 = isa(
    "arm_m55",
    triple="thumbv8.1m.main-none-eabihf",
    llvm="cortex-m55",
    cpu_flags="armv8.1m dsp mve",
    registers=8,
    vector_bytes=16,
    masked=frozenset(),
    macs=(
        VectorMac(("f32", "f32", "f32"), lanes=4, k=1, emit=vfma),
        VectorMac(("i8", "i8", "i32"), lanes=4, k=4, emit=vmull, temporaries=3),
        VectorMac(("i16", "i16", "i32"), lanes=4, k=2, emit=vmull_words, temporaries=2),
    ),
    intrinsics={"compared": compared},
    family="cortex-m",
)
