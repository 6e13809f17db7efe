"""Ampere for everybody (A10, RTX 30): compute capability 8.6."""

from qcompiler.targets.cuda.sm_80 import SM_80

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa

SM_86 = isa(
    "sm_86",
    extends=SM_80,
    multiprocessor=Multiprocessor(
        threads=1536,
        blocks=16,
        shared_bytes=100 << 10,
        block_shared_bytes=99 << 10,
        block_bytes=1 << 10,
    ),
)
