"""lay regions -> TIR: rows of images moved to where those of a run's own size are, or back."""

from __future__ import annotations

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.loops import divided, share, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.registry import Kernel, Region, kernel


@kernel("lay")
def lay(region: Region, device: Cpu) -> Kernel | Skip:
    """A copy of each row; pixels of few channels may come from a plane for each channel."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    if len(region.nodes) > 1:
        return Skip("a copy alone")
    x, planar = root.operands[0], bool(root.int("planar"))
    if planar and x.type.dims[1] > 4:
        return Skip("planes of many channels")
    d = Draft(f"lay_{'x'.join(map(str, x.type.dims))}{'_back' * root.int('back')}", region, device)
    rows = x.type.dims[2 if planar else 1] * x.type.dims[0]
    count = tasks(device, device.core.moved_ns(2 * x.type.bytes), rows)
    height, width = (d.b.hold(d.pointers[n].load(), "size") for n in root.operands[1:])
    with (
        share(d.b, count, d.b.hold(height * x.type.dims[0], "rows")) as (first, iterations),
        d.b.serial(iterations, "row", first) as row,
    ):
        (_planar if planar else _row)(d, row, height, width)
    return d.kernel(tasks=count)


def _row(d: Draft, row: Value, height: Value, width: Value) -> None:
    """A row of pixels, one after the other here and there."""
    b, x = d.b, d.root.operands[0]
    _, rows, columns, channels = x.type.dims
    image, y = divided(b, row, height)
    padded = b.let((image * rows + y) * (columns * channels), "padded")
    own = b.let(row * width * channels, "own")
    source, target = (own, padded) if d.root.int("back") else (padded, own)
    lanes = d.isa.lanes(max(tir.bits(tir.stored(x.dtype)) // 8, 1))
    count = b.let(width * channels, "count")
    whole = b.let(count // lanes, "whole")
    pointer = d.pointers[x]
    with b.serial(whole, "v") as v:
        d.out.store(target + v * lanes, pointer.load(source + v * lanes, lanes))
    with b.serial(count - whole * lanes, "at", whole * lanes) as at:
        d.out.store(target + at, pointer.load(source + at))


def _planar(d: Draft, row: Value, height: Value, width: Value) -> None:
    """A row of pixels, from a plane for each channel."""
    b, x = d.b, d.root.operands[0]
    _, channels, rows, columns = x.type.dims
    image, y = divided(b, row, height)
    plane, lanes = rows * columns, d.isa.lanes(4)
    source = b.let(image * (channels * plane) + y * columns, "source")
    target = b.let(row * width * channels, "target")
    whole, pointer = b.let(width // lanes, "whole"), d.pointers[x]
    order = [c * lanes + lane for lane in range(lanes) for c in range(channels)]
    with b.serial(whole, "v") as v:
        at = b.let(source + v * lanes, "at")
        loaded = [b.let(pointer.load(at + c * plane, lanes), "plane") for c in range(channels)]
        d.out.store(target + v * (lanes * channels), tir.shuffle2(loaded, order))
    with b.serial(width - whole * lanes, "x", whole * lanes) as i:
        for c in range(channels):
            d.out.store(target + i * channels + c, pointer.load(source + i + c * plane))
