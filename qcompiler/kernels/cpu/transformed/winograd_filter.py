"""F(m, r): m neighbouring outputs of a filter with r taps, from m + r - 1 products, not m * r.

    outputs = gather(weights(taps) * spread(inputs))        (products element by element)

Inputs and taps are polynomials, multiplied through their values at points (Toom, Cook): weights and
spread evaluate, gather interpolates, all three transposed; see Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", 2015. Points come as 0, pairs p and -p, and infinity; a pair shares
all its work but one addition. Rounding errors grow with the points' powers: these pairs keep them
within twice those of plain float32 sums, where 1 and 2 make five times as much of them (compare
Barabasz, Anderson, Soodhalter and Gregg, "Error Analysis and Improving the Accuracy of Winograd
Convolution for Deep Neural Networks", 2018). All their powers are exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Value

PAIRS: dict[int, tuple[float, ...]] = {1: (), 4: (1.0,), 5: (0.5, 1.25), 6: (0.625, 1.5)}
"""Products of a filter -> the points that come in pairs; 0 is one more where their number is even.
"""


@dataclass(frozen=True)
class Filter:
    """m outputs of r taps along one axis; F(1, 1) is a plain product."""

    outputs: int
    taps: int

    @property
    def products(self) -> int:
        """Products, which is also how many inputs the outputs see."""
        return self.outputs + self.taps - 1

    @property
    def _pairs(self) -> tuple[float, ...]:
        return PAIRS[self.products]

    @property
    def _zeros(self) -> int:
        """How often 0 is a point: once or not at all."""
        return int(self.products > 1 and self.products % 2 == 0)

    def weights(self, taps: Array) -> Array:
        """[..., r] -> [..., m + r - 1], float64: what inputs are multiplied by."""
        points = [0.0] * self._zeros + [s * p for p in self._pairs for s in (1, -1)]
        rows = [
            np.array([p**k for k in range(self.taps)]) / prod(p - q for q in points if q != p)
            for p in points
        ]
        rows.append(np.eye(self.taps)[-1])  # infinity sees the highest power only
        return taps.astype(np.float64) @ np.array(rows).T

    def spread(self, b: Builder, inputs: Sequence[Value]) -> list[Value]:
        """m + r - 1 inputs -> what the weights are multiplied by."""
        if not self._pairs:
            return list(inputs)
        shift = self._zeros
        roots = _with_roots(self._pairs)
        made = [_dot(b, roots, inputs)] * shift
        for p in self._pairs:
            others = _with_roots([q for q in self._pairs if q != p])
            even = _dot(b, others, inputs[shift + 1 :])
            odd = _dot(b, others, inputs[shift:])
            made += [_scaled(b, odd, p, even), _scaled(b, odd, -p, even)]
        return [*made, _dot(b, roots, inputs[shift:])]

    def gather(self, b: Builder, products: Sequence[Value]) -> list[Value]:
        """m + r - 1 sums of products -> m outputs."""
        if not self._pairs:
            return list(products)
        rest = products[self._zeros : -1]
        ends = list(zip(rest[::2], rest[1::2], strict=True))
        parts = (
            [b.let(plus + minus, "even") for plus, minus in ends],
            [b.let(plus - minus, "odd") for plus, minus in ends],
        )
        return [self._output(b, i, products, parts[i % 2]) for i in range(self.outputs)]

    def _output(
        self, b: Builder, i: int, products: Sequence[Value], parts: Sequence[Value]
    ) -> Value:
        plain = [products[0]] * (self._zeros and i == 0) + [products[-1]] * (i == self.outputs - 1)
        for p, part in zip(self._pairs, parts, strict=True):
            plain = [_scaled(b, part, p**i, plain[0] if plain else None), *plain[1:]]
        return b.let(sum(plain[1:], start=plain[0]), "output")


def _with_roots(roots: Sequence[float]) -> list[float]:
    """The polynomial with roots p and -p for every p: its coefficients, the lowest power first."""
    found = np.ones(1)
    for p in roots:
        found = np.convolve(found, [-p * p, 0.0, 1.0])
    return [float(c) for c in found]


def _dot(b: Builder, coefficients: Sequence[float], values: Sequence[Value]) -> Value:
    """Coefficients, of which the last is 1, times as many values."""
    total = values[len(coefficients) - 1]
    for c, value in zip(coefficients[:-1], values, strict=False):
        if c:
            total = _scaled(b, value, c, total)
    return total


def _scaled(b: Builder, value: Value, factor: float, plus: Value | None) -> Value:
    """value * factor + plus, rounded once."""
    constant = tir.const(factor, tir.dtype_of(value), tir.lanes_of(value))
    if plus is None:
        return value if factor == 1.0 else b.let(value * constant, "scaled")
    return b.let(tir.fma(value, constant, plus), "sum")
