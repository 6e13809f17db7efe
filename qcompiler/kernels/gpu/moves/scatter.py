"""ScatterElements and ScatterND regions -> kernels in which each place sees the updates that go
there in their order: results are those of one update after the other, whatever goes where.

looking  a thread for each element of the output looks at all updates that may go there
owners   of values that replace others the last stays: threads find the number of each place's last
         update, then that one is written
lines    a thread for each line of updates along the axis, or each column of their rows, puts one
         after the other: other threads' go elsewhere
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.epilogue import steps_of
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.moves.indexing import wrapped
from qcompiler.kernels.gpu.code.device import atomic_max
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import After, Candidate, Kernel, Region, candidates, streamed

_SLOTS = 12
"""Instructions that look at an update, of which all but few are for another place."""
_PUT_NS = 50.0
"""From one update of a thread to its next one, which may go to the same place."""


@dataclass(frozen=True)
class Way:
    """How places see their updates: see above."""

    way: str


@candidates("ScatterElements", "ScatterND", kind=Gpu)
def gpu_scatter(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """Any reduction; indices may be equal."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    if region.nodes != (root,):
        return Skip("elementwise work around it")
    if 0 in root.type.dims or root.dtype == "bool":
        return Skip(f"nothing to put into {root.type}")
    s = _Scatter(region, device, root)
    moved = streamed(region, device)
    rate = device.macs_per_cycle["f32"] * device.multiprocessors * device.hz
    looked = root.type.size * s.updates * max(s.depth, 1) * _SLOTS / rate
    launch, put = 1e-9 * device.launch_ns, 1e-9 * _PUT_NS * s.updates
    found = [
        Candidate(Way("looking"), moved + looked, partial(_looking, s)),
        Candidate(Way("lines"), 2 * moved + launch + put, partial(_lines, s)),
    ]
    if root.str("reduction") == "none":
        found.append(Candidate(Way("owners"), 3 * (moved + launch), partial(_owners, s)))
    return found if s.lines else found[:1]


@dataclass(frozen=True)
class _Scatter:
    """What goes where. An update is a value, or a row of `inner` values."""

    region: Region
    device: Gpu
    root: Node

    @property
    def rows(self) -> bool:
        """Whether indices pick whole rows."""
        return self.root.op == "ScatterND"

    @property
    def x(self) -> tuple[int, ...]:
        """Dimensions of the output."""
        return self.root.type.dims

    @property
    def places(self) -> tuple[int, ...]:
        """Dimensions of the indices."""
        return self.root.operands[1].type.dims

    @property
    def depth(self) -> int:
        """Indices that pick a row."""
        return self.places[-1] if self.rows else 0

    @property
    def inner(self) -> int:
        """Values of a row."""
        return prod(self.x[self.depth :]) if self.rows else 1

    @property
    def axis(self) -> int:
        """The axis of elements."""
        return self.root.int("axis") % len(self.x)

    @property
    def updates(self) -> int:
        """Updates that may go to one place."""
        return prod(self.places[:-1]) if self.rows else self.places[self.axis]

    @property
    def lines(self) -> int:
        """Lines of updates that never go to the same place."""
        return self.inner if self.rows else prod(self.places) // max(self.updates, 1)

    def draft(self, kind: str) -> GridDraft:
        """A kernel to be written."""
        return GridDraft(f"{self.root.op.lower()}_{kind}", self.region, self.device)

    def row(self, d: GridDraft, number: Value) -> Value:
        """Where the row of an update begins in the output."""
        b, start = d.b, tir.const(0)
        for i in range(self.depth):
            index = self.index(d, b.let(number * self.depth + i), self.x[i])
            start = start * self.x[i] + index
        return b.hold(start * self.inner, "row")

    def index(self, d: GridDraft, at: Value, size: int) -> Value:
        """An index, counted from the start."""
        return d.b.hold(wrapped(d, self.root.operands[1], at, size), "index")

    def target(self, d: GridDraft, number: Value) -> Value:
        """Where update value `number` goes."""
        b = d.b
        if self.rows:
            row = self.row(d, b.let(tirx.floordiv(number, self.inner), "update"))
            return b.hold(row + tirx.floormod(number, self.inner), "to")
        place = indices(b, number, self.places)
        place[self.axis] = self.index(d, number, self.x[self.axis])
        pairs = zip(place, steps_of(self.x, self.x), strict=True)
        return b.hold(sum((p * s for p, s in pairs if s), start=tir.const(0)), "to")

    def joined(self, d: GridDraft, old: Vec, new: Vec) -> Vec:
        """An update of a value."""
        way, m = self.root.str("reduction"), d.m
        if way == "none":
            return new
        if way in ("add", "mul"):
            return m.cast(old + new if way == "add" else old * new, self.root.dtype)
        return m.cast(m.max(old, new) if way == "max" else m.min(old, new), self.root.dtype)


def _looking(s: _Scatter) -> Kernel:
    """Each element of the output by itself."""
    d = s.draft("looking")
    b, (x, _, updates) = d.b, s.root.operands
    with b.items(s.root.type.size) as item:
        held = b.registers(tir.stored(s.root.dtype), 1, 1, "held")
        held[0] = d.read(x, item).expr

        def put(at: Value) -> None:
            old = Vec(d.m, b.hold(held[0]), s.root.dtype, 1)
            held[0] = s.joined(d, old, d.read(updates, at)).expr

        if updates.type.size:
            (_look_at_rows if s.rows else _look_along)(s, d, item, put)
        d.put_at(item, Vec(d.m, held[0], s.root.dtype, 1))
    return d.kernel()


def _look_at_rows(s: _Scatter, d: GridDraft, item: Value, put: Callable[[Value], None]) -> None:
    b = d.b
    column = b.let(tirx.floormod(item, s.inner), "column")
    own = b.let(item - column, "own")
    with b.serial(s.updates, "update") as update, b.when(tirx.EQ(s.row(d, update), own)):
        put(b.let(update * s.inner + column, "at"))


def _look_along(s: _Scatter, d: GridDraft, item: Value, put: Callable[[Value], None]) -> None:
    b, axis = d.b, s.axis
    place = indices(b, item, s.x)
    own, place[axis] = place[axis], tir.const(0)
    steps = [prod(s.places[i + 1 :]) for i in range(len(s.places))]
    inside: Value = tir.const(1, "bool")
    for i, (at, size) in enumerate(zip(place, s.places, strict=True)):
        if i != axis and size < s.x[i]:
            inside = tirx.And(inside, at < size)
    first = b.let(sum((p * n for p, n in zip(place, steps, strict=True)), start=tir.const(0)))
    with b.when(inside), b.serial(s.updates, "update") as update:
        at = b.let(first + update * steps[axis], "at")
        with b.when(tirx.EQ(s.index(d, at, s.x[axis]), own)):
            put(at)


def _copied(d: GridDraft, s: _Scatter, also: Callable[[Value], None] = lambda item: None) -> None:
    """The operand's values go to the output."""
    with d.b.items(s.root.type.size) as item:
        d.put_at(item, d.read(s.root.operands[0], item))
        also(item)


def _lines(s: _Scatter) -> Kernel:
    """Values as they were, then a thread for each line of updates."""
    d = s.draft("lines")
    _copied(d, s)
    return d.kernel(after=(_put_lines(s),))


def _put_lines(s: _Scatter) -> After:
    d = s.draft("put")
    b = d.b
    with b.items(s.lines) as line, b.serial(s.updates, "update") as update:
        if s.rows:
            at = b.let(update * s.inner + line, "at")
        else:
            beside = prod(s.places[s.axis + 1 :])
            before = tirx.floordiv(line, beside) * s.updates + update
            at = b.let(before * beside + tirx.floormod(line, beside), "at")
        to = s.target(d, at)
        old = Vec(d.m, b.hold(d.out.load(to)), s.root.dtype, 1)
        d.out.store(to, s.joined(d, old, d.read(s.root.operands[2], at)).expr)
    return d.after()


def _owners(s: _Scatter) -> Kernel:
    """Values as they were, the last update of each place, then that."""
    d = s.draft("owners")
    owners = d.scratch("int32")
    _copied(d, s, lambda item: owners.store(item, tir.const(-1)))
    return d.kernel(scratch_bytes=4 * s.root.type.size, after=(_found(s), _put_last(s)))


def _found(s: _Scatter) -> After:
    d = s.draft("found")
    owners = d.scratch("int32")
    with d.b.items(s.root.operands[2].type.size) as number:
        d.b.emit(atomic_max(owners + s.target(d, number), number))
    return d.after()


def _put_last(s: _Scatter) -> After:
    d = s.draft("last")
    owners: Pointer = d.scratch("int32")
    with d.b.items(s.root.operands[2].type.size) as number:
        to = s.target(d, number)
        with d.b.when(tirx.EQ(owners.load(to), number)):
            d.out.store(to, d.read(s.root.operands[2], number).expr)
    return d.after()
