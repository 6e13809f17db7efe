"""Rounding of weights to integers, by one of several methods.

    nearest    each weight on its own
    gptq       column by column, compensated in the later ones (Frantar et al., "GPTQ", 2022)
    adaround   up or down, to the least output error (Nagel et al., "Up or Down?", 2020), found by
               coordinate descent instead of gradients

The last two need the second moments of the weights' inputs; see reconstruct.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.data.calibrate import Calibration
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node
from qcompiler.quantization.reconstruct import Floats, Grid, Moments, damped, descend, gptq, moments
from qcompiler.quantization.scales import LARGEST, SMALLEST
from qcompiler.rewrite.mentions import named

ROUNDINGS = ("nearest", "gptq", "adaround")
_SHRINK = np.linspace(1.0, 0.4, 31)
"""Candidate factors for clipping the range of low-precision weights."""


@dataclass(frozen=True)
class Scheme:
    """How weights are quantized.

    bits: 2 to 8. group: number of columns that share a scale (0: a whole row, -1: the whole
    tensor). symmetric: the zero point is 0, and the lowest integer is not used; otherwise each
    group has a zero point of its own. rounding: one of ROUNDINGS.
    """

    bits: int = 8
    group: int = 0
    symmetric: bool = True
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise Error(f"weights of {self.bits} bits", hint="2 to 8")
        if self.group < -1:
            raise Error(f"groups of {self.group}", hint="0: a row, -1: a tensor, or 32, 64, 128")
        if self.rounding not in ROUNDINGS:
            raise Error(f"rounding {self.rounding!r}", hint=f"one of {', '.join(ROUNDINGS)}")

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and highest integer."""
        most = 2 ** (self.bits - 1) - 1
        return (-most, most) if self.symmetric else (0, 2**self.bits - 1)


def seen(
    graph: Graph, products: Sequence[Node], data: Calibration | None, rounding: str
) -> Iterator[tuple[Node, Moments]]:
    """The moments a rounding method needs, if any. Raises Error without data."""
    if rounding == "nearest":
        return iter(())
    if data is None:
        hint = "give --calibration, or use rounding 'nearest'"
        raise Error(f"rounding {rounding!r} needs calibration data", hint=hint)
    return moments(graph, products, data)


def bits_of(node: Node, layers: Sequence[str]) -> int:
    """The bits of the last "PATTERN=BITS" that names a node; 0 if none does."""
    bits = 0
    for spec in layers:
        pattern, equals, text = spec.rpartition("=")
        if not equals or not text.isdecimal():
            raise Error(f"layers: {spec!r} is not PATTERN=BITS", hint='layers=["conv1=8"]')
        if named(node, (pattern,)):
            bits = int(text)
    return bits


def grid_of(w: Floats, scheme: Scheme, importance: Floats | None = None) -> Grid:
    """Weights [O,K] -> the grid to round them to, with a scale per row or per group of columns.

    Below 7 bits, the range is clipped to the least squared error, weighted by `importance` [O,K]
    (the mean square of each weight's input); otherwise nothing is clipped.
    """
    if not np.isfinite(w).all():
        raise Error("a weight is infinite or not a number")
    low, high = scheme.limits
    parts = _grouped(w, scheme.group)
    weight = _grouped(np.ones_like(w) if importance is None else importance, scheme.group)
    least, most = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
    if scheme.symmetric:
        most = np.maximum(-least, most)
        least = -most
    best = np.full(least.shape, np.inf)
    scale, zero = np.ones(least.shape), np.zeros(least.shape)
    for factor in _SHRINK if scheme.bits < 7 else _SHRINK[:1]:
        step = np.clip((most - least) * factor / (high - low), SMALLEST, LARGEST)
        step = step.astype(np.float32).astype(np.float64)
        shift = np.zeros_like(step) if scheme.symmetric else np.rint(low - least * factor / step)
        shift = np.clip(shift, low, high)
        q = np.clip(np.rint(parts / step[..., None] + shift[..., None]), low, high)
        error = np.square((q - shift[..., None]) * step[..., None] - parts)
        total = (error * weight).sum(-1)
        better = total < best
        best = np.where(better, total, best)
        scale, zero = np.where(better, step, scale), np.where(better, shift, zero)
    scale, zero = (_spread(a, w.shape, scheme.group) for a in (scale, zero))
    return Grid(scale, zero, low, high)


def _grouped(w: Floats, group: int) -> Floats:
    """[O,K] -> [O,groups,columns], padded with zeros."""
    if group < 0:
        return w.reshape(1, 1, -1)
    size = group or w.shape[1]
    return np.pad(w, ((0, 0), (0, -w.shape[1] % size))).reshape(len(w), -1, size)


def _spread(values: Floats, shape: tuple[int, ...], group: int) -> Floats:
    """A number per group -> an array that broadcasts to the weights."""
    if group <= 0:
        return np.broadcast_to(values.reshape(-1, 1), (shape[0], 1))
    return np.repeat(values, group, axis=1)[:, : shape[1]]


def importance(found: Moments, each: int) -> Floats:
    """Moments of a product whose groups have `each` outputs -> the mean square of every weight's
    input, [O,K].
    """
    squares = np.einsum("gkk->gk", found.products) / max(found.count, 1)
    return np.repeat(squares.astype(np.float64), each, axis=0) + 1e-12


def round_rows(w: Floats, grid: Grid, rounding: str, h: Floats | None) -> Floats:
    """Weights [O,K], their grid and the second moments [G,K,K] of G groups of rows -> integers."""
    start = grid.nearest(w)
    if rounding == "nearest" or h is None:
        return start
    if rounding == "adaround":
        whole = grid.split(len(h), w.shape)
        split = w.reshape(len(h), -1, w.shape[1])
        return descend(split, damped(h), whole, start.reshape(split.shape)).reshape(w.shape)
    each = len(w) // len(h)
    for group, curvature in enumerate(h):
        here = slice(group * each, (group + 1) * each)
        start[here] = gptq(w[here], curvature, grid.part(here, w.shape))
    return start
