"""Problem and device -> layout, blocks and tasks, by a model of cycles.

A tile product takes a cycle for each row of its left tile; everything else is compared with that:
rows through the load ports, bytes from the caches, sums on their way out, copies. What tile loads
gain on those of vectors is what a core of the tile machines we know sustains (their maker's
optimization manual, which targets/devices/ names). That rows from the
second-level cache hold up the products unless they were prefetched is what times of plain
kernels on such a machine say (benchmarks/prediction, which this model is held against).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Cpu, Isa
from qcompiler.hardware.products import MacKey, TileMac, VectorMac
from qcompiler.ir import Node
from qcompiler.kernels.cpu.contraction import blocking
from qcompiler.kernels.cpu.contraction.blocking import dealt, threads_for
from qcompiler.kernels.cpu.contraction.problem import Problem
from qcompiler.kernels.cpu.matrix.block import HEAD_BYTES, SUMS_BYTES, Blocks, Near
from qcompiler.kernels.cpu.matrix.layout import PANEL_TILES, Layout, layouts
from qcompiler.kernels.cpu.matrix.left import left_scratch

L2_GAIN = 2.5  # rows of tiles come so much faster from the second-level cache than vectors
L3_GAIN = 1.25  # and from the third
RUN_CYCLES = 4.0  # of the reference core, as the next ones: of a copy, however short
FINISH_CYCLES = 0.5  # a vector's share of addresses and loops
NODE_CYCLES = 0.5  # an elementwise node of the epilogue, a vector; these take longer:
LONG_NODES = {
    **dict.fromkeys(("quantize", "dequantize", "lookup", "QuantizeLinear", "HardSwish"), 2.0),
    **dict.fromkeys(("LeakyRelu", "Clip", "Div"), 1.5),
    **dict.fromkeys(("Sigmoid", "Tanh", "Swish", "Gelu", "Erf", "Exp", "Log", "Softplus"), 13.0),
}
BLOCK_CYCLES = 60.0  # loops, addresses and what of the products' latency shows
FEW_BLOCKS = 4  # of a panel: its first way to the nearest cache counts
PACKED_SHARE = 2.5  # a right operand packed on the way, of the third cache's bytes a cycle
VECTOR_SHARE = 0.85  # of the products a cycle, reached by vector kernels
BARRIERS = 12.0  # take as long as work that is just worth sharing; see `_barrier`
PREFETCH_LINES = 8  # of the next panel, at most, with every step of k
CACHE_SHARE = 0.75  # of a cache that one thing may count on


@dataclass(frozen=True)
class Tiling(blocking.Tiling):
    """`rows` rows by `vectors` tiles at a time; `block` output lines of an image are a part."""

    layout: str = field(kw_only=True)


@dataclass(frozen=True)
class Choice:
    """All that is decided of a kernel: how the left operand's rows lie, and how work is cut."""

    layout: Layout
    tiling: Tiling

    @staticmethod
    def of(layout: Layout, lines: int, row_tasks: int, column_tasks: int) -> Choice:
        """For parts of so many output lines: as high blocks and as wide panels as tiles allow."""
        rows = Blocks.of(layout.rows(lines), layout.mac.rows).size
        vectors = layout.panels.vectors
        tiling = Tiling(rows, vectors, lines, row_tasks, column_tasks, layout=layout.form)
        return Choice(layout, tiling)

    @property
    def lines(self) -> int:
        """Output lines of a part."""
        return self.tiling.block

    @property
    def parts(self) -> int:
        """Parts of an image."""
        return -(-self.layout.problem.rows // self.lines)

    @cached_property
    def blocks(self) -> Blocks:
        """Of a part's rows."""
        rows, size = self.layout.rows(self.lines), self.tiling.rows
        return Blocks(rows, size, -(-rows // size))

    @property
    def heights(self) -> tuple[int, ...]:
        """Rows of each of a block's tiles."""
        return self.blocks.heights(self.layout.mac.rows)

    @property
    def left_bytes(self) -> int:
        """Bytes of left operand that tile loads of a part read."""
        return self.layout.left_bytes(self.lines)

    @property
    def left_at(self) -> int:
        """Where in a task's scratch copies of the left operand begin: behind sums."""
        return HEAD_BYTES + self.layout.buffers * SUMS_BYTES

    def right_at(self, core: Core) -> int:
        """Where a right operand that is packed by the kernel begins."""
        return self.left_at + left_scratch(core, self.layout, self.lines)

    def task_bytes(self, core: Core) -> int:
        """Bytes of a task's scratch."""
        p = self.layout.problem
        packed = 0 if p.right.is_constant else p.groups * self.layout.matrix_bytes
        return self.right_at(core) + packed


@dataclass(frozen=True)
class Cost:
    """Cycles of the slowest task, and what they go to."""

    products: float
    loads: float
    finish: float
    right: float
    copies: float
    total: float


def finish_cycles(nodes: Iterable[Node]) -> float:
    """The elementwise nodes after a product -> cycles from a vector of sums to one of outputs."""
    return FINISH_CYCLES + sum(map(_node_cycles, nodes))


def _node_cycles(node: Node) -> float:
    if node.op == "Cast" and node.dtype == "bfloat16":
        return 5.0
    return LONG_NODES.get(node.op, NODE_CYCLES)


def priced(p: Problem, mac: TileMac, device: Cpu, finish: float) -> list[tuple[Cost, Choice]]:
    """Every choice worth a thought, and its cost by the model: for one task where that takes less
    than is worth sharing.
    """
    found = [(cost(c, device, finish), c) for c in choices(p, mac, device.threads)]
    worth = device.core.worth_sharing
    return [f for f in found if f[1].tiling.tasks == 1 and f[0].total < worth] or found


def choices(p: Problem, mac: TileMac, threads: int) -> Iterator[Choice]:
    """Every choice worth pricing, for one task and for as many as there are threads."""
    for layout in layouts(p, mac):
        splits = {(1, 1), *dealt(threads, p.groups * layout.panels.panels)}
        for row_tasks, across in sorted(splits):
            seen = set()
            for pieces in (1, 2, 4, 8, 16, 32, 64):
                share = row_tasks * pieces if p.images == 1 else pieces
                lines = -(-p.rows // min(share, p.rows))
                choice = Choice.of(layout, lines, row_tasks, across)
                if lines not in seen and p.images * choice.parts >= row_tasks:
                    seen.add(lines)
                    yield choice


def cost(choice: Choice, device: Cpu, finish: float) -> Cost:
    """What a choice takes; `finish` cycles a vector of sums."""
    core = device.core
    layout, p, t = choice.layout, choice.layout.problem, choice.tiling
    mac, blocks, heights = layout.mac, choice.blocks, choice.heights
    units = -(-p.images * choice.parts // t.row_tasks)
    left = choice.left_bytes
    right = p.groups * layout.matrix_bytes / t.column_tasks

    products = loads = finishes = total = 0.0
    for _, panels, tiles, _ in layout.panels.cut.runs():
        count = -(-p.groups * panels // t.column_tasks)
        panel = tiles * layout.strip_bytes
        multiply = layout.steps * len(heights) * tiles * mac.rows
        rows = blocks.size + tiles * (layout.step // layout.quad)
        held, fetched = _beyond_l1(choice, device, count, panel)
        load = layout.steps * rows / ceil(core.loads_per_cycle)
        out = blocks.size * tiles * finish
        store = blocks.size * tiles * (0.25 if layout.steps == 1 else 1.0) / core.stores_per_cycle
        block = max(multiply, load, out, fetched) + held + store + core.cycles(BLOCK_CYCLES)
        products += units * count * blocks.count * multiply
        loads += units * count * blocks.count * (load + held)
        finishes += units * count * blocks.count * (out + store)
        total += (
            units
            * count
            * max(blocks.count * block, _first_read(device, left, right, panel, units))
        )
    copies = units * _copies(choice, device)
    if not p.right.is_constant:
        copies += (
            p.images
            * right
            / (PACKED_SHARE * core.l3_bytes_per_cycle)
            / max(1, min(t.row_tasks, p.images))
        )
    total += copies + _barrier(core, t.tasks)
    return Cost(products, loads, finishes, right / _l3_bytes(core), copies, total)


def near(choice: Choice, device: Cpu) -> Near:
    """What is prefetched before it is loaded: left rows that come by once for each panel (those of
    wider windows meet again in the next tap), panels that do not stay or are not read often.
    """
    layout, blocks, left = choice.layout, choice.blocks.count, choice.left_bytes
    panel = PANEL_TILES * layout.strip_bytes
    once = _reads_once(device, layout, left, panel)
    stays = _panel_stays(device, layout, blocks, left, panel)
    passes = left + panel > device.l1_bytes * CACHE_SHARE
    return Near(
        left=passes and layout.taps == (1, 1),
        right=not stays or blocks <= FEW_BLOCKS,
        first=not passes,
        once=once,
    )


def _reads_once(device: Cpu, layout: Layout, left: float, panel: float) -> bool:
    """Do the rows of the left operand pass by while a panel stays in the first-level cache?"""
    size = device.l1_bytes * CACHE_SHARE
    hint = "tile_load_once" in device.isa.intrinsics
    return hint and layout.taps == (1, 1) and panel <= size < left + panel


def _panel_stays(device: Cpu, layout: Layout, blocks: int, left: float, panel: float) -> bool:
    """Is a panel in the first-level cache from block to block?"""
    beside = 0 if _reads_once(device, layout, left, panel) else left / blocks
    return panel + beside <= device.l1_bytes * CACHE_SHARE


def _beyond_l1(choice: Choice, device: Cpu, panels: int, panel: float) -> tuple[float, float]:
    """Cycles that the second-level cache (or the third) takes to feed one block, of what is loaded
    from there and of what was prefetched: what stays near is read once by all blocks of a panel, by
    all panels of a part.
    """
    layout, blocks, left = choice.layout, choice.blocks.count, choice.left_bytes
    size = device.l1_bytes * CACHE_SHARE
    stays = _panel_stays(device, layout, blocks, left, panel)
    l2_bytes = L2_GAIN * device.core.l2_bytes_per_cycle
    near_l2 = left + panel <= device.l2_bytes * CACHE_SHARE
    rate = l2_bytes if near_l2 else _l3_bytes(device.core)
    from_left = left / blocks / (panels if left + panel <= size else 1) / rate
    from_right = panel / (blocks if stays else 1) / l2_bytes
    rows = near(choice, device)
    fetched = from_left * rows.left + from_right * rows.right
    return from_left + from_right - fetched, fetched


def _first_read(device: Cpu, left: float, right: float, panel: float, units: int) -> float:
    """Cycles to fetch a panel; it comes from afar unless all of them stay from part to part."""
    stays = right + left <= device.l2_bytes * CACHE_SHARE
    return panel / _l3_bytes(device.core) * (1 / units if stays else 1.0)


def _barrier(core: Core, tasks: int) -> float:
    """Cycles of a barrier, and of what comes from another core's cache."""
    return core.worth_sharing / BARRIERS if tasks > 1 else 0.0


def _l3_bytes(core: Core) -> float:
    """Bytes of tile rows a cycle and core, from the third-level cache."""
    return L3_GAIN * core.l3_bytes_per_cycle


def _copies(choice: Choice, device: Cpu) -> float:
    """Cycles to copy a part's left operand, at the pace of the second-level cache."""
    core, vector = device.core, device.isa.vector_bytes
    run = core.cycles(RUN_CYCLES)
    layout, lines = choice.layout, choice.lines
    p = layout.problem
    y, x = layout.axes
    total = 0.0
    if size := layout.plane_bytes(lines):
        total += size / core.l2_bytes_per_cycle + y.cells(lines) * y.planes * run
    if layout.form == "gathered":
        pieces = y.taps * (1 if x.dilation == 1 else x.taps)
        each = -(-layout.depth // pieces * layout.problem.itemsize // vector)
        total += lines * p.columns * (pieces * each + run)
    if layout.tail:
        total += layout.needed_cells(lines) * p.groups * run
    return total


def vector_cycles(p: Problem, tile: TileMac, device: Cpu, finish: float) -> float:
    """What the best vector product of the same instruction set would take, about."""
    core, mac = device.core, _vector_mac(device.isa, tile.key)
    if mac is None:
        return float("inf")
    groups = p.groups
    while p.width * (p.groups // groups) < mac.lanes and groups % 2 == 0:
        groups //= 2  # as many groups as fill a vector are multiplied as one
    merged = p.groups // groups
    lanes = -(-p.width * merged // mac.lanes) * mac.lanes
    depth = -(-p.tap_count * p.depth * merged // mac.k)
    vectors = p.images * p.rows * p.columns * groups * lanes / mac.lanes
    multiply = vectors * depth / (core.macs_per_cycle * VECTOR_SHARE)
    read = p.groups * p.tap_count * p.depth * p.width * p.itemsize / _l3_bytes(core)
    single = multiply + vectors * finish
    tasks = threads_for(single, device)
    return max(single / tasks, read / tasks) + _barrier(core, tasks)


def _vector_mac(isa: Isa, key: MacKey) -> VectorMac | None:
    """The vector product of the nearest instruction set below that has one for such operands."""
    keys = [key, ("u8", "i8", "i32")] if key[2] == "i32" else [key]
    found = (isa.vector(k, exact=True) for k in keys)
    return next((mac for mac in found if mac is not None), None)
