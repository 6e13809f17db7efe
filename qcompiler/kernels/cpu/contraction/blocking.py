"""Problem, product and device -> tile, block and task sizes, by a model of instructions and caches.

A tile of sums stays in registers; a block of output rows keeps its left operand in the second-level
cache while panel after panel of the right operand passes by. Rates are the core's own; what was
measured as a whole is that of the reference core, and scaled. Only the order of the candidates
matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from math import gcd

from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Cpu
from qcompiler.hardware.products import ShortMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.contraction.loops import Cut
from qcompiler.kernels.cpu.contraction.operands import Panels, Product, panel_bytes, sections
from qcompiler.kernels.cpu.contraction.problem import Problem
from qcompiler.kernels.cpu.contraction.zipped import copy_instructions

TOGETHER = 4  # vectors of sums that are finished and stored at once
FINISH_CYCLES = 5.0  # of the reference: convert, scale, clip and store one vector of sums
FINISH_INSTRUCTIONS = 9.0
TO_BYTES = {1: 12.0, 2: 9.0, 4: 7.5}  # instructions for one of so many vectors that become bytes
TO_FLOATS = dict.fromkeys(TO_BYTES, 4.0)  # for one of so many vectors that stay floats
ROW_INSTRUCTIONS = 3.0  # where a row is written
LOOP_INSTRUCTIONS = 3.0  # of an iteration over k
TILE_CYCLES = 20.0  # of the reference: begin a tile
JOIN_INSTRUCTIONS = 7.0  # widen a vector of short sums, scale and add it to two others
ADD_INSTRUCTIONS = 3.0  # add a vector of short sums to another one
TAP_CYCLES = 10.0  # of the reference: begin a tap
HIDDEN = 0.7  # part of the shorter of two that overlap, instructions and products, that counts
BUSY_CYCLES = 6.0  # of the reference: of a step beside which one more instruction or two are free

Tile = Callable[[int, int], float]
"""Rows and vectors of a tile -> the cycles that it takes."""


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
class Units:
    """How the output pixels of an image fall into tiles."""

    whole: bool
    """Tiles of whole output rows (a unit is such a tile); else parts of one (a unit is a row)."""
    cut: Cut
    count: int
    """Units of an image."""

    @staticmethod
    def of(problem: Problem, rows: int) -> Units:
        """For tiles of at most so many pixels."""
        if rows >= problem.columns:
            cut = Cut.of(problem.rows, max(1, rows // problem.columns))
            return Units(True, cut, cut.pieces)
        return Units(False, Cut.of(problem.columns, rows), problem.rows)


def fits(product: Product, rows: int, vectors: int, registers: int, *, short: bool = False) -> bool:
    """Do the sums, the right operand's vectors and the left one's, one or a vector of each row, fit
    the registers? `short`: sums are of few steps.
    """
    needed = (product.high(rows) + product.run) * vectors + product.held(rows)
    return needed + product.temporaries + spare(product, short) <= registers


_SHORT = 32
"""Longest sums of which LLVM writes out all steps, and keeps all weights at hand meanwhile."""


@lru_cache(maxsize=4)
def priced(
    problem: Problem, product: Product, device: Cpu, *, vectors: int = 0
) -> list[tuple[float, Tiling]]:
    """Every tiling worth a thought, with the cycles that it takes; of so many `vectors` unless 0.
    Tasks are as many as the work is worth, and there is work for. Several generators ask for those
    of one region, one after the other.
    """
    for tasks in range(_threads(problem, product, device), 0, -1):
        found = list(tilings(problem, product, device, vectors=vectors, tasks=tasks))
        if found:
            tile = cache(partial(_tile_cycles, problem, product, device))
            return [(_cycles(problem, product, device, t, tile), t) for t in found]
    return []


def tilings(
    problem: Problem, product: Product, device: Cpu, *, tasks: int, vectors: int = 0
) -> Iterator[Tiling]:
    """Every tiling worth pricing; 0 vectors: any."""
    registers, lanes = device.isa.registers, product.mac.width
    run = product.run
    short = problem.depth <= _SHORT
    free = registers - run - product.temporaries - spare(product, short)
    widest = min(-(-problem.width // lanes), free // (1 + run))
    for v in [vectors] if vectors else range(1, widest + 1):
        panels = Panels.of(problem.width, lanes, v)
        if v != panels.vectors and not vectors:
            continue  # the same panels as with fewer
        most = min(highest(product, v, free), problem.rows * problem.columns)
        for r in _heights(problem, most):
            if not fits(product, r, v, registers, short=short):
                continue
            columns = problem.groups if problem.groups > 1 else panels.panels
            for along, across in dealt(tasks, columns):
                yield from _blocks(problem, r, v, along, across)


def spare(product: Product, short: bool) -> int:
    """Registers left to what finishes one row while the next is multiplied: LLVM mixes both where
    so many instructions follow each other without a load, and would spill sums. Where they are
    `short`, and rows are multiplied one by one, it mixes more: it writes out all of their steps.
    """
    if product.mac.by_lane == 1:
        return 0
    return 7 if short and product.mac.rows == 1 and product.mac.k == 4 else 3


def highest(product: Product, vectors: int, free: int) -> int:
    """Rows of the highest tile so many vectors wide."""
    rows = product.mac.rows
    if product.zipped:
        free -= product.run * (vectors - 1)
        fit = (
            r for r in range(rows, free + 1) if product.high(r) * vectors + product.held(r) <= free
        )
        return max(fit, default=rows)
    if product.mac.by_lane > 1:  # each multiply-accumulate of rows brings their left operands
        return max(1, (free - product.run * (vectors - 1)) // (vectors + rows)) * rows
    return max(1, free // vectors - product.run) * rows


def _heights(problem: Problem, most: int) -> list[int]:
    """Tile heights to try: the largest, some smaller ones, and what divides the output evenly."""
    found = {most, max(1, most - 1), max(1, most * 3 // 4), max(1, most // 2), min(most, 2)}
    whole = max(1, most // problem.columns)
    if most >= problem.columns:
        found.add(Cut.of(problem.rows, whole).size * problem.columns)
    found.add(Cut.of(problem.columns, most).size)
    return sorted(found)


def _threads(problem: Problem, product: Product, device: Cpu) -> int:
    """For all multiplications, or to read the right operand."""
    work = problem.macs / (product.mac.multiplies)
    return threads_for(max(work, _read_once(problem, product, device)), device)


def threads_for(cycles: float, device: Cpu) -> int:
    """One where the work is too little to share."""
    return 1 if cycles < device.core.worth_sharing else device.threads


def dealt(tasks: int, columns: int) -> Iterator[tuple[int, int]]:
    """How tasks may be dealt to rows and so many columns."""
    for across in range(1, min(tasks, columns) + 1):
        if tasks % across == 0:
            yield tasks // across, across


def _read_once(problem: Problem, product: Product, device: Cpu) -> float:
    """Cycles to read the right operand from memory."""
    size = problem.groups * problem.tap_count * problem.depth * problem.width
    images = problem.images if any(problem.right_images.strides) else 1
    return images * size * tir.bits(product.right) / 8 / device.core.memory_bytes_per_cycle


def _blocks(problem: Problem, rows: int, vectors: int, along: int, across: int) -> Iterator[Tiling]:
    """Block sizes to try: a task's whole share, and halves of it."""
    units = Units.of(problem, rows).count
    if along > problem.images * units:
        return
    block = min(units, -(-units * problem.images // along))
    for _ in range(6):
        yield Tiling(rows, vectors, block, along, across)
        if block == 1:
            return
        block = -(-block // 2)


def _cycles(problem: Problem, product: Product, device: Cpu, tiling: Tiling, tile: Tile) -> float:
    """What the slowest task takes; `tile` is `_tile_cycles`."""
    core = device.core
    panels = Panels.of(problem.width, product.mac.width, tiling.vectors)
    units = Units.of(problem, tiling.rows)
    blocks = -(-units.count // tiling.block)
    my_blocks = -(-problem.images * blocks // tiling.row_tasks)
    share = -(-max(problem.groups, panels.panels) // tiling.column_tasks)
    groups, count = (share, panels.panels) if problem.groups > 1 else (1, share)
    lines = line_bytes(problem, product, tiling)
    left = zipped_bytes(problem, product, tiling) if product.zipped else lines
    packed = panel_bytes(product, problem.tap_count, problem.depth, panels.vectors)
    mine = packed * count * groups
    whole = mine * tiling.column_tasks + left * tiling.tasks
    again = level(device, mine + left, whole=whole) if my_blocks > 1 else 3
    block = 0.0
    for _, number, vectors, _ in panels.cut.runs():
        panel = _panel_cycles(problem, product, device, tiling, vectors, left, tile)
        fetch = packed / core.bytes_per_cycle[again]
        block += number / panels.panels * core.overlapped(panel, fetch)
    block *= count * groups
    if needs_copy(problem, product):
        block += 2 * lines / core.bytes_per_cycle[max(1, level(device, lines))]
    if product.zipped:
        copies = left / product.zipped_vector * product.together * 8 / tir.bits(product.left)
        each = copy_instructions(product, tiling.rows) / tiling.rows
        block += copies * each / core.issue_per_cycle
    return block * my_blocks


def zipped_bytes(problem: Problem, product: Product, tiling: Tiling) -> int:
    """Bytes of a block's rows, copied side by side."""
    units = Units.of(problem, tiling.rows)
    rows = tiling.block * (units.cut.size if units.whole else problem.columns)
    vectors = rows * problem.tap_count * product.steps(problem.depth) // product.together
    return vectors * product.zipped_vector * tir.bits(product.left) // 8


def line_bytes(problem: Problem, product: Product, tiling: Tiling) -> int:
    """Bytes of the left operand's lines that one block sees."""
    units = Units.of(problem, tiling.rows)
    rows = tiling.block * units.cut.size if units.whole else tiling.block
    frame = problem.frame
    lines = problem.planes.count * ((rows - 1) * frame.step + frame.reach)
    return lines * frame.padded_line * tir.bits(product.left) // 8


def prefetch_pace(
    problem: Problem, product: Product, device: Cpu, tiling: Tiling, vectors: int
) -> int:
    """Bytes of the next panel to prefetch with every step of every tile; 0: none.

    A panel is read from afar by a block's first tile only, in a small part of the time there is:
    faster than memory gives. It is prefetched all the while, where the second cache has room.
    """
    units = Units.of(problem, tiling.rows)
    steps = problem.tap_count * product.steps(problem.depth)
    panel = panel_bytes(product, problem.tap_count, problem.depth, vectors)
    width = -(-problem.width // (vectors * product.mac.width))
    pace = -(-panel // (steps * min(tiling.block, units.count)))
    rows = tiling.rows * problem.tap_count * problem.depth * tir.bits(product.left) // 8
    near = panel + rows <= device.l2_bytes * 3 // 4  # a prefetched line may be evicted to the third
    far = panel * width > device.l2_bytes // 2
    alone = product.leftovers or problem.groups > 1
    core = device.core
    busy = tiling.rows * vectors / core.macs_per_cycle >= core.cycles(BUSY_CYCLES)
    return pace if pace <= core.line_bytes and near and far and busy and not alone else 0


def _panel_cycles(
    problem: Problem,
    product: Product,
    device: Cpu,
    tiling: Tiling,
    vectors: int,
    left: int,
    tile: Tile,
) -> float:
    """All tiles of a block against one panel that is in the second cache by now."""
    core = device.core
    units = Units.of(problem, tiling.rows)
    total = 0.0
    packed = panel_bytes(product, problem.tap_count, problem.depth, vectors)
    pixels = tiling.block * problem.columns * (units.cut.size if units.whole else 1)
    written = pixels * problem.width * problem.result_bytes
    for _, count, size, _ in units.cut.runs():
        rows = size * problem.columns if units.whole else size
        arithmetic = tile(rows, vectors)
        reads = rows * problem.tap_count * problem.depth * tir.bits(product.left) // 8
        far = max(1, level(device, packed + left))
        near = 0 if packed + reads <= device.l1_bytes * 3 // 4 else far
        fetch = packed / core.bytes_per_cycle[near] + reads / core.bytes_per_cycle[far] / 2
        lines = rows * -(-vectors * product.mac.width * problem.result_bytes // core.line_bytes)
        fetch += lines * 2 * core.line_bytes / core.bytes_per_cycle[level(device, left + written)]
        total += count * core.overlapped(arithmetic, fetch)
    if units.whole:
        return total * tiling.block / units.cut.pieces
    return total * tiling.block


def _tile_cycles(problem: Problem, product: Product, device: Cpu, rows: int, vectors: int) -> float:
    """One tile whose operands are near."""
    core = device.core
    if product.mac.by_lane > 1:
        return _by_instructions(problem, product, core, rows, vectors)
    macs, loads = product.high(rows) * vectors, rows / product.mac.by_lane + vectors
    steps = problem.tap_count * product.steps(problem.depth)
    issued = macs * product.instructions + loads + 3
    step = core.step_cycles(macs * product.multiplications, loads, issued)
    step = max(step, conflicts(problem, product, device, rows))
    apart = product.temporaries  # the sum, from the products: only that is waited for
    latency = 1.0 if apart else core.latency_cycles
    after = core.cycles(macs * FINISH_CYCLES + TILE_CYCLES + TAP_CYCLES * problem.tap_count)
    if problem.result_bytes == 1:
        return _to_bytes(core, rows, vectors, steps * max(step, latency), after)
    alone = steps * max(step, latency) + after
    instructions = steps * issued + macs * FINISH_INSTRUCTIONS + TILE_CYCLES
    beside = max(steps * step, instructions / core.issue_per_cycle)
    share = min(1.0, core.window / instructions) ** 2
    return share * beside + (1 - share) * alone


def _by_instructions(
    problem: Problem, product: Product, core: Core, rows: int, vectors: int
) -> float:
    """A tile of short vectors, of which the left operand's bring several steps: there are so many
    instructions, those at its end among them, that how many can be begun decides, beside products.
    In order, a whole vector's load begins beside no product.
    """
    high, steps = product.high(rows), problem.tap_count * product.steps(problem.depth)
    moved = rows / 2 if product.mac.rows > 1 else rows * (product.parts > 1)
    loads = rows / product.mac.by_lane
    taps = problem.tap_count
    if product.zipped:  # in pairs, as the right operand's, or one row alone, from its own address
        alone = product.together > 1 and rows % product.together == 1
        moved, loads, taps = 0, -(-(product.lefts(rows) - alone) // 2) + 2 * alone, 1
    issued = high * vectors * product.instructions + loads + moved
    issued += vectors / 2 + LOOP_INSTRUCTIONS / product.unroll  # vectors are loaded in pairs
    each = TO_BYTES if problem.result_bytes == 1 else TO_FLOATS
    finish = rows * sum(n * each[n] for n in powers_of_two(vectors))
    if isinstance(product.mac, ShortMac):
        joins, _ = sections(product.mac.steps, problem.tap_count, problem.depth)
        if product.sums == "float32":
            finish = 2 * finish + high * vectors * JOIN_INSTRUCTIONS
        join = ADD_INSTRUCTIONS if product.joined == "float16" else JOIN_INSTRUCTIONS
        finish += (joins - 1) * high * vectors * join
    ends = rows * ROW_INSTRUCTIONS + TILE_CYCLES + TAP_CYCLES * taps
    begun = (steps * issued + finish + ends) / core.issue_per_cycle
    chain = 1.0 if product.temporaries else core.latency_cycles
    step = max(high * vectors * product.multiplications / core.macs_per_cycle, chain)
    if core.in_order:
        step += (loads + vectors) / core.loads_per_cycle
    return beside(begun, steps * step)


def beside(begun: float, multiplied: float) -> float:
    """Cycles in which instructions can begin, and in which products can -> those that both take."""
    return max(begun, multiplied) + HIDDEN * min(begun, multiplied)


def _to_bytes(core: Core, rows: int, vectors: int, multiplying: float, after: float) -> float:
    """A tile whose sums become bytes, which takes so many instructions that few sums at a time are
    best: while they are finished, the next tile's are begun.
    """
    finish = rows * sum(n * TO_BYTES[n] for n in powers_of_two(vectors))
    hidden = min(1.0, core.window / (2 * finish))
    return multiplying + finish / core.issue_per_cycle / 2 + (1 - hidden) * after


def powers_of_two(vectors: int) -> list[int]:
    """7 -> [4, 2, 1]: vectors that are finished together and stored at once."""
    rest = vectors % TOGETHER
    return [TOGETHER] * (vectors // TOGETHER) + [w for w in (2, 1) if rest & w]


def conflicts(problem: Problem, product: Product, device: Cpu, rows: int) -> float:
    """Cycles a step when rows of the tile push one another out of the first cache."""
    apart = problem.column * tir.bits(product.left) // 8
    if problem.columns == 1:
        apart = problem.frame.step * problem.frame.padded_line * tir.bits(product.left) // 8
    core = device.core
    sets = core.way_bytes // gcd(apart, core.way_bytes)
    ways = device.l1_bytes // core.way_bytes
    if -(-rows // sets) <= ways - 2 or rows <= sets:
        return 0.0
    return rows * core.line_bytes / core.l2_bytes_per_cycle


def level(device: Cpu, size: int, eighths: int = 6, *, whole: int = 0) -> int:
    """Which cache holds so many bytes that are read again and again, in a part of it; `whole`:
    those of all tasks, which share the third.
    """
    sizes = (size, size, max(size, whole))
    capacities = (device.l1_bytes, device.l2_bytes, device.l3_bytes)
    for level, (needed, capacity) in enumerate(zip(sizes, capacities, strict=True)):
        if needed <= capacity * eighths // 8:
            return level
    return 3


def needs_copy(problem: Problem, product: Product) -> bool:
    """Is the left operand copied: padded, converted, or so that more than its end may be read?"""
    ragged = product.leftovers and problem.depth % product.mac.k != 0
    return problem.padded or tir.stored(problem.left.dtype) != product.left or ragged
