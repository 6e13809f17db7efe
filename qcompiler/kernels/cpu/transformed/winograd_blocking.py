"""A convolution -> tile sizes of its fast algorithm, blocks and tasks, by the model that direct
convolutions are priced with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product as combinations

from qcompiler.errors import Skip
from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.contraction import blocking as direct
from qcompiler.kernels.cpu.contraction.loops import Cut
from qcompiler.kernels.cpu.contraction.operands import Panels, Product
from qcompiler.kernels.cpu.contraction.problem import Problem
from qcompiler.kernels.cpu.contraction.zipped import copy_instructions
from qcompiler.kernels.cpu.transformed.winograd_filter import PAIRS, Filter

# Cycles of the reference core:
SPREAD_CYCLES = 2.5  # a vector of one product's left operand: load, transform, store
GATHER_CYCLES = 2.0  # a vector of one product's sums: load, transform, finish
FAR = (1.0, 1.0, 1.3, 2.0)  # how much longer all takes where a block is in that cache, or in memory
TILE_CYCLES = 20.0  # begin a tile of pixels
STREAMED = (1.0, 1.0, 1.5, 1.25)  # how much faster weights in order come from each level
STAGED = 4  # vectors of channels that are spread, and then zipped, at a time
# Instructions on 64-bit ARM, where products take a lane of a vector:
STORE_INSTRUCTIONS = 2.0  # a vector of sums: a zero at first, and a store
TILE_INSTRUCTIONS = 50.0
GATHER_INSTRUCTIONS = 60.0  # begin a tile of pixels of a panel


@dataclass(frozen=True)
class Axis:
    """A spatial axis, cut into tiles of `filter.outputs` outputs; `before`: padding in front."""

    size: int
    outputs: int
    before: int
    filter: Filter

    @property
    def tiles(self) -> int:
        """The last one may be partial."""
        return -(-self.outputs // self.filter.outputs)

    @property
    def inner(self) -> tuple[int, int]:
        """The tiles that see no padding: (first, behind the last)."""
        step = self.filter.outputs
        return -(-self.before // step), (self.size + self.before - self.filter.products) // step + 1

    @property
    def whole(self) -> int:
        """How many tiles are whole."""
        return self.outputs // self.filter.outputs


@dataclass(frozen=True)
class Grid:
    """A convolution cut into tiles: rows x columns of them in each image."""

    problem: Problem
    rows: Axis
    columns: Axis

    @property
    def depth(self) -> int:
        """Channels in."""
        return self.problem.channels

    @property
    def width(self) -> int:
        """Channels out."""
        return self.problem.width

    @property
    def tiles(self) -> int:
        """All tiles of all images."""
        return self.problem.images * self.rows.tiles * self.columns.tiles

    @property
    def products(self) -> int:
        """Matrix products: one for each pair of points."""
        return self.rows.filter.products * self.columns.filter.products


@dataclass(frozen=True)
class Tiling(direct.Tiling):
    """`rows` tiles of `down` by `across` outputs at a time; a unit is so many tiles."""

    down: int = field(kw_only=True)
    across: int = field(kw_only=True)


@dataclass(frozen=True)
class Layout:
    """How work is cut, and how many elements lie where in a task's scratch: spread inputs, and a
    panel's sums; steps are odd numbers of cache lines, so that they use all sets of a cache.
    """

    grid: Grid
    tiling: Tiling
    lanes: int
    panels: Panels
    """Of the weights."""
    cut: Cut
    """Tiles in units."""
    row_step: int
    """From one tile's left operand to the next one's; of zipped ones, a unit begins where its first
    would.
    """
    product_step: int
    """From one product's left operand to the next one's."""
    slot_step: int
    """From one tile's sums to the next one's."""
    stage_row: int
    """From one tile's spread inputs to the next one's, of all channels or `STAGED` vectors."""
    stage_product: int
    """From one product's to the next one's."""
    sums_at: int
    """Where sums begin, behind left operands."""
    stage_at: int
    """Where spread inputs begin: a unit's, from which left operands are zipped, or these."""
    near_size: int
    """Of what the second-level cache should hold: all but the stage."""
    task_size: int

    @staticmethod
    def of(grid: Grid, tiling: Tiling, core: Core, product: Product) -> Layout:
        """What a tiling decides."""
        lanes = product.mac.lanes
        panels = Panels.of(grid.width, lanes, tiling.vectors)
        cut = Cut.of(grid.tiles, tiling.rows)
        slots, row = tiling.block * cut.size, core.odd_lines(4 * grid.depth) // 4
        if product.zipped:
            filled = product.lefts(cut.size) * product.zipped_vector
            row = core.odd_lines(4 * -(-filled * grid.depth // cut.size)) // 4
        each = core.odd_lines(4 * slots * row) // 4
        slot = core.odd_lines(4 * panels.vectors * grid.products * lanes) // 4
        sums_at = grid.products * each
        near = size = sums_at + slots * slot
        stage, stage_at = (row, each), 0
        if product.zipped:
            stage = STAGED * lanes, core.odd_lines(4 * cut.size * STAGED * lanes) // 4
            stage_at, size = near, near + grid.products * stage[1]
        steps = (row, each, slot, *stage)
        return Layout(grid, tiling, lanes, panels, cut, *steps, sums_at, stage_at, near, size)


def grids(problem: Problem) -> Iterator[Grid] | Skip:
    """A convolution -> its tiles for every pair of filters there is."""
    root, taps = problem.root, problem.window.kernel
    if root.type.rank > 4:
        return Skip(f"{root.type.rank - 2} spatial dimensions")
    if root.int("group") != 1:
        return Skip("groups")
    if max(*problem.window.strides, *problem.window.dilations) > 1:
        return Skip("strides or dilations")
    choices = [_filters(r) for r in taps]
    if taps == (1, 1) or not all(choices):
        return Skip(f"no filters of {taps[0]} x {taps[1]} taps")
    top, left = problem.begins
    return (
        Grid(
            problem,
            Axis(problem.frame.height, problem.rows, top, along),
            Axis(problem.breadth, problem.columns, left, across),
        )
        for along, across in combinations(*choices)
    )


def _filters(taps: int) -> list[Filter]:
    """Filters of so many taps that spare products."""
    if taps == 1:
        return [Filter(1, 1)]
    return [Filter(n + 1 - taps, taps) for n in PAIRS if n > taps]


def tilings(grid: Grid, product: Product, device: Cpu, tasks: int = 0) -> Iterator[Tiling]:
    """Every tiling worth pricing, for as many tasks as the work is worth, or for so many."""
    free = device.isa.registers - 1 - product.mac.temporaries
    wide = range(1, min(-(-grid.width // product.mac.lanes), free // 2) + 1)
    work = grid.tiles * grid.products * grid.depth * grid.width / product.mac.lanes
    shares = tasks or direct.threads_for(work, device)
    for v in wide:
        panels = Panels.of(grid.width, product.mac.lanes, v)
        if panels.vectors != v:
            continue
        most = min(direct.highest(product, v, free), grid.tiles)
        for r in {Cut.of(grid.tiles, max(1, m)).size for m in (most, most // 2)}:
            if direct.fits(product, r, v, device.isa.registers):
                yield from _dealt(grid, panels, r, v, shares)


def _dealt(grid: Grid, panels: Panels, rows: int, vectors: int, tasks: int) -> Iterator[Tiling]:
    """How tasks and blocks may be cut."""
    units = Cut.of(grid.tiles, rows).pieces
    made = partial(Tiling, down=grid.rows.filter.outputs, across=grid.columns.filter.outputs)
    for along, across in direct.dealt(tasks, panels.panels):
        if along > units:
            continue
        share = -(-units // along)
        sizes = {min(n, share) for n in range(1, 9)} | {-(-share // n) for n in range(1, 5)}
        for block in sorted(sizes):
            yield made(rows, vectors, block, along, across)


def cycles(layout: Layout, product: Product, device: Cpu) -> float:
    """What the slowest task takes."""
    core, grid, tiling, lanes = device.core, layout.grid, layout.tiling, layout.lanes
    panels, tiles = layout.panels, float(layout.cut.size)
    share = -(-layout.cut.pieces // tiling.row_tasks)
    blocks = -(-share // tiling.block)
    mine = -(-panels.panels // tiling.column_tasks)
    vectors = float(mine * panels.vectors)
    if product.zipped:  # units and panels of one less are shorter, too
        tiles = layout.cut.length / layout.cut.pieces
        vectors = mine * panels.cut.length / panels.panels
    near = 4 * layout.near_size
    far = FAR[direct.level(device, near, 5)]
    weights = mine * grid.products * grid.depth * panels.vectors * lanes * 4
    inputs = -(-grid.depth // lanes) * grid.products * core.cycles(SPREAD_CYCLES)
    outputs = vectors * core.cycles(grid.products * GATHER_CYCLES + TILE_CYCLES)
    if product.zipped:
        outputs += mine * GATHER_INSTRUCTIONS / core.issue_per_cycle
    multiply = tiling.block * grid.products * _unit_cycles(layout, product, device, mine)
    whole = weights * tiling.column_tasks + near * tiling.tasks
    again = direct.level(device, weights + near, 5, whole=whole) if blocks > 1 else 3
    fetch = weights / (core.bytes_per_cycle[again] * STREAMED[again])
    transforms = tiling.block * tiles * (inputs + outputs) * far
    return blocks * (transforms + core.overlapped(multiply * far, fetch))


def _unit_cycles(layout: Layout, product: Product, device: Cpu, panels: int) -> float:
    """A unit's sums of so many panels for one product, and its left operand where it is zipped."""
    grid, tiling, core = layout.grid, layout.tiling, device.core
    if not product.zipped:
        return panels * _tile_cycles(grid, product, device, tiling.rows, tiling.vectors)
    total, (cut, columns) = 0.0, (layout.cut, layout.panels.cut)
    for _, units, rows, _ in cut.runs():
        each = grid.depth * copy_instructions(product, rows) / core.issue_per_cycle
        for _, count, vectors, _ in columns.runs():
            tile = _zipped_cycles(product, core, grid.depth, rows, vectors)
            each += panels * count / columns.pieces * tile
        total += units / cut.pieces * each
    return total


def _tile_cycles(grid: Grid, product: Product, device: Cpu, rows: int, vectors: int) -> float:
    """One tile of sums for one product, its operands in the second cache."""
    macs, loads, by_lane = rows * vectors, rows + vectors, product.mac.by_lane
    core = device.core
    step = max(core.step_cycles(macs, loads, macs + loads + 3), core.latency_cycles + 1)
    if core.in_order and by_lane > 1:  # see blocking.py
        begun = macs / core.macs_per_cycle + (rows / by_lane + vectors) / core.loads_per_cycle
        step = max(begun, core.latency_cycles + 1)
    left, right = (grid.depth * n * 4 for n in (rows, vectors * product.mac.lanes))
    fetch = left / 2 if left + right <= device.l1_bytes * 3 // 4 else left / 2 + right
    arithmetic = grid.depth * step + core.cycles(macs + TILE_CYCLES)
    return core.overlapped(arithmetic, fetch / core.l2_bytes_per_cycle)


def _zipped_cycles(product: Product, core: Core, depth: int, rows: int, vectors: int) -> float:
    """The same by zipped rows: how many instructions can be begun may decide, beside products."""
    macs, loads = rows * vectors, product.lefts(rows) + vectors  # in pairs
    issued = macs + loads / 2 + vectors * product.vector_bytes / core.line_bytes
    issued += direct.LOOP_INSTRUCTIONS / product.unroll
    waits = loads / core.loads_per_cycle if core.in_order else 0.0
    busy = max(macs / core.macs_per_cycle, core.latency_cycles) + waits
    ends = (macs * STORE_INSTRUCTIONS + TILE_INSTRUCTIONS) / core.issue_per_cycle
    return depth * direct.beside(issued / core.issue_per_cycle, busy) + ends
