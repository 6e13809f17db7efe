"""Hopper (H100, H200): compute capability 9.0."""

from qcompiler.targets.cuda.sm_80 import SM_80

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa

SM_90 = isa(
    "sm_90",
    extends=SM_80,
    multiprocessor=Multiprocessor(
        threads=2048,
        blocks=32,
        shared_bytes=228 << 10,
        block_shared_bytes=227 << 10,
        block_bytes=1 << 10,
    ),
    preference=4,  # after sm_89
)
