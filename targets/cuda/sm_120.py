"""Blackwell for everybody (RTX 50): compute capability 12.0."""

from qcompiler.targets.cuda.sm_89 import SM_89

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa

SM_120 = isa(
    "sm_120",
    extends=SM_89,
    multiprocessor=Multiprocessor(
        threads=1536,
        blocks=24,
        shared_bytes=100 << 10,
        block_shared_bytes=99 << 10,
        block_bytes=1 << 10,
    ),
    preference=6,  # after sm_100
)
