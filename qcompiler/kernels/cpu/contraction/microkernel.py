"""A tile of sums in registers: rows of the left operand by vectors of the right one, over all of k.

Each multiply-accumulate takes one left value in every lane, or some rows of them, and one vector of
the right operand; `rows * vectors` sums and `vectors` right vectors and one left value are live at
a time. Where instructions take a lane of a vector for the left value, each row's are loaded a
vector at a time, for several steps. A product of blocks has the sums of several rows in one vector,
which `of_row` takes apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from tvm import tirx

from qcompiler.hardware.products import BlockMac, VectorMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Registers, Value
from qcompiler.kernels.cpu.contraction.operands import Product

_WORD = 64


@dataclass(frozen=True)
class Left:
    """The left operand of a tile: rows begin at `offsets` elements from a base that varies.

    `taps` are (count, elements) loops around the `depth` neighbouring elements. With `guarded`,
    elements behind the last one may be read (they meet zero weights). `zipped`: the rows' operands
    for a step lie side by side, filled up to whole vectors, and `offsets` only counts the rows.
    `steps` is how many times k elements there are, where only a run knows; then they are `guarded`,
    and there are no taps.
    """

    pointer: Pointer
    offsets: tuple[int, ...]
    taps: tuple[tuple[int, int], ...]
    depth: int
    guarded: bool
    zipped: bool = False
    steps: Value | None = None
    again: Callable[[Builder, Pointer], Pointer] | None = None
    """Makes a pointer of another once an iteration (the intrinsic "again")."""

    def high(self, product: Product) -> int:
        """Multiply-accumulates for all rows."""
        return product.high(len(self.offsets))

    def step(self, product: Product) -> int:
        """Elements from one step's operand to the next one's."""
        if self.zipped:
            return product.lefts(len(self.offsets)) * product.zipped_vector
        return product.mac.k


@dataclass(frozen=True)
class Leftovers:
    """More to multiply: `count` times, `load(i, vector)` by the left operand at `offset(i)`."""

    count: Value
    offset: Callable[[Value], Value]
    load: Callable[[Value, int], Value]


@dataclass(frozen=True)
class Right:
    """The right operand of a tile: `load(step, vector)` gives one multiply-accumulate's vector.

    `step` counts through all taps. `start`, if any, gives what a vector of sums begins with, and
    `scale`, if any, what a vector of short sums is multiplied by.
    `again`, if any, gives for one row after the other what `start` gives, loaded once more.
    `beside(step)`, if any, is emitted with every step: to prefetch what comes later. `column` is
    its first one, `panel` where it lies if the next one follows it.
    """

    vectors: int
    load: Callable[[Value, int], Value]
    start: Callable[[int], Value] | None = None
    leftovers: Leftovers | None = None
    beside: Callable[[Value], None] | None = None
    column: Value = 0
    panel: Pointer | None = None
    scale: Callable[[int], Value] | None = None
    again: Callable[[], Iterator[Callable[[int], Value]]] | None = None


def sums(b: Builder, product: Product, left: Left, base: Value, right: Right) -> Registers:
    """Emit the whole sum of one tile -> its registers, row by row, or so many rows at a time as the
    product multiplies.
    """
    mac, high, apart = product.mac, left.high(product), left.step(product)
    registers = b.registers(product.sums, mac.lanes, high * right.vectors, "sum")
    if right.again is not None:
        for r, begin in zip(range(high), right.again(), strict=False):
            for v in range(right.vectors):
                registers[r * right.vectors + v] = begin(v)
    for v in range(right.vectors) if right.again is None else ():
        zero = tir.const(0, product.sums, mac.lanes)
        start = b.let(for_rows(product, right.start(v)), "start") if right.start else zero
        for r in range(high):
            registers[r * right.vectors + v] = start
    # 64 bits: of a sum of 32 LLVM cannot always prove that it does not overflow, and then gives
    # every row an address of its own, loads all of them first, and spills the sums.
    base = b.let(tir.cast(base, "int64"), "base")
    steps, run = product.steps(left.depth), product.run
    unroll = product.unroll
    whole = steps if left.guarded else left.depth // mac.k
    if left.steps is not None:
        whole = steps = left.steps

    def some(words: Sequence[Sequence[Value]], step: Value) -> None:
        loads = [loads_of(right, step + i) for i in range(len(words))]
        multiplied(b, product, registers, words, loads)

    def over_rest(at: Value) -> None:
        done = b.let(whole - whole % unroll, "done")
        with b.serial(whole - done, "k", done) as k:
            some(list(lefts_of(b, product, left, b.let(at + k * apart, "at"), [mac.k])), k)

    def over_k(at: Value, first: Value) -> None:
        with b.serial(whole // unroll, "k") as k:
            where, step = b.let(at + k * (unroll * apart), "at"), b.let(first + k * unroll, "step")
            if right.beside:
                right.beside(step)
            here = left
            if left.again is not None:
                here, where = replace(left, pointer=left.again(b, left.pointer + where)), 0
            words = lefts_of(b, product, here, where, [mac.k] * unroll)
            for i in range(0, unroll, run):
                some(list(islice(words, run)), step + i)
        if left.steps is not None:
            if unroll > 1:
                over_rest(at)
            return
        rest = left.depth - whole * mac.k
        more = [mac.k] * (whole % unroll) + [rest] * (whole < steps)
        done = whole - whole % unroll
        for piece in pieces(more, product):
            words = lefts_of(b, product, left, b.let(at + done * apart, "at"), piece)
            for i, word in enumerate(words):
                some([word], b.let(first + (done + i), "step"))
            done += len(piece)

    over_taps(b, left.taps, steps, base, 0, over_k)
    if right.leftovers:
        with b.serial(right.leftovers.count, "leftover") as i:
            where = b.let(base + right.leftovers.offset(i) * (apart // mac.k), "at")
            loads = [right.leftovers.load(i, v) for v in range(right.vectors)]
            words = lefts_of(b, product, left, where, [mac.k])
            multiplied(b, product, registers, list(words), [loads])
    return registers


class Sums(Protocol):
    """Vectors of sums of a tile, row by row."""

    def __getitem__(self, index: int) -> Value:
        """The nth of them."""


def of_row(product: Product, registers: Sums, vectors: int, row: int, some: Iterable[int]) -> Value:
    """The sums of a row of a tile so many vectors wide, in some of those vectors, end to end."""
    mac = product.mac
    several, nth = divmod(row, mac.rows)
    held = [registers[several * vectors + v] for v in some]
    if not isinstance(mac, BlockMac):
        return tir.concat(held)
    word = mac.columns * tir.bits(product.sums)
    if mac.blocks > 1 or word > _WORD or len(held) % 2:
        return tir.concat([tir.shuffle(sums, mac.of_row(nth)) for sums in held])
    # LLVM moves halves of vectors by one instruction if they are words, else by two.
    words = [tir.reinterpret(sums, f"int{word}") for sums in held]
    pairs = [tir.shuffle2(words[i : i + 2], [nth, mac.rows + nth]) for i in range(0, len(held), 2)]
    return tir.concat([tir.reinterpret(pair, product.sums) for pair in pairs])


def for_rows(product: Product, value: Value) -> Value:
    """A number for each column -> the same for all rows of a vector of sums, unless it is that."""
    mac = product.mac
    if not isinstance(mac, BlockMac) or tir.lanes_of(value) == mac.lanes:
        return value
    rows = range(mac.rows)
    column = {lane: c for r in rows for c, lane in enumerate(mac.of_row(r))}
    return tir.shuffle2([value for _ in rows], [column[i] for i in range(mac.lanes)])


def loads_of(right: Right, step: Value) -> list[Value]:
    """A step's vectors of the right operand."""
    return [right.load(step, v) for v in range(right.vectors)]


def over_taps(
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
        over_taps(b, taps[1:], steps, at + i * elements, tap * count + i, body)


def pieces(elements: Sequence[int], product: Product) -> list[list[int]]:
    """Steps of so many elements each, fewer than an iteration's -> those whose left operands are
    loaded at once, the most first; a step of less than k elements is alone.
    """
    whole = sum(e == product.mac.k for e in elements) if product.mac.by_lane > 1 else 0
    sizes = [1 << i for i in reversed(range(whole.bit_length())) if whole >> i & 1]
    return [[product.mac.k] * size for size in sizes] + [[e] for e in elements[whole:]]


def lefts_of(
    b: Builder, product: Product, left: Left, at: Value, elements: Sequence[int]
) -> Iterator[list[Value]]:
    """What some steps multiply by, each so many elements: for every step the left operand of each
    row, or of each block of rows. Loaded when it is asked for, vectors for several steps with the
    first of them, or, where a lane is taken from memory by itself, wherever it stands: LLVM spills
    sums for operands of steps that are loaded together, and need not be.
    """
    mac, rows = product.mac, product.mac.rows
    if left.zipped:
        for i in range(len(elements)):
            yield _zipped(b, product, left, at + i * left.step(product))
        return
    groups = [left.offsets[i : i + rows] for i in range(0, len(left.offsets), rows)]
    for first in range(0, len(elements), mac.by_lane):
        some, where = elements[first : first + mac.by_lane], at + first * mac.k
        if len(some) > 1:
            words = [_vectors(b, product, left.pointer, where, g, len(some)) for g in groups]
            yield from map(list, zip(*words, strict=True))
            continue
        words = [[left_value(left.pointer, where + o, some[0], mac.k) for o in g] for g in groups]
        yield [_operand(product, w) for w in words]


def _zipped(b: Builder, product: Product, left: Left, at: Value) -> list[Value]:
    """A step's left operands of all rows, which lie side by side."""
    mac, count, size = product.mac, len(left.offsets), product.zipped_vector
    loads = [
        b.let(left.pointer.load(at + i * size, size), "rows") for i in range(product.lefts(count))
    ]
    if mac.rows > 1 or product.parts > 1:
        return loads
    words = [tir.reinterpret(v, _word(product, left.pointer)) for v in loads]
    places = (divmod(row, product.together) for row in range(count))
    return [_operand(product, [tir.shuffle(words[i], [lane])]) for i, lane in places]


def _word(product: Product, pointer: Pointer) -> str:
    """The dtype of one step's left operand of a row, in one number."""
    k = product.mac.k
    return f"int{k * tir.bits(pointer.dtype)}" if k > 1 else pointer.dtype


def _vectors(
    b: Builder, product: Product, pointer: Pointer, at: Value, rows: Sequence[int], steps: int
) -> list[Value]:
    """A row, or a block of rows, from an element on -> the left operands of some steps, taken from
    vectors that hold all of them.
    """
    mac = product.mac
    loads = [b.let(pointer.load(at + o, steps * mac.k), "row") for o in dict.fromkeys(rows)]
    if product.parts > 1:
        return of_steps(product, loads[0])
    wide = [tir.reinterpret(v, _word(product, pointer)) for v in loads]
    return [_operand(product, [tir.shuffle(v, [i]) for v in wide]) for i in range(steps)]


def of_steps(product: Product, row: Value) -> list[Value]:
    """A vector, or less, of a row, for a product of several parts -> each step's left operand."""
    order, k = _in_parts(product), product.mac.k
    elements = tir.lanes_of(row)
    whole = [row] * (len(order) // elements)  # TVM's shuffles give no more than they take
    return [tir.shuffle2(whole, [i + n for n in order]) for i in range(0, elements, k)]


def _in_parts(product: Product) -> list[int]:
    """Which of k neighbours stands where in a left operand of several parts."""
    parts, lanes = product.parts, range(product.mac.lanes)
    return [n for p in range(parts) for _ in lanes for n in range(p, product.mac.k, parts)]


def multiplied(
    b: Builder,
    product: Product,
    registers: Registers,
    lefts: Sequence[Sequence[Value]],
    right: Sequence[Sequence[Value]],
) -> None:
    """One multiply-accumulate for every sum of the tile; or several, added in 16 bits first."""
    mac = product.mac
    vectors = [[b.let(load, "right") for load in loads] for loads in right]
    for r in range(len(lefts[0])):
        values = [b.let(step[r], "left") for step in lefts]
        for v in range(len(right[0])):
            index = r * len(right[0]) + v
            if not product.leftovers:
                registers[index] = mac.emit(registers[index], values[0], vectors[0][v])
                continue
            assert isinstance(mac, VectorMac)
            assert mac.pairs is not None
            assert mac.join is not None
            words = mac.pairs(values[0], vectors[0][v])
            for value, others in zip(values[1:], vectors[1:], strict=True):
                words = words + mac.pairs(value, others[v])
            registers[index] = mac.join(registers[index], words)


def _operand(product: Product, words: list[Value]) -> Value:
    """k neighbours of each row, as one number -> the left operand; a row that is missing, of a tile
    whose rows are no multiple of a block's, is the last one again.
    """
    mac = product.mac
    if mac.rows == 1:
        value = tir.broadcast(words[0], mac.lanes)
        if product.parts > 1:
            return tir.shuffle(tir.reinterpret(value, product.left), _in_parts(product))
        return value
    assert isinstance(mac, BlockMac)
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
