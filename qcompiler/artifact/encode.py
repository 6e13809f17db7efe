"""Weights -> entropy-coded bytes, without loss; entropy.py has the forms and the way back."""

from __future__ import annotations

import lzma
from collections.abc import Callable

import numpy as np

from qcompiler.artifact.entropy import FILTERS, FORMS, HEAD, STORED, SYMBOLS, TEXT, Bytes

_WORTH = 7.9  # bits a byte; coding gains nothing above it
_TRIED_TWICE = 4 << 20  # smaller blocks are also coded plain, and the smaller result is kept


def encode(block: Bytes) -> bytes:
    """Bytes -> a form byte and its streams, each with its codec and length."""
    forms = {form: streams for form, split in _SPLIT.items() if (streams := split(block))}
    best = min(forms, key=lambda form: sum(map(_estimate, forms[form])))
    made = _written(best, forms[best])
    if best != "plain" and block.size <= _TRIED_TWICE:
        made = min(made, _written("plain", forms["plain"]), key=len)
    return made


def _written(form: str, streams: list[Bytes]) -> bytes:
    parts = [bytes([FORMS.index(form)])]
    for stream in streams:
        coded = {STORED: stream.tobytes()}
        if form == "plain":
            coded[TEXT] = _compressed(stream, TEXT)
        if form == "plain" or _estimate(stream) < _WORTH / 8 * stream.size:
            coded[SYMBOLS] = _compressed(stream, SYMBOLS)
        codec = min(coded, key=lambda c: len(coded[c]))
        parts += [HEAD.pack(codec, len(coded[codec])), coded[codec]]
    return b"".join(parts)


def _compressed(stream: Bytes, codec: int) -> bytes:
    return lzma.compress(stream.tobytes(), lzma.FORMAT_RAW, filters=FILTERS[codec])


def _estimate(stream: Bytes) -> float:
    """Bytes of a stream at its entropy."""
    if not stream.size:
        return 0.0
    share = np.bincount(stream, minlength=256) / stream.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * stream.size / 8)


# A split returns None where it does not apply.


def _plain(block: Bytes) -> list[Bytes] | None:
    return [block]


def _planes(block: Bytes) -> list[Bytes] | None:
    if block.size % 4 or not block.size:
        return None
    return list(np.ascontiguousarray(block.reshape(-1, 4).T))


def _sparse(block: Bytes) -> list[Bytes] | None:
    if block.size % 4 or not block.size:
        return None
    words = block.reshape(-1, 4)
    there = words.any(1)
    return [np.packbits(there), *np.ascontiguousarray(words[there].T)]


def _palette(block: Bytes) -> list[Bytes] | None:
    if block.size % 4 or block.size < 4096:
        return None
    words = np.ascontiguousarray(block).view(np.uint32)
    if np.unique(words[:: max(1, words.size // 4096)]).size > 256:
        return None
    table, codes = np.unique(words, return_inverse=True)
    if table.size > 256:
        return None
    count = np.array([table.size - 1], np.uint8)
    return [count, table.view(np.uint8), codes.astype(np.uint8).reshape(-1)]


_SPLIT: dict[str, Callable[[Bytes], list[Bytes] | None]] = {
    "plain": _plain,
    "planes": _planes,
    "sparse": _sparse,
    "palette": _palette,
}
