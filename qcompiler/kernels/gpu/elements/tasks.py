"""Operators without a GPU kernel of their own -> the CPU's kernel, whose tasks become threads.

It is made for a machine of one lane and as many threads as keep a GPU busy. So everything that a
CPU can run runs on a GPU too, slowly: neighbouring threads read memory that lies apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from qcompiler.errors import Skip
from qcompiler.hardware.core import REFERENCE
from qcompiler.hardware.gpu import Gpu
from qcompiler.hardware.isa import Cpu, Isa
from qcompiler.kernels.registry import (
    EVERY,
    Candidate,
    Fixed,
    Kernel,
    Region,
    candidates,
    choose,
    streamed,
)

_SLOWER = 100.0
"""Times the duration of a kernel that moves whole lines, so that any other is preferred."""
_THREADS = 1 << 14
"""Most tasks; those that need scratch memory have some each."""


class OneLane(Isa):
    """An instruction set whose vectors have one lane, whatever the size of elements."""

    def lanes(self, itemsize: int = 4) -> int:
        """Elements in a vector."""
        return 1


_ISA = OneLane("thread", "", (), frozenset(), registers=32, vector_bytes=4, masked=frozenset())
_TASKS = Cpu("threads", _ISA, _THREADS, core=replace(REFERENCE, launch_ns=1e-6))


@candidates(EVERY, kind=Gpu)
def tasks_as_threads(region: Region, device: Gpu) -> Iterable[Candidate]:
    """Any region for which there is a kernel of one lane."""
    seconds = _SLOWER * streamed(region, device)
    return [Candidate(Fixed(), seconds, partial(_made, region))]


def _made(region: Region) -> Kernel | Skip:
    return choose(region, _TASKS).kernel
