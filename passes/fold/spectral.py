"""Lower Fourier transforms of known lengths to products with constant matrices.

DFT(x, n, axis)        ->  MatMul(x', cosines and sines)
STFT(x, step, window)  ->  Conv(x', window * cosines and sines) {strides=[step]}

where the real and imaginary parts are adjacent columns. A product costs more operations than a fast
transform (n against log n) but runs at many times its rate: it is faster below a few hundred
values, and audio frames are hardly longer.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import known_value, make
from qcompiler.ops.registry import Numbers
from qcompiler.ops.spectral import dft_length, frame_length
from qcompiler.rewrite import Skip, op, rule
from qcompiler.rewrite.matching import const, input_at, inverse, reshape, transpose

MOST = 1 << 25
"""Most elements of a matrix: that of 4,096 real values."""


def unit_roots(size: int, count: int, bins: int, *, back: bool = False) -> Numbers:
    """e^(-2 pi i n k / count) for n < size, k < bins; conjugate and divided by count for `back`."""
    powers = np.outer(np.arange(size), np.arange(bins)) % count
    waves = np.exp((2j if back else -2j) * np.pi * powers / count)
    return np.asarray(waves / count if back else waves)


def real(waves: Numbers, parts: int) -> Numbers:
    """A complex matrix [n,k] -> [n,parts,k,2], which maps (real, imaginary) pairs to pairs."""
    rows = [np.stack([waves.real, waves.imag], -1), np.stack([-waves.imag, waves.real], -1)]
    return np.stack(rows[:parts], 1)


@rule(op("DFT"))
def fold_dft(node: Node) -> Node | Skip:
    """DFT(x, n, axis) -> MatMul(x', cosines and sines)."""
    x, given, axis = node.operands[0], input_at(node, 1), known_value(input_at(node, 2))
    length = known_value(given)
    if input_at(node, 2) is not None and axis is None:
        return Skip("the axis is unknown")
    along = -2 % x.type.rank if axis is None else int(axis.reshape(())) % x.type.rank
    if not x.type.static or (given is not None and length is None):
        return Skip("the length is unknown")
    size, parts = x.type.dims[along], x.type.dims[-1]
    one, back = bool(node.int("onesided")), bool(node.int("inverse"))
    count = dft_length(size, one and back) if length is None else int(length.reshape(()))
    if size * parts * count * 2 > MOST:
        return Skip(f"it needs a matrix of {size * parts} by {2 * count}")
    matrix = _halved_back(size, count) if one and back else None
    if matrix is None:
        waves = unit_roots(min(size, count), count, count // 2 + 1 if one else count, back=back)
        matrix = real(np.pad(waves, ((0, size - len(waves)), (0, 0))), 2)
    matrix = matrix[:, :parts]
    order = [a for a in range(x.type.rank - 1) if a != along]
    perm = (*order, along, x.type.rank - 1)
    rows = [x.type.dims[a] for a in order]
    flat = reshape(transpose(x, perm), (*rows, size * parts))
    weights = const(matrix.reshape(size * parts, -1), like=x)
    made = make("MatMul", flat, weights, name=node.name)
    return transpose(reshape(made, (*rows, *matrix.shape[2:])), inverse(perm))


def _halved_back(size: int, count: int) -> Numbers:
    """Half of the frequencies -> the real signal: [size,2,count,1]; frequencies with a mirror image
    count twice."""
    used = min(size, count // 2 + 1)
    matrix = real(unit_roots(used, count, count, back=True), 2)[..., :1]
    once = np.isin(np.arange(used), [0, count / 2])
    matrix = matrix * np.where(once, 1, 2).reshape(-1, 1, 1, 1)
    return np.pad(matrix, ((0, size - used), (0, 0), (0, 0), (0, 0)))


@rule(op("STFT"))
def fold_stft(node: Node) -> Node | Skip:
    """STFT(x, step, window) -> Conv(x', window * cosines and sines) {strides=[step]}."""
    x, step = node.operands[0], known_value(node.operands[1])
    window, length = (known_value(input_at(node, i)) for i in (2, 3))
    absent = [g is None for g in (input_at(node, 2), input_at(node, 3))]
    if not x.type.static or step is None or [window is None, length is None] != absent:
        return Skip("the step, window or length is unknown")
    batch, samples, *rest = x.type.dims
    size = frame_length(samples, window, length)
    bins = size // 2 + 1 if node.int("onesided") else size
    parts = rest[0] if rest else 1
    if size * parts * bins * 2 > MOST:
        return Skip(f"it needs a matrix of {size * parts} by {2 * bins}")
    shape = np.ones(size) if window is None else window.astype(np.float64)
    matrix = real(unit_roots(size, size, bins) * shape[:, None], parts)
    weights = const(matrix.reshape(size, parts, -1).transpose(2, 1, 0), like=x)
    signal = transpose(x, (0, 2, 1)) if rest else reshape(x, (batch, 1, samples))
    made = make("Conv", signal, weights, strides=(int(step.reshape(())),), name=node.name)
    frames = node.type.dims[1]
    return transpose(reshape(made, (batch, bins, 2, frames)), (0, 3, 1, 2))
