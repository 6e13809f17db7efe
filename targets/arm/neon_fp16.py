"""Half-precision arithmetic of Armv8.2-A (Cortex-A55, A75 and later): eight float16 a vector."""

from qcompiler.targets.arm.neon import NEON, fmax, fmin

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import ShortMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value


def fmla(sums: Value, left: Value, right: Value) -> Value:
    """float16: left * right + sums in one rounding."""
    return tir.fma(left, right, sums)


FP16 = isa(
    "arm_fp16",
    extends=NEON,
    llvm="+fullfp16",
    cpu_flags="fphp asimdhp",
    short=ShortMac(("f16", "f16", "f32"), lanes=8, steps=64, emit=fmla, by_lane=8),
    intrinsics={"half_maximum": fmax, "half_minimum": fmin},
)
