"""Convolutions with stride 1 by fewer products: F(m, r) along both axes (winograd_filter.py).

for each task (a share of the tiles of m x m outputs, of the output channels, or of both)
  for each block of tiles
    left[product, tile, channel] = spread(inputs)          (36 products for 4 x 4 outputs of 3 x 3)
    for each panel of the weights                          (transformed when compiling)
      for each product
        sums[tile, product] = left[product] * weights[product]   (contraction/microkernel.py)
      for each tile
        store(epilogue(gather(sums)))

A block's spread inputs and a panel's sums stay in the second-level cache; channels are vectors all
the way. Where instructions take a lane of a vector, some channels of a unit's tiles are spread to a
stage in the first-level cache, and zipped from there (contraction/zipped.py). Source: Lavin and
Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates, refuse, too_large
from qcompiler.kernels.cpu.code.images import OpenImage, is_open
from qcompiler.kernels.cpu.code.loops import indices, sweep
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.counted import Tiles
from qcompiler.kernels.cpu.contraction.loops import segment, share_of
from qcompiler.kernels.cpu.contraction.microkernel import Left, Right, sums
from qcompiler.kernels.cpu.contraction.operands import Product, Run, product_of
from qcompiler.kernels.cpu.contraction.problem import problem_of
from qcompiler.kernels.cpu.contraction.zipped import COLUMNS, zip_rows
from qcompiler.kernels.cpu.transformed.winograd_blocking import (
    STAGED,
    Axis,
    Grid,
    Layout,
    cycles,
    grids,
    tilings,
)
from qcompiler.kernels.cpu.transformed.winograd_filter import Filter
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates
from qcompiler.ops.window import Window


@candidates("conv")
def winograd(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Tiles of some outputs along each axis, by as many products as these have inputs."""
    found = refuse(region) or _grids(region, device)
    if isinstance(found, Skip):
        return found
    product, grids = found

    def way(layout: Layout) -> Candidate:
        build = partial(_emitted, region, device, product, layout)
        seconds = device.core.seconds(cycles(layout, product, device))
        return Candidate(layout.tiling, seconds, build)

    return (
        way(Layout.of(g, t, device.core, product))
        for g in grids
        for t in tilings(g, product, device)
    )


def _grids(region: Region, device: Cpu) -> tuple[Product, list[Grid]] | Skip:
    """The product of floats, and the region's tiles for each pair of filters."""
    root = region.root
    assert root is not None
    x, w = root.operands
    if x.dtype not in ("float32", "bfloat16") or (w.dtype, root.dtype) != (x.dtype, "float32"):
        return Skip("neither float32 nor bfloat16")
    if root.int("compact"):
        return Skip("transformed weights take more bytes")
    product = product_of(device.isa, "float32", "float32", "float32")
    usual = product_of(device.isa, x.dtype, w.dtype, root.dtype)
    if product is None or product.mac.k != 1 or usual is None:
        return Skip("no product of float32")
    if tir.stored(x.dtype) != usual.left:
        return Skip(f"no product of {x.dtype} to be faster than")
    if not w.is_constant or any(w in n.operands for n in region.nodes if n is not root):
        return Skip("the weights are not constant, or read again as they are")
    if 0 in root.type.dims or root.int("pad_value"):
        return Skip("nothing to compute, or padding that is not zero")
    if reason := too_large(region):
        return reason
    problem = problem_of(root, product.mac.lanes, device.core)
    if isinstance(problem, Skip):
        return problem
    found = grids(problem)
    if isinstance(found, Skip):
        return found
    if x.type.dims[-1] < product.mac.lanes // 2:
        return Skip("channels that fill less than half a vector")
    whole = problem.channels % product.mac.lanes == 0
    zipped = product.zippable and whole and problem.width >= COLUMNS
    return replace(product, zipped=zipped), list(found)


def _emitted(region: Region, device: Cpu, product: Product, layout: Layout) -> Kernel:
    """What was decided -> the kernel."""
    p, t = layout.grid, layout.tiling
    filters = "x".join(f"{a.filter.outputs}f{a.filter.taps}" for a in (p.rows, p.columns))
    tile = f"{t.rows}x{t.vectors * layout.lanes}"
    d = Draft(f"winograd{filters}_{p.tiles}x{p.width}x{p.depth}_{tile}", region, device)
    memory = d.scratch("float32")
    with d.b.parallel(t.tasks) as task:
        _Task(d, product, layout, memory, task).run()
    return d.kernel(
        tasks=t.tasks,
        scratch_bytes=layout.task_size * 4 * t.tasks,
        pack={region.inputs.index(d.root.operands[1]): partial(_packed, layout)},
        in_place=in_place_candidates(region),
        macs=d.root.type.size * p.depth * p.rows.filter.taps * p.columns.filter.taps,
    )


def _packed(layout: Layout, array: Array) -> Array:
    """w[*kernel, C, O] -> [panel][product][C][columns of the panel]."""
    p, lanes, cut = layout.grid, layout.lanes, layout.panels.cut
    taps = array.reshape(p.rows.filter.taps, p.columns.filter.taps, p.depth, p.width)
    made = p.columns.filter.weights(np.moveaxis(taps, 1, -1))
    made = p.rows.filter.weights(np.moveaxis(made, 0, -1))  # [C, O, columns, rows]
    whole = np.zeros((p.products, p.depth, cut.length * lanes), np.float32)
    whole[:, :, : p.width] = made.transpose(3, 2, 0, 1).reshape(p.products, p.depth, p.width)
    ends = np.cumsum(cut.sizes)[:-1] * lanes
    return np.concatenate([part.reshape(-1) for part in np.split(whole, ends, axis=2)])


@dataclass(frozen=True)
class _Axis:
    """An axis as `winograd_blocking.Axis`, whose numbers a run may know."""

    size: Value
    outputs: Value
    before: int
    filter: Filter
    tiles: Value
    whole: Value
    inner: tuple[Value, Value]

    @staticmethod
    def of(b: Builder, axis: Axis, size: Value, outputs: Value) -> _Axis:
        """The same axis of another size, of which a run has so many outputs."""
        step, zero = axis.filter.outputs, tir.const(0)
        tiles = b.hold((outputs + (step - 1)) // step, "tiles")
        seen = tirx.Max(size + (axis.before - axis.filter.products), tir.const(-step))
        last = b.hold(tirx.floordiv(seen, tir.const(step)) + 1, "last")
        whole = b.hold(outputs // step, "whole")
        inner = zero + axis.inner[0], last
        return _Axis(size, outputs, axis.before, axis.filter, tiles, whole, inner)

    @staticmethod
    def known(axis: Axis) -> _Axis:
        """The same axis."""
        a = axis
        return _Axis(a.size, a.outputs, a.before, a.filter, a.tiles, a.whole, a.inner)


class _Task:
    """The code of one task while it is emitted."""

    def __init__(
        self, d: Draft, product: Product, layout: Layout, memory: Pointer, task: Value
    ) -> None:
        self.d, self.b, self.m, self.product, self.layout = d, d.b, d.m, product, layout
        self.grid, self.lanes, self.cut = layout.grid, layout.lanes, layout.cut
        self.x, weights = (d.pointers[i] for i in d.root.operands[:2])
        self.w = weights.view("float32")
        mine = d.b.let(task * layout.task_size, "mine")
        self.left = memory + mine
        self.sums = memory + d.b.let(mine + layout.sums_at, "sums")
        self.stage = memory + d.b.let(mine + layout.stage_at, "stage")
        self.epilogue = d.epilogue
        t = layout.tiling
        row_task, column_task = task // t.column_tasks, task % t.column_tasks
        self.rows, self.columns = _Axis.known(self.grid.rows), _Axis.known(self.grid.columns)
        self.parts: Tiles | None = None
        units: Value = self.cut.pieces
        if is_open(d.region):
            self.parts = self._counted()
            units = self.parts.count
        self.span = share_of(d.b, units, row_task, t.row_tasks)
        self.mine = share_of(d.b, layout.panels.panels, column_task, t.column_tasks)

    def _counted(self) -> Tiles:
        """The axes, and units of tiles, of images whose size a run knows."""
        root, p = self.d.root, self.grid
        x, w = root.operands
        image = OpenImage.of(self.d, Window.of(root, x.type.dims[1:-1], w.type.dims[:-2]))
        self.rows = _Axis.of(self.b, p.rows, image.height, image.rows)
        self.columns = _Axis.of(self.b, p.columns, image.width, image.columns)
        tiles = self.rows.tiles * self.columns.tiles * p.problem.images
        axes = zip(image.least, (p.rows, p.columns), strict=True)
        least = prod(-(-n // axis.filter.outputs) for n, axis in axes) * p.problem.images
        return Tiles.of(self.b, self.cut.size, p.tiles, tiles, least=least, few=True)

    # -- loops

    def run(self) -> None:
        """All blocks of the task."""
        b, t, (begin, end) = self.b, self.layout.tiling, self.span
        if isinstance(begin, int):
            blocks: Value = -(-(end - begin) // t.block)
        else:
            blocks = b.let(tirx.floordiv(end - begin + (t.block - 1), tir.const(t.block)), "blocks")
        with b.serial(blocks, "block") as i:
            first = b.let(begin + i * t.block, "first")
            last = b.let(tirx.Min(first + t.block, tir.const(0) + end), "last")
            if self.product.zipped:
                self._zip(first, last)
            else:
                self._tiles(first, last, self._spread)
            for run in self.layout.panels.runs():
                with segment(b, self.mine, run.first, run.count, "panel") as panel:
                    nth = b.let(panel - run.first, "nth") if run.first else panel
                    self._multiply(first, last, run, nth)
                    self._tiles(first, last, partial(self._gather, run, nth))

    def _tiles(self, first: Value, last: Value, body: Callable[..., None]) -> None:
        """body(slot, image, row, column) for every tile of the units from `first` to `last`."""
        b, p, size = self.b, self.grid, self.cut.size
        with b.serial(last - first, "unit", first) as unit:
            begin, count = unit * size, size
            if self.parts is not None:
                begin, several = self.parts.row_of(unit), self.parts
                high = tirx.Select(unit < several.tall, several.high, several.low)
                total = self.rows.tiles * self.columns.tiles * p.problem.images
                count = b.hold(tirx.Min(high, total - begin), "tiles")
            elif self.cut.rest:
                begin = begin - tirx.Max(unit - self.cut.count, tir.const(0))
                count = b.let(
                    tirx.Select(unit < self.cut.count, tir.const(size), tir.const(size - 1)),
                    "tiles",
                )
            begin = b.let(begin, "begin")
            with b.serial(count, "tile") as i:
                slot = b.let((unit - first) * size + i, "slot")
                dims = (p.problem.images, self.rows.tiles, self.columns.tiles)
                body(slot, *indices(b, begin + i, dims))

    def _spread(
        self,
        slot: Value,
        image: Value,
        row: Value,
        column: Value,
        channels: tuple[Value, Value] | None = None,
    ) -> None:
        """One tile's inputs, transformed, to where the products read them, or to the stage: all
        channels, or from one on so many whole vectors.
        """
        b, p, down, across = self.b, self.grid, self.rows, self.columns
        axes = ((row, down), (column, across))
        y, x = (b.let(i * a.filter.outputs - a.before) for i, a in axes)
        start = (image * down.size + y) * across.size + x
        start = b.let(start * p.depth + (channels[0] if channels else 0), "start")
        target = b.let(slot * self.layout.stage_row, "target")

        def place(i: int, j: int) -> Value:
            return start + (i * across.size + j) * p.depth

        def plain() -> None:
            def load(i: int, j: int, c: Value, count: int) -> Value:
                return self._input(place(i, j) + c, count)

            self._spread_channels(target, load, channels)

        def guarded() -> None:
            rows, columns = (
                [b.let(_within(at + i, a.size), "inside") for i in range(a.filter.products)]
                for at, a in ((y, down), (x, across))
            )

            def load(i: int, j: int, c: Value, count: int) -> Value:
                inside = tirx.And(rows[i], columns[j])
                there = b.let(tirx.Select(inside, tir.const(count), tir.const(0)), "there")
                value = self._input(place(i, j) + c, there)
                zero = tir.const(0.0, "float32", self.lanes)
                return tirx.Select(tir.first_lanes(self.lanes, there), value, zero)

            self._spread_channels(target, load, channels)

        inner = [c for i, a in axes for c in _between(i, a.inner, a.tiles)]
        self._either(inner, plain, guarded)

    def _input(self, at: Value, count: Value) -> Value:
        """A vector of channels, the first `count` of them, in float32."""
        raw = self.b.let(self.x.load_first(count, at, self.lanes), "input")
        return self.product.convert_left(raw, self.d.root.operands[0].dtype)

    def _either(
        self, conditions: list[Value] | None, usual: Callable[[], None], other: Callable[[], None]
    ) -> None:
        """`usual` if all conditions hold, else `other`."""
        if not conditions:
            usual()
            return
        with self.b.when(tirx.all(*conditions)):
            usual()
        with self.b.otherwise():
            other()

    def _spread_channels(
        self, target: Value, load: Callable[..., Value], channels: tuple[Value, Value] | None
    ) -> None:
        b, p = self.b, self.grid
        down, across = p.rows.filter, p.columns.filter

        def vector(c: Value, count: int) -> None:
            columns = [
                down.spread(b, [b.let(load(i, j, c, count), "input") for i in range(down.products)])
                for j in range(across.products)
            ]
            for i in range(down.products):
                made = across.spread(b, [column[i] for column in columns])
                for j, value in enumerate(made):
                    at = target + (i * across.products + j) * self.layout.stage_product + c
                    self.stage.store(at, value)

        if channels is None:
            sweep(b, p.depth, self.lanes, vector)
            return
        with b.serial(channels[1], "v") as v:
            at = b.let(v * self.lanes, "at")
            vector(at, self.lanes)

    def _zip(self, first: Value, last: Value) -> None:
        """The spread inputs of the tiles of each unit from `first` to `last`, side by side."""
        b, lanes, size = self.b, self.lanes, self.layout.cut.size * self.layout.row_step
        vectors, runs = self.grid.depth // lanes, self._runs()
        with b.serial(last - first, "unit", first) as unit:
            target = b.let((unit - first) * size, "target")
            with b.serial(-(-vectors // STAGED), "some") as i:
                begin = b.let(i * STAGED, "begin")
                count = b.let(tirx.Min(begin + STAGED, tir.const(vectors)) - begin, "vectors")
                spread = partial(self._spread, channels=(begin * lanes, count))
                self._tiles(unit, unit + 1, spread)
                for start, units, rows in runs:
                    here = tirx.And(unit >= start, unit < start + units)
                    with b.when(here) if len(runs) > 1 else nullcontext():
                        self._zip_staged(rows, target, begin, count)

    def _zip_staged(self, rows: int, target: Value, begin: Value, count: Value) -> None:
        """Some vectors of channels of a unit's tiles, from the stage to all products' operands."""
        b, layout, lanes = self.b, self.layout, self.lanes
        offsets = [r * layout.stage_row for r in range(rows)]
        step = self.product.lefts(rows) * self.product.zipped_vector
        with b.serial(self.grid.products, "product") as n:
            source = b.let(n * layout.stage_product, "source")
            to = b.let(target + n * layout.product_step + begin * (lanes * step), "to")
            with b.serial(count, "v") as v:
                one = self.stage + b.let(source + v * lanes, "one")
                other = self.left + b.let(to + v * (lanes * step), "other")
                zip_rows(b, self.product, one, offsets, other, lanes)

    def _multiply(self, first: Value, last: Value, run: Run, nth: Value) -> None:
        """A panel's sums for all products of a block."""
        b, p, lanes = self.b, self.grid, self.lanes
        size, wide = self.cut.size, run.vectors * lanes
        core = self.d.device.core
        line, distance = core.line_bytes // 4, core.prefetch_bytes // 4
        panel = (run.column + nth * wide) * (p.products * p.depth)
        panel = b.let(panel, "panel")
        with b.serial(p.products, "product") as n:
            weights = b.let(panel + n * (p.depth * wide), "weights")
            here = b.let(n * self.layout.product_step, "here")
            for start, count, rows in self._runs():
                with segment(b, (first, last), start, count, "unit") as unit:
                    slot = b.let((unit - first) * size, "slot")
                    offsets = tuple(r * self.layout.row_step for r in range(rows))
                    zipped = self.product.zipped
                    left = Left(self.left, offsets, (), p.depth, guarded=False, zipped=zipped)

                    def load(k: Value, v: int) -> Value:
                        at = weights + k * wide + v * lanes
                        if v * lanes % line == 0:
                            self.w.prefetch(
                                at + distance, level=2
                            )  # hardware stops at a page's end
                        return self.w.load(at, lanes)

                    right = Right(run.vectors, load)
                    base = b.let(here + slot * self.layout.row_step, "base")
                    registers = sums(b, self.product, left, base, right)
                    target = b.let(slot * self.layout.slot_step + n * lanes, "target")
                    for r in range(rows):
                        for v in range(run.vectors):
                            at = target + (r * self.layout.slot_step + v * p.products * lanes)
                            self.sums.store(at, registers[r * run.vectors + v])

    def _runs(self) -> list[tuple[Value, Value, int]]:
        """(first unit, units, tiles of each) of the runs of equal ones."""
        runs = self.cut.runs() if self.parts is None else self.parts.runs(self.b)
        return [(first, count, size) for first, count, size, _ in runs]

    def _gather(
        self, run: Run, nth: Value, slot: Value, image: Value, row: Value, column: Value
    ) -> None:
        """One tile's sums -> its outputs."""
        b, p, lanes = self.b, self.grid, self.lanes
        start = b.let(run.column + nth * (run.vectors * lanes), "column")

        def vectors(first: int, number: int, count: int) -> None:
            with b.serial(number, "v", first) as v:
                at = b.let(slot * self.layout.slot_step + v * (p.products * lanes), "at")
                self._outputs(at, image, row, column, b.let(start + v * lanes, "n"), count)

        if run.tail == lanes:
            vectors(0, run.vectors, lanes)
            return
        if run.vectors > 1:
            vectors(0, run.vectors - 1, lanes)
        vectors(run.vectors - 1, 1, run.tail)

    def _outputs(
        self, at: Value, image: Value, row: Value, column: Value, n: Value, count: int
    ) -> None:
        b, p, lanes = self.b, self.grid, self.lanes
        down, across = p.rows.filter, p.columns.filter
        made = []
        for j in range(across.products):
            held = [
                b.let(self.sums.load(at + (i * across.products + j) * lanes, lanes), "product")
                for i in range(down.products)
            ]
            made.append(down.gather(b, held))
        values = [across.gather(b, [part[i] for part in made]) for i in range(down.outputs)]
        y, x = b.let(row * down.outputs, "y"), b.let(column * across.outputs, "x")
        rows, columns = self.rows, self.columns
        pixel = b.let((image * rows.outputs + y) * columns.outputs + x, "pixel")

        def put(i: int, j: int) -> None:
            here = b.let(pixel + (i * columns.outputs + j), "pixel")
            value = Vec(self.m, values[i][j], "float32", lanes)
            self.d.put(self.epilogue, self.epilogue.row(here), here * p.width + n, n, count, value)

        places = [(i, j) for i in range(down.outputs) for j in range(across.outputs)]

        def all_() -> None:
            for place in places:
                put(*place)

        def some() -> None:
            for i, j in places:
                with b.when(tirx.And(y + i < rows.outputs, x + j < columns.outputs)):
                    put(i, j)

        axes = ((row, rows), (column, columns))
        full = [i < a.whole for i, a in axes if not _is_known(a.whole, a.tiles)]
        self._either(full, all_, some)


def _within(index: Value, size: Value) -> Value:
    return tirx.And(index >= 0, index < size)


def _is_known(limit: Value, count: Value) -> bool:
    """Is every index below a count known to be below a limit?"""
    return isinstance(limit, int) and limit >= count


def _between(index: Value, span: tuple[Value, Value], count: Value) -> list[Value]:
    """Conditions under which an index below `count` lies in a span; none where it always does."""
    first, last = span
    known = isinstance(first, int) and first <= 0
    return [index >= first] * (not known) + [index < last] * (not _is_known(last, count))
