"""Problem and device -> layout, blocks and tasks, by a model of cycles.

A tile product takes a cycle for each row of its left tile; everything else is compared with that:
rows through the load ports, bytes from the caches, sums on their way out, copies. What tile loads
gain on those of vectors is what a core of the tile machines we know sustains (their maker's
optimization manual, which targets/devices/ names). That rows from the
second-level cache hold up the products unless they were asked for before is what times of plain
kernels on such a machine say (benchmarks/prediction, which this model is held against).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil

from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Device, Isa
from qcompiler.hardware.products import VectorMac
from qcompiler.ir import Node
from qcompiler.kernels.cpu.matrix.block import Blocks, Near
from qcompiler.kernels.cpu.matrix.layout import Layout, layouts
from qcompiler.kernels.cpu.matrix.problem import Problem, key_of
from qcompiler.kernels.cpu.matrix.right import PANEL_TILES, Panels

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
class Tiling:
    """A choice without its problem."""

    layout: str
    lines: int
    row_tasks: int
    column_tasks: int


@dataclass(frozen=True)
class Choice:
    """How a kernel is built; a task has some parts (`lines` output lines of an image), panels."""

    layout: Layout
    lines: int
    row_tasks: int
    column_tasks: int

    @property
    def parts(self) -> int:
        """Parts of an image."""
        return -(-self.layout.problem.lines // self.lines)

    @property
    def tasks(self) -> int:
        """Tasks in all."""
        return self.row_tasks * self.column_tasks

    @property
    def knobs(self) -> Tiling:
        """What was decided."""
        return Tiling(self.layout.form, self.lines, self.row_tasks, self.column_tasks)


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


def priced(p: Problem, device: Device, finish: float) -> list[tuple[Cost, Choice]]:
    """Every choice worth a thought, and its cost by the model: for one task where that takes less
    than is worth sharing.
    """
    found = [(cost(c, device, finish), c) for c in choices(p, device.threads)]
    worth = device.core.worth_sharing
    return [f for f in found if f[1].tasks == 1 and f[0].total < worth] or found


def choices(p: Problem, threads: int) -> Iterator[Choice]:
    """Every choice worth pricing, for one task and for as many as there are threads."""
    splits = {(1, 1)} | {(threads // c, c) for c in range(1, threads + 1) if threads % c == 0}
    for layout in layouts(p):
        panels = Panels.of(layout)
        columns = p.groups * (panels.wide + panels.narrow)
        for row_tasks, across in sorted(splits):
            if across > columns:
                continue
            seen = set()
            for pieces in (1, 2, 4, 8, 16, 32, 64):
                share = row_tasks * pieces if p.images == 1 else pieces
                lines = -(-p.lines // min(share, p.lines))
                choice = Choice(layout, lines, row_tasks, across)
                if lines not in seen and p.images * choice.parts >= row_tasks:
                    seen.add(lines)
                    yield choice


def cost(choice: Choice, device: Device, finish: float) -> Cost:
    """What a choice takes; `finish` cycles a vector of sums."""
    core = device.core
    layout, p = choice.layout, choice.layout.problem
    panels, mac = Panels.of(layout), p.mac
    blocks = Blocks.of(layout.rows(choice.lines), mac.rows)
    heights = blocks.heights(mac.rows)
    units = -(-p.images * choice.parts // choice.row_tasks)
    wide = -(-p.groups * panels.wide // choice.column_tasks)
    narrow = -(-p.groups * panels.narrow // choice.column_tasks)
    left = layout.left_bytes(choice.lines)
    right = p.groups * panels.matrix_bytes / choice.column_tasks

    products = loads = finishes = total = 0.0
    for tiles, count in ((PANEL_TILES, wide), (1, narrow)):
        panel = tiles * panels.strip_bytes
        multiply = layout.steps * len(heights) * tiles * mac.rows
        rows = blocks.size + tiles * (layout.step // p.quad)
        held, asked = _beyond_l1(choice, device, blocks.count, max(count, 1), left, panel)
        load = layout.steps * rows / ceil(core.loads_per_cycle)
        out = blocks.size * tiles * finish
        store = blocks.size * tiles * (0.25 if layout.steps == 1 else 1.0) / core.stores_per_cycle
        block = max(multiply, load, out, asked) + held + store + core.cycles(BLOCK_CYCLES)
        products += units * count * blocks.count * multiply
        loads += units * count * blocks.count * (load + held)
        finishes += units * count * blocks.count * (out + store)
        total += (
            units
            * count
            * max(blocks.count * block, _first_read(device, left, right, panel, units))
        )
    copies = units * _copies(choice, device)
    if not p.constant:
        copies += (
            p.images
            * right
            / (PACKED_SHARE * core.l3_bytes_per_cycle)
            / max(1, min(choice.row_tasks, p.images))
        )
    total += copies + _barrier(core, choice.tasks)
    return Cost(products, loads, finishes, right / _l3_bytes(core), copies, total)


def near(choice: Choice, device: Device) -> Near:
    """What is asked for before it is loaded: left rows that come by once for each panel (those of
    wider windows meet again in the next tap), panels that do not stay or are not read often.
    """
    layout = choice.layout
    blocks = Blocks.of(layout.rows(choice.lines), layout.problem.mac.rows).count
    left = layout.left_bytes(choice.lines)
    panel = PANEL_TILES * Panels.of(layout).strip_bytes
    once = _reads_once(device, layout, left, panel)
    stays = _panel_stays(device, layout, blocks, left, panel)
    passes = left + panel > device.l1_bytes * CACHE_SHARE
    return Near(
        left=passes and layout.taps == (1, 1),
        right=not stays or blocks <= FEW_BLOCKS,
        first=not passes,
        once=once,
    )


def _reads_once(device: Device, layout: Layout, left: float, panel: float) -> bool:
    """Do the rows of the left operand pass by while a panel stays in the first-level cache?"""
    size = device.l1_bytes * CACHE_SHARE
    hint = "tile_load_once" in device.isa.intrinsics
    return hint and layout.taps == (1, 1) and panel <= size < left + panel


def _panel_stays(device: Device, layout: Layout, blocks: int, left: float, panel: float) -> bool:
    """Is a panel in the first-level cache from block to block?"""
    beside = 0 if _reads_once(device, layout, left, panel) else left / blocks
    return panel + beside <= device.l1_bytes * CACHE_SHARE


def _beyond_l1(
    choice: Choice, device: Device, blocks: int, panels: int, left: float, panel: float
) -> tuple[float, float]:
    """Cycles that the second-level cache (or the third) takes to feed one block, of what is loaded
    from there and of what was asked for: what stays near is read once by all blocks of a panel, by
    all panels of a part.
    """
    layout = choice.layout
    size = device.l1_bytes * CACHE_SHARE
    stays = _panel_stays(device, layout, blocks, left, panel)
    l2_bytes = L2_GAIN * device.core.l2_bytes_per_cycle
    near_l2 = left + panel <= device.l2_bytes * CACHE_SHARE
    rate = l2_bytes if near_l2 else _l3_bytes(device.core)
    from_left = left / blocks / (panels if left + panel <= size else 1) / rate
    from_right = panel / (blocks if stays else 1) / l2_bytes
    asks = near(choice, device)
    asked = from_left * asks.left + from_right * asks.right
    return from_left + from_right - asked, asked


def _first_read(device: Device, left: float, right: float, panel: float, units: int) -> float:
    """Cycles to fetch a panel; it comes from afar unless all of them stay from part to part."""
    stays = right + left <= device.l2_bytes * CACHE_SHARE
    return panel / _l3_bytes(device.core) * (1 / units if stays else 1.0)


def _barrier(core: Core, tasks: int) -> float:
    """Cycles of a barrier, and of what comes from another core's cache."""
    return core.worth_sharing / BARRIERS if tasks > 1 else 0.0


def _l3_bytes(core: Core) -> float:
    """Bytes of tile rows a cycle and core, from the third-level cache."""
    return L3_GAIN * core.l3_bytes_per_cycle


def _copies(choice: Choice, device: Device) -> float:
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
        each = -(-layout.depth // pieces * p.itemsize // vector)
        total += lines * p.columns * (pieces * each + run)
    if layout.tail:
        total += layout.needed_cells(lines) * p.groups * run
    return total


def vector_cycles(p: Problem, device: Device, finish: float) -> float:
    """What the best vector product of the same instruction set would take, about."""
    core, mac = device.core, _vector_mac(device.isa, p)
    if mac is None:
        return float("inf")
    groups = p.groups
    while p.width * (p.groups // groups) < mac.lanes and groups % 2 == 0:
        groups //= 2  # as many groups as fill a vector are multiplied as one
    merged = p.groups // groups
    lanes = -(-p.width * merged // mac.lanes) * mac.lanes
    depth = -(-p.channels * merged * p.kernel[0] * p.kernel[1] // mac.k)
    vectors = p.images * p.lines * p.columns * groups * lanes / mac.lanes
    multiply = vectors * depth / (core.macs_per_cycle * VECTOR_SHARE)
    read = (
        p.groups * p.channels * p.kernel[0] * p.kernel[1] * p.width * p.itemsize / _l3_bytes(core)
    )
    single = multiply + vectors * finish
    tasks = 1 if single < core.worth_sharing else device.threads
    return max(single / tasks, read / tasks) + _barrier(core, tasks)


def _vector_mac(isa: Isa, p: Problem) -> VectorMac | None:
    """The vector product of the nearest instruction set below that has one for such operands."""
    key = key_of(p.root)
    assert key is not None
    keys = [key, ("u8", "i8", "i32")] if p.root.dtype == "int32" else [key]
    found = (isa.vector(k, exact=True) for k in keys)
    return next((mac for mac in found if mac is not None), None)
