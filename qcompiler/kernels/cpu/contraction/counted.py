"""Rows that only a run counts -> tiles of nearly one height, of few heights.

There is code for tiles of a largest height, some rows less, and so on, down to one row. A run takes
as few tiles as the largest height allows, and makes them of two neighbouring heights: together they
have hardly more rows than are asked for. A tile that would reach behind the last row in memory
begins earlier, and computes some rows again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Value

STEP = 3
"""Rows from one height to the next: fewer make more code, and more compute rows for nothing."""
SPARE = 16
"""One row of so many may be computed for nothing: where runs have many rows, fewer heights do."""


@dataclass(frozen=True)
class Tiles:
    """`count` tiles: first `tall` ones of `high` rows, then those of `low`; of `most` rows."""

    heights: tuple[int, ...]
    most: int
    count: Value
    tall: Value
    high: Value
    low: Value

    @staticmethod
    def of(
        b: Builder,
        largest: int,
        most: int,
        rows: Value,
        *,
        least: int = 1,
        few: bool = False,
        step: int = STEP,
    ) -> Tiles:
        """For `least` to `most` rows, in tiles of at most so many; of a `few` heights where there
        are many rows in most runs, as images have, else of one every `step` rows.
        """
        heights = heights_of(largest, least, few, step)
        rows = b.hold(rows, "rows")  # TVM would write all that follows in terms of it
        count = b.hold((rows + (largest - 1)) // largest, "tiles")
        high, low = tir.const(heights[0]), tir.const(heights[min(1, len(heights) - 1)])
        for height, less in zip(heights[1:], (*heights[2:], heights[-1]), strict=False):
            enough = rows <= count * height
            high = b.hold(tirx.Select(enough, tir.const(height), high), "high")
            low = b.hold(tirx.Select(enough, tir.const(less), low), "low")
        step = tirx.Max(high - low, tir.const(1))
        more = tirx.Max(rows - count * low, tir.const(0))
        tall = b.hold((more + step - 1) // step, "tall")
        return Tiles(heights, most, count, tall, high, low)

    def runs(self, b: Builder) -> Iterator[tuple[Value, Value, int, Value]]:
        """(first tile, tiles, height, where the first begins) for each height."""
        none, others = tir.const(0), b.hold(self.count - self.tall, "others")
        for height in self.heights:
            is_high, is_low = (tirx.EQ(n, tir.const(height)) for n in (self.high, self.low))
            count = tirx.Select(is_high, self.tall, none) + tirx.Select(is_low, others, none)
            first = b.hold(tirx.Select(is_high, none, self.tall), "first")
            yield first, b.hold(count, "count"), height, b.hold(first * self.high, "start")

    def row_of(self, tile: Value) -> Value:
        """Where a tile begins, unless that is too near the end."""
        short = tirx.Max(tile - self.tall, tir.const(0))
        return tile * self.high - short * (self.high - self.low)

    def rows_in(self, tile: Value) -> Value:
        """The rows of a tile."""
        return tirx.Select(tile < self.tall, self.high, self.low)

    def at_most(self, row: Value, height: int) -> Value:
        """Where so many rows from one on begin in memory."""
        return tirx.Min(row, tir.const(self.most - height))


def heights_of(largest: int, least: int, few: bool, step: int = STEP) -> tuple[int, ...]:
    """The heights of tiles that there is code for, from the largest down, where no run has fewer
    than `least` rows.
    """
    known = [*range(largest, 1, -step), 1]
    if few:
        known = sorted({largest, -(-largest * 5 // 8), -(-largest // 4), 1}, reverse=True)
    heights = [largest]
    for lower in known[1:]:
        if heights[-1] > least // SPARE and _gains(largest, heights[-1], lower, least):
            heights.append(lower)
    return tuple(heights)


def _gains(largest: int, height: int, lower: int, least: int) -> bool:
    """Has some run of at least so many rows fewer to compute, if a tile of one height is lower?"""
    if height == largest:
        return True
    tiles = range(1, lower // (largest - height) + 2)
    return any(max(least, (n - 1) * largest + 1) <= (n - 1) * height + lower for n in tiles)
