"""What a multiply-accumulate instruction computes, and how its operands lie: a vector product,
a product with short sums, a product of small blocks inside vectors, a product of tile registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MacKey = tuple[str, str, str]
"""(left dtype, right dtype, sum dtype): ("u8", "i8", "i32"), ("bf16", "bf16", "f32"), ("f16",
"f16", "f32"), ("f32", "f32", "f32").
"""
BYTE_PRODUCTS: tuple[MacKey, ...] = (("u8", "i8", "i32"), ("i8", "i8", "i32"))
"""Products of bytes, with unsigned and signed activations."""
_SIZES = {"u8": 1, "i8": 1, "i16": 2, "bf16": 2, "f16": 2, "i32": 4, "f32": 4}


@dataclass(frozen=True)
class VectorMac:
    """A vector instruction (or a short sequence): sums[lanes] += left[k] * right[k, lanes].

    `emit(sums, left, right)` takes and returns TIR vector expressions: `lanes` sums, the left
    operand's k neighbours repeated in every lane, the right operand's as [lane][k]. `exact` is
    False if intermediate sums can saturate (then right values must fit 7 bits); its two halves are
    then `pairs(left, right)`, the sums of two products in 16 bits, and `join(sums, pairs)`, which
    adds them in 32. `temporaries`: vector registers needed besides its operands'.

    An exact product may also have halves, which take fewer instructions. `most`: pairs fit 16 bits
    if the absolute weights added there, two of each step, sum to no more (see Limit); `parts`: the
    halves' operands are [part][lane][k / parts], every `parts`th of a lane's k in a part, so that
    neighbours are added.

    `by_lane`: number of left operands in a vector, any one of which the instruction can select.
    """

    key: MacKey
    lanes: int
    k: int
    emit: Callable[..., Any]
    exact: bool = True
    temporaries: int = 0
    pairs: Callable[..., Any] | None = None
    join: Callable[..., Any] | None = None
    most: int = 128
    parts: int = 1
    by_lane: int = 1

    def __post_init__(self) -> None:
        _check(self.key, lanes=self.lanes, k=self.k, parts=self.parts, by_lane=self.by_lane)
        if max(sizes(self.key)[:2]) * self.k > sizes(self.key)[2]:
            raise ValueError(f"{self.k} of {self.key} are more than a lane of sums")
        if not self.halves and not (self.exact and self.pairs is self.join is None):
            raise ValueError("what saturates has halves: pairs and join")

    @property
    def halves(self) -> bool:
        """Can it be computed as pairs in 16 bits, and their sum?"""
        return self.pairs is not None and self.join is not None

    rows = 1
    """Rows of the left operand that one instruction multiplies."""

    @property
    def width(self) -> int:
        """Columns of the right operand that one instruction multiplies."""
        return self.lanes

    @property
    def multiplies(self) -> int:
        """Multiply-accumulates of one instruction."""
        return self.lanes * self.k

    def of_row(self, row: int) -> range:
        """The lanes of sums that belong to a row, by column."""
        assert row == 0
        return range(self.lanes)


@dataclass(frozen=True)
class ShortMac:
    """A vector instruction whose sums are as short as its operands: sums[lanes] += left * right[
    lanes], for at most `steps` steps, after which they are added to float32 sums, two vectors of
    them for one of short sums.

    `emit(sums, left, right)` takes and returns TIR vector expressions of `lanes` elements. Short
    sums must not overflow where float32 ones would not, so the right operand is a constant: each
    of its columns is multiplied by a power of two, such that the absolute values that meet in a
    short sum add up to at most `most`; the float32 sums are scaled back. Where results are rounded
    to the short dtype, up to so many `sections` of as many steps may be added in that, too (or more
    shorter ones, by as few roundings): then the absolute values of a whole column add up to at most
    `most`.
    """

    key: MacKey
    lanes: int
    steps: int
    emit: Callable[..., Any]
    by_lane: int = 1
    sections: int = 16

    k = rows = 1
    temporaries = 0
    exact = True
    halves = False

    def __post_init__(self) -> None:
        _check(self.key, lanes=self.lanes, by_lane=self.by_lane)
        if self.key != ("f16", "f16", "f32"):
            raise ValueError(f"short sums of {self.key[0]}, not of f16")
        if self.steps % self.by_lane or not 0 < self.steps <= 256:
            raise ValueError(f"{self.steps} steps of {self.by_lane} that are loaded at once")

    @property
    def most(self) -> float:
        """What absolute weights that meet may sum up to, at most 1: each of the steps rounds, by
        half of 2^-10, and what is rounded must stay below the largest left operand. That leaves as
        many roundings again to sums of sections.
        """
        return 1 - self.steps * 2.0**-10

    @property
    def width(self) -> int:
        """Columns of the right operand that one instruction multiplies."""
        return self.lanes

    @property
    def multiplies(self) -> int:
        """Multiply-accumulates of one instruction."""
        return self.lanes


@dataclass(frozen=True)
class BlockMac:
    """A product of small matrices inside vectors: sums[rows, columns] += left[rows, k] * right[k,
    columns], in each of `blocks` parts of a vector; all parts have the same left operand.

    `emit(sums, left, right)` takes and returns TIR vector expressions: the left operand is
    [block][row][k], the right one [block][column][k], and sums are [block][row][column]. So the
    right operand's layout is that of a vector product of `width` lanes.
    """

    key: MacKey
    rows: int
    columns: int
    k: int
    emit: Callable[..., Any]
    blocks: int = 1
    temporaries: int = 0
    by_lane: int = 1
    """Number of steps whose left operands are taken from whole vectors of each row."""

    exact = True
    halves = False

    def __post_init__(self) -> None:
        _check(self.key, rows=self.rows, columns=self.columns, k=self.k, blocks=self.blocks)
        left, right, sums = sizes(self.key)
        block = self.rows * self.columns * sums
        if self.rows < 2:
            raise ValueError("a block of one row is a vector product")
        if (self.rows * self.k * left, self.columns * self.k * right) != (block, block):
            raise ValueError(f"{self.rows} x {self.k} by {self.columns}: operands of unequal sizes")

    @property
    def lanes(self) -> int:
        """Sums in a vector."""
        return self.blocks * self.rows * self.columns

    @property
    def width(self) -> int:
        """Columns of the right operand that one instruction multiplies."""
        return self.blocks * self.columns

    @property
    def multiplies(self) -> int:
        """Multiply-accumulates of one instruction."""
        return self.lanes * self.k

    def of_row(self, row: int) -> list[int]:
        """The lanes of sums that belong to a row, by column."""
        starts = (block * self.rows + row for block in range(self.blocks))
        return [start * self.columns + column for start in starts for column in range(self.columns)]


@dataclass(frozen=True)
class TileMac:
    """A tile instruction on numbered registers: sums[rows, lanes] += left[rows, k] * right[k,
    lanes].

    `emit(sum_tile, left_tile, right_tile)` returns a statement. A left tile is [row][k], a right
    one [k / quad][lane][quad], where a quad fills 32 bits; sums are [row][lane]. There are `tiles`
    registers, accessed by the intrinsics "tile_configure", "tile_load", "tile_zero", "tile_store"
    and "tile_release".
    """

    key: MacKey
    rows: int
    lanes: int
    k: int
    emit: Callable[..., Any]
    tiles: int

    exact = True

    def __post_init__(self) -> None:
        _check(self.key, rows=self.rows, lanes=self.lanes, k=self.k)
        if self.rows < 2 or self.tiles < 3:
            raise ValueError(f"{self.tiles} tiles of {self.rows} rows: two operands and their sums")
        if self.k % self.quad:
            raise ValueError(f"{self.k} neighbours are no whole number of {self.quad}")

    @property
    def width(self) -> int:
        """Columns of the right operand that one instruction multiplies."""
        return self.lanes

    @property
    def quad(self) -> int:
        """Neighbours of a column that are adjacent in memory."""
        return 4 // sizes(self.key)[1]

    @property
    def multiplies(self) -> int:
        """Multiply-accumulates of one instruction."""
        return self.rows * self.lanes * self.k


@dataclass(frozen=True)
class WarpMac:
    """A product of small matrices by the threads of a warp, over whose registers they are spread:
    sums[16, 8] += left[16, k] * right[k, 8], of 32 bytes along k.

    `emit(sums, left, right)` takes pointers to a thread's own 4 sums, 4 and 2 words, and returns a
    statement. Thread t holds words t % 4 and t % 4 + 4 (along k) of rows t / 4 and t / 4 + 8 of the
    left operand: [word][row]; of column t / 4 of the right one; and sums 2 (t % 4) and the next of
    both rows. `rate`: what a device's rate of these products is known by.
    """

    key: MacKey
    emit: Callable[..., Any]
    rate: str

    exact = True
    rows, lanes = 16, 8

    def __post_init__(self) -> None:
        _check(self.key)

    @property
    def itemsize(self) -> int:
        """Bytes of an operand's value."""
        return sizes(self.key)[0]

    @property
    def k(self) -> int:
        """Values along k."""
        return 32 // self.itemsize

    @property
    def width(self) -> int:
        """Columns of the right operand that one instruction multiplies."""
        return self.lanes

    @property
    def multiplies(self) -> int:
        """Multiply-accumulates of one instruction."""
        return self.rows * self.lanes * self.k


Mac = VectorMac | BlockMac | TileMac | WarpMac
"""A multiply-accumulate instruction, by where its operands are."""


def sizes(key: MacKey) -> tuple[int, int, int]:
    """Size of an element of each operand in bytes."""
    left, right, sums = (_SIZES[dtype] for dtype in key)
    return left, right, sums


def _check(key: MacKey, **sizes: int) -> None:
    """Raise ValueError for unknown dtypes, and sizes that are no powers of two."""
    if unknown := [dtype for dtype in key if dtype not in _SIZES]:
        raise ValueError(f"a product of {unknown[0]}: one of {', '.join(_SIZES)}")
    for name, size in sizes.items():
        if size < 1 or size & (size - 1):
            raise ValueError(f"{name} of a product is {size}, not a power of two")
