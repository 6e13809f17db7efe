"""Operators that have a meaning for each element of their output -> a thread for each: neighbours
write together, and read together where they read neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.elements.generic import Elements, meaning_of
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import (
    EVERY,
    Candidate,
    Fixed,
    Kernel,
    Region,
    candidates,
    streamed,
)

_SLOWER = 4.0
"""Times the duration of a kernel that moves whole lines: elements may lie apart."""


@candidates(EVERY, kind=Gpu)
def gpu_each(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """What CPUs compute one element after the other."""
    root = region.root
    if root is None or meaning_of(root) is None:
        return Skip("no meaning for each element")
    if reason := refuse(region) or too_large(region):
        return reason
    if len(root.types) > 1 or root.type.size == 0:
        return Skip("several outputs, or none")
    seconds = _SLOWER * streamed(region, device)
    return [Candidate(Fixed(), seconds, partial(_made, region, device))]


def _made(region: Region, device: Gpu) -> Kernel:
    root = region.root
    assert root is not None
    meaning = meaning_of(root)
    assert meaning is not None
    d = GridDraft(root.op.lower(), region, device)
    e = Elements(d)
    with d.b.items(root.type.size) as item:
        e.put(item, meaning(e, indices(d.b, item, root.type.dims)))
    return d.kernel()
