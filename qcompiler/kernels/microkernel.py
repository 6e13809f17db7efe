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
class Right:
    """The right operand of a tile: `load(step, vector)` gives one multiply-accumulate's vector.

    `step` counts through all taps. `start`, if any, gives what a vector of sums begins with.
    """

    vectors: int
    load: Callable[[Value, int], Value]
    start: Callable[[int], Value] | None = None


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
            where = b.let(at + k * mac.k, "at")
            _step(b, product, registers, left, where, mac.k, right, b.let(first + k, "step"))
        if whole < steps:
            rest = left.depth - whole * mac.k
            where = b.let(at + whole * mac.k, "at")
            _step(b, product, registers, left, where, rest, right, b.let(first + whole, "step"))

    _over_taps(b, left.taps, steps, base, 0, over_k)
    return registers


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
    right: Right,
    step: Value,
) -> None:
    """One multiply-accumulate for every sum of the tile."""
    mac = product.mac
    vectors = [b.let(right.load(step, v), "right") for v in range(right.vectors)]
    for r, offset in enumerate(left.offsets):
        value = left_value(left.pointer, at + offset, elements, mac.k)
        value = b.let(tir.broadcast(value, mac.lanes), "left")
        for v in range(right.vectors):
            index = r * right.vectors + v
            registers[index] = mac.emit(registers[index], value, vectors[v])


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
