"""The right operand -> tiles in the order they are read: weights once, by numpy; others by code.

    [matrix][panel][step][tile of the panel][row][lane][quad]

A tile's row holds, for every lane, the neighbours along k that fill the bytes of one sum. A panel
is two tiles wide, the last may be one; depth and width are filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import tirx

from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.matrix.layout import PANEL_TILES, Layout

_PIECE = 16
"""Bytes that stay together when bytes are interleaved: a quarter of a row."""


def pack(layout: Layout, matrices: Array) -> Array:
    """[images, groups, taps, depth, width] -> tiles of all of them, one matrix after another."""
    panels, width, lanes = layout.panels, matrices.shape[-1], layout.mac.lanes
    matrices = matrices.reshape(-1, layout.taps[0] * layout.taps[1], layout.depth, width)
    count, taps = matrices.shape[:2]
    shape = (count, taps, layout.tap_steps * layout.step, panels.cut.length * lanes)
    full = np.zeros(shape, matrices.dtype)
    full[:, :, : layout.depth, :width] = matrices
    split = full.reshape(count, layout.steps, -1, layout.quad, panels.cut.length, lanes)
    tiles = split.transpose(0, 4, 1, 2, 5, 3)  # matrix, tile, step, row, lane, quad
    parts = []
    for _, number, size, first in panels.cut.runs():
        some = tiles[:, first : first + number * size]
        some = some.reshape(count, number, size, *tiles.shape[2:]).swapaxes(2, 3)
        parts.append(np.ascontiguousarray(some).reshape(count, -1))
    return np.concatenate(parts, axis=1)


class RightPacker:
    """Packs panels of a right matrix that is no constant in the same order, into `target`."""

    def __init__(self, b: Builder, layout: Layout, source: Pointer, target: Pointer) -> None:
        self.b, self.source, self.target = b, source, target
        self.layout, self.problem = layout, layout.problem

    def panel(self, matrix: Value, panel: Value, tiles: int) -> None:
        """A panel of `tiles` tiles, from the matrix at an element offset."""
        b = self.b
        column = b.let(panel * (PANEL_TILES * self.layout.mac.lanes), "column")
        target = b.let(panel * (PANEL_TILES * self.layout.strip_bytes), "target")
        if self.problem.transposed:
            self._transpose(matrix, column, target, tiles)
        else:
            self._interleave(matrix, column, target, tiles)

    def _interleave(self, matrix: Value, column: Value, target: Value, tiles: int) -> None:
        """From right[k, n]: every `quad` rows of the panel's columns become a row of each tile."""
        b, p = self.b, self.problem
        rows = self.layout.step // self.layout.quad
        full, rest = divmod(p.channels, self.layout.quad)
        count = b.let(tirx.Min(tir.const(tiles * self.layout.mac.lanes), p.width - column), "count")

        def place(row: Value) -> Value:
            step = row // rows * (tiles * self.layout.tile_bytes)
            return b.let(target + step + row % rows * self.layout.row_bytes, "place")

        def move(row: Value, valid: int) -> None:
            start = b.let(matrix + row * (self.layout.quad * p.width) + column, "start")
            self._store(self._columns(start, valid, count, tiles), place(row), tiles)

        with b.serial(full, "k") as k:
            move(k, self.layout.quad)
        if rest:
            move(tir.const(full), rest)
        filled = full + (rest > 0)
        with b.serial(self.layout.steps * rows - filled, "zero", filled) as k:
            at = place(k)
            for tile in range(tiles):
                zeros = tir.const(0, "uint8", self.layout.row_bytes)
                self.target.store(at + tile * self.layout.tile_bytes, zeros)

    def _columns(self, start: Value, count: int, valid: Value, tiles: int) -> list[Value]:
        """`quad` rows of a panel's columns; those from `count` on are zeros."""
        p, lanes = self.problem, tiles * self.layout.mac.lanes
        rows = [self.source.load_first(valid, start + i * p.width, lanes) for i in range(count)]
        zeros = [tir.const(0, self.source.dtype, lanes)] * (self.layout.quad - count)
        return [*(self.b.let(r, "row") for r in rows), *zeros]

    def _store(self, rows: Sequence[Value], at: Value, tiles: int) -> None:
        """Columns of neighbouring rows -> one row of each tile, at a byte offset of the first's."""
        mixed = self._zip(*rows) if len(rows) == 2 else self._zip_four(rows)
        pieces = self.layout.problem.itemsize  # of a tile's row in each of the mixed vectors
        for tile in range(tiles):
            for piece in range(pieces):
                for i, vector in enumerate(mixed):
                    size = tir.lanes_of(vector) // (tiles * pieces)
                    first = (tile * pieces + piece) * size
                    part = tir.shuffle(vector, range(first, first + size))
                    offset = tile * self.layout.tile_bytes + (piece * len(mixed) + i) * _PIECE
                    self.target.store(at + offset, part)

    def _transpose(self, matrix: Value, column: Value, target: Value, tiles: int) -> None:
        """From right[n, k]: quads are whole; squares of 16 by 16 of them are transposed."""
        b, p, layout = self.b, self.problem, self.layout
        lanes, size = self.layout.mac.lanes, self.layout.tile_bytes
        with b.serial(tiles, "tile") as tile:
            columns = [column + (tile * lanes + n) for n in range(lanes)]
            if p.width % lanes:  # those beyond the last are computed and dropped
                columns = [tirx.Min(c, tir.const(p.width - 1)) for c in columns]
            rows = [b.let(matrix + c * p.channels, "row") for c in columns]
            at = target + tile * size
            with b.serial(layout.full, "step") as step:
                self._square(rows, step * layout.step, layout.step, at + step * (tiles * size))
            if layout.tail:
                first = tir.const(layout.full * layout.step)
                self._square(rows, first, layout.tail, at + layout.full * tiles * size)

    def _square(self, rows: Sequence[Value], first: Value, depth: int, at: Value) -> None:
        """`depth` elements of 16 rows -> the rows of a tile, 16 bytes of each at a time."""
        b, step = self.b, self.layout.step
        each = _PIECE // self.layout.problem.itemsize
        whole = min(depth, step) // each
        with b.serial(whole, "piece") as piece:
            place = at + piece * (4 * self.layout.row_bytes)
            self._piece(rows, b.let(first + piece * each), each, b.let(place, "at"), 4)
        for start in range(whole * each, step, each):
            place = at + start // self.layout.quad * self.layout.row_bytes
            count = min(4, (step - start) // self.layout.quad)
            self._piece(rows, first + start, depth - start, b.let(place, "at"), count)

    def _piece(
        self, rows: Sequence[Value], first: Value, valid: int, at: Value, count: int
    ) -> None:
        """Four quads of 16 rows -> `count` rows of a tile; elements from `valid` on are zeros."""
        each = _PIECE // self.layout.problem.itemsize
        chunks = [self._chunk(self.b.let(row + first, "k"), min(valid, each), each) for row in rows]
        fours = [self.b.let(tir.concat(chunks[j::4]), "four") for j in range(4)]
        for i, vector in enumerate(self._zip_four(fours)[:count]):
            self.target.store(at + i * self.layout.row_bytes, vector)

    def _chunk(self, at: Value, valid: int, each: int) -> Value:
        """Elements from an offset on as 32-bit words, zeros from `valid` on."""
        if valid <= 0:
            return tir.const(0, "int32", _PIECE // 4)
        value = self.b.let(self.source.load_first(valid, at, each))
        if valid < each:
            zeros = tir.const(0, self.source.dtype, each)
            value = tirx.Select(tir.first_lanes(each, valid), value, zeros)
        return tir.reinterpret(value, "int32")

    def _zip_four(self, rows: Sequence[Value]) -> list[Value]:
        """Four vectors -> four, in every quarter the first elements of all, the second, ..."""
        wide = f"int{2 * tir.bits(tir.dtype_of(rows[0]))}"
        low, high = self._zip(*rows[:2]), self._zip(*rows[2:])
        return [
            v
            for pair in zip(low, high, strict=True)
            for v in self._zip(*(tir.reinterpret(x, wide) for x in pair))
        ]

    def _zip(self, a: Value, c: Value) -> list[Value]:
        """Two vectors -> in every 16 bytes, alternating elements of the lower halves, the upper."""
        count, each = tir.lanes_of(a), _PIECE * 8 // tir.bits(tir.dtype_of(a))
        made = []
        for half in range(2):
            firsts = [s + half * each // 2 for s in range(0, count, each)]
            order = [i for f in firsts for k in range(f, f + each // 2) for i in (k, count + k)]
            made.append(self.b.let(tir.shuffle2((a, c), order), "zip"))
        return made
