"""The dot products of Armv8.2-A (Cortex-A76, Neoverse N1 and later): bytes by bytes of the same
sign, sixteen products an instruction.
"""

from collections.abc import Callable

from qcompiler.targets.arm.neon_fp16 import FP16

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value, llvm


def dot(name: str) -> Callable[[Value, Value, Value], Value]:
    """Four products of bytes and the sum, all in 32 bits, by an instruction's name."""

    def emit(sums: Value, left: Value, right: Value) -> Value:
        a, b = (tir.reinterpret(v, "int8") for v in (left, right))
        return llvm("int32", 4, f"llvm.aarch64.neon.{name}.v4i32.v16i8", sums, a, b)

    return emit


DOTPROD = isa(
    "arm_dotprod",
    extends=FP16,
    llvm="+dotprod",
    cpu_flags="asimddp",
    macs=(
        VectorMac(("i8", "i8", "i32"), lanes=4, k=4, emit=dot("sdot")),
        VectorMac(("u8", "u8", "i32"), lanes=4, k=4, emit=dot("udot")),
    ),
)
