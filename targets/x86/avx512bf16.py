"""AVX512-BF16 with AVX512-VBMI (Sapphire Rapids, Zen 4 and later): bfloat16 products with float32
sums, and look-ups of bytes. Cooper Lake has no VBMI and counts as AVX512-VNNI.

TVM's code generator has no bfloat16 vectors, so these instructions are inlined LLVM functions over
integers of the same bits.
"""

from collections.abc import Sequence

from qcompiler.targets.x86.avx512vnni import AVX512VNNI
from tvm import tirx

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value

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


def vpermi2b(index: Value, table: Sequence[Value]) -> Value:
    """64 indices into 256 bytes, given as four vectors; each instruction searches two."""
    index, *parts = (tir.reinterpret(v, "int8") for v in (index, *table))

    def half(low: Value, high: Value) -> Value:
        return tir.llvm("int8", 64, "llvm.x86.avx512.vpermi2var.qi.512", low, index, high)

    upper = index < tir.const(0, "int8", 64)
    found = tirx.Select(upper, half(parts[2], parts[3]), half(parts[0], parts[1]))
    return tir.reinterpret(found, "uint8")


AVX512BF16 = isa(
    "x86_avx512bf16",
    extends=AVX512VNNI,
    llvm="+avx512bf16 +avx512vbmi",
    cpu_flags="avx512_bf16 avx512vbmi",
    macs=(VectorMac(("bf16", "bf16", "f32"), lanes=16, k=2, emit=vdpbf16ps),),
    intrinsics={"to_bfloat16": vcvtneps2bf16, "table": vpermi2b, "llvm_ir": lambda: _IR},
)
