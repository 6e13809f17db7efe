"""Operators without a kernel of their own -> TIR that computes one element after the other.

A meaning gives the root's value at one place of its output; loops, threads, prologue and epilogue
are the same for all. The innermost loop goes along one dimension of the output, so no index costs a
division, what does not depend on that dimension is computed before the loop, and LLVM may make
vectors of the rest; which dimension is a tuner's choice. Meanings whose indices may be vectors give
several neighbours at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import Fused, Walk, load, read_by, steps_of
from qcompiler.kernels.cpu.code.loops import indices, share, shared_seconds, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import (
    Candidate,
    Fixed,
    Kernel,
    Region,
    candidates,
    streamed,
)

Place = Sequence[Value]
Meaning = Callable[["Elements", Place], Vec]
"""(kernel, index for each dimension of the output) -> the root's value there."""

_NS = 4.0
"""The reference core's time for one element among all others, whose indices are divided out ..."""
_LAST_NS, _OTHER_NS = 1.0, 2.0
"""... in a loop along the last dimension, and along another ..."""
_VECTOR_NS = 4.0
"""... and for a vector of neighbours; ..."""
_ROW_NS = 6.0
"""... and to begin such a loop."""

_SCATTERED = 5.0
"""Times that a vector of neighbours takes as long as one element where their operands lie apart."""

_MEANINGS: dict[str, Meaning] = {}
_IN_VECTORS: set[str] = set()
_APART: dict[str, tuple[int, float]] = {}


def means(
    *ops: str, vectors: bool = False, apart: tuple[int, float] | None = None
) -> Callable[[Meaning], Meaning]:
    """Register the meaning of operators at one place of the output; with `vectors`, its last index
    may be one of several neighbours. `apart`: a dimension, and the nanoseconds of work (of the
    reference core) that an element takes in addition which does not depend on that dimension.
    """

    def register(meaning: Meaning) -> Meaning:
        _MEANINGS.update({op: meaning for op in ops})
        _IN_VECTORS.update(ops if vectors else ())
        _APART.update({op: apart for op in ops if apart is not None})
        for op in ops:
            candidates(op)(elements)
        return meaning

    return register


def meaning_of(root: Node) -> Meaning | None:
    """A node's meaning at one place of its output, if its operator has one."""
    return _MEANINGS.get(root.op)


@dataclass(frozen=True)
class Nest:
    """The dimension of the output that the innermost loop goes along."""

    along: int


@dataclass(frozen=True)
class Vectors:
    """How many neighbours along the last dimension are computed at once."""

    lanes: int


Way = Fixed | Nest | Vectors


def elements(region: Region, device: Cpu) -> Iterable[Candidate] | Skip:
    """Every element of the output separately, shared among threads."""
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    if len(root.types) > 1 or root.type.size == 0:
        return Skip("several outputs, or none")
    ways: list[Way] = [Fixed(), *map(Nest, _loops(region)), *map(Vectors, _lanes(region, device))]
    return [
        Candidate(way, _seconds(region, device, way), partial(_made, region, device, way))
        for way in ways
    ]


def _loops(region: Region) -> list[int]:
    """The dimensions that a loop may go along: none where the output has another shape."""
    assert region.root is not None
    dims, out = region.root.type.dims, region.output.type.dims
    ahead = len(out) - len(dims)
    if ahead < 0 or out[ahead:] != dims or prod(out[:ahead]) != 1:
        return []
    return [axis for axis, size in enumerate(dims) if size > 1]


def _lanes(region: Region, device: Cpu) -> list[int]:
    """Of vectors; none where it has none, its operand is computed, or rows are shorter."""
    root = region.root
    assert root is not None
    last = root.type.rank - 1
    if root.op not in _IN_VECTORS or last not in _loops(region) or root.operands[0] in region.nodes:
        return []
    lanes = device.isa.lanes(max(4, tir.bits(root.dtype) // 8))
    return [lanes] if 1 < lanes <= root.type.dims[-1] else []


def _seconds(region: Region, device: Cpu, way: Way) -> float:
    root = region.root
    assert root is not None
    dims, parts = root.type.dims, root.type.size
    if not isinstance(way, Fixed):
        parts //= dims[way.along if isinstance(way, Nest) else -1]
    ns = device.core.mixed_ns(_nanoseconds(root, way))
    return streamed(region, device) + shared_seconds(device, ns, tasks(device, ns, parts))


def _nanoseconds(root: Node, way: Way) -> float:
    """The reference core's time."""
    dims, size = root.type.dims, root.type.size
    dimension, more = _APART.get(root.op, (-1, 0.0))
    if isinstance(way, Fixed):
        return size * (_NS + more)
    if isinstance(way, Vectors):
        whole, rest = divmod(dims[-1], way.lanes)
        vectors = whole * (_VECTOR_NS + _SCATTERED * more)
        return prod(dims[:-1]) * (_ROW_NS + vectors + rest * (_LAST_NS + more))
    each = _LAST_NS if way.along == len(dims) - 1 else _OTHER_NS
    rows = size // dims[way.along]
    return rows * _ROW_NS + size * each + more * (rows if way.along == dimension else size)


def _made(region: Region, device: Cpu, way: Way) -> Kernel:
    assert region.root is not None
    d = Draft(region.root.op.lower(), region, device)
    made: Elements
    if isinstance(way, Vectors):
        made = InVectors(d, way)
    else:
        made = Nested(d, way.along) if isinstance(way, Nest) else Elements(d)
    return made.kernel(_MEANINGS[region.root.op])


class Elements:
    """A kernel while it is written."""

    def __init__(self, d: Draft, operand: Node | None = None) -> None:
        """`operand` is what `x` reads; by default the root's first."""
        self.d, self.b, self.m, self.root = d, d.b, d.m, d.root
        self.operand = operand or d.root.operands[0]
        self._before, self._after = self._around()

    def _around(self) -> tuple[Fused, Fused]:
        """The first operand's prologue, and the epilogue."""
        return self.d.reading(self.operand, whole=True), self.d.writing(whole=True)

    def kernel(self, meaning: Meaning) -> Kernel:
        """The kernel of all elements."""
        dims = self.root.type.dims
        ns = self.d.device.core.mixed_ns(_nanoseconds(self.root, Fixed()))
        count = tasks(self.d.device, ns, prod(dims))
        with (
            share(self.b, count, prod(dims)) as (first, iterations),
            self.b.serial(iterations, "element", first) as i,
        ):
            self.put(i, meaning(self, indices(self.b, i, dims)))
        return self.d.kernel(tasks=count, generic=True)

    def put(self, flat: Value, value: Vec) -> None:
        """Store the root's value number `flat`, through the epilogue, to the output."""
        columns = self._after.columns
        row = self._after.row(self.b.let(tirx.floordiv(flat, columns)))
        column = self.b.let(tirx.floormod(flat, columns))
        self.d.put(self._after, row, flat, column, 1, value)

    def x(self, place: Place) -> Vec:
        """The first operand, with its prologue, at a place."""
        return self.x_flat(self.flat(self.operand, place))

    def x_flat(self, flat: Value) -> Vec:
        """The first operand's element number `flat`."""
        columns = self._before.columns
        row = self._before.row(self.b.let(tirx.floordiv(flat, columns)))
        return self._before.at(row, self.b.let(tirx.floormod(flat, columns)), 1)

    def read(self, node: Node, place: Place) -> Vec:
        """Another operand at a place; its only element if it has one."""
        return self.d.read(node, self.flat(node, place))

    def flat(self, node: Node, place: Place) -> Value:
        """An index for each dimension -> the number of the element."""
        steps = steps_of(node.type.dims, node.type.dims)
        pairs = zip(place, steps, strict=True)
        return self.b.let(sum((i * s for i, s in pairs if s), start=tir.const(0)))

    def index(self, node: Node, flat: Value, low: int, high: int) -> Value:
        """An integer operand's element, as an index of low..high, whatever a run gives."""
        return self.b.let(tir.bounded(self.d.pointers[node].load(flat), low, high))

    def number(self, value: Value) -> Vec:
        """An index as a value."""
        return self.m.vec(value)

    def choose(self, condition: Value, a: Vec, b: Vec) -> Vec:
        """`a` where a condition on indices holds."""
        return self.m.where(self.m.vec(condition, "bool"), a, b)


class Nested(Elements):
    """A kernel whose innermost loop goes along a dimension of the output."""

    def __init__(self, d: Draft, along: int) -> None:
        self.along = along
        super().__init__(d)

    def _around(self) -> tuple[Fused, Fused]:
        d, x, y = self.d, self.operand, self.d.region.output
        before = d.reading(x, walk=_unmerged(x, read_by(d.prologue_nodes(x), x)))
        after = _unmerged(y, read_by(d.epilogue_nodes(), y, (self.root,)))
        return before, d.writing(walk=after)

    def kernel(self, meaning: Meaning) -> Kernel:
        """The kernel of all elements."""
        b, device, dims, along = self.b, self.d.device, self.root.type.dims, self.along
        others = (*dims[:along], *dims[along + 1 :])
        rows = prod(others)
        count = tasks(device, device.core.mixed_ns(self._nanoseconds()), rows)
        with (
            share(b, count, rows) as (first, iterations),
            b.serial(iterations, "row", first) as row,
        ):
            self._row(indices(b, row, others), meaning)
        return self.d.kernel(tasks=count)

    def _nanoseconds(self) -> float:
        return _nanoseconds(self.root, Nest(self.along))

    def _row(self, around: list[Value], meaning: Meaning, start: int = 0) -> None:
        """All elements from one on, at the other indices."""
        count = self.root.type.dims[self.along] - start
        with self.b.serial(count, "element", start) as i:
            place = [*around[: self.along], i, *around[self.along :]]
            self._put(place, meaning(self, place))

    def _put(self, place: Place, value: Vec) -> None:
        """Store the root's value at a place, through the epilogue, to the output."""
        ahead = [tir.const(0)] * (len(self._after.dims) - len(place))
        row = self._after.place([*ahead, *place], -1)
        self.d.put(self._after, row, self.flat(self.root, place), tir.const(0), 1, value)

    def x(self, place: Place) -> Vec:
        """The first operand, with its prologue, at a place."""
        row = self._before.place(list(place) or [tir.const(0)], -1)
        return self._before.at(row, tir.const(0), 1)


class InVectors(Nested):
    """A kernel that computes neighbours along the last dimension at once: there, a place's last
    index is a vector of all their indices.
    """

    def __init__(self, d: Draft, way: Vectors) -> None:
        super().__init__(d, d.root.type.rank - 1)
        self.way = way
        self._first: Value = 0
        self._all: Value = None

    def _nanoseconds(self) -> float:
        return _nanoseconds(self.root, self.way)

    def _row(self, around: list[Value], meaning: Meaning, start: int = 0) -> None:
        """Whole vectors, then the other elements one by one."""
        b, lanes, size = self.b, self.way.lanes, self.root.type.dims[-1]
        ahead = [tir.const(0)] * (len(self._after.dims) - len(around) - 1)
        row = self._after.place([*ahead, *around, tir.const(0)], -1)
        with b.serial(size // lanes, "v") as v:
            self._first = b.let(v * lanes, "first")
            self._all = tir.ramp(self._first, lanes)
            value = self.m.widen(meaning(self, [*around, self._all]), lanes)
            offset = self.flat(self.root, [*around, self._first])
            self.d.put(self._after, row, offset, self._first, lanes, value)
        self._all = None
        if size % lanes:
            super()._row(around, meaning, size // lanes * lanes)

    def x(self, place: Place) -> Vec:
        """The first operand, which has no prologue."""
        return self.read(self.operand, place)

    def read(self, node: Node, place: Place) -> Vec:
        """An operand at a place: neighbours at once where the last index of all is one of its own,
        one by one where others are vectors.
        """
        lanes, pointer = self.way.lanes, self.d.pointers[node]
        steps = steps_of(node.type.dims, node.type.dims)
        wide = [(p, s) for p, s in zip(place, steps, strict=True) if s and tir.lanes_of(p) > 1]
        if self.d.region.known(node).zero:
            return self.m.splat(0, node.dtype)
        if not wide:
            return self.d.read(node, self.flat(node, place))
        if len(wide) == 1 and wide[0][0] is self._all:
            start = self.flat(node, [self._first if p is self._all else p for p in place])
            return load(self.m, pointer, node.dtype, start, lanes, lanes, wide[0][1])
        raw = self.m.vec(pointer.gather(self.flat(node, place)))
        return raw != 0 if node.dtype == "bool" else Vec(self.m, raw.expr, node.dtype, lanes)


def _unmerged(output: Node, operands: Sequence[Node]) -> Walk:
    """A loop for each dimension of an output, and how its operands are walked through."""
    dims = output.type.dims or (1,)
    return Walk(dims, {n: tuple(steps_of(n.type.dims, dims)) for n in operands})


@means("Trilu")
def _trilu(e: Elements, place: Place) -> Vec:
    k = e.root.inputs[1] if len(e.root.inputs) > 1 else None
    rows, columns = e.root.type.dims[-2:]
    shift = tir.const(0) if k is None else e.index(k, tir.const(0), -rows, columns)
    distance = place[-1] - place[-2]
    kept = distance >= shift if e.root.int("upper") else distance <= shift
    x = e.x(place)
    return e.choose(kept, x, e.m.like(0, x))


@means("EyeLike")
def _eye_like(e: Elements, place: Place) -> Vec:
    one, zero = (e.m.splat(v, e.root.dtype) for v in (1, 0))
    return e.choose(tirx.EQ(place[1] - place[0], e.root.int("k")), one, zero)


@means("OneHot")
def _one_hot(e: Elements, place: Place) -> Vec:
    values = e.root.operands[2]
    axis = e.root.int("axis") % len(place)
    count = e.root.type.dims[axis]
    where = [p for i, p in enumerate(place) if i != axis]
    index = e.m.cast(e.x(where), "int64")
    index = e.m.where(index < 0, index + count, index)
    hit = index == e.m.cast(e.number(place[axis]), "int64")
    return e.m.where(hit, e.d.read(values, 1), e.d.read(values, 0))


@means("ReverseSequence")
def _reverse_sequence(e: Elements, place: Place) -> Vec:
    batch, time = (e.root.int(k) % len(place) for k in ("batch_axis", "time_axis"))
    length = e.index(e.root.operands[1], place[batch], 0, e.root.type.dims[time])
    source = list(place)
    back = tirx.Select(place[time] < length, length - 1 - place[time], place[time])
    source[time] = e.b.let(back)
    return e.x(source)


def first_row(d: Draft, starts: Node, sample: Value, size: int, count: int) -> Value:
    """Where TensorScatter begins to write `count` rows of a sample in `size`: inside, if they go
    round; else no farther outside than needed for none to lie inside.
    """
    given = d.b.let(d.pointers[starts].load(sample))
    if d.root.str("mode") == "circular":
        return d.b.let(
            tir.cast(tirx.floormod(given, tir.cast(tir.const(size), starts.dtype)), "int32")
        )
    return d.b.let(tir.bounded(given, -count, size))


@means("TensorScatter")
def _tensor_scatter(e: Elements, place: Place) -> Vec:
    update, starts = e.root.operands[1], e.root.operands[2] if len(e.root.operands) > 2 else None
    axis = e.root.int("axis") % len(place)
    size, count = e.root.type.dims[axis], update.type.dims[axis]
    start = tir.const(0) if starts is None else first_row(e.d, starts, place[0], size, count)
    distance = place[axis] - start
    if e.root.str("mode") == "circular":
        distance = tirx.floormod(distance, size)
    distance = e.b.let(distance)
    inside = tirx.And(distance >= 0, distance < count)
    source = list(place)
    source[axis] = e.b.let(tirx.Max(tirx.Min(distance, tir.const(count - 1)), tir.const(0)))
    return e.choose(inside, e.read(update, source), e.x(place))


@means("BatchNormalization", vectors=True)
def _batch_normalization(e: Elements, place: Place) -> Vec:
    channel = [place[1] if len(place) > 1 else tir.const(0)]
    dtype = tir.wide(e.root.dtype)
    wide = [e.m.cast(e.read(n, channel), dtype) for n in e.root.operands[1:]]
    scale, bias, mean, variance = wide
    factor = scale / e.m.sqrt(variance + e.root.float("epsilon"))
    value = (e.m.cast(e.x(place), dtype) - mean) * factor + bias
    return e.m.cast(value, e.root.dtype)


@means("RotaryEmbedding", vectors=True)
def _rotary_embedding(e: Elements, place: Place) -> Vec:
    """Each value rotated with its partner, half the vector (or one place) away."""
    root = e.root
    x, cos, sin = root.operands[:3]
    heads = root.int("num_heads") if root.attrs["num_heads"] else 0
    size = x.type.dims[-1] // heads if x.type.rank == 3 else x.type.dims[-1]
    rotated = root.int("rotary_embedding_dim") or size
    batch, step = (place[0], place[1]) if x.type.rank == 3 else (place[0], place[2])
    at = e.b.let(tirx.floormod(place[-1], size))
    if root.int("interleaved"):
        pair, first, away = tirx.floordiv(at, 2), tirx.floormod(at, 2) < 1, 1
    else:
        pair, first, away = at, at < rotated // 2, rotated // 2
    pair = e.b.let(tirx.floormod(pair, rotated // 2))
    inside = at < rotated
    other = tirx.Select(inside, tirx.Select(first, at + away, at - away), at)
    where = [*place[:-1], e.b.let(place[-1] - at + other)]
    angle = [batch, step, pair]
    if len(root.inputs) > 3 and root.inputs[3] is not None:
        positions, last = root.inputs[3], cos.type.dims[0] - 1
        angle = [e.index(positions, e.flat(positions, [batch, step]), 0, last), pair]
    c, s = (e.m.cast(e.read(n, angle), "float32") for n in (cos, sin))
    own, partner = (e.m.cast(e.x(p), "float32") for p in (place, where))
    made = e.choose(first, c * own - s * partner, s * partner + c * own)
    return e.m.cast(e.choose(inside, made, own), root.dtype)
