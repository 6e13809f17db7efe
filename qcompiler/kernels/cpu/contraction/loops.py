"""Turns of loops that tasks and runs of equal pieces cut across."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.loops import indices
from qcompiler.kernels.cpu.code.tir import Builder, Value


def share_of(b: Builder, total: int, task: Value, tasks: int) -> tuple[Value, Value]:
    """The part of `total` turns that is a task's: (first, behind the last)."""
    if tasks == 1:
        return 0, total
    if total % tasks == 0:
        first = b.let(task * (total // tasks), "begin")
        return first, first + total // tasks
    return b.let(task * total // tasks, "begin"), b.let((task + 1) * total // tasks, "end")


@contextmanager
def segment(
    b: Builder, span: tuple[Value, Value], first: int, count: int, name: str
) -> Iterator[Value]:
    """A loop over those of `count` turns from `first` on that lie in a span."""
    low, high = span
    if isinstance(low, int) and isinstance(high, int):
        low, high = max(low, first), min(high, first + count)
    else:
        low = b.let(tirx.Max(low, tir.const(first)), "low")
        high = b.let(tirx.Min(high, tir.const(first + count)), "high")
    with b.serial(high - low, name, low) as i:
        yield i


def offset_of(b: Builder, flat: Value, dims: tuple[int, ...], strides: tuple[int, ...]) -> Value:
    """A flat index over dims -> the offset that strides give it."""
    moving = [(d, s) for d, s in zip(dims, strides, strict=True)]
    if not any(s for _, s in moving):
        return tir.const(0)
    if len(moving) == 1:
        return flat * moving[0][1]
    total: Value = tir.const(0)
    for index, (_, stride) in zip(indices(b, flat, dims), moving, strict=True):
        total = total + index * stride
    return total
