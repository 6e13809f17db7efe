"""Helpers of type rules: axes, known values, and checks of shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import reduce
from math import gcd, isfinite, prod
from operator import add

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.equal import note, ranges
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.known_sizes import known_sizes

MOST = 1 << 16
"""Most dimensions, or pieces of a value, that a vector may describe."""


def axis_of(axis: int, rank: int) -> int:
    """A possibly negative axis -> counted from the start."""
    if not -rank <= axis < rank:
        raise Error(f"axis {axis} does not exist in {rank} dimensions")
    return axis % rank


def axes_of(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Axes -> counted from the start. Raises Error for duplicates."""
    found = tuple(axis_of(a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise Error(f"axes {list(found)} have a duplicate")
    return found


def known_ints(node: Node | None) -> tuple[int, ...] | None:
    """The numbers in a small integer tensor, flattened; None if unknown."""
    if node is not None and "int" not in node.dtype:
        raise Error(f"{node.type} where integers are needed")
    value = known_value(node)
    return None if value is None else tuple(int(v) for v in value.ravel())


def known_dims(node: Node) -> tuple[Dim, ...] | None:
    """The sizes in a small integer tensor, flattened, some of them open; None if unknown."""
    known = known_ints(node)
    if known is not None:
        return known
    sizes = known_sizes(node)
    return None if sizes is None else tuple(sizes.ravel().tolist())


def target_dims(node: Node) -> tuple[Dim | None, ...]:
    """The sizes in a vector that says a shape; None for those that are not known."""
    known = known_dims(node)
    if known is not None:
        return known
    parts = [known_dims(i) for i in node.operands] if node.op == "Concat" else []
    if not any(parts):
        return (None,) * count_of(node)
    sizes = zip(parts, node.operands, strict=True)
    return tuple(d for p, i in sizes for d in (p or (None,) * count_of(i)))


def count_of(node: Node) -> int:
    """How many numbers a vector holds whose values are not known, but which decide a rank."""
    if node.type.rank != 1 or not isinstance(node.shape[0], int):
        raise Error(f"the rank of the output is not known: {node.type} decides it")
    if node.shape[0] > MOST:
        raise Error(f"{node.type} where a few numbers are needed")
    return node.shape[0]


def agree(a: Dim, b: Dim) -> bool:
    """Can two dimensions be equal, as they must? Not where they always differ by a number."""
    possible = may_equal(a, b)
    if possible:
        note(a, b)
    return possible


def may_equal(a: Dim, b: Dim) -> bool:
    """Are there sizes for which two dimensions are equal?"""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return a == b or isinstance(settled(Size.of(a) - b), str)


def in_ranges(a: Dim, b: Dim) -> bool:
    """Are there sizes in the ranges that are known for which two dimensions are equal?"""
    found = (Size.of(a) - b).bounds_if_known(ranges())
    return found is None or found[0] <= 0 <= found[1]


def note_divides(whole: Dim, by: Dim) -> None:
    """A product must be a multiple of another: note so of the one size that decides it, if there is
    one.
    """
    found = multiple(whole, by)
    if found is not None:
        note(*found)


def multiple(whole: Dim, by: Dim) -> tuple[Dim, Dim] | None:
    """A product that is a multiple of another -> a size in it, and the multiple that this size must
    be equal to: q, k -> q, k*((q)//(k)); None where no single size decides it.
    """
    above, below = Size.of(whole).terms, Size.of(by).terms
    if len(above) != 1 or len(below) != 1:
        return _multiple_of_sums(Size.of(whole), Size.of(by))
    ((factors, c),), ((others, d),) = above.items(), below.items()
    left = dict(factors)
    for factor, power in others:
        left[factor] = left.get(factor, 0) - power
    divisor = Size.of(abs(d) // gcd(c, d))
    for factor in (f for f, power in left.items() for _ in range(-power)):
        divisor = divisor * factor
    sizes = [factor for factor, power in left.items() if power > 0]
    if len(sizes) != 1 or left[sizes[0]] != 1 or divisor == "1":
        return None
    if divisor.symbols and d % c:  # the number may have a part of the divisor in it
        return None
    return sizes[0], settled(Size.of(sizes[0]) // divisor * divisor)


def _multiple_of_sums(whole: Size, by: Size) -> tuple[Dim, Dim] | None:
    """`multiple` of q * (n + p) and k * (n + p): of what both have in common, but for one size."""
    for size in sorted(whole.symbols):
        common = whole.over(size)
        divisor = None if common is None else by.over(common)
        if divisor is not None and divisor != "1":
            return size, settled(Size.of(size) // divisor * divisor)
    return None


def unite(a: Dim, b: Dim) -> Dim:
    """Two equal dimensions -> the number if one is known."""
    if not agree(a, b):
        raise Error(f"{a} differs from {b}")
    return b if isinstance(a, str) else a


def total(dims: Sequence[Dim]) -> Dim:
    """The product of dimensions."""
    numbers = prod(d for d in dims if isinstance(d, int))
    symbols = [Size.of(d) for d in dims if isinstance(d, str)]
    return settled(prod(symbols, start=Size.of(numbers))) if symbols and numbers else numbers


def together(dims: Sequence[Dim]) -> Dim:
    """The sum of dimensions."""
    numbers = sum(d for d in dims if isinstance(d, int))
    symbols = [Size.of(d) for d in dims if isinstance(d, str)]
    return settled(reduce(add, symbols, Size.of(numbers))) if symbols else numbers


def scaled(size: Dim, factor: float) -> Dim | None:
    """floor(size * factor) in float32; of an open size by a ratio that float32 computes exactly,
    else None.
    """
    if isinstance(size, int):
        return int(float(np.float32(size) * np.float32(factor)) // 1)
    ratio = plain_ratio(factor)
    return None if ratio is None else settled(Size.of(size) * ratio.numerator // ratio.denominator)


def plain_ratio(factor: float) -> Fraction | None:
    """A factor as a ratio of small numbers, the lower one a power of 2; None for others."""
    ratio = Fraction(factor) if isfinite(factor) else Fraction(0)
    return ratio if ratio.denominator <= 64 and 0 < ratio.numerator <= 4096 else None


def need_rank(node: Node, least: int, what: str) -> Type:
    """A node's type. Raises Error unless its rank is at least `least`."""
    if node.type.rank < least:
        raise Error(f"{what} {node.type} has fewer than {least} dimensions")
    return node.type


def need_floats(node: Node) -> None:
    """Raise Error unless all inputs are floats."""
    for i in node.operands:
        if "float" not in i.dtype:
            raise Error(f"{i.type} where floats are needed")


def need_shape(node: Node | None, shape: Sequence[Dim], what: str) -> None:
    """Raise Error unless an input is absent or has this shape."""
    if node is None:
        return
    if len(shape) != node.type.rank or not all(map(agree, node.shape, shape)):
        raise Error(f"{what} {node.type} should be [{','.join(map(str, shape))}]")
