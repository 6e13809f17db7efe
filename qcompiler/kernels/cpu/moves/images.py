"""Regions that move pixels of images whose size a run knows -> TIR.

lay                    rows of pixels moved to where those of a run's own size are, or back
Concat, Slice, Resize  pixels of images of a run's own size joined, picked, or repeated
depth_to_space         their channels as pixels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import Fused
from qcompiler.kernels.cpu.code.images import is_open
from qcompiler.kernels.cpu.code.loops import divided, share, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.moves.views import boxes
from qcompiler.kernels.registry import Kernel, Region, kernel

_OFTEN = 8
"""At most so often a pixel is stored beside itself, by unrolled code."""


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


def of_images(region: Region, device: Cpu) -> Kernel | Skip:
    """Images whose size a run knows: joined by their channels (Concat), or some of their pixels
    and channels (Slice).
    """
    root = region.root
    assert root is not None
    if root.op not in ("Concat", "Slice") or root.type.rank != 4:
        return Skip("images whose size a run knows")
    return (_joined if root.op == "Concat" else _picked)(region, device)


class _Pixels:
    """Pixels of a region's root, made of those of its operands."""

    def __init__(self, region: Region, device: Cpu, operands: Sequence[Node]) -> None:
        """`operands`: those that pixels are of."""
        assert region.root is not None
        dims = region.root.type.dims
        name = f"{region.root.op.lower()}_of_images_{'x'.join(map(str, dims))}"
        self.d = Draft(name, region, device)
        self.sources = [self.d.reading(x) for x in operands]
        self.lanes = min(f.lanes() for f in (*self.sources, self.d.epilogue))
        self.channels = dims[3]
        moved = self.d.device.core.moved_ns(2 * region.root.type.bytes)
        self.tasks = tasks(device, moved, dims[0] * dims[1])

    @contextmanager
    def each(self, count: Value, name: str) -> Iterator[Value]:
        """Code for each of so many pixels, or rows, which the tasks share."""
        b = self.d.b
        with (
            share(b, self.tasks, count) as (first, iterations),
            b.serial(iterations, name, first) as nth,
        ):
            yield nth

    def put(
        self,
        source: Fused,
        pixel: Value,
        to: Sequence[Value],
        width: int,
        channels: tuple[int, int] = (0, 0),
    ) -> None:
        """So many channels of a pixel, from the first of `channels` on -> the same of others, from
        the second on.
        """
        after = self.d.epilogue
        row, rows = source.row(pixel), [(n, after.row(n)) for n in to]

        def body(column: Value, count: int) -> None:
            value = source.at(row, channels[0] + column, self.lanes, count)
            for n, place in rows:
                at = channels[1] + column
                self.d.put(after, place, n * self.channels + at, at, count, value)

        sweep(self.d.b, width, self.lanes, body)


def _joined(region: Region, device: Cpu) -> Kernel | Skip:
    root = region.root
    assert root is not None
    if root.int("axis") % 4 != 3:
        return Skip("images joined along another dimension than their channels")
    made = _Pixels(region, device, root.operands)
    total = prod(root.type.dims[:3])
    with made.each(made.d.counted(total, total), "pixel") as pixel:
        at = 0
        for source, x in zip(made.sources, root.operands, strict=True):
            made.put(source, pixel, [pixel], x.type.dims[3], (0, at))
            at += x.type.dims[3]
    return made.d.kernel(tasks=made.tasks)


def _picked(region: Region, device: Cpu) -> Kernel | Skip:
    root, found = region.root, boxes(region)
    assert root is not None
    if isinstance(found, Skip):
        return found
    if not found:
        return Skip("nothing is left")
    (box,) = found
    steps = [loop.source[axis] for axis, loop in enumerate(box.loops)]
    if min(steps) < 1 or steps[3] > 1:
        return Skip("images from behind, or not all channels in a row")
    made = _Pixels(region, device, root.operands[:1])
    b, (height, width) = made.d.b, made.d.image()
    rows, columns = (
        b.hold(
            tirx.Max(tirx.floordiv(n - start + (step - 1), tir.const(step)), tir.const(0)), "left"
        )
        for n, start, step in zip((height, width), box.source[1:3], steps[1:3], strict=True)
    )
    with made.each(b.hold(rows * root.type.dims[0], "rows"), "row") as row:
        image, y = divided(b, row, rows)
        line = (image * steps[0] + box.source[0]) * height + y * steps[1] + box.source[1]
        start, target = b.let(line * width + box.source[2], "start"), b.let(row * columns, "target")
        with b.serial(columns, "x") as x:
            pixel = b.let(start + x * steps[2], "pixel")
            made.put(made.sources[0], pixel, [b.let(target + x)], made.channels, (box.source[3], 0))
    return made.d.kernel(tasks=made.tasks)


def repeated(region: Region, device: Cpu, taps: Mapping[int, NDArray[np.int32]]) -> Kernel | Skip:
    """A Resize of images whose size a run knows, whose outputs along some axes are the inputs at
    these indices [outputs, 1]: every pixel several times.
    """
    root = region.root
    assert root is not None
    x, times = root.operands[0], [1, 1, 1, 1]
    for axis, index in taps.items():
        times[axis] = root.type.dims[axis] // x.type.dims[axis]
        steps = np.arange(root.type.dims[axis])[:, None] // max(times[axis], 1)
        if not np.array_equal(index, steps) or root.str("mode") != "nearest":
            return Skip("images whose size a run knows, of other pixels than each several times")
    _, down, across, channels = times
    if times[0] * channels > 1 or across > _OFTEN:
        return Skip("images, or channels, several times, or pixels very often")
    made = _Pixels(region, device, [x])
    b, (height, width) = made.d.b, made.d.image()
    rows = b.hold(height * (down * root.type.dims[0]), "rows")
    with made.each(rows, "row") as row:
        start = b.let(divided(b, row, down)[0] * width, "start")
        target = b.let(row * width * across, "target")
        with b.serial(width, "x") as at:
            to = [b.let(target + at * across + i) for i in range(across)]
            made.put(made.sources[0], b.let(start + at), to, made.channels)
    return made.d.kernel(tasks=made.tasks)


@kernel("depth_to_space")
def spread_channels(region: Region, device: Cpu) -> Kernel | Skip:
    """The channels of each pixel of images whose size a run knows, as pixels."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    down, across = root.int("down"), root.int("across")
    if not is_open(region) or down * across > _OFTEN * 2:
        return Skip("images of known sizes, or very many pixels of each")
    made = _Pixels(region, device, root.operands)
    b, (height, width) = made.d.b, made.d.image()
    rows = b.hold(height * root.type.dims[0], "rows")
    with made.each(rows, "row") as row, b.serial(width, "x") as x:
        pixel = b.let(row * width + x, "pixel")
        for at in range(down * across):
            y, beside = divmod(at, across)
            to = b.let((row * down + y) * (width * across) + x * across + beside)
            made.put(made.sources[0], pixel, [to], made.channels, (at * made.channels, 0))
    return made.d.kernel(tasks=made.tasks)
