"""Problem, product and device -> tile, block and task sizes, by a model of instructions and caches.

A tile of sums stays in registers; a block of output rows keeps its left operand in the second-level
cache while panel after panel of the right operand passes by. The numbers are those of a wide x86
core; only the order of the candidates matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from qcompiler.isa import Device
from qcompiler.kernels import tir
from qcompiler.kernels.contraction_operands import Panels, Product, panel_bytes
from qcompiler.kernels.contraction_problem import LINE_BYTES, SET_BYTES, Problem

LATENCY = 4.0  # cycles until a sum can be multiplied on to again
MACS_PER_CYCLE = 2.0
LOADS_PER_CYCLE = 1.5  # of the two there can be: some miss the first cache
ISSUE_PER_CYCLE = 5.0
TOGETHER = 4  # vectors of sums that are finished and stored at once
FINISH_CYCLES = 5.0  # convert, scale, clip and store one vector of sums
FINISH_INSTRUCTIONS = 9.0
TO_BYTES = {1: 12.0, 2: 9.0, 4: 7.5}  # instructions for one of so many vectors that become bytes
TILE_CYCLES = 20.0  # begin a tile
TAP_CYCLES = 10.0  # begin a tap
WINDOW = 250.0  # instructions in flight: the end of a tile runs beside the next one's beginning
BYTES_PER_CYCLE = (1e9, 24.0, 8.0, 4.0)  # from the first (loads count), second, third cache, memory
BUSY = 12  # products a step beside which one more instruction or two do not count
WORTH_SHARING = 6_000.0  # cycles, about 2 us


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


def fits(product: Product, rows: int, vectors: int, registers: int) -> bool:
    """Do the sums, the right operand's vectors and one left value fit the registers?"""
    needed = rows * vectors + product.run * (vectors + 1)
    return needed + product.mac.temporaries <= registers


def choose(
    problem: Problem,
    product: Product,
    device: Device,
    *,
    rows: int = 0,
    vectors: int = 0,
    tasks: int = 0,
) -> Tiling | None:
    """The cheapest tiling by the model; given knobs are kept, tasks as far as there is work.

    None if the given ones do not fit the registers.
    """
    for count in range(tasks or _threads(problem, product, device), 0, -1):
        found = candidates(problem, product, device, rows=rows, vectors=vectors, tasks=count)
        best = min(found, key=lambda t: cycles(problem, product, device, t), default=None)
        if best is not None:
            return best
    return None


def candidates(
    problem: Problem, product: Product, device: Device, *, rows: int, vectors: int, tasks: int
) -> Iterator[Tiling]:
    """Every tiling worth pricing; 0 rows or vectors: any."""
    registers, lanes = device.isa.registers, product.mac.lanes
    run = product.run
    free = registers - run - product.mac.temporaries
    widest = min(-(-problem.width // lanes), free // (1 + run))
    for v in [vectors] if vectors else range(1, widest + 1):
        panels = Panels.of(problem.width, lanes, v)
        if v != panels.vectors and not vectors:
            continue  # the same panels as with fewer
        most = min(max(1, free // v - run), problem.rows * problem.columns)
        for r in [rows] if rows else _heights(problem, most):
            if not fits(product, r, v, registers):
                continue
            for along, across in _dealt(problem, panels.panels, tasks):
                yield from _blocks(problem, r, v, along, across)


def _heights(problem: Problem, most: int) -> list[int]:
    """Tile heights to try: the largest, some smaller ones, and what divides the output evenly."""
    found = {most, max(1, most - 1), max(1, most * 3 // 4), max(1, most // 2), min(most, 2)}
    whole = max(1, most // problem.columns)
    if most >= problem.columns:
        found.add(Cut.of(problem.rows, whole).size * problem.columns)
    found.add(Cut.of(problem.columns, most).size)
    return sorted(found)


def _threads(problem: Problem, product: Product, device: Device) -> int:
    """One where the work is too little to share."""
    work = problem.macs / (product.mac.lanes * product.mac.k)
    return 1 if max(work, _read_once(problem, product)) < WORTH_SHARING else device.threads


def _dealt(problem: Problem, panels: int, tasks: int) -> Iterator[tuple[int, int]]:
    """How tasks may be dealt to rows and columns."""
    columns = problem.groups if problem.groups > 1 else panels
    for across in range(1, tasks + 1):
        if tasks % across == 0 and across <= columns:
            yield tasks // across, across


def _read_once(problem: Problem, product: Product) -> float:
    """Cycles to read the right operand from memory."""
    size = problem.groups * problem.tap_count * problem.depth * problem.width
    images = problem.images if any(problem.right_images.strides) else 1
    return images * size * tir.bits(product.right) / 8 / BYTES_PER_CYCLE[3]


def _blocks(problem: Problem, rows: int, vectors: int, along: int, across: int) -> Iterator[Tiling]:
    """Block sizes to try: a task's whole share, and halves of it."""
    units = Units.of(problem, rows).count(problem)
    if along > problem.images * units:
        return
    block = min(units, -(-units * problem.images // along))
    for _ in range(6):
        yield Tiling(rows, vectors, block, along, across)
        if block == 1:
            return
        block = -(-block // 2)


def cycles(problem: Problem, product: Product, device: Device, tiling: Tiling) -> float:
    """What the slowest task takes."""
    panels = Panels.of(problem.width, product.mac.lanes, tiling.vectors)
    units = Units.of(problem, tiling.rows)
    blocks = -(-units.count(problem) // tiling.block)
    my_blocks = -(-problem.images * blocks // tiling.row_tasks)
    share = -(-max(problem.groups, panels.panels) // tiling.column_tasks)
    groups, count = (share, panels.panels) if problem.groups > 1 else (1, share)
    left = left_bytes(problem, product, tiling)
    packed = panel_bytes(product, problem.tap_count, problem.depth, panels.vectors)
    again = _level(device, packed * count * groups + left) if my_blocks > 1 else 3
    block = 0.0
    for vectors, number in ((panels.vectors, panels.count), (panels.vectors - 1, panels.rest)):
        if number:
            panel = _panel_cycles(problem, product, device, tiling, vectors, left)
            fetch = packed / BYTES_PER_CYCLE[again]
            block += number / panels.panels * _overlapped(panel, fetch)
    block *= count * groups
    if needs_copy(problem, product):
        block += 2 * left / BYTES_PER_CYCLE[max(1, _level(device, left))]
    return block * my_blocks


def left_bytes(problem: Problem, product: Product, tiling: Tiling) -> int:
    """Bytes of left operand that one block reads."""
    units = Units.of(problem, tiling.rows)
    rows = tiling.block * units.cut.size if units.whole else tiling.block
    frame = problem.frame
    lines = problem.planes.count * ((rows - 1) * frame.step + frame.reach)
    return lines * frame.padded_line * tir.bits(product.left) // 8


def ahead(problem: Problem, product: Product, device: Device, tiling: Tiling, vectors: int) -> int:
    """Bytes of the next panel to ask for with every step of every tile; 0: do not ask.

    A panel is read from afar by a block's first tile only, in a small part of the time there is:
    faster than memory gives. It is asked for all the while, where the second cache has room.
    """
    units = Units.of(problem, tiling.rows)
    steps = problem.tap_count * product.steps(problem.depth)
    panel = panel_bytes(product, problem.tap_count, problem.depth, vectors)
    width = -(-problem.width // (vectors * product.mac.lanes))
    pace = -(-panel // (steps * min(tiling.block, units.count(problem))))
    rows = tiling.rows * problem.tap_count * problem.depth * tir.bits(product.left) // 8
    near = panel + rows <= device.l2_bytes * 3 // 4  # what is asked for may go on to the third
    far = panel * width > device.l2_bytes // 2
    alone = product.leftovers or problem.groups > 1
    busy = tiling.rows * vectors >= BUSY
    return pace if pace <= LINE_BYTES and near and far and busy and not alone else 0


def _panel_cycles(
    problem: Problem, product: Product, device: Device, tiling: Tiling, vectors: int, left: int
) -> float:
    """All tiles of a block against one panel that is in the second cache by now."""
    units = Units.of(problem, tiling.rows)
    total = 0.0
    packed = panel_bytes(product, problem.tap_count, problem.depth, vectors)
    pixels = tiling.block * problem.columns * (units.cut.size if units.whole else 1)
    written = pixels * problem.width * problem.result_bytes
    for _, count, size, _ in units.cut.runs():
        rows = size * problem.columns if units.whole else size
        arithmetic = _tile_cycles(problem, product, device, rows, vectors)
        reads = rows * problem.tap_count * problem.depth * tir.bits(product.left) // 8
        far = max(1, _level(device, packed + left))
        near = 0 if packed + reads <= device.l1_bytes * 3 // 4 else far
        fetch = packed / BYTES_PER_CYCLE[near] + reads / BYTES_PER_CYCLE[far] / 2
        lines = rows * -(-vectors * product.mac.lanes * problem.result_bytes // LINE_BYTES)
        fetch += lines * 2 * LINE_BYTES / BYTES_PER_CYCLE[_level(device, left + written)]
        total += count * _overlapped(arithmetic, fetch)
    if units.whole:
        return total * tiling.block / units.cut.pieces
    return total * tiling.block


def _tile_cycles(
    problem: Problem, product: Product, device: Device, rows: int, vectors: int
) -> float:
    """One tile whose operands are near."""
    macs, loads = rows * vectors, rows + vectors
    steps = problem.tap_count * product.steps(problem.depth)
    issued = macs * product.instructions + loads + 3
    multiplied = macs * product.multiplications / MACS_PER_CYCLE
    step = max(multiplied, loads / LOADS_PER_CYCLE, issued / ISSUE_PER_CYCLE)
    step = max(step, conflicts(problem, product, device, rows))
    latency = 1.0 if product.mac.temporaries else LATENCY  # a sum apart from the products
    after = macs * FINISH_CYCLES + TILE_CYCLES + TAP_CYCLES * problem.tap_count
    if problem.result_bytes == 1:
        return _to_bytes(product, rows, vectors, steps * max(step, latency), after)
    alone = steps * max(step, latency) + after
    instructions = steps * issued + macs * FINISH_INSTRUCTIONS + TILE_CYCLES
    beside = max(steps * step, instructions / ISSUE_PER_CYCLE)
    share = min(1.0, WINDOW / instructions) ** 2
    return share * beside + (1 - share) * alone


def _to_bytes(product: Product, rows: int, vectors: int, multiplying: float, after: float) -> float:
    """A tile whose sums become bytes, which takes so many instructions that few sums at a time are
    best: while they are finished, the next tile's are begun.
    """
    finish = rows * sum(n * TO_BYTES[n] for n in powers_of_two(vectors))
    hidden = min(1.0, WINDOW / (2 * finish))
    return multiplying + finish / ISSUE_PER_CYCLE / 2 + (1 - hidden) * after


def powers_of_two(vectors: int) -> list[int]:
    """7 -> [4, 2, 1]: vectors that are finished together and stored at once."""
    rest = vectors % TOGETHER
    return [TOGETHER] * (vectors // TOGETHER) + [w for w in (2, 1) if rest & w]


def conflicts(problem: Problem, product: Product, device: Device, rows: int) -> float:
    """Cycles a step when rows of the tile push one another out of the first cache."""
    apart = problem.column * tir.bits(product.left) // 8
    if problem.columns == 1:
        apart = problem.frame.step * problem.frame.padded_line * tir.bits(product.left) // 8
    sets = SET_BYTES // gcd(apart, SET_BYTES)
    ways = device.l1_bytes // SET_BYTES
    if -(-rows // sets) <= ways - 2 or rows <= sets:
        return 0.0
    return rows * 64 / BYTES_PER_CYCLE[1]


def _overlapped(arithmetic: float, fetch: float) -> float:
    """Two things that go on at the same time, not quite perfectly."""
    return max(arithmetic, fetch) + 0.1 * min(arithmetic, fetch)


def _level(device: Device, size: int) -> int:
    """Which cache holds so many bytes that are read again and again."""
    for level, capacity in enumerate((device.l1_bytes, device.l2_bytes, device.l3_bytes)):
        if size <= capacity * 3 // 4:
            return level
    return 3


def needs_copy(problem: Problem, product: Product) -> bool:
    """Is the left operand copied: padded, converted, or so that more than its end may be read?"""
    ragged = product.leftovers and problem.depth % product.mac.k != 0
    padded = problem.frame.padded or problem.planes.padded
    return padded or tir.stored(problem.left.dtype) != product.left or ragged
