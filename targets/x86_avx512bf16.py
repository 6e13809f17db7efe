"""AVX512-BF16 (Cooper Lake, Sapphire Rapids, Zen 4 and later): bfloat16 products, float32 sums.

TVM's code generator knows no bfloat16 vectors, so these instructions come in as LLVM functions over
integers of the same bits, which are inlined.
"""

from qcompiler.targets.x86_avx512vnni import AVX512VNNI

from qcompiler.isa import Mac, isa
from qcompiler.kernels import tir
from qcompiler.kernels.tir import Value

_IR = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @x86_vdpbf16ps(<16 x float> %sums, <16 x i32> %left, <16 x i32> %right) {
  %a = bitcast <16 x i32> %left to <32 x bfloat>
  %b = bitcast <16 x i32> %right to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
    <16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}
define <16 x i16> @x86_vcvtneps2bf16(<16 x float> %x) {
  %b = fptrunc <16 x float> %x to <16 x bfloat>
  %r = bitcast <16 x bfloat> %b to <16 x i16>
  ret <16 x i16> %r
}
"""


def vdpbf16ps(sums: Value, left: Value, right: Value) -> Value:
    """bfloat16 pairs: two products and the sum in float32 (denormals count as zero)."""
    a, b = (tir.reinterpret(v, "int32") for v in (left, right))
    return tir.extern("float32", 16, "x86_vdpbf16ps", sums, a, b)


def vcvtneps2bf16(x: Value) -> Value:
    """float32 -> bfloat16 as uint16 bits, halves to even (denormals become zero)."""
    return tir.extern("uint16", 16, "x86_vcvtneps2bf16", x)


AVX512BF16 = isa(
    "x86_avx512bf16",
    extends=AVX512VNNI,
    llvm="+avx512bf16",
    cpu_flags="avx512_bf16",
    mac={("bf16", "bf16", "f32"): Mac(lanes=16, k=2, emit=vdpbf16ps)},
    intrinsics={"to_bfloat16": vcvtneps2bf16, "llvm_ir": lambda: _IR},
)
