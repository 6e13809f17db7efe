"""Half-precision arithmetic of Armv8.2-A (Cortex-A55, A75 and later): eight float16 a vector."""

from qcompiler.targets.arm.neon import NEON

from qcompiler.hardware.isa import isa

FP16 = isa("arm_fp16", extends=NEON, llvm="+fullfp16", cpu_flags="fphp asimdhp")
