"""A GPU as plain values: what one of its multiprocessors holds and does, and how many there are.

What an architecture fixes (registers, shared memory, threads) is a `Multiprocessor`, part of its
instruction set under targets/; what differs between boards of one architecture (their number, the
clock, bandwidth, rates of products) is a `Gpu`, from a file under targets/devices/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.hardware.isa import Isa

WARP = 32
"""Threads that execute one instruction together."""


@dataclass(frozen=True, kw_only=True)
class Multiprocessor:
    """What a multiprocessor of an architecture holds."""

    threads: int
    """Most threads at the same time."""
    blocks: int
    """Most blocks at the same time."""
    shared_bytes: int
    """Shared memory of all its blocks; each also takes `block_bytes`."""
    block_shared_bytes: int
    """Most shared memory of one block."""
    registers: int = 65536
    """Registers of 32 bits of all its threads."""
    block_bytes: int = 0
    """Shared memory that the system takes for each block."""
    async_copies: bool = True
    """Whether threads can copy from memory to shared memory without waiting."""

    def occupancy(self, threads: int, registers: int, shared_bytes: int) -> int:
        """Blocks of so many threads that run at the same time; each thread has so many registers,
        each block so many bytes of shared memory. 0: not even one.
        """
        warps = -(-threads // WARP)
        a_warp = -(-registers * WARP // 256) * 256  # registers are given to warps 256 at a time
        limits = [self.blocks, self.threads // (warps * WARP)]
        if registers:
            limits.append(self.registers // a_warp // warps)
        if shared := shared_bytes + self.block_bytes:
            limits.append(self.shared_bytes // shared)
        return 0 if shared_bytes > self.block_shared_bytes else min(limits)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU. Rates are of all of it, at the clock that it sustains."""

    name: str
    isa: Isa
    multiprocessors: int
    hz: float
    memory_bytes_per_second: float
    l2_bytes: int
    macs_per_cycle: Mapping[str, int] = field(hash=False)
    """Multiply-accumulates of one multiprocessor by dtype of the operands ("f32", "f16", ...)."""
    launch_ns: float = 2_000.0
    """From the end of a kernel to the start of the next, inside a graph of launches (about 1 to 2
    microseconds, NVIDIA's blog "Getting Started with CUDA Graphs").
    """
    latency_ns: float = 600.0
    """Latency of memory."""
    threads: int = 1
    """Threads of the CPU that a run takes."""

    @property
    def multiprocessor(self) -> Multiprocessor:
        """What each multiprocessor holds."""
        assert self.isa.multiprocessor is not None, f"{self.isa.name} is no GPU's"
        return self.isa.multiprocessor

    def moved_seconds(self, size: float) -> float:
        """Seconds of a kernel that moves so many bytes between memory and registers, and does
        little else. Good code reaches about nine tenths of the bandwidth.
        """
        return 1e-9 * (self.launch_ns + self.latency_ns) + size / (
            0.9 * self.memory_bytes_per_second
        )

    def multiply_seconds(self, macs: float, dtype: str) -> float:
        """Seconds of multiply-accumulates, at the rate of operands of a dtype."""
        rate = self.macs_per_cycle.get(dtype, self.macs_per_cycle["f32"])
        return macs / (rate * self.multiprocessors * self.hz)

    def bound(self, seconds: float, size: float) -> str:
        """What most of a kernel's predicted seconds are due to, which moves so many bytes."""
        if 1e-9 * (self.launch_ns + self.latency_ns) > 0.5 * seconds:
            return "launch"
        return "memory" if self.moved_seconds(size) > 0.99 * seconds else "arithmetic"
