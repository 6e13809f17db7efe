"""Values of images between their pixels: GridSample, AffineGrid, RoiAlign."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Attr, Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.registry import Numbers, fresh, operator, typed
from qcompiler.ops.resize import cubic
from qcompiler.ops.shapes import agree, known_dims, need_rank


@operator("GridSample", align_corners=0, mode="linear", padding_mode="zeros")
def grid_sample(node: Node, x: Numbers, grid: Numbers) -> Numbers:
    """Sample x[N,C,*S] at grid[N,*S',len(S)], from -1 to 1, the last dimension first."""
    dtype = sums_of(x.dtype.name)
    at = [
        _denormalized(node, grid[..., -1 - i].astype(dtype), size)
        for i, size in enumerate(x.shape[2:])
    ]
    if node.str("mode") != "cubic":
        at = [_bounded(node, a, size) for a, size in zip(at, x.shape[2:], strict=True)]
    taps = [_taps(node, a) for a in at]
    batch = np.arange(len(x)).reshape(-1, *[1] * (grid.ndim - 2))
    made: Numbers = np.zeros((*grid.shape[:-1], x.shape[1]), dtype)
    for chosen in product(*taps):
        weight: Numbers = np.ones(grid.shape[:-1], dtype)
        there: Numbers = np.ones(grid.shape[:-1], np.bool_)
        index = []
        for (place, w), size in zip(chosen, x.shape[2:], strict=True):
            place = _bounded(node, place, size)
            inside = (place >= 0) & (place <= size - 1)
            weight, there = weight * w, there & inside
            index.append(np.where(inside, place, 0).astype(np.int64))
        values = np.moveaxis(x, 1, -1)[(batch, *index)]
        made += np.where(there[..., None], values, 0) * np.where(there, weight, 0)[..., None]
    return np.moveaxis(made, -1, 1).astype(x.dtype)


def _denormalized(node: Node, at: Numbers, size: int) -> Numbers:
    """Map -1 .. 1 to the centres of the outermost pixels (align_corners) or their outer edges."""
    if node.int("align_corners"):
        return (at + 1) / 2 * (size - 1)
    return ((at + 1) * size - 1) / 2


def _bounded(node: Node, at: Numbers, size: int) -> Numbers:
    """Coordinates outside the input -> mapped inside by the padding mode; unchanged for zeros."""
    at = np.where(np.isfinite(at), at, -1e6 if node.str("padding_mode") == "zeros" else 0)
    if node.str("padding_mode") == "zeros":
        return np.clip(at, -1e6, 1e9)
    if node.str("padding_mode") == "reflection":
        low, high = (0.0, size - 1.0) if node.int("align_corners") else (-0.5, size - 0.5)
        span = high - low
        if span <= 0:
            return at * 0
        folded = np.mod(at - low, 2 * span)
        at = low + np.minimum(folded, 2 * span - folded)
    return np.clip(at, 0, size - 1)


def _taps(node: Node, at: Numbers) -> list[tuple[Numbers, Numbers]]:
    """Coordinates -> the indices to read and their weights."""
    mode = node.str("mode")
    if mode == "nearest":
        return [(np.rint(at), np.ones_like(at))]
    base = np.floor(at)
    offsets = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    made = []
    for offset in offsets:
        distance = np.abs(base + offset - at)
        weight = 1 - distance if mode == "linear" else cubic(distance, -0.75)
        made.append((base + offset, weight.astype(at.dtype)))
    return made


@typed(grid_sample)
def _(node: Node) -> Type:
    x, grid = need_rank(node.operands[0], 3, "input"), node.operands[1].type
    if grid.rank != x.rank or not agree(grid.shape[-1], x.rank - 2) or x.rank > 5:
        raise Error(f"grid {grid} does not fit {x}")
    if node.str("mode") not in ("linear", "nearest", "cubic"):
        raise Error(f"unknown mode {node.str('mode')!r}")
    if node.str("padding_mode") not in ("zeros", "border", "reflection"):
        raise Error(f"unknown padding_mode {node.str('padding_mode')!r}")
    if any(d == 0 for d in x.shape[2:]):
        raise Error(f"nothing to sample in {x}")
    return Type(x.dtype, (*x.shape[:2], *grid.shape[1:-1]))


@operator("AffineGrid", align_corners=0)
def affine_grid(node: Node, theta: Numbers, size: Numbers) -> Numbers:
    """theta[N,d,d+1] -> the GridSample grid of an affine map to an image of `size`."""
    counts = [int(n) for n in size[2:]]
    grid = places(counts, corners=bool(node.int("align_corners")))
    flat = grid.reshape(-1, len(counts) + 1) @ np.swapaxes(theta.astype(np.float64), 1, 2)
    return flat.reshape(len(theta), *counts, len(counts)).astype(theta.dtype)


def places(counts: Sequence[int], *, corners: bool) -> Numbers:
    """The coordinates of an image's pixels, from -1 to 1, the last dimension first, and 1:
    [*counts, rank + 1]. `corners`: the centres of the outermost pixels are at -1 and 1.
    """
    inner = 0 if corners else 1
    steps = [(2 * np.arange(n) + inner) / max(n - 1 + inner, 1) - 1 for n in counts]
    return np.stack([*np.meshgrid(*steps, indexing="ij")[::-1], np.ones(counts)], -1)


@typed(affine_grid)
def _(node: Node) -> Type:
    theta, size = node.operands
    rank = size.shape[0] - 2 if size.type.rank == 1 and isinstance(size.shape[0], int) else 0
    fits = theta.type.rank == 3 and all(map(agree, theta.shape[1:], (rank, rank + 1)))
    if rank not in (2, 3) or not fits:
        raise Error(f"theta {theta.type} does not fit the size {size.type}")
    known = known_dims(size)
    counts = [fresh() for _ in range(rank)] if known is None else known[2:]
    return Type(theta.dtype, (theta.shape[0], *counts, rank))


_REGIONS: dict[str, Attr] = {
    "coordinate_transformation_mode": "half_pixel",
    "mode": "avg",
    "output_height": 1,
    "output_width": 1,
    "sampling_ratio": 0,
    "spatial_scale": 1.0,
}


@operator("RoiAlign", **_REGIONS)
def roi_align(node: Node, x: Numbers, rois: Numbers, batch: Numbers) -> Numbers:
    """Each region of an image divided into output_height by output_width bins; zeros for a region
    of image -1, which is none.
    """
    counts = (node.int("output_height"), node.int("output_width"))
    made = np.zeros((len(rois), x.shape[1], *counts), x.dtype)
    half = node.str("coordinate_transformation_mode") == "half_pixel"
    for i, roi in enumerate(rois.astype(np.float64) * node.float("spatial_scale")):
        if batch[i] < 0:
            continue
        weights = []
        for axis in (0, 1):
            start, end = roi[1 - axis] - half / 2, roi[3 - axis] - half / 2
            length = end - start if half else max(end - start, 1.0)
            each = node.int("sampling_ratio") or max(ceil(length / counts[axis]), 1)
            steps = (np.arange(counts[axis] * each) + 0.5) / each
            weights.append((start + steps * length / counts[axis], each))
        made[i] = _roi_bins(node, x[int(batch[i])], weights, counts)
    return made


def _roi_bins(
    node: Node, image: Numbers, at: list[tuple[Numbers, int]], counts: tuple[int, int]
) -> Numbers:
    """image[C,H,W] sampled at the rows and columns `at`: (coordinates, samples per bin)."""
    corners = []
    for (places, _), size in zip(at, image.shape[1:], strict=True):
        inside = (places >= -1) & (places <= size)
        bounded = np.clip(places, 0, size - 1)
        low = np.floor(bounded).astype(np.int64)
        share = bounded - low
        high = np.minimum(low + 1, size - 1)
        corners.append(((low, (1 - share) * inside), (high, share * inside)))
    parts = [image[:, r][:, :, c] * (wr[:, None] * wc) for (r, wr), (c, wc) in product(*corners)]
    average = node.str("mode") == "avg"
    values = sum(parts) if average else np.maximum.reduce(parts)
    bins = np.asarray(values).reshape(-1, counts[0], at[0][1], counts[1], at[1][1])
    return np.asarray(bins.mean((2, 4)) if average else bins.max((2, 4)))


@operator("roi_align", **_REGIONS)
def roi_align_within(
    node: Node, x: Numbers, rois: Numbers, batch: Numbers, size: Numbers
) -> Numbers:
    """The same of images of a size, [2], that lie at the beginning of larger ones."""
    height, width = (int(n) for n in size)
    return np.asarray(roi_align(node, x[:, :, :height, :width], rois, batch))


@typed(roi_align, roi_align_within)
def _(node: Node) -> Type:
    x, rois, batch = (i.type for i in node.operands[:3])
    ranks = (x.rank, rois.rank, batch.rank) == (4, 2, 1)
    if not ranks or not agree(rois.shape[1], 4) or not agree(batch.shape[0], rois.shape[0]):
        raise Error(f"regions {rois} of images {batch} do not fit {x}")
    if node.str("mode") not in ("avg", "max") or node.int("sampling_ratio") < 0:
        raise Error(f"unknown mode {node.str('mode')!r} or sampling ratio")
    if node.str("coordinate_transformation_mode") not in ("half_pixel", "output_half_pixel"):
        raise Error("unknown coordinate_transformation_mode")
    counts = (node.int("output_height"), node.int("output_width"))
    if min(counts) < 1 or any(d == 0 for d in x.shape[2:]):
        raise Error(f"{counts} bins of {x}")
    return Type(x.dtype, (rois.shape[0], x.shape[1], *counts))
