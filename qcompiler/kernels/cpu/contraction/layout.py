"""A problem, its product and a tiling -> what their kernel decides before any code is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.contraction.blocking import Tiling, Units, needs_copy
from qcompiler.kernels.cpu.contraction.operands import (
    Panels,
    Product,
    pack,
    panel_bytes,
    rounded_bias,
    to_float16,
)
from qcompiler.kernels.cpu.contraction.pairs import doubled
from qcompiler.kernels.cpu.contraction.problem import Problem
from qcompiler.kernels.registry import Region

_GUARD = 64
"""Bytes behind a copy that a vector may reach into."""


@dataclass(frozen=True)
class Layout:
    """How work is cut, and where operands and their copies lie."""

    region: Region
    device: Cpu
    problem: Problem
    product: Product
    tiling: Tiling
    pairs: bool = False
    """Are both rows of a vector of sums finished together (pairs.py)?"""
    twice: frozenset[Node] = frozenset()
    """Constants that are packed for both rows."""

    @property
    def name(self) -> str:
        """Of the kernel."""
        p, root = self.problem, self.problem.root
        kernel = "x".join(map(str, root.operands[1].type.dims[:-2])) if root.op == "conv" else ""
        after = [n.op.lower() for n in self.region.nodes if n is not root]
        tile = f"{self.tiling.rows}x{self.tiling.vectors * self.product.mac.width}"
        pixels = p.images * p.rows * p.columns
        shape = f"{pixels}x{p.width * p.groups}x{p.depth * p.tap_count}"
        return "_".join([f"{root.op}{kernel}", self.product.name, shape, tile, *after[:4]])

    @cached_property
    def panels(self) -> Panels:
        """Of the right operand."""
        return Panels.of(self.problem.width, self.product.mac.width, self.tiling.vectors)

    @cached_property
    def units(self) -> Units:
        """Of an image's output pixels."""
        return Units.of(self.problem, self.tiling.rows)

    @cached_property
    def blocks(self) -> int:
        """Blocks of an image."""
        return -(-self.units.count // self.tiling.block)

    # -- the left operand

    @cached_property
    def copied(self) -> bool:
        """Is the left operand copied?"""
        return needs_copy(self.problem, self.product)

    @cached_property
    def lines(self) -> int:
        """Lines of one plane that a block sees."""
        frame, size = self.problem.frame, self.units.cut.size
        rows = self.tiling.block * size if self.units.whole else self.tiling.block
        return (min(rows, self.problem.rows) - 1) * frame.step + frame.reach

    @cached_property
    def row(self) -> int:
        """Elements from one output row's left operand to the next one's."""
        return self.problem.frame.step * self.problem.frame.padded_line

    @cached_property
    def taps(self) -> tuple[tuple[int, int], ...]:
        """How often, and how far apart in elements of the left operand, or of its copy."""
        frame, planes = self.problem.frame, self.problem.planes
        plane = (self.lines if self.copied else planes.apart * frame.height) * frame.padded_line
        outer = ((planes.count, plane),) if planes.count > 1 else ()
        return (*outer, *((n, y * frame.padded_line + x) for n, y, x in self.problem.taps))

    @property
    def offsets(self) -> list[int]:
        """Of all taps; where rows are zipped, as if each began where the one before it ends."""
        if self.product.zipped:
            return [i * self.problem.depth for i in range(self.problem.tap_count)]
        offsets = [0]
        for count, elements in self.taps:
            offsets = [o + i * elements for o in offsets for i in range(count)]
        return offsets

    @cached_property
    def tile_elements(self) -> int:
        """Elements of a tile's rows, zipped, of all taps."""
        size = self.units.cut.size * (self.problem.columns if self.units.whole else 1)
        steps = self.product.steps(self.problem.depth) * self.problem.tap_count
        return self.product.lefts(size) * self.product.zipped_vector * steps

    # -- the right operand

    @property
    def constant(self) -> bool:
        """Is it packed once and for all?"""
        return self.problem.right.is_constant

    @cached_property
    def packs(self) -> bool:
        """Does the kernel itself pack it?"""
        p = self.problem
        same = tir.stored(p.right.dtype) == self.product.right
        in_place = self.product.mac.k == 1 and same and p.root.op == "matmul" and not p.transposed
        return not self.constant and not in_place

    @cached_property
    def matrix_bytes(self) -> int:
        """Bytes of one packed right matrix."""
        p = self.problem
        return panel_bytes(self.product, p.tap_count, p.depth, self.panels.cut.length)

    def pack(self, array: Array) -> Array:
        """The right operand, as the kernel reads it."""
        return pack(self.problem.matrices(array), self.product, self.panels, self.offsets)

    @property
    def packers(self) -> Mapping[int, Callable[[Array], Array]]:
        """Constant inputs' positions -> how they are packed."""
        packed: dict[Node, Callable[[Array], Array]] = {}
        if self.constant:
            packed[self.problem.right] = self.pack
        packed |= dict.fromkeys(self.twice, doubled(self.product))
        packed |= dict.fromkeys(rounded_bias(self.region, self.product.sums), to_float16)
        return {self.region.inputs.index(n): pack for n, pack in packed.items()}

    # -- a task's scratch

    @cached_property
    def zipped_at(self) -> int:
        """Where zipped rows begin: behind the copy of the left operand's lines."""
        if not self.copied:
            return 0
        lines = self.problem.planes.count * self.lines
        return self._area(lines * self.problem.frame.padded_line)

    @cached_property
    def packed_at(self) -> int:
        """Where right matrices that the kernel packs begin: behind all copies of the left one."""
        if not self.product.zipped:
            return self.zipped_at
        pieces = 1 if self.units.whole else self.units.cut.pieces
        return self.zipped_at + self._area(self.tiling.block * pieces * self.tile_elements)

    def _area(self, elements: int) -> int:
        """Bytes for so many elements of the left operand, and a guard."""
        size = elements * tir.bits(self.product.left) // 8 + _GUARD
        return self.device.core.whole_lines(size)

    @cached_property
    def task_bytes(self) -> int:
        """Bytes of a task's scratch."""
        packed = self.device.core.whole_lines(self.matrix_bytes * self.problem.groups)
        return self.packed_at + (packed if self.packs else 0)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all tasks' scratch."""
        return self.task_bytes * self.tiling.tasks + (_GUARD if self.task_bytes else 0)

    # -- the epilogue

    @cached_property
    def prefetched(self) -> list[Node]:
        """What is read in step with the output, if a task's second-level cache does not hold both:
        it would come too late if it were loaded when it is needed.
        """
        out, root = self.region.output, self.problem.root
        read = [n for n in self.region.inputs if n not in root.operands and n.shape == out.shape]
        size = sum(n.type.bytes for n in (*read, out)) // self.tiling.tasks
        return read if size > self.device.l2_bytes else []
