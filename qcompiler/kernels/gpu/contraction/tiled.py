"""conv and matmul -> a block of threads for each tile of the output, which goes through k in steps.

Both operands of a step lie in shared memory, [k][m] and [k][n]. While a step is multiplied the next
one is already on its way from memory to registers, and goes to the other half of shared memory: one
barrier a step. A thread multiplies some rows by some columns, kept in registers: float32 with one
rounding each, 16-bit floats widened to it, bytes four at a time where they come in words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.hardware.products import MacKey, VectorMac
from qcompiler.ir import Node, numpy_dtype
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import in_place_candidates
from qcompiler.kernels.cpu.code.epilogue import Fused, Row, load
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import move
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.contraction import split
from qcompiler.kernels.gpu.contraction.problem import LeftRow, Problem, problem_of
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

STEP = 8
"""Elements of k in a step."""
_PAD = 4
"""Elements between rows of [k][m], so that a warp's stores there meet in no bank of memory."""


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a block, and of each thread: multiples of four; parts that the sums are
    cut into.
    """

    rows: int
    columns: int
    thread_rows: int
    thread_columns: int
    parts: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)

    @property
    def registers(self) -> int:
        """An estimate of a thread's registers: sums, operands, what is on its way, addresses."""
        sums = self.thread_rows * self.thread_columns
        held = self.thread_rows + self.thread_columns
        coming = STEP * (self.rows + self.columns) // self.threads
        return sums + held + coming + 40

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return 2 * STEP * (self.rows + _PAD + self.columns) * 4


TILES = (Tile(128, 128, 8, 8), Tile(64, 64, 4, 4), Tile(128, 32, 8, 4), Tile(32, 32, 4, 4))


@candidates("conv", "matmul", kind=Gpu)
def gpu_tiled(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """Tiles of several sizes."""
    p = problem_of(region)
    if isinstance(p, Skip):
        return p
    if p.words and _dot(p, device) is None:
        return Skip("no product of four bytes")
    if p.root.op == "conv" and p.neighbours == p.width == 1:
        return Skip("a channel by itself has no matrix")
    steps = -(-p.depth // (STEP * p.per))
    cut = [
        replace(tile, parts=parts)
        for tile in TILES
        for parts in split.worthwhile(_blocks(p, tile), steps, device)
    ]
    return [
        Candidate(tile, seconds(p, tile, region, device), partial(_made, region, device, p, tile))
        for tile in (*TILES, *cut)
    ]


def _blocks(p: Problem, tile: Tile) -> int:
    return -(-p.rows // tile.rows) * -(-p.width // tile.columns) * p.images


def _dot(p: Problem, device: Gpu) -> VectorMac | None:
    """The product of four bytes by four."""
    signed = p.root.operands[0].dtype == "int8"
    key: MacKey = ("i8" if signed else "u8", "i8", "i32")
    return device.isa.vector(key)


def seconds(p: Problem, tile: Tile, region: Region, device: Gpu) -> float:
    """Whole waves of blocks, each as long as its products; or the bytes, if those take longer.

    A product of a thread takes its share of loads from shared memory, 16 bytes each, which are
    issued as the products are.
    """
    blocks = _blocks(p, tile) * tile.parts
    sm = device.multiprocessor
    at_once = max(1, sm.occupancy(tile.threads, tile.registers, tile.shared_bytes))
    busy = device.multiprocessors * at_once
    sums = tile.thread_rows * tile.thread_columns
    loads = (tile.thread_rows + tile.thread_columns) / 4
    slots = tile.threads * (sums + 4 * loads) * -(-p.depth // (p.per * tile.parts))
    a_block = slots / device.macs_per_cycle["f32"] * at_once / device.hz
    waves = -(-blocks // busy)
    last = blocks - (waves - 1) * busy
    share = min(1.0, -(-last // device.multiprocessors) / at_once)
    multiply = a_block * (waves - 1 + share) + 1e-9 * device.latency_ns * 2
    moved = sum(n.type.bytes for n in (*region.inputs, region.output))
    whole = max(multiply + 1e-9 * device.launch_ns, device.moved_seconds(moved))
    return whole + split.seconds(p, tile.parts, device)


def _made(region: Region, device: Gpu, p: Problem, tile: Tile) -> Kernel:
    return Tiled(region, device, p, tile).kernel()


Place = Callable[[Value], tuple[Value, Value]]
"""(step) -> the offset of values in memory, and whether they exist."""


@dataclass(frozen=True)
class Unit:
    """Neighbours of one operand that a thread brings from memory to shared memory in each step.

    `own` holds `count` elements on their way; element i goes to `to` + i * `apart` of a half of
    `shared`, whose halves have `size` elements. `there`: whether the thread has this unit.
    """

    operand: Node
    own: Pointer
    count: int
    place: Place
    shared: Pointer
    to: Value
    apart: int
    size: int
    fill: int
    there: Value | None


class Tiled:
    """A kernel while it is written."""

    def __init__(self, region: Region, device: Gpu, p: Problem, tile: Tile) -> None:
        self.region, self.device, self.p, self.tile = region, device, p, tile
        dtypes = f"{p.root.operands[0].dtype}_{p.rows}x{p.width}x{p.depth}"
        self.d = d = GridDraft(f"{p.root.op}_{dtypes}", region, device, tile.threads)
        self.b, self.m = d.b, d.m
        self.dot = _dot(p, device) if p.words else None
        self.left, self.right = p.root.operands[:2]
        down, right = -(-p.rows // tile.rows), -(-p.width // tile.columns)
        self.scratch = d.scratch(p.element) if tile.parts > 1 else None
        d.b.blocks(down, right, p.images * tile.parts)
        self.image = d.b.let(tirx.floordiv(d.b.z, tile.parts), "image")
        self.part = d.b.let(tirx.floormod(d.b.z, tile.parts), "part")
        self.top = d.b.let(d.b.x * tile.rows, "top")
        self.first = d.b.let(d.b.y * tile.columns, "first")
        self.a_row = tile.rows + _PAD
        self.a_size, self.b_size = STEP * self.a_row, STEP * tile.columns

    def kernel(self) -> Kernel:
        """The whole kernel."""
        self.emit()
        p, parts = self.p, self.tile.parts
        pack = {self.region.inputs.index(self.right): p.packed} if p.words else {}
        return self.d.kernel(
            pack=pack,
            in_place=in_place_candidates(self.region),
            macs=p.macs,
            scratch_bytes=split.scratch_bytes(p, parts),
            after=split.added(self.region, self.device, p, parts),
        )

    def emit(self) -> None:
        """All statements."""
        b, p, tile = self.b, self.p, self.tile
        across = tile.columns // tile.thread_columns
        self.tx = b.let(tirx.floormod(b.thread, across), "tx")
        self.ty = b.let(tirx.floordiv(b.thread, across), "ty")
        self.shared_a = b.shared(p.element, 2 * self.a_size, "left")
        self.shared_b = b.shared(p.element, 2 * self.b_size, "right")
        self.sums = b.registers(p.element, 1, tile.thread_rows * tile.thread_columns, "sum")
        self.sums.fill(0)
        units = [*self._left_units(), *self._right_units()]
        every = -(-p.depth // (STEP * p.per))
        steps = -(-every // tile.parts)
        self.begin = b.let(self.part * steps, "begin")
        self._fetch(units, self.begin)
        self._put(units, tir.const(0))
        b.barrier()
        with b.serial(steps, "step") as step:
            more = step + 1 < steps
            half = b.let(tirx.floormod(step, 2), "half")
            with b.when(more):
                self._fetch(units, b.let(self.begin + step + 1, "next"))
            self._multiply(half)
            with b.when(more):
                self._put(units, b.let(1 - half, "other"))
            b.barrier()
        self._store()

    def _units_of(
        self, operand: Node, shared: Pointer, lines: int, line: int, count: int, fill: int = 0
    ) -> Iterator[tuple[Callable[[Place, Value, int, int], Unit], Value, Value]]:
        """A step's elements as `lines` lines of `line` elements -> for each unit of a thread, what
        makes it of its place, and its line and first element.
        """
        b = self.b
        units, threads = lines * line // count, b.threads
        for i in range(-(-units // threads)):
            unit = b.let(b.thread + i * threads, "unit")
            there = None if (i + 1) * threads <= units else unit < units
            dtype = "int32" if self.p.words else operand.dtype
            own = b.local(dtype, count, "coming")

            def made(
                place: Place,
                to: Value,
                apart: int,
                size: int,
                own: Pointer = own,
                there: Value | None = there,
            ) -> Unit:
                return Unit(operand, own, count, place, shared, to, apart, size, fill, there)

            pieces = line // count
            yield (
                made,
                b.let(tirx.floordiv(unit, pieces), "line"),
                b.let(tirx.floormod(unit, pieces) * count, "from"),
            )

    def _left_units(self) -> list[Unit]:
        """Units along k of the rows of the tile; they are stored across."""
        p, b = self.p, self.b
        count = 4 if p.neighbours % (4 * p.per) == 0 else 1
        pad = p.root.int("pad_value") if p.root.op == "conv" else 0
        fill = _word(pad) if p.words else pad
        found = []
        lines = self.tile.rows
        for made, line, first in self._units_of(self.left, self.shared_a, lines, STEP, count, fill):
            row = LeftRow(b, p, self.image, b.let(self.top + line, "m"))

            def place(step: Value, row: LeftRow = row, first: Value = first) -> tuple[Value, Value]:
                return row.at(b.let((step * STEP + first) * p.per, "k"))

            to = b.let(first * self.a_row + line, "to")
            found.append(made(place, to, self.a_row, self.a_size))
        return found

    def _right_units(self) -> list[Unit]:
        """Units along n of the rows of a step; along k of the columns where it is transposed."""
        p, b, columns = self.p, self.b, self.tile.columns
        base, apart = p.right_place(b, self.image)
        found = []
        if p.transposed:
            count = 4 if p.depth % 4 == 0 else 1
            for made, line, first in self._units_of(
                self.right, self.shared_b, columns, STEP, count
            ):
                n = b.let(self.first + line, "n")

                def along(step: Value, n: Value = n, first: Value = first) -> tuple[Value, Value]:
                    k = b.let(step * STEP + first, "k")
                    at = b.let(base + n * apart + k, "at")
                    return at, tirx.And(n < p.width, k < p.depth)

                to = b.let(first * columns + line, "to")
                found.append(made(along, to, columns, self.b_size))
            return found
        whole = (apart // p.per) % 4 == 0 and p.width % 4 == 0
        for made, line, first in self._units_of(
            self.right, self.shared_b, STEP, columns, 4 if whole else 1
        ):
            n = b.let(self.first + first, "n")

            def across(step: Value, n: Value = n, line: Value = line) -> tuple[Value, Value]:
                k = b.let(step * STEP + line, "k")
                at = b.let(base + k * apart + n * p.per, "at")
                return at, tirx.And(n < p.width, k * p.per < p.depth)

            found.append(made(across, b.let(line * columns + first, "to"), 1, self.b_size))
        return found

    def _fetch(self, units: list[Unit], step: Value) -> None:
        """Start to load a step's units; what does not exist is `fill`."""
        for unit in units:
            with nullcontext() if unit.there is None else self.b.when(unit.there):
                at, exists = unit.place(step)
                source = self.d.pointers[unit.operand]
                values = unit.count * self.p.per
                with self.b.when(exists):
                    size = values * numpy_dtype(source.dtype).itemsize
                    self.b.emit(move(size, unit.own, source + at))
                with self.b.otherwise():
                    for i in range(unit.count):
                        unit.own.store(i, tir.const(unit.fill, unit.own.dtype))

    def _put(self, units: list[Unit], half: Value) -> None:
        """Store the units that have come to a half of shared memory."""
        for unit in units:
            with nullcontext() if unit.there is None else self.b.when(unit.there):
                to = self.b.let(half * unit.size + unit.to, "to")
                if unit.apart == 1 and unit.count == 4 and unit.own.dtype == self.p.element:
                    self.b.emit(move(16, unit.shared + to, unit.own))
                    continue
                for i in range(unit.count):
                    dtype = self.p.element if self.p.words else unit.operand.dtype
                    value = load(self.m, unit.own, dtype, i, 1, 1)
                    wide = self.m.cast(value, self.p.element)
                    unit.shared.store(to + i * unit.apart, wide.expr)

    def _multiply(self, half: Value) -> None:
        """Multiply the step in a half of shared memory."""
        b, tile = self.b, self.tile
        a = self.shared_a + b.let(half * self.a_size, "a")
        c = self.shared_b + b.let(half * self.b_size, "c")
        with b.unrolled(STEP, "k") as k:
            left = self._fragment(a, k * self.a_row, self.ty, tile.rows, tile.thread_rows)
            right = self._fragment(c, k * tile.columns, self.tx, tile.columns, tile.thread_columns)
            for i in range(tile.thread_rows):
                for j in range(tile.thread_columns):
                    at = i * tile.thread_columns + j
                    operands = (left.load(i), right.load(j), self.sums[at])
                    self.sums[at] = self._product(*operands)

    def _product(self, left: Value, right: Value, sums: Value) -> Value:
        if self.dot is not None:
            return self.dot.emit(sums, left, right)
        if self.p.bytes:
            return left * right + sums
        return tir.fma(left, right, sums)

    def _fragment(
        self, source: Pointer, line: Value, thread: Value, whole: int, mine: int
    ) -> Pointer:
        """A thread's elements of a line of a tile: fours, as far apart as all threads' fours."""
        own = self.b.local(source.dtype, mine, "fragment")
        for four in range(0, mine, 4):
            at = line + thread * 4 + four * (whole // mine)
            self.b.emit(move(16, own + four, source + at))
        return own

    def _store(self) -> None:
        """Store the thread's sums, through the epilogue."""
        b, d, p, tile = self.b, self.d, self.p, self.tile
        f = d.writing()
        whole = f.columns % 4 == p.width % 4 == 0
        for i in range(tile.thread_rows):
            four, rest = divmod(i, 4)
            m = b.let(self.top + self.ty * 4 + four * 4 * (tile.rows // tile.thread_rows) + rest)
            with b.when(m < p.rows):
                line = m if p.root.op == "conv" else b.let(self.image * p.rows + m, "line")
                row = f.row(line)
                for j in range(0, tile.thread_columns, 4):
                    n = b.let(
                        self.first + self.tx * 4 + j * (tile.columns // tile.thread_columns), "n"
                    )
                    column = b.let(self.image * p.width + n) if p.groups > 1 else n
                    first = i * tile.thread_columns + j
                    if self.scratch is not None:
                        self._put_part(self.scratch, line * f.columns + column, n, first, whole)
                        continue
                    sums = [self._sum(first + e) for e in range(4)]
                    if whole:
                        with b.when(n < p.width):
                            self._four(f, row, line, column, sums)
                        continue
                    for e in range(4):
                        with b.when(n + e < p.width):
                            self._one(f, row, line, b.let(column + e, "column"), sums[e])

    def _put_part(self, scratch: Pointer, at: Value, n: Value, first: int, whole: bool) -> None:
        """Store four sums of a part, those that the product has."""
        b, p, width = self.b, self.p, 4 if whole else 1
        base = b.let(self.part * p.root.type.size + at, "at")
        for e in range(0, 4, width):
            with b.when(n + e < p.width):
                sums = [Vec(self.m, self.sums[first + e + x], p.element, 1) for x in range(width)]
                split.put(self.d, scratch, base + e, sums)

    def _sum(self, at: int) -> Vec:
        value = Vec(self.m, self.sums[at], self.p.element, 1)
        return self.m.cast(value, self.p.root.dtype)

    def _four(self, f: Fused, row: Row, line: Value, column: Value, sums: list[Vec]) -> None:
        values = self.d.along(f, row, column, 4, lambda e: {self.p.root: sums[e]})
        self.d.store(self.b.let(line * f.columns + column, "at"), values)

    def _one(self, f: Fused, row: Row, line: Value, column: Value, value: Vec) -> None:
        made = f.at(row, column, 1, 1, {self.p.root: value})
        self.d.store(self.b.let(line * f.columns + column, "at"), [made])


def _word(value: int) -> int:
    """A word, as int32, whose four bytes are a value."""
    return int.from_bytes(bytes([value & 0xFF] * 4), "little", signed=True)
