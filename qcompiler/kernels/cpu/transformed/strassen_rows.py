"""Rows of a matrix product, all or those that a run counts -> tiles of pairs of them; and how few
rows are multiplied, where a run may have so few that seven products are slower than eight.

Rows that do not count may hold anything, and pairs mix two rows. So rows can be open only where
each is a position of its own, of which the first ones count: then a last one without a neighbour is
paired with zeros, as it is where there is an odd number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code.draft import Draft
from qcompiler.kernels.cpu.code.images import is_open
from qcompiler.kernels.cpu.code.loops import first_of
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.contraction import blocking as plain
from qcompiler.kernels.cpu.contraction.counted import Tiles
from qcompiler.kernels.cpu.contraction.direct import direct
from qcompiler.kernels.cpu.contraction.layout import Layout as Direct
from qcompiler.kernels.cpu.contraction.operands import Product
from qcompiler.kernels.cpu.contraction.problem import Problem
from qcompiler.kernels.cpu.transformed.strassen_blocking import Layout, cycles, losses
from qcompiler.kernels.registry import Region

_STEP = 8
"""Rows from one number of them to the next for which both ways are priced."""


@dataclass(frozen=True)
class Rows:
    """The rows that count. `runs` are (first tile, tiles, pairs of rows in each, first pair)."""

    whole: Value
    """Pairs of two rows."""
    pairs: Value
    """All of them: one row may have no neighbour."""
    tiles: Value
    """Of pairs."""
    runs: tuple[tuple[Value, Value, int, Value], ...]
    row_of: Callable[[Value], Value]
    """The first pair of a tile."""
    in_tile: Callable[[Value], Value]
    """The pairs of a tile."""

    @property
    def open(self) -> bool:
        """Does only a run know how many there are?"""
        return not isinstance(self.pairs, int)

    @property
    def odd(self) -> bool:
        """May there be a row without a neighbour?"""
        return self.open or self.pairs != self.whole

    @staticmethod
    def of(layout: Layout, d: Draft, rows: Value, fewest: int) -> Rows:
        """Of `rows` rows, `fewest` at least, if only a run knows how many there are."""
        cut, b = layout.cut, d.b
        if isinstance(rows, int):
            runs = tuple(cut.runs())
            return Rows(rows // 2, cut.length, cut.pieces, runs, cut.start_of, cut.size_of)
        pairs = b.hold((rows + 1) // 2, "pairs")
        tiles = Tiles.of(b, cut.size, cut.length, pairs, least=-(-fewest // 2), step=1)
        whole = b.hold(rows // 2, "whole")
        return Rows(whole, pairs, tiles.count, tuple(tiles.runs(b)), tiles.row_of, tiles.rows_in)


def positions(region: Region, problem: Problem) -> int:
    """How many positions there are of which a run counts the first ones."""
    if is_open(region):
        return prod(region.output.type.dims[1:3])
    dims = problem.left.type.dims
    return dims[first_of(dims)]


@dataclass(frozen=True)
class Few:
    """Runs of fewer than `fewest` rows are computed as `layout` says, from the same panels."""

    fewest: int
    layout: Direct


def few_of(region: Region, device: Cpu, product: Product, layout: Layout) -> Few | Skip:
    """How few rows are multiplied by the panels of a layout, and how many are not few."""
    found = direct(region, device)
    if isinstance(found, Skip):
        return found
    problem, other = found
    if (other.mac.k, other.mac.lanes) != (product.mac.k, product.mac.lanes):
        return Skip("few rows would be multiplied by other panels")
    tiling, core = layout.tiling, device.core
    best: plain.Tiling | None = None
    for rows in range(_STEP, problem.rows + _STEP, _STEP):
        some = replace(problem, rows=rows)
        priced = plain.priced(some, other, device, vectors=tiling.vectors)
        cost, best = min(
            (p for p in priced if p[1].tasks == tiling.tasks),
            key=lambda p: p[0],
            default=(0.0, best),
        )
        here = Layout.of(replace(layout.problem, rows=rows), tiling, core, product)
        lost = losses(here.problem, product, device)
        if best is not None and cycles(here, product, device) * lost < cost:
            break
    if best is None:
        return Skip("few rows are too little work for so many tasks")
    return Few(rows, Direct(region, device, problem, other, best))
