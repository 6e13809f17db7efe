"""Nodes -> what rules ask of them: constant numbers, per-channel vectors, axes, a node anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qcompiler.ir import Attr, Dim, Node, constant, numpy_dtype
from qcompiler.ops import known_value, make
from qcompiler.ops.registry import Numbers

FLOATS = frozenset({"float32", "float64", "float16", "bfloat16"})


def number(node: Node | None) -> float | None:
    """A constant of one element -> its value; None for anything else."""
    if node is None or not node.is_constant or node.array.size != 1 or node.dtype == "string":
        return None
    return float(node.array.reshape(()))


def ints(node: Node | None) -> tuple[int, ...] | None:
    """A constant (or a small computed) list of integers -> its values; None for anything else."""
    array = known_value(node)
    if array is None or array.dtype.kind not in "iub":
        return None
    return tuple(int(v) for v in np.atleast_1d(array).ravel())


def exact(node: Node) -> Numbers:
    """A constant's numbers in float64, to compute new ones from."""
    return node.array.astype(np.float64)


def per_channel(array: Numbers, rank: int, axis: int) -> Numbers | None:
    """An operand that broadcasts along one axis of a tensor only -> [C] or [1]; else None."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    flat = shape[axis] == prod(shape)
    return array.reshape(-1) if flat else None


def channel_shape(rank: int, axis: int) -> tuple[int, ...]:
    """The shape that makes [C] broadcast along `axis` of a rank-dimensional tensor: (-1, 1, 1)."""
    return (-1, *[1] * (rank - 1 - axis))


def const(array: ArrayLike, dtype: str = "", like: Node | None = None) -> Node:
    """An array as a constant, in a given dtype or in another node's."""
    wanted = dtype or (like.dtype if like is not None else "")
    made = np.asarray(array)
    return constant(made.astype(numpy_dtype(wanted)) if wanted else made)


def to_dtype(x: Node, dtype: str) -> Node:
    """x in another dtype; x itself where it has that dtype."""
    if x.dtype == dtype:
        return x
    return const(x.array, dtype) if x.is_constant else make("Cast", x, to=dtype)


WIDENING = frozenset({"dequantize", "DequantizeLinear", "as_unsigned", "as_signed", "Cast"})


def melts(node: Node) -> bool:
    """Is it cheaper to widen bytes again in each reader's kernel than to keep them widened?"""
    return node.op in WIDENING and numpy_dtype(node.operands[0].dtype).itemsize == 1


def int64s(values: Iterable[int]) -> Node:
    """Integers -> the constant list that shapes, axes, pads and perms come as."""
    return constant(np.array(list(values), np.int64))


def reshape(x: Node, shape: Sequence[Dim], name: str = "") -> Node:
    """x seen in another shape; x itself where it has that shape. A 0 is a 0, not one of x's."""
    return x if x.shape == tuple(shape) else reshaped(x, shape, name)


def reshaped(x: Node, shape: Sequence[Dim], name: str = "") -> Node:
    """A Reshape, also to the shape that x has."""
    numbers = [int(d) for d in shape]
    zeros = int(0 in numbers and -1 not in numbers)
    return make("Reshape", x, int64s(numbers), allowzero=zeros, name=name)


def transpose(x: Node, perm: Sequence[int], name: str = "") -> Node:
    """x with axes in another order; x itself where the order stays; a constant moved here."""
    if tuple(perm) == tuple(range(len(perm))):
        return x
    if x.is_constant:
        return constant(np.ascontiguousarray(x.array.transpose(perm)), x.name)
    return make("Transpose", x, perm=tuple(perm), name=name)


def perm_of(node: Node) -> tuple[int, ...]:
    """A Transpose's order of axes; left out it is the reverse."""
    perm = node.attrs.get("perm")
    return tuple(range(node.operands[0].type.rank))[::-1] if perm is None else node.ints("perm")


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The order of axes that undoes another."""
    return tuple(sorted(range(len(perm)), key=lambda axis: perm[axis]))


def rebuilt(node: Node, inputs: Iterable[Node | None] | None = None, **attrs: Any) -> Node:
    """The same operator and name on other inputs or attributes; its type is found anew."""
    given = list(node.inputs if inputs is None else inputs)
    while given and given[-1] is None:
        given.pop()
    all_attrs: Mapping[str, Attr] = {**node.attrs, **attrs}
    return make(node.op, *given, name=node.name, **all_attrs)


def input_at(node: Node, index: int) -> Node | None:
    """The input at a place; None where it is absent or left out at the end."""
    return node.inputs[index] if index < len(node.inputs) else None


def either(node: Node, fits: Callable[[Node], bool]) -> tuple[Node, Node] | None:
    """A node of two operands -> (the first that fits, the other one), which may be one node read
    twice; None where none fits.
    """
    first, second = node.operands
    if fits(first):
        return first, second
    return (second, first) if fits(second) else None


def axes_of(node: Node, axes: Node | None, rank: int) -> tuple[int, ...] | None:
    """Axes given as an input -> sorted, counted from the front; None when not constant."""
    if axes is None:
        return () if node.attrs.get("noop_with_empty_axes") else tuple(range(rank))
    values = ints(axes)
    if values is None:
        return None
    if not values and not node.attrs.get("noop_with_empty_axes"):
        return tuple(range(rank))
    return tuple(sorted(a % rank for a in values))
