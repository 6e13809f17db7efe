"""Ampere for data centres (A100): compute capability 8.0."""

from qcompiler.targets.cuda.sm_75 import SM_75

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import WarpMac
from qcompiler.kernels.gpu.code.device import warp_product

SM_80 = isa(
    "sm_80",
    extends=SM_75,
    macs=(WarpMac(("bf16", "bf16", "f32"), warp_product("warp_bf16"), rate="bf16"),),
    multiprocessor=Multiprocessor(
        threads=2048,
        blocks=32,
        shared_bytes=164 << 10,
        block_shared_bytes=163 << 10,
        block_bytes=1 << 10,
    ),
)
