"""Reduce* regions -> TIR.

If the last axis stays, vectors of its columns are reduced. If it is reduced, vectors run along it
and their lanes are joined at the end. Sums of floats are in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod

import numpy as np

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.images import is_open
from qcompiler.kernels.cpu.code.loops import across, first_of, indices, share, slots, tasks
from qcompiler.kernels.cpu.code.math import TirMath
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.pooling import lowest
from qcompiler.ops.reduce import REAL


@dataclass(frozen=True)
class Way:
    """A reduction: `each` applied to every value, `join` to pairs, `last` to the result."""

    join: Callable[[TirMath, Vec, Vec], Vec]
    each: Callable[[TirMath, Vec], Vec] = lambda m, x: x
    last: Callable[[TirMath, Vec, int], Vec] = lambda m, x, count: x
    first: str = "zero"


def _add(m: TirMath, a: Vec, b: Vec) -> Vec:
    return a + b


WAYS: dict[str, Way] = {
    "ReduceSum": Way(_add),
    "ReduceMean": Way(_add, last=lambda m, x, count: x / float(count)),
    "ReduceMax": Way(lambda m, a, b: m.max(a, b), first="lowest"),
    "ReduceMin": Way(lambda m, a, b: m.min(a, b), first="highest"),
    "ReduceProd": Way(lambda m, a, b: a * b, first="one"),
    "ReduceL1": Way(_add, each=lambda m, x: m.abs(x)),
    "ReduceL2": Way(_add, each=lambda m, x: x * x, last=lambda m, x, count: m.sqrt(x)),
    "ReduceSumSquare": Way(_add, each=lambda m, x: x * x),
    "ReduceLogSum": Way(_add, last=lambda m, x, count: m.log(x)),
}


def start_of(way: Way, dtype: str) -> float:
    """The neutral element of `join`."""
    if way.first == "lowest":
        return lowest(dtype)
    if way.first == "highest":
        return inf if "float" in dtype else int(np.iinfo(dtype).max)
    return 1 if way.first == "one" else 0


@kernel(*WAYS)
def reduce(region: Region, device: Cpu) -> Kernel | Skip:
    """Any axes."""
    if reason := refuse(region):
        return reason
    assert region.root is not None
    axes = axes_of(region)
    if isinstance(axes, Skip):
        return axes
    assert region.root is not None
    if is_open(region) and (axes != [1, 2] or region.root.op == "ReduceMean"):
        return Skip("a mean, or another dimension, of images whose size a run knows")
    return _emitted(region, device, axes)


def axes_of(region: Region) -> list[int] | Skip:
    """The axes that a region reduces, in order."""
    root = region.root
    assert root is not None
    x = root.operands[0]
    given = root.operands[1] if len(root.operands) > 1 else None
    listed = region.known(given).numbers if given is not None else None
    if given is not None and listed is None:
        return Skip("axes that are not known")
    axes = [] if listed is None else [int(a) % x.type.rank for a in listed]
    if not axes and not root.int("noop_with_empty_axes"):
        axes = list(range(x.type.rank))
    if not axes or 0 in x.type.dims:
        return Skip("nothing to reduce")
    if x.dtype == "bool" and root.op not in ("ReduceMax", "ReduceMin"):
        return Skip(f"{root.op} of bool")
    return sorted(set(axes))


def _emitted(region: Region, device: Cpu, axes: list[int]) -> Kernel:
    """All outputs, shared among tasks."""
    root = region.root
    assert root is not None
    x, dims = root.operands[0], root.operands[0].type.dims
    shape = "x".join(f"{d}{'r' * (a in axes)}" for a, d in enumerate(dims))
    d, along = Draft(f"{root.op.lower()}_{shape}", region, device), len(dims) - 1 in axes
    outer = [n for a, n in enumerate(dims) if a not in axes]
    width = 1 if along or not outer else outer[-1]
    dtype = _summed(root)
    lanes = d.isa.lanes(max(tir.bits(dtype) // 8, 4))
    blocks = -(-width // lanes)
    total = prod(outer) // width * blocks
    count = tasks(device, device.core.moved_ns(x.type.bytes), total)
    within = first_of(dims) in axes or is_open(region)
    counted = total if within else d.counted(total, dims[first_of(dims)])
    with share(d.b, count, counted) as (first, iterations):
        task = _Task(d, axes, dtype, lanes)
        with d.b.serial(iterations, "each", first) as each:
            if along:
                task.along(each, outer)
            else:
                task.beside(each, outer, blocks)
    return d.kernel(tasks=count)


def _summed(root: Node) -> str:
    """The dtype that values are joined in."""
    if root.dtype == "bool":
        return "uint8"
    if root.op in REAL and "int" in root.dtype:
        return "float64"
    return "float32" if root.dtype in HALF_FLOATS else root.dtype


class _Task:
    """The code of one task while it is emitted."""

    def __init__(self, d: Draft, axes: list[int], dtype: str, lanes: int) -> None:
        self.d, self.b, self.m, self.root = d, d.b, d.m, d.root
        self.dims, self.dtype, self.reduced = d.root.operands[0].type.dims, dtype, axes
        self.kept = [a for a in range(len(self.dims)) if a not in axes]
        self.way = WAYS[d.root.op]
        self.count = prod(self.dims[a] for a in axes)
        self.prologue, self.epilogue = d.prologue, d.writing(whole=False)
        self.extents: list[Value] = list(self.dims)
        along, axis = len(self.dims) - 1 in axes, first_of(self.dims)
        if is_open(d.region):
            self.extents[1:3] = d.image()
        elif axis in axes and axis < len(self.dims) - 1 and d.root.op != "ReduceMean":
            self.extents[axis] = d.counted(self.dims[axis], self.dims[axis])
        self.lanes = min(lanes, self.prologue.lanes()) if along else lanes

    def _vector(self, value: Vec) -> Vec:
        return self.way.each(self.m, self.m.cast(value, self.dtype))

    def _over(self, axes: Sequence[int], place: dict[int, Value], body: Callable[[], None]) -> None:
        """Nested loops over reduced axes; `place` holds their indices."""
        if not axes:
            body()
            return
        with self.b.serial(self.extents[axes[0]], "r") as i:
            place[axes[0]] = i
            self._over(axes[1:], place, body)

    def _row(self, place: dict[int, Value]) -> Value:
        """The flat index over all axes but the last."""
        flat: Value = tir.const(0)
        sizes = self.extents if is_open(self.d.region) else self.dims
        for axis, size in enumerate(sizes[:-1]):
            flat = flat * size + place[axis]
        return self.b.let(flat, "row")

    def along(self, each: Value, outer: list[int]) -> None:
        """One output: the last axis is reduced, perhaps with others."""
        b, m = self.b, self.m
        place = dict(zip(self.kept, indices(b, each, tuple(outer)), strict=True))
        start = start_of(self.way, self.dtype)
        count = self.d.device.core.adds
        totals = b.registers(self.dtype, self.lanes, count, "total")
        totals.fill(start)

        def one() -> None:
            row = self.prologue.row(self._row(place))

            def body(column: Value, count: int, slot: int) -> None:
                value = self._vector(self.prologue.at(row, column, self.lanes, count))
                if count < self.lanes:
                    seen = m.vec(tir.first_lanes(self.lanes, count))
                    value = m.where(seen, value, start)
                totals[slot] = self.way.join(m, self._total(totals[slot]), value).expr

            slots(b, self.dims[-1], self.lanes, count, body)

        self._over([a for a in self.reduced if a < len(self.dims) - 1], place, one)
        total = self._total(totals[0])
        for slot in range(1, count):
            total = self.way.join(m, total, self._total(totals[slot]))
        whole = across(b, total.expr, lambda a, c: self._joined(a, c))
        self._put(each, Vec(m, whole, self.dtype, 1), 1)

    def _total(self, expr: Value) -> Vec:
        return Vec(self.m, expr, self.dtype, tir.lanes_of(expr))

    def _joined(self, a: Value, c: Value) -> Value:
        return self.way.join(self.m, self._total(a), self._total(c)).expr

    def beside(self, each: Value, outer: list[int], blocks: int) -> None:
        """A vector of outputs: columns of the last axis, which is not reduced."""
        b, lanes, width = self.b, self.lanes, outer[-1]
        index = b.let(each // blocks, "outer")
        nth = each % blocks
        place = dict(zip(self.kept, indices(b, index, tuple(outer[:-1])), strict=False))
        column = b.let(nth * lanes, "column")

        def block(count: int) -> None:
            total = b.registers(self.dtype, lanes, 1, "total")
            total.fill(start_of(self.way, self.dtype))

            def one() -> None:
                row = self.prologue.row(self._row(place))
                value = self._vector(self.prologue.at(row, column, lanes, count))
                total[0] = self.way.join(self.m, self._total(total[0]), value).expr

            self._over(self.reduced, place, one)
            self._put(b.let(index * width + column, "at"), self._total(total[0]), count)

        rest = width % lanes
        if not rest:
            block(lanes)
        elif blocks == 1:
            block(rest)
        else:
            with b.when(nth < blocks - 1):
                block(lanes)
            with b.otherwise():
                block(rest)

    def _put(self, index: Value, total: Vec, count: int) -> None:
        """Store `count` outputs from a flat index on, in one row of the output."""
        value = self.m.cast(self.way.last(self.m, total, self.count), self.root.dtype)
        columns = self.epilogue.columns
        row = self.epilogue.row(self.b.let(index // columns, "row"))
        column = self.b.let(index % columns, "n")
        self.d.put(self.epilogue, row, index, column, count, value)
