"""Matrix products of bytes of Armv8.6-A (Neoverse V1 and N2, Cortex-A510 and A710 and later): 2 x 8
by 8 x 2 in a vector, 32 products an instruction, signed, unsigned and mixed.
"""

from qcompiler.targets.arm.neon_dotprod import DOTPROD, dot

from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import BlockMac, VectorMac

I8MM = isa(
    "arm_i8mm",
    extends=DOTPROD,
    llvm="+i8mm",
    cpu_flags="i8mm",
    macs=(
        BlockMac(("u8", "i8", "i32"), rows=2, columns=2, k=8, emit=dot("usmmla"), by_lane=2),
        BlockMac(("i8", "i8", "i32"), rows=2, columns=2, k=8, emit=dot("smmla"), by_lane=2),
        BlockMac(("u8", "u8", "i32"), rows=2, columns=2, k=8, emit=dot("ummla"), by_lane=2),
        VectorMac(("u8", "i8", "i32"), lanes=4, k=4, emit=dot("usdot"), by_lane=4),
    ),
)
