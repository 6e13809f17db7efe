"""Regions that only move elements -> TIR: loops whose strides are read off the operator's meaning.

Transpose, Slice, Concat, Pad, Expand, Tile, DepthToSpace and their kin are all one thing: output
element o is input element i(o). What i is, the numpy meaning says itself: it is applied to the
numbers of the elements instead of to the elements. The answer falls into a few loops of constant
strides on both sides; those along which both are contiguous are copied by vectors, those where one
side runs across the other by transposing small squares in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.ir import Array, Node
from qcompiler.isa import Device
from qcompiler.kernels import tir
from qcompiler.kernels.draft import Draft, refuse
from qcompiler.kernels.loops import BYTES_PER_NS, indices, share, sweep, tasks, transposed
from qcompiler.kernels.registry import Kernel, Region, kernel
from qcompiler.kernels.tir import Pointer, Value
from qcompiler.ops import meaning
from qcompiler.ops.evaluate import known_value

_MOST_ELEMENTS = 1 << 26
_MOST_LOOPS = 8
_INTERLEAVED = 8
"""So many rows at the most are woven into one another; more are transposed in squares."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Loop:
    """`count` elements, `out` apart in the output and `into` apart in the input."""

    count: int
    out: int
    into: int


@dataclass(frozen=True)
class Copy:
    """Elements of one input that go to the output: where the first is on both sides, and loops."""

    source: int
    out: int
    into: int
    loops: tuple[Loop, ...]


@kernel(
    "Transpose",
    "Slice",
    "Concat",
    "Pad",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
    "Reshape",
    "Identity",
    "Split",
    "item",
    "Trilu",
    "GatherND",
    "GatherElements",
)
def move(region: Region, device: Device) -> Kernel | Skip:
    """One source element for every output element, known when the code is made."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    alone = len(region.nodes) == 1 or (root.op == "item" and len(region.nodes) == 2)
    if not alone or region.nodes[-1] is not root:
        return Skip("elementwise work around it")
    if root.type.size == 0 or root.type.size > _MOST_ELEMENTS:
        return Skip("nothing to move, or too much to look at")
    node = region.nodes[0]
    moved = list(node.operands) if node.op == "Concat" else [node.operands[0]]
    found = _sources(region, node, moved)
    if isinstance(found, Skip):
        return found
    source, element, fill = found
    copies = []
    for i, _ in enumerate(moved):
        out = np.flatnonzero(source == i)
        loops = _loops(out, element[out]) if out.size else ()
        if loops is None:
            return Skip("elements in no regular order")
        if out.size:
            copies.append(Copy(i, int(out[0]), int(element[out[0]]), loops))
    return _Movement(region, device, moved, copies, fill, bool((source < 0).any())).kernel()


def _sources(
    region: Region, node: Node, moved: Sequence[Node]
) -> tuple[Indices, Indices, float] | Skip:
    """For every output element its input (-1: none) and its number there; and the fill."""
    arrays: list[Array | None] = []
    start = 0
    for operand in node.inputs:
        if operand is not None and operand in moved:
            numbers = np.arange(start + 1, start + 1 + operand.type.size, dtype=np.int64)
            arrays.append(numbers.reshape(operand.type.dims))
            start += operand.type.size
            continue
        value = None if operand is None else known_value(operand)
        if operand is not None and value is None:
            return Skip("places that are known only at run time")
        arrays.append(value)
    fill = 0.0
    if node.op == "Pad" and len(arrays) > 2 and arrays[2] is not None:
        fill = float(np.asarray(arrays[2]).reshape(-1)[0])
        arrays[2] = np.zeros_like(arrays[2], dtype=np.int64)
    results = meaning(_of_integers(node), tuple(arrays))
    root = region.nodes[-1]
    made = results[root.int("index")] if root.op == "item" else results[0]
    flat = np.asarray(made, np.int64).reshape(-1) - 1
    ends = np.cumsum([n.type.size for n in moved])
    source = np.where(flat < 0, -1, np.searchsorted(ends, flat, side="right"))
    starts = np.concatenate([[0], ends[:-1]])
    return source, flat - starts[np.maximum(source, 0)], fill


def _of_integers(node: Node) -> Node:
    """The same node, typed for the numbers of its elements."""
    types = tuple(replace(t, dtype="int64") for t in node.types)
    return Node(node.op, node.inputs, node.attrs, types, node.name)


def _loops(out: Indices, into: Indices) -> tuple[Loop, ...] | None:
    """Two lists of places -> the loops, outermost first, that run through both; None if none do."""
    loops: list[Loop] = []
    while out.size > 1:
        step_out, step_into = int(out[1] - out[0]), int(into[1] - into[0])
        same = (np.diff(out) == step_out) & (np.diff(into) == step_into)
        breaks = np.flatnonzero(~same)
        count = int(breaks[0]) + 1 if breaks.size else out.size
        if out.size % count or count == 1 or len(loops) == _MOST_LOOPS:
            return None
        rows_out, rows_into = out.reshape(-1, count), into.reshape(-1, count)
        steps = np.arange(count)
        regular = (rows_out == rows_out[:, :1] + step_out * steps) & (
            rows_into == rows_into[:, :1] + step_into * steps
        )
        if not regular.all():
            return None
        loops.insert(0, Loop(count, step_out, step_into))
        out, into = rows_out[:, 0], rows_into[:, 0]
    return tuple(loops)


class _Movement:
    """One kernel while it is emitted."""

    def __init__(
        self,
        region: Region,
        device: Device,
        moved: Sequence[Node],
        copies: Sequence[Copy],
        fill: float,
        fills: bool,
    ) -> None:
        root = region.nodes[-1]
        shape = "x".join(map(str, root.type.dims))
        self.d = Draft(f"{region.nodes[0].op.lower()}_{shape}", region, device)
        self.b, self.root, self.moved, self.copies = self.d.b, root, moved, copies
        self.fill, self.fills = fill, fills
        self.dtype = tir.stored(root.dtype)
        self.bytes = tir.bits(self.dtype) // 8
        self.lanes = device.isa.vector_bytes // self.bytes

    def kernel(self) -> Kernel:
        """Emit all of it; one task does the parts that are too small to share."""
        d, root = self.d, self.root
        ns = 2 * root.type.bytes / BYTES_PER_NS
        widest = max((prod(x.count for x in self._outer(c)) for c in self.copies), default=1)
        count = tasks(d.device, ns, widest)
        if self.fills and count > 1:
            count = 1  # the padding must be there before its neighbours
        with self.b.parallel(count) as task:
            if self.fills:
                self._fill()
            for copy in self.copies:
                self._copy(copy, task, count)
        return d.kernel(tasks=count)

    def _fill(self) -> None:
        value = tir.const(self.fill, self.dtype) if self.root.dtype != "bfloat16" else None
        if value is None:
            bits = np.float32(self.fill).view(np.uint32) >> np.uint32(16)
            value = tir.const(int(bits), self.dtype)

        def put(at: Value, count: int) -> None:
            self.d.out.store_first(count, at, tir.broadcast(value, self.lanes))

        sweep(self.b, self.root.type.size, self.lanes, put)

    # -- one input

    def _inner(self, copy: Copy) -> tuple[Loop, Loop | None]:
        """The innermost loop; and, if the input runs along another one, that one."""
        if not copy.loops:
            return Loop(1, 1, 1), None
        inner = copy.loops[-1]
        if inner.into in (0, 1) or inner.out != 1:
            return inner, None
        along = [x for x in copy.loops[:-1] if x.into == 1]
        return inner, (along[0] if along else None)

    def _outer(self, copy: Copy) -> list[Loop]:
        inner, along = self._inner(copy)
        return [x for x in copy.loops if x is not inner and x is not along]

    def _copy(self, copy: Copy, task: Value, count: int) -> None:
        inner, along = self._inner(copy)
        outer = self._outer(copy)
        source = self.d.pointers[self.moved[copy.source]]
        total = prod(x.count for x in outer)
        if along is not None and total < count:  # share the long way instead
            self._share_along(copy, source, inner, along, task, count)
            return
        first, behind = self._part(task, count, total)
        with self.b.serial(behind - first, "each", first) as each:
            out, into = self._at(copy, outer, each)
            if along is None:
                self._line(source, out, into, inner)
            else:
                self._square(source, out, into, inner, along)

    def _part(self, task: Value, count: int, total: int) -> tuple[Value, Value]:
        if count == 1:
            return 0, total
        first = self.b.let(task * total // count, "first")
        return first, self.b.let((task + 1) * total // count, "behind")

    def _at(self, copy: Copy, outer: Sequence[Loop], each: Value) -> tuple[Value, Value]:
        out: Value = tir.const(copy.out)
        into: Value = tir.const(copy.into)
        places = indices(self.b, each, tuple(x.count for x in outer)) if outer else []
        for x, i in zip(outer, places, strict=True):
            out, into = out + i * x.out, into + i * x.into
        return self.b.let(out, "out"), self.b.let(into, "into")

    def _line(self, source: Pointer, out: Value, into: Value, inner: Loop) -> None:
        """A run of elements: by vectors where both sides are contiguous."""
        target = self.d.out
        if inner.out == 1 and inner.into in (0, 1):

            def put(at: Value, count: int) -> None:
                if inner.into:
                    value = source.load_first(count, into + at, self.lanes)
                else:
                    value = tir.broadcast(source.load(into), self.lanes)
                target.store_first(count, out + at, value)

            sweep(self.b, inner.count, self.lanes, put)
            return
        with self.b.serial(inner.count, "i") as i:
            target.store(out + i * inner.out, source.load(into + i * inner.into))

    def _share_along(
        self, copy: Copy, source: Pointer, inner: Loop, along: Loop, task: Value, count: int
    ) -> None:
        """Tasks take parts of the loop that the input runs along, in whole vectors."""
        outer = self._outer(copy)
        lanes = self._side(inner)
        vectors = along.count // lanes
        with self.b.serial(prod(x.count for x in outer), "each") as each:
            out, into = self._at(copy, outer, each)
            first, behind = self._part(task, count, vectors)
            with self.b.serial(behind - first, "v", first) as v:
                at = self.b.let(v * lanes, "along")
                self._block(source, out + at * along.out, into + at, inner, along, lanes, lanes)
            rest = along.count % lanes
            if rest:
                at = vectors * lanes
                with self.b.when(tirx.EQ(task, tir.const(0))):
                    here = (out + at * along.out, into + at)
                    self._block(source, *here, inner, along, rest, lanes)

    def _side(self, inner: Loop) -> int:
        """Lanes of the vectors that are woven or transposed."""
        if inner.count <= _INTERLEAVED:
            return self.lanes
        return min(self.lanes, 16)

    def _square(self, source: Pointer, out: Value, into: Value, inner: Loop, along: Loop) -> None:
        lanes = self._side(inner)

        def block(at: Value, count: int) -> None:
            self._block(source, out + at * along.out, into + at, inner, along, count, lanes)

        sweep(self.b, along.count, lanes, block)

    def _block(
        self,
        source: Pointer,
        out: Value,
        into: Value,
        inner: Loop,
        along: Loop,
        there: int,
        lanes: int,
    ) -> None:
        """`there` elements along the input by all of the innermost loop."""
        b, target = self.b, self.d.out
        out, into = b.let(out, "out"), b.let(into, "into")
        if inner.count <= _INTERLEAVED and along.out == inner.count and there == lanes:
            rows = [
                b.let(source.load(into + i * inner.into, lanes), "row") for i in range(inner.count)
            ]
            for part in range(inner.count):
                order = [(part * lanes + j) for j in range(lanes)]
                picked = [(o % inner.count) * lanes + o // inner.count for o in order]
                target.store(out + part * lanes, tir.shuffle2(rows, picked))
            return

        def square(first: Value, width: int) -> None:
            start = b.let(into + first * inner.into, "start")
            zero = tir.const(0, self.dtype, lanes)
            rows = [
                b.let(source.load_first(there, start + i * inner.into, lanes), "row")
                if i < width
                else zero
                for i in range(lanes)
            ]
            for i, column in enumerate(transposed(b, rows)[:there]):
                target.store_first(width, out + i * along.out + first, column)

        sweep(b, inner.count, lanes, square)


@kernel("Gather", rank=2)
def gather(region: Region, device: Device) -> Kernel | Skip:
    """Rows of a table by indices known only at run time; negative ones count from the end."""
    if reason := refuse(region):
        return reason
    root = region.root
    assert root is not None
    x, index = root.operands
    dims, axis = x.type.dims, root.int("axis") % x.type.rank
    if 0 in (*root.type.dims, *dims) or x in region.nodes or index in region.nodes:
        return Skip("nothing to gather")
    inner, size, count = prod(dims[axis + 1 :]), dims[axis], index.type.size
    last = root.type.dims[-1] if axis + 1 < len(dims) else 1
    lines = inner // last
    d = Draft(f"gather_{'x'.join(map(str, root.type.dims))}", region, device)
    b = d.b
    rows = root.type.size // last
    many = tasks(device, 2 * root.type.bytes / BYTES_PER_NS, rows)
    columns = root.type.dims[-1] if root.type.rank else 1
    with share(b, many, rows) as (first, turns):
        after = d.after
        width = device.isa.vector_bytes * 8 // tir.bits(x.dtype)
        lanes = 1 if last == 1 else min(after.lanes(), width)
        with b.serial(turns, "row", first) as row:
            place = b.let((row // lines) % count, "place")
            raw = tir.cast(d.pointers[index].load(place), "int32")
            chosen = b.let(raw + tirx.Select(raw < 0, tir.const(size), tir.const(0)), "chosen")
            safe = b.let(tirx.Max(tir.const(0), tirx.Min(chosen, tir.const(size - 1))), "safe")
            outer = row // (lines * count)
            source = b.let(((outer * size + safe) * lines + row % lines) * last, "source")
            start = b.let(row * last, "start")
            where = after.row(start // columns)

            def put(
                column: Value, there: int, source: Value = source, start: Value = start
            ) -> None:
                value = d.read(x, source + column, lanes, there)
                d.put(after, where, start + column, (start + column) % columns, there, value)

            sweep(b, last, lanes, put)
    return d.kernel(tasks=many)
