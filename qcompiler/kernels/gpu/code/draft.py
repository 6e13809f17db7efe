"""A region -> its kernel for a GPU while it is written: `Draft` over a block of threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tvm import tirx

from qcompiler.hardware.gpu import Gpu
from qcompiler.ir import Array, Node, numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, name_of
from qcompiler.kernels.cpu.code.epilogue import Fused, Row, load
from qcompiler.kernels.cpu.code.math import TirMath
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.block import Block
from qcompiler.kernels.gpu.code.device import move
from qcompiler.kernels.registry import After, Kernel, Region

WIDEST = 16
"""Bytes of the widest access of a thread."""


class _Math(TirMath):
    """Formulas in code for a GPU, where TVM writes float64 numbers with 15 decimals: others are
    written as their bits.
    """

    def splat(self, value: float, dtype: str, lanes: int = 1) -> Vec:
        """A number in every lane."""
        made = super().splat(value, dtype, lanes)
        number = made.value
        if dtype != "float64" or number is None or not np.isfinite(number):
            return made
        if float(f"{number:.15f}") == number:
            return made
        bits = tir.const(int(np.float64(number).view(np.int64)), "int64")
        exact = tir.broadcast(tir.reinterpret(bits, "float64"), lanes)
        return Vec(self, exact, dtype, lanes, number)


class GridDraft(Draft):
    """One kernel: `b` collects the statements of each thread."""

    b: Block

    def __init__(self, kind: str, region: Region, device: Gpu, threads: int = 256) -> None:
        self.region, self.isa = region, device.isa
        self.name = name_of(kind, region)
        self.b = Block(self.name, threads)
        self.m = _Math(self.b, device.isa)
        self.pointers: Mapping[Node, Pointer] = {
            n: self.b.pointer(f"in{i}", n.dtype) for i, n in enumerate(region.inputs)
        }
        self.out = self.b.pointer("out", region.output.dtype)
        self._scratch: Pointer | None = None

    def scratch(self, dtype: str = "uint8") -> Pointer:
        """The scratch area, all of it of a dtype."""
        if self._scratch is None:
            self._scratch = self.b.pointer("scratch", dtype)
        assert self._scratch.dtype == tir.stored(dtype), f"scratch of {self._scratch.dtype}"
        return self._scratch

    def kernel(
        self,
        *,
        tasks: int = 1,
        scratch_bytes: int = 0,
        pack: Mapping[int, Callable[[Array], Array]] | None = None,
        in_place: tuple[int, ...] = (),
        macs: int = 0,
        generic: bool = False,
        after: tuple[After, ...] = (),
        rounds: int = 0,
    ) -> Kernel:
        """The finished kernel; `after` and `rounds`: see Kernel."""
        func, grid, pack = self.b.function(), self.b.grid, pack or {}
        return Kernel(
            self.name,
            func,
            pack,
            scratch_bytes,
            tasks,
            macs,
            in_place,
            grid=grid,
            generic=generic,
            after=after,
            rounds=rounds,
        )

    def after(self) -> After:
        """What is written here, as what another kernel of the same pointers starts."""
        return After(self.b.function(), self.b.grid)

    def width(self, f: Fused) -> int:
        """Columns that a thread computes at once: those of its widest access of the widest dtype,
        if all rows begin at multiples of that.
        """
        dtypes = [n.dtype for n in f.operands if f.strides(n)[-1] == 1] + [f.output.dtype]
        width = WIDEST // max(numpy_dtype(d).itemsize for d in dtypes)
        while f.columns % width:
            width //= 2
        return width

    def along(
        self,
        f: Fused,
        row: Row,
        column: Value,
        width: int,
        given: Callable[[int], Mapping[Node, Vec]] = lambda i: {},
    ) -> list[Vec]:
        """The values of `width` columns from a multiple of that on. Operands that lie so are loaded
        in one access. `given(i)`: what the kernel has computed for column i of them.
        """
        wide = [n for n in row.offsets if aligned(f.strides(n), width) and not self._zero(n)]
        held = {n: self._loaded(n, row.offsets[n] + column, width) for n in wide}
        offsets = {n: o for n, o in row.offsets.items() if n not in held}
        found = []
        for i in range(width):
            known = {n: load(self.m, own, n.dtype, i, 1, 1) for n, own in held.items()}
            single = Row(offsets, {**row.values, **known}, row.steps)
            found.append(f.at(single, column + i, 1, 1, given(i)))
        return found

    def at(self, f: Fused, flat: Value, given: Mapping[Node, Vec] | None = None) -> Vec:
        """The value of `f` at its output's element number `flat`."""
        if f.rows == 1:
            return f.at(f.row(tir.const(0)), flat, 1, 1, given)
        row = f.row(self.b.let(tirx.floordiv(flat, f.columns), "row"))
        return f.at(row, self.b.let(tirx.floormod(flat, f.columns), "column"), 1, 1, given)

    def put_at(self, flat: Value, value: Vec) -> None:
        """Store the root's element number `flat`, by way of the epilogue."""
        self.store(flat, [self.at(self.writing(whole=True), flat, {self.root: value})])

    def _zero(self, node: Node) -> bool:
        return self.region.known(node).zero

    def _loaded(self, node: Node, offset: Value, width: int) -> Pointer:
        source = self.pointers[node]
        own = self.b.local(source.dtype, width, "loaded")
        size = width * numpy_dtype(source.dtype).itemsize
        self.b.emit(move(size, own, source + offset))
        return own

    def store(self, offset: Value, values: Sequence[Vec]) -> None:
        """Store neighbours of the output, from a multiple of their number on, in one access."""
        own = self.b.local(self.out.dtype, len(values), "stored")
        for i, value in enumerate(values):
            value = self.m.cast(value, "uint8") if value.dtype == "bool" else value
            own.store(i, value.expr)
        size = len(values) * numpy_dtype(self.out.dtype).itemsize
        self.b.emit(move(size, self.out + offset, own))


def aligned(steps: Sequence[int], width: int) -> bool:
    """Do rows of an operand, by its steps along all dimensions, begin at multiples of a width?"""
    return steps[-1] == 1 and all(s % width == 0 for s in steps[:-1])
