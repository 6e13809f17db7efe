"""matmul_narrow of many rows -> tiles of floats (tiled.py), whose right operand comes as codes of
2, 4 or 8 bits, and is decoded on its way from registers to shared memory.

Codes are packed along n: a thread brings those of four columns at once, in one access.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.ir import Array
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import in_place_candidates
from qcompiler.kernels.cpu.code.tir import Pointer, Value
from qcompiler.kernels.gpu.code.device import move
from qcompiler.kernels.gpu.contraction.narrow import Narrow, narrow_of
from qcompiler.kernels.gpu.contraction.problem import Problem
from qcompiler.kernels.gpu.contraction.tiled import STEP, TILES, Tile, Tiled, Unit, seconds
from qcompiler.kernels.registry import Candidate, Kernel, Region, candidates

_FOUR = 4
"""Columns that a thread decodes."""
_FEW = 4
"""Rows for which it is not worth a tile."""


@candidates("matmul_narrow", kind=Gpu)
def gpu_narrow_tiled(region: Region, device: Gpu) -> Iterable[Candidate] | Skip:
    """Tiles of several sizes."""
    n = narrow_of(region)
    if isinstance(n, Skip):
        return n
    if n.width % _FOUR:
        return Skip("columns that do not come four at a time")
    if n.rows < _FEW:
        return Skip("few rows")
    p = Problem(n.root, 1, n.rows, n.depth, n.width, ())
    return [
        Candidate(tile, seconds(p, tile, region, device), partial(_made, n, device, p, tile))
        for tile in TILES
    ]


def _made(n: Narrow, device: Gpu, p: Problem, tile: Tile) -> Kernel:
    return _NarrowTiled(n, device, p, tile).kernel()


@dataclass(frozen=True)
class _Codes(Unit):
    """Four neighbours' codes, and their zero points and scales."""

    of_group: tuple[Pointer, ...] = ()


class _NarrowTiled(Tiled):
    """A kernel while it is written."""

    def __init__(self, n: Narrow, device: Gpu, p: Problem, tile: Tile) -> None:
        super().__init__(n.region, device, p, tile)
        self.n = n
        self.code_bytes = _FOUR * n.bits // 8

    def kernel(self) -> Kernel:
        """The whole kernel."""
        self.emit()
        pack = self.n.packers(self._packed)
        in_place = in_place_candidates(self.region)
        return self.d.kernel(pack=pack, in_place=in_place, macs=self.p.macs)

    def _packed(self, codes: Array) -> Array:
        """Codes [K, N] -> those of neighbours along n in bytes, the first in the lowest bits."""
        each = 8 // self.n.bits
        split = codes.reshape(self.n.depth, -1, each).astype(np.uint8)
        shifts = (np.arange(each) * self.n.bits).astype(np.uint8)
        return np.ascontiguousarray(np.bitwise_or.reduce(split << shifts, axis=2))

    def _right_units(self) -> list[Unit]:
        """Four columns of a row of a step each."""
        b, n = self.b, self.n
        found: list[Unit] = []
        for made, line, first in self._units_of(
            self.right, self.shared_b, STEP, self.tile.columns, _FOUR
        ):
            column = b.let(self.first + first, "n")

            def place(
                step: Value, column: Value = column, line: Value = line
            ) -> tuple[Value, Value]:
                k = b.let(step * STEP + line, "k")
                at = b.let(k * n.width + column, "at")
                return at, tirx.And(column < n.width, k < n.depth)

            to = b.let(line * self.tile.columns + first, "to")
            unit = made(place, to, 1, self.b_size)
            own = b.local({1: "uint8", 2: "uint16", 4: "int32"}[self.code_bytes], 1, "codes")
            of_group = tuple(b.local("float32", _FOUR, "of_group") for _ in range(2))
            fields = {**unit.__dict__, "own": own}
            found.append(_Codes(**fields, of_group=of_group))
        return found

    def _fetch(self, units: list[Unit], step: Value) -> None:
        """Start to load a step's units; codes that do not exist have scale 0."""
        super()._fetch([u for u in units if not isinstance(u, _Codes)], step)
        b, d, n = self.b, self.d, self.n
        codes, scale, zero = (d.pointers[i] for i in n.root.operands[1:])
        for unit in units:
            if not isinstance(unit, _Codes):
                continue
            with nullcontext() if unit.there is None else b.when(unit.there):
                at, exists = unit.place(step)
                with b.when(exists):
                    from_codes = codes + b.let(tirx.floordiv(at * n.bits, 8), "codes_at")
                    b.emit(move(self.code_bytes, unit.own, from_codes))
                    group = tirx.floordiv(tirx.floordiv(at, n.width), n.group)
                    column = tirx.floormod(at, n.width)
                    of = b.let(group * n.width + column, "of")
                    for own, source in zip(unit.of_group, (zero, scale), strict=True):
                        b.emit(move(4 * _FOUR, own, source + of))
                with b.otherwise():
                    unit.own.store(0, tir.const(0, unit.own.dtype))
                    for own in unit.of_group:
                        for i in range(_FOUR):
                            own.store(i, tir.const(0, "float32"))

    def _put(self, units: list[Unit], half: Value) -> None:
        """Store what has come to a half of shared memory, codes as floats."""
        super()._put([u for u in units if not isinstance(u, _Codes)], half)
        b = self.b
        for unit in units:
            if not isinstance(unit, _Codes):
                continue
            zero, scale = unit.of_group
            with nullcontext() if unit.there is None else b.when(unit.there):
                word = b.hold(tir.cast(unit.own.load(0), "int32"), "word")
                made = b.local("float32", _FOUR, "decoded")
                for i in range(_FOUR):
                    value = (self.n.decoded(word, i) - zero.load(i)) * scale.load(i)
                    made.store(i, value)
                to = b.let(half * unit.size + unit.to, "to")
                b.emit(move(4 * _FOUR, unit.shared + to, made))
