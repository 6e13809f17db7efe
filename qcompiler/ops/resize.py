"""Resize: what each output reads along each axis, by which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.math import NUMPY
from qcompiler.ops.registry import Numbers, fresh, operator, optional, typed
from qcompiler.ops.shapes import axes_of, known_dims, scaled

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


def repeats(node: Node) -> dict[int, int] | None:
    """How often a Resize repeats each position along the axes that it changes; None where it does
    anything else, or only a run knows.
    """
    x, given = node.operands[0].type, (*node.inputs[1:], None, None, None)[:3]
    arrays = tuple(None if i is None else known_value(i) for i in given)
    plain = node.str("keep_aspect_ratio_policy") == "stretch" and not (
        given[0] and given[0].type.size
    )
    if node.str("mode") != "nearest" or not plain or not (x.static and node.type.static):
        return None
    if any((i is None) != (a is None) for i, a in zip(given, arrays, strict=True)):
        return None
    return repeated(sampled(node, x.dims, (None, *arrays[1:])), x.dims)


def repeated(found: Mapping[int, Sampled], dims: Sequence[int]) -> dict[int, int] | None:
    """The sampling of resized axes of an input -> how often each position is repeated, if that is
    all that happens.
    """
    made = {}
    for axis, one in found.items():
        count, rest = divmod(len(one.places), dims[axis])
        steps = np.arange(len(one.places)) // max(count, 1)
        if rest or one.weights is not None or not np.array_equal(one.places.ravel(), steps):
            return None
        made[axis] = count
    return made


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
    taps = _taps_of(node, scale)
    if taps * len(at.whole) > MAX_TAPS:
        raise Error(f"{len(at.whole)} outputs along an axis with {taps} inputs each are too many")
    narrow = min(scale, 1.0) if node.int("antialias") else 1.0
    steps = np.arange(1 - taps // 2, 1 + taps // 2)
    places = at.whole[:, None] + steps
    distance = np.abs(steps - at.rest[:, None]) * narrow
    weights = np.maximum(1 - distance, 0)
    if node.str("mode") == "cubic":
        weights = cubic(distance, node.float("cubic_coeff_a"))
    if node.int("exclude_outside"):
        weights = np.where((places >= 0) & (places < size), weights, 0)
    return np.clip(places, 0, size - 1), weights / weights.sum(1, keepdims=True)


def _taps_of(node: Node, scale: float) -> int:
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


def cubic(distance: Numbers, a: float) -> Numbers:
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
