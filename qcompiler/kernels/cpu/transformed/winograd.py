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
the way. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates, refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices, sweep
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.blocking import Cut
from qcompiler.kernels.cpu.contraction.loops import segment, share_of
from qcompiler.kernels.cpu.contraction.microkernel import Left, Right, sums
from qcompiler.kernels.cpu.contraction.operands import Panels, Product, Run, product_of
from qcompiler.kernels.cpu.transformed.winograd_blocking import (
    Problem,
    Tiling,
    cycles,
    problems,
    product_step,
    row_step,
    scratch,
    slot_step,
    tilings,
)
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates


@candidates("conv")
def winograd(region: Region, device: Device) -> Iterable[Candidate] | Skip:
    """Tiles of some outputs along each axis, by as many products as these have inputs."""
    found = refuse(region) or _problems(region, device)
    if isinstance(found, Skip):
        return found
    product, problems = found
    seconds, lanes = device.core.seconds, product.mac.lanes

    def build(problem: Problem, tiling: Tiling) -> Kernel:
        return _Winograd(region, device, product, problem, tiling).kernel()

    return (
        Candidate(t, seconds(cycles(p, device, t, lanes)), partial(build, p, t))
        for p in problems
        for t in tilings(p, product, device)
    )


def _problems(region: Region, device: Device) -> tuple[Product, list[Problem]] | Skip:
    """The product of floats, and the region's problem for each pair of filters."""
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
    found = problems(root)
    if isinstance(found, Skip):
        return found
    if x.type.dims[-1] < product.mac.lanes // 2:
        return Skip("channels that fill less than half a vector")
    return product, list(found)


class _Winograd:
    """One kernel while it is emitted."""

    def __init__(
        self, region: Region, device: Device, product: Product, problem: Problem, tiling: Tiling
    ) -> None:
        self.product, self.problem, self.tiling = product, problem, tiling
        self.lanes = product.mac.lanes
        self.panels = Panels.of(problem.width, self.lanes, tiling.vectors)
        self.cut = Cut.of(problem.tiles, tiling.rows)
        self.d = Draft(self._name(region), region, device)
        self.b, self.m = self.d.b, self.d.m
        slots, core = tiling.block * self.cut.size, device.core
        self.row_step = row_step(core, problem)
        self.product_step = product_step(core, problem, slots)
        self.slot_step = slot_step(core, problem, self.panels.vectors, self.lanes)
        self.left_bytes, sums_bytes = scratch(core, problem, tiling, self.lanes)
        self.task_bytes = self.left_bytes + sums_bytes
        self.root = self.d.root
        self.x = self.d.pointers[self.root.operands[0]]
        self.w = self.d.pointers[self.root.operands[1]].view("float32")

    def _name(self, region: Region) -> str:
        p = self.problem
        filters = "x".join(f"{a.filter.outputs}f{a.filter.taps}" for a in (p.rows, p.columns))
        tile = f"{self.tiling.rows}x{self.tiling.vectors * self.lanes}"
        return f"winograd{filters}_{p.tiles}x{p.width}x{p.depth}_{tile}"

    def kernel(self) -> Kernel:
        """Emit all of it."""
        b, d, t, p = self.b, self.d, self.tiling, self.problem
        memory = d.scratch("float32")
        with b.parallel(t.tasks) as task:
            mine = b.let(task * (self.task_bytes // 4), "mine")
            self.left = memory + mine
            self.sums = memory + b.let(mine + self.left_bytes // 4, "sums")
            self.after = d.epilogue
            self._task(task // t.column_tasks, task % t.column_tasks)
        root = self.root
        return d.kernel(
            tasks=t.tasks,
            scratch_bytes=self.task_bytes * t.tasks,
            pack={d.region.inputs.index(root.operands[1]): self._pack},
            in_place=in_place_candidates(d.region),
            macs=root.type.size * p.depth * p.rows.filter.taps * p.columns.filter.taps,
        )

    def _pack(self, array: Array) -> Array:
        """w[*kernel, C, O] -> [panel][product][C][columns of the panel]."""
        p, lanes = self.problem, self.lanes
        taps = array.reshape(p.rows.filter.taps, p.columns.filter.taps, p.depth, p.width)
        made = p.columns.filter.weights(np.moveaxis(taps, 1, -1))
        made = p.rows.filter.weights(np.moveaxis(made, 0, -1))  # [C, O, columns, rows]
        padded = -(-p.width // lanes) * lanes
        whole = np.zeros((p.products, p.depth, padded), np.float32)
        whole[:, :, : p.width] = made.transpose(3, 2, 0, 1).reshape(p.products, p.depth, p.width)
        sizes = [self.panels.vectors] * self.panels.count
        sizes += [self.panels.vectors - 1] * self.panels.rest
        ends = np.cumsum(sizes) * lanes
        return np.concatenate(
            [whole[:, :, e - s * lanes : e].reshape(-1) for e, s in zip(ends, sizes, strict=True)]
        )

    # -- loops

    def _task(self, row_task: Value, column_task: Value) -> None:
        b, t = self.b, self.tiling
        begin, end = share_of(b, self.cut.pieces, row_task, t.row_tasks)
        self.mine = share_of(b, self.panels.panels, column_task, t.column_tasks)
        if isinstance(begin, int):
            blocks: Value = -(-(end - begin) // t.block)
        else:
            blocks = b.let(tirx.floordiv(end - begin + (t.block - 1), tir.const(t.block)), "blocks")
        with b.serial(blocks, "block") as i:
            first = b.let(begin + i * t.block, "first")
            last = b.let(tirx.Min(first + t.block, tir.const(0) + end), "last")
            self._tiles(first, last, self._spread)
            for run in self.panels.runs():
                with segment(b, self.mine, run.first, run.count, "panel") as panel:
                    nth = b.let(panel - run.first, "nth") if run.first else panel
                    self._multiply(first, last, run, nth)
                    self._tiles(first, last, partial(self._gather, run, nth))

    def _tiles(self, first: Value, last: Value, body: Callable[..., None]) -> None:
        """body(slot, image, row, column) for every tile of the units from `first` to `last`."""
        b, p, size = self.b, self.problem, self.cut.size
        with b.serial(last - first, "unit", first) as unit:
            begin, count = unit * size, size
            if self.cut.rest:
                begin = begin - tirx.Max(unit - self.cut.count, tir.const(0))
                count = b.let(
                    tirx.Select(unit < self.cut.count, tir.const(size), tir.const(size - 1)),
                    "tiles",
                )
            begin = b.let(begin, "begin")
            with b.serial(count, "tile") as i:
                slot = b.let((unit - first) * size + i, "slot")
                body(slot, *indices(b, begin + i, (p.images, p.rows.tiles, p.columns.tiles)))

    def _spread(self, slot: Value, image: Value, row: Value, column: Value) -> None:
        """One tile's inputs, transformed, to where the products read them."""
        b, p = self.b, self.problem
        axes = ((row, p.rows), (column, p.columns))
        y, x = (b.let(i * a.filter.outputs - a.before) for i, a in axes)
        start = (image * p.rows.size + y) * p.columns.size + x
        start = b.let(start * p.depth, "start")
        target = b.let(slot * self.row_step, "target")

        def place(i: int, j: int) -> Value:
            return start + (i * p.columns.size + j) * p.depth

        def plain() -> None:
            def load(i: int, j: int, c: Value, count: int) -> Value:
                return self._input(place(i, j) + c, count)

            self._spread_channels(target, load)

        def guarded() -> None:
            rows = [
                b.let(_within(y + i, p.rows.size), "row") for i in range(p.rows.filter.products)
            ]
            columns = [
                b.let(_within(x + j, p.columns.size), "column")
                for j in range(p.columns.filter.products)
            ]

            def load(i: int, j: int, c: Value, count: int) -> Value:
                inside = tirx.And(rows[i], columns[j])
                there = b.let(tirx.Select(inside, tir.const(count), tir.const(0)), "there")
                value = self._input(place(i, j) + c, there)
                zero = tir.const(0.0, "float32", self.lanes)
                return tirx.Select(tir.first_lanes(self.lanes, there), value, zero)

            self._spread_channels(target, load)

        inner = [c for i, a in axes for c in _between(i, a.inner, a.tiles)]
        self._either(inner, plain, guarded)

    def _input(self, at: Value, count: Value) -> Value:
        """A vector of channels, the first `count` of them, in float32."""
        raw = self.b.let(self.x.load_first(count, at, self.lanes), "input")
        return self.product.convert_left(raw, self.root.operands[0].dtype)

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

    def _spread_channels(self, target: Value, load: Callable[..., Value]) -> None:
        b, p = self.b, self.problem
        down, across = p.rows.filter, p.columns.filter

        def vector(c: Value, count: int) -> None:
            columns = [
                down.spread(b, [b.let(load(i, j, c, count), "input") for i in range(down.products)])
                for j in range(across.products)
            ]
            for i in range(down.products):
                made = across.spread(b, [column[i] for column in columns])
                for j, value in enumerate(made):
                    at = target + (i * across.products + j) * self.product_step + c
                    self.left.store(at, value)

        sweep(b, p.depth, self.lanes, vector)

    def _multiply(self, first: Value, last: Value, run: Run, nth: Value) -> None:
        """A panel's sums for all products of a block."""
        b, p, lanes = self.b, self.problem, self.lanes
        size, wide = self.cut.size, run.vectors * lanes
        core = self.d.device.core
        line, ahead = core.line_bytes // 4, core.prefetch_bytes // 4
        panel = (run.column + nth * wide) * (p.products * p.depth)
        panel = b.let(panel, "panel")
        with b.serial(p.products, "product") as n:
            weights = b.let(panel + n * (p.depth * wide), "weights")
            here = b.let(n * self.product_step, "here")
            for start, count, rows, _ in self.cut.runs():
                with segment(b, (first, last), start, count, "unit") as unit:
                    slot = b.let((unit - first) * size, "slot")
                    offsets = tuple(r * self.row_step for r in range(rows))
                    left = Left(self.left, offsets, (), p.depth, guarded=False)

                    def load(k: Value, v: int) -> Value:
                        at = weights + k * wide + v * lanes
                        if v * lanes % line == 0:
                            self.w.prefetch(at + ahead, level=2)  # hardware stops at a page's end
                        return self.w.load(at, lanes)

                    right = Right(run.vectors, load)
                    base = b.let(here + slot * self.row_step, "base")
                    registers = sums(b, self.product, left, base, right)
                    target = b.let(slot * self.slot_step + n * lanes, "target")
                    for r in range(rows):
                        for v in range(run.vectors):
                            at = target + (r * self.slot_step + v * p.products * lanes)
                            self.sums.store(at, registers[r * run.vectors + v])

    def _gather(
        self, run: Run, nth: Value, slot: Value, image: Value, row: Value, column: Value
    ) -> None:
        """One tile's sums -> its outputs."""
        b, p, lanes = self.b, self.problem, self.lanes
        start = b.let(run.column + nth * (run.vectors * lanes), "column")

        def vectors(first: int, number: int, count: int) -> None:
            with b.serial(number, "v", first) as v:
                at = b.let(slot * self.slot_step + v * (p.products * lanes), "at")
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
        b, p, lanes = self.b, self.problem, self.lanes
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
        pixel = b.let((image * p.rows.outputs + y) * p.columns.outputs + x, "pixel")

        def put(i: int, j: int) -> None:
            here = b.let(pixel + (i * p.columns.outputs + j), "pixel")
            value = Vec(self.m, values[i][j], "float32", lanes)
            self.d.put(self.after, self.after.row(here), here * p.width + n, n, count, value)

        places = [(i, j) for i in range(down.outputs) for j in range(across.outputs)]

        def all_() -> None:
            for place in places:
                put(*place)

        def some() -> None:
            for i, j in places:
                with b.when(tirx.And(y + i < p.rows.outputs, x + j < p.columns.outputs)):
                    put(i, j)

        full = [i < a.whole for i, a in ((row, p.rows), (column, p.columns)) if a.whole < a.tiles]
        self._either(full, all_, some)


def _within(index: Value, size: int) -> Value:
    return tirx.And(index >= 0, index < size)


def _between(index: Value, span: tuple[int, int], count: int) -> list[Value]:
    """Conditions under which an index below `count` lies in a span; none where it always does."""
    first, last = span
    return [index >= first] * (first > 0) + [index < last] * (last < count)
