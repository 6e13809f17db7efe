"""Interpolation: Resize, GridSample, RoiAlign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import ceil, floor

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.math import NUMPY
from qcompiler.ops.registry import Numbers, fresh, operator, optional, typed
from qcompiler.ops.shapes import axes_of, known_dims, known_ints, need_rank, scaled

_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
_POLICIES = ("stretch", "not_larger", "not_smaller")
MAX_TAPS = 1 << 23
"""Limit of the indices and weights along one axis of a Resize, over all outputs."""
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")

Scale = Fraction | np.float32
"""Outputs per input along an axis: a ratio of sizes, or a number given by the model."""


@operator(
    "Resize",
    antialias=0,
    axes=None,
    coordinate_transformation_mode="half_pixel",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    extrapolation_value=0.0,
    keep_aspect_ratio_policy="stretch",
    mode="nearest",
    nearest_mode="round_prefer_floor",
)
def resize(
    node: Node,
    x: Numbers,
    roi: Numbers | None = None,
    scales: Numbers | None = None,
    sizes: Numbers | None = None,
) -> Numbers:
    """One dimension after another; every output is a weighted sum of neighbouring inputs."""
    made = x if node.str("mode") == "nearest" else x.astype(np.result_type(_wide(x), np.float32))
    outside = np.zeros((), np.bool_)
    for axis, (at, factor) in _places(node, x.shape, (roi, scales, sizes)).items():
        made = _resampled(node, made, axis, at, float(factor))
        if node.str("coordinate_transformation_mode") == "tf_crop_and_resize":
            missed = at.outside(x.shape[axis])
            outside = outside | missed.reshape(-1, *[1] * (x.ndim - axis - 1))
    if outside.any():
        made = np.where(outside, np.float32(node.float("extrapolation_value")), made)
    if x.dtype.kind in "iu":
        return np.asarray(NUMPY.saturate(np.trunc(made), x.dtype.name))
    return made.astype(x.dtype)


def _places(
    node: Node, shape: Sequence[int], given: Sequence[Numbers | None]
) -> dict[int, tuple[_At, Scale]]:
    """Resized axis -> (the outputs' coordinates, the scale); `given`: region, scales and sizes."""
    roi, scales, sizes = given
    axes = _resized_axes(node, len(shape))
    counts, factors = _resized(node, [shape[a] for a in axes], scales, sizes)
    found = {}
    for i, axis in enumerate(axes):
        if counts[i] == shape[axis] and factors[i] == 1 and roi is None:
            continue
        part = (0.0, 1.0)
        if roi is not None and roi.size:
            start = axis if roi.size == 2 * len(shape) else i
            part = (float(roi[start]), float(roi[start + roi.size // 2]))
        at = _coordinates(node, counts[i], shape[axis], factors[i], part)
        found[axis] = (at, factors[i])
    return found


@dataclass(frozen=True)
class Sampled:
    """One axis of a Resize: the indices [outputs, taps] (int64, within the axis) that each output
    reads, their weights (None if each reads one), and which outputs lie outside the input.
    """

    places: Numbers
    weights: Numbers | None
    outside: Numbers

    @property
    def taps(self) -> int:
        """Number of inputs per output."""
        return 1 if self.weights is None else int((self.weights != 0).sum(1).max(initial=1))

    def matrix(self, size: int) -> Numbers:
        """The weights as a matrix over all `size` inputs: float32 [outputs, size]."""
        made = np.zeros((len(self.places), size), np.float32)
        weights = np.float32(1) if self.weights is None else self.weights.astype(np.float32)
        np.add.at(made, (np.arange(len(made))[:, None], self.places), weights)
        return made


def sampled(
    node: Node, shape: Sequence[int], given: Sequence[Numbers | None]
) -> dict[int, Sampled]:
    """A Resize's input shape, region, scales and sizes -> the sampling of each resized axis, in
    ascending order (`axes` may be in any order). Raises Error above MAX_TAPS.
    """
    found = {}
    for axis, (at, factor) in sorted(_places(node, shape, given).items()):
        places, weights = _sampled(node, shape[axis], at, float(factor))
        found[axis] = Sampled(places, weights, at.outside(shape[axis]))
    return found


def _wide(x: Numbers) -> str:
    return sums_of(x.dtype.name)


def _resized_axes(node: Node, rank: int) -> tuple[int, ...]:
    return axes_of(node.ints("axes") if node.attrs["axes"] is not None else range(rank), rank)


def _resized(
    node: Node, before: Sequence[int], scales: Numbers | None, sizes: Numbers | None
) -> tuple[list[int], list[Scale]]:
    """Number of outputs along each axis, and the scale of the coordinates."""
    given = scales if scales is not None and scales.size else sizes
    if given is None or given.size != len(before):
        raise Error(f"{len(before)} scales or sizes are needed")
    if given is scales:
        factors = [np.float32(s) for s in given.ravel()]
        if not np.isfinite(factors).all() or min(factors, default=1) <= 0:
            raise Error(f"scales {given.ravel().tolist()}")
        counts = [floor(float(np.float32(n) * s)) for n, s in zip(before, factors, strict=True)]
        return counts, [_ratio(c, n, s) for c, n, s in zip(counts, before, factors, strict=True)]
    wanted = [int(n) for n in given.ravel()]
    if min(wanted, default=1) < 0 or min(before, default=1) < 1:
        raise Error(f"sizes {list(before)} to {wanted}")
    ratios = [Fraction(n, m) for n, m in zip(wanted, before, strict=True)]
    if node.str("keep_aspect_ratio_policy") == "stretch":
        return wanted, [*ratios]
    ratio = (min if node.str("keep_aspect_ratio_policy") == "not_larger" else max)(ratios)
    return [floor(ratio * m + Fraction(1, 2)) for m in before], [ratio] * len(wanted)


def _ratio(count: int, size: int, scale: np.float32) -> Scale:
    """The exact ratio of the sizes, if the scale is that ratio rounded; else the scale."""
    exact = Fraction(count, size) if size else Fraction(1)
    return exact if np.float32(float(exact)) == scale and count else scale


@dataclass(frozen=True)
class _At:
    """Coordinates: integer parts (int64), rounded down, and fractions in [0, 1), float64. A
    fraction of 0 or 1/2 is exact if the coordinates are ratios of integers.
    """

    whole: Numbers
    rest: Numbers

    @staticmethod
    def of(at: Numbers) -> _At:
        """From coordinates in floating point."""
        whole = np.floor(at)
        return _At(whole.astype(np.int64), (at - whole).astype(np.float64))

    @staticmethod
    def ratio(over: Numbers, under: int) -> _At:
        """From ratios of integers."""
        return _At(over // under, (over % under) / under)

    def outside(self, size: int) -> Numbers:
        """Which of them lie outside an axis."""
        beyond = (self.whole > size - 1) | ((self.whole == size - 1) & (self.rest > 0))
        return np.asarray((self.whole < 0) | beyond)


def _coordinates(node: Node, count: int, size: int, scale: Scale, part: tuple[float, float]) -> _At:
    """The input coordinate of each output, exact if the scale is a ratio.

    Other scales are used in float32, as in ONNX's reference and onnxruntime.
    """
    mode, y = node.str("coordinate_transformation_mode"), np.arange(count, dtype=np.int64)
    if mode == "align_corners" and not isinstance(scale, Fraction):
        width = scale * np.float32(size)  # not a whole number, as in ONNX's reference
        steps = y.astype(np.float32) * np.float32(size - 1) / (width - np.float32(1))
        return _At.of(y * np.float32(0) if width == 1 else steps)
    if mode == "align_corners":
        return _At.ratio(y * (size - 1), max(count - 1, 1))
    if mode == "tf_crop_and_resize":
        start, end = part[0] * (size - 1), part[1] * (size - 1)
        if count == 1:
            return _At.of(y * 0.0 + (start + end) / 2)
        return _At.of(start + y * (end - start) / (count - 1))
    if mode == "pytorch_half_pixel" and count == 1:
        return _At.of(y * 0.0)
    if not isinstance(scale, Fraction):
        return _rounded(mode, y, count, size, scale)
    over, under = scale.numerator, scale.denominator
    if mode == "asymmetric":
        return _At.ratio(y * under, over)
    at = (2 * y + 1) * under - over  # (y + 1/2) / scale - 1/2, in halves of `over`
    if mode == "half_pixel_symmetric":
        at = at + size * over - count * under
    return _At.ratio(at, 2 * over)


def _rounded(mode: str, y: Numbers, count: int, size: int, scale: np.float32) -> _At:
    """Coordinates by a scale that is not a ratio, in float32."""
    at = y.astype(np.float32)
    if mode == "asymmetric":
        return _At.of(at / scale)
    half = np.float32(0.5)
    at = (at + half) / scale - half
    if mode == "half_pixel_symmetric":
        at = at + np.float32(size / 2 * (1 - count / (float(scale) * size)))
    return _At.of(at)


def _resampled(node: Node, x: Numbers, axis: int, at: _At, scale: float) -> Numbers:
    """x interpolated at coordinates along an axis; outside, the edge values are repeated."""
    places, weights = _sampled(node, x.shape[axis], at, scale)
    if weights is None:
        return np.take(x, places[:, 0], axis)
    made = np.zeros((*x.shape[:axis], len(places), *x.shape[axis + 1 :]), x.dtype)
    column = (-1, *[1] * (x.ndim - axis - 1))
    for tap in range(places.shape[1]):
        values = np.take(x, places[:, tap], axis)
        made += values * weights[:, tap].astype(x.dtype).reshape(column)
    return made


def _sampled(node: Node, size: int, at: _At, scale: float) -> tuple[Numbers, Numbers | None]:
    """Coordinates along an axis -> the indices each reads [outputs, taps], within the axis, and
    their weights; None if each reads one.
    """
    if node.str("mode") == "nearest":
        return np.clip(_nearest(node, at), 0, size - 1)[:, None], None
    taps = taps_of(node, scale)
    if taps * len(at.whole) > MAX_TAPS:
        raise Error(f"{len(at.whole)} outputs along an axis with {taps} inputs each are too many")
    cubic = node.str("mode") == "cubic"
    narrow = min(scale, 1.0) if node.int("antialias") else 1.0
    steps = np.arange(1 - taps // 2, 1 + taps // 2)
    places = at.whole[:, None] + steps
    distance = np.abs(steps - at.rest[:, None]) * narrow
    weights = np.maximum(1 - distance, 0)
    if cubic:
        weights = _cubic(distance, node.float("cubic_coeff_a"))
    if node.int("exclude_outside"):
        weights = np.where((places >= 0) & (places < size), weights, 0)
    return np.clip(places, 0, size - 1), weights / weights.sum(1, keepdims=True)


def taps_of(node: Node, scale: float) -> int:
    """Number of inputs per output along an axis resized by this scale."""
    if node.str("mode") == "nearest":
        return 1
    narrow = min(scale, 1.0) if node.int("antialias") else 1.0
    return 2 * ceil((2 if node.str("mode") == "cubic" else 1) / narrow)


def _nearest(node: Node, at: _At) -> Numbers:
    """The index that each coordinate is rounded to."""
    up = {
        "floor": False,
        "ceil": at.rest > 0,
        "round_prefer_floor": at.rest > 0.5,
        "round_prefer_ceil": at.rest >= 0.5,
    }
    return np.asarray(at.whole + up[node.str("nearest_mode")])


def _cubic(distance: Numbers, a: float) -> Numbers:
    """The cubic convolution kernel (R. Keys, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


@typed(resize)
def _(node: Node) -> Type:
    x = node.operands[0].type
    for key, known in (
        ("mode", ("nearest", "linear", "cubic")),
        ("nearest_mode", _NEAREST),
        ("coordinate_transformation_mode", _COORDINATES),
        ("keep_aspect_ratio_policy", _POLICIES),
    ):
        if node.str(key) not in known:
            raise Error(f"unknown {key} {node.str(key)!r}")
    axes = _resized_axes(node, x.rank)
    roi, scales, sizes = (optional(node, i) for i in (1, 2, 3))
    if scales is not None and scales.shape == (0,):
        scales = None
    crops = node.str("coordinate_transformation_mode") == "tf_crop_and_resize"
    if crops and (roi is None or roi.shape not in ((2 * len(axes),), (2 * x.rank,))):
        raise Error("the region to crop is not given for each axis")
    dims = list(x.shape)
    values = known_value(scales if scales is not None else sizes)
    before = [x.shape[a] for a in axes]
    numbers = [d for d in before if isinstance(d, int)]
    if values is None or len(numbers) < len(before):
        counts: Sequence[Dim] = _open_counts(node, before, scales, sizes)
    elif scales is not None:
        counts, _ = _resized(node, numbers, values, None)
    else:
        counts, _ = _resized(node, numbers, None, values)
    for axis, count in zip(axes, counts, strict=True):
        if x.shape[axis] == 0 and count != 0:
            raise Error(f"nothing to resize in {x}")
        dims[axis] = count
    return Type(x.dtype, tuple(dims))


def _open_counts(
    node: Node, before: Sequence[Dim], scales: Node | None, sizes: Node | None
) -> list[Dim]:
    """The number of outputs along each axis, some of them open."""
    wanted = None if sizes is None or scales is not None else known_dims(sizes)
    if wanted is not None and node.str("keep_aspect_ratio_policy") == "stretch":
        return list(wanted)
    factors = known_value(scales)
    if factors is None or factors.size != len(before):
        return [fresh() for _ in before]
    return [scaled(d, float(f)) or fresh() for d, f in zip(before, factors.ravel(), strict=True)]


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
        index = []
        for (place, w), size in zip(chosen, x.shape[2:], strict=True):
            place = _bounded(node, place, size)
            inside = (place >= 0) & (place <= size - 1)
            weight = weight * np.where(inside, w, 0)
            index.append(np.where(inside, place, 0).astype(np.int64))
        values = np.moveaxis(x, 1, -1)[(batch, *index)]
        made += values * weight[..., None]
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
        weight = 1 - distance if mode == "linear" else _cubic(distance, -0.75)
        made.append((base + offset, weight.astype(at.dtype)))
    return made


@typed(grid_sample)
def _(node: Node) -> Type:
    x, grid = need_rank(node.operands[0], 3, "input"), node.operands[1].type
    if grid.rank != x.rank or grid.shape[-1] != x.rank - 2 or x.rank > 5:
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
    rank = theta.shape[1] if theta.type.rank == 3 else 0
    if rank not in (2, 3) or theta.shape[2] != rank + 1 or size.shape != (rank + 2,):
        raise Error(f"theta {theta.type} does not fit the size {size.type}")
    known = known_ints(size)
    counts: Sequence[Dim] = [fresh() for _ in range(rank)] if known is None else known[2:]
    return Type(theta.dtype, (theta.shape[0], *counts, rank))


@operator(
    "RoiAlign",
    coordinate_transformation_mode="half_pixel",
    mode="avg",
    output_height=1,
    output_width=1,
    sampling_ratio=0,
    spatial_scale=1.0,
)
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


@typed(roi_align)
def _(node: Node) -> Type:
    x, rois, batch = (i.type for i in node.operands)
    if x.rank != 4 or rois.rank != 2 or rois.shape[1] != 4 or batch.shape != rois.shape[:1]:
        raise Error(f"regions {rois} of images {batch} do not fit {x}")
    if node.str("mode") not in ("avg", "max") or node.int("sampling_ratio") < 0:
        raise Error(f"unknown mode {node.str('mode')!r} or sampling ratio")
    if node.str("coordinate_transformation_mode") not in ("half_pixel", "output_half_pixel"):
        raise Error("unknown coordinate_transformation_mode")
    counts = (node.int("output_height"), node.int("output_width"))
    if min(counts) < 1 or any(d == 0 for d in x.shape[2:]):
        raise Error(f"{counts} bins of {x}")
    return Type(x.dtype, (rois.shape[0], x.shape[1], *counts))
