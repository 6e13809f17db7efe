"""AVX-512 F, BW, CD, DQ and VL (Skylake-X and later): thirty-two 64-byte registers."""

from qcompiler.targets.x86.avx2 import AVX2, quantizer, through_words, vfmaddps

from qcompiler.hardware.isa import EVERY_SIZE, isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value, llvm

_EVERY_LANE = tir.const(-1, "int16")
_CURRENT_ROUNDING = tir.const(4, "int32")


def vcvtps2dq(x: Value) -> Value:
    """float32 -> int32, halves to even; out of range and NaN give -2**31."""
    zero = tir.const(0, "int32", 16)
    name = "llvm.x86.avx512.mask.cvtps2dq.512"
    return llvm("int32", 16, name, x, zero, _EVERY_LANE, _CURRENT_ROUNDING)


quantize = quantizer(16, vcvtps2dq, "llvm.x86.avx512.{}.512".format)


AVX512 = isa(
    "x86_avx512",
    extends=AVX2,
    llvm="x86-64-v4",
    cpu_flags="avx512f avx512bw avx512cd avx512dq avx512vl",
    registers=32,
    vector_bytes=64,
    masked=EVERY_SIZE,
    preference=10,  # above all with 32-byte vectors
    macs=(
        VectorMac(("f32", "f32", "f32"), lanes=16, k=1, emit=vfmaddps),
        *through_words(16, "llvm.x86.avx512.pmaddw.d.512", "llvm.x86.avx512.pmaddubs.w.512"),
    ),
    intrinsics={"round_to_int": vcvtps2dq, "quantize": quantize},
)
