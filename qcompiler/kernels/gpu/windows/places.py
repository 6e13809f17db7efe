"""Output 1 of MaxPool -> a thread for each window."""

from __future__ import annotations

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.windows.generic import Places
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel


@kernel("item of MaxPool", kind=Gpu)
def gpu_places(region: Region, device: Gpu) -> Kernel | Skip:
    """Where in the whole input each window's largest value is, the first of equals."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    if root.int("index") != 1:
        return Skip(f"not the places of MaxPool but output {root.int('index')}")
    if set(region.nodes) != {root, root.operands[0]} or root.type.size == 0:
        return Skip("elementwise work around it, or nothing to look for")
    d = GridDraft("maxplaces", region, device)
    places = Places(d)
    with d.b.items(root.type.size) as item:
        places.one(item, indices(d.b, item, root.type.dims))
    return d.kernel()
