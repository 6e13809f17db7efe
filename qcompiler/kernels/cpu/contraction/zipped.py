"""Rows of a left operand -> the same, side by side for every step of k, as instructions take them.

Where an instruction takes any lane of a vector, or the rows of a block, one load then brings the
left operands of several rows: there are registers for tiles of more rows, and fewer loads. Where
products are had in parts, a vector holds one row's, in the order of these. Rows are copied once,
for all panels of the right operand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qcompiler.hardware.products import ShortMac
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.contraction.microkernel import of_steps
from qcompiler.kernels.cpu.contraction.operands import Product
from qcompiler.kernels.cpu.contraction.problem import Problem

COLUMNS = 48
"""As many have to read the rows before they are worth a copy."""
_STREAMS, _WORD = 4, 64
"""Vectors whose words, of so many bits at most, one instruction stores in turn."""
_IN_PARTS = 1.75
"""Instructions that copy one row's operand of a step, where it has several parts."""
_OTHERS = 4
"""Instructions of a loop that copies some steps, but its loads, stores and shuffles."""


def worth_zipping(problem: Problem, product: Product) -> bool:
    """Do instructions take left operands from whole vectors, are there as many rows and steps of a
    tap, and do enough columns read them? Short sums end where taps do, and so do runs of steps that
    are added in 16 bits: copies of several taps do not keep them apart.
    """
    ends = isinstance(product.mac, ShortMac) or product.steps(problem.depth) % product.run
    if not product.zippable or (ends and problem.tap_count > 1):
        return False
    steps = problem.depth % product.mac.k == 0 and problem.depth >= _size(product)
    rows = problem.rows * problem.columns > product.together
    weights = problem.groups == 1 and problem.right.is_constant
    return weights and steps and rows and problem.width >= COLUMNS


def zip_rows(
    b: Builder,
    product: Product,
    source: Pointer,
    offsets: Sequence[int],
    target: Pointer,
    depth: int,
) -> None:
    """Copy rows that begin at `offsets` elements, of `depth` elements each: [step][row][k], or, of
    a product of several parts, [step][row][part][lane][k / parts]. The last one is repeated until
    the rows of a step fill vectors.
    """
    k, together, vector = product.mac.k, product.together, product.zipped_vector
    size, groups = _size(product), product.lefts(len(offsets))
    last, filled = len(offsets) - 1, groups * together
    interleaved = _interleaves(product, filled)

    def steps(at: Value) -> None:
        rows = [b.let(source.load(at + o, size), "row") for o in offsets]
        if interleaved:
            values = _interleaved(b, [rows[min(i, last)] for i in range(filled)], k)
            for i, value in enumerate(values):
                target.store(at * filled + i * tir.lanes_of(value), value)
            return
        for group in range(groups):
            some = [rows[min(group * together + i, last)] for i in range(together)]
            made = of_steps(product, some[0]) if product.parts > 1 else transposed(b, some, k)
            for step, value in enumerate(made):
                to = at * (groups * vector // k) + (step * groups + group) * vector
                target.store(to, value)

    over_steps(b, depth, size, steps)


def copy_instructions(product: Product, rows: int) -> float:
    """Instructions that copy one step of so many rows, loops among them."""
    if product.parts > 1:
        return _IN_PARTS * rows
    filled = product.lefts(rows) * product.together
    joined = filled * (product.together.bit_length() - 1)
    stored = float(filled)
    if _interleaves(product, filled):
        stored = filled // _STREAMS
        joined = filled * (stored.bit_length() - 1)
    return (rows + joined + stored + _OTHERS) * product.mac.k / _size(product)


def over_steps(b: Builder, depth: int, size: int, body: Callable[[Value], None]) -> None:
    """body(first step) for vectors of `size` steps, which are no more than there are; the last one
    ends where they do, so some may be copied twice.
    """
    with b.serial(depth // size, "v") as i:
        body(b.let(i * size, "at"))
    if depth % size:
        body(tir.const(depth - size))


def _interleaves(product: Product, rows: int) -> bool:
    """Are so many rows, which fill vectors, stored by instructions that take words in turn?"""
    word = rows * product.mac.k * tir.bits(product.left) // _STREAMS
    return product.parts == 1 and rows in (_STREAMS, 2 * _STREAMS, 4 * _STREAMS) and word <= _WORD


def _size(product: Product) -> int:
    """Elements of a row that are loaded at once: a vector."""
    return product.mac.k * max(product.mac.by_lane, product.together)


def _interleaved(b: Builder, rows: Sequence[Value], k: int) -> list[Value]:
    """The same for 4, 8 or 16 rows, some steps in one value, as an instruction stores the words of
    four vectors in turn: words of neighbouring rows are joined until there are four vectors.
    """
    dtype, bits = tir.dtype_of(rows[0]), k * tir.bits(tir.dtype_of(rows[0]))
    words = [tir.reinterpret(row, f"int{bits}") for row in rows]
    count = tir.lanes_of(words[0])
    if len(rows) == _STREAMS:
        order = [row * count + i for i in range(count) for row in range(_STREAMS)]
        return [tir.reinterpret(tir.shuffle2(words, order), dtype)]
    halves = [
        [n for i in range(first, first + count // 2) for n in (i, count + i)]
        for first in (0, count // 2)
    ]
    pairs = list(zip(words[::2], words[1::2], strict=True))
    made = []
    for half in halves:
        joined = [b.let(tir.reinterpret(tir.shuffle2(pair, half), dtype), "pair") for pair in pairs]
        made += _interleaved(b, joined, 2 * k)
    return made


def transposed(b: Builder, rows: Sequence[Value], k: int) -> list[Value]:
    """As many steps' operands of as many rows -> each step's of all rows."""
    dtype = tir.dtype_of(rows[0])
    count, half = len(rows), len(rows) // 2
    words = [tir.reinterpret(row, f"int{k * tir.bits(dtype)}") for row in rows]
    for _ in range(half.bit_length()):
        pairs = list(zip(words[:half], words[half:], strict=True))
        words = [
            b.let(
                tir.shuffle2(pair, [n for i in range(first, first + half) for n in (i, count + i)])
            )
            for pair in pairs
            for first in (0, half)
        ]
    return [tir.reinterpret(v, dtype) for v in words]
