"""Regions that move values evenly, or pick them by indices -> a thread for each element of the
output: neighbours write together, and read together where they lie so.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import prod

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.moves.copy import moves_of
from qcompiler.kernels.cpu.moves.indexing import GATHERS, gathering_of
from qcompiler.kernels.cpu.moves.views import Box, boxes
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Candidate, Fixed, Kernel, Region, candidates, kernel


@kernel(
    *("Slice", "item of Split", "Expand", "Tile", "Concat", "Pad", "DepthToSpace", "SpaceToDepth"),
    kind=Gpu,
)
def gpu_copy(region: Region, device: Gpu) -> Kernel | Skip:
    """Operators that step evenly through their operands."""
    if reason := refuse(region) or too_large(region):
        return reason
    found = boxes(region)
    if isinstance(found, Skip) or not found:
        return found if isinstance(found, Skip) else Skip("nothing to move")
    assert region.root is not None
    d = GridDraft(region.root.op.lower(), region, device)
    _moved(d, found)
    return d.kernel()


def _moved(d: GridDraft, found: tuple[Box, ...]) -> None:
    """A thread for each element of the largest box; it has one of each of the others, too."""
    b, moves = d.b, moves_of(d, found)
    sizes = [prod(m.dims) for m in moves]
    with b.items(max(sizes)) as item:
        for move, size in zip(moves, sizes, strict=True):
            with b.when(item < size):
                *place, column = indices(b, item, move.dims)
                move.row(place)(column, 1, 1)


@candidates(*GATHERS, kind=Gpu)
def gpu_gather(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """Of the operand it reads what it picks."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    if 0 in root.type.dims or 0 in root.operands[0].type.dims:
        return Skip("nothing to pick")
    moved = root.type.bytes + region.output.type.bytes + root.operands[1].type.bytes
    return [Candidate(Fixed(), device.moved_seconds(moved), partial(_gathered, region, device))]


def _gathered(region: Region, device: Gpu) -> Kernel:
    assert region.root is not None
    d = GridDraft(region.root.op.lower(), region, device)
    made = gathering_of(d)
    with d.b.items(prod(made.dims)) as item:
        made.element(item)
    return d.kernel()
