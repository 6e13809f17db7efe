"""Softmax, LogSoftmax, LayerNormalization and RMSNormalization regions -> TIR: a row at a time.

A row is read once from memory, through the prologue, and kept in float32 in a small scratch in the
first-level cache, where later passes read it. A softmax along another axis than the last takes
vectors of neighbouring columns.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import load
from qcompiler.kernels.cpu.code.loops import across, first_of, share, slots, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.elements.elementwise import nanoseconds
from qcompiler.kernels.registry import Kernel, Region, kernel

_EXP_NS = 0.3


def _each_row(d: Draft, axis: int, body: Callable[[_Rows, Value], None]) -> Kernel:
    """body(rows, number of one) for all rows, which begin at an axis."""
    b, root, core = d.b, d.root, d.device.core
    x, rows = root.operands[0], prod(root.type.dims[:axis])
    dtype = tir.wide(root.dtype)
    scratch, size = d.scratch(dtype), tir.bits(dtype) // 8
    row_bytes = core.whole_lines((prod(root.type.dims[axis:]) + d.isa.lanes(size)) * size)
    ns = core.moved_ns(x.type.bytes) + core.mixed_ns(x.type.size * _EXP_NS)
    ns += nanoseconds(d.region, core)
    count = tasks(d.device, ns, rows)
    counted = d.counted(rows, x.type.dims[first_of(x.type.dims)])
    with b.parallel(count) as task:
        mine = _Rows(d, axis, scratch + b.let(task * (row_bytes // size), "mine"))
        first = b.let(task * counted // count, "first")
        behind = b.let((task + 1) * counted // count, "behind")
        with b.serial(behind - first, "row", first) as row:
            body(mine, row)
    return d.kernel(tasks=count, scratch_bytes=row_bytes * count)


class _Rows:
    """A task's rows of `length` neighbouring elements, one after the other held in float32, or
    float64 (`tir.wide`).
    """

    def __init__(self, d: Draft, axis: int, held: Pointer) -> None:
        self.d, self.b, self.m, self.root, self.held = d, d.b, d.m, d.root, held
        *self.inner, self.last = d.root.type.dims[axis:]
        self.length = prod(d.root.type.dims[axis:])
        self.dtype = tir.wide(d.root.dtype)
        self.lanes, self.slots = d.isa.lanes(tir.bits(self.dtype) // 8), d.device.core.adds
        self.prologue, self.epilogue = d.prologue, d.epilogue

    def _lines(self, row: Value, body: Callable[[Value, Value], None]) -> None:
        """Call body(line of the last axis, offset of its first element in the row)."""
        lines = prod(self.inner)
        with self.b.serial(lines, "line") as i:
            body(self.b.let(row * lines + i, "at"), self.b.let(i * self.last, "start"))

    def take(self, row: Value, see: Callable[[Vec, int, int], None]) -> None:
        """Read a row into scratch, calling `see(vector, number of valid lanes, slot)`."""

        def line(index: Value, start: Value) -> None:
            place = self.prologue.row(index)

            def body(column: Value, count: int, slot: int) -> None:
                value = self.prologue.at(place, column, self.lanes, count)
                value = self.m.vec(self.b.let(self.m.cast(value, self.dtype).expr, "x"))
                self.held.store_first(count, start + column, value.expr)
                see(value, count, slot)

            slots(self.b, self.last, self.lanes, self.slots, body)

        self._lines(row, line)

    def sum(self, row: Value, term: Callable[[Vec], Vec]) -> _Total:
        """Read a row into scratch -> the sum of a term of each value. Short lines are summed from
        scratch, in whole vectors: line by line, rounding errors would accumulate.
        """
        total = self.total(0.0)
        if not self.inner:
            self.take(row, lambda v, count, slot: total.join(term(v), count, slot))
            return total
        self.take(row, lambda v, count, slot: None)
        self.again(lambda v, at, count, slot: total.join(term(v), count, slot))
        return total

    def again(self, body: Callable[[Vec, Value, int, int], None]) -> None:
        """Call body(vector, offset in the row, number of valid lanes, slot) from scratch."""

        def at(offset: Value, count: int, slot: int) -> None:
            body(self.kept(offset), offset, count, slot)

        slots(self.b, self.length, self.lanes, self.slots, at)

    def kept(self, offset: Value) -> Vec:
        """A vector of the scratch row; lanes past its end are undefined."""
        return self.m.vec(self.b.let(self.held.load(offset, self.lanes), "x"))

    def give(self, row: Value, make: Callable[[Value, int], Vec]) -> None:
        """Store make(offset in the row, number of valid lanes), through the epilogue, to the
        output.
        """

        def line(index: Value, start: Value) -> None:
            place = self.epilogue.row(index)

            def body(column: Value, count: int) -> None:
                value = self.m.cast(make(self.b.let(start + column, "o"), count), self.root.dtype)
                self.d.put(self.epilogue, place, index * self.last + column, column, count, value)

            sweep(self.b, self.last, self.lanes, body)

        self._lines(row, line)

    def total(self, start: float) -> _Total:
        """Sums or extremes of a row, in several independent vectors."""
        return _Total(self, start)


class _Total:
    """One number of a row, accumulated in several vectors."""

    def __init__(self, rows: _Rows, start: float) -> None:
        self.rows, self.start = rows, start
        self.parts = rows.b.registers(rows.dtype, rows.lanes, rows.slots, "total")
        self.parts.fill(start)

    def join(self, value: Vec, count: int, slot: int, largest: bool = False) -> None:
        """Add a vector's first `count` lanes (or keep the largest of them)."""
        m, lanes = self.rows.m, self.rows.lanes
        if count < lanes:
            value = m.where(m.vec(tir.first_lanes(lanes, count)), value, self.start)
        old = m.vec(self.parts[slot])
        self.parts[slot] = (m.max(old, value) if largest else old + value).expr

    def whole(self, largest: bool = False) -> Value:
        """The number as a scalar."""
        join = tirx.Max if largest else tirx.Add
        value = self.parts[0]
        for slot in range(1, self.parts.count):
            value = join(value, self.parts[slot])
        return self.rows.b.let(across(self.rows.b, value, join), "whole")


@kernel("LayerNormalization", "RMSNormalization")
def layer_norm(region: Region, device: Cpu) -> Kernel | Skip:
    """Over all axes from one on; mean and variance in two passes over scratch."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    x, scale, *rest = root.operands
    if root.attrs.get("outputs", 1) != 1 or 0 in x.type.dims:
        return Skip("more than one output, or nothing to normalize")
    rank = x.type.rank
    axis = root.int("axis") % rank
    row_shape = x.type.dims[axis:]
    for operand in (scale, *rest):
        if operand.type.size != prod(row_shape):
            return Skip(f"a scale or bias of shape {list(operand.type.dims)}")
    word = "rmsnorm" if root.op == "RMSNormalization" else "layernorm"
    kind = f"{word}_{prod(x.type.dims[:axis])}x{prod(row_shape)}"
    d, dtype = Draft(kind, region, device), tir.wide(root.dtype)
    b, m, lanes = d.b, d.m, d.isa.lanes(tir.bits(dtype) // 8)

    def row(rows: _Rows, index: Value) -> None:
        if root.op == "RMSNormalization":
            mean = None
            squares = rows.sum(index, lambda v: v * v).whole()
        else:
            total = rows.sum(index, lambda v: v)
            number = tir.const(float(rows.length), dtype)
            mean = m.vec(tir.broadcast(b.let(total.whole() / number, "mean"), lanes))
            spread = rows.total(0.0)

            def square(v: Vec, at: Value, count: int, slot: int) -> None:
                assert mean is not None
                off = m.vec(b.let((v - mean).expr, "off"))
                spread.join(off * off, count, slot)

            rows.again(square)
            squares = spread.whole()
        epsilon = tir.const(root.float("epsilon"), dtype)
        variance = m.vec(squares / tir.const(float(rows.length), dtype) + epsilon)
        inverse = (m.splat(1.0, dtype) / m.sqrt(variance)).expr
        factor = m.vec(tir.broadcast(b.let(inverse, "inverse"), lanes))

        def make(at: Value, count: int) -> Vec:
            value = rows.kept(at)
            value = (value if mean is None else value - mean) * factor
            for i, operand in enumerate((scale, *rest)):
                raw = load(m, d.pointers[operand], operand.dtype, at, lanes, count)
                wide = m.cast(raw, dtype)
                value = value * wide if i == 0 else value + wide
            return value

        rows.give(index, make)

    return _each_row(d, axis, row)


@kernel("Softmax", "LogSoftmax")
def softmax(region: Region, device: Cpu) -> Kernel | Skip:
    """Along any axis; the largest value is subtracted first, so nothing overflows."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    dims = root.type.dims
    if 0 in dims or not dims:
        return Skip("nothing to normalize")
    axis = root.int("axis") % len(dims)
    kind = f"{root.op.lower()}_{'x'.join(map(str, dims))}a{axis}"
    if axis == len(dims) - 1:
        return _softmax_along(kind, region, device)
    return _softmax_beside(kind, region, device, axis)


def _softmax_along(kind: str, region: Region, device: Cpu) -> Kernel:
    d = Draft(kind, region, device)
    b, m, dtype = d.b, d.m, tir.wide(d.root.dtype)
    lanes = d.isa.lanes(tir.bits(dtype) // 8)
    logarithm = d.root.op == "LogSoftmax"

    def row(rows: _Rows, index: Value) -> None:
        largest = rows.total(float("-inf"))
        rows.take(index, lambda v, count, slot: largest.join(v, count, slot, largest=True))
        top = m.vec(tir.broadcast(largest.whole(largest=True), lanes))
        total = rows.total(0.0)

        def weigh(v: Vec, at: Value, count: int, slot: int) -> None:
            below = m.vec(b.let((v - top).expr, "below"))
            power = m.vec(b.let(m.exp(below).expr, "power"))
            rows.held.store_first(count, at, (below if logarithm else power).expr)
            total.join(power, count, slot)

        rows.again(weigh)
        whole = m.vec(total.whole())
        scalar = m.log(whole) if logarithm else m.splat(1.0, dtype) / whole
        last = m.vec(tir.broadcast(b.let(scalar.expr, "last"), lanes))

        def make(at: Value, count: int) -> Vec:
            return rows.kept(at) - last if logarithm else rows.kept(at) * last

        rows.give(index, make)

    return _each_row(d, d.root.type.rank - 1, row)


def _softmax_beside(kind: str, region: Region, device: Cpu, axis: int) -> Kernel:
    """Vectors of columns, a softmax in each lane; the input is read three times."""
    d = Draft(kind, region, device)
    b, m, root = d.b, d.m, d.root
    dims = root.type.dims
    size, last = dims[axis], dims[-1]
    between = prod(dims[axis + 1 : -1])
    rows = prod(dims[:axis]) * between
    dtype = tir.wide(root.dtype)
    lanes = device.isa.lanes(tir.bits(dtype) // 8)
    ns = device.core.mixed_ns(root.type.size * 3 * _EXP_NS) + nanoseconds(region, device.core)
    count = tasks(device, ns, rows)
    with share(b, count, rows) as (first, iterations):
        prologue, epilogue = d.prologue, d.epilogue
        with b.serial(iterations, "row", first) as row:
            start = b.let((row // between) * (size * between) + row % between, "start")

            def columns(column: Value, there: int) -> None:
                largest = b.registers(dtype, lanes, 1, "largest")
                total = b.registers(dtype, lanes, 1, "total")
                largest.fill(float("-inf"))
                total.fill(0.0)

                def value(i: Value) -> tuple[Value, Vec]:
                    line = b.let(start + i * between, "line")
                    got = prologue.at(prologue.row(line), column, lanes, there)
                    return line, m.cast(got, dtype)

                with b.serial(size, "i") as i:
                    largest[0] = m.max(m.vec(largest[0]), value(i)[1]).expr
                with b.serial(size, "i") as i:
                    total[0] = total[0] + m.exp(value(i)[1] - m.vec(largest[0])).expr
                with b.serial(size, "i") as i:
                    line, x = value(i)
                    below = x - m.vec(largest[0])
                    if root.op == "LogSoftmax":
                        made = below - m.log(m.vec(total[0]))
                    else:
                        made = m.exp(below) / m.vec(total[0])
                    result = m.cast(made, root.dtype)
                    d.put(epilogue, epilogue.row(line), line * last + column, column, there, result)

            sweep(b, last, lanes, columns)
    return d.kernel(tasks=count)
