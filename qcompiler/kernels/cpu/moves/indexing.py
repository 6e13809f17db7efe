"""Regions that gather or scatter values by indices known at run time -> TIR.

Gather, GatherElements, GatherND     loops over the output; the operand is read where indices say
ScatterElements, ScatterND           the operand is copied, unless the output is in its place, then
TensorScatter                        the updates one after the other

Negative indices count from the end. An index outside the operand accesses its edge, so no other
memory is ever touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node, numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import Walk, load, read_by, steps_of, store
from qcompiler.kernels.cpu.code.loops import first_of, indices, share, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.elements.elementwise import nanoseconds
from qcompiler.kernels.cpu.elements.generic import first_row
from qcompiler.kernels.cpu.moves.views import merge, moved_by
from qcompiler.kernels.registry import Kernel, Region, kernel


@dataclass(frozen=True)
class _Pick:
    """An axis of the operand whose index is read: `offset` in the operand of indices."""

    axis: int
    offset: int


@dataclass(frozen=True)
class _Loop:
    """An output axis: its size, the operand's axis it runs along (-1: none), and its step through
    the indices."""

    size: int
    axis: int
    step: int


def _gather(node: Node) -> tuple[list[_Loop], list[_Pick]]:
    x, places = (i.type.dims for i in node.operands)
    axis = node.int("axis") % len(x)
    loops = [_Loop(size, a, 0) for a, size in enumerate(x[:axis])]
    loops += [_Loop(size, -1, prod(places[i + 1 :])) for i, size in enumerate(places)]
    loops += [_Loop(size, axis + 1 + a, 0) for a, size in enumerate(x[axis + 1 :])]
    return loops, [_Pick(axis, 0)]


def _gather_elements(node: Node) -> tuple[list[_Loop], list[_Pick]]:
    x, places = (i.type.dims for i in node.operands)
    axis = node.int("axis") % len(x)
    loops = [
        _Loop(size, -1 if a == axis else a, prod(places[a + 1 :])) for a, size in enumerate(places)
    ]
    return loops, [_Pick(axis, 0)]


def _gather_nd(node: Node) -> tuple[list[_Loop], list[_Pick]]:
    x, places = (i.type.dims for i in node.operands)
    batch, depth = node.int("batch_dims"), places[-1]
    loops = [
        _Loop(size, a if a < batch else -1, prod(places[a + 1 :]))
        for a, size in enumerate(places[:-1])
    ]
    rest = range(batch + depth, len(x))
    loops += [_Loop(x[a], a, 0) for a in rest]
    return loops, [_Pick(batch + i, i) for i in range(depth)]


_KINDS = {"Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd}
GATHERS = tuple(_KINDS)


@kernel(*GATHERS)
def gather(region: Region, device: Cpu) -> Kernel | Skip:
    """Vectors along the operand's last axis where an index picks whole rows, else single values."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    if 0 in root.type.dims or 0 in root.operands[0].type.dims:
        return Skip("nothing to pick")
    d = Draft(root.op.lower(), region, device)
    return gathering_of(d).kernel()


def gathering_of(d: Draft) -> Gathering:
    """What picks a region's values, before any loop."""
    return Gathering(d, *_KINDS[d.root.op](d.root))


class Gathering:
    """One kernel while it is written."""

    def __init__(self, d: Draft, loops: Sequence[_Loop], picks: Sequence[_Pick]) -> None:
        self.d, self.b, self.picks = d, d.b, picks
        self.x, self.places = d.root.operands[:2]
        source = self.x.type.dims
        self.sizes = [source[p.axis] for p in picks]
        output = d.region.output.type.dims
        from_prologue = read_by(d.prologue_nodes(self.x), self.x)
        from_epilogue = read_by(d.epilogue_nodes(), d.region.output, (d.root,))
        along = [{} if x.axis < 0 else {x.axis: 1} for x in loops]
        from_x = {n: steps_of(n.type.dims, source) for n in from_prologue}
        from_out = {n: steps_of(n.type.dims, output) for n in from_epilogue}
        read = {n: [moved_by(a, steps) for a in along] for n, steps in from_x.items()}
        index = [x.step for x in loops]
        moves = [index, *read.values(), *from_out.values(), steps_of(output, output)]
        kept = merge([x.size for x in loops], moves) or [(0, 1)] * bool(loops)
        self.dims = tuple(size for _, size in kept) or (1,)
        last = [i for i, _ in kept]
        self.index = [index[i] for i in last] or [0]
        chosen = {n: tuple([m[i] for i in last] or [0]) for n, m in read.items()}
        picked = {n: tuple(s[p.axis] for p in picks) for n, s in from_x.items()}
        # The picked indices follow those of the loops.
        walk = Walk(self.dims, {n: (*picked[n], *chosen[n]) for n in from_prologue})
        self.prologue = d.reading(self.x, walk=walk)
        steps = {n: tuple([s[i] for i in last] or [0]) for n, s in from_out.items()}
        self.epilogue = d.writing(walk=Walk(self.dims, steps))

    def kernel(self) -> Kernel:
        """Rows shared among tasks, with vectors along a row if one index selects it whole."""
        rows, single = prod(self.dims[:-1]), self.index[-1] != 0
        lanes = 1 if single else self._lanes()
        ns = nanoseconds(self.d.region, self.d.device.core) * (4 if single else 1)
        count = tasks(self.d.device, ns, rows)
        if rows < count:
            count = 1
        dims = self.d.region.output.type.dims
        counted = self.d.counted(rows, dims[first_of(dims)]) if dims else rows
        with (
            share(self.b, count, counted) as (first, iterations),
            self.b.serial(iterations, "row", first) as i,
        ):
            place = indices(self.b, i, self.dims[:-1])
            if single:
                with self.b.serial(self.dims[-1], "n") as n:
                    self._row(i, [*place, n])(tir.const(0), 1)
            else:
                sweep(self.b, self.dims[-1], lanes, self._row(i, [*place, 0], lanes))
        return self.d.kernel(tasks=count)

    def element(self, number: Value) -> None:
        """Write the output's element of a number."""
        row = self.b.let(tirx.floordiv(number, self.dims[-1]), "row")
        self._row(row, indices(self.b, number, self.dims))(tir.const(0), 1)

    def _lanes(self) -> int:
        parts = {self.d.root, self.d.region.output, *self.epilogue.nodes, *self.epilogue.operands}
        parts |= {*self.prologue.nodes, *self.prologue.operands}
        half = [4 for n in parts if n.dtype in ("float16", "bfloat16")]
        return self.d.isa.lanes(max([numpy_dtype(n.dtype).itemsize for n in parts] + half))

    def _row(
        self, index: Value, place: Sequence[Value], lanes: int = 1
    ) -> Callable[[Value, int], None]:
        """A place in the loops -> a function that writes vectors from there on along the last."""
        at = sum((i * s for i, s in zip(place, self.index, strict=True) if s), start=0)
        picked = [
            wrapped(self.d, self.places, at + p.offset, size)
            for p, size in zip(self.picks, self.sizes, strict=True)
        ]
        source = self.prologue.place([*picked, *place], -1)
        target = self.epilogue.place(place, -1)
        start = self.b.let(index * self.dims[-1] + place[-1])

        def write(column: Value, count: int) -> None:
            value = self.prologue.at(source, column, lanes, count)
            self.d.put(self.epilogue, target, start + column, column, count, value)

        return write


def wrapped(d: Draft, places: Node, offset: Value, size: int) -> Value:
    """An index in memory -> counted from the start, clipped to an axis of `size`."""
    given = d.b.let(d.pointers[places].load(offset))
    found = d.b.let(tir.bounded(given, -size, size - 1))
    return d.b.let(tirx.Select(found < 0, found + size, found))


# Scatter.


@kernel("ScatterElements", "ScatterND", "TensorScatter")
def scatter(region: Region, device: Cpu) -> Kernel | Skip:
    """One task, so that updates of one place keep their order."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    if region.nodes != (root,):
        return Skip("elementwise work around it")
    if 0 in root.type.dims or root.dtype == "bool":
        return Skip(f"nothing to put into {root.type}")
    d = Draft(root.op.lower(), region, device)
    x, others = root.operands[0], root.operands[1:]
    whole, lanes = root.type.size, device.isa.lanes(numpy_dtype(root.dtype).itemsize)

    def keep(at: Value, count: int) -> None:
        store(d.m, d.out, at, d.read(x, at, lanes, count), count)

    with d.b.when(tirx.Not(d.b.same(d.pointers[x], d.out))):
        sweep(d.b, whole, lanes, keep)
    if all(n.type.size for n in others):
        _PUT[root.op](d)
    alone = root.type.size > 1 and x not in others
    return d.kernel(in_place=(region.inputs.index(x),) if alone else ())


def _joined(d: Draft, at: Value, offset: Value, lanes: int, count: int) -> None:
    """Store updates, or add them to what is there."""
    new = d.read(d.root.operands[2], offset, lanes, count)
    way = d.root.str("reduction")
    if way != "none":
        old = load(d.m, d.out, d.root.dtype, at, lanes, count)
        new = _JOIN[way](d, old, new)
        new = d.m.cast(new, d.root.dtype)
    store(d.m, d.out, at, new, count)


_JOIN: dict[str, Callable[[Draft, Vec, Vec], Vec]] = {
    "add": lambda d, a, b: a + b,
    "mul": lambda d, a, b: a * b,
    "max": lambda d, a, b: d.m.max(a, b),
    "min": lambda d, a, b: d.m.min(a, b),
}


def _put_elements(d: Draft) -> None:
    x, places = d.root.operands[0].type.dims, d.root.operands[1]
    axis = d.root.int("axis") % len(x)
    steps = steps_of(x, x)
    with d.b.serial(places.type.size, "i") as i:
        place = indices(d.b, i, places.type.dims)
        place[axis] = wrapped(d, places, i, x[axis])
        at = d.b.let(sum((p * s for p, s in zip(place, steps, strict=True) if s), start=0))
        _joined(d, at, i, 1, 1)


def _put_rows(d: Draft) -> None:
    x, places = d.root.operands[0].type.dims, d.root.operands[1]
    depth = places.type.dims[-1]
    inner = prod(x[depth:])
    lanes = d.isa.lanes(numpy_dtype(d.root.dtype).itemsize) if inner > 1 else 1
    with d.b.serial(prod(places.type.dims[:-1]), "row") as i:
        start: Value = 0
        for axis in range(depth):
            index = wrapped(d, places, i * depth + axis, x[axis])
            start = start * x[axis] + index
        start = d.b.let(start * inner)
        sweep(d.b, inner, lanes, lambda n, c: _joined(d, start + n, i * inner + n, lanes, c))


def _put_slices(d: Draft) -> None:
    """Rows from a start on, one for each sample; those that would lie outside are left out."""
    cache, update = d.root.operands[:2]
    dims, axis = cache.type.dims, d.root.int("axis") % cache.type.rank
    size, count, inner = dims[axis], update.type.dims[axis], prod(dims[axis + 1 :])
    lanes = d.isa.lanes(numpy_dtype(d.root.dtype).itemsize) if inner > 1 else 1
    given = d.root.operands[2] if len(d.root.operands) > 2 else None
    between = prod(dims[1:axis])
    with d.b.serial(dims[0], "sample") as i:
        start = tir.const(0) if given is None else first_row(d, given, i, size, count)
        with d.b.serial(between, "outer") as j, d.b.serial(count, "row") as k:
            block = d.b.let(i * between + j)
            row: Value = start + k
            if d.root.str("mode") == "circular":
                row = tirx.floormod(row, size)
            row, source = d.b.let(row), d.b.let((block * count + k) * inner)
            with d.b.when(tirx.And(row >= 0, row < size)):
                target = d.b.let((block * size + row) * inner)
                _rows(d, update, source, target, inner, lanes)


def _rows(d: Draft, update: Node, source: Value, target: Value, size: int, lanes: int) -> None:
    def put(at: Value, count: int) -> None:
        store(d.m, d.out, target + at, d.read(update, source + at, lanes, count), count)

    sweep(d.b, size, lanes, put)


_PUT = {"ScatterElements": _put_elements, "ScatterND": _put_rows, "TensorScatter": _put_slices}
