"""Resize regions -> a thread for each pixel and as many channels as one access loads, or for each
element where the last axis is resized. What each output reads along an axis, and its weights, are
computed at compile time and take the place of the constant of scales or sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from tvm import tirx

from qcompiler.errors import Skip
from qcompiler.hardware.gpu import Gpu
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.draft import refuse, too_large
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.cpu.windows.resize import Taps, combined, name_of, taps_of
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.kernels.registry import Kernel, Region, kernel


@kernel("Resize", kind=Gpu)
def gpu_resize(region: Region, device: Gpu) -> Kernel | Skip:
    """Any mode, by scales or sizes that are known."""
    if reason := refuse(region) or too_large(region):
        return reason
    root, found = region.root, taps_of(region)
    assert root is not None
    if isinstance(found, Skip):
        return found
    d, table = GridDraft(name_of(root), region, device), _Table(*found)
    _Resize(d, table).emit()
    return d.kernel(pack={region.inputs.index(table.given): table.packed})


@dataclass(frozen=True)
class _Table:
    """The taps of some axes: for each axis, the first tap's places of all outputs, then the next
    one's, then weights alike. They take the place of the operand `given`.
    """

    given: Node
    taps: dict[int, Taps]

    def packed(self, _: Array) -> Array:
        """As 32-bit words, in elements of `given`."""
        pairs = [(t.index.T, t.weight.view(np.int32).T) for t in self.taps.values()]
        parts = [p.reshape(-1) for pair in pairs for p in pair]
        words = np.concatenate(parts or [np.zeros(1, np.int32)])
        return words.astype(np.int64) if self.given.dtype == "int64" else words

    def first(self, axis: int) -> int:
        """Where the words of an axis begin."""
        return sum(2 * t.index.size for a, t in self.taps.items() if a < axis)


Tap = tuple[Value, Value | None]
"""An index along an axis, and its weight where that may not be 1."""


class _Resize:
    """A kernel while it is written."""

    def __init__(self, d: GridDraft, table: _Table) -> None:
        self.d, self.b, self.m, self.root, self.table = d, d.b, d.m, d.root, table
        self.x = d.root.operands[0]
        self.copies = d.root.str("mode") == "nearest"
        self.last = d.root.type.rank - 1

    def emit(self) -> None:
        """All elements."""
        if self.last in self.table.taps:
            self._elements()
        else:
            self._pixels()

    def _elements(self) -> None:
        d, b = self.d, self.b
        before = d.reading(self.x, whole=True)
        with b.items(self.root.type.size) as item:
            *place, column = indices(b, item, self.root.type.dims)
            rows = self._rows(place)
            total: Vec | None = None
            for tap, own in self._taps(self.last, column):
                for row, weight in rows:
                    flat = b.let(row * self.x.type.dims[-1] + tap, "from")
                    seen = self._weighted(self._weighted(d.at(before, flat), own), weight)
                    total = seen if total is None else total + seen
            assert total is not None
            d.put_at(item, self._made(total))

    def _pixels(self) -> None:
        d, b = self.d, self.b
        before, after = d.reading(self.x), d.writing()
        width = min(d.width(before), d.width(after))
        *pixels, channels = self.root.type.dims
        pieces = channels // width
        with b.items(prod(pixels) * pieces) as item:
            pixel = b.let(tirx.floordiv(item, pieces), "pixel")
            column = b.let(tirx.floormod(item, pieces) * width, "column")
            totals: list[Vec] = []
            for row, weight in self._rows(indices(b, pixel, tuple(pixels))):
                seen = d.along(before, before.row(row), column, width)
                values = [self._weighted(v, weight) for v in seen]
                pairs = zip(totals, values, strict=True)
                totals = [a + v for a, v in pairs] if totals else values
            made = [self._made(v) for v in totals]
            values = d.along(after, after.row(pixel), column, width, lambda i: {self.root: made[i]})
            d.store(b.let(pixel * channels + column, "at"), values)

    def _weighted(self, value: Vec, weight: Value | None) -> Vec:
        if weight is None or self.copies:
            return value
        return self.m.cast(value, "float32") * self.m.vec(weight)

    def _made(self, total: Vec) -> Vec:
        """A sum in the dtype of the output."""
        if not self.copies and "int" in self.root.dtype:
            total = self.m.saturate(total, self.root.dtype)
        return self.m.cast(total, self.root.dtype)

    def _rows(self, place: Sequence[Value]) -> list[Tap]:
        """An output's indices but the last -> the rows of the input that it reads, with weights."""
        options = [
            self._taps(axis, index) if axis in self.table.taps else [(index, None)]
            for axis, index in enumerate(place)
        ]
        found = []
        for flat, weight in combined(options, self.x.type.dims):
            held = None if weight is None else self.b.hold(weight, "weight")
            found.append((self.b.let(flat, "row"), held))
        return found

    def _taps(self, axis: int, index: Value) -> list[Tap]:
        """What an output reads along an axis."""
        taps, first = self.table.taps[axis], self.table.first(axis)
        outputs, count = taps.index.shape
        found = []
        for t in range(count):
            at = self.b.let(index + (first + t * outputs), "tap")
            place = self.b.hold(self._word(at), "source")
            if self.copies:
                found.append((place, None))
            else:
                bits = self._word(at + taps.index.size)
                found.append((place, self.b.hold(tir.reinterpret(bits, "float32"), "own")))
        return found

    def _word(self, at: Value) -> Value:
        pointer = self.d.pointers[self.table.given]
        if self.table.given.dtype == "int64":
            return tir.cast(pointer.load(at), "int32")
        return pointer.view("int32").load(at)
