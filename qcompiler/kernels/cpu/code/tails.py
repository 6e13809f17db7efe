"""The ends of rows: load or store the first few lanes of a vector without touching the memory of
the others.

Instruction sets with masks move one vector under a mask. On others a constant number takes two
overlapping pieces of the largest power of two in it: of 13 bytes the first 8 and the last 8. A
number known only at run time takes a piece for each binary digit. No lane is moved alone unless it
is the only one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from qcompiler.hardware.isa import Isa
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Pointer, Value

_WORD = 64  # bits of the largest piece that moves as a scalar


@dataclass(frozen=True)
class Tails:
    """How a builder's pointers move partial vectors: under masks for elements of the sizes
    `masked`, in bytes.
    """

    masked: frozenset[int]

    @staticmethod
    def of(isa: Isa) -> Tails:
        """The best way of an instruction set."""
        return Tails(isa.masked)

    def load(self, pointer: Pointer, count: Value, offset: Value, lanes: int) -> Value:
        """Load the first `count` of `lanes` elements; the other lanes are undefined."""
        if tir.bits(pointer.dtype) // 8 in self.masked:
            return _load_masked(pointer, count, offset, lanes)
        if isinstance(count, int):
            return _load_pieces(pointer, count, offset, lanes)
        return _load_digits(pointer, count, offset, lanes)

    def store(self, pointer: Pointer, count: Value, offset: Value, value: Value) -> None:
        """Store the first `count` lanes of a value."""
        known = isinstance(count, int)
        if tir.bits(pointer.dtype) // 8 not in self.masked:
            store = _store_pieces if known else _store_digits
            store(pointer, count, offset, pointer.builder.let(value))
        elif known and tir.bits(pointer.dtype) == 8 and count.bit_count() <= 3:
            # A masked store delays later loads of its masked bytes until it is done.
            _store_apart(pointer, count, offset, pointer.builder.let(value))
        elif known or tir.bits(pointer.dtype) >= 32:
            _store_masked(pointer, count, offset, value)
        else:
            # LLVM 22 writes 4 bytes where it finds that one lane of a truncated vector remains.
            b, value = pointer.builder, pointer.builder.let(value)
            with b.when(tirx.EQ(count, 1)):
                pointer.store(offset, tir.shuffle(value, [0]))
            with b.otherwise():
                _store_masked(pointer, count, offset, value)


# -- under a mask


def _load_masked(pointer: Pointer, count: Value, offset: Value, lanes: int) -> Value:
    total = lanes * pointer.scale
    loaded = tirx.op.masked_load(
        tir.with_lanes(str(pointer.buffer.dtype), total),
        pointer.buffer,
        tir.ramp(pointer.index(offset), total),
        tir.first_lanes(total, count * pointer.scale),
    )
    return tir.reinterpret(loaded, pointer.dtype)


def _store_masked(pointer: Pointer, count: Value, offset: Value, value: Value) -> None:
    raw = tir.reinterpret(value, str(pointer.buffer.dtype))
    total = tir.lanes_of(raw)
    index = tir.ramp(pointer.index(offset), total)
    mask = tir.first_lanes(total, count * (total // tir.lanes_of(value)))
    pointer.builder.emit(tirx.op.masked_store(pointer.buffer, raw, index, mask))


def _store_apart(pointer: Pointer, count: int, offset: Value, value: Value) -> None:
    """Store in pieces that do not overlap."""
    at = 0
    while at < count:
        piece = _largest_power(count - at)
        pointer.store(offset + at, tir.shuffle(value, range(at, at + piece)))
        at += piece


# -- in pieces


def _load_pieces(pointer: Pointer, count: int, offset: Value, lanes: int) -> Value:
    """Load the first piece, then the last one, of which the lanes still missing are kept."""
    if count <= 0:
        return tir.const(0, pointer.dtype, lanes)
    piece = _largest_power(count)
    first = _load_piece(pointer, piece, offset, lanes)
    if count == piece:
        return first
    last = _load_piece(pointer, piece, offset + (count - piece), lanes)
    behind = [lanes + (i - count) % piece for i in range(piece, lanes)]
    return tir.shuffle2([first, last], [*range(piece), *behind])


def _load_digits(pointer: Pointer, count: Value, offset: Value, lanes: int) -> Value:
    """Load from the last elements on: each piece goes before those loaded already."""
    b = pointer.builder
    held = b.registers(pointer.dtype, lanes, 1, "first")
    held.fill(0)
    with b.when(count >= lanes):
        held[0] = pointer.load(offset, lanes)
    with b.otherwise():
        for piece in _powers_below(lanes):
            with b.when(_has(count, piece)):
                new = _load_piece(pointer, piece, offset + _before(count, piece), lanes)
                order = [*range(piece), *range(lanes, 2 * lanes - piece)]
                held[0] = tir.shuffle2([new, held[0]], order)
    return b.let(held[0], "first")


def _load_piece(pointer: Pointer, count: int, offset: Value, lanes: int) -> Value:
    """Load a power of two of elements into the first of `lanes` lanes, repeated in the others."""
    size = count * tir.bits(pointer.dtype)
    if size > _WORD:
        return tir.concat([pointer.load(offset, count)] * (lanes // count))
    word = pointer.load(offset, count, f"uint{size}")
    return tir.reinterpret(tir.broadcast(word, lanes // count), pointer.dtype)


def _store_pieces(pointer: Pointer, count: int, offset: Value, value: Value) -> None:
    if count <= 0:
        return
    piece = _largest_power(count)
    for at in sorted({0, count - piece}):
        _store_piece(pointer, piece, offset + at, _from_lane(value, at))


def _store_digits(pointer: Pointer, count: Value, offset: Value, value: Value) -> None:
    """Store from the first elements on; the remaining ones move to the first lanes."""
    b, lanes = pointer.builder, tir.lanes_of(value)
    with b.when(count >= lanes):
        pointer.store(offset, value)
    with b.otherwise():
        rest = b.registers(tir.dtype_of(value), lanes, 1, "rest")
        rest[0] = value
        for piece in reversed(_powers_below(lanes)):
            with b.when(_has(count, piece)):
                _store_piece(pointer, piece, offset + _before(count, piece), rest[0])
                rest[0] = _from_lane(rest[0], piece)


def _store_piece(pointer: Pointer, count: int, offset: Value, value: Value) -> None:
    """Store the first lanes, a power of two of them."""
    size = count * tir.bits(tir.dtype_of(value))
    if size > _WORD:
        pointer.store(offset, tir.shuffle(value, range(count)))
    else:
        pointer.store(offset, tir.shuffle(tir.reinterpret(value, f"uint{size}"), [0]))


def _from_lane(value: Value, first: int) -> Value:
    """A vector rotated so that it begins with a lane."""
    lanes = tir.lanes_of(value)
    return tir.shuffle(value, [(first + i) % lanes for i in range(lanes)]) if first else value


def _largest_power(count: int) -> int:
    """The largest power of two that is not above a number."""
    return 1 << (count.bit_length() - 1)


def _powers_below(lanes: int) -> list[int]:
    return [1 << i for i in range((lanes - 1).bit_length())]


def _has(count: Value, power: int) -> Value:
    """Whether a binary digit of a number is 1."""
    return tirx.NE(tirx.op.bitwise_and(count, tir.const(power)), tir.const(0))


def _before(count: Value, power: int) -> Value:
    """The value of the digits above one, where its piece begins."""
    return tirx.op.bitwise_and(count, tir.const(-2 * power))
