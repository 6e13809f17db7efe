"""The dot products of Armv8.2-A (Cortex-A76, Neoverse N1 and later): bytes by bytes of the same
sign, sixteen products an instruction.
"""

from collections.abc import Callable

from qcompiler.targets.arm.neon_fp16 import FP16

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value, llvm


def dot(name: str, *, swapped: bool = False) -> Callable[[Value, Value, Value], Value]:
    """Products of bytes and the sum in 32 bits, by the instruction `name`; `swapped`: its second
    operand is the left one, of which it can select a lane.
    """

    def emit(sums: Value, left: Value, right: Value) -> Value:
        a, b = (tir.reinterpret(v, "int8") for v in (left, right))
        one, other = (b, a) if swapped else (a, b)
        return llvm("int32", 4, f"llvm.aarch64.neon.{name}.v4i32.v16i8", sums, one, other)

    return emit


DOTPROD = isa(
    "arm_dotprod",
    extends=FP16,
    llvm="+dotprod",
    cpu_flags="asimddp",
    intrinsics={"multiply_long": None},  # dot products are faster
    macs=(
        VectorMac(("i8", "i8", "i32"), lanes=4, k=4, emit=dot("sdot", swapped=True), by_lane=4),
        VectorMac(("u8", "u8", "i32"), lanes=4, k=4, emit=dot("udot", swapped=True), by_lane=4),
    ),
)
