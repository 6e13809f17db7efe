"""Bytes of weights <-> entropy-coded bytes, without loss.

Pruned and shared weights are redundant, but not byte by byte. So a block is first split into
streams that are, then each stream is coded where that makes it smaller:

    plain     all bytes
    planes    the first bytes of all 4-byte words, the second ones, ... (exponents are similar)
    sparse    a bit a word, whether it is not zero, then the planes of the words that are not
    palette   the distinct words (256 at most), then a byte a word that says which

After Han et al., "Deep Compression" (ICLR 2016): pruning, shared weights, entropy coding. The coder
is LZMA's of the standard library: an adaptive binary range coder, which comes within a few per cent
of the entropy of each stream, where Huffman codes (zlib) lose up to half a bit a symbol.

Decoding takes no more memory than the given size allows, whatever the bytes say.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_STORED, _SYMBOLS, _TEXT = 0, 1, 2
_HEAD = struct.Struct("<BQ")  # codec, coded bytes
_DICTIONARY = 1 << 20
_FILTERS = {
    codec: [
        {"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": _DICTIONARY, "lc": lc, "lp": 0, "pb": 0}
    ]
    for codec, lc in ((_SYMBOLS, 0), (_TEXT, 3))
}
"""For independent symbols, and for bytes that depend on the one before: machine code."""
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


def decode(data: Bytes, size: int) -> Bytes:
    """What `encode` made of `size` bytes -> those bytes. Raises ValueError for anything else."""
    if not data.size or data[0] >= len(_FORMS):
        raise ValueError("weights coded in no known form")
    reader = _Reader(memoryview(data.tobytes())[1:])
    made = _JOIN[_FORMS[data[0]]](reader, size)
    if made.size != size or reader.rest:
        raise ValueError("coded weights of another size")
    return made


def _written(form: str, streams: list[Bytes]) -> bytes:
    parts = [bytes([_FORMS.index(form)])]
    for stream in streams:
        coded = {_STORED: stream.tobytes()}
        if form == "plain":
            coded[_TEXT] = _compressed(stream, _TEXT)
        if form == "plain" or _estimate(stream) < _WORTH / 8 * stream.size:
            coded[_SYMBOLS] = _compressed(stream, _SYMBOLS)
        codec = min(coded, key=lambda c: len(coded[c]))
        parts += [_HEAD.pack(codec, len(coded[codec])), coded[codec]]
    return b"".join(parts)


def _compressed(stream: Bytes, codec: int) -> bytes:
    return lzma.compress(stream.tobytes(), lzma.FORMAT_RAW, filters=_FILTERS[codec])


def _estimate(stream: Bytes) -> float:
    """Bytes of a stream at its entropy."""
    if not stream.size:
        return 0.0
    share = np.bincount(stream, minlength=256) / stream.size
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum() * stream.size / 8)


class _Reader:
    """Reads streams one after the other, each of a given length."""

    def __init__(self, data: memoryview) -> None:
        self.rest = data

    def stream(self, size: int) -> Bytes:
        """The next stream, which must have `size` bytes."""
        if len(self.rest) < _HEAD.size:
            raise ValueError("coded weights end early")
        codec, length = _HEAD.unpack(self.rest[: _HEAD.size])
        coded = self.rest[_HEAD.size : _HEAD.size + length]
        self.rest = self.rest[_HEAD.size + length :]
        if len(coded) != length or codec not in (_STORED, _SYMBOLS, _TEXT):
            raise ValueError("coded weights end early")
        raw = bytes(coded) if codec == _STORED else _decompressed(coded, size, codec)
        if len(raw) != size:
            raise ValueError("coded weights of another size")
        return np.frombuffer(raw, np.uint8)


def _decompressed(coded: memoryview, size: int, codec: int) -> bytes:
    """At most `size` + 1 bytes, however many are coded."""
    coder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS[codec])
    try:
        return coder.decompress(bytes(coded), max_length=size + 1)
    except lzma.LZMAError as e:
        raise ValueError(f"coded weights are damaged ({e})") from e


# Forms. A split returns None where it does not apply.


def _plain(block: Bytes) -> list[Bytes] | None:
    return [block]


def _plain_back(reader: _Reader, size: int) -> Bytes:
    return reader.stream(size)


def _planes(block: Bytes) -> list[Bytes] | None:
    if block.size % 4 or not block.size:
        return None
    return list(np.ascontiguousarray(block.reshape(-1, 4).T))


def _planes_back(reader: _Reader, size: int) -> Bytes:
    planes = [reader.stream(size // 4) for _ in range(4)]
    return np.ascontiguousarray(np.stack(planes, 1)).reshape(-1)


def _sparse(block: Bytes) -> list[Bytes] | None:
    if block.size % 4 or not block.size:
        return None
    words = block.reshape(-1, 4)
    there = words.any(1)
    return [np.packbits(there), *np.ascontiguousarray(words[there].T)]


def _sparse_back(reader: _Reader, size: int) -> Bytes:
    bits = reader.stream(-(-(size // 4) // 8))
    there = np.unpackbits(bits, count=size // 4).astype(bool)
    made = np.zeros((size // 4, 4), np.uint8)
    count = int(there.sum())
    made[there] = np.stack([reader.stream(count) for _ in range(4)], 1)
    return made.reshape(-1)


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


def _palette_back(reader: _Reader, size: int) -> Bytes:
    count = int(reader.stream(1)[0]) + 1
    table = reader.stream(4 * count).view(np.uint32)
    codes = reader.stream(size // 4)
    if codes.size and codes.max() >= count:
        raise ValueError("a code of no word")
    return np.ascontiguousarray(table[codes]).view(np.uint8)


_SPLIT: dict[str, Callable[[Bytes], list[Bytes] | None]] = {
    "plain": _plain,
    "planes": _planes,
    "sparse": _sparse,
    "palette": _palette,
}
_FORMS = tuple(_SPLIT)
_JOIN: dict[str, Callable[[_Reader, int], Bytes]] = {
    "plain": _plain_back,
    "planes": _planes_back,
    "sparse": _sparse_back,
    "palette": _palette_back,
}
