"""Attention of any dtype and size, without tensor cores -> a block of threads for each head's
queries, 16 or more at a time.

The block goes through the keys in steps of 64: their scores, the largest so far, weights relative
to that, and their sum with the values; what was summed is scaled whenever a larger score is met
(Dao et al., "FlashAttention", 2022). For bytes, whose weights are rounded relative to the largest
score of all, it goes through the keys twice.

Threads are a square of 16 x 16: thread (y, x) has queries y, y + 16, ..., keys x, x + 16, ... and
columns x, x + 16, ... of the output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial, reduce

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.kernels.cpu.attention.operands import Heads
from qcompiler.kernels.cpu.attention.vector import refuse_attention
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import too_large
from qcompiler.kernels.cpu.code.tir import Pointer, Registers, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.attention.scores import Query, Scores
from qcompiler.kernels.gpu.code.device import across
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_SIDE = 16
_KEYS = 64
_EACH = _KEYS // _SIDE
_CHUNK, _SLICE = 32, 16
"""Values of a row of queries and keys, and rows of values, that are in shared memory at a time."""
_WIDEST = 256
_LONGEST_ROW = 1024
"""Products of so many bytes are exact in float32."""
_MOST_SHARED = 48 << 10


@dataclass(frozen=True)
class Blocking:
    """Queries of a thread, and the output's columns of a head."""

    queries: int
    columns: int

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return self.queries * _SIDE

    @property
    def registers(self) -> int:
        """An estimate of a thread's registers."""
        return self.queries * (-(-self.columns // _SIDE) + _EACH + 3) + 48

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        chunks = _CHUNK * (self.rows + 1 + _KEYS + 1)
        return 4 * (chunks + _KEYS * (self.rows + 1) + _SLICE * self.columns)


@candidates("Attention", "attention", kind=Gpu)
def gpu_attention(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """Any heads, an added or boolean mask, causal or not."""
    if reason := refuse_attention(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    q, _, v = Heads.all(root)
    if v.size > _WIDEST:
        return Skip("values of more than 256 columns")
    if q.node.dtype == "int8" and q.size > _LONGEST_ROW:
        return Skip("sums of bytes that float32 does not hold")
    ways = [Blocking(queries, v.size) for queries in (4, 2, 1)]
    return [
        Candidate(how, _seconds(region, how, device), partial(_made, region, device, how))
        for how in ways
        if how.shared_bytes <= _MOST_SHARED
    ]


def _seconds(region: Region, how: Blocking, device: Gpu) -> float:
    """Whole waves of blocks; a multiply-add takes two loads from shared memory for each row and
    column of a thread.
    """
    root = region.root
    assert root is not None
    q, k, v = Heads.all(root)
    blocks = q.batch * q.heads * -(-q.length // how.rows)
    threads = _SIDE * _SIDE
    at_once = max(1, device.multiprocessor.occupancy(threads, how.registers, how.shared_bytes))
    waves = -(-blocks // (at_once * device.multiprocessors))
    steps = -(-k.length // _KEYS) * _KEYS
    macs = how.rows * steps * (q.size + v.size)
    slots = 1 + (how.queries + _EACH) / (how.queries * _EACH) * 4
    seconds = waves * at_once * macs * slots / device.macs_per_cycle["f32"] / device.hz
    seconds += 2e-9 * device.latency_ns
    moved = sum(n.type.bytes for n in (*region.inputs, region.output))
    return max(seconds + 1e-9 * device.launch_ns, device.moved_seconds(moved))


def _made(region: Region, device: Gpu, how: Blocking) -> Kernel:
    return _General(region, device, how).kernel()


class _General:
    """A kernel while it is written."""

    def __init__(self, region: Region, device: Gpu, how: Blocking) -> None:
        root = region.root
        assert root is not None
        q, k, v = self.heads = Heads.all(root)
        self.bytes = q.node.dtype == "int8"
        self.kind = "int32" if self.bytes else "float32"
        word = f"attention{q.heads}x{q.length}x{k.length}x{q.size}_{q.node.dtype}"
        self.d = d = GridDraft(word, region, device, _SIDE * _SIDE)
        self.b, self.m, self.how = d.b, d.m, how
        d.b.blocks(-(-q.length // how.rows), q.heads, q.batch)
        self.columns = -(-v.size // _SIDE)
        self.line = how.rows + 1  # so that neighbours of a column lie in other banks

    def kernel(self) -> Kernel:
        """The whole kernel."""
        b, how = self.b, self.how
        q, k, v = self.heads
        self.scores = Scores(self.d, b.let(b.z), b.let(b.y))
        self.x = b.let(tirx.floormod(b.thread, _SIDE), "x")
        self.y = b.let(tirx.floordiv(b.thread, _SIDE), "y")
        self.top_row = b.let(b.x * how.rows, "top_row")
        self.starts = self.scores.starts()
        self.queries = b.shared("float32", _CHUNK * self.line, "queries")
        self.keys = b.shared("float32", _CHUNK * (_KEYS + 1), "keys")
        self.weights = b.shared(self.kind, _KEYS * self.line, "weights")
        self.values = b.shared(self.kind, _SLICE * v.size, "values")
        self.made = b.registers(self.kind, 1, how.queries * self.columns, "out")
        self.totals = b.registers(self.kind, 1, how.queries, "total")
        self.tops = b.registers("float32", 1, how.queries, "top")
        self.tops.fill(-3.0e38)
        for registers in (self.made, self.totals):
            registers.fill(0)
        self.mine = [self._query(i) for i in range(how.queries)]
        steps = self._steps(k.length)
        if self.bytes:
            with b.serial(steps, "step") as step:
                first = b.let(step * _KEYS, "first")
                self._raise_tops(self._scored(first))
        with b.serial(steps, "step") as step:
            first = b.let(step * _KEYS, "first")
            self._weigh(first, self._scored(first))
            self._add(first)
        self._store()
        macs = q.batch * q.heads * q.length * k.length * (q.size + v.size)
        return self.d.kernel(macs=macs)

    def _steps(self, keys: int) -> Value:
        """Steps through the keys; no further than the block's last query sees."""
        every = -(-keys // _KEYS)
        if not self.scores.causal:
            return every
        seen = tirx.floordiv(self.top_row + (self.how.rows - 1), _KEYS) + 1
        return self.b.let(tirx.Min(tir.const(every), seen), "steps")

    def _query(self, i: int) -> Query:
        last = tir.const(self.heads[0].length - 1)
        number = self.b.let(self.top_row + self.y + i * _SIDE, "number")
        return self.scores.query(self.b.let(tirx.Min(number, last), "query"))

    def _each(self, count: int, width: int) -> Iterable[tuple[Value, Value, Value | None]]:
        """(row, column, whether the thread has it) of each of a thread's elements of a table."""
        b = self.b
        for i in range(-(-count * width // b.threads)):
            at = b.let(b.thread + i * b.threads, "at")
            there = None if (i + 1) * b.threads <= count * width else at < count * width
            column = b.let(tirx.floormod(at, width), "column")
            yield b.let(tirx.floordiv(at, width), "row"), column, there

    def _bring(
        self,
        of: Heads,
        start: Value,
        first: Value,
        rows: int,
        column: Value,
        to: Pointer,
        line: int,
    ) -> None:
        """A chunk of rows of queries or keys -> [column][row]; zero behind the last ones."""
        b, m, step = self.b, self.m, of.steps[2]
        for row, within, there in self._each(rows, _CHUNK):
            inside = tirx.And(first + row < of.length, column + within < of.size)
            place = b.let(within * line + row, "place")
            mine = inside if there is None else tirx.And(inside, there)
            with b.when(mine):
                at = b.let(start + (first + row) * step + column + within, "at")
                to.store(place, m.cast(self.d.read(of.node, at), "float32").expr)
            with b.otherwise():
                if there is None:
                    to.store(place, tir.const(0.0, "float32"))
                else:
                    with b.when(there):
                        to.store(place, tir.const(0.0, "float32"))

    def _scored(self, first: Value) -> list[list[Vec]]:
        """Scores of the thread's queries and keys of a step."""
        b, how, (q, k, _) = self.b, self.how, self.heads
        sums = b.registers("float32", 1, how.queries * _EACH, "sum")
        sums.fill(0)
        with b.serial(-(-q.size // _CHUNK), "chunk") as chunk:
            column = b.let(chunk * _CHUNK, "column")
            b.barrier()
            self._bring(q, self.starts[0], self.top_row, how.rows, column, self.queries, self.line)
            self._bring(k, self.starts[1], first, _KEYS, column, self.keys, _KEYS + 1)
            b.barrier()
            with b.unrolled(_CHUNK, "c") as c:
                left = self._line(self.queries, c * self.line + self.y, how.queries)
                right = self._line(self.keys, c * (_KEYS + 1) + self.x, _EACH)
                self._multiply(sums, left, right)
        return [
            [
                self.scores.score(self._held(sums, i * _EACH + j), query, self._key(first, j))
                for j in range(_EACH)
            ]
            for i, query in enumerate(self.mine)
        ]

    def _held(self, registers: Registers, i: int) -> Vec:
        return Vec(self.m, registers[i], registers.dtype, 1)

    def _key(self, first: Value, j: int) -> Value:
        return self.b.let(first + self.x + j * _SIDE, "key")

    def _line(self, source: Pointer, at: Value, count: int) -> list[Value]:
        """Every sixteenth element."""
        return [self.b.hold(source.load(at + i * _SIDE), "own") for i in range(count)]

    def _multiply(self, sums: Registers, left: list[Value], right: list[Value]) -> None:
        for i, one in enumerate(left):
            for j, other in enumerate(right):
                at = i * len(right) + j
                if sums.dtype == "float32":
                    sums[at] = tir.fma(one, other, sums[at])
                else:
                    sums[at] = one * other + sums[at]

    def _raise_tops(self, scores: list[list[Vec]]) -> None:
        """The largest scores so far, of all threads of a query."""
        for i, row in enumerate(scores):
            found = self._joined(reduce(self.m.larger, row), self.m.larger)
            self.tops[i] = self.m.larger(self._held(self.tops, i), found).expr

    def _joined(self, value: Vec, join: object) -> Vec:
        """A number of each thread -> that of all threads of a query."""
        assert callable(join)
        distance = _SIDE // 2
        while distance:
            held = self.b.hold(value.expr)
            other = self.m.vec(across("shuffle_xor", held, tir.const(distance)))
            value, distance = join(self.m.vec(held), other), distance // 2
        return self.m.vec(self.b.hold(value.expr))

    def _weigh(self, first: Value, scores: list[list[Vec]]) -> None:
        """Scores of a step -> weights in shared memory, and the sums and outputs so far scaled."""
        b, m = self.b, self.m
        scores = [[m.vec(b.hold(s.expr)) for s in row] for row in scores]
        old = [m.vec(b.hold(self.tops[i])) for i in range(self.how.queries)]
        if not self.bytes:
            self._raise_tops(scores)
        for i, row in enumerate(scores):
            top = self._held(self.tops, i)
            if not self.bytes:
                self._scale(i, m.vec(b.hold(self.scores.power(old[i] - top).expr)))
            for j, score in enumerate(row):
                weight = self.scores.weight(score, top, self._key(first, j))
                if self.bytes:
                    weight = m.converted(m.round(weight * 255.0), "int32")
                weight = m.vec(b.hold(weight.expr))
                self.totals[i] = (self._held(self.totals, i) + weight).expr
                place = (self.x + j * _SIDE) * self.line + self.y + i * _SIDE
                self.weights.store(place, weight.expr)

    def _scale(self, i: int, factor: Vec) -> None:
        self.totals[i] = (self._held(self.totals, i) * factor).expr
        for c in range(self.columns):
            at = i * self.columns + c
            self.made[at] = (self._held(self.made, at) * factor).expr

    def _add(self, first: Value) -> None:
        """Weights of a step by its values."""
        b, (_, _, v) = self.b, self.heads
        with b.serial(_KEYS // _SLICE, "slice") as part:
            start = b.let(part * _SLICE, "start")
            b.barrier()
            for row, column, there in self._each(_SLICE, v.size):
                key = b.let(first + start + row, "key")
                inside = key < v.length if there is None else tirx.And(key < v.length, there)
                place = b.let(row * v.size + column, "place")
                with b.when(inside):
                    at = b.let(self.starts[2] + key * v.steps[2] + column, "at")
                    wide = self.m.cast(self.d.read(v.node, at), self.kind)
                    self.values.store(place, wide.expr)
                with b.otherwise(), b.when(row < _SLICE):
                    self.values.store(place, tir.const(0, self.kind))
            b.barrier()
            with b.unrolled(_SLICE, "k") as k:
                left = self._line(self.weights, (start + k) * self.line + self.y, self.how.queries)
                self._multiply(self.made, left, self._row(k))

    def _row(self, k: Value) -> list[Value]:
        """The thread's columns of a row of values; of those behind the last one, another."""
        size = self.heads[2].size
        found = []
        for c in range(self.columns):
            column = self.x + c * _SIDE
            if (c + 1) * _SIDE > size:
                column = tirx.Min(column, tir.const(size - 1))
            found.append(self.b.hold(self.values.load(k * size + column), "value"))
        return found

    def _store(self) -> None:
        """Store the outputs, through the epilogue."""
        b, m, d, size = self.b, self.m, self.d, self.heads[2].size
        f, width = d.writing(), d.root.type.dims[-1]
        for i in range(self.how.queries):
            total = self._joined(self._held(self.totals, i), lambda a, c: a + c)
            factor = self.scores.inverse(m.cast(total, "float32"), self._held(self.tops, i))
            factor = m.vec(b.hold(factor.expr))
            number = b.let(self.top_row + self.y + i * _SIDE, "number")
            with b.when(number < self.heads[0].length):
                row, shift = self.scores.place(number)
                line = f.row(row)
                for c in range(self.columns):
                    column = b.let(self.x + c * _SIDE, "column")
                    with b.when(column < size):
                        wide = m.cast(self._held(self.made, i * self.columns + c), "float32")
                        value = m.cast(wide * factor, d.root.dtype)
                        at = b.let(shift + column, "at")
                        made = f.at(line, at, 1, 1, {d.root: value})
                        d.store(b.let(row * width + at, "to"), [made])
