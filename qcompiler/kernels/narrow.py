"""matmul_narrow -> TIR that reads weights of 2, 4 or 8 bits and makes floats of them in registers.

A panel holds, for each group of k, vectors of bytes; a byte has the codes of 8 / bits neighbours
along k in one column, the first in its lowest bits:

    for each group, for each step of 8 / bits k's
      bytes = one vector                         (a quarter of float32's traffic, or less)
      for each k of the step: right = float(bits of bytes) * scale + offset
        sums[row] += left[row, k] * right

All else, from the loops over tiles to what follows the sums, is contraction.py's. How fast few rows
are multiplied is decided by memory, so they gain most; many rows pay a few instructions a vector.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.ir import Array
from qcompiler.isa import Device
from qcompiler.kernels import contraction_blocking as blocking
from qcompiler.kernels import tir
from qcompiler.kernels.contraction import Contraction, is_constant
from qcompiler.kernels.contraction_blocking import Tiling
from qcompiler.kernels.contraction_operands import Product, Run, product_of
from qcompiler.kernels.contraction_problem import Problem, problem_of
from qcompiler.kernels.draft import refuse
from qcompiler.kernels.microkernel import Left, Right
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.kernels.tir import Registers, Value

_OFFSETS = 1 << 31
_SPARE = 3  # registers for a vector's scale and offset, and its codes


@kernel("matmul_narrow", rows=(1, 2, 4, 6, 8, 12), vectors=(1, 2, 3, 4))
def narrow(
    region: Region, device: Device, *, rows: int = 0, vectors: int = 0, tasks: int = 0
) -> Kernel | Skip:
    """Weights are decoded between memory and the multiply-add."""
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    if not all(is_constant(i) for i in root.operands[1:]):
        return Skip("its weights are not constant")
    if any(i in n.operands for n in region.nodes if n is not root for i in root.operands[1:]):
        return Skip("its weights are read again")
    product = product_of(device.isa, "float32", "float32", "float32")
    if product is None or product.mac.k != 1:
        return Skip("no product of floats")
    problem = problem_of(root, product.mac.lanes)
    if isinstance(problem, Skip):
        return problem
    if 0 in (problem.macs, *root.type.dims):
        return Skip("nothing to multiply")
    if any(n.type.size * 4 >= _OFFSETS for n in (*region.inputs, region.output)):
        return Skip("an operand is too large for 32-bit offsets")
    problem = replace(problem, result_bytes=tir.bits(tir.stored(region.output.dtype)) // 8)
    isa = replace(device.isa, registers=device.isa.registers - _SPARE)
    tiling = blocking.choose(
        problem, product, replace(device, isa=isa), rows=rows, vectors=vectors, tasks=tasks
    )
    if tiling is None:
        return Skip(f"{rows or 'any'} x {vectors or 'any'} sums do not fit the registers")
    return _Narrow(region, device, problem, product, tiling).kernel()


class _Narrow(Contraction):
    """One kernel while it is emitted."""

    def __init__(
        self, region: Region, device: Device, problem: Problem, product: Product, tiling: Tiling
    ) -> None:
        self.scale, self.offset = problem.root.operands[2:]
        self.bits = problem.root.int("bits")
        self.size = min(problem.root.int("group"), problem.depth)
        self.count = 8 // self.bits  # codes in a byte
        self.steps = -(-self.size // self.count)  # bytes for one column of a group
        self.groups = -(-problem.depth // self.size)
        super().__init__(region, device, problem, product, tiling)

    def kernel(self) -> Kernel:
        """Scales and offsets are packed as the codes are: filled up to whole vectors."""
        made = super().kernel()
        inputs = self.region.inputs
        packs = {inputs.index(n): self._pack_row for n in (self.scale, self.offset)}
        return replace(made, pack={**made.pack, **packs})

    def _name(self) -> str:
        return f"narrow{self.bits}_" + super()._name()

    @property
    def _lanes(self) -> int:
        """Columns, filled up to whole vectors."""
        lanes = self.product.mac.lanes
        return -(-self.problem.width // lanes) * lanes

    def _matrix_bytes(self) -> int:
        return self.groups * self.steps * self._lanes

    # -- the right operand

    def _pack_row(self, array: Array) -> Array:
        return np.pad(array, ((0, 0), (0, self._lanes - array.shape[1])))

    def _pack(self, array: Array) -> Array:
        """Codes [K,N] -> [panel][group][step][vector][lane]."""
        depth, width = array.shape
        padded = (self.groups * self.size - depth, self._lanes - width)
        whole = np.pad(array, [(0, p) for p in padded]).reshape(self.groups, self.size, -1)
        more = self.steps * self.count - self.size
        split = np.pad(whole, ((0, 0), (0, more), (0, 0))).astype(np.uint8)
        split = split.reshape(self.groups, self.steps, self.count, self._lanes)
        shifts = np.arange(self.count, dtype=np.uint8) * np.uint8(self.bits)
        merged = np.bitwise_or.reduce(split << shifts[:, None], axis=2)  # [group, step, column]
        parts, first, lanes = [], 0, self.product.mac.lanes
        panels = self.panels
        for vectors in [panels.vectors] * panels.count + [panels.vectors - 1] * panels.rest:
            parts.append(merged[:, :, first : first + vectors * lanes].reshape(-1))
            first += vectors * lanes
        return np.concatenate(parts)

    def _right(self, matrix: Value, group: Value, run: Run, nth: Value, column: Value) -> Right:
        """One panel; `load(step, v)` gives bytes of codes."""
        lanes = self.product.mac.lanes
        memory = self.pointers[self.problem.right]
        vector = self.groups * self.steps * lanes
        at = run.column // lanes * vector + nth * (run.vectors * vector)
        at = self.b.let(matrix + at, "at")
        self.column = column

        def load(step: Value, v: int) -> Value:
            return memory.load(at + step * (run.vectors * lanes) + v * lanes, lanes)

        return Right(run.vectors, load, self._start(column, run, None))

    def _sums(self, left: Left, base: Value, right: Right) -> Registers:
        """Groups one after the other, each with its scales and offsets in registers."""
        b, product = self.b, self.product
        lanes, rows = product.mac.lanes, len(left.offsets)
        registers = b.registers(product.sums, lanes, rows * right.vectors, "sum")
        for v in range(right.vectors):
            zero = tir.const(0, product.sums, lanes)
            start = b.let(right.start(v), "start") if right.start else zero
            for r in range(rows):
                registers[r * right.vectors + v] = start
        depth = self.problem.depth
        whole = depth // self.size
        with b.serial(whole, "k_group") as g:
            self._group(registers, left, b.let(base + g * self.size, "at"), right, g, self.size)
        if rest := depth - whole * self.size:
            at = b.let(base + whole * self.size, "at")
            self._group(registers, left, at, right, tir.const(whole), rest)
        return registers

    def _group(
        self, registers: Registers, left: Left, at: Value, right: Right, g: Value, size: int
    ) -> None:
        b, lanes = self.b, self.product.mac.lanes
        where = b.let(g * self._lanes + self.column, "scales")
        pair = [
            [
                b.let(self.pointers[n].load(where + v * lanes, lanes), "scale")
                for v in range(right.vectors)
            ]
            for n in (self.scale, self.offset)
        ]
        first = b.let(g * self.steps, "first")
        with b.serial(size // self.count, "step") as step:
            k = b.let(at + step * self.count, "k")
            self._step(registers, left, k, right, b.let(first + step), pair, self.count)
        if rest := size % self.count:
            k = b.let(at + (size - rest), "k")
            step = b.let(first + size // self.count)
            self._step(registers, left, k, right, step, pair, rest)

    def _step(
        self,
        registers: Registers,
        left: Left,
        at: Value,
        right: Right,
        step: Value,
        pair: list[list[Value]],
        count: int,
    ) -> None:
        """The codes of one vector of bytes for each vector of columns."""
        b, mac = self.b, self.product.mac
        lanes = mac.lanes
        codes = [
            b.let(tir.cast(right.load(step, v), "int32"), "codes") for v in range(right.vectors)
        ]
        for i in range(count):
            weights = []
            for v, value in enumerate(codes):
                if i:
                    value = tirx.op.shift_right(value, tir.const(i * self.bits, "int32", lanes))
                if i < self.count - 1:
                    value = value & tir.const((1 << self.bits) - 1, "int32", lanes)
                real = tir.fma(tir.cast(value, "float32"), pair[0][v], pair[1][v])
                weights.append(b.let(real, "right"))
            for r, offset in enumerate(left.offsets):
                x = b.let(tir.broadcast(left.pointer.load(at + offset + i), lanes), "left")
                for v, weight in enumerate(weights):
                    index = r * right.vectors + v
                    registers[index] = mac.emit(registers[index], x, weight)
