"""conv regions over images whose height and width only a run knows -> TIR.

As in tiled.py, but a tile is a part of one output row, of nearly one length along all of it
(counted.py), and what it has behind the row's end is not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft
from qcompiler.kernels.cpu.code.images import OpenImage, is_open
from qcompiler.kernels.cpu.code.loops import up
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.contraction.blocking import needs_copy
from qcompiler.kernels.cpu.contraction.counted import Tiles
from qcompiler.kernels.cpu.contraction.direct import direct
from qcompiler.kernels.cpu.contraction.layout import Layout
from qcompiler.kernels.cpu.contraction.operands import Run
from qcompiler.kernels.cpu.contraction.patch import Patch
from qcompiler.kernels.cpu.contraction.tiled import Block, Task, tilings
from qcompiler.kernels.registry import Candidate, Region, candidates
from qcompiler.ops.window import Window


@candidates("conv")
def tiled_images(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Any window over two dimensions; sums in registers, parts of rows by vectors of columns."""
    if not is_open(region):
        return Skip("images of known sizes")
    found = direct(region, device)
    if isinstance(found, Skip):
        return found
    problem, product = found[0], replace(found[1], zipped=False)
    if problem.flat:
        return Skip("pixels alone")
    if not needs_copy(problem, product) and any(lines for _, lines, _ in problem.taps):
        return Skip("lines of an image that is read as it lies, apart by a run's width")
    return tilings(region, device, problem, product, _Images)


class _Images(Task):
    """The code of one task while it is emitted."""

    late = False

    def __init__(self, d: Draft, layout: Layout, scratch: Pointer | None, task: Value) -> None:
        root = d.root
        x, w = root.operands
        window = Window.of(root, x.type.dims[1:-1], w.type.dims[:-2])
        self.image = OpenImage.of(d, window)
        self.nth_column: Value = tir.const(0)
        """Where the tile at hand begins in its row."""
        super().__init__(d, layout, scratch, task)

    def _counted(self) -> None:
        b, p, units, image = self.b, self.problem, self.layout.units, self.image
        tasks = self.layout.tiling.row_tasks
        self.rows, self.columns = image.rows, image.columns
        if self.patch is None:
            self.row = b.let(p.frame.step * p.pixel * image.width, "row")
        whole = units.cut.size if units.whole else 1
        size: Value = tir.const(min(self.layout.tiling.block * whole, p.rows))
        if tasks > 1:
            size = tirx.Min(tirx.Max(up(b, image.rows, tasks), tir.const(1)), size)
        self.size = b.hold(size, "rows")
        self.count = b.hold((image.rows + self.size - 1) // self.size, "blocks")
        longest = p.columns if units.whole else units.cut.size
        self.parts = Tiles.of(b, longest, p.columns, image.columns, least=image.least[1], few=True)
        self.runs = list(self.parts.runs(b))

    def _patch(self) -> Patch:
        assert self.scratch is not None
        source, target = self.d.pointers[self.problem.left], self.scratch.view(self.product.left)
        isa, lines = self.d.isa, self.layout.lines
        return Patch(self.b, isa, self.problem, self.product, source, target, lines, self.image)

    def _units(self) -> Value:
        return self.rows

    def _row_of(self, unit: Value) -> Value:
        return unit

    def _image_at(self, image: Value) -> Value:
        if self.problem.images == 1:
            return tir.const(0)
        return image * self.b.let(self.image.height * self.image.width * self.problem.pixel)

    def _each_tile(
        self, block: Block, body: Callable[[Value, Value, list[tuple[int, int]], Value], None]
    ) -> None:
        b, parts = self.b, self.parts
        with b.serial(block.last - block.first, "y", block.first) as y:
            for _, count, size, start in self.runs:
                with b.serial(count, "x") as t:
                    x = self.nth_column = b.let(parts.at_most(t * size + start, size), "x")
                    body(y, x, [(0, dx) for dx in range(size)], tir.const(0))

    def _pace(self, pace: int, block: Block, run: Run) -> Value:
        return 0

    def _there(self, nth: int) -> AbstractContextManager[None]:
        return self.b.when(self.nth_column + nth < self.columns)
