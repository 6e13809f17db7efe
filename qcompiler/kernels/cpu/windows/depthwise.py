"""conv regions of one filter a channel -> TIR: vectors of channels, tiles of output columns.

for each task (a share of the output rows)
  for each block of channels                     (one vector load wide)
    for each tile of columns in the row
      for each input column that the tile reads  (once)
        sums[column] += input column * weights   for every output column and tap that uses it
      store(epilogue(sums))

Floats multiply one kernel row at a time, float16 with short sums where the instruction set has such
a product. Integers take four kernel rows at once: the bytes of four
input rows are interleaved, so that each lane of a four-way byte product holds one channel's column,
and all output columns that use it share that work. If an instruction multiplies bytes to 16 bits,
but none four ways, bytes are multiplied without interleaving and added in 16 bits while sums
certainly fit. Columns outside the image are known at compile time; where a window leaves the image
at the top or the bottom, the same code reads missing rows from a line of padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates, refuse
from qcompiler.kernels.cpu.code.epilogue import store
from qcompiler.kernels.cpu.code.images import OpenImage, is_open, least
from qcompiler.kernels.cpu.code.interleave import repacked
from qcompiler.kernels.cpu.code.loops import divided, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.blocking import powers_of_two
from qcompiler.kernels.cpu.contraction.operands import (
    Product,
    bias_of,
    product_of,
    rounded_bias,
)
from qcompiler.kernels.cpu.windows.depthwise_columns import Columns
from qcompiler.kernels.cpu.windows.depthwise_filters import (
    Filters,
    Shape,
    filters_of,
    packed_rows,
)
from qcompiler.kernels.cpu.windows.depthwise_sums import Block, Sums
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_GUARD = 64
"""Bytes past a line that a vector may access."""
_NS_EACH_VECTOR_TAP = 0.6
"""The reference core's time for one tap of a vector of sums, including loads and interleaving;
decides how many tasks share the work."""
_NEAR = 0.5
"""Fraction of that time if lines stay in the first-level cache: measured 0.3 to 0.5 (3 x 3 and
5 x 5, 16 to 384 channels, float32 and bfloat16)."""
_BEGIN = 0.1
"""Fraction of a column's time that each tile costs: its first and last inputs are read twice."""
_MOST_COLUMNS = 8
_MOVING = 4
"""Registers to load and interleave a column with."""


@dataclass(frozen=True)
class Tile:
    """Number of output columns in a tile; `kept`: input columns that the next tile reads, too, stay
    interleaved in registers.
    """

    columns: int
    kept: bool = False


@candidates("conv")
def depthwise(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """One input channel a group and one filter for it; any window, stride and padding."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    x, w = root.operands
    channels = x.type.dims[-1]
    if not w.is_constant:
        return Skip("the filters are not constant, and they are read packed")
    if root.int("group") != channels or channels == 1 or root.type.dims[-1] != channels:
        return Skip("not one filter a channel")
    if root.dtype not in ("float32", "int32"):
        return Skip(f"sums of {root.dtype}")
    if x.type.rank not in (3, 4):
        return Skip(f"{x.type.rank - 2} spatial dimensions")
    if 0 in root.type.dims:
        return Skip("nothing to compute")
    integer = root.dtype == "int32"
    product = None
    if integer:
        fit = region.known(w).pairs_fit
        product = product_of(device.isa, x.dtype, w.dtype, root.dtype, packed=fit)
    if integer and product is None:
        return Skip(f"no product of {x.dtype} and {w.dtype}")
    shape = Shape.of(region)
    filters = filters_of(region, device, shape, product)
    parts = min(filters.block // filters.lanes, -(-channels // filters.lanes))
    most = device.isa.registers // 2 // parts
    seconds = _seconds(shape, product, device) / (2 if filters.short else 1)
    build = partial(_emitted, region, device, filters)
    tiles = [Tile(n) for n in range(max(2, min(_MOST_COLUMNS, most)), 1, -1)]
    if is_open(region):
        tiles = tiles[-3:]  # a row of fewer columns than a tile has is computed one by one
    else:
        tiles += [Tile(n, kept=True) for n in _keeping(filters, device)]
    return (
        Candidate(t, seconds * (1 + (0 if t.kept else _BEGIN) / t.columns), partial(build, t))
        for t in tiles
    )


def _keeping(filters: Filters, device: Cpu) -> list[int]:
    """Columns of tiles that keep interleaved input, the best first: where an instruction to move is
    as dear as one to multiply, and all weights, sums, and what is kept fit the registers.
    """
    shared, isa = filters.shared, device.isa
    if not filters.interleaves or "again" not in isa.intrinsics or shared < 1:
        return []
    parts = filters.block // filters.lanes
    held = parts * (filters.groups * (filters.shape.window.kernel[1] + shared))
    return [n for n in (3, 2) if held + parts * n + _MOVING <= isa.registers]


def _seconds(shape: Shape, product: Product | None, device: Cpu) -> float:
    """Predicted seconds of the slowest task, whatever its tiles. Small work counts as shared even
    if it is not: kernels that share it lose as much by waiting, which no model counts.
    """
    vectors = shape.images * shape.rows * shape.columns * -(-shape.channels // device.isa.lanes(4))
    ns = device.core.product_ns(_NS_EACH_VECTOR_TAP * vectors * prod(shape.window.kernel[:2]))
    ns *= _NEAR / (4 if product else 1)
    return 1e-9 * ns / min(device.threads, shape.images * shape.rows)


def _emitted(region: Region, device: Cpu, filters: Filters, tile: Tile) -> Kernel:
    """What was decided -> the kernel."""
    shape = filters.shape
    rounded = dict.fromkeys(rounded_bias(region, filters.sums), "float16")
    d = Draft(_kind(shape, region), region, device, packed=rounded)
    ns = _NS_EACH_VECTOR_TAP * d.root.type.size / filters.lanes * filters.taps
    ns /= 4 if filters.product else 1
    count = tasks(device, device.core.product_ns(ns), shape.images * shape.rows)
    x, w = d.root.operands
    line_bytes = device.core.whole_lines(shape.width * shape.channels * tir.bits(x.dtype) // 8)
    line_bytes += _GUARD
    scratch = d.scratch() if shape.padded_rows or is_open(region) else None
    with d.b.parallel(count) as task:
        mine = scratch and scratch + d.b.let(task * line_bytes, "mine")
        one = _Task(d, filters, tile, mine)
        total = shape.images * one.rows
        begin = d.b.let(task * total // count, "begin")
        end = d.b.let((task + 1) * total // count, "end")
        with d.b.serial(end - begin, "row", begin) as row:
            one.row(row)
    return d.kernel(
        tasks=count,
        scratch_bytes=line_bytes * count if scratch else 0,
        pack={**packed_rows(region, filters), region.inputs.index(w): filters.pack},
        in_place=() if d.is_counted else in_place_candidates(region),  # columns are made twice
        macs=d.root.type.size * filters.taps,
    )


class _Task:
    """The code of one task while it is emitted."""

    def __init__(self, d: Draft, filters: Filters, tile: Tile, scratch: Pointer | None) -> None:
        self.d, self.b, self.isa, self.filters, self.tile = d, d.b, d.isa, filters, tile
        self.s = filters.shape
        self.image = OpenImage.of(d, filters.shape.window) if is_open(d.region) else None
        self.height: Value = self.s.height
        self.rows: Value = self.s.rows
        self.outputs: Value = self.s.columns
        self.line: Value = self.s.width * self.s.channels
        if self.image is not None:
            self.height, self.rows = self.image.height, self.image.rows
            self.outputs = self.image.columns
            self.line = self.b.let(self.image.width * self.s.channels, "line")
        self.x, self.summed = d.root.operands[0], bias_of(d.region)[0]
        self.padding = scratch and scratch.view(self.x.dtype)
        if self.padding is not None:
            self._fill(self.padding)
        self.fused = d.writing(self.summed)  # loads scalars here, once
        self.sums = Sums(d, filters, tile.kept)

    # -- loops

    def row(self, row: Value) -> None:
        """An output row."""
        s, b = self.s, self.b
        image, y = divided(b, row, self.rows) if s.images > 1 else (tir.const(0), row)
        first = b.let(y * s.window.strides[0] - s.top, "first")
        origin, lines = self._lines(image, first)
        low, high = s.inside()

        def tiles(block: Block) -> None:
            def tile(x: Value, size: int, left: int | None) -> None:
                """`left`: the first input column, if known at compile time."""
                column = x * s.window.strides[1] - s.left
                base = b.let(origin + column * s.channels + block.channel, "base")
                known = (lambda j: True) if left is None else (lambda j: 0 <= left + j < s.width)
                columns = Columns(lines, base, s.channels, known, left == -s.left)
                self._tile(columns, row, x, size, block)

            def edge(x: Value, size: int, left: bool, right: bool) -> None:
                """A tile of which only a run knows what is in the image at these ends of it."""
                assert self.image is not None
                assert self.padding is not None
                width = self.image.width
                column = b.let(x * s.window.strides[1] - s.left, "column")
                base = b.let(origin + column * s.channels + block.channel, "base")
                beyond = self.sums.reach(size) - (s.window.pads[1] or (0, 0))[1]

                def known(j: int) -> Value:
                    tests = [column >= -j] * left + [column < width - j] * (right and j >= beyond)
                    return tirx.all(*tests) if tests else True

                columns = Columns(lines, base, s.channels, known, padding=self.padding)
                self._tile(columns, row, x, size, block)

            self.sums.begin(block)
            if self.image is None:
                self._tiles(tile, max(low, int(self.tile.kept)), high)
            else:
                self._open_tiles(tile, edge, low)

        self._each_block(tiles)

    def _open_tiles(
        self,
        tile: Callable[[Value, int, int | None], None],
        edge: Callable[[Value, int, bool, bool], None],
        low: int,
    ) -> None:
        """Tiles over a row of as many columns as a run has: one at each edge that windows reach
        across, others between, of which the last begins earlier where it would reach across one.
        """
        b, s, size, image = self.b, self.s, self.tile.columns, self.image
        assert image is not None
        count, zero, stride = image.columns, tir.const(0), s.window.strides[1]
        after = (s.window.pads[1] or (0, 0))[1]
        whole = tirx.floordiv(image.width + (s.left - s.reach[1]), tir.const(stride)) + 1
        high = b.hold(tirx.Min(whole, count), "high")  # columns whose windows end in the image

        def in_tiles() -> None:
            first = size if low else 0
            if low:
                tile(zero, size, -s.left)
            last = tirx.Max(count - size, tir.const(first)) if after else high
            with b.serial(b.hold((last - first + (size - 1)) // size, "tiles"), "x") as i:
                tile(b.let(tirx.Min(i * size + first, high - size), "column"), size, None)
            if after:
                edge(b.let(count - size, "column"), size, False, True)

        if all(self._fits(n, low) for n in range(least(self.d.region)[1], s.width + 1)):
            in_tiles()
            return
        fits = b.let(tirx.all(high >= low + size, count - high <= size), "fits")
        if low > size:  # more columns at the left edge than a tile has
            fits = tirx.const(False, "bool")
        with b.when(fits):
            in_tiles()
        with b.otherwise(), b.serial(count, "x") as x:
            edge(x, 1, True, True)

    def _fits(self, width: int, low: int) -> bool:
        """Do tiles fit into a row of so many pixels, with one at an edge at most?"""
        s, stride = self.s, self.s.window.strides[1]
        around = sum(s.window.pads[1] or (0, 0))
        count = (width + around - s.reach[1]) // stride + 1
        high = min((width + s.left - s.reach[1]) // stride + 1, count)
        size = self.tile.columns
        return low + size <= high and max(low, count - high) <= size

    def _lines(self, image: Value, first: Value) -> tuple[Value, tuple[Pointer, ...]]:
        """The input rows of an output row, from row `first` on: their offset in the pointers, and a
        pointer for each.
        """
        s, b, x = self.s, self.b, self.d.pointers[self.x]
        line, height = self.line, self.height
        steps = [i * s.window.dilations[0] for i in range(s.window.kernel[0])]
        start = b.let((image * height + first) * line, "start")
        if self.padding is None:
            return start, tuple(x + tir.const(i * line) for i in steps)
        found = []
        for i in steps:
            there = tirx.all(first >= -i, first < height - i)
            found.append(b.either(there, x + (start + i * line), self.padding, "line"))
        return tir.const(0), tuple(found)

    def _fill(self, padding: Pointer) -> None:
        """Fill a line of padding."""
        lanes = self.isa.vector_bytes * 8 // tir.bits(self.x.dtype)
        value = tir.const(self.d.root.int("pad_value"), padding.dtype, lanes)

        def put(at: Value, count: int) -> None:
            padding.store_first(count, at, value)

        sweep(self.b, self.s.width * self.s.channels, lanes, put)

    def _tiles(self, tile: Callable[[Value, int, int | None], None], low: int, high: int) -> None:
        """Tiles over a row: unrolled at the edges, in a loop between."""
        s, at, most = self.s, 0, self.tile.columns
        stride = s.window.strides[1]
        while at < min(low, s.columns):
            size = min(most, s.columns - at)
            tile(tir.const(at), size, at * stride - s.left)
            at += size
        middle = max((high - at) // most, 0)
        if middle:
            with self.b.serial(middle, "x") as i:
                tile(self.b.let(i * most + at, "column"), most, None)
            at += middle * most
        while at < s.columns:
            size = min(most, s.columns - at)
            tile(tir.const(at), size, at * stride - s.left)
            at += size

    def _each_block(self, body: Callable[[Block], None]) -> None:
        """Every block of channels, the last one with the rest."""
        width, size = self.filters.block, self.filters.block_size
        whole, rest = divmod(self.s.channels, width)
        if whole:
            with self.b.serial(whole, "block") as i:
                body(Block(self.b.let(i * width, "c"), width, self.b.let(i * size, "w")))
        if rest:
            body(Block(tir.const(whole * width), rest, tir.const(whole * size)))

    def _tile(self, columns: Columns, row: Value, x: Value, size: int, block: Block) -> None:
        """`size` output columns of one block, through the elementwise nodes to memory."""
        lanes, count = self.filters.lanes, block.count
        sums, parts = self.sums.of(columns, size, block), -(-count // lanes)
        for t in range(size):
            pixel = self.b.let(row * self.outputs + (x + t), "pixel")
            place = self.fused.row(pixel)
            first = 0
            for several in powers_of_two(parts):
                width = several * lanes
                held = tir.concat([sums[t * parts + first + p] for p in range(several)])
                value = Vec(self.d.m, self.b.let(held, "held"), self.sums.dtype, width)
                at = self.b.let(block.channel + first * lanes, "n")
                there = min(width, count - first * lanes)
                made = self.fused.at(place, at, width, there, {self.summed: value})
                if self.filters.unpacked and count == self.filters.block:
                    made = Vec(self.d.m, repacked(made.expr), made.dtype, width)
                store(self.d.m, self.d.out, pixel * self.s.channels + at, made, there)
                first += several


def _kind(shape: Shape, region: Region) -> str:
    root = region.root
    assert root is not None
    x, w = (i.dtype.replace("uint", "u").replace("int", "i") for i in root.operands)
    height, width = shape.window.kernel
    size = f"{shape.rows}x{shape.columns}x{shape.channels}s{shape.window.strides[1]}"
    return f"depthwise{height}x{width}_{x.replace('float', 'f')}{w.replace('float', 'f')}_{size}"
