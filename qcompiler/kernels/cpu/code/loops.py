"""The loops that all kernels use: vectors along a row, rows shared among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx

from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Value


def tasks(device: Cpu, nanoseconds: float, parts: int) -> int:
    """An estimate of one core's time, and the parts that work can be divided into -> number of
    threads to use.
    """
    return 1 if nanoseconds < device.core.launch_ns else max(1, min(device.threads, parts))


def shared_seconds(device: Cpu, nanoseconds: float, count: int) -> float:
    """One core's time, and the tasks that share it -> predicted seconds; sharing work of just
    `launch_ns` gains nothing.
    """
    return 1e-9 * (nanoseconds / count + device.core.launch_ns * (1 - 1 / count))


def sweep(
    b: Builder, length: int, lanes: int, body: Callable[[Value, int], None], *, start: Value = 0
) -> None:
    """Call body(offset, number of valid lanes) for every vector of a row: a loop of full vectors,
    then the rest. Offsets begin at `start`."""
    full = length // lanes
    if full:
        with b.serial(full, "v") as i:
            body(b.let(i * lanes + start), lanes)
    if length % lanes:
        body(b.let(start + full * lanes), length % lanes)


@contextmanager
def share(b: Builder, count: int, total: Value) -> Iterator[tuple[Value, Value]]:
    """Split `total` iterations among `count` tasks -> this task's first, and their number."""
    with b.parallel(count) as task:
        yield part(b, task, count, total)


def part(b: Builder, task: Value, count: int, total: Value) -> tuple[Value, Value]:
    """A task's share of `total` iterations: the first, and their number."""
    if count == 1:
        return tir.const(0), tir.const(total) if isinstance(total, int) else total
    if not isinstance(total, int):
        first = b.let(task * total // count, "first")
        return first, (task + 1) * total // count - first
    each, more = divmod(total, count)
    first = b.let(task * each + tirx.Min(task, tir.const(more)), "first")
    iterations = tirx.Select(task < more, tir.const(each + 1), tir.const(each)) if more else each
    return first, iterations


def indices(b: Builder, flat: Value, dims: tuple[Value, ...]) -> list[Value]:
    """A flat index -> an index for each dimension."""
    found = []
    for size in reversed(dims[1:]):
        flat, place = divided(b, flat, size)
        found.append(place)
    return [flat, *reversed(found)] if dims else []


def divided(b: Builder, index: Value, size: Value) -> tuple[Value, Value]:
    """An index, 0 or more -> how many whole sizes it holds, and the rest."""
    if isinstance(size, int):
        rest = b.let(tirx.floormod(index, size))
        return b.let(tirx.floordiv(index, size)), rest
    whole = b.hold(tirx.truncdiv(index, size), "whole")  # nothing is below 0
    return whole, b.let(index - whole * size, "rest")


def slots(
    b: Builder, length: int, lanes: int, count: int, body: Callable[[Value, int, int], None]
) -> None:
    """`sweep` for sums: body(offset, number of valid lanes, slot); neighbours have other slots."""
    group = lanes * count
    whole = length // group
    if whole:
        with b.serial(whole, "v") as i:
            for slot in range(count):
                body(b.let(i * group + slot * lanes), lanes, slot)
    for slot, at in enumerate(range(whole * group, length, lanes)):
        body(tir.const(at), min(lanes, length - at), slot % count)


def slots_until(
    b: Builder, vectors: Value, lanes: int, count: int, body: Callable[[Value, int, int], None]
) -> None:
    """The same for so many whole vectors as only a run knows."""
    done = b.let(vectors - vectors % count, "done")
    with b.serial(vectors // count, "v") as i:
        for slot in range(count):
            body(b.let((i * count + slot) * lanes), lanes, slot)
    if count > 1:
        with b.serial(vectors - done, "v", done) as i:
            body(b.let(i * lanes), lanes, 0)


def across(b: Builder, value: Value, join: Callable[[Value, Value], Value]) -> Value:
    """Reduce all lanes of a vector to one number, halves with halves."""
    lanes = tir.lanes_of(value)
    value = b.let(value, "whole")
    while lanes > 1:
        lanes //= 2
        low = tir.shuffle(value, range(lanes))
        high = tir.shuffle(value, range(lanes, 2 * lanes))
        value = b.let(join(low, high), "half")
    return value


def up(b: Builder, total: Value, size: int) -> Value:
    """How many pieces of a size hold a number that is known at run time."""
    return total if size == 1 else b.let((total + (size - 1)) // size, "pieces")


def first_of(dims: Sequence[int]) -> int:
    """A shape's first dimension of more than one position; the last if there is none."""
    return next((a for a, n in enumerate(dims) if n > 1), len(dims) - 1)


def transposed(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """n vectors of n lanes -> their transpose, by log2(n) rounds of two-vector shuffles."""
    rows, n = list(rows), len(rows)
    distance = 1
    while distance < n:
        low = [j if not j & distance else n + j - distance for j in range(n)]
        high = [j + distance if not j & distance else n + j for j in range(n)]
        for i in range(n):
            if i & distance:
                continue
            pair = (rows[i], rows[i + distance])
            rows[i] = b.let(tir.shuffle2(pair, low), "t")
            rows[i + distance] = b.let(tir.shuffle2(pair, high), "t")
        distance *= 2
    return rows
