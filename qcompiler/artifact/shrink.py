"""Blocks of weights -> the smallest form of each, without loss; pieces.py has the forms and the way
back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.encode import encode
from qcompiler.artifact.pieces import LEAST_BYTES, MOST_GROWTH, WORDS, Bytes, Piece

LEAST_GAIN = 0.9
"""A form is used if it takes at most this fraction of the bytes."""
_SAMPLE = 4096


def shrink(
    blocks: Sequence[Bytes], *, code: bool = False
) -> tuple[tuple[Piece, ...], Sequence[Bytes]]:
    """Blocks of bytes -> the form of each, and its stored bytes; all raw where shrinking gains too
    little. `code`: try entropy coding too, which takes longer to write and to open.
    """
    found = [_smallest(block, code) for block in blocks]
    if sum(p.stored for p, _ in found) > LEAST_GAIN * sum(b.size for b in blocks):
        found = [(_raw(block), block) for block in blocks]
    return tuple(piece for piece, _ in found), [kept for _, kept in found]


def _raw(block: Bytes) -> Piece:
    return Piece(block.size, block.size, "raw")


def _smallest(block: Bytes, code: bool) -> tuple[Piece, Bytes]:
    best = (_raw(block), block)
    if block.size < LEAST_BYTES:
        return best
    for found in _forms(block):
        if found[0].stored < min(best[0].stored, LEAST_GAIN * block.size):
            best = found
    if code:
        data = np.frombuffer(encode(block), np.uint8)
        if block.size <= MOST_GROWTH * data.size and data.size < best[0].stored:
            return Piece(block.size, data.size, "coded"), data
    return best


def _forms(block: Bytes) -> Iterator[tuple[Piece, Bytes]]:
    """The forms that a block can have besides raw and coded."""
    for word, dtype in WORDS.items():
        if block.size % word or block.ctypes.data % word:
            continue
        words = block.view(dtype)
        if found := _palette(words):
            yield found
    if block.size % 4 or block.ctypes.data % 4:
        return
    words = block.view(np.uint32)
    if not (words & 0xFFFF).any():
        halves = (words >> 16).astype(np.uint16).view(np.uint8)
        yield Piece(block.size, halves.size, "bfloat16"), halves
        return
    with np.errstate(over="ignore", invalid="ignore"):
        halves = block.view(np.float32).astype(np.float16)
    if np.array_equal(halves.astype(np.float32).view(np.uint32), words):
        yield Piece(block.size, halves.nbytes, "float16"), halves.view(np.uint8)


# Palettes.


def _palette(words: NDArray[np.unsignedinteger]) -> tuple[Piece, Bytes] | None:
    """Words -> their palette, if they have few distinct values; else None.

    Stored as: table, codes, positions of the odd words (uint32), the odd words.
    """
    word, few = words.itemsize, words[:: max(1, words.size // _SAMPLE)]
    if np.unique(few).size > 300 or words.size >= 1 << 32:
        return None
    values, counts = np.unique(words, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[order])
    best, best_size = 0, words.nbytes
    for bits in range(1, 9 if word > 1 else 8):
        odd = words.size - int(covered[min(1 << bits, len(values)) - 1])
        size = (word << bits) + -(-words.size * bits // 8) + odd * (4 + word)
        if size < best_size:
            best, best_size = bits, size
    if not best:
        return None
    table = np.sort(values[order[: 1 << best]])
    place = np.searchsorted(table, words)
    place[place == len(table)] = 0
    odd_at = np.flatnonzero(table[place] != words)
    place[odd_at] = 0
    full = np.zeros(1 << best, table.dtype)
    full[: len(table)] = table
    parts = (full, _packed(place.astype(np.uint8), best), odd_at.astype(np.uint32), words[odd_at])
    data = np.concatenate([np.ascontiguousarray(p).view(np.uint8) for p in parts])
    piece = Piece(words.nbytes, data.size, "palette", word, best, len(odd_at))
    return piece, data


def _packed(codes: Bytes, bits: int) -> Bytes:
    """Codes of `bits` bits -> bytes, the first code in the lowest bits."""
    rows = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(rows.reshape(-1), bitorder="little")
