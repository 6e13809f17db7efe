"""TopK -> the order of each line's elements, by keys that are integers of the same order.

ranked   a thread for each element counts those before it: any number of elements is asked for
sorted   a block sorts as many elements as it may have to give, then others, of which the better
         half stays, in shared memory (Batcher's bitonic sort); several blocks for a long line,
         whose results another launch merges
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.ir import Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.casts import HALF_FLOATS
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.rows.lines import Lines
from qcompiler.kernels.registry import (
    After,
    Candidate,
    Fixed,
    Kernel,
    Region,
    candidates,
    streamed,
)

_RANKED = 256
"""Threads of a block that counts, and elements that it looks at at once."""
_MOST = 4096
"""Elements that a block sorts at once, of 8 bytes in shared memory."""
_LEAST = 1024
"""Of longer lines."""
_THREADS = 512
_PLACES = 0x7FFFFFFF
"""Part of a key: of equal elements the first has the greatest."""
_NONE = -(1 << 63)
"""The key of no element."""
_MOST_TIMES = 90.0
"""Times that a kernel moves its bytes in, at most: counting is preferred to a thread for each line
(elements/tasks.py), which inserts one element after the other.
"""
_SLOTS, _CYCLES = 6, 60
"""Instructions that look at one element; cycles of a step of a sort, for each element of a thread.
"""


@dataclass(frozen=True)
class Sort:
    """Elements that a block sorts at once; blocks for a line."""

    size: int
    parts: int


@candidates("item of TopK", kind=Gpu)
def gpu_top(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """The values, or where they are; of equals the first goes first, NaN is the largest."""
    if reason := refuse(region) or too_large(region):
        return reason
    t = _Top.of(region, device)
    if isinstance(t, Skip):
        return t
    moved = streamed(region, device)
    rate = device.macs_per_cycle["f32"] * device.multiprocessors * device.hz
    counted = t.lines.count * t.lines.length**2 * _SLOTS / rate
    counted = min(counted, _MOST_TIMES * moved)
    found = [Candidate(Fixed(), moved + counted, partial(_ranked, t))]
    if (sort := _sort_of(t, device)) is not None:
        found.append(Candidate(sort, moved + _seconds(t, sort, device), partial(_sorted, t, sort)))
    return found


@dataclass(frozen=True)
class _Top:
    """What is asked for."""

    region: Region
    device: Gpu
    x: Node
    lines: Lines
    out: Lines
    largest: bool

    @staticmethod
    def of(region: Region, device: Gpu) -> _Top | Skip:
        """A region -> what it asks for."""
        root = region.root
        assert root is not None
        source = root.operands[0]
        x = source.operands[0]
        if 0 in (*x.type.dims, *root.type.dims):
            return Skip("no elements")
        if x.dtype == "bool":
            return Skip("TopK of bool")
        if x in region.nodes:
            return Skip("elementwise work before it")
        axis = source.int("axis")
        lines, out = (Lines.of(n, [axis]) for n in (x.type.dims, root.type.dims))
        return _Top(region, device, x, lines, out, bool(source.int("largest")))

    @property
    def wanted(self) -> int:
        """Elements of a line that are asked for."""
        return self.out.length

    @property
    def wide(self) -> bool:
        """Whether keys take 64 bits."""
        return tir.bits(self.x.dtype) == 64

    def draft(self, kind: str, threads: int) -> GridDraft:
        """A kernel to be written."""
        name = f"{kind}{self.wanted}_{self.lines.count}x{self.lines.length}"
        return GridDraft(name, self.region, self.device, threads)

    def key(self, d: GridDraft, at: Value) -> Vec:
        """The element at a place as an integer, which is greater the earlier it goes."""
        m, x = d.m, d.read(self.x, at)
        if x.dtype in HALF_FLOATS:
            x = m.cast(x, "float32")
        dtype = "int64" if self.wide else "int32"
        most = int(np.iinfo(dtype).max)
        if x.is_float:
            raw = m.bits(m.where(x == 0.0, 0.0, x), dtype)
            raw = m.where(raw < 0, raw ^ most, raw)
            found = m.where(m.is_nan(x), most, raw)
        elif x.dtype in ("uint32", "uint64"):
            found = m.bits(x, dtype) ^ int(np.iinfo(dtype).min)
        else:
            found = m.cast(x, dtype)
        return found if self.largest else ~found

    def put(self, d: GridDraft, line: Value, start: Value, rank: Value, element: Value) -> None:
        """Store the element that has a rank in its line."""
        b, root = d.b, d.root
        if root.int("index") == 0:
            value = d.read(self.x, b.let(start + self.lines.offset(b, element), "from"))
        else:
            value = d.m.cast(d.m.vec(element), root.dtype)
        to = b.let(self.out.start(b, line) + self.out.offset(b, rank), "to")
        d.put_at(to, value)


def _ranked(t: _Top) -> Kernel:
    """Elements of a block look at all others, some at a time."""
    d = t.draft("topranked", _RANKED)
    b, m, length = d.b, d.m, t.lines.length
    blocks = -(-length // _RANKED)
    b.blocks(blocks * t.lines.count)
    line = b.let(tirx.floordiv(b.x, blocks), "line")
    element = b.let(tirx.floormod(b.x, blocks) * _RANKED + b.thread, "element")
    start = t.lines.start(b, line)
    own = _bounded(t, d, start, element)
    others = b.shared(own.dtype, _RANKED, "others")
    rank = b.registers("int32", 1, 1, "rank")
    rank.fill(0)
    with b.serial(blocks, "turn") as turn:
        first = b.let(turn * _RANKED, "first")
        others.store(b.thread, _bounded(t, d, start, b.let(first + b.thread, "other")).expr)
        b.barrier()
        with b.serial(b.let(tirx.Min(length - first, tir.const(_RANKED)), "some"), "i") as i:
            other = m.vec(others.load(i))
            equal = (other == own) & m.vec(first + i < element)
            rank[0] = rank[0] + m.cast((other > own) | equal, "int32").expr
        b.barrier()
    place = b.let(rank[0], "place")
    with b.when(tirx.And(element < length, place < t.wanted)):
        t.put(d, line, start, place, element)
    return d.kernel()


def _bounded(t: _Top, d: GridDraft, start: Value, element: Value) -> Vec:
    """The key of an element, or of the last one where the line ends before."""
    b = d.b
    bounded = b.let(tirx.Min(element, tir.const(t.lines.length - 1)), "bounded")
    return t.key(d, b.let(start + t.lines.offset(b, bounded), "at"))


def _power(number: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(number - 1, 0).bit_length()


def _sort_of(t: _Top, device: Gpu) -> Sort | None:
    """How a block sorts, if shared memory holds what it needs."""
    if t.wide:
        return None
    length = t.lines.length
    size = max(64, _power(min(length, max(t.wanted, _LEAST))))
    if size > _MOST or (size < length and size > _MOST // 2):
        return None
    chunks = -(-length // size)
    return Sort(size, max(1, min(chunks // 2, 2 * device.multiprocessors // t.lines.count, 64)))


def _steps(size: int) -> int:
    log = size.bit_length() - 1
    return log * (log + 1) // 2


def _seconds(t: _Top, sort: Sort, device: Gpu) -> float:
    """Steps of all sorts of a block, and of the merges of all blocks' results."""
    chunks = -(-t.lines.length // (sort.size * sort.parts))
    log = sort.size.bit_length()
    steps = chunks * (_steps(sort.size) + log) + sort.parts * log * (sort.parts > 1)
    each = max(1, sort.size // 2 // _threads(sort))
    waves = -(-t.lines.count * sort.parts // (2 * device.multiprocessors))
    launch = 1e-9 * device.launch_ns * (sort.parts > 1)
    return launch + waves * steps * (_CYCLES + each * _CYCLES / 3) / device.hz


def _threads(sort: Sort) -> int:
    return min(sort.size // 2, _THREADS)


def _sorted(t: _Top, sort: Sort) -> Kernel:
    d = t.draft("topsorted", _threads(sort))
    several = sort.parts > 1
    scratch = d.scratch("int64") if several else None
    b = d.b
    b.blocks(sort.parts * t.lines.count)
    line = b.let(tirx.floordiv(b.x, sort.parts), "line")
    part = b.let(tirx.floormod(b.x, sort.parts), "part")
    start = t.lines.start(b, line)
    chunks = -(-t.lines.length // (sort.size * sort.parts))
    block = _Block(t, d, sort, merges=chunks > 1)
    first = b.let(part * (chunks * sort.size), "first")

    def key(at: Value) -> Callable[[Value], Value]:
        return lambda i: _key(t, d, start, b.let(at + i, "element"))

    block.fill(block.top, key(first))
    block.sort(block.top)
    if chunks > 1:
        with b.serial(chunks - 1, "chunk", 1) as chunk:
            block.fill(block.more, key(b.let(first + chunk * sort.size, "begin")))
            block.sort(block.more, descending=False)
            block.merge()
    if scratch is None:
        block.give(line, start)
        return d.kernel()
    block.each(lambda i: scratch.store(b.let(b.x * sort.size + i, "to"), block.top.load(i)))
    size = 8 * t.lines.count * sort.parts * sort.size
    return d.kernel(scratch_bytes=size, after=(_merged(t, sort),))


def _merged(t: _Top, sort: Sort) -> After:
    """A block for each line merges what the parts gave."""
    d = t.draft("topmerged", _threads(sort))
    scratch = d.scratch("int64")
    b = d.b
    b.blocks(t.lines.count)
    start = t.lines.start(b, b.x)
    block = _Block(t, d, sort, merges=True)
    base = b.let(b.x * (sort.parts * sort.size), "base")
    block.fill(block.top, lambda i: scratch.load(b.let(base + i, "from")))
    b.barrier()
    with b.serial(sort.parts - 1, "part", 1) as part:
        end = b.let(base + part * sort.size + (sort.size - 1), "end")
        block.fill(block.more, lambda i: scratch.load(b.let(end - i, "from")))
        b.barrier()
        block.merge()
    block.give(b.x, start)
    return d.after()


def _key(t: _Top, d: GridDraft, start: Value, element: Value) -> Value:
    """An element's key above its place, as one number; that of no element behind the line."""
    m = d.m
    high = m.cast(_bounded(t, d, start, element), "int64") * (1 << 32)
    both = high | m.cast(m.vec(_PLACES - element), "int64")
    there = m.vec(element < t.lines.length)
    return m.where(there, both, m.splat(_NONE, "int64")).expr


class _Block:
    """A block's arrays in shared memory: the best so far, and others that may be better."""

    def __init__(self, t: _Top, d: GridDraft, sort: Sort, *, merges: bool) -> None:
        self.t, self.d, self.b, self.sort_ = t, d, d.b, sort
        self.top = d.b.shared("int64", sort.size, "top")
        self.more = d.b.shared("int64", sort.size, "more") if merges else self.top
        self.log = sort.size.bit_length() - 1

    def each(self, body: Callable[[Value], None]) -> None:
        """body(i) for all numbers of elements, each by one thread."""
        b, threads = self.b, self.b.threads
        with b.serial(self.sort_.size // threads, "turn") as turn:
            body(b.let(turn * threads + b.thread, "i"))

    def fill(self, array: Pointer, value: Callable[[Value], Value]) -> None:
        """Write value(i) to all elements of an array."""
        self.each(lambda i: array.store(i, value(i)))

    def sort(self, array: Pointer, *, descending: bool = True) -> None:
        """Sort an array that the threads have just filled."""
        b = self.b
        b.barrier()
        with b.serial(self.log, "run") as run, b.serial(run + 1, "step") as step:
            self._exchange(array, b.let(run - step, "distance"), run + 1, descending)

    def merge(self) -> None:
        """Sorted arrays, the second the other way round -> the better half of both, sorted."""
        b = self.b

        def better(i: Value) -> None:
            own, other = b.hold(self.top.load(i)), b.hold(self.more.load(i))
            with b.when(other > own):
                self.top.store(i, other)

        self.each(better)
        b.barrier()
        with b.serial(self.log, "step") as step:
            self._exchange(self.top, b.let(self.log - 1 - step, "distance"), None, True)

    def _exchange(
        self, array: Pointer, distance: Value, run: Value | None, descending: bool
    ) -> None:
        """Put elements that are 2^distance apart in order: in runs of 2^run, of which every other
        one goes the other way; in one run if there is None.
        """
        b, one = self.b, tir.const(1)
        shift, mask = tirx.shift_left, tirx.bitwise_and
        with b.serial(self.sort_.size // 2 // b.threads, "pair") as turn:
            pair = b.let(turn * b.threads + b.thread, "pair")
            low = mask(pair, shift(one, distance) - 1)
            high = shift(tirx.shift_right(pair, distance), distance + 1)
            first = b.let(high + low, "first")
            second = b.let(first + shift(one, distance), "second")
            a, c = b.hold(array.load(first)), b.hold(array.load(second))
            wrong = a < c if descending else a > c
            if run is not None:
                other = tirx.EQ(mask(tirx.shift_right(first, run), one), one)
                back = a > c if descending else a < c
                wrong = tirx.Or(tirx.And(tirx.Not(other), wrong), tirx.And(other, back))
            with b.when(wrong):
                array.store(first, c)
                array.store(second, a)
        b.barrier()

    def give(self, line: Value, start: Value) -> None:
        """Store what is asked for of the best."""
        b = self.b

        def put(i: Value) -> None:
            with b.when(i < self.t.wanted):
                key = b.hold(self.top.load(i))
                place = tirx.bitwise_and(key, tir.const(0xFFFFFFFF, "int64"))
                element = b.hold(_PLACES - tir.cast(place, "int32"), "element")
                self.t.put(self.d, line, start, i, element)

        self.each(put)
