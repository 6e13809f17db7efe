"""Problem, product and device -> tile, block and task sizes, by a model of instructions and caches.

A tile of sums stays in registers; a block of output rows keeps its left operand in the second-level
cache while panel after panel of the right operand passes by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qcompiler.isa import Device
from qcompiler.kernels import tir
from qcompiler.kernels.contraction_operands import Panels, Product, panel_bytes
from qcompiler.kernels.contraction_problem import Problem

LATENCY = 4  # cycles until a sum can be added to again
LOADS_PER_CYCLE = 2.0
ISSUE_PER_CYCLE = 5.0
FINISH_CYCLES = 4.0  # convert, scale, clip and store one vector of sums
CYCLES_PER_NS = 3.0
BYTES_PER_CYCLE = (64.0, 24.0, 8.0, 4.0)  # from the first, second and third cache, and memory
WORTH_A_LAUNCH = 60_000.0  # cycles, about 20 us


@dataclass(frozen=True)
class Tiling:
    """`rows` output pixels by `vectors` vectors of sums in registers; blocks of `block` units
    (tiles where a tile holds whole output rows, else output rows); tasks along rows and columns.
    """

    rows: int
    vectors: int
    block: int
    row_tasks: int = 1
    column_tasks: int = 1

    @property
    def tasks(self) -> int:
        """Tasks in all."""
        return self.row_tasks * self.column_tasks


@dataclass(frozen=True)
class Cut:
    """A length in pieces of nearly one size: `count` of `size`, then `rest` of one less."""

    length: int
    size: int
    count: int
    rest: int

    @staticmethod
    def of(length: int, most: int) -> Cut:
        """As few pieces of at most `most` as there can be."""
        pieces = -(-length // most)
        size = -(-length // pieces)
        rest = pieces * size - length
        return Cut(length, size, pieces - rest, rest)

    @property
    def pieces(self) -> int:
        """All of them."""
        return self.count + self.rest

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """(first piece, pieces, size, where the first begins) of the runs of equal size."""
        yield 0, self.count, self.size, 0
        if self.rest:
            yield self.count, self.rest, self.size - 1, self.count * self.size


@dataclass(frozen=True)
class Units:
    """How the output pixels of an image fall into tiles."""

    whole: bool
    """Tiles of whole output rows (a unit is such a tile); else parts of one (a unit is a row)."""
    cut: Cut

    @staticmethod
    def of(problem: Problem, rows: int) -> Units:
        """For tiles of at most so many pixels."""
        if rows >= problem.columns:
            return Units(True, Cut.of(problem.rows, max(1, rows // problem.columns)))
        return Units(False, Cut.of(problem.columns, rows))

    def count(self, problem: Problem) -> int:
        """Units of an image."""
        return self.cut.pieces if self.whole else problem.rows


def fits(rows: int, vectors: int, registers: int) -> bool:
    """Do the sums, the right operand's vectors and one left value fit the registers?"""
    return rows * vectors + vectors + 1 <= registers


def choose(
    problem: Problem,
    product: Product,
    device: Device,
    *,
    rows: int = 0,
    vectors: int = 0,
    tasks: int = 0,
) -> Tiling:
    """The cheapest tiling by the model; given knobs are kept."""
    return min(
        candidates(problem, product, device, rows=rows, vectors=vectors, tasks=tasks),
        key=lambda t: cycles(problem, product, device, t),
    )


def candidates(
    problem: Problem,
    product: Product,
    device: Device,
    *,
    rows: int = 0,
    vectors: int = 0,
    tasks: int = 0,
) -> Iterator[Tiling]:
    """Every tiling worth pricing."""
    registers, lanes = device.isa.registers, product.mac.lanes
    widest = -(-problem.width // lanes)
    pixels = problem.rows * problem.columns
    for v in [vectors] if vectors else range(1, min(widest, registers // 2 - 1) + 1):
        if v != Panels.of(problem.width, lanes, v).vectors and not vectors:
            continue  # the same panels as with fewer
        most = min(max(1, (registers - 1 - v) // v), pixels)
        for r in [rows] if rows else _heights(problem, most):
            for split in _tasks(problem, product, device, v, tasks):
                yield from _blocks(problem, product, device, r, v, *split)


def _heights(problem: Problem, most: int) -> list[int]:
    """Tile heights to try: the largest, and those that divide the output rows well."""
    found = {most, max(1, most - 1), max(1, most * 3 // 4)}
    if most >= problem.columns:
        found.add(most // problem.columns * problem.columns)
        found.add(Cut.of(problem.rows, max(1, most // problem.columns)).size * problem.columns)
    else:
        found.add(Cut.of(problem.columns, most).size)
    return sorted(found)


def _tasks(
    problem: Problem, product: Product, device: Device, vectors: int, tasks: int
) -> Iterator[tuple[int, int]]:
    """How tasks may be dealt to rows and columns."""
    threads = tasks or device.threads
    work = problem.macs / (product.mac.lanes * product.mac.k)
    if not tasks and work < WORTH_A_LAUNCH and _moved(problem, product) < WORTH_A_LAUNCH:
        threads = 1
    panels = Panels.of(problem.width, product.mac.lanes, vectors).panels
    columns = problem.groups if problem.groups > 1 else panels
    for across in range(1, threads + 1):
        if threads % across == 0 and across <= columns:
            yield threads // across, across


def _moved(problem: Problem, product: Product) -> float:
    """Cycles to read the right operand from memory once."""
    size = problem.groups * problem.tap_count * problem.depth * problem.width
    images = problem.images if any(problem.right_images.strides) else 1
    return images * size * tir.bits(product.right) / 8 / BYTES_PER_CYCLE[3]


def _blocks(
    problem: Problem,
    product: Product,
    device: Device,
    rows: int,
    vectors: int,
    along: int,
    across: int,
) -> Iterator[Tiling]:
    units = Units.of(problem, rows).count(problem)
    share = -(-units * problem.images // along)
    if along > problem.images * units:
        return
    largest = min(units, share)
    for parts in (1, 2, 4, 8, 16, 32):
        block = -(-largest // parts)
        yield Tiling(rows, vectors, block, along, across)
        if block == 1:
            return


def left_bytes(problem: Problem, product: Product, tiling: Tiling) -> int:
    """Bytes of left operand that one block reads."""
    units = Units.of(problem, tiling.rows)
    rows = tiling.block * units.cut.size if units.whole else tiling.block
    frame = problem.frame
    lines = (rows - 1) * frame.step + frame.reach
    return lines * frame.padded_line * tir.bits(product.left) // 8


def cycles(problem: Problem, product: Product, device: Device, tiling: Tiling) -> float:
    """What the slowest task takes."""
    panels = Panels.of(problem.width, product.mac.lanes, tiling.vectors)
    units = Units.of(problem, tiling.rows)
    count = units.count(problem)
    blocks = -(-count // tiling.block)
    my_blocks = -(-problem.images * blocks // tiling.row_tasks)
    if problem.groups > 1:
        my_groups, my_panels = -(-problem.groups // tiling.column_tasks), panels.panels
    else:
        my_groups, my_panels = 1, -(-panels.panels // tiling.column_tasks)
    packed = panel_bytes(product, problem.tap_count, problem.depth, panels.vectors)
    block_left = left_bytes(problem, product, tiling)
    tile_rows = units.cut.size * (problem.columns if units.whole else 1)
    tile_left = tile_rows * problem.tap_count * problem.depth * tir.bits(product.left) // 8
    right = packed * my_panels * my_groups
    tile = _tile_cycles(problem, product, tile_rows, panels.vectors)
    near = packed + tile_left <= device.l1_bytes * 3 // 4
    tile += _surplus(packed, 0 if near else _level(device, packed + block_left), tile)
    tile += _surplus(tile_left, _level(device, tile_left + packed), tile)
    tiles = tiling.block * (1 if units.whole else units.cut.pieces)
    panel = tiles * tile
    home = 3 if my_blocks == 1 else _level(device, right + block_left)
    panel = max(panel, packed / BYTES_PER_CYCLE[home])
    copied = block_left / 32 if needs_copy(problem, product) else 0.0
    block = panel * my_panels * my_groups + copied
    last = problem.images * blocks / tiling.row_tasks  # uneven shares show in my_blocks
    return block * max(my_blocks, last)


def _tile_cycles(problem: Problem, product: Product, rows: int, vectors: int) -> float:
    macs, loads = rows * vectors, rows + vectors
    step = max(macs / 2, loads / LOADS_PER_CYCLE, (macs + loads + 3) / ISSUE_PER_CYCLE)
    step = max(step, LATENCY)
    steps = problem.tap_count * product.steps(problem.depth)
    return steps * step + macs * FINISH_CYCLES + 20 + 10 * problem.tap_count


def _level(device: Device, size: int) -> int:
    """Which cache holds so many bytes that are read again and again."""
    for level, capacity in enumerate((device.l1_bytes, device.l2_bytes, device.l3_bytes)):
        if size <= capacity * 3 // 4:
            return level
    return 3


def _surplus(size: int, level: int, hidden: float) -> float:
    """Cycles to fetch bytes beyond those that run beside the arithmetic."""
    return max(0.0, size / BYTES_PER_CYCLE[level] - hidden * 0.7)


def needs_copy(problem: Problem, product: Product) -> bool:
    """Is the left operand copied, to be padded or converted?"""
    return problem.frame.padded or tir.stored(problem.left.dtype) != product.left
