"""Operators along an axis without a kernel of their own -> TIR, one row after the other.

CumSum, CumProd, TopK, Hardmax, LpNormalization, MeanVarianceNormalization, ReduceLogSumExp: each
row is processed in order, rows are shared among threads. DynamicQuantizeLinear has one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import steps_of
from qcompiler.kernels.cpu.code.loops import across, indices, part, share, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.elements.generic import Elements
from qcompiler.kernels.registry import Kernel, Region, kernel

_NS = 3.0
"""The reference core's time for one element in one pass over a row."""

_WIDE = {"float16": "float32", "bfloat16": "float32"}


class Rows(Elements):
    """A kernel while it is written: rows along some axes of the first operand."""

    def __init__(self, d: Draft, axes: Sequence[int], *, real: bool = False) -> None:
        """With `real`, integers are computed in float64."""
        super().__init__(d, _first(d.root))
        dims = self.operand.type.dims
        steps = steps_of(dims, dims)
        along = [a % len(dims) for a in axes]
        kept = [a for a in range(len(dims)) if a not in along]
        self.along = tuple(dims[a] for a in sorted(along))
        self.kept = tuple(dims[a] for a in kept)
        self._along_steps = [steps[a] for a in sorted(along)]
        self._kept_steps = [steps[a] for a in kept]
        self.count = prod(self.along)
        whole = real and "int" in self.operand.dtype
        self.dtype = "float64" if whole else _WIDE.get(self.operand.dtype, self.operand.dtype)

    def tasks(self, passes: int) -> int:
        """Number of threads that share the rows, with `passes` passes over each."""
        rows, device = prod(self.kept), self.d.device
        return tasks(device, device.core.mixed_ns(rows * self.count * _NS * passes), rows)

    def each(self, body: Callable[[Value, Value], None], passes: int = 1) -> Kernel:
        """Emit body(number of the row, its offset) for all rows."""
        rows = prod(self.kept)
        count = self.tasks(passes)
        with (
            share(self.b, count, rows) as (first, iterations),
            self.b.serial(iterations, "row", first) as i,
        ):
            place = indices(self.b, i, self.kept)
            pairs = zip(place, self._kept_steps, strict=True)
            body(i, self.b.let(sum((p * s for p, s in pairs), start=tir.const(0))))
        return self.d.kernel(tasks=count)

    def at(self, start: Value, number: Value) -> Value:
        """The offset of a row's element."""
        place = indices(self.b, number, self.along)
        pairs = zip(place, self._along_steps, strict=True)
        return self.b.let(sum((p * s for p, s in pairs), start=start))

    def value(self, start: Value, number: Value) -> Vec:
        """A row's element, in the dtype of the computation."""
        return self.m.cast(self.x_flat(self.at(start, number)), self.dtype)

    def top(self, start: Value) -> Vec:
        """The largest value of a row."""
        best = self.b.registers(tir.stored(self.dtype), 1, 1)
        best[0] = self.m.splat(-inf, self.dtype).expr
        with self.b.serial(self.count, "n") as n:
            best[0] = self.m.max(self.m.vec(best[0]), self.value(start, n)).expr
        return self.m.vec(best[0])

    def total(self, start: Value, term: Callable[[Vec], Vec]) -> Vec:
        """The sum of a term of each value of a row, in order; in float64, because errors in float32
        would grow with the number of terms.
        """
        total = self.b.registers("float64", 1, 1)
        total[0] = self.m.splat(0.0, "float64").expr
        with self.b.serial(self.count, "n") as n:
            value = self.m.cast(term(self.value(start, n)), "float64")
            total[0] = (self.m.vec(total[0]) + value).expr
        return self.m.cast(self.m.vec(total[0]), self.dtype)


def _first(root: Node) -> Node:
    """The operand with the rows; for an `item`, that of the node it belongs to."""
    source = root.operands[0]
    return source.operands[0] if root.op == "item" else source


def _axis(node: Node) -> list[int]:
    return [node.int("axis")]


def _given(region: Region, *, only: str = "") -> Skip | None:
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    if any(0 in t.dims for n in (_first(root), root) for t in n.types):
        return Skip("no elements")
    if only and only not in root.operands[0].dtype:
        return Skip(f"{root.op} of {root.operands[0].dtype}")
    return None


@kernel("CumSum", "CumProd")
def cumulate(region: Region, device: Cpu) -> Kernel | Skip:
    """Cumulative sums or products."""
    if reason := _given(region):
        return reason
    d = Draft("cumulate", region, device)
    root = d.root
    axis = region.known(root.operands[1]).numbers
    if axis is None or root.dtype == "bool":
        return Skip("an axis known at run time only")
    rows = Rows(d, [int(axis[0])])
    exclusive, sign = root.int("exclusive"), "+" if root.op == "CumSum" else "*"

    def row(_: Value, start: Value) -> None:
        total = d.b.registers(rows.dtype, 1, 1)
        total[0] = d.m.splat(0 if sign == "+" else 1, rows.dtype).expr
        with d.b.serial(rows.count, "n") as n:
            number = rows.count - 1 - n if root.int("reverse") else n
            at = rows.at(start, d.b.let(number))
            before = d.m.vec(total[0])
            after = d.m.binary(sign, before, d.m.cast(rows.x_flat(at), rows.dtype))
            total[0] = after.expr
            rows.put(at, d.m.cast(before if exclusive else after, root.dtype))

    return rows.each(row)


@kernel("Hardmax")
def hardmax(region: Region, device: Cpu) -> Kernel | Skip:
    """1 at the first largest value, 0 elsewhere."""
    if reason := _given(region):
        return reason
    d = Draft("hardmax", region, device)
    rows = Rows(d, _axis(d.root))

    def row(_: Value, start: Value) -> None:
        best = d.b.registers(rows.dtype, 1, 1)
        where = d.b.registers("int32", 1, 1)
        best[0] = rows.value(start, tir.const(0)).expr
        where[0] = tir.const(0)
        with d.b.serial(rows.count, "n") as n:
            value = rows.value(start, n)
            with d.b.when(value.precedes(d.m.vec(best[0]), largest=True).expr):
                best[0] = value.expr
                where[0] = n
        with d.b.serial(rows.count, "n") as n:
            one, zero = (d.m.splat(v, d.root.dtype) for v in (1, 0))
            rows.put(rows.at(start, n), rows.choose(tirx.EQ(n, where[0]), one, zero))

    return rows.each(row, 2)


@kernel("LpNormalization")
def lp_normalization(region: Region, device: Cpu) -> Kernel | Skip:
    """Values divided by their norm; zeros stay zeros."""
    if reason := _given(region, only="float"):
        return reason
    d = Draft("lpnormalization", region, device)
    rows, m = Rows(d, _axis(d.root)), d.m
    absolute = d.root.int("p") == 1

    def row(_: Value, start: Value) -> None:
        total = rows.total(start, lambda x: m.abs(x) if absolute else x * x)
        norm = total if absolute else m.sqrt(total)
        with d.b.serial(rows.count, "n") as n:
            value = rows.value(start, n) / m.where(norm == 0.0, 1.0, norm)
            value = m.where(norm == 0.0, 0.0, value)
            rows.put(rows.at(start, n), m.cast(value, d.root.dtype))

    return rows.each(row, 2)


@kernel("MeanVarianceNormalization")
def mean_variance(region: Region, device: Cpu) -> Kernel | Skip:
    """(x - mean) / (deviation + 1e-9)."""
    if reason := _given(region, only="float"):
        return reason
    d = Draft("meanvariance", region, device)
    rows, m = Rows(d, d.root.ints("axes")), d.m

    def row(_: Value, start: Value) -> None:
        mean = rows.total(start, lambda x: x) / float(rows.count)
        squares = rows.total(start, lambda x: (x - mean) * (x - mean))
        deviation = m.sqrt(squares / float(rows.count)) + 1e-9
        with d.b.serial(rows.count, "n") as n:
            value = (rows.value(start, n) - mean) / deviation
            rows.put(rows.at(start, n), m.cast(value, d.root.dtype))

    return rows.each(row, 3)


def axes_reduced(region: Region) -> Sequence[int] | Skip:
    """The axes that a reduction is over; an operand may say which."""
    root = region.root
    assert root is not None
    axes = region.known(root.operands[1]).numbers if len(root.operands) > 1 else ()
    if axes is None:
        return Skip("axes known at run time only")
    if not axes and root.int("noop_with_empty_axes"):
        return Skip("no axes to reduce")
    return [int(a) for a in axes] or range(root.operands[0].type.rank)


@kernel("ReduceLogSumExp")
def log_sum_exp(region: Region, device: Cpu) -> Kernel | Skip:
    """max + log(sum(exp(x - max))); of integers in float64."""
    if reason := _given(region):
        return reason
    d = Draft("reducelogsumexp", region, device)
    root, m, axes = d.root, d.m, axes_reduced(region)
    if isinstance(axes, Skip):
        return axes
    rows = Rows(d, axes, real=True)

    def row(number: Value, start: Value) -> None:
        top = rows.top(start)
        top = m.where(m.abs(top) < inf, top, 0.0)
        total = rows.total(start, lambda x: m.exp(x - top))
        rows.put(number, m.cast(m.log(total) + top, root.dtype))

    return rows.each(row, 8)


@kernel("item of TopK")
def top_k(region: Region, device: Cpu) -> Kernel | Skip:
    """Output 0 (values) or 1 (indices) of TopK: the best so far are kept in order, and a value
    better than the last is inserted, which becomes rare.
    """
    root = region.root
    assert root is not None
    source = root.operands[0]
    if (reason := _given(region)) or source.operands[0].dtype == "bool":
        return reason or Skip("TopK of bool")
    if any(n.op != "item" and n is not source and n not in _after(region) for n in region.nodes):
        return Skip("elementwise work before it")
    d = Draft("topk", region, device)
    d.scratch()
    return _Best(d).all_rows()


@dataclass(frozen=True)
class _Held:
    """The best values of a row so far, in order, and where they were."""

    values: Pointer
    places: Pointer


class _Best(Rows):
    """A TopK while it is written."""

    def __init__(self, d: Draft) -> None:
        source = d.root.operands[0]
        super().__init__(d, _axis(source))
        axis = source.int("axis") % source.operands[0].type.rank
        self.wanted = d.root.type.dims[axis]
        self.inner = prod(d.root.type.dims[axis + 1 :])
        self.largest = bool(source.int("largest"))
        size = tir.bits(self.dtype) // 8
        self.places_at, each = (d.device.core.whole_lines(self.wanted * n) for n in (size, 4))
        self.task_bytes = self.places_at + each

    def all_rows(self) -> Kernel:
        """All rows, shared among tasks; each keeps the best of one row."""
        b, rows = self.b, prod(self.kept)
        count = self.tasks(passes=2)
        with b.parallel(count) as task:
            mine = self.d.scratch() + b.let(task * self.task_bytes, "mine")
            held = _Held(mine.view(self.dtype), (mine + self.places_at).view("int32"))
            first, iterations = part(b, task, count, rows)
            with b.serial(iterations, "row", first) as i:
                place = indices(b, i, self.kept)
                pairs = zip(place, self._kept_steps, strict=True)
                self._row(held, i, b.let(sum((p * s for p, s in pairs), start=tir.const(0))))
        return self.d.kernel(tasks=count, scratch_bytes=count * self.task_bytes)

    def _row(self, held: _Held, number: Value, start: Value) -> None:
        b, wanted = self.b, self.wanted
        with b.serial(self.count, "n") as n:
            value, last = self.value(start, n), self._held(held, tir.const(wanted - 1))
            enters = self.m.vec(n < wanted, "bool") | self._better(value, last)
            with b.when(enters.expr):
                self._enter(held, value, n)
        if self.inner > 1:
            number = (number - number % self.inner) * wanted + number % self.inner
        else:
            number = number * wanted
        out = b.let(number)
        with b.serial(wanted, "k") as k:
            found = self._held(held, k) if self.d.root.int("index") == 0 else held.places.load(k)
            found = found if isinstance(found, Vec) else self.m.vec(found)
            self.put(b.let(out + k * self.inner), self.m.cast(found, self.d.root.dtype))

    def _enter(self, held: _Held, value: Vec, n: Value) -> None:
        """Insert a value after those that are no worse, and drop the last if there are enough."""
        b, many = self.b, self.b.let(tirx.Min(n, tir.const(self.wanted)), "many")
        low, high = (b.registers("int32", 1, 1) for _ in range(2))
        low[0], high[0] = tir.const(0), many
        with b.serial(self.wanted.bit_length(), "halving"):
            middle = b.let(tirx.floordiv(low[0] + high[0], 2), "middle")
            with b.when(low[0] < high[0]):
                bounded = b.let(tirx.Min(middle, tir.const(self.wanted - 1)))
                with b.when(self._better(value, self._held(held, bounded)).expr):
                    high[0] = middle
                with b.otherwise():
                    low[0] = middle + 1
        at = b.let(low[0], "at")
        end = b.let(tirx.Min(many, tir.const(self.wanted - 1)), "end")
        with b.serial(end - at, "move") as i:
            held.values.store(end - i, held.values.load(end - i - 1))
            held.places.store(end - i, held.places.load(end - i - 1))
        held.values.store(at, value.expr)
        held.places.store(at, n)

    def _held(self, held: _Held, at: Value) -> Vec:
        return self.m.vec(held.values.load(at), self.dtype)

    def _better(self, a: Vec, c: Vec) -> Vec:
        return a.precedes(c, largest=self.largest)


def _after(region: Region) -> set[Node]:
    """The region's nodes that depend on its root."""
    found = {n for n in (region.root,) if n is not None}
    for n in region.nodes:
        if any(i in found for i in n.operands):
            found.add(n)
    return found


@kernel("item of DynamicQuantizeLinear")
def dynamic_quantize(region: Region, device: Cpu) -> Kernel | Skip:
    """An output of DynamicQuantizeLinear. Every task computes the extremes of all values."""
    root = region.root
    assert root is not None
    source = root.operands[0]
    if (reason := _given(region)) or set(region.nodes) != {root, source}:
        return reason or Skip("elementwise work around it")
    d = Draft("dynamicquantize", region, device)
    m, b, x = d.m, d.b, source.operands[0]
    size, lanes, part = x.type.size, device.isa.lanes(), root.int("index")
    vectors = -(-size // lanes)
    count = tasks(device, device.core.moved_ns(x.type.bytes) * 2, vectors) if part == 0 else 1
    with share(b, count, vectors) as (first, iterations):
        scale, zero = _range(d, x, lanes)
        if part:
            made = scale if part == 1 else m.cast(zero, "uint8")
            d.out.store(0, made.expr)
        else:
            with b.serial(iterations, "v", first) as v:
                at = b.let(v * lanes)
                left = lanes if size % lanes == 0 else tirx.Min(size - at, tir.const(lanes))
                left = b.let(left)
                ratio = m.round(d.read(x, at, lanes, left) / scale) + zero
                d.out.store_first(left, at, m.saturate(ratio, "uint8").expr)
    return d.kernel(tasks=count)


def _range(d: Draft, x: Node, lanes: int) -> tuple[Vec, Vec]:
    """The scale and zero point (as float32) of the range of all values and zero."""
    m, b = d.m, d.b
    low, high = (b.registers("float32", lanes, 1) for _ in range(2))
    low.fill(0)
    high.fill(0)

    def look(at: Value, count: int) -> None:
        value = d.read(x, at, lanes, count)
        high[0] = m.larger(value, m.vec(high[0])).expr
        low[0] = m.negative(m.larger(m.negative(value), m.negative(m.vec(low[0])))).expr

    sweep(b, x.type.size, lanes, look)
    top = m.vec(across(b, high[0], lambda a, c: tirx.Max(a, c)))
    least = m.vec(across(b, low[0], lambda a, c: tirx.Min(a, c)))
    scale = m.where(top > least, (top - least) / 255.0, 1.0)
    zero = m.cast(m.saturate(m.round(m.negative(least) / scale), "uint8"), "float32")
    return scale, zero
