"""matmul_narrow -> TIR that reads weights of 2, 4 or 8 bits and makes floats of them in registers.

A panel holds, for each group of k, vectors of 32-bit words; a word has the codes of 32 / bits
neighbours along k in one column, the first in its lowest bits. A code becomes the upper bits of the
mantissa of a float between 1 and 2, which takes a shift and a logic operation and no conversion:

    for each group
      for each step of 32 / bits k's
        words = one vector                       (a quarter of float32's traffic, or less)
        for each k of the step: right = float(1 + code / 2^bits) - (1 + zero / 2^bits)
          part[row] += left[row, k] * right
      sums[row] += part[row] * scale * 2^bits

Where many tiles of rows meet a panel, it is decoded into scratch first and multiplied as floats
are: the multiply-adds hide little else, so it should be done once. All else, from the loops over
tiles to what follows the sums, is contraction/tiled.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Registers, Value
from qcompiler.kernels.cpu.contraction import blocking
from qcompiler.kernels.cpu.contraction.blocking import Tiling, Units
from qcompiler.kernels.cpu.contraction.layout import Layout
from qcompiler.kernels.cpu.contraction.microkernel import Left, Right, Sums
from qcompiler.kernels.cpu.contraction.operands import Product, Run, product_of
from qcompiler.kernels.cpu.contraction.problem import Problem, problem_of
from qcompiler.kernels.cpu.contraction.tiled import Task, emitted
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates
from qcompiler.ops.registry import Numbers

Pairs = Sequence[tuple[Value, Value]]
_ONE = 0x3F800000  # float32's 1
_MANTISSA = 23
_VECTORS = (1, 2, 3, 4, 6)
_TILES = 3  # of rows that make it worth decoding a panel before


@candidates("matmul_narrow")
def narrow(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Weights are decoded between memory and the multiply-add."""
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    if not all(i.is_constant for i in root.operands[1:]):
        return Skip("its weights are not constant")
    if any(i in n.operands for n in region.nodes if n is not root for i in root.operands[1:]):
        return Skip("its weights are read again")
    product = product_of(device.isa, "float32", "float32", "float32")
    if product is None or product.mac.k != 1:
        return Skip("no product of floats")
    problem = problem_of(root, product.mac.lanes, device.core)
    if isinstance(problem, Skip):
        return problem
    if 0 in (problem.macs, *root.type.dims):
        return Skip("nothing to multiply")
    if reason := too_large(region):
        return reason
    problem = replace(problem, result_bytes=tir.bits(tir.stored(region.output.dtype)) // 8)

    def build(tiling: Tiling) -> Kernel:
        return emitted(_Layout(region, device, problem, product, tiling), _Task)

    found = _priced(problem, product, device)
    return (Candidate(t, device.core.seconds(c), partial(build, t)) for c, t in found)


def _priced(problem: Problem, product: Product, device: Cpu) -> list[tuple[float, Tiling]]:
    """The tilings of float products if the best of them decodes whole panels first; else those that
    leave registers for the words and zero points of each vector.
    """
    usual = blocking.priced(problem, product, device)
    best = min(usual, key=lambda p: p[0], default=None)
    if best is not None and _decoded(problem, best[1]):
        return [(c, t) for c, t in usual if _decoded(problem, t)]
    found = []
    for v in _VECTORS:
        isa = replace(device.isa, registers=device.isa.registers - v - 1)
        found += blocking.priced(problem, product, replace(device, isa=isa), vectors=v)
    return found


def _decoded(problem: Problem, tiling: Tiling) -> bool:
    units = Units.of(problem, tiling.rows).count
    return min(tiling.block, units) >= _TILES


@dataclass(frozen=True)
class _Layout(Layout):
    """Groups of `size` elements of k, in steps of a word each, `count` codes in a word."""

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.problem.root.int("bits")

    @property
    def of_groups(self) -> tuple[Node, ...]:
        """Scales and zero points."""
        return self.problem.root.operands[2:]

    @cached_property
    def size(self) -> int:
        """Elements of a group."""
        return min(self.problem.root.int("group"), self.problem.depth)

    @cached_property
    def count(self) -> int:
        """Codes in a word."""
        return 32 // self.bits

    @cached_property
    def steps(self) -> int:
        """Words for one column of a group."""
        return -(-self.size // self.count)

    @cached_property
    def groups(self) -> int:
        """Groups along k."""
        return -(-self.problem.depth // self.size)

    @cached_property
    def lanes(self) -> int:
        """Columns, filled up to whole vectors."""
        return self.panels.cut.length * self.product.mac.lanes

    @property
    def name(self) -> str:
        """Of the kernel."""
        return f"narrow{self.bits}_" + super().name

    @cached_property
    def matrix_bytes(self) -> int:
        """Bytes of the packed codes."""
        return self.groups * self.steps * self.lanes * 4

    @cached_property
    def decoded(self) -> bool:
        """Is a panel decoded before it is multiplied?"""
        return _decoded(self.problem, self.tiling)

    @cached_property
    def task_bytes(self) -> int:
        """Bytes of a task's scratch."""
        floats = self.problem.depth * self.panels.vectors * self.product.mac.lanes
        size = self.packed_at + (4 * floats if self.decoded else 0)
        return self.device.core.whole_lines(size)

    @property
    def packers(self) -> Mapping[int, Callable[[Array], Array]]:
        """Scales and zero points are packed as the codes are: filled up to whole vectors, and in
        units of a mantissa.
        """
        unit, (scale, zero) = np.float32(1 << self.bits), self.of_groups
        return {
            **super().packers,
            self.region.inputs.index(scale): lambda a: self._filled(a * unit),
            self.region.inputs.index(zero): lambda a: self._filled(1 + a / unit),
        }

    def _filled(self, array: Numbers) -> Array:
        return np.pad(array.astype(np.float32), ((0, 0), (0, self.lanes - array.shape[1])))

    def pack(self, array: Array) -> Array:
        """Codes [K,N] -> [panel][group][step][vector][lane]."""
        depth, width = array.shape
        padded = (self.groups * self.size - depth, self.lanes - width)
        whole = np.pad(array, [(0, p) for p in padded]).reshape(self.groups, self.size, -1)
        more = self.steps * self.count - self.size
        split = np.pad(whole, ((0, 0), (0, more), (0, 0))).astype(np.uint32)
        split = split.reshape(self.groups, self.steps, self.count, self.lanes)
        shifts = np.arange(self.count, dtype=np.uint32) * np.uint32(self.bits)
        merged = np.bitwise_or.reduce(split << shifts[:, None], axis=2)  # [group, step, column]
        ends = np.cumsum(self.panels.cut.sizes)[:-1] * self.product.mac.lanes
        parts = [part.reshape(-1) for part in np.split(merged, ends, axis=2)]
        return np.concatenate(parts).view(np.uint8)


class _Task(Task):
    """The code of one task while it is emitted."""

    layout: _Layout

    # -- the right operand

    def _right(self, matrix: Value, group: Value, run: Run, nth: Value, column: Value) -> Right:
        """One panel; `load(step, v)` gives words of codes."""
        lanes = self.product.mac.lanes
        memory = self.d.pointers[self.problem.right]
        vector = self.layout.groups * self.layout.steps * lanes
        at = run.column // lanes * vector + nth * (run.vectors * vector)
        at = self.b.let(matrix + at * 4, "at")

        def load(step: Value, v: int) -> Value:
            words = step * (run.vectors * lanes) + v * lanes
            return memory.load(at + words * 4, lanes * 4, "int32")

        right = Right(run.vectors, load, self.starts.of(column, run, None), column=column)
        return self._floats(right) if self.layout.decoded else right

    def _floats(self, right: Right) -> Right:
        """A panel of codes -> the same as floats, in scratch."""
        assert self.scratch is not None
        b, lanes = self.b, self.product.mac.lanes
        panel = (self.scratch + self.layout.packed_at).view("float32")

        def decode(at: Value, step: Value, scales: Pairs, count: int) -> None:
            words = [b.let(right.load(step, v), "words") for v in range(right.vectors)]
            for i in range(count):
                for v, (word, (scale, zero)) in enumerate(zip(words, scales, strict=True)):
                    value = (self._decoded(word, i) - zero) * scale
                    panel.store((at + i) * (right.vectors * lanes) + v * lanes, value)

        for g, size in self._groups():
            where = b.let(g * self.layout.lanes + right.column, "scales")
            scale, zero = self.layout.of_groups
            pairs = [
                (self._at(scale, where, v), self._at(zero, where, v)) for v in range(right.vectors)
            ]
            first = b.let(g * self.layout.steps, "first")
            begin = b.let(g * self.layout.size, "begin")
            with b.serial(size // self.layout.count, "step") as step:
                decode(
                    b.let(begin + step * self.layout.count),
                    b.let(first + step),
                    pairs,
                    self.layout.count,
                )
            if rest := size % self.layout.count:
                step = b.let(first + size // self.layout.count)
                decode(b.let(begin + (size - rest)), step, pairs, rest)

        def load(step: Value, v: int) -> Value:
            return panel.load(step * (right.vectors * lanes) + v * lanes, lanes)

        return Right(right.vectors, load, right.start)

    def _groups(self) -> Iterator[tuple[Value, int]]:
        """The whole groups, within a loop over them, and what is left: (which, its size)."""
        whole = self.problem.depth // self.layout.size
        with self.b.serial(whole, "k_group") as g:
            yield g, self.layout.size
        if rest := self.problem.depth - whole * self.layout.size:
            yield tir.const(whole), rest

    def _at(self, node: Node, where: Value, v: int) -> Value:
        lanes = self.product.mac.lanes
        return self.b.let(self.d.pointers[node].load(where + v * lanes, lanes), "of_group")

    def _sums(self, left: Left, base: Value, right: Right) -> Sums:
        """Groups one after the other, each with its zero points in registers."""
        if self.layout.decoded:
            return super()._sums(left, base, right)
        b, product = self.b, self.product
        lanes, rows = product.mac.lanes, len(left.offsets)
        registers = b.registers(product.sums, lanes, rows * right.vectors, "sum")
        for v in range(right.vectors):
            zero = tir.const(0, product.sums, lanes)
            start = b.let(right.start(v), "start") if right.start else zero
            for r in range(rows):
                registers[r * right.vectors + v] = start
        for g, size in self._groups():
            self._group(registers, left, b.let(base + g * self.layout.size, "at"), right, g, size)
        return registers

    def _group(
        self, registers: Registers, left: Left, at: Value, right: Right, g: Value, size: int
    ) -> None:
        """A group's products, in steps of its scales, then times these."""
        b, lanes, rows = self.b, self.product.mac.lanes, len(left.offsets)
        where = b.let(g * self.layout.lanes + right.column, "scales")
        scale_of, zero_of = self.layout.of_groups
        zeros = [self._at(zero_of, where, v) for v in range(right.vectors)]
        part = b.registers(self.product.sums, lanes, rows * right.vectors, "part")
        part.fill(0)
        first = b.let(g * self.layout.steps, "first")
        with b.serial(size // self.layout.count, "step") as step:
            k = b.let(at + step * self.layout.count, "k")
            self._step(part, left, k, right, b.let(first + step), zeros, self.layout.count)
        if rest := size % self.layout.count:
            k = b.let(at + (size - rest), "k")
            step = b.let(first + size // self.layout.count)
            self._step(part, left, k, right, step, zeros, rest)
        for v in range(right.vectors):
            scale = self._at(scale_of, where, v)
            for r in range(rows):
                i = r * right.vectors + v
                registers[i] = tir.fma(part[i], scale, registers[i])

    def _step(
        self,
        part: Registers,
        left: Left,
        at: Value,
        right: Right,
        step: Value,
        zeros: list[Value],
        count: int,
    ) -> None:
        """The codes of one vector of words for each vector of columns."""
        b, mac = self.b, self.product.mac
        words = [b.let(right.load(step, v), "words") for v in range(right.vectors)]
        for i in range(count):
            weights = [
                b.let(self._decoded(word, i) - zero, "right")
                for word, zero in zip(words, zeros, strict=True)
            ]
            for r, offset in enumerate(left.offsets):
                x = b.let(tir.broadcast(left.pointer.load(at + offset + i), mac.lanes), "left")
                for v, weight in enumerate(weights):
                    index = r * right.vectors + v
                    part[index] = mac.emit(part[index], x, weight)

    def _decoded(self, words: Value, i: int) -> Value:
        """The i-th code of each word -> 1 + code / 2^bits."""
        lanes, up = self.product.mac.lanes, _MANTISSA - self.layout.bits - i * self.layout.bits

        def number(value: int) -> Value:
            return tir.const(value, "int32", lanes)

        if up > 0:
            words = tirx.op.shift_left(words, number(up))
        elif up < 0:
            words = tirx.op.shift_right(words, number(-up))
        mask = ((1 << self.layout.bits) - 1) << (_MANTISSA - self.layout.bits)
        return tir.reinterpret((words & number(mask)) | number(_ONE), "float32")
