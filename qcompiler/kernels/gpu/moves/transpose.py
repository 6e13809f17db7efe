"""Transpose regions -> tiles that are read along the last axis of the input and written along that
of the output, through shared memory; without one where the last axis stays.
"""

from __future__ import annotations

from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel

_TILE, _LINES = 32, 8
"""Rows and columns of a tile, and its rows that the threads of a block move at once."""


@kernel("Transpose", kind=Gpu)
def gpu_transpose(region: Region, device: Gpu) -> Kernel | Skip:
    """Any permutation of axes."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    dims = root.operands[0].type.dims
    if 0 in dims:
        return Skip("no element")
    perm = root.ints("perm") if root.attrs["perm"] is not None else tuple(range(len(dims)))[::-1]
    sizes, steps = merged(dims, perm)
    shape = "x".join(map(str, dims))
    order = "".join(map(str, perm))
    d = GridDraft(f"transpose{order}_{shape}", region, device, _TILE * _LINES)
    if steps[-1] == 1:
        _along(d, sizes, steps)
    else:
        _through_tiles(d, sizes, steps)
    return d.kernel()


def merged(dims: tuple[int, ...], perm: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The input's dimensions and their order in the output -> the output's, neighbours that stay
    neighbours as one, and how far apart elements along each lie in the input.
    """
    sizes, steps = [1], [1]
    for axis in perm:
        size, step = dims[axis], prod(dims[axis + 1 :])
        if size == 1:
            continue
        if steps[-1] == step * size or sizes[-1] == 1:
            sizes[-1], steps[-1] = sizes[-1] * size, step
        else:
            sizes.append(size)
            steps.append(step)
    return sizes, steps


def _along(d: GridDraft, sizes: list[int], steps: list[int]) -> None:
    """Neighbours stay neighbours: a thread for each element of the output."""
    with d.b.items(prod(sizes)) as item:
        place = indices(d.b, item, tuple(sizes))
        source = d.b.let(sum(i * s for i, s in zip(place, steps, strict=True)), "source")
        before = d.reading(d.root.operands[0], whole=True)
        d.put_at(item, d.at(before, source))


def _through_tiles(d: GridDraft, sizes: list[int], steps: list[int]) -> None:
    b, dtype = d.b, d.root.dtype
    near, last = steps.index(1), len(sizes) - 1
    others = [i for i in range(len(sizes)) if i not in (near, last)]
    down, right = (-(-sizes[i] // _TILE) for i in (near, last))
    b.blocks(prod(sizes[i] for i in others) * down * right)
    at = indices(b, b.x, (*(sizes[i] for i in others), down, right))
    outputs = [prod(sizes[i + 1 :]) for i in range(len(sizes))]
    start = {i: at[n] for n, i in enumerate(others)}
    source, target = (
        b.let(sum((v * of[i] for i, v in start.items()), start=tir.const(0)))
        for of in (steps, outputs)
    )
    lane = b.let(tirx.floormod(b.thread, _TILE), "lane")
    line = b.let(tirx.floordiv(b.thread, _TILE), "line")
    kept = tir.stored(dtype)
    tile = b.shared(kept, _TILE * (_TILE + 1), "tile")  # a column's elements in banks of their own
    before = d.reading(d.root.operands[0], whole=True)
    for first in range(0, _TILE, _LINES):
        i, j = b.let(at[-2] * _TILE + lane), b.let(at[-1] * _TILE + line + first)
        with b.when(tirx.And(i < sizes[near], j < sizes[last])):
            value = d.at(before, b.let(source + i + j * steps[last], "from"))
            tile.store((line + first) * (_TILE + 1) + lane, _raw(d, value))
    b.barrier()
    for first in range(0, _TILE, _LINES):
        i, j = b.let(at[-2] * _TILE + line + first), b.let(at[-1] * _TILE + lane)
        with b.when(tirx.And(i < sizes[near], j < sizes[last])):
            raw = d.m.vec(tile.load(lane * (_TILE + 1) + line + first))
            value = raw != 0 if dtype == "bool" else Vec(d.m, raw.expr, dtype, 1)
            d.put_at(b.let(target + i * outputs[near] + j, "to"), value)


def _raw(d: GridDraft, value: Vec) -> Value:
    return d.m.cast(value, "uint8").expr if value.dtype == "bool" else value.expr
