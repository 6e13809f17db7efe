"""Blackwell for data centres (B200): compute capability 10.0."""

from qcompiler.targets.cuda.sm_90 import SM_90

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa

SM_100 = isa(
    "sm_100",
    extends=SM_90,
    multiprocessor=Multiprocessor(
        threads=2048,
        blocks=32,
        shared_bytes=228 << 10,
        block_shared_bytes=227 << 10,
        block_bytes=1 << 10,
    ),
)
