"""conv or matmul on an instruction set with tile registers -> a TIR kernel.

Owns every contraction for which there is a `TileMac`; other generators own those of vectors.

for each task (a share of the parts, of the panels, or of both)
  set the tiles' shapes
  for each part (some output lines of an image)
    copy the left operand's rows if they do not lie in even steps   (layout.py, left.py)
    for each panel of the right operand and block of rows
      sums = block * panel, in tiles                                (block.py)
        and between its steps: store(epilogue(the block before))

The epilogue of a block runs on the vector unit while the tile unit multiplies the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import in_place_candidates, refuse
from qcompiler.kernels.cpu.code.epilogue import Fused, store
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.math import TirMath
from qcompiler.kernels.cpu.code.tails import Tails
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.direct import direct, least
from qcompiler.kernels.cpu.contraction.problem import Batch
from qcompiler.kernels.cpu.matrix.block import HEAD_BYTES, SUMS_BYTES, Blocks, Products
from qcompiler.kernels.cpu.matrix.left import Left, left_scratch
from qcompiler.kernels.cpu.matrix.model import (
    PREFETCH_LINES,
    Choice,
    finish_cycles,
    near,
    priced,
    vector_cycles,
)
from qcompiler.kernels.cpu.matrix.problem import (
    Problem,
    constant_bias_of,
    key_of,
    problem_of,
    tile_mac,
)
from qcompiler.kernels.cpu.matrix.right import PANEL_TILES, Panels, RightPacker, pack
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_FEW_BLOCKS = 16
"""With more blocks than this a panel's next one is fetched in no time."""


@candidates("conv", "matmul")
def tiles(region: Region, device: Device) -> Iterable[Candidate] | Skip:
    """Sums in tile registers, 32 rows by 32 columns."""
    root = region.root
    assert root is not None
    problem = refuse(region) or _problem(region, root, device)
    if isinstance(problem, Skip):
        return problem
    summed = (root, constant_bias_of(region)[0])
    finish = device.core.cycles(finish_cycles(n for n in region.nodes if n not in summed))

    def build(choice: Choice) -> Kernel:
        return Tiles(region, device, choice).kernel()

    mine, theirs = _vectors(region, device, vector_cycles(problem, device, finish))

    def seconds(cycles: float) -> float:
        return device.core.seconds(cycles / mine * theirs)

    found = priced(problem, device, finish)
    return (Candidate(c.knobs, seconds(cost.total), partial(build, c)) for cost, c in found)


def _vectors(region: Region, device: Device, mine: float) -> tuple[float, float]:
    """Cycles of vector products of the region, by this model and by that of the other kernels. The
    two were fitted on different machines: this brings their seconds to one scale.
    """
    found = direct(region, device)
    theirs = inf if isinstance(found, Skip) else least(*found, device)
    return (mine, theirs) if isfinite(mine) and isfinite(theirs) else (1.0, 1.0)


def _problem(region: Region, root: Node, device: Device) -> Problem | Skip:
    """A region -> its root's problem, or why tiles are no use for it."""
    mac = tile_mac(device.isa, root)
    if mac is None:
        return Skip(f"no tile product of {' and '.join(i.dtype for i in root.operands)}")
    if any(i in region.nodes for i in root.operands):
        return Skip("elementwise nodes before the product")
    problem = problem_of(root, mac)
    if isinstance(problem, Skip):
        return problem
    if problem.groups > 1 and problem.channels == 1:
        return Skip("one channel a group")
    if not problem.constant and (problem.groups > 1 or problem.kernel != (1, 1)):
        return Skip("a window's weights that only running the model tells")
    readers = [i for n in region.nodes for i in n.operands if i is problem.right]
    if problem.constant and len(readers) > 1:
        return Skip("the weights are read as they are, too")
    return problem


@dataclass(frozen=True)
class _Panels:
    """A task's panels of so many `tiles`: from `begin` up to `stop`, `each` in a group."""

    tiles: int
    each: int
    begin: Value
    stop: Value


@dataclass(frozen=True)
class _Part:
    """Output lines that a task works on: from line `start` of an image, rows from `fresh` on are
    not done yet; its first output pixel, and byte offset of its right matrices.
    """

    start: Value
    fresh: Value
    pixel: Value
    matrix: Value


@dataclass(frozen=True)
class _Block:
    """A block of rows by a panel: its first row, the first that is not done yet, and column."""

    group: Value
    block: Value
    row: Value
    fresh: Value
    column: Value
    right: Value


class Tiles:
    """One kernel while it is emitted."""

    def __init__(self, region: Region, device: Device, choice: Choice) -> None:
        self.region, self.device, self.choice = region, device, choice
        self.layout = choice.layout
        self.problem = p = choice.layout.problem
        self.panels = Panels.of(self.layout)
        self.blocks = Blocks.of(self.layout.rows(choice.lines), p.mac.rows)
        self.heights = self.blocks.heights(p.mac.rows)
        buffers = 2 if self.layout.steps == 1 else 1
        self.left_at = HEAD_BYTES + buffers * SUMS_BYTES
        self.right_at = self.left_at + left_scratch(device.core, self.layout, choice.lines)
        packed = 0 if p.constant else p.groups * self.panels.matrix_bytes
        self.task_bytes = self.right_at + packed
        self.b = Builder(self._name(), Tails.of(device.isa))

    def kernel(self) -> Kernel:
        """Emit all of it."""
        b, region, p = self.b, self.region, self.problem
        packed = {p.right} if p.constant else set()
        self.pointers = {
            n: b.pointer(f"in{i}", "uint8" if n in packed else n.dtype)
            for i, n in enumerate(region.inputs)
        }
        self.out = b.pointer("out", region.output.dtype)
        scratch = b.pointer("scratch", "uint8")
        with b.parallel(self.choice.tasks) as task:
            self.scratch = scratch + b.let(task * self.task_bytes, "mine")
            self._task(task)
        right = region.inputs.index(p.right)
        return Kernel(
            name=b.name,
            func=b.function(),
            pack={right: self._pack} if p.constant else {},
            scratch_bytes=self.task_bytes * self.choice.tasks,
            tasks=self.choice.tasks,
            macs=p.macs,
            in_place=in_place_candidates(self.region),
        )

    def _name(self) -> str:
        p = self.problem
        kernel = "x".join(map(str, p.kernel)) if p.root.op == "conv" else ""
        left, right, _ = key_of(p.root) or ("", "", "")
        shape = f"{p.images * p.lines * p.columns}x{p.width * p.groups}x{p.depth}"
        after = [n.op.lower() for n in self.region.nodes if n is not p.root][:4]
        return "_".join([f"{p.root.op}{kernel}", left + right, shape, "tiles", *after])

    def _pack(self, array: Array) -> Array:
        return pack(self.panels, self.problem.matrices(array))

    # -- loops

    def _task(self, task: Value) -> None:
        b, p, choice = self.b, self.problem, self.choice
        self.summed, self.bias = constant_bias_of(self.region)
        nodes = [n for n in self.region.nodes if n not in (p.root, self.summed)]
        m = TirMath(b, self.device.isa)
        self.fused = Fused(
            m, self.region, nodes, self.region.output, self.pointers, given=(self.summed,)
        )
        last = self.region.output
        self.paired = last.op == "quantize" and "quantize" in self.device.isa.intrinsics
        self.products = Products(
            b, self.device, self.layout, self.panels, self.heights, near(choice, self.device)
        )
        self.sums = self.scratch + HEAD_BYTES
        self.left = Left(
            b,
            self.device,
            self.layout,
            choice.lines,
            self.pointers[p.left],
            self.scratch + self.left_at,
        )
        self.right = self.pointers[p.right] if p.constant else self.scratch + self.right_at
        self.products.configure(self.scratch)
        self.left.begin()
        row_task, column_task = task // choice.column_tasks, task % choice.column_tasks
        first, end = _share(b, p.images * choice.parts, row_task, choice.row_tasks)
        self.mine = [
            _Panels(tiles, each, *_share(b, p.groups * each, column_task, choice.column_tasks))
            for tiles, each in ((PANEL_TILES, self.panels.wide), (1, self.panels.narrow))
            if each
        ]
        with b.serial(end - first, "unit", first) as unit:
            part = self._part(unit, first)
            for panels in self.mine:
                self._pipeline(part, panels)
        self.products.release()

    def _part(self, unit: Value, first: Value) -> _Part:
        """A unit of a task's rows -> the part; its operands are copied where that is needed."""
        b, p, choice = self.b, self.problem, self.choice
        image, part = _split(b, unit, choice.parts)
        start, fresh = part * choice.lines, tir.const(0)
        if p.lines % choice.lines:  # the last part begins where it ends with the image
            start = b.let(tirx.Min(part * choice.lines, tir.const(p.lines - choice.lines)), "start")
            fresh = b.let((part * choice.lines - start) * self.layout.pitch, "fresh")
        start = b.let(start, "start")
        left = _offset(b, image, p.left_images)
        self.left.prepare(left, start)
        matrix = self._matrix(image, tirx.Or(tirx.EQ(part, 0), tirx.EQ(unit, first)))
        pixel = b.let((image * p.lines + start) * p.columns, "pixel")
        return _Part(start, fresh, pixel, matrix)

    def _matrix(self, image: Value, changed: Value) -> Value:
        """Byte offset of an image's packed right matrices; of one that is no constant this task's
        panels are packed, if the image has changed.
        """
        b, p = self.b, self.problem
        source = _offset(b, image, p.right_images)
        if p.constant:
            return b.let(source // (p.channels * p.width) * self.panels.matrix_bytes, "matrix")
        packer = RightPacker(b, self.panels, self.pointers[p.right], self.right)
        with b.when(changed) if self.choice.parts > 1 else nullcontext():
            for mine in self.mine:
                with b.serial(mine.stop - mine.begin, "panel", mine.begin) as panel:
                    at = panel if mine.tiles == PANEL_TILES else tir.const(self.panels.wide)
                    packer.panel(source, at, mine.tiles)
        return tir.const(0)

    def _pipeline(self, part: _Part, panels: _Panels) -> None:
        """All blocks of a task's panels, each finished within the next one."""
        b, count, tiles = self.b, self.blocks.count, panels.tiles
        total = (panels.stop - panels.begin) * count
        if isinstance(total, int):
            some: AbstractContextManager[None] = nullcontext()
            if not total:
                return
        else:
            total = b.let(total, "total")
            some = b.when(total > 0)

        def at(turn: Value) -> _Block:
            panel, block = _split(b, turn, count)
            return self._block(part, panels, b.let(panel + panels.begin, "panel"), block)

        def sums(turn: Value) -> Pointer:
            buffer: Pointer = self.sums
            if self.products.buffers > 1:
                buffer = buffer + b.let(turn % self.products.buffers * SUMS_BYTES, "buffer")
            return buffer

        with some:
            self._multiply(at(tir.const(0)), tiles, sums(tir.const(0)), lambda slot: None)
            if not isinstance(total, int) or total > 1:
                with b.serial(total - 1, "turn", 1) as turn:
                    before = at(turn - 1)
                    between = self._finishing(part, before, sums(turn - 1), tiles)
                    self._multiply(at(turn), tiles, sums(turn), between)
            last = at(b.let(total - 1, "last"))
            made = sums(total - 1)
            with b.serial(self.products.turns(self.blocks.size), "row") as row:
                self._finish(part, last, made, row, tiles)

    def _block(self, part: _Part, panels: _Panels, panel: Value, block: Value) -> _Block:
        """The nth panel of those with so many tiles, and a block of the part's rows."""
        b, p = self.b, self.problem
        group, nth = _split(b, panel, panels.each)
        if panels.tiles < PANEL_TILES:  # behind the wide ones
            nth = tir.const(self.panels.wide)
        rows, size = self.blocks.rows, self.blocks.size
        row = fresh = b.let(block * size, "row")
        if rows % size:
            row = b.let(tirx.Min(row, tir.const(rows - size)), "row")
        if p.lines % self.choice.lines:
            fresh = b.let(tirx.Max(fresh, part.fresh), "fresh")
        column = b.let(group * p.width + nth * (PANEL_TILES * p.mac.lanes), "column")
        strip = PANEL_TILES * self.panels.strip_bytes
        right = part.matrix + group * self.panels.matrix_bytes + nth * strip
        return _Block(group, block, row, fresh, column, b.let(right, "right"))

    def _multiply(
        self, block: _Block, tiles: int, sums: Pointer, between: Callable[[Value], None]
    ) -> None:
        """Sum a block into memory; `between` in every slot."""
        fetch: Callable[[Value], None] | None = None
        if self.problem.constant and tiles == PANEL_TILES and self.blocks.count <= _FEW_BLOCKS:
            fetch = self.products.prefetch(
                self.right, block.right, block.block, self.blocks.count, tiles, PREFETCH_LINES
            )

        def beside(slot: Value) -> None:
            if fetch:
                fetch(slot)
            between(slot)

        rows = self.left.rows(block.group, block.row)
        bias = self.pointers[self.bias] + block.column if self.bias is not None else None
        right = (self.right, block.right)
        self.products.multiply(self.left, rows, right, block.block, sums, tiles, bias, beside)

    # -- the way out

    def _finishing(
        self, part: _Part, block: _Block, sums: Pointer, tiles: int
    ) -> Callable[[Value], None]:
        """The rows of a finished block, shared out among the slots of the next."""
        b, size, slots = self.b, self.blocks.size, self.products.slots(tiles)
        each = -(-size // slots)

        def some(slot: Value) -> None:
            needed = b.when(slot * each < size) if slots * each > size else nullcontext()
            with needed, b.serial(each if each <= 2 else self.products.turns(each), "j") as j:
                row = b.let(slot * each + j, "row")
                with b.when(row < size) if size % each else nullcontext():
                    self._finish(part, block, sums, row, tiles)

        return some

    def _finish(self, part: _Part, block: _Block, sums: Pointer, row: Value, tiles: int) -> None:
        """A row of sums -> through the elementwise nodes -> the output, if it is a pixel of it."""
        b, p, layout = self.b, self.problem, self.layout
        index = b.let(block.row + row, "index")
        conditions = []
        if self.blocks.rows % self.blocks.size or p.lines % self.choice.lines:
            conditions.append(index >= block.fresh)
        pixel = part.pixel + index
        if layout.pitch != p.columns:
            x = b.let(tirx.floormod(index, layout.pitch), "x")
            pixel = part.pixel + tirx.floordiv(index, layout.pitch) * p.columns + x
            conditions.append(x < p.columns)
        with b.when(_all(conditions)) if conditions else nullcontext():
            self._finish_pixel(b.let(pixel, "pixel"), block, sums, row, tiles)

    def _finish_pixel(
        self, pixel: Value, block: _Block, sums: Pointer, row: Value, tiles: int
    ) -> None:
        b, p, fused, lanes = self.b, self.problem, self.fused, self.problem.mac.lanes
        where = fused.row(pixel)
        sums = sums.view(p.root.dtype)
        end = (block.group + 1) * p.width
        each = tiles * lanes if self.paired else lanes
        for first in range(0, tiles * lanes, each):
            raw = b.let(sums.load(row * (tiles * lanes) + first, each), "sums")
            column = b.let(block.column + first, "column")
            count = each if p.width % each == 0 else tirx.Min(end - column, tir.const(each))
            given = {self.summed: Vec(fused.m, raw, p.root.dtype, each)}
            value = fused.at(where, column, each, count, given)
            store(fused.m, self.out, pixel * (p.width * p.groups) + column, value, count)


def _all(conditions: list[Value]) -> Value:
    first, *rest = conditions
    for c in rest:
        first = tirx.And(first, c)
    return first


def _split(b: Builder, index: Value, size: int) -> tuple[Value, Value]:
    """A flat index -> (which of the larger parts, which of the `size` within it)."""
    if size == 1:
        return index, tir.const(0)
    return b.let(index // size, "outer"), b.let(index % size, "inner")


def _share(b: Builder, total: int, task: Value, tasks: int) -> tuple[Value, Value]:
    """The part of `total` turns that is a task's: (first, behind the last)."""
    if tasks == 1:
        return 0, total
    if total % tasks == 0:
        first = b.let(task * (total // tasks), "begin")
        return first, b.let(first + total // tasks, "end")
    return b.let(task * total // tasks, "begin"), b.let((task + 1) * total // tasks, "end")


def _offset(b: Builder, image: Value, batch: Batch) -> Value:
    """An image -> the offset of an operand's."""
    if not any(batch.strides):
        return tir.const(0)
    if len(batch.dims) == 1:
        return b.let(image * batch.strides[0], "offset")
    places = indices(b, image, batch.dims)
    total = sum((i * s for i, s in zip(places, batch.strides, strict=True) if s), tir.const(0))
    return b.let(total, "offset")
