"""Attention of 16-bit floats -> tensor cores: 16 queries a warp, whose scores never leave its
registers.

The sums of queries by keys are spread over a warp as the left operand of the product by values has
to be, so weights only change their type. Keys and values come to shared memory by copies that
nobody waits for until they are needed, one step ahead (Dao, "FlashAttention-2", 2023). A row in
shared memory has 16 bytes more than it needs, so that eight rows lie in other banks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, reduce

from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.hardware.products import WarpMac
from qcompiler.kernels.cpu.attention.operands import Heads
from qcompiler.kernels.cpu.attention.vector import refuse_attention
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import too_large
from qcompiler.kernels.cpu.code.epilogue import Fused
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.attention.scores import Query, Scores
from qcompiler.kernels.gpu.code.device import (
    across,
    commit_copies,
    copy_async,
    load_matrices,
    load_transposed,
    packed_pair,
    wait_copies,
)
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates
from qcompiler.ops.attention import LEAST

_SHORT = {"float16": "f16", "bfloat16": "bf16"}
_PIECE = 8
"""Values of 16 bytes."""
_WIDEST = 128
_SPECIAL_PER_CYCLE = 16
"""Powers of two that a multiprocessor makes in a cycle (CUDA C++ programming guide, throughput of
native arithmetic instructions).
"""


@dataclass(frozen=True)
class Blocking:
    """Warps of a block, keys of a step, and values of a head's row."""

    warps: int
    keys: int
    size: int

    @property
    def queries(self) -> int:
        """Queries of a block."""
        return 16 * self.warps

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * WARP

    @property
    def row(self) -> int:
        """Values from one row in shared memory to the next."""
        return self.size + _PIECE

    @property
    def area(self) -> int:
        """Values of a step's keys, or values, in shared memory."""
        return self.keys * self.row

    @property
    def registers(self) -> int:
        """An estimate of a thread's registers: outputs, scores, queries, operands, addresses."""
        return self.size // 2 + self.keys // 2 + self.size // 4 + 16 + 48

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: keys and values of two steps, or its queries before."""
        return 2 * max(4 * self.area, self.queries * self.row)


@candidates("Attention", "attention", kind=Gpu)
def gpu_tensor_attention(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """float16 and bfloat16, heads of at most 128 values, any mask, causal or not."""
    if reason := refuse_attention(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    heads = Heads.all(root)
    short = _SHORT.get(heads[0].node.dtype, "")
    mac = device.isa.warp((short, short, "f32")) if short else None
    if mac is None:
        return Skip("no product of matrices of this dtype")
    size = heads[0].size
    if size != heads[2].size or size % 16 or size > _WIDEST:
        return Skip(f"rows of {size} and {heads[2].size} values")
    if any(s % _PIECE for h in heads for s in (*h.steps, h.start)):
        return Skip("rows that do not begin at multiples of 16 bytes")
    keys = 64 if size <= 64 else 32
    ways = [Blocking(warps, keys, size) for warps in (4, 1)]
    return [
        Candidate(how, _seconds(region, mac, how, device), partial(_made, region, device, mac, how))
        for how in ways
    ]


def _seconds(region: Region, mac: WarpMac, how: Blocking, device: Gpu) -> float:
    """Whole waves of blocks: half of the rate of tensor cores, a power of two for each score."""
    root = region.root
    assert root is not None
    q, k, _ = Heads.all(root)
    blocks = q.batch * q.heads * -(-q.length // how.queries)
    at_once = max(1, device.multiprocessor.occupancy(how.threads, how.registers, how.shared_bytes))
    waves = -(-blocks // (at_once * device.multiprocessors))
    keys = -(-k.length // how.keys) * how.keys
    share = 0.5 if root.int("is_causal") and k.length == q.length else 1.0
    rate = 0.5 * device.macs_per_cycle.get(mac.rate, device.macs_per_cycle["f32"])
    cycles = how.queries * keys * share * (2 * how.size / rate + 1 / _SPECIAL_PER_CYCLE)
    seconds = waves * at_once * cycles / device.hz + 2e-9 * device.latency_ns
    moved = sum(n.type.bytes for n in (*region.inputs, region.output))
    return max(seconds + 1e-9 * device.launch_ns, device.moved_seconds(moved))


def _made(region: Region, device: Gpu, mac: WarpMac, how: Blocking) -> Kernel:
    return _Tensor(region, device, mac, how).kernel()


class _Tensor:
    """A kernel while it is written."""

    def __init__(self, region: Region, device: Gpu, mac: WarpMac, how: Blocking) -> None:
        root = region.root
        assert root is not None
        q, k, _ = self.heads = Heads.all(root)
        word = f"attention_tensor{q.heads}x{q.length}x{k.length}x{q.size}_{q.node.dtype}"
        self.d = d = GridDraft(word, region, device, how.threads)
        self.b, self.m, self.mac, self.how = d.b, d.m, mac, how
        d.b.blocks(-(-q.length // how.queries), q.heads, q.batch)

    def kernel(self) -> Kernel:
        """The whole kernel."""
        b, how, (q, k, v) = self.b, self.how, self.heads
        self.scores = Scores(self.d, b.let(b.z), b.let(b.y))
        self.lane = b.let(tirx.floormod(b.thread, WARP), "lane")
        self.warp = b.let(tirx.floordiv(b.thread, WARP), "warp")
        self.first_query = b.let(b.x * how.queries, "first_query")
        self.starts = self.scores.starts()
        self.shared = b.shared(q.node.dtype, how.shared_bytes // 2, "rows")
        held = self._held_queries()
        self.tops = b.registers("float32", 1, 2, "top")
        self.totals = b.registers("float32", 1, 2, "total")
        self.tops.fill(LEAST)
        self.totals.fill(0)
        self.made = b.local("float32", how.size // 2, "made")
        for i in range(how.size // 2):
            self.made.store(i, tir.const(0.0, "float32"))
        self.rows = [self._query(part) for part in (0, 1)]
        steps = self._steps()
        self._fetch(tir.const(0), tir.const(0))
        b.emit(commit_copies())
        with b.serial(steps, "step") as step:
            half = b.let(tirx.floormod(step, 2), "half")
            with b.when(step + 1 < steps):
                self._fetch(b.let(step + 1, "next"), b.let(1 - half, "other"))
            b.emit(commit_copies())
            b.emit(wait_copies(1))
            b.barrier()
            self._step(b.let(step * how.keys, "first"), b.let(half * (2 * how.area), "area"), held)
            b.barrier()
        self._store()
        return self.d.kernel(macs=q.batch * q.heads * q.length * k.length * (q.size + v.size))

    def _steps(self) -> Value:
        """Steps through the keys; no further than the block's last query sees."""
        every = -(-self.heads[1].length // self.how.keys)
        if not self.scores.causal:
            return every
        seen = tirx.floordiv(self.first_query + (self.how.queries - 1), self.how.keys) + 1
        return self.b.let(tirx.Min(tir.const(every), seen), "steps")

    def _query(self, part: int) -> Query:
        """The query of the first or the second of a thread's rows."""
        b = self.b
        row = self.warp * 16 + part * 8 + tirx.floordiv(self.lane, 4)
        number = b.let(self.first_query + row, "number")
        last = tir.const(self.heads[0].length - 1)
        return self.scores.query(b.let(tirx.Min(number, last), "query"))

    # -- memory

    def _copy(self, of: Heads, start: Value, first: Value, rows: int, area: Value) -> None:
        """Start to copy rows of a head to shared memory; zeros behind its last row."""
        b, pieces = self.b, self.how.size // _PIECE
        source = self.d.pointers[of.node]
        for row, piece, there in self._pieces(rows, pieces):
            with nullcontext() if there is None else b.when(there):
                number = b.let(first + row, "number")
                inside = tirx.Cast("int32", number < of.length)
                at = b.let(start + (number * of.steps[2] + piece * _PIECE) * inside, "at")
                to = b.let(area + row * self.how.row + piece * _PIECE, "to")
                b.emit(copy_async(self.shared + to, source + at, inside * 16))

    def _pieces(self, rows: int, pieces: int) -> Iterator[tuple[Value, Value, Value | None]]:
        """(row, piece of it, whether the thread has it) of each of a thread's pieces."""
        b, count = self.b, rows * pieces
        for i in range(-(-count // b.threads)):
            at = b.let(b.thread + i * b.threads, "at")
            there = None if (i + 1) * b.threads <= count else at < count
            row = b.let(tirx.floordiv(at, pieces), "row")
            yield row, b.let(tirx.floormod(at, pieces), "piece"), there

    def _fetch(self, step: Value, half: Value) -> None:
        """Start to copy a step's keys and values to a half of the shared memory."""
        b, how, (_, k, v) = self.b, self.how, self.heads
        first, area = b.let(step * how.keys, "first"), b.let(half * (2 * how.area), "area")
        self._copy(k, self.starts[1], first, how.keys, area)
        self._copy(v, self.starts[2], first, how.keys, b.let(area + how.area, "area"))

    def _held_queries(self) -> list[Pointer]:
        """The warp's queries in registers, by way of shared memory."""
        b, how = self.b, self.how
        self._copy(self.heads[0], self.starts[0], self.first_query, how.queries, tir.const(0))
        b.emit(commit_copies())
        b.emit(wait_copies(0))
        b.barrier()
        row = b.let(self.warp * 16 + tirx.bitwise_and(self.lane, tir.const(15)), "row")
        high = tirx.floordiv(self.lane, 16)
        held = [
            self._matrices(row * how.row + (high + k * 2) * _PIECE) for k in range(how.size // 16)
        ]
        b.barrier()
        return held

    def _matrices(self, at: Value, transposed: bool = False) -> Pointer:
        """Four matrices of 8 x 16 bytes, of which each lane names a row."""
        own = self.b.local("uint32", 4, "matrices")
        source = self.shared + self.b.let(at, "from")
        self.b.emit((load_transposed if transposed else load_matrices)(own, source))
        return own

    # -- arithmetic

    def _step(self, first: Value, area: Value, held: list[Pointer]) -> None:
        """Scores of a step's keys, their weights, and the weighted values."""
        how = self.how
        sums = self._products(area, held)
        scores = [[self._score(sums, j, e, first) for e in range(4)] for j in range(how.keys // 8)]
        weights = self._weights(scores, first)
        values = self.b.let(area + how.area, "values")
        low, high = tirx.bitwise_and(self.lane, tir.const(7)), tirx.floordiv(self.lane, 16)
        middle = tirx.bitwise_and(tirx.floordiv(self.lane, 8), tir.const(1))
        dtype = self.heads[0].node.dtype
        for j in range(0, how.keys // 8, 2):
            left = self.b.local("uint32", 4, "weights")
            for word, (matrix, e) in enumerate(((j, 0), (j, 2), (j + 1, 0), (j + 1, 2))):
                pair = weights[matrix][e : e + 2]
                left.store(word, packed_pair(dtype, pair[0].expr, pair[1].expr))
            row = self.b.let(j * 8 + middle * 8 + low, "row")
            for n in range(0, how.size // 8, 2):
                both = self._matrices(values + row * how.row + (high + n) * _PIECE, transposed=True)
                for more in (0, 1):
                    at = self.made + 4 * (n + more)
                    self.b.emit(self.mac.emit(at, left, both + 2 * more))

    def _products(self, area: Value, held: list[Pointer]) -> Pointer:
        """Queries by keys: four sums of a thread for every eight keys."""
        b, how = self.b, self.how
        sums = b.local("float32", how.keys // 2, "sums")
        for i in range(how.keys // 2):
            sums.store(i, tir.const(0.0, "float32"))
        low, high = tirx.bitwise_and(self.lane, tir.const(7)), tirx.floordiv(self.lane, 16)
        middle = tirx.bitwise_and(tirx.floordiv(self.lane, 8), tir.const(1))
        for j in range(0, how.keys // 8, 2):
            row = b.let(j * 8 + low + high * 8, "row")
            for k, left in enumerate(held):
                both = self._matrices(area + row * how.row + (middle + k * 2) * _PIECE)
                for more in (0, 1):
                    b.emit(self.mac.emit(sums + 4 * (j + more), left, both + 2 * more))
        return sums

    def _score(self, sums: Pointer, j: int, e: int, first: Value) -> Vec:
        product = self.m.vec(sums.load(4 * j + e))
        made = self.scores.score(product, self.rows[e // 2], self._key(first, j, e))
        return self.m.vec(self.b.hold(made.expr, "score"))

    def _key(self, first: Value, j: int, e: int) -> Value:
        """The key of a thread's sum e of every eight keys."""
        return self.b.let(first + (j * 8 + e % 2) + tirx.floormod(self.lane, 4) * 2, "key")

    def _weights(self, scores: list[list[Vec]], first: Value) -> list[list[Vec]]:
        """Scores -> weights relative to the largest so far; what was summed is scaled to that."""
        m, b = self.m, self.b
        tops = []
        for part in (0, 1):
            mine = [row[2 * part + e] for row in scores for e in (0, 1)]
            old = m.vec(b.hold(self.tops[part]))
            top = m.larger(old, self._joined(reduce(m.larger, mine), m.larger))
            top = m.vec(b.hold(top.expr, "top"))
            self.tops[part] = top.expr
            factor = m.vec(b.hold(self.scores.power(old - top).expr, "factor"))
            self.totals[part] = (m.vec(self.totals[part]) * factor).expr
            for n in range(self.how.size // 8):
                for e in (0, 1):
                    at = 4 * n + 2 * part + e
                    self.made.store(at, (m.vec(self.made.load(at)) * factor).expr)
            tops.append(top)
        made = [
            [self._weight(score, tops[e // 2], first, j, e) for e, score in enumerate(row)]
            for j, row in enumerate(scores)
        ]
        for part in (0, 1):
            total = m.vec(self.totals[part])
            for row in made:
                total = total + row[2 * part] + row[2 * part + 1]
            self.totals[part] = total.expr
        return made

    def _weight(self, score: Vec, top: Vec, first: Value, j: int, e: int) -> Vec:
        made = self.scores.weight(score, top, self._key(first, j, e))
        return self.m.vec(self.b.hold(made.expr, "weight"))

    def _joined(self, value: Vec, join: object) -> Vec:
        """A number of each thread -> that of the four threads of a row."""
        assert callable(join)
        for distance in (1, 2):
            held = self.b.hold(value.expr)
            other = self.m.vec(across("shuffle_xor", held, tir.const(distance)))
            value = join(self.m.vec(held), other)
        return value

    # -- output

    def _store(self) -> None:
        """Store the outputs, two neighbours of each of two rows at a time."""
        b, m, f = self.b, self.m, self.d.writing()
        for part in (0, 1):
            total = self._joined(m.vec(self.totals[part]), lambda a, c: a + c)
            top = m.vec(self.tops[part])
            factor = m.vec(b.hold(self.scores.inverse(total, top).expr, "factor"))
            row = self.warp * 16 + part * 8 + tirx.floordiv(self.lane, 4)
            number = b.let(self.first_query + row, "number")
            with b.when(number < self.heads[0].length):
                self._row(f, number, part, factor)

    def _row(self, f: Fused, number: Value, part: int, factor: Vec) -> None:
        b, d, m, width = self.b, self.d, self.m, self.d.root.type.dims[-1]
        line, shift = self.scores.place(number)
        row = f.row(line)
        for n in range(self.how.size // 8):
            column = b.let(shift + n * 8 + tirx.floormod(self.lane, 4) * 2, "column")
            given = [
                m.cast(m.vec(self.made.load(4 * n + 2 * part + e)) * factor, d.root.dtype)
                for e in (0, 1)
            ]
            made = d.along(f, row, column, 2, lambda i, given=given: {d.root: given[i]})  # type: ignore[misc]
            d.store(b.let(line * width + column, "to"), made)
