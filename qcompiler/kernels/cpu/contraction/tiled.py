"""conv and matmul regions -> TIR: tiles of sums in registers, elementwise nodes on their way out.

for each task (a share of the output rows, of the columns, or of both)
  for each image and block of output rows
    copy the block's left operand if it must be padded or converted
    for each group and panel of the right operand        (the panel stays near the core)
      for each tile of the block
        sums = left rows * panel, in registers            (microkernel.py)
        store(epilogue(sums))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, in_place_candidates
from qcompiler.kernels.cpu.code.images import is_open
from qcompiler.kernels.cpu.code.loops import divided, first_of, up
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.contraction.blocking import (
    Tiling,
    prefetch_pace,
    priced,
)
from qcompiler.kernels.cpu.contraction.counted import Tiles
from qcompiler.kernels.cpu.contraction.direct import direct
from qcompiler.kernels.cpu.contraction.layout import Layout
from qcompiler.kernels.cpu.contraction.loops import offset_of, segment, share_of
from qcompiler.kernels.cpu.contraction.microkernel import (
    Left,
    Leftovers,
    Right,
    Sums,
    over_taps,
    sums,
)
from qcompiler.kernels.cpu.contraction.operands import (
    Product,
    Run,
    leftover_bytes,
    panel_bytes,
    rounded_bias,
)
from qcompiler.kernels.cpu.contraction.pairs import paired, twice
from qcompiler.kernels.cpu.contraction.patch import Patch, RightPacker
from qcompiler.kernels.cpu.contraction.problem import Batch, Problem
from qcompiler.kernels.cpu.contraction.results import Results
from qcompiler.kernels.cpu.contraction.short import short_sums
from qcompiler.kernels.cpu.contraction.starts import Starts
from qcompiler.kernels.cpu.contraction.zipped import zip_rows
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_PAIRS = 2048
"""Bytes around an address that pairs of vectors are loaded from."""


@candidates("conv", "matmul")
def tiled(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Sums in registers, rows of pixels by vectors of columns."""
    found = direct(region, device)
    if isinstance(found, Skip):
        return found
    problem, product = found
    if is_open(region) and not problem.flat:
        return Skip("windows of images whose sizes a run knows")
    return tilings(region, device, problem, product, Task)


def tilings(
    region: Region, device: Cpu, problem: Problem, product: Product, kind: Callable[..., Task]
) -> Iterable[Candidate]:
    """Every tiling of a problem, whose tasks are of some kind."""
    pairs = paired(region, problem, product), twice(region, problem, product)

    def build(tiling: Tiling) -> Kernel:
        return emitted(Layout(region, device, problem, product, tiling, *pairs), kind)

    seconds = device.core.seconds
    return (
        Candidate(t, seconds(c), partial(build, t)) for c, t in priced(problem, product, device)
    )


@dataclass(frozen=True)
class Block:
    """Output rows of an image from `row` on: units `first` up to `last`, whose left operand begins
    at `origin`.
    """

    image: Value
    first: Value
    last: Value
    row: Value
    left: Pointer
    origin: Value


def emitted(layout: Layout, kind: Callable[..., Task]) -> Kernel:
    """What was decided -> the kernel, whose tasks are of some kind."""
    region, p, count = layout.region, layout.problem, layout.tiling.tasks
    packed = {p.right: "uint8"} if layout.constant else {}
    packed |= dict.fromkeys(rounded_bias(region, layout.product.sums), "float16")
    d = Draft("", region, layout.device, name=layout.name, packed=packed)
    scratch = d.scratch() if layout.scratch_bytes else None
    with d.b.parallel(count) as task:
        mine = scratch and scratch + d.b.let(task * layout.task_bytes, "mine")
        kind(d, layout, mine, task).run()
    return d.kernel(
        tasks=count,
        scratch_bytes=layout.scratch_bytes,
        pack=layout.packers,
        in_place=() if d.is_counted else in_place_candidates(region),  # some rows are read again
        macs=p.macs,
    )


class Task:
    """The code of one task while it is emitted; those of compressed/ have right operands, and sums,
    of their own.
    """

    late = True
    """Is every pixel of a tile finished? Then short sums may be joined when that is done."""

    def __init__(self, d: Draft, layout: Layout, scratch: Pointer | None, task: Value) -> None:
        self.d, self.b, self.layout, self.scratch = d, d.b, layout, scratch
        self.problem, self.product, self.panels = layout.problem, layout.product, layout.panels
        self.results, self.starts = Results(d, layout, self._there), Starts(d, layout)
        p, t = layout.problem, layout.tiling
        row_task, column_task = task // t.column_tasks, task % t.column_tasks
        shared = p.groups if p.groups > 1 else self.panels.panels
        mine = share_of(self.b, shared, column_task, t.column_tasks)
        self.groups = mine if p.groups > 1 else (0, 1)
        self.my_panels = (0, self.panels.panels) if p.groups > 1 else mine
        self.patch = self._patch() if layout.copied else None
        self.size: Value = t.block
        self.count: Value = layout.blocks
        self.rows: Value = p.rows
        self.columns: Value = p.columns
        self.row: Value = layout.row
        self.tiles = self._counted()
        self.blocks = share_of(self.b, p.images * self.count, row_task, t.row_tasks)

    def _counted(self) -> Tiles | None:
        """The tiles of the rows that count, where only a run knows these."""
        b, p, tasks = self.b, self.problem, self.layout.tiling.row_tasks
        if not p.flat:
            return None
        dims = p.left.type.dims
        most = dims[first_of(dims)]
        rows, least = self.d.counted(p.rows, most), self.d.least(p.rows, most)
        if isinstance(rows, int):
            return None
        largest, few = self.layout.units.cut.size, is_open(self.d.region)
        tiles = Tiles.of(b, largest, p.rows, rows, least=least, few=few)
        if tasks > 1:
            share = tirx.Max(up(b, tiles.count, tasks), tir.const(1))
            self.size = b.hold(tirx.Min(share, tir.const(self.size)), "size")
        self.count = b.hold((tiles.count + self.size - 1) // self.size, "blocks")
        return tiles

    def _patch(self) -> Patch:
        assert self.scratch is not None
        source, target = self.d.pointers[self.problem.left], self.scratch.view(self.product.left)
        isa, lines = self.d.isa, self.layout.lines
        return Patch(self.b, isa, self.problem, self.product, source, target, lines)

    def _sums(self, left: Left, base: Value, right: Right) -> Sums:
        """The sums of one tile."""
        if right.scale:
            return short_sums(self.b, self.product, left, base, right, late=self.late)
        return sums(self.b, self.product, left, base, right)

    # -- loops

    def run(self) -> None:
        """All blocks of the task."""
        b, count, (begin, end) = self.b, self.count, self.blocks
        with b.serial(end - begin, "block", begin) as block:
            if self.tiles is not None:
                self._block(tir.const(0), block)
            else:
                self._block(*divided(b, block, count))

    def _block(self, image: Value, part: Value) -> None:
        """The output rows of one block, against every panel."""
        b, p = self.b, self.problem
        size, units, tiles = self.size, self._units(), self.tiles
        first = b.let(part * size, "first")
        last = first + size
        if tiles is not None:
            units = tiles.count
        if not isinstance(units, int) or self.count * size != units:
            last = b.let(tirx.Min(last, tir.const(0) + units), "last")
        row = b.let(self._row_of(first), "row")
        end = b.let(self._row_of(last), "end")
        if tiles is not None:
            row = b.let(tiles.at_most(row, tiles.heights[0]), "row")
            end = b.let(tiles.at_most(end, 0), "end")
        if self.patch is not None:
            self._copy_patch(image, row, end)
            pointer, origin = self.patch.target, tir.const(0)
        else:
            pointer = self.d.pointers[p.left]
            origin = b.let(self._image_at(image) + row * self.row, "origin")
        block = Block(image, first, last, row, pointer, origin)
        if self.product.zipped:
            self._zip(block)
        matrix = self._right_matrix(image)
        with b.serial(self.groups[1] - self.groups[0], "group", self.groups[0]) as group:
            for run in self.panels.runs():
                with segment(b, self.my_panels, run.first, run.count, "panel") as panel:
                    nth = b.let(panel - run.first, "nth") if run.first else panel
                    column = b.let(self._column_of(run, nth) + group * p.width, "column")
                    right = self._right(matrix, group, run, nth, column)
                    self._tiles(block, group, right, column, run)

    def _copy_patch(self, image: Value, row: Value, end: Value) -> None:
        p, planes = self.problem, self.problem.planes
        assert self.patch is not None
        if planes.outputs == 1:
            start, plane = self._image_at(image), 0
        else:
            start = image // planes.outputs * p.left_images.strides[0]
            plane = image % planes.outputs * planes.step
        self.patch.copy(self.b.let(start), self.b.let(plane - planes.front), row, end)

    def _units(self) -> Value:
        """Units of an image."""
        return self.layout.units.count

    def _image_at(self, image: Value) -> Value:
        """Where an image's left operand begins."""
        return offset_of(self.b, image, self.problem.left_images)

    def _row_of(self, unit: Value) -> Value:
        """The first output row of a unit (of an image)."""
        cut = self.layout.units.cut
        if self.tiles is not None:
            return self.tiles.row_of(unit)
        return cut.start_of(unit) if self.layout.units.whole else unit

    def _tiles(self, block: Block, group: Value, right: Right, column: Value, run: Run) -> None:
        """All tiles of a block against one panel."""
        b, p, layout = self.b, self.problem, self.layout
        origin = b.let(block.origin + group * p.channels, "origin")
        pace: Value = 0
        if right.panel is not None and layout.units.whole:
            pace = prefetch_pace(p, self.product, layout.device, layout.tiling, run.vectors)
            pace = self._pace(pace, block, run)

        def tile(y: Value, x: Value, pixels: list[tuple[int, int]], nth: Value) -> None:
            left, base = self._left(block, origin, (y, x), pixels, nth)
            index = b.let((block.image * self.rows + y) * self.columns + x, "pixel")
            places = [index + (dy * self.columns + dx) for dy, dx in pixels]
            self.results.prefetch(places, column, run)
            ahead = not isinstance(pace, int) or pace
            beside = self._next_panel(right, nth, run, pace) if ahead else None
            registers = self._sums(left, base, replace(right, beside=beside))
            self.results.write(registers, places, column, run)

        self._each_tile(block, tile)

    def _each_tile(
        self, block: Block, body: Callable[[Value, Value, list[tuple[int, int]], Value], None]
    ) -> None:
        """body(y, x, pixels, n) for the nth tile of a block: where it begins, and its pixels as
        seen from there.
        """
        b, p, units = self.b, self.problem, self.layout.units
        if self.tiles is not None:
            for first, count, size, start in self.tiles.runs(b):
                with segment(b, (block.first, block.last), first, count, "tile") as t:
                    y = b.let(self.tiles.at_most((t - first) * size + start, size), "y")
                    body(y, 0, [(dy, 0) for dy in range(size)], t - block.first)
            return
        if units.whole:
            for first, count, size, start in units.cut.runs():
                with segment(b, (block.first, block.last), first, count, "tile") as t:
                    y = b.let((t - first) * size + start, "y")
                    pixels = [(dy, dx) for dy in range(size) for dx in range(p.columns)]
                    body(y, 0, pixels, t - block.first)
            return
        with b.serial(block.last - block.first, "y", block.first) as y:
            for first, count, size, start in units.cut.runs():
                with b.serial(count, "x") as t:
                    x = b.let(t * size + start, "x")
                    nth = (y - block.first) * units.cut.pieces + first + t
                    body(y, x, [(0, dx) for dx in range(size)], nth)

    def _left(
        self,
        block: Block,
        origin: Value,
        place: tuple[Value, Value],
        pixels: list[tuple[int, int]],
        nth: Value,
    ) -> tuple[Left, Value]:
        """The left operand of a block's nth tile, which begins at a place, and its base."""
        layout, p = self.layout, self.problem
        if self.product.zipped:
            memory, rows = self._zipped_rows(), tuple(range(len(pixels)))
            left = Left(memory, rows, (), p.depth * p.tap_count, guarded=False, zipped=True)
            return left, self.b.let(nth * layout.tile_elements, "base")
        offsets = tuple(dy * layout.row + dx * p.column for dy, dx in pixels)
        left = Left(block.left, offsets, layout.taps, p.depth, guarded=self._guarded())
        if self._near(offsets):
            left = replace(left, again=self.d.isa.intrinsics.get("again"))
        if self._shared(offsets):
            left = replace(left, again=Builder.again)
        y, x = place
        base = origin + (y - block.row) * self.row + x * p.column
        return left, self.b.let(base, "base")

    def _zipped_rows(self) -> Pointer:
        """Where they begin."""
        assert self.scratch is not None
        return (self.scratch + self.layout.zipped_at).view(self.product.left)

    def _zip(self, block: Block) -> None:
        """Copy a block's rows as the product takes them."""
        b, p, layout, memory = self.b, self.problem, self.layout, self._zipped_rows()

        def tile(y: Value, x: Value, pixels: list[tuple[int, int]], nth: Value) -> None:
            base = b.let(block.origin + (y - block.row) * self.row + x * p.column, "base")
            target = b.let(nth * layout.tile_elements, "to")
            offsets = [dy * layout.row + dx * p.column for dy, dx in pixels]
            vectors = self.product.lefts(len(pixels)) * self.product.steps(p.depth)
            each = vectors * self.product.zipped_vector

            def tap(at: Value, number: Value) -> None:
                source, to = b.let(at, "at"), b.let(target + number * each, "to")
                zip_rows(b, self.product, block.left + source, offsets, memory + to, p.depth)

            over_taps(b, layout.taps, 1, base, 0, tap)

        self._each_tile(block, tile)

    def _near(self, offsets: Sequence[int]) -> bool:
        """Of windows: can one instruction load neighbours of a row and of another one's? LLVM then
        loads those of several iterations at once, and spills sums for it.
        """
        mac, size = self.product.mac, tir.bits(self.product.left) // 8
        apart, taps = max(offsets) - min(offsets), self.problem.tap_count
        return mac.by_lane > 1 and mac.rows == 1 and taps > 1 and apart * size < _PAIRS

    def _shared(self, offsets: Sequence[int]) -> bool:
        """Of windows: does one row's operand of a step stand in another one's of a later step? LLVM
        then keeps all of those in registers from step to step, and spills sums for it.
        """
        k, depth = self.product.mac.k, self.problem.depth
        apart = {abs(a - b) for a in offsets for b in offsets} - {0}
        return self.product.mac.by_lane == 1 and any(n < depth and n % k == 0 for n in apart)

    def _guarded(self) -> bool:
        """May elements behind a left row be read? Floats could be NaN, which 0 does not end."""
        return self.patch is not None and self.product.sums == "int32"

    # -- the right operand

    def _right_matrix(self, image: Value) -> Value:
        """Where the image's right matrices begin; packs them first where that must be done now."""
        b, p = self.b, self.problem
        if self.layout.packs:
            self._pack_right(offset_of(b, image, p.right_images))
            return tir.const(0)
        images = p.right_images
        if self.layout.constant:
            size = self.layout.matrix_bytes * p.groups
            strides = tuple(s * size // (p.depth * p.width) for s in images.strides)
            images = Batch(images.dims, strides)
        return b.let(offset_of(b, image, images), "matrix")

    def _pack_right(self, start: Value) -> None:
        assert self.scratch is not None
        p = self.problem
        packer = RightPacker(
            self.b,
            self.product,
            p,
            self.d.pointers[p.right],
            self.scratch + self.layout.packed_at,
            p.transposed,
        )
        for run in self.panels.runs():
            with segment(self.b, self.my_panels, run.first, run.count, "panel") as panel:
                nth = panel - run.first
                packer.panel(
                    self.b.let(start), self._panel_at(run, nth), self._column_of(run, nth), run
                )

    def _panel_at(self, run: Run, nth: Value) -> Value:
        """Byte offset of the nth panel of a run in its matrix."""
        p, product = self.problem, self.product
        before = run.column // product.mac.width  # vectors
        whole = panel_bytes(product, p.tap_count, p.depth, 1)
        return before * whole + nth * (run.vectors * whole)

    def _column_of(self, run: Run, nth: Value) -> Value:
        return run.column + nth * (run.vectors * self.product.mac.width)

    def _right(self, matrix: Value, group: Value, run: Run, nth: Value, column: Value) -> Right:
        """The nth panel of a run, whose first result is the output's `column`."""
        b, p, product = self.b, self.problem, self.product
        if not self.layout.constant and not self.layout.packs:
            return self._right_in_place(matrix, run, column)
        memory = self.d.pointers[p.right]
        if self.layout.packs:
            assert self.scratch is not None
            memory = self.scratch + self.layout.packed_at
        size, lanes = product.vector_bytes, product.mac.width
        scale_bytes = product.scale_bytes
        at = b.let(matrix + group * self.layout.matrix_bytes + self._panel_at(run, nth), "at")
        head = run.vectors * product.head_bytes
        panel = memory + at if self.layout.constant else None

        def load(step: Value, v: int) -> Value:
            return memory.load(
                at + step * (run.vectors * size) + (head + v * size), size, product.right
            )

        def correction(v: int) -> Value:
            return memory.load(at + v * lanes * 4, lanes * 4, "int32")

        def scale(v: int) -> Value:
            return memory.load(at + v * scale_bytes, scale_bytes, product.sums)

        start = self.starts.of(column, run, correction if product.flipped else None)
        head_of = (memory + at).view("int32") if product.flipped else None
        leftovers = self._leftovers(memory, at, run) if product.leftovers else None
        scales = scale if scale_bytes else None
        again = self.starts.again(column, run, head_of)
        return Right(run.vectors, load, start, leftovers, panel=panel, scale=scales, again=again)

    def _leftovers(self, memory: Pointer, at: Value, run: Run) -> Leftovers:
        """The list that a panel's head points to."""
        product = self.product
        here = at + run.vectors * product.correction_bytes
        entry = leftover_bytes(product, run.vectors)
        count = self.b.let(memory.load(here, 4, "int32"), "leftovers")
        first = self.b.let(memory.load(here + 4, 4, "int32"), "list")

        def offset(i: Value) -> Value:
            return memory.load(first + i * entry + run.vectors * product.vector_bytes, 4, "int32")

        def load(i: Value, v: int) -> Value:
            start = first + i * entry + v * product.vector_bytes
            return memory.load(start, product.vector_bytes, product.right)

        return Leftovers(count, offset, load)

    def _right_in_place(self, matrix: Value, run: Run, column: Value) -> Right:
        """Rows of the right matrix, read as they are."""
        memory, width, lanes = (
            self.d.pointers[self.problem.right],
            self.problem.width,
            self.product.mac.width,
        )
        start = self.b.let(matrix + column, "at")

        def load(step: Value, v: int) -> Value:
            count = run.tail if v == run.vectors - 1 else lanes
            return memory.load_first(count, start + step * width + v * lanes, lanes)

        return Right(run.vectors, load, self.starts.of(column, run, None))

    def _pace(self, pace: int, block: Block, run: Run) -> Value:
        """The same of the tiles that a block has in a run."""
        if self.tiles is None or not pace:
            return pace
        p, product, line = self.problem, self.product, self.layout.device.core.line_bytes
        each = p.tap_count * product.steps(p.depth)
        size = panel_bytes(product, p.tap_count, p.depth, run.vectors)
        steps = self.b.hold((block.last - block.first) * each, "steps")
        return self.b.hold(tirx.Min((size + steps - 1) // steps, tir.const(line)), "pace")

    def _next_panel(
        self, right: Right, nth: Value, run: Run, pace: Value
    ) -> Callable[[Value], None]:
        """What prefetches the next panel beside the steps of a block's nth tile."""
        p, product = self.problem, self.product
        size = panel_bytes(product, p.tap_count, p.depth, run.vectors)
        share = p.tap_count * product.steps(p.depth) * pace
        first, panel = self.b.let(nth * share + size, "ahead"), right.panel
        assert panel is not None
        return lambda step: panel.prefetch(first + step * pace, level=2)

    def _there(self, nth: int) -> AbstractContextManager[None]:
        """What is to be done with a tile's nth pixel, if it is one of the output."""
        return nullcontext()
