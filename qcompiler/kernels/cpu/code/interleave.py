"""Rows of bytes -> vectors that hold one byte of each row in every 32-bit lane.

A four-way byte product needs this when its operands are not neighbours in memory.

The unpack instructions work within 128 bits, as do those that pack sums to bytes, which restore the
order of four vectors of sums. In between, lanes are in `unpacked` order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value


def unpacked(width: int) -> list[int]:
    """The index, among `width` bytes, of each lane of four concatenated vectors."""
    return [i * 16 + v * 4 + j for v in range(4) for i in range(width // 16) for j in range(4)]


def rearranged(array: Array, width: int) -> Array:
    """[..., channels] -> the same with whole blocks of `width` channels in `unpacked` order."""
    channels = np.arange(array.shape[-1])
    whole = array.shape[-1] // width * width
    channels[:whole] = channels[:whole].reshape(-1, width)[:, unpacked(width)].reshape(-1)
    return np.ascontiguousarray(array[..., channels])


def repacked(value: Value) -> Value:
    """A vector of bytes in `unpacked` order -> in order."""
    pieces = tir.lanes_of(value) // 4
    order = [v * (pieces // 4) + i for i in range(pieces // 4) for v in range(4)]
    moved = tir.shuffle(tir.reinterpret(value, "int32"), order)
    return tir.reinterpret(moved, tir.dtype_of(value))


def interleave(b: Builder, rows: Sequence[Value | None], *, ordered: bool = True) -> list[Value]:
    """Four vectors of bytes -> four vectors whose 32-bit lanes hold a byte of each; in order (by
    shuffling 32-bit pieces first) or in `unpacked` order. Absent rows are zero.
    """
    given = [r for r in rows if r is not None]
    width = tir.lanes_of(given[0])
    blocks = width // 16
    order = [blocks * j + i for i in range(blocks) for j in range(4)]

    def placed(row: Value | None) -> Value:
        if row is None:
            return tir.const(0, "uint8", width)
        if blocks == 1 or not ordered:
            return row
        pieces = tir.shuffle(tir.reinterpret(row, "int32"), order)
        return b.let(tir.reinterpret(pieces, "uint8"), "pieces")

    first, second, third, fourth = (placed(r) for r in rows)
    pairs = [_unpack(b, first, second, h) for h in (0, 1)]
    others = [_unpack(b, third, fourth, h) for h in (0, 1)]
    found = []
    for one, other in zip(pairs, others, strict=True):
        low, high = (tir.reinterpret(v, "uint16") for v in (one, other))
        found += [tir.reinterpret(_unpack(b, low, high, h), "uint8") for h in (0, 1)]
    return found


def _unpack(b: Builder, one: Value, other: Value, half: int) -> Value:
    """punpckl or punpckh: alternating elements of two vectors, from the lower or upper half of
    every 128 bits."""
    total = tir.lanes_of(one)
    piece = 128 // tir.bits(tir.dtype_of(one))
    indices = []
    for start in range(0, total, piece):
        for i in range(piece // 2):
            at = start + half * (piece // 2) + i
            indices += [at, total + at]
    return b.let(tir.shuffle2([one, other], indices), "unpacked")


def load_bytes(pointer: Pointer, offset: Value, count: int, width: int) -> Value:
    """The first `count` of `width` bytes, the others 0; in halves, with few masks."""
    if count <= 0:
        return tir.const(0, pointer.dtype, width)
    if count >= width:
        return pointer.load(offset, width)
    if width <= 16:
        return pointer.load_first(count, offset, width)
    half = width // 2
    low = load_bytes(pointer, offset, min(count, half), half)
    high = load_bytes(pointer, offset + half, count - half, half)
    return tir.concat([low, high])
