"""What type rules ask of shapes: which axis, which numbers, how many, do they agree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.registry import fresh

MOST = 1 << 16
"""Dimensions, or parts of a value, that a vector tells of."""


def axis_of(axis: int, rank: int) -> int:
    """An axis that may count from the end -> counted from the start."""
    if not -rank <= axis < rank:
        raise Error(f"axis {axis} does not exist in {rank} dimensions")
    return axis % rank


def axes_of(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Axes -> counted from the start, none of them twice."""
    found = tuple(axis_of(a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise Error(f"axes {list(found)} name one twice")
    return found


def known_ints(node: Node | None) -> tuple[int, ...] | None:
    """The numbers in a small integer tensor, flattened; None where they are not known."""
    if node is not None and "int" not in node.dtype:
        raise Error(f"{node.type} where integers are needed")
    value = known_value(node)
    return None if value is None else tuple(int(v) for v in value.ravel())


def count_of(node: Node) -> int:
    """How many numbers a vector holds whose values are not known, but which decide a rank."""
    if node.type.rank != 1 or not isinstance(node.shape[0], int):
        raise Error(f"the rank of the output is not known: {node.type} decides it")
    if node.shape[0] > MOST:
        raise Error(f"{node.type} where a few numbers are needed")
    return node.shape[0]


def agree(a: Dim, b: Dim) -> bool:
    """May two dimensions be the same? Only two different numbers cannot."""
    return isinstance(a, str) or isinstance(b, str) or a == b


def unite(a: Dim, b: Dim) -> Dim:
    """Two dimensions that are the same -> the one that is known better."""
    if not agree(a, b):
        raise Error(f"{a} is not {b}")
    return b if isinstance(a, str) else a


def total(dims: Sequence[Dim]) -> Dim:
    """The product of dimensions; a new symbol where it is not one number or one symbol."""
    numbers = prod(d for d in dims if isinstance(d, int))
    symbols = [d for d in dims if isinstance(d, str)]
    if not symbols or not numbers:
        return numbers
    return symbols[0] if len(symbols) == 1 and numbers == 1 else fresh()


def need_rank(node: Node, least: int, what: str) -> Type:
    """A node's type, which must have at least so many dimensions."""
    if node.type.rank < least:
        raise Error(f"{what} {node.type} has fewer than {least} dimensions")
    return node.type


def need_floats(node: Node) -> None:
    """An Error where an input is not of floats."""
    for i in node.operands:
        if "float" not in i.dtype:
            raise Error(f"{i.type} where floats are needed")


def need_shape(node: Node | None, shape: Sequence[Dim], what: str) -> None:
    """An Error unless an input (where it is there) has this shape."""
    if node is None:
        return
    if len(shape) != node.type.rank or not all(map(agree, node.shape, shape)):
        raise Error(f"{what} {node.type} should be [{','.join(map(str, shape))}]")
