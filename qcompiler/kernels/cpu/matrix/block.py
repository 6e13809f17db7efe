"""A block of rows by a panel of columns -> the statements that sum it in tiles.

At most two tiles of rows by two of columns: four tiles of sums, two of the left operand, two of the
right. A step of k is four loads and four products; the loads stand as late as they can.

Rows that a tile load does not find in the nearest cache hold up the products, so what comes from
further away is prefetched some steps before. What is done beside the products (`between`) is shared
out among the steps or, where they are few, among the products, and sums of a single step leave one
by one as they are ready.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from math import ceil

from tvm import tirx

from qcompiler.hardware.isa import Cpu, Isa
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.matrix.layout import PANEL_TILES, WORD, Layout
from qcompiler.kernels.cpu.matrix.left import Left

ROW_TILES = 2
TILES = ROW_TILES * PANEL_TILES + ROW_TILES + PANEL_TILES
"""Tile registers in use."""
LEFT_TILE, RIGHT_TILE = ROW_TILES * PANEL_TILES, ROW_TILES * PANEL_TILES + ROW_TILES
"""The first of the left operand's and of the right one's; sums are before."""
CONFIG_BYTES = 64
HEAD_BYTES = 2 * CONFIG_BYTES
"""Of a task's scratch memory: the tiles' shapes, and a one."""
SUMS_BYTES = 32 * 32 * WORD
_FEW_STEPS = 4


@dataclass(frozen=True)
class Blocks:
    """`count` blocks of `size` rows cover `rows` rows; the last one overlaps the one before it."""

    rows: int
    size: int
    count: int

    @staticmethod
    def of(rows: int, tile_rows: int) -> Blocks:
        """As few blocks as there can be, as small as that allows."""
        count = -(-rows // (ROW_TILES * tile_rows))
        return Blocks(rows, -(-rows // count), count)

    def heights(self, tile_rows: int) -> tuple[int, ...]:
        """Rows of each of a block's tiles."""
        if self.size <= tile_rows:
            return (self.size,)
        return (-(-self.size // 2), self.size // 2)


@dataclass(frozen=True)
class Near:
    """How rows come to the nearest cache: left ones or right ones on request, else when they are
    loaded. `first`: right ones in a panel's first block only. `once`: left rows pass by, and are
    not to displace the panel there.
    """

    left: bool
    right: bool
    first: bool
    once: bool


@dataclass(frozen=True)
class _Step:
    """A step of k: its rows, left ones `stride` elements apart; its number and its block's."""

    left: Pointer
    left_at: Value
    stride: int
    right: Pointer
    right_at: Value
    number: Value
    block: Value


def write_shapes(
    isa: Isa, memory: Pointer, heights: tuple[int, ...], words: int, row_bytes: int
) -> None:
    """Rows of a block's tiles, `words` of 32 bits in a left row and bytes in one of sums -> the
    bytes that set the tiles' shapes.
    """
    shapes: dict[int, tuple[int, int]] = {}
    for r, height in enumerate(heights):
        shapes[LEFT_TILE + r] = (height, words * WORD)
        shapes.update({sums_tile(r, c): (height, row_bytes) for c in range(PANEL_TILES)})
    shapes.update({tile: (words, row_bytes) for tile in range(RIGHT_TILE, TILES)})
    config = isa.intrinsics["tile_shapes"](shapes)
    memory.store(0, tir.const(0, "uint8", CONFIG_BYTES))
    for i in range(0, CONFIG_BYTES, WORD):
        word = int.from_bytes(config[i : i + WORD], "little", signed=True)
        if word:
            memory.store(i, tir.const(word))


def sums_tile(row: int, column: int) -> int:
    """The register of the sums of a row and a column of tiles."""
    return row * PANEL_TILES + column


class Products:
    """What is the same for all blocks of a task, whose tiles' shapes it sets by way of the head of
    the task's scratch memory; `multiply` emits one.
    """

    def __init__(
        self,
        b: Builder,
        device: Cpu,
        layout: Layout,
        heights: tuple[int, ...],
        near: Near,
        scratch: Pointer,
    ) -> None:
        self.b, self.isa, self.layout = b, device.isa, layout
        self.heights, self.near = heights, near
        self.mac = layout.mac
        self.line = device.core.line_bytes
        step_cycles = ROW_TILES * PANEL_TILES * self.mac.rows
        self.lead = 1 + ceil(device.core.l2_latency_cycles / step_cycles)
        """Steps from prefetching rows to loading them: until they come, and the one under way."""
        self._load_left = "tile_load_once" if near.once else "tile_load"
        write_shapes(self.isa, scratch, heights, layout.step // layout.quad, layout.row_bytes)
        one = (scratch + CONFIG_BYTES).view("int32")
        one.store(0, tir.const(1))
        self._do("tile_configure", scratch.address())
        self._one = b.let(one.load(), "one")  # for all that LLVM knows it may have changed

    def _do(self, name: str, *operands: Value) -> None:
        self.b.emit(self.isa.intrinsics[name](*operands))

    def opaque(self, count: int) -> Value:
        """A loop's extent that LLVM does not see through, lest it unrolls what must stay short."""
        return count if count == 1 else self._one * count

    def slots(self, tiles: int) -> int:
        """Places in a block where something is done beside the products."""
        each = len(self.heights) * tiles if self.layout.steps <= _FEW_STEPS else 1
        return self.layout.steps * each

    def release(self) -> None:
        """Give the tiles back."""
        self._do("tile_release")

    def multiply(
        self,
        left: Left,
        rows: tuple[Pointer, Value, Value],
        right: tuple[Pointer, Value],
        block: Value,
        sums: Pointer,
        tiles: int,
        bias: Pointer | None,
        between: Callable[[Value], None],
    ) -> None:
        """Sum all steps of a panel's nth block into memory: left rows (as of `Left.rows`) by the
        panel of `tiles` tiles that begins at a byte offset of `right`; sums begin with a row of
        `bias`, if there is one. `between` is emitted in every slot.
        """
        b, layout = self.b, self.layout
        self._begin(tiles, bias)
        memory, first, first_tail = rows
        panel, at = right
        size = tiles * self.layout.tile_bytes

        def step(source: Pointer, offset: Value, stride: int, number: Value) -> None:
            right_at = b.let(at + number * size)
            step = _Step(source, b.let(offset, "left"), stride, panel, right_at, number, block)
            self._step(step, tiles, sums, between)

        lines, columns = map(self.opaque, layout.taps)
        with b.serial(lines, "ky") as ky, b.serial(columns, "kx") as kx:
            further, further_tail = left.tap(ky, kx)
            tap = (ky * layout.taps[1] + kx) * layout.tap_steps
            here = b.let(first + further, "tap")
            if layout.full:
                with b.serial(self.opaque(layout.full), "k") as k:
                    number = b.let(tap + k, "step")
                    step(memory, here + k * layout.step, layout.stride, number)
            if layout.tail:
                number = b.let(tap + layout.full, "step")
                stride = layout.step * layout.problem.groups * layout.walk
                step(left.tails, first_tail + further_tail, stride, number)
        if layout.steps > 1:
            for r, c in product(range(len(self.heights)), range(tiles)):
                self._store(r, c, sums, tiles)

    def _begin(self, tiles: int, bias: Pointer | None) -> None:
        """Zeros, or the bias in every row: a row that is loaded again and again."""
        for r in range(len(self.heights)):
            for c in range(tiles):
                if bias is None:
                    self._do("tile_zero", sums_tile(r, c))
                else:
                    address = bias.address(c * self.mac.lanes)
                    self._do("tile_load", sums_tile(r, c), address, tir.const(0))

    def _step(
        self, step: _Step, tiles: int, sums: Pointer, between: Callable[[Value], None]
    ) -> None:
        """One step of k: right 0, left 0, product, right 1, product, left 1, two products."""
        apart = tir.const(step.stride * self.layout.problem.itemsize)
        few = self.layout.steps <= _FEW_STEPS
        above = slot = 0
        for r, height in enumerate(self.heights):
            for c in range(tiles):
                if r == 0:
                    address = step.right.address(step.right_at + c * self.layout.tile_bytes)
                    row_bytes = tir.const(self.layout.row_bytes)
                    self._do("tile_load", RIGHT_TILE + c, address, row_bytes)
                if c == 0:
                    address = step.left.address(step.left_at + above * step.stride)
                    self._do(self._load_left, LEFT_TILE + r, address, apart)
                tile = (sums_tile(r, c), LEFT_TILE + r, RIGHT_TILE + c)
                self.b.emit(self.mac.emit(*tile))
                if few:
                    between(step.number * (len(self.heights) * tiles) + slot)
                    slot += 1
                if self.layout.steps == 1:
                    self._store(r, c, sums, tiles)
            above += height
        self._prefetch(step, tiles)
        if not few:
            between(step.number)

    def _prefetch(self, step: _Step, tiles: int) -> None:
        """Prefetch into the nearest cache what a later step loads: of this block, or where its
        steps are few the same one of the next block.
        """
        layout = self.layout
        if self.near.left:
            ahead = self.lead * layout.step
            if layout.steps <= _FEW_STEPS:
                ahead = sum(self.heights) * step.stride
            for row in range(sum(self.heights)):
                step.left.prefetch(step.left_at + (ahead + row * step.stride))
        if self.near.right:
            size = tiles * self.layout.tile_bytes
            needed = self.b.when(tirx.EQ(step.block, 0)) if self.near.first else nullcontext()
            with needed:
                for line in range(0, size, self.line):
                    step.right.prefetch(step.right_at + (self.lead * size + line))

    def _store(self, row: int, column: int, sums: Pointer, tiles: int) -> None:
        """A tile of sums -> memory, where rows are `tiles` tiles wide."""
        row_bytes = tiles * self.layout.row_bytes
        at = sum(self.heights[:row]) * row_bytes + column * self.layout.row_bytes
        self._do("tile_store", sums_tile(row, column), sums.address(at), tir.const(row_bytes))

    def next_panel(
        self, right: Pointer, at: Value, block: Value, blocks: int, tiles: int, most: int
    ) -> Callable[[Value], None]:
        """A part of the panel after the one `at`, for every slot of one of `blocks` blocks: as
        much as it takes, but at most so many cache lines.
        """
        size, slots = PANEL_TILES * self.layout.strip_bytes, self.slots(tiles)
        lines = min(most, -(-size // (self.line * blocks * slots)))

        def fetch(number: Value) -> None:
            place = block * slots + number
            start = self.b.let(at + size + place * (lines * self.line), "next")
            for i in range(lines):
                right.prefetch(start + i * self.line, level=2)

        return fetch
