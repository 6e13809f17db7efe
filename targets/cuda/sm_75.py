"""Turing (T4, RTX 20): compute capability 7.5.

Sizes of all architectures: CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability".
"""

from qcompiler.hardware.gpu import Multiprocessor
from qcompiler.hardware.isa import isa
from qcompiler.hardware.products import VectorMac, WarpMac
from qcompiler.kernels.gpu.code.device import dot4_i8, dot4_u8, warp_product

SM_75 = isa(
    "sm_75",
    triple="nvptx64-nvidia-cuda",
    registers=255,  # of one thread
    vector_bytes=4,  # one thread's: kernels see a thread as a vector of one lane
    macs=(
        VectorMac(("u8", "i8", "i32"), lanes=1, k=4, emit=dot4_u8),
        VectorMac(("i8", "i8", "i32"), lanes=1, k=4, emit=dot4_i8),
        WarpMac(("f16", "f16", "f32"), warp_product("warp_f16"), rate="f16"),
        WarpMac(("u8", "i8", "i32"), warp_product("warp_u8i8"), rate="i8"),
        WarpMac(("i8", "i8", "i32"), warp_product("warp_i8i8"), rate="i8"),
    ),
    masked=frozenset(),
    family="cuda",
    multiprocessor=Multiprocessor(
        threads=1024,
        blocks=16,
        shared_bytes=64 << 10,
        block_shared_bytes=64 << 10,
        async_copies=False,
    ),
)
