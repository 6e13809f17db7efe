"""Elementwise regions -> one pass over the output, 16 bytes a thread where operands lie so."""

from __future__ import annotations

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel


@kernel("elementwise", kind=Gpu)
def gpu_elementwise(region: Region, device: Gpu) -> Kernel | Skip:
    """Any broadcast of operands; the output may reuse the memory of an operand of its size."""
    if reason := refuse(region) or too_large(region):
        return reason
    if region.output.type.size == 0:
        return Skip("no element")
    d = GridDraft("elementwise", region, device)
    f = d.writing(whole=True)
    width = d.width(f)
    pieces = f.columns // width
    with d.b.items(f.rows * pieces) as item:
        row = d.b.let(tirx.floordiv(item, pieces), "row")
        column = d.b.let(tirx.floormod(item, pieces) * width, "column")
        values = d.along(f, f.row(row), column, width)
        d.store(d.b.let(row * f.columns + column), values)
    size = region.output.type.size
    own = [i for i, n in enumerate(region.inputs) if n.type.bytes == region.output.type.bytes]
    in_place = tuple(i for i in own if region.inputs[i].type.size == size > 1)
    return d.kernel(in_place=in_place)
