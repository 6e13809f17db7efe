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

_COLUMNS = 48
"""As many have to read the rows before they are worth a copy."""


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
    return weights and steps and rows and problem.width >= _COLUMNS


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
    last = len(offsets) - 1

    def steps(at: Value) -> None:
        rows = [b.let(source.load(at + o, size), "row") for o in offsets]
        for group in range(groups):
            some = [rows[min(group * together + i, last)] for i in range(together)]
            made = of_steps(product, some[0]) if product.parts > 1 else transposed(b, some, k)
            for step, value in enumerate(made):
                to = at * (groups * vector // k) + (step * groups + group) * vector
                target.store(to, value)

    over_steps(b, depth, size, steps)


def over_steps(b: Builder, depth: int, size: int, body: Callable[[Value], None]) -> None:
    """body(first step) for vectors of `size` steps, which are no more than there are; the last one
    ends where they do, so some may be copied twice.
    """
    with b.serial(depth // size, "v") as i:
        body(b.let(i * size, "at"))
    if depth % size:
        body(tir.const(depth - size))


def _size(product: Product) -> int:
    """Elements of a row that are loaded at once: a vector."""
    return product.mac.k * max(product.mac.by_lane, product.together)


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
