"""A tile of sums whose products are added in short floats first, some steps of k at a time.

Only the short sums are in registers all the while: those of all sections are read and written
between two of them, where LLVM keeps them on the stack if there is no room. They are float32, twice
as large, scaled back and begin with a bias; or short, too, and scaled when all are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import prod

from qcompiler.hardware.products import ShortMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Value
from qcompiler.kernels.cpu.contraction.microkernel import (
    Left,
    Right,
    Sums,
    lefts_of,
    loads_of,
    multiplied,
    over_taps,
    pieces,
)
from qcompiler.kernels.cpu.contraction.operands import Product


def short_sums(
    b: Builder, product: Product, left: Left, base: Value, right: Right, *, late: bool
) -> Sums:
    """Emit the whole sum of one tile -> its sums, row by row. `late`: the last ones are joined when
    they are asked for, each once, in this order.
    """
    tile = _Tile(b, product, left, right)
    joined = tile.joined(base)
    if late:
        return _Late(joined)
    found = b.registers(product.sums, product.mac.lanes, tile.long.count, "found")
    for i, value in enumerate(joined):
        found[i] = value
    return found


class _Late:
    """Sums that wait in short ones, of which registers hold all, until a row is finished."""

    def __init__(self, joined: Iterator[Value]) -> None:
        self._joined = joined

    def __getitem__(self, index: int) -> Value:
        return next(self._joined)


class _Kept:
    """Sums of the sections so far, on the stack. In registers LLVM would keep some, and spill what
    every step needs.
    """

    def __init__(self, b: Builder, dtype: str, lanes: int, count: int) -> None:
        self.b, self.lanes, self.count = b, lanes, count
        self._memory = self._here = b.stack(dtype, lanes * count, "kept")

    def again(self) -> None:
        """To be called before they are used in another place of the code."""
        self._here = self.b.again(self._memory)

    def __getitem__(self, index: int) -> Value:
        return self._here.load(index * self.lanes, self.lanes)

    def __setitem__(self, index: int, value: Value) -> None:
        self._here.store(index * self.lanes, value)


class _Tile:
    """A tile while it is emitted."""

    def __init__(self, b: Builder, product: Product, left: Left, right: Right) -> None:
        assert isinstance(product.mac, ShortMac)
        self.b, self.product, self.mac = b, product, product.mac
        self.left, self.right, self.apart = left, right, left.step(product)
        count = len(left.offsets) * right.vectors
        self.long = _Kept(b, product.joined, self.mac.lanes, count)
        self.halves = product.joined == "float16"
        self.short = b.registers(product.left, self.mac.lanes, count, "short")

    def joined(self, base: Value) -> Iterator[Value]:
        """All sections, of all taps in one if they are few enough -> every sum, which is joined, as
        the last thing of all, when it is asked for.
        """
        b, left, steps = self.b, self.left, self.mac.steps
        base = b.let(tir.cast(base, "int64"), "base")
        taps = prod(count for count, _ in left.taps)
        if taps * left.depth <= steps:
            self.short.fill(0)
            over_taps(b, left.taps, left.depth, base, 0, self._tap)
            return self._ended(self._sum(first=True))
        whole = (left.depth - 1) // steps
        if left.taps:
            self._begin()
            over_taps(b, left.taps, left.depth, base, 0, self._sections)
            self.long.again()
            return self._ended(self.long[i] for i in range(self.long.count))
        self._section(base, 0, steps, first=True)
        self._loop(base, 0, 1, whole)
        self.short.fill(0)
        here = b.let(base + whole * (steps * self.apart), "at")
        self._add(here, tir.const(whole * steps), left.depth - whole * steps)
        self.long.again()
        return self._ended(self._sum(first=False))

    def _starts(self) -> list[Value]:
        """What float32 sums begin with, by vector."""
        right = self.right
        if right.start is None:
            return [tir.const(0, self.product.sums, self.mac.lanes)] * right.vectors
        return [self.b.let(right.start(v), "start") for v in range(right.vectors)]

    def _begin(self) -> None:
        """What the sums of all sections begin with."""
        zero = tir.const(0, self.product.joined, self.mac.lanes)
        starts = [zero] * self.right.vectors if self.halves else self._starts()
        self.long.again()
        for i, start in enumerate(starts * len(self.left.offsets)):
            self.long[i] = start

    def _tap(self, at: Value, first: Value) -> None:
        self._add(at, first, self.left.depth)

    def _sections(self, at: Value, first: Value) -> None:
        """One tap: sections of as many steps as short sums may have, and the rest."""
        b, steps = self.b, self.mac.steps
        whole, rest = divmod(self.left.depth, steps)
        self._loop(at, first, 0, whole)
        if rest:
            done = whole * steps
            here = b.let(at + done * self.apart, "at")
            self._section(here, b.let(first + done, "step"), rest)

    def _loop(self, at: Value, first: Value, begin: int, end: int) -> None:
        """Whole sections of a tap, from one up to another."""
        b, steps = self.b, self.mac.steps
        with b.serial(end - begin, "section", begin) as i:
            here = b.let(at + i * (steps * self.apart), "at")
            self._section(here, b.let(first + i * steps, "step"), steps)

    def _section(self, at: Value, start: Value, steps: int, *, first: bool = False) -> None:
        """One section, the `first` of all or not."""
        self.short.fill(0)
        self._add(at, start, steps)
        self.long.again()
        for i, value in enumerate(self._sum(first=first)):
            self.long[i] = value

    def _add(self, at: Value, first: Value, steps: int) -> None:
        """Multiply some steps, from the left operand's element `at` on, and add them up."""
        b, unroll = self.b, self.product.unroll
        with b.serial(steps // unroll, "k") as k:
            here = b.let(at + k * (unroll * self.apart), "at")
            self._some(here, b.let(first + k * unroll, "step"), unroll)
        done = steps - steps % unroll
        for piece in pieces([1] * (steps % unroll), self.product):
            here = b.let(at + done * self.apart, "at")
            self._some(here, b.let(first + done, "step"), len(piece))
            done += len(piece)

    def _some(self, at: Value, first: Value, count: int) -> None:
        if self.right.beside:
            self.right.beside(first)
        left = self.left
        if left.again is not None:
            left, at = replace(left, pointer=left.again(self.b, left.pointer + at)), 0
        words = lefts_of(self.b, self.product, left, at, [1] * count)
        for i, word in enumerate(words):
            loads = [loads_of(self.right, first + i)]
            multiplied(self.b, self.product, self.short, [word], loads)

    def _sum(self, *, first: bool) -> Iterator[Value]:
        """The short sums with those of the sections before, or with what all begin with; one after
        the other.
        """
        if not self.halves:
            short = (self.short[i] for i in range(self.short.count))
            yield from self._scaled(short, first=first)
            return
        for i in range(self.short.count):
            yield self.short[i] if first else self.long[i] + self.short[i]

    def _ended(self, total: Iterator[Value]) -> Iterator[Value]:
        """Sums of all sections -> the tile's."""
        return self._scaled(total, first=True) if self.halves else total

    def _scaled(self, values: Iterable[Value], *, first: bool) -> Iterator[Value]:
        """Values as the scales say, added to what the tile's sums begin with, or have so far."""
        right = self.right
        assert right.scale is not None
        starts = self._starts() if first else []
        scales = [self.b.let(right.scale(v), "scale") for v in range(right.vectors)]
        again = right.again() if right.again and first else None
        for i, value in enumerate(values):
            v = i % right.vectors
            if again is not None and v == 0:
                begin = next(again)
            if again is not None:
                before = begin(v)
            else:
                before = starts[v] if first else self.long[i]
            yield tir.fma(tir.cast(value, self.product.sums), scales[v], before)
