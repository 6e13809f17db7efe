"""Det -> a thread for each matrix, which eliminates in memory of its own."""

from __future__ import annotations

from math import prod

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.elements.irregular import determinant
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel


@kernel("Det", kind=Gpu)
def gpu_det(region: Region, device: Gpu) -> Kernel | Skip:
    """In float64, as on a CPU."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    dims = root.operands[0].type.dims
    if len(region.nodes) > 1 or 0 in dims:
        return Skip("elementwise work around it, or no elements")
    count, size = prod(dims[:-2]), dims[-1] ** 2
    d = GridDraft("det", region, device, 64)
    rows = d.scratch("float64")
    with d.b.items(count) as matrix:
        determinant(d, matrix, rows + matrix * size)
    return d.kernel(scratch_bytes=8 * count * size)
