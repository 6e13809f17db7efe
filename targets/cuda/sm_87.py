"""Ampere of Jetson Orin: compute capability 8.7. Code of other architectures does not run there."""

from qcompiler.targets.cuda.sm_80 import SM_80

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa

SM_87 = isa(
    "sm_87",
    extends=SM_80,
    multiprocessor=Multiprocessor(
        threads=1536,
        blocks=16,
        shared_bytes=164 << 10,
        block_shared_bytes=163 << 10,
        block_bytes=1 << 10,
    ),
)
