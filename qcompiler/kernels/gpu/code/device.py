"""Operations of a GPU's threads that TIR has no words for -> calls of functions of device code.

emit/device_code.cuh defines each for the GPU; the tests define the same names for the CPU, where
they run kernels.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Pointer, Value


def barrier() -> Value:
    """All threads of the block have come here, and see what the others wrote."""
    return tirx.call_extern("void", "block_barrier")


def across(name: str, value: Value, lane: Value) -> Value:
    """The value of another thread of the warp: "shuffle_xor" (of lane ^ own), "shuffle_down" (of
    own + lane; its own beyond the end) or "shuffle" (of lane). All threads of the warp come here.
    """
    return tirx.call_extern(tir.dtype_of(value), name, value, lane)


def move(size: int, to: Pointer, source: Pointer) -> Value:
    """Copy `size` bytes (1, 2, 4, 8 or 16, at multiples of that) in one access."""
    return tirx.call_extern("void", f"move{size}", to.address(), source.address())


def atomic_max(to: Pointer, value: Value) -> Value:
    """Make an int32 in memory at least a value, before or after what other threads do there."""
    return tirx.call_extern("void", "atomic_max", to.address(), value)


def power2(x: Value) -> Value:
    """2^x of a float32, by the instruction that is made for it; its error is about 2 ulp, and
    denormals are zero.
    """
    return tir.extern("float32", 1, "power2", x)


def again(value: Value) -> Value:
    """The same int32, which the compiler then keeps, because it cannot know how to compute it."""
    return tirx.call_extern("int32", "again_index", value)


def copy_async(to: Pointer, source: Pointer, size: Value, behind: int = 0) -> Value:
    """Start to copy 16 bytes from memory to shared memory: `size` (0 or 16) of them, then zeros; of
    0 bytes nothing is read, whatever the address is. They lie `behind` bytes behind `source`, which
    instructions add for nothing.
    """
    name = f"copy_async16<{behind}>"
    return tirx.call_extern("void", name, to.address(), source.address(), size)


def commit_copies() -> Value:
    """What this thread started to copy since the last time is one group."""
    return tirx.call_extern("void", "commit_copies")


def wait_copies(pending: int) -> Value:
    """Wait until no more than the newest `pending` groups of this thread are on their way."""
    return tirx.call_extern("void", f"wait_copies{pending}")


def packed_pair(dtype: str, low: Value, high: Value) -> Value:
    """Two float32, each rounded to a 16-bit float, in one word."""
    short = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    return tir.extern("uint32", 1, f"pack_{short}", low, high)


def load_transposed(to: Pointer, source: Pointer) -> Value:
    """As `load_matrices`, of matrices of 16-bit values, each transposed on the way."""
    return tirx.call_extern("void", "load_transposed", to.address(), source.address())


def dot4_u8(sums: Value, left: Value, right: Value) -> Value:
    """Four uint8 of a word by four int8 of another: their products and the sum, in int32."""
    return tir.extern("int32", 1, "dot4_u8i8", sums, left, right)


def dot4_i8(sums: Value, left: Value, right: Value) -> Value:
    """Four int8 of a word by four int8 of another: their products and the sum, in int32."""
    return tir.extern("int32", 1, "dot4_i8i8", sums, left, right)


def load_matrices(to: Pointer, source: Pointer) -> Value:
    """Four matrices of 8 rows of 16 bytes in shared memory -> a word of each in every thread of the
    warp: thread t gets word t % 4 of row t / 4. Threads 8 i to 8 i + 7 name the rows of matrix i.
    """
    return tirx.call_extern("void", "load_matrices", to.address(), source.address())


def warp_product(name: str) -> Callable[[Pointer, Pointer, Pointer], Value]:
    """What emits a product of a warp's matrices (hardware.products.WarpMac) by its function."""

    def emit(sums: Pointer, left: Pointer, right: Pointer) -> Value:
        return tirx.call_extern("void", name, sums.address(), left.address(), right.address())

    return emit
