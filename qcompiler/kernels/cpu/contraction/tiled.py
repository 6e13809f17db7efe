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

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import in_place_candidates, math_of
from qcompiler.kernels.cpu.code.epilogue import Fused, store
from qcompiler.kernels.cpu.code.tails import Tails
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.blocking import (
    Tiling,
    Units,
    ahead,
    needs_copy,
    powers_of_two,
    priced,
)
from qcompiler.kernels.cpu.contraction.direct import direct
from qcompiler.kernels.cpu.contraction.loops import offset_of, segment, share_of
from qcompiler.kernels.cpu.contraction.microkernel import Left, Leftovers, Right, of_row, sums
from qcompiler.kernels.cpu.contraction.operands import (
    Panels,
    Product,
    Run,
    bias_of,
    leftover_bytes,
    pack,
    panel_bytes,
)
from qcompiler.kernels.cpu.contraction.patch import Patch, RightPacker
from qcompiler.kernels.cpu.contraction.problem import Problem
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_GUARD = 64
"""Bytes behind a copy that a vector may reach into."""


@candidates("conv", "matmul")
def tiled(region: Region, device: Device) -> Iterable[Candidate] | Skip:
    """Sums in registers, rows of pixels by vectors of columns."""
    found = direct(region, device)
    if isinstance(found, Skip):
        return found
    problem, product = found

    def build(tiling: Tiling) -> Kernel:
        return Contraction(region, device, problem, product, tiling).kernel()

    seconds = device.core.seconds
    return (
        Candidate(t, seconds(c), partial(build, t)) for c, t in priced(problem, product, device)
    )


@dataclass(frozen=True)
class _Block:
    """Output rows of an image from `row` on: units `first` up to `last`, whose left operand begins
    at `origin`.
    """

    image: Value
    first: Value
    last: Value
    row: Value
    left: Pointer
    origin: Value


class Contraction:
    """One kernel while it is emitted; compressed/sparse.py multiplies a part of the weights
    only.
    """

    def __init__(
        self, region: Region, device: Device, problem: Problem, product: Product, tiling: Tiling
    ) -> None:
        self.region, self.device = region, device
        self.problem, self.product, self.tiling = problem, product, tiling
        self.panels = Panels.of(problem.width, product.mac.width, tiling.vectors)
        self.units = Units.of(problem, tiling.rows)
        self.unit_count = self.units.count(problem)
        self.blocks = -(-self.unit_count // tiling.block)
        self.copied = self._needs_copy()
        self.constant = problem.right.is_constant
        self.packs = not self.constant and not self._reads_right_in_place()
        frame, planes = problem.frame, problem.planes
        self.patch_lines = self._patch_lines()
        self.line = frame.padded_line
        lines = planes.count * self.patch_lines * self.line
        bytes_ = lines * tir.bits(product.left) // 8 + _GUARD
        self.patch_bytes = bytes_ if self.copied else 0
        self.matrix_bytes = self._matrix_bytes()
        whole = device.core.whole_lines
        packed = whole(self.matrix_bytes * problem.groups) if self.packs else 0
        self.packed_at = whole(self.patch_bytes)
        self.task_bytes = self.packed_at + packed
        self.row = frame.step * self.line
        plane = (self.patch_lines if self.copied else planes.apart * frame.height) * self.line
        taps = ((planes.count, plane),) if planes.count > 1 else ()
        self.taps = (*taps, *((n, lines * self.line + e) for n, lines, e in problem.taps))
        self.summed, self.bias = bias_of(region)
        self.panel: Pointer | None = None  # the one that tiles read, where the next one follows it
        self.b = Builder(self._name(), Tails.of(device.isa))

    def kernel(self) -> Kernel:
        """Emit all of it."""
        b, region = self.b, self.region
        self.pointers = {
            n: b.pointer(f"in{i}", self._stored(n)) for i, n in enumerate(region.inputs)
        }
        self.out = b.pointer("out", region.output.dtype)
        scratch_bytes = self.task_bytes * self.tiling.tasks + (_GUARD if self.task_bytes else 0)
        self.scratch = b.pointer("scratch", "uint8") if scratch_bytes else None
        self.far = self._far()
        with b.parallel(self.tiling.tasks) as task:
            self._task(task)
        right = region.inputs.index(self.problem.right)
        return Kernel(
            name=b.name,
            func=b.function(),
            pack={right: self._pack} if self.constant else {},
            scratch_bytes=scratch_bytes,
            tasks=self.tiling.tasks,
            macs=self.problem.macs,
            in_place=in_place_candidates(region),
        )

    def _needs_copy(self) -> bool:
        return needs_copy(self.problem, self.product)

    def _sums(self, left: Left, base: Value, right: Right) -> Registers:
        """The sums of one tile."""
        return sums(self.b, self.product, left, base, right)

    # -- sizes and names

    def _name(self) -> str:
        p, root = self.problem, self.region.root
        assert root is not None
        kernel = "x".join(map(str, root.operands[1].type.dims[:-2])) if root.op == "conv" else ""
        after = [n.op.lower() for n in self.region.nodes if n is not root]
        tile = f"{self.tiling.rows}x{self.tiling.vectors * self.product.mac.width}"
        pixels = p.images * p.rows * p.columns
        shape = f"{pixels}x{p.width * p.groups}x{p.depth * p.tap_count}"
        return "_".join([f"{root.op}{kernel}", self.product.name, shape, tile, *after[:4]])

    def _stored(self, node: Node) -> str:
        return "uint8" if node is self.problem.right and self.constant else node.dtype

    def _reads_right_in_place(self) -> bool:
        p = self.problem
        same = tir.stored(p.right.dtype) == self.product.right
        return self.product.mac.k == 1 and same and p.root.op == "matmul" and not p.transposed

    def _matrix_bytes(self) -> int:
        """Bytes of one packed right matrix."""
        p, panels = self.problem, self.panels
        sizes = ((panels.count, panels.vectors), (panels.rest, panels.vectors - 1))
        return sum(n * panel_bytes(self.product, p.tap_count, p.depth, v) for n, v in sizes if n)

    def _patch_lines(self) -> int:
        """Lines of one plane that a block sees."""
        frame, size = self.problem.frame, self.units.cut.size
        rows = self.tiling.block * size if self.units.whole else self.tiling.block
        return (min(rows, self.problem.rows) - 1) * frame.step + frame.reach

    def _pack(self, array: Array) -> Array:
        offsets = [0]
        for count, elements in self.taps:
            offsets = [o + i * elements for o in offsets for i in range(count)]
        return pack(self.problem.matrices(array), self.product, self.panels, offsets)

    # -- loops

    def _task(self, task: Value) -> None:
        b, t = self.b, self.tiling
        if self.scratch is not None:
            self.scratch = self.scratch + b.let(task * self.task_bytes, "mine")
        done = (self.problem.root, self.summed)
        nodes = [n for n in self.region.nodes if n not in done]
        m = math_of(b, self.region, self.device)
        self.fused = Fused(
            m, self.region, nodes, self.region.output, self.pointers, given=(self.summed,)
        )
        row_task, column_task = task // t.column_tasks, task % t.column_tasks
        groups = self.problem.groups
        shared = groups if groups > 1 else self.panels.panels
        first, last = share_of(b, shared, column_task, t.column_tasks)
        self.my_groups = (first, last) if groups > 1 else (0, 1)
        self.my_panels = (0, self.panels.panels) if groups > 1 else (first, last)
        self.patch = self._begin_patch() if self.copied else None
        blocks = self.problem.images * self.blocks
        begin, end = share_of(b, blocks, row_task, t.row_tasks)
        with b.serial(end - begin, "block", begin) as block:
            self._block(b.let(block // self.blocks, "image"), b.let(block % self.blocks, "part"))

    def _begin_patch(self) -> Patch:
        assert self.scratch is not None
        source, target = self.pointers[self.problem.left], self.scratch.view(self.product.left)
        isa, lines = self.device.isa, self.patch_lines
        patch = Patch(self.b, isa, self.problem, self.product, source, target, lines)
        patch.fill_sides()
        return patch

    def _block(self, image: Value, part: Value) -> None:
        """The output rows of one block, against every panel."""
        b, p = self.b, self.problem
        first = b.let(part * self.tiling.block, "first")
        if self.blocks * self.tiling.block == self.unit_count:
            last = first + self.tiling.block
        else:
            last = b.let(tirx.Min(first + self.tiling.block, tir.const(self.unit_count)), "last")
        row = b.let(self._row_of(first), "row")
        end = b.let(self._row_of(last), "end")
        if self.patch is not None:
            self._copy_patch(image, row, end)
            pointer, origin = self.patch.target, tir.const(0)
        else:
            start = offset_of(b, image, p.left_images.dims, p.left_images.strides)
            pointer, origin = self.pointers[p.left], b.let(start + row * self.row, "origin")
        block = _Block(image, first, last, row, pointer, origin)
        matrix = self._right_matrix(image)
        groups = self.my_groups
        with b.serial(groups[1] - groups[0], "group", groups[0]) as group:
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
            start, plane = offset_of(self.b, image, p.left_images.dims, p.left_images.strides), 0
        else:
            start = image // planes.outputs * p.left_images.strides[0]
            plane = image % planes.outputs * planes.step
        self.patch.copy(self.b.let(start), self.b.let(plane - planes.front), row, end)

    def _row_of(self, unit: Value) -> Value:
        """The first output row of a unit (of an image)."""
        cut = self.units.cut
        if not self.units.whole:
            return unit
        if not cut.rest:
            return unit * cut.size
        return unit * cut.size - tirx.Max(unit - cut.count, tir.const(0))

    def _tiles(self, block: _Block, group: Value, right: Right, column: Value, run: Run) -> None:
        """All tiles of a block against one panel."""
        b, p = self.b, self.problem
        origin = b.let(block.origin + group * p.group, "origin")

        pace = ahead(self.problem, self.product, self.device, self.tiling, run.vectors)
        pace = pace if self.panel is not None and self.units.whole else 0

        def tile(y: Value, x: Value, pixels: list[tuple[int, int]], nth: Value = 0) -> None:
            offsets = tuple(dy * self.row + dx * p.column for dy, dx in pixels)
            left = Left(block.left, offsets, self.taps, p.depth, guarded=self._guarded())
            base = b.let(origin + (y - block.row) * self.row + x * p.column, "base")
            index = b.let((block.image * p.rows + y) * p.columns + x, "pixel")
            places = [index + (dy * p.columns + dx) for dy, dx in pixels]
            self._ask(places, column, run)
            asks = self._asks(nth, run, pace) if pace else None
            registers = self._sums(left, base, replace(right, beside=asks))
            self._finish(registers, places, column, run)

        if self.units.whole:
            for first, count, size, start in self.units.cut.runs():
                with segment(b, (block.first, block.last), first, count, "tile") as t:
                    y = b.let((t - first) * size + start, "y")
                    pixels = [(dy, dx) for dy in range(size) for dx in range(p.columns)]
                    tile(y, 0, pixels, t - block.first)
            return
        with b.serial(block.last - block.first, "y", block.first) as y:
            for _, count, size, start in self.units.cut.runs():
                with b.serial(count, "x") as t:
                    x = b.let(t * size + start, "x")
                    tile(y, x, [(0, dx) for dx in range(size)])

    def _guarded(self) -> bool:
        """May elements behind a left row be read? Floats could be NaN, which 0 does not end."""
        return self.patch is not None and self.product.sums == "int32"

    # -- the right operand

    def _right_matrix(self, image: Value) -> Value:
        """Where the image's right matrices begin; packs them first where that must be done now."""
        b, p = self.b, self.problem
        if self.packs:
            self._pack_right(offset_of(b, image, p.right_images.dims, p.right_images.strides))
            return tir.const(0)
        size = 1
        if self.constant:
            size = self.matrix_bytes * p.groups
            strides = [s * size // (p.depth * p.width) for s in p.right_images.strides]
        else:
            strides = list(p.right_images.strides)
        return b.let(offset_of(b, image, p.right_images.dims, tuple(strides)), "matrix")

    def _pack_right(self, start: Value) -> None:
        assert self.scratch is not None
        p = self.problem
        packer = RightPacker(
            self.b,
            self.product,
            p,
            self.pointers[p.right],
            self.scratch + self.packed_at,
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
        if not self.constant and not self.packs:
            return self._right_in_place(matrix, run, column)
        memory = self.pointers[p.right]
        if self.packs:
            assert self.scratch is not None
            memory = self.scratch + self.packed_at
        size, lanes = product.vector_bytes, product.mac.width
        at = b.let(matrix + group * self.matrix_bytes + self._panel_at(run, nth), "at")
        head = run.vectors * product.head_bytes
        self.panel = memory + at if self.constant else None

        def load(step: Value, v: int) -> Value:
            return memory.load(
                at + step * (run.vectors * size) + (head + v * size), size, product.right
            )

        def correction(v: int) -> Value:
            return memory.load(at + v * lanes * 4, lanes * 4, "int32")

        start = self._start(column, run, correction if product.flipped else None)
        leftovers = self._leftovers(memory, at, run) if product.leftovers else None
        return Right(run.vectors, load, start, leftovers)

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

    def _start(
        self, column: Value, run: Run, correction: Callable[[int], Value] | None
    ) -> Callable[[int], Value] | None:
        """What sums begin with: the bias, if one is added first of all, and the correction."""
        if self.bias is None:
            return correction
        pointer, lanes = self.pointers[self.bias], self.product.mac.width

        def start(v: int) -> Value:
            count = run.tail if v == run.vectors - 1 else lanes
            bias = pointer.load_first(count, column + v * lanes, lanes)
            return tir.wrapping("+", bias, correction(v)) if correction else bias

        return start

    def _right_in_place(self, matrix: Value, run: Run, column: Value) -> Right:
        """Rows of the right matrix, read as they are."""
        memory, width, lanes = (
            self.pointers[self.problem.right],
            self.problem.width,
            self.product.mac.width,
        )
        start = self.b.let(matrix + column, "at")

        def load(step: Value, v: int) -> Value:
            count = run.tail if v == run.vectors - 1 else lanes
            return memory.load_first(count, start + step * width + v * lanes, lanes)

        return Right(run.vectors, load, self._start(column, run, None))

    def _asks(self, nth: Value, run: Run, pace: int) -> Callable[[Value], None]:
        """What asks for the next panel beside the steps of a block's nth tile."""
        p, product = self.problem, self.product
        size = panel_bytes(product, p.tap_count, p.depth, run.vectors)
        share = p.tap_count * product.steps(p.depth) * pace
        first, panel = self.b.let(nth * share + size, "ahead"), self.panel
        assert panel is not None
        return lambda step: panel.prefetch(first + step * pace, level=2)

    # -- the way out

    def _ask(self, pixels: list[Value], column: Value, run: Run) -> None:
        """Ask for what a tile will read at its end while it is multiplied."""
        lanes = run.vectors * self.product.mac.width
        for node in self.far:
            line = self.device.core.line_bytes * 8 // tir.bits(tir.stored(node.dtype))
            for pixel in pixels:
                start = pixel * node.type.dims[-1] + column
                for at in range(0, lanes, line):
                    self.pointers[node].prefetch(start + at)

    def _far(self) -> list[Node]:
        """What is read in step with the output, if a task's second-level cache does not hold both:
        it comes too late if it is asked for when it is needed.
        """
        out, root = self.region.output, self.problem.root
        read = [n for n in self.region.inputs if n not in root.operands and n.shape == out.shape]
        size = sum(n.type.bytes for n in (*read, out)) // self.tiling.tasks
        return read if size > self.device.l2_bytes else []

    def _finish(self, registers: Registers, pixels: list[Value], column: Value, run: Run) -> None:
        """Apply the elementwise nodes to a tile's sums and store it."""
        b, fused, lanes = self.b, self.fused, self.product.mac.width
        root = self.problem.root
        columns = root.type.dims[-1]
        for r, pixel in enumerate(pixels):
            index = b.let(pixel, "pixel")
            row = fused.row(index)
            first = 0
            for width in powers_of_two(run.vectors):
                last = first + width == run.vectors
                count = (width - 1) * lanes + (run.tail if last else lanes)
                held = of_row(self.product, registers, run.vectors, r, range(first, first + width))
                value = Vec(fused.m, b.let(held, "sums"), root.dtype, width * lanes)
                at = b.let(column + first * lanes, "n")
                result = fused.at(row, at, width * lanes, count, {self.summed: value})
                store(fused.m, self.out, index * columns + at, result, count)
                first += width
