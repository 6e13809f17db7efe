"""A matrix product -> tiles, blocks and tasks of its seven products of quarters, and their gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.contraction import blocking as direct
from qcompiler.kernels.cpu.contraction.loops import Cut
from qcompiler.kernels.cpu.contraction.operands import Product
from qcompiler.kernels.cpu.contraction.problem import Problem

PRODUCTS = 7
SUMS = 5
"""As many products' first tiles in a block are longer, or later: two quarters of the right operand
are read, and their sum is written.
"""
# Cycles of the reference core:
SPREAD_CYCLES = 25.0  # a vector of each quarter of a pair of rows: loads, sums, seven stores
GATHER_CYCLES = 20.0  # a vector of each product: loads, sums, four that are finished
STORE_CYCLES = 2.0  # a vector of sums
ADD_CYCLES = 1.0  # a vector of sums to those of the blocks of depth before
TILE_CYCLES = 20.0
# Instructions, as counted on 64-bit ARM, of the same where products take a lane of a vector:
SPREAD_INSTRUCTIONS = 51.0
GATHER_INSTRUCTIONS = 48.0
MAKE_INSTRUCTIONS = 3.0  # a vector of the right operand's sums: loads and stores are of two
STORE_INSTRUCTIONS = 2.0  # a zero at first, and a store
ADD_INSTRUCTIONS = 2.0
TILE_INSTRUCTIONS = 50.0
DEEP = 768  # sums whose operands stay in the second-level cache
NEAR = 0.95  # of the second-level cache, for what is read again and again
AWAY = 0.1  # of a tile's time: sums come from the third-level cache, and go there, if that is less


@dataclass(frozen=True)
class Tiling(direct.Tiling):
    """Rows are pairs of rows; blocks are of twice `depth`."""

    depth: int = field(kw_only=True)


@dataclass(frozen=True)
class Layout:
    """How work is cut, and how many elements lie where in a task's scratch: sums of the left
    operand's quarters, of the right one's, and the seven products of every pair of rows.
    """

    problem: Problem
    tiling: Tiling
    lanes: int
    wide: int
    """Columns of a panel."""
    pairs: int
    """Pairs of panels."""
    passes: int
    """Blocks of the depth."""
    cut: Cut
    """Pairs of rows in tiles."""
    line: int
    """Elements of a cache line."""
    row_step: int
    """From one row's left operand to the next one's, an odd number of cache lines; of zipped rows,
    which fill whole vectors, a tile begins where its first would.
    """
    left_step: int
    """From one product's left operand to the next one's."""
    slot_step: int
    """From one row's seven sums to the next one's."""
    pair_step: int
    """From one pair of panels' sums to the next one's, where they wait for other passes."""
    sums_at: int
    """Where sums begin, behind those of both operands' quarters."""
    task_size: int

    @staticmethod
    def of(problem: Problem, tiling: Tiling, core: Core, product: Product) -> Layout:
        """What a tiling decides."""
        lanes, depth = product.mac.lanes, tiling.depth
        wide = tiling.vectors * lanes
        pairs, passes = problem.width // (2 * wide), problem.depth // (2 * depth)
        cut, line = Cut.of(-(-problem.rows // 2), tiling.rows), core.line_bytes // 4
        filled = product.lefts(cut.size) * product.zipped_vector if product.zipped else cut.size
        slots = tiling.block * cut.size
        row = core.odd_lines(4 * -(-filled * depth // cut.size)) // 4
        slot = core.odd_lines(4 * PRODUCTS * wide) // 4
        steps = (row, slots * row + line, slot, slots * slot if passes > 1 else 0)
        sums_at = PRODUCTS * steps[1] + depth * wide
        held = -(-pairs // tiling.column_tasks) if passes > 1 else 1
        size = sums_at + held * slots * slot
        return Layout(problem, tiling, lanes, wide, pairs, passes, cut, line, *steps, sums_at, size)

    @property
    def near_bytes(self) -> int:
        """What a block reads again and again: both operands of a pass, and a pair's sums."""
        again = self.sums_at - PRODUCTS * self.line + 2 * self.tiling.depth * self.wide
        return 4 * (again + self.tiling.block * self.cut.size * self.slot_step)

    @property
    def waiting_bytes(self) -> int:
        """Sums that wait for other passes."""
        return 4 * (self.task_size - self.sums_at) if self.passes > 1 else 0


def losses(problem: Problem, product: Product, device: Cpu) -> float:
    """How much longer a product takes than its multiplications alone: the code that multiplies
    quarters loses to the ends of tiles, and to waiting for the left operand, what the same code
    does in a direct product, of which the model knows; one that is not so deep that it waits for
    operands that blocks of the depth keep near. Nothing where instructions are counted.
    """
    if product.mac.by_lane > 1:
        return 1.0
    problem = replace(problem, depth=min(problem.depth, DEEP))
    found = direct.priced(problem, product, device)
    if not found:
        return 1.0
    least, tiling = min(found, key=lambda f: f[0])
    work = problem.macs / product.mac.lanes / tiling.tasks / device.core.macs_per_cycle
    return least / work


def tilings(problem: Problem, product: Product, device: Cpu) -> Iterator[Tiling]:
    """Every tiling worth pricing."""
    lanes = product.mac.lanes
    spare = 2 + product.mac.temporaries + direct.spare(product, short=False) - product.zipped
    free = device.isa.registers - spare
    half = -(-problem.rows // 2)
    for v in range(1, 5):
        if problem.width % (2 * v * lanes) or free < 2 * v:
            continue
        pairs = problem.width // (2 * v * lanes)
        most = min(direct.highest(product, v, free), half)
        for r in {Cut.of(half, m).size for m in (most, max(1, most * 2 // 3))}:
            cut = Cut.of(half, r)
            for along, across in direct.dealt(device.threads, pairs):
                if along > cut.pieces:
                    continue
                share = -(-cut.pieces // along)
                for blocks in range(1, 65):
                    block = -(-share // blocks)
                    for depth in _depths(problem.depth, lanes if product.zipped else 1):
                        t = Tiling(r, v, block, along, across, depth=depth)
                        if _fits(Layout.of(problem, t, device.core, product), product, device):
                            yield t
                            break
                    if block == 1:
                        break


def _fits(layout: Layout, product: Product, device: Cpu) -> bool:
    """Does the second-level cache hold what is read again and again? Sums may be away where
    products take lanes of short vectors; on a Zen 4, BERT's longest product took 3 % more so.
    """
    core, size = device.core, 4 * layout.lanes
    moves = 2 * size / core.l3_bytes_per_cycle
    short = product.mac.by_lane > 1
    away = short and moves < AWAY * layout.tiling.depth / core.macs_per_cycle
    held = layout.near_bytes + (0 if away else layout.waiting_bytes)
    return held < device.l2_bytes * NEAR


def _depths(depth: int, least: int) -> Iterator[int]:
    """Halves of blocks of the depth that divide it, the largest first, not below the least."""
    for passes in range(1, min(16, depth // (2 * least)) + 1):
        if depth % (2 * passes) == 0:
            yield depth // (2 * passes)


@dataclass(frozen=True)
class _Parts:
    """Cycles of a step of a tile, of one for which the right operand is summed, of a tile's end, of
    a vector of each quarter of a pair of rows, and of a vector of each product.
    """

    step: float
    making: float
    end: float
    spread: float
    gather: float

    @staticmethod
    def of(layout: Layout, rows: int, product: Product, core: Core) -> _Parts:
        """Of tiles of so many pairs of rows."""
        if product.mac.by_lane > 1:
            return _Parts._by_instructions(layout, rows, product, core)
        vectors = layout.tiling.vectors
        macs, loads = rows * vectors, rows + vectors
        step = max(core.step_cycles(macs, loads, macs + loads + 3), core.latency_cycles)
        each = STORE_CYCLES if layout.passes == 1 else ADD_CYCLES
        end = core.cycles(macs * each + TILE_CYCLES)
        return _Parts(step, step, end, core.cycles(SPREAD_CYCLES), core.cycles(GATHER_CYCLES))

    @staticmethod
    def _by_instructions(layout: Layout, rows: int, product: Product, core: Core) -> _Parts:
        """Of short vectors, as those of direct products: how many can be begun may decide."""
        vectors = layout.tiling.vectors
        macs, loads = rows * vectors, product.lefts(rows) + vectors  # in pairs
        issued = macs + loads / 2 + direct.LOOP_INSTRUCTIONS / product.unroll
        waits = loads / core.loads_per_cycle if core.in_order else 0.0
        multiplied = max(macs / core.macs_per_cycle, core.latency_cycles) + waits
        step = direct.beside(issued / core.issue_per_cycle, multiplied)
        making = step + MAKE_INSTRUCTIONS * vectors / core.issue_per_cycle
        each = STORE_INSTRUCTIONS + ADD_INSTRUCTIONS * (layout.passes > 1)
        others = (macs * each + TILE_INSTRUCTIONS, SPREAD_INSTRUCTIONS, GATHER_INSTRUCTIONS)
        end, spread, gather = (n / core.issue_per_cycle for n in others)
        return _Parts(step, making, end, spread, gather)


def cycles(layout: Layout, product: Product, device: Cpu) -> float:
    """What the slowest task takes."""
    tiling, cut, core = layout.tiling, layout.cut, device.core
    lanes, passes = layout.lanes, layout.passes
    units = -(-cut.pieces // tiling.row_tasks)
    pairs = -(-layout.pairs // tiling.column_tasks)
    blocks = -(-units // tiling.block)
    tiles = rows = more = 0.0
    for _, count, size, _ in cut.runs():
        parts = _Parts.of(layout, size, product, core)
        left, right = (4 * tiling.depth * n for n in (size, layout.wide))
        near = left + right <= device.l1_bytes * 3 // 4
        fetch = (left / 2 + (0 if near else right)) / core.l2_bytes_per_cycle
        tile = core.overlapped(tiling.depth * parts.step, fetch) + parts.end
        first = core.overlapped(tiling.depth * parts.making, 3 * right / core.l2_bytes_per_cycle)
        share = units * count / cut.pieces
        tiles, rows = tiles + share * tile, rows + share * size
        more = max(more, first + parts.end - tile)
    multiply = pairs * passes * (PRODUCTS * tiles + SUMS * blocks * more)
    spread = rows * passes * -(-tiling.depth // lanes) * parts.spread
    gather = rows * pairs * tiling.vectors * parts.gather
    read = blocks * pairs * 2 * layout.wide * layout.problem.depth * 4 / core.l3_bytes_per_cycle
    moved = 0.0  # which tiles wait for
    if layout.near_bytes + layout.waiting_bytes > device.l2_bytes * NEAR:
        moved = blocks * 2 * (passes - 1) * layout.waiting_bytes / core.l3_bytes_per_cycle
    return core.overlapped(multiply, read) + moved + spread + gather
