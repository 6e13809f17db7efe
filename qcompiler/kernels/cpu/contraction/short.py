"""A tile of sums whose products are added in short floats first, some steps of k at a time.

Only the short sums are in registers all the while: the float32 ones, twice their size, are read
and written between two sections of k, where LLVM keeps them on the stack if there is no room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Emit the whole sum of one tile -> its float32 sums, row by row. `late`: the last ones are
    joined when they are asked for, each once, in this order.
    """
    return _Tile(b, product, left, right).sums(base, late)


class _Late:
    """Sums that wait in short ones, of which registers hold all, until a row is finished."""

    def __init__(self, joined: Iterator[Value]) -> None:
        self._joined = joined

    def __getitem__(self, index: int) -> Value:
        return next(self._joined)


class _Tile:
    """A tile while it is emitted."""

    def __init__(self, b: Builder, product: Product, left: Left, right: Right) -> None:
        assert isinstance(product.mac, ShortMac)
        self.b, self.product, self.mac = b, product, product.mac
        self.left, self.right, self.apart = left, right, left.step(product)
        count = len(left.offsets) * right.vectors
        self.long = b.registers(product.sums, self.mac.lanes, count, "sum")
        self.short = b.registers(product.left, self.mac.lanes, count, "short")

    def sums(self, base: Value, late: bool) -> Sums:
        """All sections, of all taps in one if they are few enough."""
        b, left = self.b, self.left
        base = b.let(tir.cast(base, "int64"), "base")
        taps = prod(count for count, _ in left.taps)
        if taps * left.depth <= self.mac.steps:
            self.short.fill(0)
            over_taps(b, left.taps, left.depth, base, 0, self._tap)
            if late:
                return _Late(self._joined(self._starts()))
            self._join(self._starts())
        elif not left.taps:
            steps = self.mac.steps
            self._section(base, 0, steps, self._starts())
            if late:
                whole = (left.depth - 1) // steps
                self._loop(base, 0, 1, whole)
                self.short.fill(0)
                here = b.let(base + whole * (steps * self.apart), "at")
                self._add(here, tir.const(whole * steps), left.depth - whole * steps)
                return _Late(self._joined(None))
            self._sections(base, 0, 1)
        else:
            for i, start in enumerate(self._starts() * len(left.offsets)):
                self.long[i] = start
            over_taps(b, left.taps, left.depth, base, 0, self._sections)
        return self.long

    def _starts(self) -> list[Value]:
        """What float32 sums begin with, by vector."""
        right = self.right
        if right.start is None:
            return [tir.const(0, self.long.dtype, self.mac.lanes)] * right.vectors
        return [self.b.let(right.start(v), "start") for v in range(right.vectors)]

    def _tap(self, at: Value, first: Value) -> None:
        self._add(at, first, self.left.depth)

    def _sections(self, at: Value, first: Value, done: int = 0) -> None:
        """One tap: sections of as many steps as short sums may have, and the rest."""
        b, steps = self.b, self.mac.steps
        whole, rest = divmod(self.left.depth, steps)
        self._loop(at, first, done, whole)
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

    def _section(
        self, at: Value, first: Value, steps: int, starts: Sequence[Value] | None = None
    ) -> None:
        self.short.fill(0)
        self._add(at, first, steps)
        self._join(starts)

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

    def _join(self, starts: Sequence[Value] | None) -> None:
        """Add the short sums, as the scales say, to the others, or to what these start with."""
        for i, value in enumerate(self._joined(starts)):
            self.long[i] = value

    def _joined(self, starts: Sequence[Value] | None) -> Iterator[Value]:
        """The same, one after the other."""
        right = self.right
        assert right.scale is not None
        scales = [self.b.let(right.scale(v), "scale") for v in range(right.vectors)]
        again = right.again() if right.again and starts is not None else None
        for i in range(self.short.count):
            v = i % right.vectors
            if again is not None and v == 0:
                begin = next(again)
            if again is not None:
                before = begin(v)
            else:
                before = self.long[i] if starts is None else starts[v]
            yield tir.fma(tir.cast(self.short[i], "float32"), scales[v], before)
