"""The histogram of a value's elements -> the range to quantize that minimizes a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import Array

Floats = NDArray[np.float64]
BINS = (
    2048  # as in onnxruntime's percentile calibrator; a power of two, so that bins merge in pairs
)
Loss = Callable[[Floats, Floats, float, float, int], float]
"""(counts, bin centers, low, high, levels) -> the loss of that range."""
_CHUNK = 1 << 15  # elements put into a histogram at once: bounds the scratch memory
CLIPPED = 3.0
"""Weight of squared clipping errors: they always have the same sign, so the sums of a product do
not average them out as they do rounding errors. The value is that of AIMET's "TF-enhanced" ranges
(Siddegowda et al., "Neural Network Quantization with AI Model Efficiency Toolkit", 2022).
"""


@dataclass
class Histogram:
    """The number of elements in each of BINS equal bins over [-edge, edge]."""

    edge: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: Array) -> None:
        """Count finite floats; the range doubles until they fit."""
        flat = values.reshape(-1)
        self.reach(float(np.abs(flat).max()))
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK].astype(np.float64)
            place = chunk * (BINS / 2 / self.edge) + BINS / 2 if self.edge else chunk + BINS / 2
            index = np.minimum(place.astype(np.int64), BINS - 1)
            self.counts += np.bincount(index, minlength=BINS)

    def reach(self, largest: float) -> None:
        """Double the range until this magnitude fits."""
        if not self.edge:
            self.edge = largest
        while largest > self.edge:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(merged, BINS // 4)
            self.edge *= 2

    @property
    def centers(self) -> Floats:
        """The center of each bin."""
        return np.linspace(-self.edge, self.edge, 2 * BINS + 1)[1::2]

    def quantiles(self, tail: float) -> tuple[float, float]:
        """(low, high) with a fraction `tail` of the elements below low, and as many above high."""
        share = np.cumsum(self.counts) / max(1, self.counts.sum())
        width = 2 * self.edge / BINS
        low = int(np.searchsorted(share, tail, side="right"))
        high = int(np.searchsorted(share, 1 - tail, side="left"))
        return low * width - self.edge, (min(high, BINS - 1) + 1) * width - self.edge


_FACTORS = tuple(float(f) for f in np.linspace(1.0, 0.1, 61))


def best_range(
    histogram: Histogram, extremes: tuple[float, float], loss: Loss, levels: int
) -> tuple[float, float]:
    """Shrink the extremes until the loss is smallest: one end, then the other, twice."""
    counts, centers = histogram.counts.astype(np.float64), histogram.centers
    ends = [min(extremes[0], 0.0), max(extremes[1], 0.0)]
    for end in (1, 0, 1, 0):
        tried = [[e * f if i == end else e for i, e in enumerate(ends)] for f in _FACTORS]
        if ends[end]:
            ends = min(tried, key=lambda r: loss(counts, centers, r[0], r[1], levels))
    return ends[0], ends[1]


def squared_error(counts: Floats, centers: Floats, low: float, high: float, levels: int) -> float:
    """The expected squared error of rounding to `levels` steps over [low, high]; clipping errors
    count `CLIPPED` times.
    """
    step = (high - low) / (levels - 1)
    outside = (centers - np.clip(centers, low, high)) ** 2
    # The bins are too coarse to be rounded individually: assume a uniform distribution within a
    # step; zero rounds to itself.
    rounding = np.minimum(step * step / 12, centers**2)
    return float(np.dot(counts, np.where(outside > 0, CLIPPED * outside, rounding)))


def divergence(counts: Floats, centers: Floats, low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence of a distribution from its quantized form (Migacz, GTC 2017).

    Zeros are left out: they are quantized exactly, and after Relu there are so many that they would
    dominate.
    """
    counts = np.where(np.abs(centers) < centers[1] - centers[0], 0, counts)
    kept = (centers >= low) & (centers <= high)
    if not kept.any() or counts[kept].sum() == 0:
        return np.inf
    p = counts[kept].copy()
    p[0] += counts[centers < low].sum()
    p[-1] += counts[centers > high].sum()
    group = ((centers[kept] - low) * (levels / max(high - low, 1e-300))).astype(np.int64)
    group = np.minimum(group, levels - 1)
    used = counts[kept] > 0
    total = np.bincount(group, counts[kept], levels)
    filled = np.bincount(group, used, levels)
    q = np.where(used, total[group] / np.maximum(filled[group], 1), 0)
    p, q = p / p.sum(), q / max(q.sum(), 1e-300)
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))
