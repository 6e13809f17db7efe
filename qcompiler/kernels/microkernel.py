"""A tile of sums in registers: rows of the left operand by vectors of the right one, over all of k.

Each multiply-accumulate takes one left value in every lane, or some rows of them, and one vector of
the right operand; `rows * vectors` sums and `vectors` right vectors and one left value are live at
a time. A product of blocks has the sums of several rows in one vector, which `of_row` takes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tvm import tirx

from qcompiler.kernels import tir
from qcompiler.kernels.contraction_operands import Product
from qcompiler.kernels.tir import Builder, Pointer, Registers, Value
from qcompiler.products import BlockMac, VectorMac


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
    """Emit the whole sum of one tile -> its registers, row by row, or so many rows at a time as the
    product multiplies.
    """
    mac, high = product.mac, product.high(len(left.offsets))
    registers = b.registers(product.sums, mac.lanes, high * right.vectors, "sum")
    for v in range(right.vectors):
        zero = tir.const(0, product.sums, mac.lanes)
        start = b.let(_for_rows(product, right.start(v)), "start") if right.start else zero
        for r in range(high):
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


def of_row(
    product: Product, registers: Registers, vectors: int, row: int, some: Iterable[int]
) -> Value:
    """The sums of a row of a tile so many vectors wide, in some of those vectors, end to end."""
    several, nth = divmod(row, product.mac.rows)
    held = [registers[several * vectors + v] for v in some]
    if product.mac.rows > 1:
        held = [tir.shuffle(sums, product.mac.of_row(nth)) for sums in held]
    return tir.concat(held)


def _for_rows(product: Product, value: Value) -> Value:
    """A number for each column -> the same for all rows of a vector of sums."""
    rows = range(product.mac.rows)
    if len(rows) == 1:
        return value
    column = {lane: c for r in rows for c, lane in enumerate(product.mac.of_row(r))}
    return tir.shuffle2([value for _ in rows], [column[i] for i in range(product.mac.lanes)])


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
    for r in range(product.high(len(left.offsets))):
        values = []
        for i, count in enumerate(elements):
            rows = left.offsets[r * mac.rows : (r + 1) * mac.rows]
            words = [left_value(left.pointer, at + (o + i * mac.k), count, mac.k) for o in rows]
            values.append(b.let(_operand(mac, words), "left"))
        for v in range(len(right[0])):
            index = r * len(right[0]) + v
            if len(elements) == 1:
                registers[index] = mac.emit(registers[index], values[0], vectors[0][v])
                continue
            assert isinstance(mac, VectorMac)
            assert mac.pairs is not None
            assert mac.join is not None
            words = mac.pairs(values[0], vectors[0][v])
            for value, others in zip(values[1:], vectors[1:], strict=True):
                words = words + mac.pairs(value, others[v])
            registers[index] = mac.join(registers[index], words)


def _operand(mac: VectorMac | BlockMac, words: list[Value]) -> Value:
    """k neighbours of each row, as one number -> the left operand; a row that is missing, of a tile
    whose rows are no multiple of a block's, is the last one again.
    """
    if isinstance(mac, VectorMac):
        return tir.broadcast(words[0], mac.lanes)
    rows = words + words[-1:] * (mac.rows - len(words))
    return tir.concat(rows * mac.blocks)


def left_value(pointer: Pointer, at: Value, elements: int, k: int) -> Value:
    """`elements` neighbours, zeros up to k of them, as one scalar of their bits."""
    if k == 1:
        return pointer.load(at)
    if elements == k:
        return pointer.load(at, k, f"int{k * tir.bits(pointer.dtype)}")
    size, value, shift = tir.bits(pointer.dtype), None, 0
    word = f"int{k * size}"
    while elements:  # the largest power of two first
        count = 1 << (elements.bit_length() - 1)
        part = tir.cast(pointer.load(at, count, f"uint{count * size}"), word)
        if value is None:
            value = part
        else:
            value = value | tirx.op.shift_left(part, tir.const(shift, word))
        at, elements, shift = at + count, elements - count, shift + count * size
    return value
