"""The sums of a tile of a depthwise convolution: a tile's columns -> registers, one vector of
channels for each output column and part of a block, before any elementwise node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm import tirx

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft
from qcompiler.kernels.cpu.code.epilogue import load
from qcompiler.kernels.cpu.code.tir import Registers, Value
from qcompiler.kernels.cpu.contraction.operands import bias_of
from qcompiler.kernels.cpu.windows.depthwise_columns import Columns, Interleaved
from qcompiler.kernels.cpu.windows.depthwise_filters import Filters


@dataclass(frozen=True)
class Block:
    """Channels from `channel` on, of which `count` exist, and where their packed weights begin."""

    channel: Value
    count: int
    weights: Value


class Sums:
    """The sums of one tile after the other while their code is emitted; `kept`: columns that the
    next tile reads, too, stay interleaved in registers.
    """

    def __init__(self, d: Draft, filters: Filters, kept: bool) -> None:
        self.d, self.b, self.filters = d, d.b, filters
        self.window, self.product = filters.shape.window, filters.product
        self.lanes, self.block = filters.lanes, filters.block
        root, intrinsics = d.root, d.isa.intrinsics
        self.x, w = root.operands
        self.bias = bias_of(d.region)[1]
        self.dtype = filters.short.sums if filters.short else root.dtype
        self.again = intrinsics.get("again")
        self.long = intrinsics["multiply_long"] if filters.long else None
        self.chain = d.region.known(w).run
        self.weights = d.pointers[w].view("uint8") if self.product else d.pointers[w]
        if self.product is not None:
            pad, shared = root.int("pad_value"), filters.shared if kept else 0
            self.columns = Interleaved(d.b, filters, pad, self.x.dtype, shared)

    def begin(self, block: Block) -> None:
        """A row of a block: nothing is kept of the tile before."""
        if self.product is not None:
            self.columns.begin(block.count)

    def of(self, columns: Columns, size: int, block: Block) -> Registers:
        """The sums of `size` output columns, each with all parts of the block."""
        parts = -(-block.count // self.lanes)
        sums = self.b.registers(self.dtype, self.lanes, size * parts, "sums")
        if self.filters.short is not None:
            self._short(sums, columns, size, block)
        elif self.product is None:
            self._floats(sums, columns, size, block)
        else:
            self._integers(sums, columns, size, block)
        return sums

    # -- what they begin with

    def _bias(self, block: Block) -> list[Value]:
        """The initial value of each vector of sums."""
        lanes, count = self.lanes, block.count
        if self.bias is None:
            return [tir.const(0, self.dtype, lanes)] * -(-count // lanes)
        pointer = self.d.pointers[self.bias]
        return [
            pointer.load_first(min(lanes, count - first), block.channel + first, lanes)
            for first in range(0, count, lanes)
        ]

    def _begin(self, sums: Registers, size: int, starts: list[Value]) -> None:
        for p, start in enumerate(starts):
            value = self.b.let(start, "start")
            for t in range(size):
                sums[t * len(starts) + p] = value

    def _begin_again(self, sums: Registers, size: int, block: Block) -> bool:
        """The same with biases loaded for every column, where that is better than to copy them (the
        intrinsic "again"); False where it is not, or they are no whole vectors.
        """
        parts = block.count // self.lanes
        if self.again is None or self.bias is None or block.count % self.lanes:
            return False
        pointer = self.d.pointers[self.bias] + block.channel
        for t in range(size):
            pointer = self.again(self.b, pointer)
            for p in range(parts):
                sums[t * parts + p] = tir.nth_vector(pointer, self.lanes, p)
        return True

    # -- which columns and taps meet

    def reach(self, size: int) -> int:
        """Input columns from a tile's first to its last."""
        return (size - 1) * self.window.strides[1] + self.filters.shape.reach[1]

    def _meets(self, j: int, size: int) -> list[tuple[int, int]]:
        """The (output column, kernel column) pairs of a tile that use its input column j."""
        stride, dilation = self.window.strides[1], self.window.dilations[1]
        taps = range(self.window.kernel[1])
        return [(t, k) for k in taps for t in range(size) if t * stride + k * dilation == j]

    # -- floats

    def _inputs(
        self, columns: Columns, size: int, count: int, dtype: str
    ) -> Iterator[tuple[Value, list[tuple[int, int]]]]:
        """Each vector of inputs that a tile uses, as `dtype`; its (output column, tap) pairs."""
        height, width = self.window.kernel
        for i in range(height):
            for j in range(self.reach(size)):
                meets = self._meets(j, size)
                memory = columns.at(i, j) if meets else None
                if memory is None:
                    continue  # unused, or zero
                x = load(self.d.m, memory, self.x.dtype, tir.const(0), self.lanes, count)
                value = self.b.let(self.d.m.cast(x, dtype).expr, "x")
                yield value, [(t, i * width + k) for t, k in meets]

    def _floats(self, sums: Registers, columns: Columns, size: int, block: Block) -> None:
        self._begin(sums, size, self._bias(block))
        weights = self.weights.view("float32")
        for value, taps in self._inputs(columns, size, block.count, "float32"):
            for t, tap in taps:
                w = weights.load(block.weights + tap * self.block, self.lanes)
                sums[t] = tir.fma(value, w, sums[t])

    def _short(self, sums: Registers, columns: Columns, size: int, block: Block) -> None:
        """All taps are added in short floats, then, as the scales say, to the bias."""
        product, width, weights = self.filters.short, self.block, block.weights
        assert product is not None
        mac, head = product.mac, product.scale_bytes // 2
        short = self.b.registers(self.x.dtype, self.lanes, size, "short")
        begun: set[int] = set()
        for value, taps in self._inputs(columns, size, block.count, self.x.dtype):
            for t, tap in taps:
                w = self.weights.load(weights + (head + width * tap), width)
                short[t] = mac.emit(short[t], value, w) if t in begun else value * w
                begun.add(t)
        scale = self.b.let(self.weights.load(weights, head, self.dtype), "scale")
        if not self._begin_again(sums, size, block):
            self._begin(sums, size, self._bias(block))
        for t in range(size):
            if t not in begun:  # all of its window is padding
                short[t] = tir.const(0, self.x.dtype, self.lanes)
            sums[t] = tir.fma(tir.cast(short[t], self.dtype), scale, sums[t])

    # -- bytes

    def _integers(self, sums: Registers, columns: Columns, size: int, block: Block) -> None:
        product = self.product
        assert product is not None
        starts = self._bias(block)
        if product.flipped:
            for p, start in enumerate(starts):
                at = block.weights + p * self.lanes * 4
                correction = self.weights.load(at, self.lanes * 4, "int32")
                starts[p] = tir.wrapping("+", start, correction)
        if self.long is not None:
            held = [self.b.let(s, "start") for s in starts]
            self._long(sums, columns, size, held, block)
            return
        if product.flipped or not self._begin_again(sums, size, block):
            self._begin(sums, size, starts)
        parts, head = len(starts), self.block * 4
        for g in range(self.filters.groups):
            for j in range(self.reach(size)):
                meets = self._meets(j, size)
                if not meets:
                    continue
                fours = self.columns.column(columns, g, j, size, block.count)
                for p, four in enumerate(fours):
                    lefts = [self.b.let(v, "left") for v in self._operands(four)]
                    for t, k in meets:
                        at = head + (g * self.window.kernel[1] + k) * self.filters.step_bytes
                        at += p * self.filters.part_bytes
                        total = sums[t * parts + p]
                        for i, left in enumerate(lefts):
                            where = block.weights + (at + i * self.lanes * 4)
                            right = self.weights.load(where, self.lanes * 4)
                            total = product.mac.emit(total, left, right)
                        sums[t * parts + p] = total

    def _operands(self, four: Value) -> list[Value]:
        """Four bytes a lane -> the product's operands: the bytes, or two pairs of int16."""
        product = self.product
        assert product is not None
        if product.mac.k == 4:
            return [four]
        kind = "int16" if self.x.dtype == "int8" else "uint16"
        both = tir.reinterpret(four, kind)
        eight = tir.const(8, kind, tir.lanes_of(both))
        odd = tirx.op.shift_right(both, eight)
        even = tirx.op.shift_right(tirx.op.shift_left(both, eight), eight)
        return [tir.reinterpret(v, "int16") for v in (even, odd)]

    def _long(
        self, sums: Registers, columns: Columns, size: int, starts: list[Value], block: Block
    ) -> None:
        """Chains of taps whose products are added in 16 bits, then to the sums or their initial
        values.
        """
        assert self.long is not None
        height, width = self.window.kernel
        taps = [(i, k) for i in range(height) for k in range(width)]
        stride, dilation = self.window.strides[1], self.window.dilations[1]
        read: dict[tuple[int, int], Value] = {}
        halves = [range(p, p + 8) for p in range(0, self.block, 8)][: -(-len(starts) // 2)]
        for first in range(0, len(taps), self.chain):
            chain = taps[first : first + self.chain]
            filters = []
            for n in range(first, first + len(chain)):
                at = block.weights + (self.block * 4 + n * self.block)
                filters.append(self.b.let(self.weights.load(at, self.block, "int8"), "w"))
            for t in range(size):
                places = [(i, t * stride + k * dilation) for i, k in chain]
                for place in places:
                    if place not in read:
                        found = self.columns.bytes(columns, *place, block.count)
                        assert found is not None
                        read[place] = self.b.let(tir.reinterpret(found, "int8"), "x")
                for h, half in enumerate(halves):
                    words = None
                    for place, w in zip(places, filters, strict=True):
                        one, other = (tir.shuffle(v, half) for v in (read[place], w))
                        made = self.long(one, other)
                        words = made if words is None else words + made
                    words = self.b.let(words, "words")
                    for p in range(2 * h, min(2 * h + 2, len(starts))):
                        lanes = range(p % 2 * 4, p % 2 * 4 + 4)
                        part = tir.cast(tir.shuffle(words, lanes), "int32")
                        before = sums[t * len(starts) + p] if first else starts[p]
                        sums[t * len(starts) + p] = tir.wrapping("+", before, part)
