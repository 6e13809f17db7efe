"""AVX-VNNI (Alder Lake, Sapphire Rapids, Zen 5 and later): exact uint8 by int8, 32 products."""

from qcompiler.targets.x86.avx2 import AVX2, multiplied

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac

vpdpbusd = multiplied(8, "llvm.x86.avx512.vpdpbusd.256", "int8")
"""uint8 by int8: four products and the sum, all in int32."""

AVXVNNI = isa(
    "x86_avxvnni",
    extends=AVX2,
    llvm="+avxvnni",
    cpu_flags="avx_vnni",
    macs=(VectorMac(("u8", "i8", "i32"), lanes=8, k=4, emit=vpdpbusd),),
)
