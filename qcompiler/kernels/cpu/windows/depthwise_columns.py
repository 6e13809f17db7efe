"""The input of a tile of a depthwise convolution of bytes: four kernel rows of a column are
interleaved, so that each lane of a four-way product holds one channel's bytes.

Neighbouring tiles share columns. Where an instruction that interleaves costs as much as one that
multiplies, those are kept in registers from one tile to the next, all along a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.interleave import interleave, load_bytes
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Registers, Value
from qcompiler.kernels.cpu.windows.depthwise_filters import Filters


@dataclass(frozen=True)
class Columns:
    """The input of a tile: where its column 0 is, and which of its columns are in memory."""

    lines: tuple[Pointer, ...]
    """The line that each kernel row multiplies, of the image or of padding."""
    base: Value
    step: int
    """Elements from one input column to the next."""
    known: Callable[[int], Value]
    """Whether the tile's nth input column is in memory rather than padding; only a run may know."""
    first: bool = False
    """Is it the first tile of a row?"""
    padding: Pointer | None = None
    """What to read in a run that knows that it is padding."""

    def at(self, i: int, j: int) -> Pointer | None:
        """The jth input column of kernel row i; None if it is padding in all runs."""
        known, line = self.known(j), self.lines[i]
        here = line + line.builder.let(self.base + j * self.step, "at")
        if isinstance(known, bool):
            return here if known else None
        assert self.padding is not None
        return line.builder.either(known, here, self.padding, "column")


class Interleaved:
    """Columns of one block of channels after the other, while their code is emitted. `pad` is what
    padding reads as; `shared`: columns that are kept for the next tile.
    """

    def __init__(self, b: Builder, filters: Filters, pad: int, dtype: str, shared: int = 0) -> None:
        assert filters.product is not None
        self.b, self.filters, self.product = b, filters, filters.product
        self.pad, self.dtype, self.shared = pad, dtype, shared
        self.height, self.block = filters.shape.window.kernel[0], filters.block
        self._parts = 0
        self._kept: Registers | None = None

    def begin(self, count: int) -> None:
        """A row of a block, of which so many channels exist: nothing is kept so far."""
        self._parts = -(-count // self.filters.lanes)
        if self.shared:
            held = self.filters.groups * self.shared * self._parts
            self._kept = self.b.registers("uint8", self.block, held, "kept")

    def column(self, columns: Columns, group: int, j: int, size: int, count: int) -> list[Value]:
        """Four kernel rows of the jth input column of a tile of `size` output columns -> a vector
        for every `lanes` channels, each lane with the four bytes of one channel.
        """
        if self._kept is None:
            return self._new(columns, group, j, count)[: self._parts]
        again = j - size * self.filters.shape.window.strides[1]  # the next tile's number of it
        if j < self.shared and not columns.first:
            held = range(self._at(group, j), self._at(group, j + 1))
            found = [self.b.let(self._kept[i], "column") for i in held]
        else:
            found = self._new(columns, group, j, count)[: self._parts]
        if 0 <= again < self.shared:
            for i, vector in enumerate(found, self._at(group, again)):
                self._kept[i] = vector
        return found

    def _at(self, group: int, j: int) -> int:
        return (group * self.shared + j) * self._parts

    def _new(self, columns: Columns, group: int, j: int, count: int) -> list[Value]:
        rows = [self.bytes(columns, group * 4 + i, j, count) for i in range(4)]
        if self.shared:  # absent rows meet zero weights: another row saves a vector of zeros
            rows = [rows[0] if row is None else row for row in rows]
        return interleave(self.b, rows, ordered=not self.filters.unpacked or count < self.block)

    def bytes(self, columns: Columns, i: int, j: int, count: int) -> Value | None:
        """A block of channels of one kernel row and input column; None after the last row."""
        if i >= self.height:
            return None
        width = self.block
        memory = columns.at(i, j)
        if memory is None:
            raw = tir.const(self.pad, self.dtype, width)
        else:
            raw = load_bytes(memory, tir.const(0), count, width)
        if self.product.flipped:
            raw = tir.reinterpret(raw, "uint8") ^ tir.const(128, "uint8", width)
        return self.b.let(tir.reinterpret(raw, "uint8"), "bytes")
