"""Resize regions -> TIR: every output pixel is a weighted sum of a few input pixels, all known at
compile time.

The same function as in the operator's numpy meaning gives the inputs and weights of each output
along an axis. They (a few offsets and weights for every output index) replace the constant of
scales or sizes. So all modes and coordinate transformations of ONNX are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.images import is_open
from qcompiler.kernels.cpu.code.loops import indices, share, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.moves.images import repeated
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.ops.resize import MAX_TAPS, sampled

_MOST_TAPS = 64
"""The most input pixels of one output pixel, over all axes, that are unrolled."""


@kernel("Resize")
def resize(region: Region, device: Cpu) -> Kernel | Skip:
    """Any mode. Vectors along the last axis: contiguous where it keeps its size (always with
    channels last), else gathered.
    """
    if reason := refuse(region):
        return reason
    root, found = region.root, taps_of(region)
    assert root is not None
    if isinstance(found, Skip):
        return found
    if is_open(region):
        return repeated(region, device, {a: t.index for a, t in found[1].items()})
    given, each = found
    axes, taps = list(each), list(each.values())
    if root.type.rank - 1 in axes and root.operands[0] in region.nodes:
        return Skip("elementwise work before the last axis is resized")
    d = Draft(name_of(root), region, device)
    last = taps[-1] if root.type.rank - 1 in axes else None
    return _emitted(d, _Layout(given, axes, taps, last))


def name_of(root: Node) -> str:
    """Of a Resize's kernel."""
    return f"resize_{root.str('mode')}_{'x'.join(map(str, root.type.dims))}"


def taps_of(region: Region) -> tuple[Node, dict[int, Taps]] | Skip:
    """A Resize's region -> its operand with the scales or sizes, and the taps of each axis that is
    resized, if they are known and few.
    """
    root = region.root
    assert root is not None
    given = [i for i in root.inputs[1:] if i is not None and i.type.size]
    if len(given) != 1 or (len(root.inputs) > 1 and root.inputs[1] in given):
        return Skip("a region of interest")
    numbers = region.known(given[0]).numbers
    if numbers is None:
        return Skip("scales that are not known")
    if root.str("keep_aspect_ratio_policy") != "stretch":
        return Skip(f"keep_aspect_ratio_policy {root.str('keep_aspect_ratio_policy')}")
    if 0 in root.type.dims:
        return Skip("nothing to resize")
    found = resized(root, given[0], numbers)
    if isinstance(found, Skip):
        return found
    if prod(t.count for t in found.values()) > _MOST_TAPS:
        return Skip(f"more than {_MOST_TAPS} inputs for one output")
    return given[0], found


def combined(
    options: Sequence[Sequence[tuple[Value, Value | None]]], sizes: Sequence[int]
) -> Iterator[tuple[Value, Value | None]]:
    """The indices and weights that an output reads along each of some axes, of these sizes -> the
    places that it reads, and the products of their weights; None where no axis has any.
    """
    for chosen in product(*options):
        flat: Value = tir.const(0)
        weight: Value | None = None
        for (index, part), size in zip(chosen, sizes, strict=False):
            flat = flat * size + index
            if part is not None:
                weight = part if weight is None else weight * part
        yield flat, weight


@dataclass(frozen=True)
class Taps:
    """Along one axis: the input index and the weight of each of `count` taps of every output."""

    index: NDArray[np.int32]
    weight: NDArray[np.float32]

    @property
    def count(self) -> int:
        """Taps of one output."""
        return int(self.index.shape[1])


def resized(root: Node, given: Node, numbers: Sequence[float]) -> dict[int, Taps] | Skip:
    """A Resize, its operand of scales or sizes and the numbers in it -> the taps of every axis that
    changes.
    """
    if max(root.type.dims) > MAX_TAPS:
        return Skip("too many outputs along an axis")
    values = np.array(numbers, given.dtype)
    scales, sizes = (values, None) if given in root.inputs[2:3] else (None, values)
    found = sampled(root, root.operands[0].type.dims, (None, scales, sizes))
    return {axis: _taps(s.places, s.weights) for axis, s in found.items()}


def _taps(places: Array, weights: Array | None) -> Taps:
    if weights is None:
        return Taps(places.astype(np.int32), np.ones(places.shape, np.float32))
    return _merged(places.astype(np.int64), weights.astype(np.float32))


def _merged(places: NDArray[np.int64], weights: NDArray[np.float32]) -> Taps:
    """[outputs, taps] of places, some repeated, and weights, some 0 -> the fewest such taps."""
    order = np.argsort(places, axis=1, kind="stable")
    places = np.take_along_axis(places, order, 1)
    new = np.diff(places, axis=1, prepend=-1) != 0
    sums = np.take_along_axis(weights, order, 1).reshape(-1)
    sums = np.add.reduceat(sums, np.flatnonzero(new))
    rows = np.nonzero(new)[0][sums != 0]
    counts = np.bincount(rows, minlength=len(new))
    at = (rows, np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts))
    index = np.zeros((len(new), max(counts.max(initial=0), 1)), np.int32)
    kept = np.zeros(index.shape, np.float32)
    index[at], kept[at] = places[new][sums != 0], sums[sums != 0]
    return Taps(index, kept)


Tap = tuple[Value, Value | None]
"""A row of the last axis, and its weight where that is not 1."""
Seen = tuple[Vec, Value | None]
"""A vector of such a row, and the row's weight."""


@dataclass(frozen=True)
class _Layout:
    """What is resized: the operand whose place the table takes, and the taps along some axes."""

    given: Node
    axes: list[int]
    taps: list[Taps]
    gathered: Taps | None
    """The taps along the last axis, if they are gathered."""

    def pack(self, _: Array) -> Array:
        """For every axis: indices, then weights, as 32-bit words in elements of `given`."""
        pairs = [(t.index, t.weight.view(np.int32)) for t in self.taps]
        if self.gathered:  # one tap's vector after the other
            pairs[-1] = (pairs[-1][0].T, pairs[-1][1].T)
        parts = [p for pair in pairs for p in pair]
        words = np.concatenate([p.reshape(-1) for p in parts] or [np.zeros(1, np.int32)])
        return words.astype(np.int64) if self.given.dtype == "int64" else words


def _emitted(d: Draft, layout: _Layout) -> Kernel:
    """All rows, shared among tasks."""
    rows = int(np.prod(d.root.type.dims[:-1]))
    pixels = int(np.prod([t.count for t in layout.taps]))
    moved = d.root.type.bytes * (1 + pixels)
    count = tasks(d.device, d.device.core.moved_ns(moved), rows)
    with share(d.b, count, rows) as (first, iterations):
        task = _Task(d, layout)
        with d.b.serial(iterations, "row", first) as row:
            task.row(row)
    at = d.region.inputs.index(layout.given)
    return d.kernel(tasks=count, pack={at: layout.pack})


class _Task:
    """The code of one task while it is emitted."""

    def __init__(self, d: Draft, layout: _Layout) -> None:
        self.d, self.b, self.m, self.root = d, d.b, d.m, d.root
        self.given, self.axes, self.taps = layout.given, layout.axes, layout.taps
        self.gathered = layout.gathered
        self.copies = d.root.str("mode") == "nearest"
        self.prologue, self.epilogue = d.prologue, d.epilogue
        lanes = min(self.prologue.lanes(), self.epilogue.lanes())
        self.lanes = lanes if self.copies and not self.gathered else min(lanes, d.isa.lanes(4))

    def _word(self, at: Value, lanes: int = 1, count: int = 1) -> Value:
        """A word of the table, or a vector of which `count` words exist."""
        pointer = self.d.pointers[self.given]
        if self.given.dtype == "int64":
            return tir.cast(pointer.load_first(count, at, lanes), "int32")
        return pointer.view("int32").load_first(count, at, lanes)

    def row(self, row: Value) -> None:
        """One output pixel: its whole last axis."""
        b, dims = self.b, self.root.type.dims
        place = indices(b, row, dims[:-1])
        found = self._sources(place)
        after = self.epilogue.row(row)
        read = self._gathered(found) if self.gathered else self._neighbours(found)

        def body(column: Value, count: int) -> None:
            total: Vec | None = None
            for value, weight in read(column, count):
                if weight is not None:
                    value = self.m.cast(value, "float32") * self.m.vec(
                        tir.broadcast(weight, self.lanes)
                    )
                total = value if total is None else total + value
            assert total is not None
            if not self.copies:
                total = (
                    self.m.saturate(total, self.root.dtype) if "int" in self.root.dtype else total
                )
            value = self.m.cast(total, self.root.dtype)
            self.d.put(self.epilogue, after, row * dims[-1] + column, column, count, value)

        sweep(b, dims[-1], self.lanes, body)

    def _neighbours(self, found: Sequence[Tap]) -> Callable[[Value, int], Iterator[Seen]]:
        """Rows and their weights -> a function that reads a vector of each from a column on."""
        rows = [(self.prologue.row(source), weight) for source, weight in found]

        def read(column: Value, count: int) -> Iterator[Seen]:
            for row, weight in rows:
                yield self.prologue.at(row, column, self.lanes, count), weight

        return read

    def _gathered(self, found: Sequence[Tap]) -> Callable[[Value, int], Iterator[Seen]]:
        """The same if every column has its own index and weight."""
        taps, x = self.gathered, self.root.operands[0]
        assert taps is not None
        start = sum(2 * t.index.size for t in self.taps[:-1])
        length, width = x.type.dims[-1], len(taps.index)
        rows = [(self.b.let(source * length), weight) for source, weight in found]

        def read(column: Value, count: int) -> Iterator[Seen]:
            for tap in range(taps.count):
                at = self.b.let(column + (start + tap * width))
                index = self.b.let(self._word(at, self.lanes, count), "index")
                own = self.b.let(self._word(at + taps.index.size, self.lanes, count), "own")
                for row, weight in rows:
                    raw = self.d.pointers[x].gather(index + tir.broadcast(row, self.lanes))
                    value = Vec(self.m, self.b.let(raw), x.dtype, self.lanes)
                    if self.copies:
                        yield value, None
                        continue
                    wide = self.m.cast(value, "float32")
                    yield wide * self.m.vec(tir.reinterpret(own, "float32")), weight

        return read

    def _sources(self, place: list[Value]) -> list[Tap]:
        """An output pixel -> (input pixel, weight) of every tap; no weight where it is 1."""
        b = self.b
        options: list[list[tuple[Value, Value | None]]] = []
        start = 0
        at = {a: i for i, a in enumerate(self.axes)}
        for axis, index in enumerate(place):
            if axis not in at:
                options.append([(index, None)])
                continue
            taps = self.taps[at[axis]]
            weights = start + taps.index.size
            steps = [b.let(index * taps.count + t, "tap") for t in range(taps.count)]
            options.append(
                [
                    (
                        b.let(self._word(s + start), "source"),
                        None
                        if self.copies
                        else tir.reinterpret(self._word(s + weights), "float32"),
                    )
                    for s in steps
                ]
            )
            start = weights + taps.weight.size
        return [
            (b.let(flat, "pixel"), None if weight is None else b.let(weight, "weight"))
            for flat, weight in combined(options, self.root.operands[0].type.dims)
        ]
