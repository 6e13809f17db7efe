"""A tile of sums in registers: rows of the left operand by vectors of the right one, over all of k.

Each multiply-accumulate takes one left value in every lane and one vector of the right operand;
`rows * vectors` sums and `vectors` right vectors and one left value are live at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from qcompiler.kernels import tir
from qcompiler.kernels.contraction_operands import Product
from qcompiler.kernels.tir import Builder, Pointer, Registers, Value


@dataclass(frozen=True)
class Left:
    """The left operand of a tile: rows begin at `offsets` elements from a base that varies.

    `taps` are (count, elements) loops around the `depth` neighbouring elements. With `guarded`,
    elements behind the last one may be read (they meet zero weights).
    """

    pointer: Pointer
    offsets: tuple[int, ...]
    taps: tuple[tuple[int, int], ...]
    depth: int
    guarded: bool


@dataclass(frozen=True)
class Leftovers:
    """More to multiply: `count` times, `load(i, vector)` by the left operand at `offset(i)`."""

    count: Value
    offset: Callable[[Value], Value]
    load: Callable[[Value, int], Value]


@dataclass(frozen=True)
class Right:
    """The right operand of a tile: `load(step, vector)` gives one multiply-accumulate's vector.

    `step` counts through all taps. `start`, if any, gives what a vector of sums begins with.
    """

    vectors: int
    load: Callable[[Value, int], Value]
    start: Callable[[int], Value] | None = None
    leftovers: Leftovers | None = None


def sums(b: Builder, product: Product, left: Left, base: Value, right: Right) -> Registers:
    """Emit the whole sum of one tile -> its registers, row by row."""
    mac = product.mac
    registers = b.registers(product.sums, mac.lanes, len(left.offsets) * right.vectors, "sum")
    for v in range(right.vectors):
        zero = tir.const(0, product.sums, mac.lanes)
        start = b.let(right.start(v), "start") if right.start else zero
        for r in range(len(left.offsets)):
            registers[r * right.vectors + v] = start
    steps = product.steps(left.depth)
    whole = steps if left.guarded else left.depth // mac.k

    def over_k(at: Value, first: Value) -> None:
        with b.serial(whole, "k") as k:
            where, step = b.let(at + k * mac.k, "at"), b.let(first + k, "step")
            _step(b, product, registers, left, where, mac.k, _loads(right, step))
        if whole < steps:
            rest = left.depth - whole * mac.k
            where, step = b.let(at + whole * mac.k, "at"), b.let(first + whole, "step")
            _step(b, product, registers, left, where, rest, _loads(right, step))

    _over_taps(b, left.taps, steps, base, 0, over_k)
    if right.leftovers:
        with b.serial(right.leftovers.count, "leftover") as i:
            where = b.let(base + right.leftovers.offset(i), "at")
            loads = [right.leftovers.load(i, v) for v in range(right.vectors)]
            _step(b, product, registers, left, where, mac.k, loads)
    return registers


def _loads(right: Right, step: Value) -> list[Value]:
    return [right.load(step, v) for v in range(right.vectors)]


def _over_taps(
    b: Builder,
    taps: Sequence[tuple[int, int]],
    steps: int,
    at: Value,
    tap: Value,
    body: Callable[[Value, Value], None],
) -> None:
    """Nested loops over taps; `body(left offset, right step)` inside."""
    if not taps:
        body(at, tap * steps)
        return
    count, elements = taps[0]
    with b.serial(count, "tap") as i:
        _over_taps(b, taps[1:], steps, at + i * elements, tap * count + i, body)


def _step(
    b: Builder,
    product: Product,
    registers: Registers,
    left: Left,
    at: Value,
    elements: int,
    right: Sequence[Value],
) -> None:
    """One multiply-accumulate for every sum of the tile."""
    mac = product.mac
    vectors = [b.let(load, "right") for load in right]
    for r, offset in enumerate(left.offsets):
        value = left_value(left.pointer, at + offset, elements, mac.k)
        value = b.let(tir.broadcast(value, mac.lanes), "left")
        for v, vector in enumerate(vectors):
            index = r * len(vectors) + v
            registers[index] = mac.emit(registers[index], value, vector)


def left_value(pointer: Pointer, at: Value, elements: int, k: int) -> Value:
    """`elements` neighbours, zeros up to k of them, as one scalar of their bits."""
    if k == 1:
        return pointer.load(at)
    if elements == k:
        return pointer.load(at, k, f"int{k * tir.bits(pointer.dtype)}")
    size, value, shift = tir.bits(pointer.dtype), None, 0
    while elements:  # the largest power of two first
        count = 1 << (elements.bit_length() - 1)
        part = tir.cast(pointer.load(at, count, f"uint{count * size}"), "int32")
        if value is None:
            value = part
        else:
            value = value | tirx.op.shift_left(part, tir.const(shift))
        at, elements, shift = at + count, elements - count, shift + count * size
    return value
