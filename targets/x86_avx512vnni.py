"""AVX512-VNNI (Cascade Lake, Ice Lake, Zen 4 and later): exact uint8 by int8, 64 products."""

from qcompiler.targets.x86_avx512 import AVX512

from qcompiler.isa import isa
from qcompiler.kernels import tir
from qcompiler.kernels.tir import Value, llvm
from qcompiler.products import VectorMac


def vpdpbusd(sums: Value, left: Value, right: Value) -> Value:
    """uint8 by int8: four products and the sum, all in int32."""
    a, b = (tir.reinterpret(v, "int8") for v in (left, right))
    return llvm("int32", 16, "llvm.x86.avx512.vpdpbusd.512", sums, a, b)


def vpdpwssd(sums: Value, left: Value, right: Value) -> Value:
    """int16 pairs: two products and the sum, all in int32."""
    a, b = (tir.reinterpret(v, "int16") for v in (left, right))
    return llvm("int32", 16, "llvm.x86.avx512.vpdpwssd.512", sums, a, b)


AVX512VNNI = isa(
    "x86_avx512vnni",
    extends=AVX512,
    llvm="+avx512vnni",
    cpu_flags="avx512_vnni",
    macs=(
        VectorMac(("u8", "i8", "i32"), lanes=16, k=4, emit=vpdpbusd),
        VectorMac(("i16", "i16", "i32"), lanes=16, k=2, emit=vpdpwssd),
    ),
)
