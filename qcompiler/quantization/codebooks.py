"""Weights on non-uniform grids: powers of two, codebooks, two or three values.

Every row of weights is s times entries of one table; a Mul after the product applies s. None of
these has a kernel of its own: the products run in float32, but the artifact stores each weight as
an index of few bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from qcompiler.errors import Error
from qcompiler.quantization.reconstruct import Floats, Grid
from qcompiler.quantization.scales import LARGEST, SMALLEST

TABLES = ("log2", "codebook", "binary", "ternary")
FLOATS = {
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Schemes that store a smaller float."""

_SHRINK = np.linspace(1.0, 0.5, 11)
_ROUNDS = 40


@dataclass(frozen=True)
class Table(Grid):
    """A non-uniform grid: q indexes a sorted table, whose entry is multiplied by the scale."""

    table: Floats = None  # type: ignore[assignment]

    def nearest(self, w: Floats) -> Floats:
        """The index of the nearest entry."""
        middles = (self.table[1:] + self.table[:-1]) / 2
        return np.searchsorted(middles, w / self.scale).astype(np.float64)

    def values(self, q: Floats) -> Floats:
        """Indices -> the weights they represent."""
        made: Floats = self.table[q.astype(np.int64)] * self.scale
        return made

    def with_scales(self, scale: Floats, zero: Floats) -> Table:
        """The same table with other scales."""
        return Table(scale, zero, self.low, self.high, self.table)


def table_of(w: Floats, scheme: str, bits: int, importance: Floats) -> Table:
    """Weights [O,K], a scheme of TABLES -> its table and a scale per row.

    `importance`, [O,K]: the mean square of each weight's input.
    """
    make = _MAKERS.get(scheme)
    if make is None:
        raise Error(f"weights {scheme!r}", hint=f"one of {', '.join((*TABLES, *FLOATS))}")
    if scheme in ("log2", "codebook") and not 2 <= bits <= 8:
        raise Error(f"weights of {bits} bits", hint="2 to 8")
    return make(w, bits, importance)


def _table(table: Floats, scale: Floats) -> Table:
    kept = np.clip(scale, SMALLEST, LARGEST).astype(np.float32).astype(np.float64)
    table = np.asarray(table, np.float32).astype(np.float64)
    return Table(kept.reshape(-1, 1), np.zeros((len(kept), 1)), 0, len(table) - 1, table)


def _largest(w: Floats) -> Floats:
    """Largest magnitude of each row; 1 for rows of zeros."""
    most: Floats = np.abs(w).max(1)
    return np.where(most > 0, most, 1.0)


def _log2(w: Floats, bits: int, importance: Floats) -> Table:
    """0 and +-2^-e, e below 2^(bits-1) - 1 (Miyashita et al., "Convolutional Neural Networks using
    Logarithmic Data Representation", 2016), with the scale of least squared error for each row.
    """
    powers = 2.0 ** -np.arange(2 ** (bits - 1) - 1)
    table = np.sort(np.concatenate([-powers, [0], powers]))
    most = _largest(w)
    best, scale = np.full(len(w), np.inf), most.copy()
    for factor in 2 * _SHRINK:
        made = _table(table, most * factor)
        error = (importance * np.square(made.values(made.nearest(w)) - w)).sum(1)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, most * factor, scale)
    return _table(table, scale)


def _codebook(w: Floats, bits: int, importance: Floats) -> Table:
    """2^bits numbers by k-means over all rows, each divided by its root mean square (Han et al.,
    "Deep Compression", 2016: linear initialization, then Lloyd's algorithm).
    """
    size = np.sqrt(np.square(w).mean(1))
    size = np.where(size > 0, size, 1.0)
    flat, weight = (w / size[:, None]).ravel(), (importance * size[:, None] ** 2).ravel()
    order = np.argsort(flat)
    flat, weight = flat[order], weight[order]
    sums = np.concatenate([[0], np.cumsum(weight)])
    moments = np.concatenate([[0], np.cumsum(weight * flat)])
    centers = np.linspace(flat[0], flat[-1], 1 << bits)
    for _ in range(_ROUNDS):
        cuts = np.searchsorted(flat, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate([[0], cuts, [len(flat)]])
        inside = sums[edges[1:]] - sums[edges[:-1]]
        total = moments[edges[1:]] - moments[edges[:-1]]
        moved = np.sort(np.where(inside > 0, total / np.where(inside > 0, inside, 1), centers))
        if np.allclose(moved, centers, atol=1e-6):
            break
        centers = moved
    return _table(centers, size)


def _binary(w: Floats, bits: int, importance: Floats) -> Table:
    """+-1 times the mean magnitude of each row (Rastegari et al., "XNOR-Net", 2016, equation 6)."""
    mean = (importance * np.abs(w)).sum(1) / importance.sum(1)
    return _table(np.array([-1.0, 1.0]), np.where(mean > 0, mean, SMALLEST))


def _ternary(w: Floats, bits: int, importance: Floats) -> Table:
    """-1, 0, 1 times the mean of the magnitudes above 0.7 of the row's mean magnitude (Li et al.,
    "Ternary Weight Networks", 2016, section 2.2).
    """
    size = np.abs(w)
    large = size > 0.7 * size.mean(1, keepdims=True)
    counted = importance * large
    mean = (counted * size).sum(1) / np.maximum(counted.sum(1), 1e-30)
    return _table(np.array([-1.0, 0.0, 1.0]), np.where(mean > 0, mean, SMALLEST))


_MAKERS: dict[str, Callable[[Floats, int, Floats], Table]] = {
    "log2": _log2,
    "codebook": _codebook,
    "binary": _binary,
    "ternary": _ternary,
}


def as_float(w: Floats, scheme: str) -> tuple[Floats, Floats]:
    """Weights [O,K] -> (the weights in a smaller float, a scale per row). float8 is scaled to use
    its full range; the scale of 16-bit floats is 1.
    """
    dtype = FLOATS[scheme]
    scale = np.ones(len(w))
    if dtype.itemsize == 1:
        scale = _largest(w) / float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        scale = np.clip(scale, SMALLEST, LARGEST).astype(np.float32).astype(np.float64)
    made = (w / scale[:, None]).astype(np.float32).astype(dtype)
    return made.astype(np.float64), scale
