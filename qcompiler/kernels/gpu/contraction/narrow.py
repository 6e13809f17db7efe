"""matmul_narrow of few rows -> weights of 2, 4 or 8 bits are read once, and become floats in
registers in front of their products.

A word holds the codes of 32 / bits neighbours along k of one column; neighbouring threads have
neighbouring columns, warps of a block share k and add what they summed by way of shared memory. A
code becomes the upper bits of the mantissa of a float between 1 and 2, which takes a shift and a
logic operation and no conversion (kernels/cpu/compressed/low_bits.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import in_place_candidates, refuse, too_large
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import move
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates, streamed

_ONE = 0x3F800000
_MANTISSA = 23
_WAYS = 16
"""Warps that share a sum."""
_AHEAD = 4
"""Words of a thread that are loaded at once."""


@dataclass(frozen=True)
class Rows:
    """Rows of the output that a block makes."""

    rows: int


@candidates("matmul_narrow", kind=Gpu)
def gpu_narrow(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """Blocks of some rows, which all read the weights."""
    n = narrow_of(region)
    if isinstance(n, Skip):
        return n
    return [
        Candidate(Rows(rows), _seconds(n, rows, device), partial(_made, n, device, rows))
        for rows in (1, 2, 4, 8)
        if rows < 2 * n.rows
    ]


def narrow_of(region: Region) -> Narrow | Skip:
    """A region -> the product that it is."""
    if reason := refuse(region) or too_large(region):
        return reason
    root = region.root
    assert root is not None
    if not all(i.is_constant for i in root.operands[1:]):
        return Skip("its weights are not constant")
    if any(i in n.operands for n in region.nodes if n is not root for i in root.operands[1:]):
        return Skip("its weights are read again")
    if 0 in (*root.type.dims, *root.operands[1].type.dims):
        return Skip("nothing to multiply")
    n = Narrow(region)
    if n.group % n.count and n.groups > 1:
        return Skip("a word of codes that belong to several groups")
    return n


@dataclass(frozen=True)
class Narrow:
    """x[rows, depth] times (codes[depth, width] - zero) * scale."""

    region: Region

    @property
    def root(self) -> Node:
        """The product."""
        assert self.region.root is not None
        return self.region.root

    @cached_property
    def rows(self) -> int:
        """Of the output."""
        return prod(self.root.type.dims[:-1])

    @cached_property
    def depth(self) -> int:
        """Products of a sum."""
        return self.root.operands[1].type.dims[0]

    @cached_property
    def width(self) -> int:
        """Columns of the output."""
        return self.root.operands[1].type.dims[1]

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.root.int("bits")

    @property
    def count(self) -> int:
        """Codes in a word."""
        return 32 // self.bits

    @property
    def words(self) -> int:
        """Words of a column."""
        return -(-self.depth // self.count)

    @property
    def groups(self) -> int:
        """Rows of scales and zero points."""
        return self.root.operands[2].type.dims[0]

    @property
    def group(self) -> int:
        """Codes along k that a scale applies to."""
        return self.root.int("group")

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.rows * self.depth * self.width

    def packers(self, codes: Callable[[Array], Array]) -> Mapping[int, Callable[[Array], Array]]:
        """Scales and zero points are packed in units of a mantissa; codes as it is told."""
        unit = np.float32(1 << self.bits)
        at = [self.region.inputs.index(i) for i in self.root.operands[1:]]
        return {
            at[0]: codes,
            at[1]: lambda a: (a * unit).astype(np.float32),
            at[2]: lambda a: (1 + a / unit).astype(np.float32),
        }

    def along(self, codes: Array) -> Array:
        """Codes [K, N] -> words [K / count, N], the first code in the lowest bits."""
        more = self.words * self.count - self.depth
        padded = np.pad(codes, ((0, more), (0, 0))).astype(np.uint32)
        split = padded.reshape(self.words, self.count, self.width)
        shifts = np.arange(self.count, dtype=np.uint32) * np.uint32(self.bits)
        merged = np.bitwise_or.reduce(split << shifts[:, None], axis=1)
        return np.ascontiguousarray(merged).view(np.uint8)

    def decoded(self, word: Value, i: int) -> Value:
        """Code i of a word -> 1 + code / 2^bits, a float32."""
        up = _MANTISSA - self.bits - i * self.bits
        if up > 0:
            word = tirx.shift_left(word, tir.const(up))
        elif up < 0:
            word = tirx.shift_right(word, tir.const(-up))
        mask = ((1 << self.bits) - 1) << (_MANTISSA - self.bits)
        bits = tirx.bitwise_or(tirx.bitwise_and(word, tir.const(mask)), tir.const(_ONE))
        return tir.reinterpret(bits, "float32")


def _seconds(n: Narrow, rows: int, device: Gpu) -> float:
    """Bytes, weights once for each block of rows; or instructions."""
    blocks = -(-n.rows // rows)
    moved = streamed(n.region, device)
    again = (blocks - 1) * n.depth * n.width * n.bits / 8 / device.memory_bytes_per_second
    rate = device.macs_per_cycle["f32"] * device.multiprocessors * device.hz
    issued = blocks * n.depth * n.width * (3 + rows) / rate
    return max(moved + again / 4, issued + 1e-9 * (device.launch_ns + device.latency_ns))


def _made(n: Narrow, device: Gpu, rows: int) -> Kernel:
    return _Few(n, device, rows).kernel()


class _Few:
    """A kernel while it is written."""

    def __init__(self, n: Narrow, device: Gpu, rows: int) -> None:
        self.n, self.rows = n, rows
        kind = f"narrow{n.bits}_{n.rows}x{n.width}x{n.depth}"
        self.d = d = GridDraft(kind, n.region, device, WARP * _WAYS)
        self.b, self.m, b = d.b, d.m, d.b
        b.blocks(-(-n.width // WARP), -(-n.rows // rows))
        self.lane = b.let(tirx.floormod(b.thread, WARP), "lane")
        self.way = b.let(tirx.floordiv(b.thread, WARP), "way")
        self.column = b.let(b.x * WARP + self.lane, "column")
        self.first = b.let(b.y * rows, "first")
        self.bounded = b.let(tirx.Min(self.column, tir.const(n.width - 1)), "bounded")
        self.x, self.codes, self.scale, self.zero = (d.pointers[i] for i in n.root.operands)

    def kernel(self) -> Kernel:
        """The whole kernel."""
        b, n = self.b, self.n
        self.totals = b.registers("float32", 1, self.rows, "total")
        self.totals.fill(0)
        self.starts = [
            b.let(tirx.Min(self.first + r, tir.const(n.rows - 1)) * n.depth, "start")
            for r in range(self.rows)
        ]
        self._sum()
        self._store()
        in_place = in_place_candidates(n.region)
        return self.d.kernel(pack=n.packers(n.along), in_place=in_place, macs=n.macs)

    def _sum(self) -> None:
        """This warp's words, some of which are loaded at once."""
        b, n = self.b, self.n
        full = n.depth // n.count
        turns = full // (_WAYS * _AHEAD)
        if turns:
            with b.serial(turns, "turn") as turn:
                at = [b.let((turn * _AHEAD + i) * _WAYS + self.way, "word") for i in range(_AHEAD)]
                for word, held in zip(at, [self._word(w) for w in at], strict=True):
                    self._products(word, held, n.count)
        for start in range(turns * _WAYS * _AHEAD, full, _WAYS):
            word = b.let(self.way + start, "word")
            with b.when(word < full):
                self._products(word, self._word(word), n.count)
        if rest := n.depth % n.count:
            with b.when(tirx.EQ(self.way, 0)):
                self._products(tir.const(full), self._word(tir.const(full)), rest)

    def _word(self, word: Value) -> Value:
        at = self.b.let((word * self.n.width + self.bounded) * 4, "at")
        return self.b.hold(self._load_word(at), "codes")

    def _load_word(self, at: Value) -> Value:
        own = self.b.local("int32", 1, "word")
        self.b.emit(move(4, own, self.codes + at))
        return own.load(0)

    def _products(self, word: Value, held: Value, count: int) -> None:
        """The codes of a word."""
        b, n = self.b, self.n
        k = b.let(word * n.count, "k")
        group = tirx.floordiv(k, n.group) if n.groups > 1 else tir.const(0)
        at = b.let(group * n.width + self.bounded, "of_group")
        scale, zero = b.hold(self.scale.load(at)), b.hold(self.zero.load(at))
        parts = b.registers("float32", 1, self.rows, "part")
        parts.fill(0)
        lefts = [self._left(b.let(start + k, "left"), count) for start in self.starts]
        for i in range(count):
            weight = b.hold(n.decoded(held, i) - zero, "weight")
            for r, left in enumerate(lefts):
                parts[r] = tir.fma(left[i], weight, parts[r])
        for r in range(self.rows):
            self.totals[r] = tir.fma(parts[r], scale, self.totals[r])

    def _left(self, at: Value, count: int) -> list[Value]:
        """Neighbours along k of a row, 16 bytes at a time where they lie so."""
        b, wide = self.b, self.n.depth % 4 == 0 and count % 4 == 0
        if not wide:
            return [b.hold(self.x.load(at + i)) for i in range(count)]
        own = b.local("float32", count, "left")
        for i in range(0, count, 4):
            b.emit(move(16, own + i, self.x + (at + i)))
        return [own.load(i) for i in range(count)]

    def _store(self) -> None:
        """Warps add what they summed; one of them stores each row, by way of the epilogue."""
        b, n, d = self.b, self.n, self.d
        shared = b.shared("float32", _WAYS * self.rows * WARP, "parts")
        for r in range(self.rows):
            shared.store(b.let((self.way * self.rows + r) * WARP + self.lane), self.totals[r])
        b.barrier()
        row = b.let(self.first + self.way, "row")
        mine = tirx.And(self.way < self.rows, tirx.And(row < n.rows, self.column < n.width))
        f = d.writing()
        with b.when(mine):
            total = self._part(shared, 0)
            for way in range(1, _WAYS):
                total = total + self._part(shared, way)
            value = f.at(f.row(row), self.column, 1, 1, {n.root: total})
            d.store(b.let(row * n.width + self.column, "to"), [value])

    def _part(self, shared: Pointer, way: int) -> Vec:
        at = (self.way + way * self.rows) * WARP + self.lane
        return self.m.vec(shared.load(self.b.let(at, "at")))
