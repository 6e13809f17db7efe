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
from qcompiler.hardware.isa import Cpu
from qcompiler.hardware.products import TileMac
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates, refuse
from qcompiler.kernels.cpu.code.epilogue import store
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.direct import direct, least
from qcompiler.kernels.cpu.contraction.loops import offset_of, share_of
from qcompiler.kernels.cpu.contraction.operands import bias_of, tile_of
from qcompiler.kernels.cpu.contraction.problem import Batch, Problem, problem_of
from qcompiler.kernels.cpu.matrix.block import HEAD_BYTES, SUMS_BYTES, Products
from qcompiler.kernels.cpu.matrix.layout import PANEL_TILES, Layout
from qcompiler.kernels.cpu.matrix.left import Left
from qcompiler.kernels.cpu.matrix.model import (
    PREFETCH_LINES,
    Choice,
    finish_cycles,
    near,
    priced,
    vector_cycles,
)
from qcompiler.kernels.cpu.matrix.right import RightPacker, pack
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_FEW_BLOCKS = 16
"""With more blocks than this a panel's next one is fetched in no time."""


@candidates("conv", "matmul", version=2)
def tiles(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Sums in tile registers, 32 rows by 32 columns."""
    root = region.root
    assert root is not None
    found = refuse(region) or _problem(region, root, device)
    if isinstance(found, Skip):
        return found
    problem, mac = found
    summed = (root, constant_bias_of(region)[0])
    finish = device.core.cycles(finish_cycles(n for n in region.nodes if n not in summed))
    mine, theirs = _vectors(region, device, vector_cycles(problem, mac, device, finish))

    def seconds(cycles: float) -> float:
        return device.core.seconds(cycles / mine * theirs)

    return (
        Candidate(c.tiling, seconds(cost.total), partial(emitted, region, device, c))
        for cost, c in priced(problem, mac, device, finish)
    )


def _vectors(region: Region, device: Cpu, mine: float) -> tuple[float, float]:
    """Cycles of vector products of the region, by this model and by that of the other kernels. The
    two were fitted on different machines: this brings their seconds to one scale.
    """
    found = direct(region, device)
    theirs = inf if isinstance(found, Skip) else least(*found, device)
    return (mine, theirs) if isfinite(mine) and isfinite(theirs) else (1.0, 1.0)


def _problem(region: Region, root: Node, device: Cpu) -> tuple[Problem, TileMac] | Skip:
    """A region -> its root's problem and product, or why tiles are no use for it."""
    mac = tile_of(device.isa, root)
    if mac is None:
        return Skip(f"no tile product of {' and '.join(i.dtype for i in root.operands)}")
    if any(i in region.nodes for i in root.operands):
        return Skip("elementwise nodes before the product")
    if any(0 in n.type.dims for n in (root, *root.operands)):
        return Skip("nothing to multiply")
    problem = problem_of(root, 1, device.core, upright=True)
    if isinstance(problem, Skip):
        return problem
    if root.op == "conv" and root.type.rank > 4:
        return Skip(f"{root.type.rank - 2} spatial dimensions")
    if problem.groups > 1 and problem.channels == 1:
        return Skip("one channel a group")
    constant = problem.right.is_constant
    if not constant and (problem.groups > 1 or problem.window.kernel != (1, 1)):
        return Skip("a window's weights that are known at run time only")
    readers = [i for n in region.nodes for i in n.operands if i is problem.right]
    if constant and len(readers) > 1:
        return Skip("the weights are read as they are, too")
    return problem, mac


def constant_bias_of(region: Region) -> tuple[Node, Node | None]:
    """As `bias_of`, of constant rows only."""
    assert region.root is not None
    summed, row = bias_of(region)
    return (summed, row) if row is None or row.is_constant else (region.root, None)


@dataclass(frozen=True)
class _Share:
    """A task's panels of so many `tiles`: from `begin` up to `stop`, `each` in a group."""

    tiles: int
    each: int
    begin: Value
    stop: Value


@dataclass(frozen=True)
class _Part:
    """Output lines of an image that a task works on: where their rows begin in the left operand,
    those from `fresh` on are not done yet; its first output pixel, and byte offset of its right
    matrices.
    """

    origin: Value
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


def emitted(region: Region, device: Cpu, choice: Choice) -> Kernel:
    """What was decided -> the kernel."""
    layout, tasks, p = choice.layout, choice.tiling.tasks, choice.layout.problem
    constant, size = p.right.is_constant, choice.task_bytes(device.core)
    packed, name = {p.right: "uint8"} if constant else {}, _name(region, layout)
    d = Draft("", region, device, name=name, packed=packed, flush=False)
    scratch = d.scratch()

    def pack_right(array: Array) -> Array:
        return pack(layout, p.matrices(array))

    with d.b.parallel(tasks) as task:
        _Task(d, choice, scratch + d.b.let(task * size, "mine"), task).run()
    return d.kernel(
        tasks=tasks,
        scratch_bytes=size * tasks,
        pack={region.inputs.index(p.right): pack_right} if constant else {},
        in_place=in_place_candidates(region),
        macs=p.macs,
    )


def _name(region: Region, layout: Layout) -> str:
    p = layout.problem
    kernel = "x".join(map(str, p.window.kernel)) if p.root.op == "conv" else ""
    left, right, _ = layout.mac.key
    shape = f"{p.images * p.rows * p.columns}x{p.width * p.groups}x{p.tap_count * p.depth}"
    after = [n.op.lower() for n in region.nodes if n is not p.root][:4]
    return "_".join([f"{p.root.op}{kernel}", left + right, shape, "tiles", *after])


class _Task:
    """The code of one task while it is emitted."""

    def __init__(self, d: Draft, choice: Choice, scratch: Pointer, task: Value) -> None:
        self.d, self.b, self.choice, self.layout = d, d.b, choice, choice.layout
        self.problem, self.blocks = choice.layout.problem, choice.blocks
        p, t, device = self.problem, choice.tiling, d.device
        self.summed, self.bias = constant_bias_of(d.region)
        self.fused = d.writing(self.summed)
        last = d.region.output
        self.paired = last.op == "quantize" and "quantize" in d.isa.intrinsics
        rows = near(choice, device)
        self.products = Products(d.b, device, self.layout, choice.heights, rows, scratch)
        self.sums = scratch + HEAD_BYTES
        source, copies = d.pointers[p.left], scratch + choice.left_at
        self.left = Left(d.b, device, self.layout, choice.lines, source, copies)
        self.constant = p.right.is_constant
        packed = scratch + choice.right_at(device.core)
        self.right = d.pointers[p.right] if self.constant else packed
        row_task, column_task = task // t.column_tasks, task % t.column_tasks
        self.span = share_of(d.b, p.images * choice.parts, row_task, t.row_tasks)
        self.mine = [
            _Share(tiles, n, *share_of(d.b, p.groups * n, column_task, t.column_tasks))
            for _, n, tiles, _ in self.layout.panels.cut.runs()
        ]

    # -- loops

    def run(self) -> None:
        """All parts of the task."""
        first, end = self.span
        with self.b.serial(end - first, "unit", first) as unit:
            part = self._part(unit, first)
            for panels in self.mine:
                self._pipeline(part, panels)
        self.products.release()

    def _part(self, unit: Value, first: Value) -> _Part:
        """A unit of a task's rows -> the part; its operands are copied where that is needed."""
        b, p, choice = self.b, self.problem, self.choice
        image, part = _split(b, unit, choice.parts)
        start, fresh = part * choice.lines, tir.const(0)
        if p.rows % choice.lines:  # the last part begins where it ends with the image
            start = b.let(tirx.Min(part * choice.lines, tir.const(p.rows - choice.lines)), "start")
            fresh = b.let((part * choice.lines - start) * self.layout.pitch, "fresh")
        start = b.let(start, "start")
        origin = self.left.prepare(self._offset(image, p.left_images), start)
        matrix = self._matrix(image, tirx.Or(tirx.EQ(part, 0), tirx.EQ(unit, first)))
        pixel = b.let((image * p.rows + start) * p.columns, "pixel")
        return _Part(origin, fresh, pixel, matrix)

    def _offset(self, image: Value, batch: Batch) -> Value:
        """Where an image of an operand begins."""
        offset = offset_of(self.b, image, batch)
        return self.b.let(offset, "offset") if any(batch.strides) else offset

    def _matrix(self, image: Value, changed: Value) -> Value:
        """Byte offset of an image's packed right matrices; of one that is no constant this task's
        panels are packed, if the image has changed.
        """
        b, p = self.b, self.problem
        source = self._offset(image, p.right_images)
        if self.constant:
            return b.let(source // (p.channels * p.width) * self.layout.matrix_bytes, "matrix")
        packer = RightPacker(b, self.layout, self.d.pointers[p.right], self.right)
        wide = self.layout.panels.vectors
        with b.when(changed) if self.choice.parts > 1 else nullcontext():
            for mine in self.mine:
                with b.serial(mine.stop - mine.begin, "panel", mine.begin) as panel:
                    at = panel if mine.tiles == wide else tir.const(self.layout.panels.cut.count)
                    packer.panel(source, at, mine.tiles)
        return tir.const(0)

    def _pipeline(self, part: _Part, panels: _Share) -> None:
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

        def at(index: Value) -> _Block:
            panel, block = _split(b, index, count)
            return self._block(part, panels, b.let(panel + panels.begin, "panel"), block)

        def sums(index: Value) -> Pointer:
            buffer: Pointer = self.sums
            if self.layout.buffers > 1:
                buffer = buffer + b.let(index % self.layout.buffers * SUMS_BYTES, "buffer")
            return buffer

        with some:
            self._multiply(part, at(tir.const(0)), tiles, sums(tir.const(0)), lambda slot: None)
            if not isinstance(total, int) or total > 1:
                with b.serial(total - 1, "turn", 1) as index:
                    before = at(index - 1)
                    between = self._finishing(part, before, sums(index - 1), tiles)
                    self._multiply(part, at(index), tiles, sums(index), between)
            last = at(b.let(total - 1, "last"))
            made = sums(total - 1)
            with b.serial(self.products.opaque(self.blocks.size), "row") as row:
                self._finish(part, last, made, row, tiles)

    def _block(self, part: _Part, panels: _Share, panel: Value, block: Value) -> _Block:
        """The nth panel of those with so many tiles, and a block of the part's rows."""
        b, p = self.b, self.problem
        group, nth = _split(b, panel, panels.each)
        cut = self.layout.panels.cut
        if panels.tiles < cut.size:  # behind the wide ones
            nth = tir.const(cut.count)
        rows, size = self.blocks.rows, self.blocks.size
        row = fresh = b.let(block * size, "row")
        if rows % size:
            row = b.let(tirx.Min(row, tir.const(rows - size)), "row")
        if p.rows % self.choice.lines:
            fresh = b.let(tirx.Max(fresh, part.fresh), "fresh")
        column = b.let(group * p.width + nth * (PANEL_TILES * self.layout.mac.lanes), "column")
        strip = PANEL_TILES * self.layout.strip_bytes
        right = part.matrix + group * self.layout.matrix_bytes + nth * strip
        return _Block(group, block, row, fresh, column, b.let(right, "right"))

    def _multiply(
        self,
        part: _Part,
        block: _Block,
        tiles: int,
        sums: Pointer,
        between: Callable[[Value], None],
    ) -> None:
        """Sum a block into memory; `between` in every slot."""
        fetch: Callable[[Value], None] | None = None
        if self.constant and tiles == PANEL_TILES and self.blocks.count <= _FEW_BLOCKS:
            fetch = self.products.next_panel(
                self.right, block.right, block.block, self.blocks.count, tiles, PREFETCH_LINES
            )

        def beside(slot: Value) -> None:
            if fetch:
                fetch(slot)
            between(slot)

        rows = self.left.rows(part.origin, block.group, block.row)
        bias = self.d.pointers[self.bias] + block.column if self.bias is not None else None
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
            with needed, b.serial(each if each <= 2 else self.products.opaque(each), "j") as j:
                row = b.let(slot * each + j, "row")
                with b.when(row < size) if size % each else nullcontext():
                    self._finish(part, block, sums, row, tiles)

        return some

    def _finish(self, part: _Part, block: _Block, sums: Pointer, row: Value, tiles: int) -> None:
        """A row of sums -> through the elementwise nodes -> the output, if it is a pixel of it."""
        b, p, layout = self.b, self.problem, self.layout
        index = b.let(block.row + row, "index")
        conditions = []
        if self.blocks.rows % self.blocks.size or p.rows % self.choice.lines:
            conditions.append(index >= block.fresh)
        pixel = part.pixel + index
        if layout.pitch != p.columns:
            x = b.let(tirx.floormod(index, layout.pitch), "x")
            pixel = part.pixel + tirx.floordiv(index, layout.pitch) * p.columns + x
            conditions.append(x < p.columns)
        with b.when(tirx.all(*conditions)) if conditions else nullcontext():
            self._finish_pixel(b.let(pixel, "pixel"), block, sums, row, tiles)

    def _finish_pixel(
        self, pixel: Value, block: _Block, sums: Pointer, row: Value, tiles: int
    ) -> None:
        b, p, fused, lanes = self.b, self.problem, self.fused, self.layout.mac.lanes
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
            store(fused.m, self.d.out, pixel * (p.width * p.groups) + column, value, count)


def _split(b: Builder, index: Value, size: int) -> tuple[Value, Value]:
    """A flat index -> (which of the larger parts, which of the `size` within it)."""
    if size == 1:
        return index, tir.const(0)
    return b.let(index // size, "outer"), b.let(index % size, "inner")
