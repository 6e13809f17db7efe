"""Ranges and weights -> scales, zero points and integers: the arithmetic that the quantize passes
share.

real = (integer - zero) * scale. Zero is always one of the integers, so padding and Relu stay exact.
Scales are float32 and so far from its limits that products and quotients of two of them are normal
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import Error
from qcompiler.ir import Array

SMALLEST, LARGEST = 2.0**-40, 2.0**40
"""Scales outside are refused or raised: the product of two, times another's inverse, stays within
float32.
"""

BIAS_LIMIT = 2.0**30
"""An int32 bias may take half of the sum's range."""


@dataclass(frozen=True)
class Scale:
    """How the numbers of one tensor map to integers of `dtype`."""

    dtype: str
    scale: float
    zero: int

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        info = np.iinfo(self.dtype)
        return int(info.min), int(info.max)


def activation_scale(low: float, high: float, dtype: str, symmetric: bool = False) -> Scale | None:
    """A range -> how to quantize it; None for one too large to be worth 256 steps (a mask's -3e38).

    `symmetric` puts zero at 0 of a signed dtype, which leaves out -128 as weights do.
    """
    info = np.iinfo(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    if max(-low, high) > 255 * LARGEST:
        return None
    if symmetric:
        scale = max(-low, high) / info.max
        return Scale(dtype, _float32(scale), 0)
    scale = _float32((high - low) / (info.max - info.min))
    zero = int(np.clip(np.rint(info.min - low / scale), info.min, info.max))
    return Scale(dtype, scale, zero)


def _float32(scale: float) -> float:
    """A range of nothing (all zeros were seen) still has a scale: 1, as good as any."""
    return float(np.float32(max(scale, SMALLEST))) if scale else 1.0


def weight_scales(weights: Array, axis: int | None, bits: int = 8) -> NDArray[np.float32]:
    """Weights -> the scale of each slice along `axis` ([C]; one, [1], for None) that maps its
    largest to 2^(bits-1) - 1.

    Infinite and not-a-number weights are an Error.
    """
    if not np.isfinite(weights).all():
        raise Error("a weight is infinite or not a number")
    rows = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0)
    flat = np.abs(rows.reshape(rows.shape[0], -1).astype(np.float64))
    largest = flat.max(axis=1, initial=0)
    scales = np.where(largest == 0, 1.0, largest / (2 ** (bits - 1) - 1))
    return np.clip(scales, SMALLEST, LARGEST).astype(np.float32)


def room_for_bias(
    scales: NDArray[np.float32], bias: Array, input_scale: float
) -> NDArray[np.float32]:
    """Weight scales -> the same, raised where the bias in steps of (input scale x weight scale)
    would overflow its int32.

    That happens to channels whose weights have died and whose bias has not: their weights then
    round to less, or to zero.
    """
    least = np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT)
    return np.maximum(scales, least.astype(np.float32))


def along(values: Array, rank: int, axis: int | None) -> Array:
    """[C] -> the shape that broadcasts along `axis` of a tensor of `rank` dimensions: [C,1,1]; []
    for None.
    """
    if axis is None:
        return values.reshape(())
    return values.reshape(-1, *[1] * (rank - 1 - axis % rank))


def round_to(values: Array, scale: Array, dtype: str, bits: int = 8) -> Array:
    """Real numbers -> integers of `dtype` around zero 0, within +-(2^(bits-1) - 1); ties to even,
    as ONNX rounds.
    """
    limit = 2 ** (bits - 1) - 1
    steps = np.rint(values.astype(np.float64) / scale.astype(np.float64))
    return np.clip(steps, -limit, limit).astype(dtype)


def bias_steps(bias: Array, step: Array) -> NDArray[np.int32] | None:
    """A float bias in steps of (input scale x weight scale) -> int32; None where it overflows."""
    steps = np.rint(bias.astype(np.float64) / step.astype(np.float64))
    if not np.isfinite(steps).all() or np.abs(steps).max(initial=0) > BIAS_LIMIT + 1:
        return None
    return steps.astype(np.int32)
