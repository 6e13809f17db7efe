"""AVX-VNNI (Alder Lake, Sapphire Rapids, Zen 5 and later): exact uint8 by int8, 32 products."""

from qcompiler.targets.x86_avx2 import AVX2

from qcompiler.isa import isa
from qcompiler.kernels import tir
from qcompiler.kernels.tir import Value, llvm
from qcompiler.products import VectorMac


def vpdpbusd(sums: Value, left: Value, right: Value) -> Value:
    """uint8 by int8: four products and the sum, all in int32."""
    a, b = (tir.reinterpret(v, "int8") for v in (left, right))
    return llvm("int32", 8, "llvm.x86.avx512.vpdpbusd.256", sums, a, b)


AVXVNNI = isa(
    "x86_avxvnni",
    extends=AVX2,
    llvm="+avxvnni",
    cpu_flags="avx_vnni",
    macs=(VectorMac(("u8", "i8", "i32"), lanes=8, k=4, emit=vpdpbusd),),
)
