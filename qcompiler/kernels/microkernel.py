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
    `beside(step)`, if any, is emitted with every step: to ask for what comes later.
    """

    vectors: int
    load: Callable[[Value, int], Value]
    start: Callable[[int], Value] | None = None
    leftovers: Leftovers | None = None
    beside: Callable[[Value], None] | None = None


def sums(b: Builder, product: Product, left: Left, base: Value, right: Right) -> Registers:
    """Emit the whole sum of one tile -> its registers, row by row."""
    mac = product.mac
    registers = b.registers(product.sums, mac.lanes, len(left.offsets) * right.vectors, "sum")
    for v in range(right.vectors):
        zero = tir.const(0, product.sums, mac.lanes)
        start = b.let(right.start(v), "start") if right.start else zero
        for r in range(len(left.offsets)):
            registers[r * right.vectors + v] = start
    # 64 bits: of a sum of 32 LLVM cannot always prove that it does not overflow, and then gives
    # every row an address of its own, loads all of them first, and spills the sums.
    base = b.let(tir.cast(base, "int64"), "base")
    steps, run = product.steps(left.depth), product.run
    whole = steps if left.guarded else left.depth // mac.k

    def some(at: Value, step: Value, elements: Sequence[int]) -> None:
        loads = [_loads(right, step + i) for i in range(len(elements))]
        _steps(b, product, registers, left, at, elements, loads)

    def over_k(at: Value, first: Value) -> None:
        with b.serial(whole // run, "k") as k:
            where, step = b.let(at + k * (run * mac.k), "at"), b.let(first + k * run, "step")
            if right.beside:
                right.beside(step)
            some(where, step, [mac.k] * run)
        rest = left.depth - whole * mac.k
        more = [mac.k] * (whole % run) + [rest] * (whole < steps)
        for i, elements in enumerate(more, whole - whole % run):
            some(b.let(at + i * mac.k, "at"), b.let(first + i, "step"), [elements])

    _over_taps(b, left.taps, steps, base, 0, over_k)
    if right.leftovers:
        with b.serial(right.leftovers.count, "leftover") as i:
            where = b.let(base + right.leftovers.offset(i), "at")
            loads = [right.leftovers.load(i, v) for v in range(right.vectors)]
            _steps(b, product, registers, left, where, [mac.k], [loads])
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


def _steps(
    b: Builder,
    product: Product,
    registers: Registers,
    left: Left,
    at: Value,
    elements: Sequence[int],
    right: Sequence[Sequence[Value]],
) -> None:
    """One multiply-accumulate for every sum of the tile; or several, added in 16 bits first."""
    mac = product.mac
    vectors = [[b.let(load, "right") for load in loads] for loads in right]
    for r, offset in enumerate(left.offsets):
        values = []
        for i, count in enumerate(elements):
            value = left_value(left.pointer, at + (offset + i * mac.k), count, mac.k)
            values.append(b.let(tir.broadcast(value, mac.lanes), "left"))
        for v in range(len(right[0])):
            index = r * len(right[0]) + v
            if len(elements) == 1:
                registers[index] = mac.emit(registers[index], values[0], vectors[0][v])
                continue
            assert mac.pairs is not None
            assert mac.join is not None
            words = mac.pairs(values[0], vectors[0][v])
            for value, others in zip(values[1:], vectors[1:], strict=True):
                words = words + mac.pairs(value, others[v])
            registers[index] = mac.join(registers[index], words)


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
