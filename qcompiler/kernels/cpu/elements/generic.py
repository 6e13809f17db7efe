"""Operators without a kernel of their own -> TIR that computes one element after the other.

A meaning gives the root's value at one place of its output; loops, threads, prologue and epilogue
are the same for all. Correct for everything, fast for nothing in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from math import prod

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import steps_of
from qcompiler.kernels.cpu.code.loops import indices, share, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.registry import Kernel, Region, kernel

Place = Sequence[Value]
Meaning = Callable[["Elements", Place], Vec]
"""(kernel, index for each dimension of the output) -> the root's value there."""

_NS = 4.0
"""The reference core's time for one element."""

_MEANINGS: dict[str, Meaning] = {}


def means(*ops: str) -> Callable[[Meaning], Meaning]:
    """Register the meaning of operators at one place of the output."""

    def register(meaning: Meaning) -> Meaning:
        _MEANINGS.update({op: meaning for op in ops})
        for op in ops:
            kernel(op)(elements)
        return meaning

    return register


def elements(region: Region, device: Cpu) -> Kernel | Skip:
    """Every element of the output separately, shared among threads."""
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    if len(root.types) > 1 or root.type.size == 0:
        return Skip("several outputs, or none")
    d = Draft(root.op.lower(), region, device)
    return Elements(d).kernel(_MEANINGS[root.op])


class Elements:
    """A kernel while it is written."""

    def __init__(self, d: Draft, operand: Node | None = None) -> None:
        """`operand` is what `x` reads; by default the root's first."""
        self.d, self.b, self.m, self.root = d, d.b, d.m, d.root
        self.operand = operand or d.root.operands[0]
        self._before = d.reading(self.operand, whole=True)
        self._after = d.writing(whole=True)

    def kernel(self, meaning: Meaning) -> Kernel:
        """The kernel of all elements."""
        dims = self.root.type.dims
        count = tasks(self.d.device, self.d.device.core.mixed_ns(prod(dims) * _NS), prod(dims))
        with (
            share(self.b, count, prod(dims)) as (first, iterations),
            self.b.serial(iterations, "element", first) as i,
        ):
            self.put(i, meaning(self, indices(self.b, i, dims)))
        return self.d.kernel(tasks=count)

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

    def index(self, node: Node, flat: Value) -> Value:
        """An integer operand's element, as an index."""
        return self.b.let(tir.cast(self.d.pointers[node].load(flat), "int32"))

    def number(self, value: Value) -> Vec:
        """An index as a value."""
        return self.m.vec(value)

    def choose(self, condition: Value, a: Vec, b: Vec) -> Vec:
        """`a` where a condition on indices holds."""
        return self.m.where(self.m.vec(condition, "bool"), a, b)


@means("Trilu")
def _trilu(e: Elements, place: Place) -> Vec:
    k = e.root.inputs[1] if len(e.root.inputs) > 1 else None
    shift = tir.const(0) if k is None else e.index(k, tir.const(0))
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
    length = e.index(e.root.operands[1], place[batch])
    source = list(place)
    back = tirx.Select(place[time] < length, length - 1 - place[time], place[time])
    source[time] = e.b.let(back)
    return e.x(source)


@means("TensorScatter")
def _tensor_scatter(e: Elements, place: Place) -> Vec:
    update, starts = e.root.operands[1], e.root.operands[2] if len(e.root.operands) > 2 else None
    axis = e.root.int("axis") % len(place)
    size, count = e.root.type.dims[axis], update.type.dims[axis]
    start = tir.const(0) if starts is None else e.index(starts, place[0])
    distance = place[axis] - start
    if e.root.str("mode") == "circular":
        distance = tirx.floormod(distance + 2 * size, size)
    distance = e.b.let(distance)
    inside = tirx.And(distance >= 0, distance < count)
    source = list(place)
    source[axis] = e.b.let(tirx.Max(tirx.Min(distance, tir.const(count - 1)), tir.const(0)))
    return e.choose(inside, e.read(update, source), e.x(place))


@means("BatchNormalization")
def _batch_normalization(e: Elements, place: Place) -> Vec:
    channel = [place[1] if len(place) > 1 else tir.const(0)]
    wide = [e.m.cast(e.read(n, channel), "float32") for n in e.root.operands[1:]]
    scale, bias, mean, variance = wide
    factor = scale / e.m.sqrt(variance + e.root.float("epsilon"))
    value = (e.m.cast(e.x(place), "float32") - mean) * factor + bias
    return e.m.cast(value, e.root.dtype)


@means("RotaryEmbedding")
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
        pair, first = e.b.let(tirx.floordiv(at, 2)), tirx.EQ(tirx.floormod(at, 2), 0)
        away = 1
    else:
        pair, first = e.b.let(tirx.floormod(at, rotated // 2)), at < rotated // 2
        away = rotated // 2
    pair = e.b.let(tirx.Min(pair, tir.const(rotated // 2 - 1)))
    inside = at < rotated
    other = tirx.Select(inside, tirx.Select(first, at + away, at - away), at)
    where = [*place[:-1], e.b.let(place[-1] - at + other)]
    angle = [batch, step, pair]
    if len(root.inputs) > 3 and root.inputs[3] is not None:
        positions = root.inputs[3]
        angle = [e.index(positions, e.flat(positions, [batch, step])), pair]
    c, s = (e.m.cast(e.read(n, angle), "float32") for n in (cos, sin))
    own, partner = (e.m.cast(e.x(p), "float32") for p in (place, where))
    made = e.choose(first, c * own - s * partner, s * partner + c * own)
    return e.m.cast(e.choose(inside, made, own), root.dtype)


# GridSample.


@means("GridSample")
def _grid_sample(e: Elements, place: Place) -> Vec:
    x, grid = e.root.operands
    sizes = x.type.dims[2:]
    rank = len(sizes)
    cubic = e.root.str("mode") == "cubic"
    at = []
    for axis, size in enumerate(sizes):
        where = [place[0], *place[2:], tir.const(rank - 1 - axis)]
        coordinate = _denormalized(e, e.m.cast(e.read(grid, where), "float32"), size)
        at.append(coordinate if cubic else _bounded(e, coordinate, size))
    total = e.m.splat(0, "float32")
    for chosen in product(*(_taps(e, a) for a in at)):
        weights, source = [], []
        for (coordinate, weight), size in zip(chosen, sizes, strict=True):
            coordinate = _bounded(e, coordinate, size)
            inside = (coordinate >= 0) & (coordinate <= size - 1)
            weights.append(e.m.where(inside, weight, 0.0))
            source.append(e.m.cast(e.m.where(inside, coordinate, 0.0), "int32").expr)
        value = e.m.cast(e.x([place[0], place[1], *source]), "float32")
        total = total + value * reduce(lambda a, b: a * b, weights)
    return e.m.cast(total, e.root.dtype)


def _denormalized(e: Elements, at: Vec, size: int) -> Vec:
    if e.root.int("align_corners"):
        return (at + 1.0) / 2.0 * (size - 1)
    return ((at + 1.0) * size - 1.0) / 2.0


def _bounded(e: Elements, at: Vec, size: int) -> Vec:
    """The coordinate that the padding mode reads instead of one outside."""
    mode, m = e.root.str("padding_mode"), e.m
    finite = m.abs(at) < np.inf
    at = m.where(finite, at, -1e6 if mode == "zeros" else 0.0)
    if mode == "zeros":
        return m.clip(at, -1e6, 1e9)
    if mode == "reflection":
        low, high = (0.0, size - 1.0) if e.root.int("align_corners") else (-0.5, size - 0.5)
        span = high - low
        if span <= 0:
            return at * 0.0
        folded = m.remainder(at - low, 2 * span)
        at = m.min(folded, 2 * span - folded) + low
    return m.clip(at, 0.0, size - 1.0)


def _taps(e: Elements, at: Vec) -> list[tuple[Vec, Vec]]:
    """A coordinate -> the places to read, and their weights."""
    mode, m = e.root.str("mode"), e.m
    if mode == "nearest":
        return [(m.round(at), m.splat(1, "float32"))]
    base, made = m.floor(at), []
    for offset in (0, 1) if mode == "linear" else (-1, 0, 1, 2):
        distance = m.abs(base + float(offset) - at)
        made.append(
            (base + float(offset), 1.0 - distance if mode == "linear" else _cubic(distance))
        )
    return made


def _cubic(distance: Vec) -> Vec:
    """Keys' kernel with a = -0.75."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1.0
    beyond = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return distance.m.where(distance <= 1.0, near, distance.m.where(distance < 2.0, beyond, 0.0))


# RoiAlign.


@means("RoiAlign")
def _roi_align(e: Elements, place: Place) -> Vec:
    """The average (or largest) of a grid of samples of a bin, each between four pixels."""
    b, m, root = e.b, e.m, e.root
    x, rois, batch = root.operands
    images, _, *sizes = x.type.dims
    image = b.let(tirx.Max(tirx.Min(e.index(batch, place[0]), tir.const(images - 1)), tir.const(0)))
    average, half = root.str("mode") == "avg", _half_pixel(root)
    counts = (root.int("output_height"), root.int("output_width"))
    bins = [_bin(e, rois, place, axis, counts[axis], half) for axis in (0, 1)]
    total = b.registers("float64", 1, 1, "total")
    total.fill(0 if average else -np.inf)
    with b.serial(bins[0][2], "y") as i, b.serial(bins[1][2], "x") as j:
        sides = [
            _neighbours(e, start + step * (m.cast(e.number(n), "float64") + 0.5), size)
            for (start, step, _), n, size in zip(bins, (i, j), sizes, strict=True)
        ]
        parts = []
        for (row, below), (column, beside) in product(*sides):
            value = m.cast(e.x([image, place[1], row, column]), "float64")
            parts.append(value * (below * beside))
        seen = reduce(lambda a, c: a + c if average else m.max(a, c), parts)
        before = m.vec(total[0])
        total[0] = (before + seen if average else m.max(before, seen)).expr
    found = m.vec(total[0])
    if average:
        found = found / m.cast(e.number(bins[0][2] * bins[1][2]), "float64")
    return m.cast(found, root.dtype)


def _half_pixel(root: Node) -> bool:
    return root.str("coordinate_transformation_mode") == "half_pixel"


def _bin(
    e: Elements, rois: Node, place: Place, axis: int, count: int, half: bool
) -> tuple[Vec, Vec, Value]:
    """Along an axis: where the bin of a place begins, the distance and number of its samples."""
    m, given = e.m, e.root.int("sampling_ratio")
    scale = e.root.float("spatial_scale")
    ends = [
        m.cast(e.read(rois, [place[0], tir.const(k - axis)]), "float64") * scale - half / 2
        for k in (1, 3)
    ]
    length = ends[1] - ends[0] if half else m.max(ends[1] - ends[0], 1.0)
    each = length / float(count)
    many = tir.const(given) if given else m.cast(m.max(m.ceil(each), 1.0), "int32").expr
    many = e.b.let(many, "samples")
    start = ends[0] + each * m.cast(e.number(place[2 + axis]), "float64")
    return start, each / m.cast(e.number(many), "float64"), many


def _neighbours(e: Elements, at: Vec, size: int) -> list[tuple[Value, Vec]]:
    """A coordinate -> the pixels on both sides of it and their weights; none far outside."""
    m = e.m
    inside = (at >= -1.0) & (at <= float(size))
    bounded = m.clip(at, 0.0, size - 1.0)
    low = m.floor(bounded)
    share = bounded - low
    high = m.min(low + 1.0, size - 1.0)
    weights = [m.where(inside, w, 0.0) for w in (1.0 - share, share)]
    return [(m.cast(p, "int32").expr, w) for p, w in zip((low, high), weights, strict=True)]
