"""Fourier transforms: DFT, STFT.

Complex numbers are pairs in a last dimension of 2; real ones have a last dimension of 1.
"""

from __future__ import annotations

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.equal import note_broadcast
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.registry import Numbers, fresh, operator, optional, typed


def _complex(x: Numbers) -> Numbers:
    """Pairs (or single numbers) in the last dimension -> complex numbers."""
    wide = x.astype(sums_of(x.dtype.name))
    return wide[..., 0] if x.shape[-1] == 1 else wide[..., 0] + 1j * wide[..., 1]


def _pairs(x: Numbers, dtype: np.dtype[np.generic]) -> Numbers:
    """Complex numbers -> pairs in a new last dimension."""
    return np.stack([x.real, x.imag], -1).astype(dtype)


@operator("DFT", inverse=0, onesided=0)
def dft(
    node: Node, x: Numbers, length: Numbers | None = None, axis: Numbers | None = None
) -> Numbers:
    """onesided: only the frequencies up to half, since a real signal's others mirror them."""
    along = (-2 if axis is None else _whole(axis)) % x.ndim
    one, back = bool(node.int("onesided")), bool(node.int("inverse"))
    count = dft_length(x.shape[along], one and back)
    if length is not None:
        count = _whole(length)
    signal = _complex(x)
    if one and back:
        return np.fft.irfft(signal, count, along)[..., None].astype(x.dtype)
    made = (np.fft.ifft if back else np.fft.fft)(signal, count, along)
    if one:
        made = np.take(made, np.arange(count // 2 + 1), along)
    return _pairs(made, x.dtype)


def _whole(value: Numbers) -> int:
    if value.size != 1:
        raise Error(f"{value.size} numbers where a scalar is needed")
    return int(value.reshape(()))


def dft_length(size: int, halved: bool) -> int:
    """The default length of a transform; `halved`: the inverse of a onesided one."""
    return 2 * (size - 1) if halved else size


@typed(dft)
def _(node: Node) -> Type:
    x = node.operands[0].type
    if x.rank and isinstance(x.shape[-1], str):
        note_broadcast(x.shape[-1], 2)
    if "float" not in x.dtype or x.rank < 2 or x.shape[-1] not in (1, 2):
        raise Error(f"{x} has no last dimension of real and imaginary parts")
    given = optional(node, 2)
    axis = np.array(-2) if given is None else known_value(given)
    if axis is None:  # any dimension may change
        return Type(x.dtype, (*[fresh() for _ in x.shape[:-1]], fresh()))
    along = _whole(axis)
    if not -x.rank <= along <= x.rank - 2 or along == -1:
        raise Error(f"axis {along} of {x}")
    one, back = bool(node.int("onesided")), bool(node.int("inverse"))
    size, length = x.shape[along], optional(node, 1)
    known = None if length is None else known_value(length)
    count: Dim = dft_length(size, one and back) if isinstance(size, int) else fresh()
    if length is not None:
        count = fresh() if known is None else _whole(known)
    if isinstance(count, int) and count < 1:
        raise Error(f"a transform of {count} values")
    dims = list(x.shape)
    dims[along] = count if back or not one else _half(count)
    dims[-1] = 1 if one and back else 2
    return Type(x.dtype, tuple(dims))


def _half(count: Dim) -> Dim:
    return count // 2 + 1 if isinstance(count, int) else fresh()


@operator("STFT", onesided=1)
def stft(
    node: Node,
    x: Numbers,
    step: Numbers,
    window: Numbers | None = None,
    length: Numbers | None = None,
) -> Numbers:
    """x[batch,T,1 or 2] -> [batch,frames,frequencies,2]."""
    size = frame_length(x.shape[1], window, length)
    hop, dtype = _whole(step), sums_of(x.dtype.name)
    shape: Numbers = np.ones(size, dtype) if window is None else window.astype(dtype)
    count = (x.shape[1] - size) // hop + 1
    signal = _complex(x if x.ndim == 3 else x[..., None])
    frames = np.stack([signal[:, i * hop : i * hop + size] * shape for i in range(count)], 1)
    made = np.fft.fft(frames, size, 2)
    return _pairs(made[:, :, : size // 2 + 1] if node.int("onesided") else made, x.dtype)


def frame_length(size: int, window: Numbers | None, length: Numbers | None) -> int:
    """Number of values per frame."""
    if length is not None:
        return _whole(length)
    return size if window is None else window.size


@typed(stft)
def _(node: Node) -> Type:
    x = node.operands[0].type
    if "float" not in x.dtype or x.rank not in (2, 3) or (x.rank == 3 and x.shape[2] not in (1, 2)):
        raise Error(f"{x} is not a batch of signals")
    step, window = known_value(node.operands[1]), optional(node, 2)
    length = optional(node, 3)
    if window is not None and window.type.rank != 1:
        raise Error(f"{window.type} is not a window")
    size: Dim = x.shape[1] if window is None else window.shape[0]
    if length is not None:
        known = known_value(length)
        size = fresh() if known is None else _whole(known)
    frames: Dim = fresh()
    if step is not None and isinstance(size, int):
        hop, signal = _whole(step), x.shape[1]
        if hop < 1 or size < 1 or (isinstance(signal, int) and size > signal):
            raise Error(f"frames of {size}, {hop} apart, of {x}")
        frames = settled((Size.of(signal) - size) // hop + 1)
    bins = _half(size) if node.int("onesided") else size
    return Type(x.dtype, (x.shape[0], frames, bins, 2))
