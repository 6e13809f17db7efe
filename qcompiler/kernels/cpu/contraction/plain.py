"""conv and matmul of any rank, dtype and machine -> TIR loops; what answers when nothing else does.

Output pixels one at a time, a vector of channels in a register, or, where no other generator has a
product of these dtypes, several of both; operands are read as they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse
from qcompiler.kernels.cpu.code.epilogue import Fused, store
from qcompiler.kernels.cpu.code.loops import indices, share, sweep, tasks
from qcompiler.kernels.cpu.code.math import TirMath
from qcompiler.kernels.cpu.code.tails import Tails
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.contraction.blocking import level
from qcompiler.kernels.cpu.contraction.direct import direct
from qcompiler.kernels.cpu.contraction.problem import Batch
from qcompiler.kernels.registry import Candidate, Fixed, Kernel, Knobs, Region, candidates
from qcompiler.ops.window import Window

Add = Callable[[Sequence[Value], Value], None]
"""(a number of each pixel, the place of the weights) -> code."""

MACS_PER_NS = 1.0  # of the reference core; of what is worth sharing
STEP_NS = 2.0  # a product of a vector waits for the one before, and for its operands
PIXEL_NS = 20.0  # to begin an output pixel
TAP_NS = 5.0  # and each tap of its window
LOAD_NS = 0.3  # a vector, or a number in all lanes of one


@dataclass(frozen=True)
class Block:
    """Sums that are computed side by side: of pixels, and of vectors of each one's channels."""

    pixels: int
    vectors: int


_ONE = Block(1, 1)
_MOST_SUMS = 16
"""Vectors of sums: more leave no registers for what they are made of."""


@candidates("conv", "matmul")
def plain(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Nested loops over the output, the window and the channels."""
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    left, right = root.operands
    depth = left.type.dims[-1] if root.op == "matmul" else prod(right.type.dims[:-1])
    macs, pixels = root.type.size * depth, prod(root.type.dims[:-1])
    found: list[Candidate] = []
    for block in _blocks(root, device) if isinstance(direct(region, device), Skip) else [_ONE]:
        parts = pixels // block.pixels
        count = tasks(device, device.core.mixed_ns(macs / MACS_PER_NS), parts)
        seconds = 1e-9 * _nanoseconds(root, depth, pixels, device, block)  # one core's
        knobs: Knobs = Fixed() if block == _ONE else block
        build = partial(_plain, region, device, macs, count, block)
        found.append(Candidate(knobs, seconds, build))
    return found


def _blocks(root: Node, device: Cpu) -> list[Block]:
    """Blocks that fit the registers and divide the output: pixels of one row of a matrix."""
    lanes, width = device.isa.lanes(tir.bits(root.dtype) // 8), root.type.dims[-1]
    matmul = root.op == "matmul"
    along = width if matmul else width // max(root.int("group"), 1)
    rows = root.type.dims[-2] if matmul and root.type.rank > 1 and lanes > 1 else 1
    most = min(-(-along // lanes), device.isa.lanes(1) // lanes)
    vectors = [1] if matmul and root.int("transpose_b") else [v for v in _POWERS if v <= most]
    pixels = [p for p in _POWERS if rows and rows % p == 0]
    return [Block(p, v) for p in pixels for v in vectors or [1] if p * v <= _MOST_SUMS]


_POWERS = (1, 2, 4, 8)


def _nanoseconds(root: Node, depth: int, pixels: int, device: Cpu, block: Block) -> float:
    """One core's time. Weights are read again for every pixel, or for several at once, and their
    rows lie apart: no hardware prefetches them, so they come half as fast as those that are packed;
    what has fewer bits than the sums is widened each time, and comes no faster.
    """
    core, itemsize = device.core, tir.bits(root.dtype) // 8
    steps = _vectors(root, device) * depth
    size = 2 * steps * device.isa.lanes(tir.bits(root.dtype) // 8) * itemsize
    again = core.bytes_per_cycle[level(device, root.operands[1].type.bytes)]
    turns = max(pixels, 1) / block.pixels
    fetch = size / core.memory_bytes_per_cycle + max(turns - 1, 0) * size / again
    taps = prod(root.operands[1].type.dims[:-2]) if root.op == "conv" else 1
    step = max(STEP_NS / (block.pixels * block.vectors), _load_ns(block))
    ns = core.mixed_ns(pixels * (steps * step + taps * TAP_NS + PIXEL_NS))
    multiply = core.hz * 1e-9 * ns
    return 1e9 * core.seconds(core.overlapped(multiply, fetch))


def _load_ns(block: Block) -> float:
    """What loading the operands of a product takes: a number and a vector serve several."""
    return LOAD_NS * (1 / block.pixels + 1 / block.vectors)


def _vectors(root: Node, device: Cpu) -> int:
    """How many vectors of sums an output pixel takes, as `_Sums.along` goes through them."""
    width, lanes = root.type.dims[-1], device.isa.lanes(tir.bits(root.dtype) // 8)
    if root.op == "matmul":
        return width if root.int("transpose_b") else -(-width // lanes)
    groups = root.int("group")
    return groups * -(-width // groups // lanes)


def _plain(region: Region, device: Cpu, macs: int, count: int, block: Block) -> Kernel:
    root, out = region.root, region.output
    assert root is not None
    b = Builder(
        f"{root.op}_plain_{root.type.size}x{macs // max(root.type.size, 1)}", Tails.of(device.isa)
    )
    pointers = {n: b.pointer(f"in{i}", n.dtype) for i, n in enumerate(region.inputs)}
    target = b.pointer("out", out.dtype)
    *dims, width = root.type.dims
    rows = prod(dims)
    if not root.type.size:
        return Kernel(b.name, b.function())
    with share(b, count, rows // block.pixels) as (first, turns):
        fused = _fused(b, device, region, pointers)
        with b.serial(turns, "row", first) as turn:
            row = turn if block.pixels == 1 else b.let(turn * block.pixels, "row")
            emit = _Sums(b, root, pointers, indices(b, row, tuple(dims)), block.pixels)
            lines = [fused.row(row + i) for i in range(block.pixels)]

            def vector(column: Value, lanes: int, count: int) -> None:
                for i, sums in enumerate(emit.at(column, lanes, count)):
                    given: Mapping[Node, Vec] = {root: Vec(fused.m, sums, root.dtype, lanes)}
                    made = fused.at(lines[i], column, lanes, count, given)
                    store(fused.m, target, (row + i) * width + column, made, count)

            emit.along(width, device.isa.lanes(tir.bits(root.dtype) // 8), block.vectors, vector)
    return Kernel(b.name, b.function(), tasks=count, macs=macs, generic=True)


def _fused(b: Builder, device: Cpu, region: Region, pointers: Mapping[Node, Pointer]) -> Fused:
    assert region.root is not None
    nodes = [n for n in region.nodes if n is not region.root]
    m = TirMath(b, device.isa)
    return Fused(m, region, nodes, region.output, pointers, given=(region.root,))


class _Sums:
    """The sums of some output pixels, neighbours in a row of a matrix if several."""

    def __init__(
        self,
        b: Builder,
        root: Node,
        pointers: Mapping[Node, Pointer],
        place: list[Value],
        pixels: int,
    ) -> None:
        self.b, self.root, self.place, self.pixels = b, root, place, pixels
        self.left, self.right = root.operands
        self.x, self.w = pointers[self.left], pointers[self.right]
        self.outputs = root.type.dims[-1]

    def along(
        self, width: int, lanes: int, vectors: int, body: Callable[[Value, int, int], None]
    ) -> None:
        """Call body(column, lanes, how many count): some vectors where weights are neighbours, as
        one of more lanes; then what is left, one by one.
        """
        if self.root.op == "matmul" and self.root.int("transpose_b"):
            with self.b.serial(width, "column") as column:
                body(column, 1, 1)
            return
        groups = self.root.int("group") if self.root.op == "conv" else 1
        each = width // groups
        if each == 1:
            lanes = 1
        with self.b.serial(groups, "group") as group:
            start = self.b.let(group * each, "start")
            wide = each - each % (lanes * vectors) if vectors > 1 else 0
            for length, many in ((wide, lanes * vectors), (each - wide, lanes)):

                def vector(column: Value, count: int, many: int = many) -> None:
                    body(column, many, count)

                sweep(self.b, length, many, vector, start=start if many > lanes else start + wide)

    def at(self, column: Value, lanes: int, count: int) -> list[Value]:
        """The sums of each pixel for `lanes` columns from `column` on, of which `count` exist."""
        sums = self.b.registers(self.root.dtype, lanes, self.pixels, "sum")
        sums.fill(0)

        def add(numbers: Sequence[Value], at: Value) -> None:
            row = self.w.load(at) if lanes == 1 else self.w.load_first(count, at, lanes)
            right = self._widen(row, self.right.dtype)
            right = right if self.pixels == 1 else self.b.hold(right)
            for i, x in enumerate(numbers):
                left = tir.broadcast(self._widen(x, self.left.dtype), lanes)
                if "int" in self.root.dtype:
                    sums[i] = tir.wrapping("+", sums[i], tir.wrapping("*", left, right))
                else:
                    sums[i] = sums[i] + left * right

        if self.root.op == "matmul":
            self._over_depth(column, add)
        else:
            self._over_window(column, add)
        return [self.b.let(sums[i], "sums") for i in range(self.pixels)]

    def _widen(self, value: Value, dtype: str) -> Value:
        if dtype != "bfloat16":
            return tir.cast(value, self.root.dtype)
        wide = tir.cast(value, "uint32")
        shifted = tirx.op.shift_left(wide, tir.const(16, "uint32", tir.lanes_of(wide)))
        return tir.reinterpret(shifted, "float32")

    def _over_depth(self, column: Value, add: Add) -> None:
        """Rows of the left matrix against columns of the right one."""
        *batch, row = self.place
        *dims, rows, _ = self.root.type.dims
        depth = self.left.type.dims[-1]
        starts = []
        for operand, size in ((self.left, rows * depth), (self.right, depth * self.outputs)):
            strides = Batch.of(tuple(dims), operand.type.dims[:-2], size).strides
            moves = (i * s for i, s in zip(batch, strides, strict=True) if s)
            starts.append(self.b.let(sum(moves, start=tir.const(0)), "start"))
        transposed = bool(self.root.int("transpose_b"))
        with self.b.serial(depth, "k") as k:
            at = column * depth + k if transposed else k * self.outputs + column
            each = [row + i for i in range(self.pixels)]
            add([self.x.load(starts[0] + r * depth + k) for r in each], starts[1] + at)

    def _over_window(self, column: Value, add: Add) -> None:
        """All that a window sees; padding counts as its value."""
        b, root = self.b, self.root
        _, *sizes, channels = self.left.type.dims
        each = self.right.type.dims[-2]
        window = Window.of(root, sizes, self.right.type.dims[:-2])
        group = b.let(tirx.floordiv(column, self.outputs // root.int("group")), "group")
        padding = tir.const(root.int("pad_value"), tir.stored(self.left.dtype))

        def channel_loop(at: Value, tap: Value, inside: bool) -> None:
            with b.serial(each, "channel") as c:
                x = self.x.load(at * channels + group * each + c) if inside else padding
                add([x], (tap * each + c) * self.outputs + column)

        def nest(axis: int, at: Value, tap: Value, fits: Value) -> None:
            if axis == len(sizes):
                with b.when(fits):
                    channel_loop(b.let(at, "at"), tap, True)
                if root.int("pad_value"):
                    with b.otherwise():
                        channel_loop(at, tap, False)
                return
            begin = (window.pads[axis] or (0, 0))[0]
            with b.serial(window.kernel[axis], "tap") as t:
                where = self.place[axis + 1] * window.strides[axis] - begin
                i = b.let(where + t * window.dilations[axis], "i")
                here = tirx.And(i >= 0, i < sizes[axis])
                nest(
                    axis + 1,
                    at * sizes[axis] + i,
                    tap * window.kernel[axis] + t,
                    tirx.And(fits, here),
                )

        nest(0, self.place[0], tir.const(0), tirx.IntImm("bool", 1))
