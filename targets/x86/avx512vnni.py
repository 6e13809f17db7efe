"""AVX512-VNNI (Cascade Lake, Ice Lake, Zen 4 and later): exact uint8 by int8, 64 products."""

from qcompiler.targets.x86.avx2 import multiplied
from qcompiler.targets.x86.avx512 import AVX512

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac

vpdpbusd = multiplied(16, "llvm.x86.avx512.vpdpbusd.512", "int8")
"""uint8 by int8: four products and the sum, all in int32."""

vpdpwssd = multiplied(16, "llvm.x86.avx512.vpdpwssd.512", "int16")
"""int16 pairs: two products and the sum, all in int32."""

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
