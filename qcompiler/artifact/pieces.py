"""Stored bytes of weights -> the bytes (shrink.py has the way back).

Quantizers without a kernel of their own make constants of few distinct numbers: int4 in bytes,
codebooks, powers of two, three or two values, floats that fit into 16 bits. Each block of bytes is
stored separately in the smallest of these forms:

    raw       as it is
    palette   b bits a word, its index among 2^b words; others (sums, zero padding) follow, each
              with its position
    bfloat16  the upper halves of float32 words whose lower halves are 0
    float16   float32 words that float16 represents exactly
    coded     entropy-coded (entropy.py), if requested

Nothing is lost, whatever the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.entropy import decode

Bytes = NDArray[np.uint8]
Fill = Callable[[Bytes], None]
"""Fills an array with the next bytes of a source."""

KINDS = ("raw", "palette", "bfloat16", "float16", "coded")
WORDS = {1: np.uint8, 4: np.uint32}
LEAST_BYTES = 256
"""Smaller blocks stay as they are."""
MOST_GROWTH = 64
"""The most that a block may grow when a file is opened; a palette of 1 bit grows 32 times."""
_CHUNK = 1 << 18  # words expanded at a time, which bounds the scratch memory


@dataclass(frozen=True)
class Piece:
    """A block's size, its form, and the size of that.

    `word`, `bits` and `odd` (number of words outside the palette) are for palettes only.
    """

    bytes: int
    stored: int
    kind: str
    word: int = 0
    bits: int = 0
    odd: int = 0


def expand(piece: Piece, fill: Fill, into: Bytes) -> None:
    """Write a block, whose stored bytes `fill` gives, into zeros. Needs no more scratch memory than
    the stored bytes.

    Raises ValueError where the piece does not fit the bytes.
    """
    if piece.bytes != into.size:
        raise ValueError("a block of another size")
    if piece.kind == "raw":
        if piece.stored != piece.bytes:
            raise ValueError("a block of another size")
        fill(into)
        return
    data = np.empty(piece.stored, np.uint8)
    fill(data)
    if piece.kind == "palette":
        _from_palette(piece, data, into)
    elif piece.kind == "coded":
        into[:] = decode(data, into.size)
    elif piece.kind in KINDS:
        _from_halves(piece.kind, data, into)
    else:
        raise ValueError(f"weights kept as {piece.kind!r}")


def demand_apart(places: Iterable[tuple[int, int]], size: int) -> None:
    """(offset, bytes) of blocks among `size` bytes. Raises ValueError where they overlap or lie
    outside.
    """
    by_place = sorted((offset, offset + count) for offset, count in places)
    if any(end > begin for (_, end), (begin, _) in zip(by_place, by_place[1:])):
        raise ValueError("blocks of weights overlap")
    if any(begin < 0 or end > size for begin, end in by_place):
        raise ValueError("a block of weights lies outside")


def _unpacked(data: Bytes, bits: int, first: int, count: int) -> Bytes:
    """Bytes -> `count` codes of `bits` bits, from code `first` (a multiple of 8) on."""
    begin, end = first * bits // 8, -(-(first + count) * bits // 8)
    if bits == 8:
        return data[begin:end]
    flat = np.unpackbits(data[begin:end], count=count * bits, bitorder="little")
    return np.packbits(flat.reshape(count, bits), axis=1, bitorder="little")[:, 0]


def _from_palette(piece: Piece, data: Bytes, into: Bytes) -> None:
    if piece.word not in WORDS or not 1 <= piece.bits <= 8 or piece.bytes % piece.word:
        raise ValueError("a palette of no known form")
    count = piece.bytes // piece.word
    table_bytes = piece.word << piece.bits
    code_bytes = -(-count * piece.bits // 8)
    sizes = (table_bytes, code_bytes, 4 * piece.odd, piece.word * piece.odd)
    if sum(sizes) != piece.stored:
        raise ValueError("a palette of another size")
    cuts = np.cumsum(sizes)[:-1]
    table, codes, places, odd = (p.copy() for p in np.split(data, cuts))
    words, table = into.view(WORDS[piece.word]), table.view(WORDS[piece.word])
    for first in range(0, count, _CHUNK):
        here = min(_CHUNK, count - first)
        words[first : first + here] = table[_unpacked(codes, piece.bits, first, here)]
    at = places.view(np.uint32)
    if at.size and at.max() >= count:
        raise ValueError("a word lies outside its block")
    words[at] = odd.view(WORDS[piece.word])


def _from_halves(kind: str, data: Bytes, into: Bytes) -> None:
    if 2 * data.size != into.size or into.size % 4:
        raise ValueError("halves of another size")
    halves = data.copy().view(np.uint16)
    if kind == "bfloat16":
        into.view(np.uint32)[:] = halves.astype(np.uint32) << 16
    else:
        into.view(np.float32)[:] = halves.view(np.float16)
