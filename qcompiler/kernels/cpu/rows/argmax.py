"""ArgMax and ArgMin regions -> TIR: the index of the best value along an axis.

columns   the axis is not the last: vectors of neighbouring columns
rows      it is the last: as many rows as a vector has lanes, transposed in registers
single    otherwise one value after the other
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.loops import share, tasks, transposed
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import Kernel, Region, kernel


@kernel("ArgMax", "ArgMin")
def best_index(region: Region, device: Cpu) -> Kernel | Skip:
    """The first (or last) index of the largest (or smallest) value along one axis."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    x = root.operands[0]
    dims = x.type.dims
    if 0 in dims or not dims or len(region.nodes) > 1:
        return Skip("nothing to search, or elementwise work around it")
    return _Search(region, device).kernel()


class _Search:
    """One kernel while it is written."""

    def __init__(self, region: Region, device: Cpu) -> None:
        root = region.root
        assert root is not None
        x = root.operands[0]
        dims, axis = x.type.dims, root.int("axis") % x.type.rank
        name = f"{root.op.lower()}_{'x'.join(map(str, dims))}a{axis}"
        self.d = Draft(name, region, device)
        self.b, self.m, self.root, self.x = self.d.b, self.d.m, root, x
        self.inner, self.size = prod(dims[axis + 1 :]), dims[axis]
        self.total = prod(dims) // self.size
        self.item = numpy_dtype(x.dtype).itemsize
        self.lanes = device.isa.lanes(max(self.item, 4))
        self.plain = x.dtype not in (*HALF_FLOATS, "bool")

    def kernel(self) -> Kernel:
        """The kernel of the kind that suits the shape."""
        if self.plain and self.inner >= self.lanes:
            return self._shared(
                self.total // self.inner * -(-self.inner // self.lanes), self._columns
            )
        if self.plain and self.item == 4 and self.inner == 1 and self.total >= self.lanes:
            return self._shared(-(-self.total // self.lanes), self._rows)
        return self._shared(self.total, self._single)

    def _shared(self, iterations: int, body: Callable[[Value], None]) -> Kernel:
        ns = self.x.type.size * (1.0 if body == self._single else 0.1)
        count = tasks(self.d.device, ns, iterations)
        with (
            share(self.b, count, iterations) as (first, mine),
            self.b.serial(mine, "each", first) as each,
        ):
            body(each)
        return self.d.kernel(tasks=count)

    def _columns(self, nth: Value) -> None:
        """A vector of outputs; the last one of a row overlaps the one before."""
        blocks = -(-self.inner // self.lanes)
        outer, block = self.b.let(nth // blocks), self.b.let(nth % blocks)
        column = self.b.let(tirx.Min(block * self.lanes, tir.const(self.inner - self.lanes)))
        start = self.b.let(outer * (self.size * self.inner) + column, "start")
        best, place = self._begin(self.d.read(self.x, start, self.lanes))
        with self.b.serial(self.size - 1, "i", 1) as i:
            value = self.d.read(self.x, self.b.let(start + i * self.inner), self.lanes)
            self._see(best, place, value, i)
        self.d.out.store(self.b.let(outer * self.inner + column), tir.cast(place[0], "int64"))

    def _rows(self, nth: Value) -> None:
        """As many rows as lanes; the last ones overlap those before."""
        row = self.b.let(tirx.Min(nth * self.lanes, tir.const(self.total - self.lanes)), "row")
        start, whole = self.b.let(row * self.size, "start"), self.size // self.lanes
        rest = self.size % self.lanes
        values = self._transposed(start, self.lanes if whole else rest)
        best, place = self._begin(values[0])
        for i, value in enumerate(values[1:], 1):
            self._see(best, place, value, tir.const(i))
        with self.b.serial(max(whole - 1, 0), "chunk", 1) as chunk:
            for i, value in enumerate(
                self._transposed(self.b.let(start + chunk * self.lanes), self.lanes)
                if whole > 1
                else []
            ):
                self._see(best, place, value, self.b.let(chunk * self.lanes + i))
        if whole and rest:
            at = whole * self.lanes
            for i, value in enumerate(self._transposed(self.b.let(start + at), rest), at):
                self._see(best, place, value, tir.const(i))
        self.d.out.store(row, tir.cast(place[0], "int64"))

    def _transposed(self, start: Value, count: int) -> list[Vec]:
        """The first `count` values of each row, from an offset on -> a vector for each column."""
        rows = [
            self.d.read(self.x, self.b.let(start + r * self.size), self.lanes, count).expr
            for r in range(self.lanes)
        ]
        return [Vec(self.m, v, self.x.dtype, self.lanes) for v in transposed(self.b, rows)[:count]]

    def _single(self, each: Value) -> None:
        """One output."""
        start = self.b.let((each // self.inner) * (self.size * self.inner) + each % self.inner)
        best, place = self._begin(self.d.read(self.x, start))
        with self.b.serial(self.size - 1, "i", 1) as i:
            value = self.d.read(self.x, self.b.let(start + i * self.inner, "at"))
            with self.b.when(tirx.NE(tir.cast(self._better(value, best).expr, "int32"), 0)):
                best[0] = value.expr
                place[0] = i
        self.d.out.store(each, tir.cast(place[0], "int64"))

    def _begin(self, value: Vec) -> tuple[tir.Registers, tir.Registers]:
        """Registers of the best values and their indices, at first those at index 0."""
        best = self.b.registers(tir.stored(self.x.dtype), value.lanes, 1, "best")
        place = self.b.registers("int32", value.lanes, 1, "place")
        best[0] = value.expr
        place.fill(0)
        return best, place

    def _see(self, best: tir.Registers, place: tir.Registers, value: Vec, i: Value) -> None:
        """Keep a value and its index in the lanes where it is better."""
        better, m, lanes = self._better(value, best), self.m, self.lanes
        old, known = Vec(m, best[0], self.x.dtype, lanes), Vec(m, place[0], "int32", lanes)
        place[0] = m.where(better, m.widen(m.vec(i), lanes), known).expr
        best[0] = m.where(better, value, old).expr  # last: the condition reads it

    def _better(self, value: Vec, best: tir.Registers) -> Vec:
        old = Vec(self.m, best[0], self.x.dtype, value.lanes)
        if self.x.dtype in HALF_FLOATS:
            value, old = self.m.cast(value, "float32"), self.m.cast(old, "float32")
        largest, last = self.root.op == "ArgMax", bool(self.root.int("select_last_index"))
        before = (
            (value >= old if largest else value <= old)
            if last
            else (value > old if largest else value < old)
        )
        if not value.is_float:
            return before
        # NaN is the extreme, as in numpy: the first one, or the last if requested.
        first = self.m.is_nan(value)
        return before | (first if last else first & self.m.is_number(old))
