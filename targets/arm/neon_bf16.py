"""bfloat16 of Armv8.6-A (Neoverse V1 and N2, Cortex-A510 and A710 and later): two products in a
lane, and 2 x 4 by 4 x 2 in a vector, with float32 sums.

TVM's code generator has no bfloat16 vectors, so these instructions are inlined LLVM functions over
integers of the same bits.
"""

from collections.abc import Callable

from qcompiler.targets.arm.neon_i8mm import I8MM

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import BlockMac, VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value

_PRODUCT = """
declare <4 x float> @llvm.aarch64.neon.@DECLARED(<4 x float>, <8 x bfloat>, <8 x bfloat>)
define internal <4 x float> @arm_@NAME(<4 x float> %sums, <4 x i32> %left, <4 x i32> %right)
    alwaysinline {
  %a = bitcast <4 x i32> %left to <8 x bfloat>
  %b = bitcast <4 x i32> %right to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.@DECLARED(
    <4 x float> %sums, <8 x bfloat> %a, <8 x bfloat> %b)
  ret <4 x float> %r
}
"""
_ROUND = """
define internal <4 x i16> @arm_bfcvtn(<4 x float> %x) alwaysinline {
  %b = fptrunc <4 x float> %x to <4 x bfloat>
  %r = bitcast <4 x bfloat> %b to <4 x i16>
  ret <4 x i16> %r
}
"""
_KEY = ("bf16", "bf16", "f32")
_OVERLOADS = {"bfdot": "bfdot.v4f32.v8bf16", "bfmmla": "bfmmla"}


def _text() -> str:
    made = [_PRODUCT.replace("@DECLARED", d).replace("@NAME", n) for n, d in _OVERLOADS.items()]
    return "".join([*made, _ROUND])


def _product(name: str, *, swapped: bool = False) -> Callable[[Value, Value, Value], Value]:
    """Products of bfloat16 and the sum, rounded as the instruction does; denormals count as
    zero. `swapped` as for `dot`.
    """

    def emit(sums: Value, left: Value, right: Value) -> Value:
        a, b = (tir.reinterpret(v, "int32") for v in (left, right))
        one, other = (b, a) if swapped else (a, b)
        return tir.extern("float32", 4, f"arm_{name}", sums, one, other)

    return emit


def bfcvtn(x: Value) -> Value:
    """float32 -> bfloat16 as uint16 bits, halves to even."""
    return tir.extern("uint16", 4, "arm_bfcvtn", x)


BF16 = isa(
    "arm_bf16",
    extends=I8MM,
    llvm="+bf16",
    cpu_flags="bf16",
    macs=(
        BlockMac(_KEY, rows=2, columns=2, k=4, emit=_product("bfmmla"), by_lane=2),
        VectorMac(_KEY, lanes=4, k=2, emit=_product("bfdot", swapped=True), by_lane=4),
    ),
    intrinsics={"to_bfloat16": bfcvtn, "llvm_ir": _text},
)
