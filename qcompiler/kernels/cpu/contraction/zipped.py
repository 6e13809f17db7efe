"""Rows of a left operand -> the same, side by side for every step of k, as instructions take them.

Where an instruction takes any lane of a vector, or the rows of a block, one load then brings the
left operands of several rows: there are registers for tiles of more rows, and fewer loads. Rows are
copied once, for all panels of the right operand.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder, Pointer, Value
from qcompiler.kernels.cpu.contraction.blocking import needs_copy
from qcompiler.kernels.cpu.contraction.operands import Product
from qcompiler.kernels.cpu.contraction.problem import Problem

_COLUMNS = 48
"""As many have to read the rows before they are worth a copy."""


def worth_zipping(problem: Problem, product: Product) -> bool:
    """Are all rows of several vectors, of single pixels, and read by enough columns? Of vector
    products of several k there are so few that the copy takes more instructions than it saves.
    """
    together, k = product.together, product.mac.k
    if product.mac.rows == 1 and k > 1:
        return False
    plain = problem.tap_count == problem.groups == 1 and not needs_copy(problem, product)
    constant = problem.right.is_constant
    vectors = problem.depth % k == 0 and problem.depth >= together * k
    rows = problem.rows * problem.columns > together > 1
    return plain and constant and vectors and rows and problem.width >= _COLUMNS


def zip_rows(
    b: Builder,
    product: Product,
    source: Pointer,
    offsets: Sequence[int],
    target: Pointer,
    depth: int,
) -> None:
    """Copy rows that begin at `offsets` elements, of `depth` elements each: [step][row][k]. The
    last one is repeated until the rows of a step fill vectors.
    """
    k, together = product.mac.k, product.together
    size, groups = together * k, product.lefts(len(offsets))
    last = len(offsets) - 1

    def steps(at: Value) -> None:
        rows = [b.let(source.load(at + o, size), "row") for o in offsets]
        for group in range(groups):
            some = [rows[min(group * together + i, last)] for i in range(together)]
            for step, vector in enumerate(_transposed(b, some, k)):
                target.store(at * (groups * together) + (step * groups + group) * size, vector)

    with b.serial(depth // size, "v") as i:
        steps(b.let(i * size, "at"))
    if depth % size:  # once more what is there, up to the end
        steps(depth - size)


def _transposed(b: Builder, rows: Sequence[Value], k: int) -> list[Value]:
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
