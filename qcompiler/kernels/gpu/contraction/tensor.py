"""conv and matmul of 16-bit floats and bytes -> tensor cores: products of small matrices, whose
operands and sums are spread over the registers of a warp.

Both operands of a step lie in shared memory as rows of 64 bytes: the left one's pixels, the right
one's columns, each along k. Asynchronous copies bring them two steps ahead. The four 16-byte pieces
of a row are exchanged in a pattern that repeats every eight rows, so that neither stores nor the
loads of matrices meet in a bank of memory. Where there are no asynchronous copies, a step comes by
way of registers while another is multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import WARP, Gpu
from qcompiler.hardware.products import WarpMac
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import in_place_candidates
from qcompiler.kernels.cpu.code.epilogue import Fused, Row
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import (
    again,
    commit_copies,
    copy_async,
    load_matrices,
    move,
    wait_copies,
)
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.gpu.contraction import split
from qcompiler.kernels.gpu.contraction.problem import LeftRow, Problem, problem_of
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_SHORT = {"float16": "f16", "bfloat16": "bf16", "int8": "i8", "uint8": "u8"}
_PIECE, _PIECES = 16, 4
"""Bytes of a piece, and pieces of a row in a step."""
_ROW_WORDS = _PIECE * _PIECES // 4
_STAGES = 3
"""Steps that shared memory holds: one is multiplied while the others come."""


@dataclass(frozen=True)
class Blocking:
    """Warps of a block, down and across; matrices of a warp: rows of 16, columns of 8; parts that
    the sums are cut into.
    """

    down: int
    across: int
    matrices_down: int
    matrices_across: int
    parts: int = 1

    @property
    def rows(self) -> int:
        """Rows of the output that a block makes."""
        return self.down * self.matrices_down * 16

    @property
    def columns(self) -> int:
        """Columns of the output that a block makes."""
        return self.across * self.matrices_across * 8

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.down * self.across * WARP

    @property
    def registers(self) -> int:
        """An estimate of a thread's registers: sums, operands, addresses."""
        sums = 4 * self.matrices_down * self.matrices_across
        held = 4 * self.matrices_down + 4
        pieces = -(-(self.rows + self.columns) * _PIECES // self.threads)
        return sums + held + 4 * pieces + 32

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return _STAGES * (self.rows + self.columns) * _PIECE * _PIECES


BLOCKINGS = (Blocking(2, 2, 4, 8), Blocking(2, 2, 2, 4), Blocking(1, 2, 1, 2))


@candidates("conv", "matmul", kind=Gpu)
def gpu_tensor(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """Blocks of several sizes."""
    p = problem_of(region)
    if isinstance(p, Skip):
        return p
    left, right = (_SHORT.get(n.dtype, "") for n in p.root.operands[:2])
    mac = device.isa.warp((left, right, "i32" if p.bytes else "f32"))
    if mac is None:
        return Skip("no product of matrices of these dtypes")
    if p.neighbours % (_PIECE // mac.itemsize):
        return Skip("values of k that do not come 16 bytes at a time")
    if not (p.root.operands[1].is_constant or p.transposed):
        return Skip("the right operand lies across, and is no constant")
    step = _PIECE * _PIECES // mac.itemsize
    ways = [*BLOCKINGS, *(cut for how in BLOCKINGS for cut in _cut(p, how, step, device))]
    return [
        Candidate(
            how, _seconds(p, mac, how, region, device), partial(_made, region, device, p, mac, how)
        )
        for how in ways
    ]


def _cut(p: Problem, how: Blocking, step: int, device: Gpu) -> list[Blocking]:
    """A blocking with sums in parts, where that keeps more of the GPU busy."""
    steps = -(-p.depth // step)
    return [replace(how, parts=n) for n in split.worthwhile(_blocks(p, how), steps, device)]


def _blocks(p: Problem, how: Blocking) -> int:
    return -(-p.rows // how.rows) * -(-p.width // how.columns) * p.images


def _seconds(p: Problem, mac: WarpMac, how: Blocking, region: Region, device: Gpu) -> float:
    """Whole waves of blocks; half of the rate of tensor cores, as their operands come by way of
    registers and shared memory; or the bytes, if those take longer.
    """
    blocks = _blocks(p, how) * how.parts
    at_once = max(1, device.multiprocessor.occupancy(how.threads, how.registers, how.shared_bytes))
    macs = how.rows * how.columns * -(-p.depth // how.parts)
    waves = -(-blocks // (device.multiprocessors * at_once))
    rate = 0.5 * device.macs_per_cycle.get(mac.rate, device.macs_per_cycle["f32"])
    multiply = waves * at_once * macs / rate / device.hz + 2e-9 * device.latency_ns
    moved = sum(n.type.bytes for n in (*region.inputs, region.output))
    whole = max(multiply + 1e-9 * device.launch_ns, device.moved_seconds(moved))
    return whole + split.seconds(p, how.parts, device)


def _made(region: Region, device: Gpu, p: Problem, mac: WarpMac, how: Blocking) -> Kernel:
    return _Tensor(region, device, p, mac, how).kernel()


@dataclass(frozen=True)
class _Piece:
    """16 bytes of a row that a thread brings in each step."""

    source: Pointer
    row: LeftRow | None
    """The row of a left operand whose values of k do not follow each other."""
    base: Value
    """Where the first of a thread's other rows begins; ..."""
    behind: int
    """... how far behind that this one does; ..."""
    inside: Value | None
    """... whether it exists, if that is not certain, and then 16, else 0."""
    size: Value | None
    shared: Pointer
    to: Value
    there: Value | None
    own: Pointer | None
    """Registers that it comes by, where copies are not asynchronous."""


class _Tensor:
    """A kernel while it is written."""

    def __init__(
        self, region: Region, device: Gpu, p: Problem, mac: WarpMac, how: Blocking
    ) -> None:
        self.region, self.device, self.p, self.mac, self.how = region, device, p, mac, how
        dtypes = f"tensor_{p.root.operands[0].dtype}_{p.rows}x{p.width}x{p.depth}"
        self.d = d = GridDraft(f"{p.root.op}_{dtypes}", region, device, how.threads)
        self.b, self.m = d.b, d.m
        self.direct = device.multiprocessor.async_copies
        self.scratch = d.scratch(p.element) if how.parts > 1 else None
        d.b.blocks(-(-p.rows // how.rows), -(-p.width // how.columns), p.images * how.parts)
        self.image = d.b.let(tirx.floordiv(d.b.z, how.parts), "image")
        self.part = d.b.let(tirx.floormod(d.b.z, how.parts), "part")
        self.values = _PIECE // mac.itemsize
        self.step = self.values * _PIECES
        self.top = d.b.let(d.b.x * how.rows, "top")
        self.first = d.b.let(d.b.y * how.columns, "first")
        steps = -(-p.depth // self.step)
        self.even = p.depth % self.step == steps % how.parts == 0
        """Whether all values of k of all steps exist."""

    def kernel(self) -> Kernel:
        """The whole kernel."""
        b, p, how = self.b, self.p, self.how
        self.lane = b.let(tirx.floormod(b.thread, WARP), "lane")
        warp = b.let(tirx.floordiv(b.thread, WARP), "warp")
        self.down = b.let(tirx.floordiv(warp, how.across) * (how.matrices_down * 16), "down")
        self.across = b.let(tirx.floormod(warp, how.across) * (how.matrices_across * 8), "across")
        words = [n * _ROW_WORDS for n in (how.rows, how.columns)]
        self.stage_words = sum(words)
        self.left = b.shared("uint32", _STAGES * self.stage_words)
        self.right = self.left + words[0]
        self.sums = b.local(p.element, 4 * how.matrices_down * how.matrices_across, "sums")
        for i in range(4 * how.matrices_down * how.matrices_across):
            self.sums.store(i, tir.const(0, p.element))
        self.own = b.let(tirx.floordiv(b.thread, _PIECES), "own")
        self.piece = b.let(tirx.floormod(b.thread, _PIECES), "piece")
        self.places = [self._places_of(k) for k in (0, 2)]
        pieces = [*self._left_pieces(), *self._right_pieces()]
        steps = -(-p.depth // self.step)
        self._steps(pieces, -(-steps // how.parts))
        self._store()
        right = p.root.operands[1]
        pack = {} if not right.is_constant else {self.region.inputs.index(right): self._packed}
        return self.d.kernel(
            pack=pack,
            in_place=in_place_candidates(self.region),
            macs=p.macs,
            scratch_bytes=split.scratch_bytes(p, how.parts),
            after=split.added(self.region, self.device, p, how.parts),
        )

    def _steps(self, pieces: list[_Piece], steps: int) -> None:
        """Multiply a part of k; the steps after the one that is multiplied are on their way. A
        stage is known by its first word.
        """
        b = self.b
        self.begin = b.let(self.part * steps, "begin")
        for ahead in range(min(_STAGES - 1, steps)):
            stage = tir.const(ahead * self.stage_words)
            self._fetch(pieces, tir.const(ahead), stage)
            self._arrive(pieces, stage)
        if self.direct:
            for _ in range(steps, _STAGES - 1):
                b.emit(commit_copies())
        with b.serial(-(-steps // _STAGES), "turn") as turn:
            first = b.let(turn * _STAGES, "first")
            self.coming = self._heads(pieces, first)
            for number in range(min(_STAGES, steps)):
                step = b.let(first + number, "step")
                with nullcontext() if steps % _STAGES == 0 else b.when(step < steps):
                    self._step(pieces, step, steps, number)

    def _step(self, pieces: list[_Piece], step: Value, steps: int, stage: int) -> None:
        """Multiply the step that lies in a stage, and start to fetch another to the one before."""
        b, before = self.b, tir.const((stage - 1) % _STAGES * self.stage_words)
        if self.direct:
            b.emit(wait_copies(_STAGES - 2))
        b.barrier()
        coming = b.let(step + (_STAGES - 1), "coming")
        with b.when(coming < steps):
            if self.coming:
                self._follow(pieces, stage, before)
            else:
                self._fetch(pieces, coming, before)
        if self.direct:
            b.emit(commit_copies())
        self._multiply(tir.const(stage * self.stage_words))
        if not self.direct:
            with b.when(coming < steps):
                self._arrive(pieces, before)

    def _arrive(self, pieces: list[_Piece], stage: Value) -> None:
        """What was started to be fetched is one group, or goes from registers to its stage."""
        if self.direct:
            self.b.emit(commit_copies())
            return
        for piece in pieces:
            assert piece.own is not None
            with nullcontext() if piece.there is None else self.b.when(piece.there):
                to = piece.shared + self.b.let(stage + piece.to, "to")
                self.b.emit(move(_PIECE, to, piece.own))

    def _packed(self, right: Array) -> Array:
        """A constant right operand -> [image, n, k]."""
        p = self.p
        if p.root.op == "conv":
            return np.ascontiguousarray(
                right.reshape(p.depth, p.groups, p.width).transpose(1, 2, 0)
            )
        return np.ascontiguousarray(right if p.transposed else np.swapaxes(right, -1, -2))

    def _pieces(self, rows: int) -> Iterable[tuple[int, Value, Value | None]]:
        """(rows behind the thread's first, where in shared memory it goes, whether the thread has
        it) of each of a thread's pieces, which is the same of all their rows.
        """
        apart = self.b.threads // _PIECES
        place = self._place(self.own, self.piece)
        for i in range(0, rows, apart):  # a pattern repeats every eight rows
            there = None if i + apart <= rows else self.own + i < rows
            yield i, place + i * _ROW_WORDS, there

    def _place(self, row: Value, piece: Value) -> Value:
        """The word of shared memory where a piece of a row lies."""
        pattern = tirx.bitwise_and(tirx.shift_right(row, tir.const(1)), tir.const(3))
        moved = tirx.bitwise_xor(piece, pattern)
        return self.b.let(row * _ROW_WORDS + moved * (_PIECE // 4), "place")

    def _left_pieces(self) -> Iterable[_Piece]:
        b, p = self.b, self.p
        source, even = self.d.pointers[p.root.operands[0]], p.rows % self.how.rows == 0
        top = b.let(self.top + self.own, "m")
        first = LeftRow(b, p, self.image, top)
        for i, to, there in self._pieces(self.how.rows):
            if p.window is not None:
                row = LeftRow(b, p, self.image, b.let(top + i, "m")) if i else first
                zero, own = tir.const(0), self._own()
                yield _Piece(source, row, zero, 0, None, None, self.left, to, there, own)
            else:
                inside = None if even else top + i < p.rows
                behind = i * p.root.operands[0].type.dims[-1]
                yield self._piece(source, first.base, behind, inside, (self.left, to, there))

    def _right_pieces(self) -> Iterable[_Piece]:
        b, p = self.b, self.p
        right = p.root.operands[1]
        first = b.let(self.first + self.own, "n")
        base = b.let(self._image() + first * p.depth, "base")
        for i, to, there in self._pieces(self.how.columns):
            inside = None if p.width % self.how.columns == 0 else first + i < p.width
            place = (self.right, to, there)
            yield self._piece(self.d.pointers[right], base, i * p.depth, inside, place)

    def _piece(
        self,
        source: Pointer,
        base: Value,
        behind: int,
        inside: Value | None,
        place: tuple[Pointer, Value, Value | None],
    ) -> _Piece:
        """A piece of a row whose values of k follow each other."""
        size = None
        if inside is not None:
            inside = self.b.let(inside, "inside")
            size = self.b.let(tirx.Cast("int32", inside) * _PIECE, "size")
        return _Piece(source, None, base, behind, inside, size, *place, self._own())

    def _own(self) -> Pointer | None:
        return None if self.direct else self.b.local("uint32", _PIECE // 4, "coming")

    def _image(self) -> Value:
        """Where the right operand of the block's image begins."""
        b, p = self.b, self.p
        if p.root.op == "conv":
            return b.let(self.image * (p.width * p.depth), "start")
        return p.right_image(b, self.image)

    def _heads(self, pieces: list[_Piece], step: Value) -> list[Pointer]:
        """Where pieces come from when a turn of stages begins, if all rows follow each other: the
        steps of the turn are then so near that instructions add them for nothing.
        """
        b = self.b
        if not (self.even and self.direct and all(piece.row is None for piece in pieces)):
            return []
        first = (self.begin + step + (_STAGES - 1)) * self.step + self.piece * self.values
        k = b.let(first, "k")
        return [b.again(p.source + (p.base + p.behind + k)) for p in pieces]

    def _follow(self, pieces: list[_Piece], number: int, stage: Value) -> None:
        """Start to copy the pieces of step `number` of the turn to a stage of shared memory."""
        b, behind = self.b, number * self.step * self.mac.itemsize
        for piece, head in zip(pieces, self.coming, strict=True):
            with nullcontext() if piece.there is None else b.when(piece.there):
                to = piece.shared + b.let(stage + piece.to, "to")
                size = tir.const(_PIECE) if piece.size is None else piece.size
                b.emit(copy_async(to, head, size, behind))

    def _fetch(self, pieces: list[_Piece], step: Value, stage: Value) -> None:
        """Start to copy a step's pieces to a stage of shared memory."""
        b, p = self.b, self.p
        k = b.let((self.begin + step) * self.step + self.piece * self.values, "k")
        for piece in pieces:
            with nullcontext() if piece.there is None else b.when(piece.there):
                to = piece.shared + b.let(stage + piece.to, "to")
                if piece.row is not None:
                    self._bring(to, piece, *piece.row.at(k))
                    continue
                exists = k < p.depth
                if piece.inside is not None:
                    exists = tirx.And(piece.inside, exists)
                self._bring(to, piece, piece.base + piece.behind + k, exists)

    def _bring(self, to: Pointer, piece: _Piece, at: Value, exists: Value) -> None:
        """Start to copy a piece; what does not exist is zero, or the padding of bytes."""
        b, p = self.b, self.p
        pad = p.root.int("pad_value") if p.root.op == "conv" and piece.row is not None else 0
        word = tir.const((pad & 0xFF) * 0x01010101, "uint32")
        if piece.own is not None:
            for i in range(_PIECE // 4):
                piece.own.store(i, word)
            with b.when(exists):
                b.emit(move(_PIECE, piece.own, piece.source + at))
            return
        if not pad:
            inside = b.let(tirx.Cast("int32", exists), "inside")
            b.emit(copy_async(to, piece.source + at, inside * _PIECE))
            return
        with b.when(exists):
            b.emit(copy_async(to, piece.source + at, tir.const(_PIECE)))
        with b.otherwise():
            for i in range(_PIECE // 4):
                to.store(i, word)

    def _multiply(self, stage: Value) -> None:
        """Both products along k that a row's four pieces hold."""
        b, how = self.b, self.how
        for left, right in self.places:
            held = [
                self._matrices(self.left + (left + (stage + i * 16 * _ROW_WORDS)))
                for i in range(how.matrices_down)
            ]
            for j in range(0, how.matrices_across, 2):
                both = self._matrices(self.right + (right + (stage + j * 8 * _ROW_WORDS)))
                for i in range(how.matrices_down):
                    for n in (0, 1):
                        at = 4 * (i * how.matrices_across + j + n)
                        b.emit(self.mac.emit(self.sums + at, held[i], both + 2 * n))

    def _places_of(self, k: int) -> tuple[Value, Value]:
        """Where pieces k and k + 1 of a warp's first matrices lie in a stage, of both operands: the
        row that this lane names.
        """
        b, lane = self.b, self.lane
        low, high = tirx.bitwise_and(lane, tir.const(7)), tirx.floordiv(lane, 16)
        middle = tirx.bitwise_and(tirx.floordiv(lane, 8), tir.const(1))
        row = b.let(self.down + tirx.bitwise_and(lane, tir.const(15)), "row")
        column = b.let(self.across + low + high * 8, "row")
        left = self._place(row, b.let(high + k, "piece"))
        right = self._place(column, b.let(middle + k, "piece"))
        return b.let(again(left), "left"), b.let(again(right), "right")

    def _matrices(self, source: Pointer) -> Pointer:
        """Four matrices of 8 x 16 bytes, of which each lane names a row."""
        own = self.b.local("uint32", 4, "matrices")
        self.b.emit(load_matrices(own, source))
        return own

    def _store(self) -> None:
        """Store the sums, two neighbours of each of two rows in a matrix."""
        b, d, p, how = self.b, self.d, self.p, self.how
        f, root = d.writing(), p.root
        width = 1 if f.columns % 2 or p.width % 2 else 2
        for i in range(how.matrices_down):
            for part in (0, 1):
                at = self.top + self.down + i * 16 + part * 8 + tirx.floordiv(self.lane, 4)
                m = b.let(at, "m")
                with b.when(m < p.rows):
                    line = m if root.op == "conv" else b.let(self.image * p.rows + m, "line")
                    row = f.row(line)
                    for j in range(how.matrices_across):
                        start = self.first + self.across + j * 8 + tirx.floormod(self.lane, 4) * 2
                        for e in range(0, 2, width):
                            n = b.let(start + e, "n")
                            sums = 4 * (i * how.matrices_across + j) + 2 * part + e
                            with b.when(n < p.width):
                                self._neighbours(f, row, line, n, [sums + x for x in range(width)])

    def _neighbours(self, f: Fused, row: Row, line: Value, n: Value, sums: list[int]) -> None:
        """Store sums that are neighbours in a row of the output."""
        b, p = self.b, self.p
        column = b.let(self.image * p.width + n) if p.groups > 1 else n
        if self.scratch is not None:
            at = b.let(self.part * p.root.type.size + line * f.columns + column, "at")
            whole = [Vec(self.m, self.sums.load(i), p.element, 1) for i in sums]
            split.put(self.d, self.scratch, at, whole)
            return
        given = [self._sum(i) for i in sums]
        made = self.d.along(f, row, column, len(sums), lambda x: {p.root: given[x]})
        self.d.store(b.let(line * f.columns + column, "at"), made)

    def _sum(self, at: int) -> Vec:
        value = Vec(self.m, self.sums.load(at), self.p.element, 1)
        return self.m.cast(self.m.vec(value.expr), self.p.root.dtype)
