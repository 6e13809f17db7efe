"""Entropy-coded bytes of weights -> the bytes (encode.py has the way back).

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

STORED, SYMBOLS, TEXT = 0, 1, 2
HEAD = struct.Struct("<BQ")  # codec, coded bytes
_DICTIONARY = 1 << 20
FILTERS = {
    codec: [
        {"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": _DICTIONARY, "lc": lc, "lp": 0, "pb": 0}
    ]
    for codec, lc in ((SYMBOLS, 0), (TEXT, 3))
}
"""For independent symbols, and for bytes that depend on the one before: machine code."""


def decode(data: Bytes, size: int) -> Bytes:
    """What `encode` made of `size` bytes -> those bytes. Raises ValueError for anything else."""
    if not data.size or data[0] >= len(FORMS):
        raise ValueError("weights coded in no known form")
    reader = _Reader(memoryview(data.tobytes())[1:])
    made = _JOIN[FORMS[data[0]]](reader, size)
    if made.size != size or reader.rest:
        raise ValueError("coded weights of another size")
    return made


class _Reader:
    """Reads streams one after the other, each of a given length."""

    def __init__(self, data: memoryview) -> None:
        self.rest = data

    def stream(self, size: int) -> Bytes:
        """The next stream, which must have `size` bytes."""
        if len(self.rest) < HEAD.size:
            raise ValueError("coded weights end early")
        codec, length = HEAD.unpack(self.rest[: HEAD.size])
        coded = self.rest[HEAD.size : HEAD.size + length]
        self.rest = self.rest[HEAD.size + length :]
        if len(coded) != length or codec not in (STORED, SYMBOLS, TEXT):
            raise ValueError("coded weights end early")
        raw = bytes(coded) if codec == STORED else _decompressed(coded, size, codec)
        if len(raw) != size:
            raise ValueError("coded weights of another size")
        return np.frombuffer(raw, np.uint8)


def _decompressed(coded: memoryview, size: int, codec: int) -> bytes:
    """At most `size` + 1 bytes, however many are coded."""
    coder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS[codec])
    try:
        return coder.decompress(bytes(coded), max_length=size + 1)
    except lzma.LZMAError as e:
        raise ValueError(f"coded weights are damaged ({e})") from e


def _plain(reader: _Reader, size: int) -> Bytes:
    return reader.stream(size)


def _planes(reader: _Reader, size: int) -> Bytes:
    planes = [reader.stream(size // 4) for _ in range(4)]
    return np.ascontiguousarray(np.stack(planes, 1)).reshape(-1)


def _sparse(reader: _Reader, size: int) -> Bytes:
    bits = reader.stream(-(-(size // 4) // 8))
    there = np.unpackbits(bits, count=size // 4).astype(bool)
    made = np.zeros((size // 4, 4), np.uint8)
    count = int(there.sum())
    made[there] = np.stack([reader.stream(count) for _ in range(4)], 1)
    return made.reshape(-1)


def _palette(reader: _Reader, size: int) -> Bytes:
    count = int(reader.stream(1)[0]) + 1
    table = reader.stream(4 * count).view(np.uint32)
    codes = reader.stream(size // 4)
    if codes.size and codes.max() >= count:
        raise ValueError("a code of no word")
    return np.ascontiguousarray(table[codes]).view(np.uint8)


_JOIN: dict[str, Callable[[_Reader, int], Bytes]] = {
    "plain": _plain,
    "planes": _planes,
    "sparse": _sparse,
    "palette": _palette,
}
FORMS = tuple(_JOIN)
"""Their order is part of the format: coded bytes begin with the index of theirs."""
