"""A convolution -> tile sizes of its fast algorithm, blocks and tasks, by the model that direct
convolutions are priced with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product as combinations

from qcompiler.errors import Skip
from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Device
from qcompiler.ir import Node
from qcompiler.kernels.cpu.contraction import blocking as direct
from qcompiler.kernels.cpu.contraction.blocking import Cut
from qcompiler.kernels.cpu.contraction.operands import Panels, Product
from qcompiler.kernels.cpu.transformed.winograd_filter import PAIRS, Filter
from qcompiler.ops.window import Window

# Cycles of the reference core:
SPREAD_CYCLES = 2.5  # a vector of one product's left operand: load, transform, store
GATHER_CYCLES = 2.0  # a vector of one product's sums: load, transform, finish
FAR = (1.0, 1.0, 1.3, 2.0)  # how much longer all takes where a block is in that cache, or in memory
TILE_CYCLES = 20.0  # begin a tile of pixels
STREAMED = (1.0, 1.0, 1.5, 1.25)  # how much faster weights in order come from each level


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
class Problem:
    """images x rows x columns of tiles; `depth` channels in, `width` channels out."""

    images: int
    rows: Axis
    columns: Axis
    depth: int
    width: int

    @property
    def tiles(self) -> int:
        """All tiles of all images."""
        return self.images * self.rows.tiles * self.columns.tiles

    @property
    def products(self) -> int:
        """Matrix products: one for each pair of points."""
        return self.rows.filter.products * self.columns.filter.products


@dataclass(frozen=True)
class Tiling:
    """Tiles of `down` by `across` outputs; `rows` tiles by `vectors` vectors of sums in registers;
    blocks of `block` times so many tiles; tasks along tiles and output channels.
    """

    down: int
    across: int
    rows: int
    vectors: int
    block: int
    row_tasks: int
    column_tasks: int

    @property
    def tasks(self) -> int:
        """Tasks in all."""
        return self.row_tasks * self.column_tasks


def problems(root: Node) -> Iterator[Problem] | Skip:
    """A conv node -> the same problem for every pair of filters there is."""
    x, w = root.operands
    images, *sizes, depth = x.type.dims
    if len(sizes) > 2:
        return Skip(f"{len(sizes)} spatial dimensions")
    window = Window.of(root, sizes, w.type.dims[:-2])
    if root.int("group") != 1:
        return Skip("groups")
    if max(*window.strides, *window.dilations) > 1:
        return Skip("strides or dilations")
    taps = (1, *window.kernel)[-2:]
    choices = [_filters(r) for r in taps]
    if taps == (1, 1) or not all(choices):
        return Skip(f"no filters of {taps[0]} x {taps[1]} taps")
    inputs = [1, *sizes][-2:]
    outputs = [1, *root.type.dims[1:-1]][-2:]
    before = [0, *(p[0] if p else 0 for p in window.pads)][-2:]
    return (
        Problem(
            images,
            Axis(inputs[0], outputs[0], before[0], along),
            Axis(inputs[1], outputs[1], before[1], across),
            depth,
            root.type.dims[-1],
        )
        for along, across in combinations(*choices)
    )


def _filters(taps: int) -> list[Filter]:
    """Filters of so many taps that spare products."""
    if taps == 1:
        return [Filter(1, 1)]
    return [Filter(n + 1 - taps, taps) for n in PAIRS if n > taps]


def tilings(problem: Problem, product: Product, device: Device, tasks: int = 0) -> Iterator[Tiling]:
    """Every tiling worth pricing, for as many tasks as the work is worth, or for so many."""
    free = device.isa.registers - 1 - product.mac.temporaries
    wide = range(1, min(-(-problem.width // product.mac.lanes), free // 2) + 1)
    shares = tasks or _threads(problem, product, device)
    for v in wide:
        panels = Panels.of(problem.width, product.mac.lanes, v)
        if panels.vectors != v:
            continue
        most = min(direct.highest(product, v, free), problem.tiles)
        for r in {Cut.of(problem.tiles, max(1, m)).size for m in (most, most // 2)}:
            if direct.fits(product, r, v, device.isa.registers):
                yield from _dealt(problem, panels, r, v, shares)


def _threads(problem: Problem, product: Product, device: Device) -> int:
    """One where the work is too little to share."""
    work = problem.tiles * problem.products * problem.depth * problem.width / product.mac.lanes
    return 1 if work < device.core.worth_sharing else device.threads


def _dealt(
    problem: Problem, panels: Panels, rows: int, vectors: int, tasks: int
) -> Iterator[Tiling]:
    """How tasks and blocks may be cut."""
    units = Cut.of(problem.tiles, rows).pieces
    outputs = problem.rows.filter.outputs, problem.columns.filter.outputs
    for across in range(1, tasks + 1):
        along = tasks // across
        if tasks % across or across > panels.panels or along > units:
            continue
        share = -(-units // along)
        sizes = {min(n, share) for n in range(1, 9)} | {-(-share // n) for n in range(1, 5)}
        for block in sorted(sizes):
            yield Tiling(*outputs, rows, vectors, block, along, across)


def cycles(problem: Problem, device: Device, tiling: Tiling, lanes: int) -> float:
    """What the slowest task takes."""
    core = device.core
    panels = Panels.of(problem.width, lanes, tiling.vectors)
    size = Cut.of(problem.tiles, tiling.rows).size
    share = -(-Cut.of(problem.tiles, tiling.rows).pieces // tiling.row_tasks)
    blocks = -(-share // tiling.block)
    mine = -(-panels.panels // tiling.column_tasks)
    near = sum(scratch(core, problem, tiling, lanes))
    far = FAR[_level(device, near)]
    weights = mine * problem.products * problem.depth * panels.vectors * lanes * 4
    inputs = -(-problem.depth // lanes) * problem.products * core.cycles(SPREAD_CYCLES)
    outputs = mine * panels.vectors * core.cycles(problem.products * GATHER_CYCLES + TILE_CYCLES)
    multiply = tiling.block * mine * problem.products * _unit_cycles(problem, device, tiling, lanes)
    again = _level(device, weights + near) if blocks > 1 else 3
    fetch = weights / (core.bytes_per_cycle[again] * STREAMED[again])
    transforms = tiling.block * size * (inputs + outputs) * far
    return blocks * (transforms + core.overlapped(multiply * far, fetch))


def _unit_cycles(problem: Problem, device: Device, tiling: Tiling, lanes: int) -> float:
    """One tile of sums for one product, its operands in the second cache."""
    rows, vectors = tiling.rows, tiling.vectors
    macs, loads = rows * vectors, rows + vectors
    core = device.core
    step = max(core.step_cycles(macs, loads, macs + loads + 3), core.latency_cycles + 1)
    left, right = (problem.depth * n * 4 for n in (rows, vectors * lanes))
    fetch = left / 2 if left + right <= device.l1_bytes * 3 // 4 else left / 2 + right
    arithmetic = problem.depth * step + core.cycles(macs + TILE_CYCLES)
    return core.overlapped(arithmetic, fetch / core.l2_bytes_per_cycle)


def _level(device: Device, size: int) -> int:
    """Which cache holds so many bytes while others pass through it."""
    for level, capacity in enumerate((device.l1_bytes, device.l2_bytes, device.l3_bytes)):
        if size <= capacity * 5 // 8:
            return level
    return 3


def scratch(core: Core, problem: Problem, tiling: Tiling, lanes: int) -> tuple[int, int]:
    """Bytes of a block's spread inputs, and of its sums for one panel."""
    vectors = Panels.of(problem.width, lanes, tiling.vectors).vectors
    slots = tiling.block * Cut.of(problem.tiles, tiling.rows).size
    return (
        4 * problem.products * product_step(core, problem, slots),
        4 * slots * slot_step(core, problem, vectors, lanes),
    )


def row_step(core: Core, problem: Problem) -> int:
    """Elements from one tile's spread inputs to the next one's: an odd number of cache lines, so
    that tiles fall into different sets of a cache.
    """
    return core.odd_lines(4 * problem.depth) // 4


def product_step(core: Core, problem: Problem, slots: int) -> int:
    """Elements from one product's left operand to the next one's."""
    return core.odd_lines(4 * slots * row_step(core, problem)) // 4


def slot_step(core: Core, problem: Problem, vectors: int, lanes: int) -> int:
    """Elements from one tile's sums to the next one's."""
    return core.odd_lines(4 * vectors * problem.products * lanes) // 4
