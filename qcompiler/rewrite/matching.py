"""Helpers of rules: constant numbers, per-channel vectors, axes, rebuilt nodes."""

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
    """A one-element constant -> its value, of integers exactly; anything else -> None."""
    if node is None or not node.is_constant or node.array.size != 1 or node.dtype == "string":
        return None
    value = node.array.reshape(())
    return int(value) if value.dtype.kind in "iu" else float(value)


def ints(node: Node | None) -> tuple[int, ...] | None:
    """A constant (or small computed) list of integers -> its values; anything else -> None."""
    array = known_value(node)
    if array is None or array.dtype.kind not in "iub":
        return None
    return tuple(int(v) for v in np.atleast_1d(array).ravel())


def exact(node: Node) -> Numbers:
    """A constant's values in float64, for compile-time arithmetic."""
    return node.array.astype(np.float64)


def per_channel(array: Numbers, rank: int, axis: int) -> Numbers | None:
    """An operand that varies along one axis of a tensor only -> [C] or [1]; else None."""
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
    """x cast to a dtype; x itself if it has that dtype."""
    if x.dtype == dtype:
        return x
    return const(x.array, dtype) if x.is_constant else make("Cast", x, to=dtype)


WIDENING = frozenset({"dequantize", "DequantizeLinear", "as_unsigned", "as_signed", "Cast"})


def rematerialized(node: Node) -> bool:
    """Is it cheaper to widen bytes again in each reader's kernel than to store them widened?"""
    return node.op in WIDENING and numpy_dtype(node.operands[0].dtype).itemsize == 1


def int64s(values: Iterable[int]) -> Node:
    """Integers -> the int64 constant of a shape, axes, pads or perm input."""
    return constant(np.array(list(values), np.int64))


def reshape(x: Node, shape: Sequence[Dim], name: str = "") -> Node:
    """x reshaped; x itself if it has that shape. A 0 is an empty dimension, not a copied one."""
    return x if x.shape == tuple(shape) else reshaped(x, shape, name)


def reshaped(x: Node, shape: Sequence[Dim], name: str = "") -> Node:
    """A Reshape, even to x's own shape."""
    numbers = [int(d) for d in shape]
    zeros = int(0 in numbers and -1 not in numbers)
    return make("Reshape", x, int64s(numbers), allowzero=zeros, name=name)


def transpose(x: Node, perm: Sequence[int], name: str = "") -> Node:
    """x transposed; x itself for the identity; a constant is transposed at compile time."""
    if tuple(perm) == tuple(range(len(perm))):
        return x
    if x.is_constant:
        return constant(np.ascontiguousarray(x.array.transpose(perm)), x.name)
    return make("Transpose", x, perm=tuple(perm), name=name)


def perm_of(node: Node) -> tuple[int, ...]:
    """A Transpose's permutation; reversed axes if omitted."""
    perm = node.attrs.get("perm")
    return tuple(range(node.operands[0].type.rank))[::-1] if perm is None else node.ints("perm")


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    """The inverse permutation."""
    return tuple(sorted(range(len(perm)), key=lambda axis: perm[axis]))


def rebuilt(node: Node, inputs: Iterable[Node | None] | None = None, **attrs: Any) -> Node:
    """The same operator and name on other inputs or attributes; its type is inferred again."""
    given = list(node.inputs if inputs is None else inputs)
    while given and given[-1] is None:
        given.pop()
    all_attrs: Mapping[str, Attr] = {**node.attrs, **attrs}
    return make(node.op, *given, name=node.name, **all_attrs)


def input_at(node: Node, index: int) -> Node | None:
    """The input at an index; None if it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def either(node: Node, fits: Callable[[Node], bool]) -> tuple[Node, Node] | None:
    """A binary node -> (the first operand that fits, the other one); None if neither fits.

    In x + x both are the same node.
    """
    first, second = node.operands
    if fits(first):
        return first, second
    return (second, first) if fits(second) else None


def axes_of(node: Node, axes: Node | None, rank: int) -> tuple[int, ...] | None:
    """Axes given as an input -> sorted, counted from the front; None if not constant."""
    if axes is None:
        return () if node.attrs.get("noop_with_empty_axes") else tuple(range(rank))
    values = ints(axes)
    if values is None:
        return None
    if not values and not node.attrs.get("noop_with_empty_axes"):
        return tuple(range(rank))
    return tuple(sorted(a % rank for a in values))
