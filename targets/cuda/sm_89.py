"""Ada (L4, RTX 40): compute capability 8.9."""

from qcompiler.targets.cuda.sm_86 import SM_86

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa

SM_89 = isa(
    "sm_89",
    extends=SM_86,
    multiprocessor=Multiprocessor(
        threads=1536,
        blocks=24,
        shared_bytes=100 << 10,
        block_shared_bytes=99 << 10,
        block_bytes=1 << 10,
    ),
)
