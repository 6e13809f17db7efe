"""Regions that move values -> loops over the boxes of views.py, with prologue and epilogue.

rows         the operand is contiguous along the last loop: vectors
tiles        it is contiguous along another loop: square tiles, transposed in registers
interleaved  tiles of a last loop of 2 to 4 iterations, such as colours, stored interleaved
separated    the reverse: a few neighbours are loaded together
short        rows of less than a vector, adjacent in the output: several are stored together
otherwise    rows, gathered an element at a time

The prologue is computed where the root's operand is loaded; the epilogue there too if that leaves
fewer bytes to move, else where the output is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Cpu
from qcompiler.ir import Node, numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import Draft, refuse
from qcompiler.kernels.cpu.code.epilogue import Row, Walk, load, read_by, steps_of, store
from qcompiler.kernels.cpu.code.images import is_open
from qcompiler.kernels.cpu.code.loops import indices, part, sweep, tasks
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.elements.elementwise import nanoseconds
from qcompiler.kernels.cpu.moves.images import of_images
from qcompiler.kernels.cpu.moves.views import Box, boxes, merge, moved_by
from qcompiler.kernels.registry import Kernel, Region, kernel

_FEW = 4
"""The most iterations of a loop that is interleaved in registers."""

_FAR = 4
"""The most vectors, give or take one, that a vector of short rows may come from."""

_ROWS_A_TASK = 4


@kernel(
    *("Transpose", "Slice", "item of Split", "Expand", "Tile", "Concat", "Pad"),
    *("DepthToSpace", "SpaceToDepth"),
)
def copy(region: Region, device: Cpu) -> Kernel | Skip:
    """Operators that step evenly through their operands; see views.py."""
    root = region.root
    assert root is not None
    if reason := refuse(region):
        return reason
    if is_open(region):
        return of_images(region, device)
    found = boxes(region)
    if isinstance(found, Skip):
        return found
    d = Draft(root.op.lower(), region, device)
    moves = moves_of(d, found)
    parts = max((m.parts for m in moves), default=1)
    slowness = max((m.slowness for m in moves), default=1)
    count = tasks(device, nanoseconds(region, device.core) * slowness, parts)
    with d.b.parallel(count) as task:
        for move in moves:
            move.emit(task, count)
    return d.kernel(tasks=count)


def moves_of(d: Draft, found: Sequence[Box]) -> list[Move]:
    """Boxes -> what moves each, before any loop."""
    return [Move(d, box, _joined(d, box)) for box in found]


@dataclass(frozen=True)
class _Joined:
    """A box with the fewest loops that describe all reads and writes in it."""

    dims: tuple[int, ...]
    prologue: Walk
    epilogue: Walk
    out: tuple[int, ...]
    out_base: int


def _joined(d: Draft, box: Box) -> _Joined:
    """Merge loops that all operands and the output step through as if they were one."""
    root, output = d.root, d.region.output.type.dims
    moves: dict[tuple[str, Node], list[int]] = {}
    bases: dict[tuple[str, Node], int] = {}
    if box.operand is not None:
        nodes = d.prologue_nodes(box.operand)
        for n in read_by(nodes, box.operand):
            axes = steps_of(n.type.dims, box.operand.type.dims)
            moves["prologue", n] = [moved_by(s.source, axes) for s in box.loops]
            bases["prologue", n] = sum(i * s for i, s in zip(box.source, axes, strict=True))
    for n in read_by(d.epilogue_nodes(), d.region.output, (root,)):
        axes = steps_of(n.type.dims, output)
        moves["epilogue", n] = [moved_by(s.output, axes) for s in box.loops]
        bases["epilogue", n] = sum(i * s for i, s in zip(box.output, axes, strict=True))
    axes = steps_of(output, output)
    moves["out", root] = [moved_by(s.output, axes) for s in box.loops]
    kept = merge([s.size for s in box.loops], list(moves.values()))
    dims = tuple(size for _, size in kept) or (1,)

    def walk(side: str) -> Walk:
        chosen = {n: m for (which, n), m in moves.items() if which == side}
        steps = {n: tuple(m[i] for i, _ in kept) or (0,) for n, m in chosen.items()}
        return Walk(dims, steps, {n: bases[side, n] for n in chosen})

    out = tuple(moves["out", root][i] for i, _ in kept) or (1,)
    base = sum(i * s for i, s in zip(box.output, axes, strict=True))
    return _Joined(dims, walk("prologue"), walk("epilogue"), out, base)


class Move:
    """One box: its loops, chosen by the operand's layout."""

    def __init__(self, d: Draft, box: Box, joined: _Joined) -> None:
        self.d, self.b, self.m, self.box, self.joined = d, d.b, d.m, box, joined
        self.dims = joined.dims
        self.prologue = (
            None if box.operand is None else d.reading(box.operand, walk=joined.prologue)
        )
        self.epilogue = d.writing(walk=joined.epilogue)
        self.fill = self._fill() if box.operand is None else None
        self.along = self._contiguous()
        self.kind = self._kind()

    def _fill(self) -> Vec:
        """Pad's value, loaded once."""
        given = self.d.root.inputs[2] if len(self.d.root.inputs) > 2 else None
        if given is None:
            return self.m.splat(0, tir.stored(self.d.root.dtype))
        pointer = self.d.pointers[given]
        return load(self.m, pointer, _plain(given.dtype), 0, 1, 1)

    def _contiguous(self) -> int:
        """The loop along which the operand is contiguous, preferably the last; -1: none."""
        last = len(self.dims) - 1
        steps = list(self.joined.prologue.steps.values())
        if all(s[last] in (0, 1) for s in steps):
            return last
        found = [a for a in range(last) if {s[a] for s in steps} in ({1}, {0, 1})]
        return found[-1] if found else -1

    def _kind(self) -> str:
        last = len(self.dims) - 1
        if self._short():
            return "short"
        if self.along in (-1, last) or self.joined.out[-1] != 1:
            return "rows"
        few, size = self.dims[-1], self.dims[self.along]
        if few <= _FEW and self.joined.out[self.along] == few:
            return "interleaved"
        own = list(self.joined.prologue.steps.values())
        plain = self.prologue is not None and not self.prologue.nodes
        if size <= _FEW and plain and own[0][-1] == size:
            return "separated"
        return "tiles"

    def _short(self) -> bool:
        """Are the rows shorter than a vector, near each other in one operand, and adjacent in the
        output? The epilogue must be the same for all of them.
        """
        few = self.dims[-1]
        if self.along != len(self.dims) - 1 or self.joined.out[-2:] != (few, 1):
            return False
        if self.prologue is None or self.prologue.nodes or 2 * few > self.lanes:
            return False
        if _bytes(self.d.root.dtype) < 4:  # not every machine shuffles bytes across a vector
            return False
        steps = next(iter(self.joined.prologue.steps.values()))[-2:]
        alike = not any(any(s) for s in self.joined.epilogue.steps.values())
        return alike and steps[1] == 1 and few < steps[0] <= _FAR * few

    @property
    def slowness(self) -> float:
        """Time relative to a copy of long rows."""
        short = 8 / min(8, max(1, self.dims[-1]))
        return {"rows": short if self.along >= 0 else 8, "tiles": 3}.get(self.kind, 2)

    @property
    def parts(self) -> int:
        """Number of parts that the work can be divided into."""
        whole = prod(self.dims)
        return max(1, whole // 64)

    def emit(self, task: Value, count: int) -> None:
        """Emit the task's part of this box."""
        if self.kind == "rows":
            self._rows(task, count)
        else:
            self._tiles(task, count)

    # -- rows

    def _rows(self, task: Value, count: int) -> None:
        lanes = self.lanes if self.joined.out[-1] == 1 else 1
        outer, columns = self.dims[:-1], self.dims[-1]
        rows, vectors = prod(outer), columns // lanes
        if rows >= _ROWS_A_TASK * count or vectors < count:
            first, iterations = part(self.b, task, count, rows)
            with self.b.serial(iterations, "row", first) as i:
                row = self.row(indices(self.b, i, outer))
                sweep(self.b, columns, lanes, lambda n, c: row(n, lanes, c))
            return
        first, iterations = part(self.b, task, count, vectors)
        with self.b.serial(rows, "row") as i:
            row = self.row(indices(self.b, i, outer))
            with self.b.serial(iterations, "v", first) as v:
                row(self.b.let(v * lanes), lanes, lanes)
            if columns % lanes:
                with self.b.when(task == count - 1):
                    row(tir.const(vectors * lanes), lanes, columns % lanes)

    @property
    def lanes(self) -> int:
        """Lanes of vectors of the widest dtype involved."""
        nodes = {self.d.root, self.d.region.output, *self.epilogue.nodes, *self.epilogue.operands}
        nodes |= {*self.prologue.nodes, *self.prologue.operands} if self.prologue else set()
        sizes = [4 if n.dtype in ("float16", "bfloat16") else _bytes(n.dtype) for n in nodes]
        own = _bytes(self.d.root.dtype)
        moved = not self.epilogue.nodes and not (self.prologue and self.prologue.nodes)
        return self.d.isa.lanes(own if moved else max(sizes))

    def row(self, place: Sequence[Value]) -> Callable[[Value, int, int], None]:
        """A place in the outer loops -> a function that writes vectors of that row."""
        where = [*place, 0]
        source = self.prologue.place(where, -1) if self.prologue else None
        target = self.epilogue.place(where, -1)
        start = self.b.let(self._offset(where))

        def write(column: Value, lanes: int, count: int) -> None:
            value = self._read(source, column, lanes, count)
            self._write(target, start + column * self.joined.out[-1], column, value, count)

        return write

    def _offset(self, place: Sequence[Value]) -> Value:
        moves = [i * s for i, s in zip(place, self.joined.out, strict=True) if s]
        return sum(moves, start=self.joined.out_base)

    def _read(self, row: Row | None, column: Value, lanes: int, count: int) -> Vec:
        """The root's values; booleans as bytes."""
        if self.prologue is None or row is None:
            assert self.fill is not None
            return self.m.widen(self.fill, lanes)
        value = self.prologue.at(row, column, lanes, count)
        return self.m.cast(value, "uint8") if value.dtype == "bool" else value

    def _write(self, row: Row, offset: Value, column: Value, value: Vec, count: int) -> None:
        store(self.m, self.d.out, offset, self._finish(row, column, value, count), count)

    def _finish(self, row: Row, column: Value, value: Vec, count: int) -> Vec:
        """The root's values -> the region's."""
        if not self.epilogue.nodes:
            return value
        value = value != 0 if self.d.root.dtype == "bool" else value
        made = self.epilogue.at(row, column, value.lanes, count, {self.d.root: value})
        return self.m.cast(made, "uint8") if made.dtype == "bool" else made

    # -- tiles

    def _tiles(self, task: Value, count: int) -> None:
        last = len(self.dims) - 1
        axis = {"separated": last, "short": last - 1}.get(self.kind, self.along)
        emit = {
            "tiles": self._square,
            "interleaved": self._few_last,
            "separated": self._few_first,
            "short": self._short_rows,
        }
        lanes = self.lanes if self.kind == "short" else self.d.isa.lanes(_bytes(self.d.root.dtype))
        skipped = {axis, self.along, last}
        outer = [a for a in range(len(self.dims)) if a not in skipped]
        sizes = [self.dims[a] for a in outer]
        blocks, rest = divmod(self.dims[axis], lanes)
        for each, start, width in ((blocks, 0, lanes), (int(rest > 0), blocks * lanes, rest)):
            if not each:
                continue
            first, iterations = part(self.b, task, count, prod(sizes) * each)
            with self.b.serial(iterations, "tile", first) as i:
                *place, block = indices(self.b, i, (*sizes, each))
                where = dict(zip(outer, place, strict=True))
                emit[self.kind](where, self.b.let(block * lanes + start), width, lanes)

    def _at(self, where: Mapping[int, Value]) -> list[Value]:
        return [where.get(axis, 0) for axis in range(len(self.dims))]

    @property
    def _early(self) -> bool:
        """Is the epilogue computed where the operand is loaded?"""
        if self.kind == "interleaved" or not self.epilogue.nodes:
            return bool(self.epilogue.nodes)
        along = {s[self.along] for s in self.joined.epilogue.steps.values()}
        return along <= {0, 1} and _bytes(self.d.region.output.dtype) <= _bytes(self.d.root.dtype)

    def _loaded(self, where: Mapping[int, Value], lanes: int, column: Value, count: int) -> Vec:
        """Values along the operand's contiguous loop."""
        assert self.prologue is not None
        place = self._at(where)
        value = self._read(self.prologue.place(place, self.along), column, lanes, count)
        if self._early:
            value = self._finish(self.epilogue.place(place, self.along), column, value, count)
        return value

    def _stored(
        self, where: Mapping[int, Value], offset: Value, column: Value, value: Vec, count: int
    ) -> None:
        """Values along the last loop."""
        if self.epilogue.nodes and not self._early:
            value = self._finish(self.epilogue.place(self._at(where), -1), column, value, count)
        store(self.m, self.d.out, offset, value, count)

    def _square(self, where: dict[int, Value], start: Value, width: int, lanes: int) -> None:
        """Tiles of `lanes` along the operand's loop, adjacent along the last."""
        last = len(self.dims) - 1
        side = lanes if _bytes(self.d.root.dtype) >= 4 else 16 // _bytes(self.d.root.dtype)

        def tile(column: Value, height: int) -> None:
            rows = [
                self._loaded({**where, last: column + r}, lanes, start, width)
                for r in range(height)
            ]
            zero = self.m.splat(0, rows[0].dtype, lanes)
            transposed = self._transposed(rows + [zero] * (side - height), side)
            for t, group in product(range(side), range(lanes // side)):
                if group * side + t >= width:
                    continue
                piece = range(group * side, (group + 1) * side)
                value = self.m.vec(tir.shuffle(transposed[t].expr, piece), transposed[t].dtype)
                there = {**where, self.along: start + (group * side + t)}
                offset = self._offset(self._at(there)) + column
                self._stored(there, offset, column, value, height)

        sweep(self.b, self.dims[-1], side, tile)

    def _transposed(self, rows: list[Vec], side: int) -> list[Vec]:
        """`side` vectors of adjacent squares -> the squares transposed: vectors half the list apart
        are shuffled pairwise, log2(side) times."""
        lanes = rows[0].lanes
        half = side // 2
        both = [
            [g + lane + which * lanes for lane in range(half) for which in (0, 1)]
            for g in range(0, lanes, side)
        ]
        low = [i for group in both for i in group]
        high = [i + half for i in low]
        for _ in range(side.bit_length() - 1):
            pairs = [(rows[i], rows[i + half]) for i in range(half)]
            rows = [
                self.m.vec(tir.shuffle2([a.expr, b.expr], order), a.dtype)
                for a, b in pairs
                for order in (low, high)
            ]
        return rows

    def _few_last(self, where: dict[int, Value], start: Value, width: int, lanes: int) -> None:
        """A few vectors -> stored interleaved."""
        few, last = self.dims[-1], len(self.dims) - 1
        rows = [self._loaded({**where, last: r}, lanes, start, width) for r in range(few)]
        offset = self.b.let(self._offset(self._at({**where, self.along: start})))
        for chunk in range(few):
            flat = range(chunk * lanes, (chunk + 1) * lanes)
            order = [i % few * lanes + i // few for i in flat]
            count = min(lanes, width * few - chunk * lanes)
            if count > 0:
                mixed = tir.shuffle2([r.expr for r in rows], order)
                value = self.m.vec(mixed, rows[0].dtype)
                store(self.m, self.d.out, offset + chunk * lanes, value, count)

    def _few_first(self, where: dict[int, Value], start: Value, width: int, lanes: int) -> None:
        """Interleaved neighbours -> a vector of each."""
        assert self.prologue is not None
        few = self.dims[self.along]
        operand = self.prologue.operands[0]
        offset = self.prologue.place(self._at(where), self.along).offsets[operand]
        chunks = []
        for chunk in range(few):
            count = max(0, min(lanes, width * few - chunk * lanes))
            at = offset + start * few + chunk * lanes
            loaded = load(self.m, self.d.pointers[operand], _plain(operand.dtype), at, lanes, count)
            chunks.append(loaded if count else self.m.splat(0, loaded.dtype, lanes))
        for r in range(few):
            order = [lane * few + r for lane in range(lanes)]
            value = self.m.vec(tir.shuffle2([c.expr for c in chunks], order), chunks[0].dtype)
            there = {**where, self.along: r}
            self._stored(there, self._offset(self._at(there)) + start, start, value, width)

    def _short_rows(self, where: dict[int, Value], start: Value, width: int, lanes: int) -> None:
        """Vectors of the output, each shuffled from the vectors that contain its rows."""
        assert self.prologue is not None
        few, axis = self.dims[-1], len(self.dims) - 2
        (operand,) = self.prologue.operands
        apart = self.joined.prologue.steps[operand][axis]
        place = self._at({**where, axis: start})
        source = self.b.let(self.prologue.place(place, -1).offsets[operand], "source")
        target = self.b.let(self._offset(place), "target")
        row = self.epilogue.place(place, -1)
        for first in range(0, width * few, lanes):
            flat = range(first, min(first + lanes, width * few))
            places = [i // few * apart + i % few for i in flat]
            begin, length = places[0], places[-1] - places[0] + 1
            loaded = []
            for at in range(0, length, lanes):
                count, pointer = min(lanes, length - at), self.d.pointers[operand]
                part_ = load(
                    self.m, pointer, _plain(operand.dtype), source + (begin + at), lanes, count
                )
                loaded.append(part_)
            order = [p - begin for p in places] + [0] * (lanes - len(flat))
            value = self.m.vec(tir.shuffle2([x.expr for x in loaded], order), loaded[0].dtype)
            self._write(row, target + first, tir.const(0), value, len(flat))


def _bytes(dtype: str) -> int:
    return numpy_dtype(dtype).itemsize


def _plain(dtype: str) -> str:
    """Booleans as bytes."""
    return "uint8" if dtype == "bool" else dtype
