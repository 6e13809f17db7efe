"""conv and matmul by constant weights of many zero blocks -> TIR that multiplies the others only.

A block is one vector of outputs by the elements of k that one multiply-accumulate takes (16 x 1
floats, 16 x 4 bytes where vectors have 64 bytes): what the pruning pass makes zero together. For
every vector of outputs the weights hold a list of its non-zero blocks, and beside it where in the
left operand each one's elements begin:

    for each tile of output pixels, for each vector of outputs
      for each block in its list
        sums[pixel] += left[pixel + offset of the block] * block

All else, from the loops over tiles to what follows the sums, is contraction/tiled.py's. Which
blocks are zero is in the packed weights, not in the code, so layers of one shape share a kernel.
The idea is that of Elsen et al., "Fast Sparse ConvNets" (CVPR 2020), where blocks are 16 x 1
floats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil

import numpy as np

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Registers, Value
from qcompiler.kernels.cpu.contraction import blocking
from qcompiler.kernels.cpu.contraction.blocking import Tiling, needs_copy
from qcompiler.kernels.cpu.contraction.layout import Layout
from qcompiler.kernels.cpu.contraction.microkernel import Left, Leftovers, Right, left_value
from qcompiler.kernels.cpu.contraction.operands import (
    Product,
    Run,
    product_of,
    tile_of,
)
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.kernels.cpu.contraction.saturation import without_saturation
from qcompiler.kernels.cpu.contraction.tiled import Task, emitted
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_HEAD = (
    64  # bytes before a panel's corrections: how many iterations, where offsets and blocks begin
)
_LIST_CYCLES = 0.5
"""Each block of a tile: its offset is loaded and its iteration counted."""


@candidates("conv", "matmul")
def sparse(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Only blocks of weights that are not zero."""
    root = region.root
    assert root is not None
    density = root.float("density")
    if density >= 1:
        return Skip("its weights have few zero blocks")
    if reason := refuse(region):
        return reason
    product = _product(region, root, device)
    problem = (
        product if isinstance(product, Skip) else problem_of(root, product.mac.lanes, device.core)
    )
    if isinstance(product, Skip) or isinstance(problem, Skip):
        return product if isinstance(product, Skip) else Skip("no such problem")
    if 0 in (problem.macs, *root.type.dims):
        return Skip("nothing to multiply")
    if product.sums != "int32" and problem.depth % product.mac.k:
        return Skip("what is read behind a row could be no number")
    if any(problem.right_images.strides):
        return Skip("a right operand for each image")
    stored = tir.bits(tir.stored(region.output.dtype)) // 8
    problem = _apart(replace(problem, result_bytes=stored), product, device)
    thin = replace(problem, depth=max(1, ceil(problem.depth * density)))

    def build(tiling: Tiling) -> Kernel:
        return emitted(_Layout(region, device, problem, product, tiling), _Task)

    found = blocking.priced(thin, product, device, vectors=1)
    lists = min(((c, _list_cycles(thin, product, device, t)) for c, t in found), default=(0, 0))[1]
    seconds = device.core.seconds
    return (Candidate(t, seconds(c + lists), partial(build, t)) for c, t in found)


def _product(region: Region, root: Node, device: Cpu) -> Product | Skip:
    """The product of the operands' dtypes, where lists of blocks may stand for the right one."""
    left, right = (i.dtype for i in root.operands)
    if not root.operands[1].is_constant:
        return Skip("its weights are not constant")
    if tile_of(device.isa, root) is not None:
        return Skip("tiles multiply all blocks faster than vectors some")
    if any(root.operands[1] in n.operands for n in region.nodes if n is not root):
        return Skip("the right operand is read again, as it is")
    if reason := too_large(region):
        return reason
    product = product_of(device.isa, left, right, root.dtype, packed=True)
    whole = product and replace(product, halved=False)  # of which runs would end at every block
    return whole or Skip(f"no product of {left} and {right}")


def _apart(problem: Problem, product: Product, device: Cpu) -> Problem:
    """Rows that push one another out of the first cache are copied further apart: blocks of all k
    are read in any order, where dense code reads a cache line of each row to its end.
    """
    if problem.columns > 1 or not blocking.conflicts(
        problem, product, device, device.isa.registers
    ):
        return problem
    gap = device.core.line_bytes * 8 // tir.bits(product.left)
    return replace(problem, frame=replace(problem.frame, right=problem.frame.right + gap))


def _list_cycles(thin: Problem, product: Product, device: Cpu, tiling: Tiling) -> float:
    """What one task's walk through lists of blocks takes beside multiplying them. Taller tiles walk
    less often, but no faster were they when measured: all are charged what the cheapest takes.
    """
    pixels = thin.images * thin.rows * thin.columns / tiling.rows / tiling.row_tasks
    vectors = -(-thin.width // product.mac.lanes) * thin.groups / tiling.column_tasks
    blocks = pixels * vectors * thin.tap_count * product.steps(thin.depth)
    return device.core.cycles(blocks * _LIST_CYCLES)


@dataclass(frozen=True)
class _Layout(Layout):
    """Lists of blocks in place of panels."""

    @property
    def name(self) -> str:
        """Of the kernel."""
        return "sparse_" + super().name

    @cached_property
    def copied(self) -> bool:
        """Is the left operand copied?"""
        ragged = self.problem.depth % self.product.mac.k != 0
        return needs_copy(self.problem, self.product) or ragged

    @cached_property
    def together(self) -> int:
        """Blocks of an iteration, each with sums of its own."""
        size = self.units.cut.size * (self.problem.columns if self.units.whole else 1)
        free = self.device.isa.registers - 2 - self.product.mac.temporaries
        most = min(self.device.core.chains, free) // size
        return 1 << max(most, 1).bit_length() - 1

    @property
    def head_bytes(self) -> int:
        """Bytes of a list's head."""
        return _HEAD + self.product.correction_bytes

    def pack(self, array: Array) -> Array:
        """Weights -> heads, then offsets, then blocks."""
        matrices = self.problem.matrices(array)[0]
        return packed(matrices, self.product, self.offsets, self.together)


class _Task(Task):
    """The code of one task while it is emitted."""

    layout: _Layout

    # -- the right operand

    def _right(self, matrix: Value, group: Value, run: Run, nth: Value, column: Value) -> Right:
        """The lists of one vector of outputs."""
        b, product = self.b, self.product
        memory = self.d.pointers[self.problem.right]
        panel = group * self.panels.panels + run.first + nth
        head = b.let(panel * self.layout.head_bytes, "head")
        count, offsets, blocks = (
            b.let(memory.load(head + 4 * i, 4, "int32"), name)
            for i, name in enumerate(("turns", "offsets", "blocks"))
        )

        def offset(i: Value) -> Value:
            return memory.load(offsets + i * 4, 4, "int32")

        def load(i: Value, v: int) -> Value:
            return memory.load(
                blocks + i * product.vector_bytes, product.vector_bytes, product.right
            )

        def correction(v: int) -> Value:
            return memory.load(head + _HEAD, product.correction_bytes, "int32")

        start = self.starts.of(column, run, correction if product.flipped else None)
        return Right(1, lambda step, v: load(step, v), start, Leftovers(count, offset, load))

    def _sums(self, left: Left, base: Value, right: Right) -> Registers:
        """Multiply `together` blocks an iteration, each into sums of its own, added at the end."""
        b, product, rows = self.b, self.product, len(left.offsets)
        mac, lists, together = product.mac, right.leftovers, self.layout.together
        assert lists is not None
        registers = b.registers(product.sums, mac.lanes, rows * together, "sum")
        registers.fill(0)
        if right.start:
            start = b.let(right.start(0), "start")
            for r in range(rows):
                registers[r] = start
        with b.serial(lists.count, "turn") as iteration:
            for t in range(together):
                i = b.let(iteration * together + t, "block")
                at = b.let(base + lists.offset(i), "at")
                block = b.let(lists.load(i, 0), "right")
                for r, offset in enumerate(left.offsets):
                    value = left_value(left.pointer, at + offset, mac.k, mac.k)
                    value = b.let(tir.broadcast(value, mac.lanes), "left")
                    s = t * rows + r
                    registers[s] = mac.emit(registers[s], value, block)
        for t in range(1, together):
            for r in range(rows):
                more = registers[t * rows + r]
                whole = product.sums == "int32"
                registers[r] = (
                    tir.wrapping("+", registers[r], more) if whole else registers[r] + more
                )
        return registers


def packed(matrices: Array, product: Product, taps: list[int], together: int) -> Array:
    """[groups, taps, depth, width] -> heads of all vectors of outputs, their offsets, their blocks.

    `taps` are the taps' offsets in the left operand, in elements; lists are filled up to multiples
    of `together` by blocks of zeros.
    """
    lists = [
        _blocks(columns, product, taps, together)
        for matrix in matrices
        for columns in _vectors(matrix, product)
    ]
    head_bytes = _HEAD + product.correction_bytes
    first_offset = len(lists) * head_bytes
    total = sum(len(found) for found, _, _ in lists)
    first_block = first_offset + -(-total * 4 // 64) * 64
    made = np.zeros(first_block + total * product.vector_bytes, np.uint8)
    done = 0
    for i, (offsets, blocks, corrections) in enumerate(lists):
        places = (first_offset + done * 4, first_block + done * product.vector_bytes)
        numbers = np.array([len(offsets) // together, *places], np.int32)
        at = i * head_bytes
        made[at : at + 12] = numbers.view(np.uint8)
        made[at + _HEAD : at + head_bytes] = corrections
        made[places[0] : places[0] + offsets.nbytes] = offsets.view(np.uint8)
        made[places[1] : places[1] + blocks.nbytes] = blocks.reshape(-1).view(np.uint8)
        done += len(offsets)
    return made


def _vectors(matrix: Array, product: Product) -> list[Array]:
    """[taps, depth, width] -> for each vector of outputs its [taps, steps * k, lanes]."""
    taps, depth, width = matrix.shape
    k, lanes = product.mac.k, product.mac.lanes
    same = tir.stored(matrix.dtype.name) == product.right
    values = matrix.view(product.right) if same else matrix.astype(product.right)
    full = np.zeros((taps, product.steps(depth) * k, -(-width // lanes) * lanes), product.right)
    full[:, :depth, :width] = values
    return np.split(full, full.shape[-1] // lanes, axis=-1)


def _blocks(
    columns: Array, product: Product, taps: list[int], together: int
) -> tuple[Array, Array, Array]:
    """One vector's columns [taps, steps * k, lanes] -> offsets, blocks, corrections in bytes."""
    corrections = np.zeros(0, np.uint8)
    if product.flipped:
        sums = -product.shift * columns.astype(np.int64).sum((0, 1))
        corrections = sums.astype(np.int32).view(np.uint8)
    parts = [columns]
    if product.leftovers:  # of what saturates, the rest is multiplied once more
        kept = without_saturation(columns[None])[0]
        rest = columns.astype(np.int16) - kept.astype(np.int16)
        parts = [kept, rest.astype(np.int8)]
    offsets: list[Array] = []
    blocks: list[Array] = []
    k, lanes = product.mac.k, product.mac.lanes
    for part in parts:
        steps = part.reshape(len(taps), -1, k, lanes).transpose(0, 1, 3, 2)
        tap, step = np.nonzero(steps.any((2, 3)))
        offsets.append((np.array(taps, np.int32)[tap] + step * k).astype(np.int32))
        blocks.append(steps[tap, step])
    at, held = np.concatenate(offsets), np.concatenate(blocks)
    more = -len(at) % together
    at = np.concatenate([at, np.repeat(at[:1], more)])
    held = np.concatenate([held, np.zeros((more, *held.shape[1:]), held.dtype)])
    return at, np.ascontiguousarray(held), corrections
