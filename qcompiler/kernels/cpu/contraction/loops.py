"""Lengths cut into pieces, and the loops over those of them that are a task's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tvm import tirx

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Builder, Value
from qcompiler.kernels.cpu.contraction.problem import Batch


@dataclass(frozen=True)
class Cut:
    """A length in pieces of nearly one size: `count` of `size`, then `rest` of one less."""

    length: int
    size: int
    count: int
    rest: int

    @staticmethod
    @lru_cache
    def of(length: int, most: int) -> Cut:
        """As few pieces of at most `most` as there can be."""
        pieces = -(-length // most)
        size = -(-length // pieces)
        rest = pieces * size - length
        return Cut(length, size, pieces - rest, rest)

    @cached_property
    def pieces(self) -> int:
        """All of them."""
        return self.count + self.rest

    @property
    def sizes(self) -> list[int]:
        """Of all pieces, in order."""
        return [self.size] * self.count + [self.size - 1] * self.rest

    def start_of(self, piece: Value) -> Value:
        """Where a piece begins."""
        if not self.rest:
            return piece * self.size
        return piece * self.size - tirx.Max(piece - self.count, tir.const(0))

    def size_of(self, piece: Value) -> Value:
        """How long a piece is."""
        if not self.rest:
            return self.size
        return tirx.Select(piece < self.count, tir.const(self.size), tir.const(self.size - 1))

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """(first piece, pieces, size, where the first begins) of the runs of equal size."""
        yield 0, self.count, self.size, 0
        if self.rest:
            yield self.count, self.rest, self.size - 1, self.count * self.size


def share_of(b: Builder, total: Value, task: Value, tasks: int) -> tuple[Value, Value]:
    """The part of `total` iterations that is a task's: (first, behind the last)."""
    if tasks == 1:
        return 0, total
    if isinstance(total, int) and total % tasks == 0:
        first = b.let(task * (total // tasks), "begin")
        return first, first + total // tasks
    return b.let(task * total // tasks, "begin"), b.let((task + 1) * total // tasks, "end")


@contextmanager
def segment(
    b: Builder, span: tuple[Value, Value], first: Value, count: Value, name: str
) -> Iterator[Value]:
    """A loop over those of `count` iterations from `first` on that lie in a span."""
    low, high = span
    if isinstance(low, int) and isinstance(high, int):
        low, high = max(low, first), min(high, first + count)
    else:
        begin, behind = first, first + count
        if isinstance(first, int) and isinstance(count, int):
            begin, behind = tir.const(first), tir.const(behind)
        low = b.let(tirx.Max(low, begin), "low")
        high = b.let(tirx.Min(high, behind), "high")
    with b.serial(high - low, name, low) as i:
        yield i


def offset_of(b: Builder, image: Value, batch: Batch) -> Value:
    """An image -> the offset of an operand's."""
    if not any(batch.strides):
        return tir.const(0)
    if len(batch.dims) == 1:
        return image * batch.strides[0]
    total: Value = tir.const(0)
    for index, stride in zip(indices(b, image, batch.dims), batch.strides, strict=True):
        total = total + index * stride
    return total
