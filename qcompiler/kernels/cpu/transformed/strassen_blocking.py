"""A matrix product -> tiles, blocks and tasks of its seven products of quarters, and their gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Device
from qcompiler.kernels.cpu.contraction import blocking as direct
from qcompiler.kernels.cpu.contraction.blocking import Cut
from qcompiler.kernels.cpu.contraction.operands import Product
from qcompiler.kernels.cpu.contraction.problem import Problem

PRODUCTS = 7
# Cycles of the reference core:
SPREAD_CYCLES = 25.0  # a vector of each quarter of a pair of rows: loads, sums, seven stores
GATHER_CYCLES = 20.0  # a vector of each product: loads, sums, four that are finished
STORE_CYCLES = 2.0  # a vector of sums
MAKE_CYCLES = 1.6  # a vector of sums of the right operand's quarters, of which there are five
ADD_CYCLES = 4.0  # a vector of sums to those of the blocks of depth before
TILE_CYCLES = 20.0
NEAR = 0.95  # of the second-level cache, for what is read again and again


@dataclass(frozen=True)
class Tiling:
    """`rows` pairs of rows by `vectors` vectors of columns in registers; blocks of `block` times so
    many pairs and of twice `depth`; tasks along rows and columns.
    """

    rows: int
    vectors: int
    block: int
    depth: int
    row_tasks: int
    column_tasks: int

    @property
    def tasks(self) -> int:
        """Tasks in all."""
        return self.row_tasks * self.column_tasks


def row_step(core: Core, depth: int) -> int:
    """Elements from one row's left operand to the next one's: an odd number of cache lines."""
    return core.odd_lines(4 * depth) // 4


def slot_step(core: Core, wide: int) -> int:
    """Elements from one row's seven sums to the next one's."""
    return core.odd_lines(4 * PRODUCTS * wide) // 4


def losses(problem: Problem, product: Product, device: Device) -> float:
    """How much longer a product takes than its multiplications alone. `cycles` counts little
    beside these, and the code that multiplies quarters loses as much to the ends of tiles and to
    waiting for operands as the same code does in a direct product, of which the model knows.
    """
    found = direct.priced(problem, product, device)
    if not found:
        return 1.0
    least, tiling = min(found, key=lambda f: f[0])
    work = problem.macs / product.mac.lanes / tiling.tasks / device.core.macs_per_cycle
    return least / work


def tilings(problem: Problem, product: Product, device: Device) -> Iterator[Tiling]:
    """Every tiling worth pricing."""
    tasks = device.threads
    lanes, free = product.mac.lanes, device.isa.registers - 2 - product.mac.temporaries
    half = -(-problem.rows // 2)
    for v in range(1, 5):
        if problem.width % (2 * v * lanes) or (free - v) // v < 1:
            continue
        pairs = problem.width // (2 * v * lanes)
        most = min((free - v) // v, half)
        for r in {Cut.of(half, m).size for m in (most, max(1, most * 2 // 3))}:
            if r * v + v > free:
                continue
            cut = Cut.of(half, r)
            for across in range(1, tasks + 1):
                along = tasks // across
                if tasks % across or across > pairs or along > cut.pieces:
                    continue
                share = -(-cut.pieces // along)
                for blocks in range(1, 65):
                    block = -(-share // blocks)
                    for depth in _depths(problem.depth):
                        t = Tiling(r, v, block, depth, along, across)
                        size = _bytes(device.core, t, problem, lanes, cut.size)
                        if size < device.l2_bytes * NEAR:
                            yield t
                            break
                    if block == 1:
                        break


def _depths(depth: int) -> Iterator[int]:
    """Halves of blocks of the depth that divide it, the largest first."""
    for passes in range(1, 17):
        if depth % (2 * passes) == 0:
            yield depth // (2 * passes)


def _bytes(core: Core, tiling: Tiling, problem: Problem, lanes: int, size: int) -> int:
    """What a block reads again and again."""
    slots, wide = tiling.block * size, tiling.vectors * lanes
    left = PRODUCTS * slots * row_step(core, tiling.depth)
    right = 3 * tiling.depth * wide
    pairs = problem.width // (2 * wide)
    again = tiling.depth * 2 < problem.depth
    sums = (-(-pairs // tiling.column_tasks) if again else 1) * slots * slot_step(core, wide)
    return 4 * (left + right + sums)


def cycles(problem: Problem, device: Device, tiling: Tiling, lanes: int) -> float:
    """What the slowest task takes."""
    core = device.core
    cut = Cut.of(-(-problem.rows // 2), tiling.rows)
    units = -(-cut.pieces // tiling.row_tasks)
    pairs = -(-(problem.width // (2 * tiling.vectors * lanes)) // tiling.column_tasks)
    passes = problem.depth // (2 * tiling.depth)
    rows = units * cut.size
    macs, loads = cut.size * tiling.vectors, cut.size + tiling.vectors
    step = max(core.step_cycles(macs, loads, macs + loads + 3), core.latency_cycles)
    end = core.cycles(macs * (STORE_CYCLES if passes == 1 else ADD_CYCLES) + TILE_CYCLES)
    multiply = units * pairs * passes * PRODUCTS * (tiling.depth * step + end)
    blocks = -(-units // tiling.block)
    make = blocks * pairs * passes * 5 * tiling.vectors * tiling.depth * core.cycles(MAKE_CYCLES)
    spread = rows * passes * -(-tiling.depth // lanes) * core.cycles(SPREAD_CYCLES)
    gather = rows * pairs * tiling.vectors * core.cycles(GATHER_CYCLES)
    fetch = (
        blocks * pairs * 2 * tiling.vectors * lanes * problem.depth * 4 / core.l3_bytes_per_cycle
    )
    return core.overlapped(multiply, fetch) + make + spread + gather
