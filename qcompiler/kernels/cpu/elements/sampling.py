"""Images read between their pixels -> TIR of one element, or some neighbours, after the other.

GridSample reads where a grid says, RoiAlign at regular places of regions.
"""

from __future__ import annotations

from functools import reduce
from itertools import product

import numpy as np
from tvm import tirx

from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.elements.generic import Elements, Place, means

# GridSample.


@means("GridSample", vectors=True, apart=(1, 10.0))
def _grid_sample(e: Elements, place: Place) -> Vec:
    x, grid = e.root.operands
    sizes = x.type.dims[2:]
    rank, dtype = len(sizes), tir.wide(x.dtype)
    cubic = e.root.str("mode") == "cubic"
    at = []
    for axis, size in enumerate(sizes):
        where = [place[0], *place[2:], tir.const(rank - 1 - axis)]
        coordinate = _denormalized(e, e.m.cast(e.read(grid, where), dtype), size)
        at.append(coordinate if cubic else _bounded(e, coordinate, size))
    total = e.m.splat(0, dtype)
    for chosen in product(*(_taps(e, a) for a in at)):
        weights, source, insides = [], [], []
        for (coordinate, weight), size in zip(chosen, sizes, strict=True):
            coordinate = _bounded(e, coordinate, size)
            insides.append((coordinate >= 0) & (coordinate <= size - 1))
            weights.append(weight)
            source.append(e.m.cast(e.m.where(insides[-1], coordinate, 0.0), "int32").expr)
        value = e.m.cast(e.x([place[0], place[1], *source]), dtype)
        value = value * reduce(lambda a, b: a * b, weights)
        total = total + e.m.where(reduce(lambda a, b: a & b, insides), value, 0.0)
    return e.m.cast(total, e.root.dtype)


def _denormalized(e: Elements, at: Vec, size: int) -> Vec:
    if e.root.int("align_corners"):
        return (at + 1.0) / 2.0 * (size - 1)
    return ((at + 1.0) * size - 1.0) / 2.0


def _bounded(e: Elements, at: Vec, size: int) -> Vec:
    """The coordinate that the padding mode reads instead of one outside."""
    mode, m = e.root.str("padding_mode"), e.m
    finite = m.abs(at) < np.inf
    at = m.where(finite, at, -1e6 if mode == "zeros" else 0.0)
    if mode == "zeros":
        return m.clip(at, -1e6, 1e9)
    if mode == "reflection":
        low, high = (0.0, size - 1.0) if e.root.int("align_corners") else (-0.5, size - 0.5)
        span = high - low
        if span <= 0:
            return at * 0.0
        folded = m.remainder(at - low, 2 * span)
        at = m.min(folded, 2 * span - folded) + low
    return m.clip(at, 0.0, size - 1.0)


def _taps(e: Elements, at: Vec) -> list[tuple[Vec, Vec]]:
    """A coordinate -> the places to read, and their weights."""
    mode, m = e.root.str("mode"), e.m
    if mode == "nearest":
        return [(m.round(at), m.splat(1, at.dtype))]
    base, made = m.floor(at), []
    for offset in (0, 1) if mode == "linear" else (-1, 0, 1, 2):
        distance = m.abs(base + float(offset) - at)
        made.append(
            (base + float(offset), 1.0 - distance if mode == "linear" else _cubic(distance))
        )
    return made


def _cubic(distance: Vec) -> Vec:
    """Keys' kernel with a = -0.75."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1.0
    beyond = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return distance.m.where(distance <= 1.0, near, distance.m.where(distance < 2.0, beyond, 0.0))


# RoiAlign.


@means("RoiAlign", "roi_align")
def _roi_align(e: Elements, place: Place) -> Vec:
    """The average (or largest) of a grid of samples of a bin, each between four pixels."""
    b, m, root = e.b, e.m, e.root
    x, rois, batch, *counted = root.operands
    images, _, *rooms = x.type.dims
    sizes = [m.splat(n, "float64") for n in rooms]
    for given in counted:
        sizes = [m.cast(e.read(given, [tir.const(axis)]), "float64") for axis in (0, 1)]
    index = b.let(e.index(batch, place[0], -1, images - 1), "image")
    image = b.let(tirx.Max(index, tir.const(0)))
    there = tirx.GE(index, tir.const(0))
    average, half = root.str("mode") == "avg", _half_pixel(root)
    counts = (root.int("output_height"), root.int("output_width"))
    bins = [_bin(e, rois, place, axis, counts[axis], half) for axis in (0, 1)]
    total = b.registers("float64", 1, 1, "total")
    total.fill(0 if average else -np.inf)
    rows = b.let(tirx.Select(there, bins[0][2], tir.const(0)), "rows")
    with b.serial(rows, "y") as i, b.serial(bins[1][2], "x") as j:
        sides = [
            _neighbours(e, start + step * (m.cast(e.number(n), "float64") + 0.5), size)
            for (start, step, _), n, size in zip(bins, (i, j), sizes, strict=True)
        ]
        parts = []
        for (row, below), (column, beside) in product(*sides):
            value = m.cast(e.x([image, place[1], row, column]), "float64")
            parts.append(value * (below * beside))
        seen = reduce(lambda a, c: a + c if average else m.max(a, c), parts)
        before = m.vec(total[0])
        total[0] = (before + seen if average else m.max(before, seen)).expr
    found = m.vec(total[0])
    if average:
        found = found / m.cast(e.number(bins[0][2] * bins[1][2]), "float64")
    else:
        found = m.vec(tirx.Select(there, found.expr, tir.const(0.0, "float64")))
    return m.cast(found, root.dtype)


def _half_pixel(root: Node) -> bool:
    return root.str("coordinate_transformation_mode") == "half_pixel"


def _bin(
    e: Elements, rois: Node, place: Place, axis: int, count: int, half: bool
) -> tuple[Vec, Vec, Value]:
    """Along an axis: where the bin of a place begins, the distance and number of its samples."""
    m, given = e.m, e.root.int("sampling_ratio")
    scale = e.root.float("spatial_scale")
    ends = [
        m.cast(e.read(rois, [place[0], tir.const(k - axis)]), "float64") * scale - half / 2
        for k in (1, 3)
    ]
    length = ends[1] - ends[0] if half else m.max(ends[1] - ends[0], 1.0)
    each = length / float(count)
    many = tir.const(given) if given else m.cast(m.max(m.ceil(each), 1.0), "int32").expr
    many = e.b.let(many, "samples")
    start = ends[0] + each * m.cast(e.number(place[2 + axis]), "float64")
    return start, each / m.cast(e.number(many), "float64"), many


def _neighbours(e: Elements, at: Vec, size: Vec) -> list[tuple[Value, Vec]]:
    """A coordinate -> the pixels on both sides of it and their weights; none far outside."""
    m = e.m
    inside = (at >= -1.0) & (at <= size)
    bounded = m.clip(at, 0.0, size - 1.0)
    low = m.floor(bounded)
    share = bounded - low
    high = m.min(low + 1.0, size - 1.0)
    weights = [m.where(inside, w, 0.0) for w in (1.0 - share, share)]
    return [(m.cast(p, "int32").expr, w) for p, w in zip((low, high), weights, strict=True)]
