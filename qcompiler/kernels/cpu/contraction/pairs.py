"""Products of blocks whose sums become bytes: both rows of a vector of sums are finished together.

Bytes are a quarter as many vectors as sums, so it takes fewer instructions to part the rows when
they are bytes. What each column is added to or multiplied by is packed for both rows: a vector's
columns, then the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.hardware.products import BlockMac
from qcompiler.ir import Array, Node
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.epilogue import read_beside
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.contraction.blocking import TOGETHER
from qcompiler.kernels.cpu.contraction.operands import Product, bias_of
from qcompiler.kernels.cpu.contraction.problem import Problem
from qcompiler.kernels.region import Region


def paired(region: Region, problem: Problem, product: Product) -> bool:
    """May rows be finished together? Only if the result is bytes, and all that the epilogue reads
    are constants: a number for each column, or one for all.
    """
    bytes_of_sums = product.sums == "int32" and region.output.dtype in ("uint8", "int8")
    same = region.output.shape == problem.root.shape
    others = [n for n in read_beside(region) if n.type.size > 1]
    rows = all(_is_row(n, problem) for n in others)
    return _whole(region, problem, product) and bytes_of_sums and same and rows


def twice(region: Region, problem: Problem, product: Product) -> frozenset[Node]:
    """The constants that are packed for both rows: all that has a number for each column if rows
    are finished together, else what sums begin with.
    """
    if paired(region, problem, product):
        return frozenset(n for n in read_beside(region) if _is_row(n, problem))
    _, bias = bias_of(region)
    if bias is None or not _is_row(bias, problem) or not _whole(region, problem, product):
        return frozenset()
    return frozenset([bias])


def _whole(region: Region, problem: Problem, product: Product) -> bool:
    """Do columns fill vectors, which have two rows?"""
    mac = product.mac
    if not isinstance(mac, BlockMac) or (mac.rows, mac.blocks) != (2, 1):
        return False
    plain = problem.groups == 1 and set(problem.root.operands) <= set(region.inputs)
    return plain and problem.width % mac.width == 0


def _is_row(node: Node, problem: Problem) -> bool:
    width = problem.width
    return node.is_constant and node.type.size == width == node.type.dims[-1] > 1


def doubled(product: Product) -> Callable[[Array], Array]:
    """How constants are packed for both rows."""
    mac = product.mac

    def pack(array: Array) -> Array:
        columns = array.reshape(-1, 1, mac.width)
        return np.ascontiguousarray(np.repeat(columns, mac.rows, axis=1))

    return pack


def together(vectors: int) -> list[int]:
    """Vectors of sums whose bytes are parted at once: those of a whole vector of a row, or less."""
    rest = vectors % (2 * TOGETHER)
    return [2 * TOGETHER] * (vectors // (2 * TOGETHER)) + [w for w in (4, 2, 1) if rest & w]


def part(made: Sequence[Value], columns: int, nth: int) -> Value:
    """Finished bytes of two rows, so many columns of one and of the other in turn, in one vector or
    two of a size -> those of the nth row.
    """
    word = f"uint{8 * columns}"
    words = [tir.reinterpret(v, word) for v in made]
    picked = range(nth, sum(map(tir.lanes_of, words)), 2)
    found = tir.shuffle2(words, list(picked)) if len(words) > 1 else tir.shuffle(words[0], picked)
    return tir.reinterpret(found, tir.dtype_of(made[0]))
