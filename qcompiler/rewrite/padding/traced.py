"""Where values are valid that passes made of padded ones: digits of operands -> those of results.

For what is seen of a padded graph after it was rewritten, such as ranges of values: where nothing
is known of a value, all of it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Node
from qcompiler.ops import is_elementwise, known_value
from qcompiler.rewrite.matching import perm_of
from qcompiler.rewrite.padding.digits import Digits, is_open

Dims = tuple[Digits, ...]
Known = Mapping[Node, Dims]
Top = Mapping[str, int]

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_SAME = frozenset({"Identity", "Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "CumSum"})
_SAME |= {"RMSNormalization", "LpNormalization", "BatchNormalization", "DequantizeLinear"}
_SAME |= {"QuantizeLinear", "GroupNormalization", "InstanceNormalization", "Trilu"}
"""Operators whose result is valid where their first operand is."""


def rooms(digits: Digits, top: Top) -> int:
    """How many positions a dimension has in memory."""
    return prod(d if isinstance(d, int) else Size.of(d).at(top) for d in digits)


def through(node: Node, known: Known, top: Top) -> Dims | None:
    """The digits of a node's result, from those of its operands; None where they do not follow."""
    if is_elementwise(node):
        return _broadcast(node, known)
    if node.op == "MatMul":
        return _product(node, known)
    if node.op == "Concat":
        return _joined(node, known)
    first = known.get(node.operands[0]) if node.operands else None
    if first is None:
        return None
    if node.op in _SAME:
        return first
    if node.op == "Transpose":
        return tuple(first[a] for a in perm_of(node))
    if node.op in _RESHAPES:
        return regrouped(first, node.type.dims, top)
    if node.op.startswith("Reduce"):
        return _reduced(node, first)
    if node.op == "Gather" and len(node.type.dims) == len(first):
        axis = node.int("axis") % len(first)
        return (*first[:axis], (node.type.dims[axis],), *first[axis + 1 :])
    if node.op in ("Slice", "Pad") and len(node.type.dims) == len(first):
        sizes = zip(first, node.type.dims, strict=True)
        return tuple(d if rooms(d, top) == n else (n,) for d, n in sizes)
    return None


def regrouped(dims: Dims, target: Sequence[int], top: Top) -> Dims | None:
    """Digits -> those of the same elements in another shape in memory; None where a digit of an
    open size would be cut.
    """
    left = [d for digits in dims for d in digits]
    made: list[Digits] = []
    for size in target:
        group: list[int | str] = []
        need = size
        while need > 1:
            if not left:
                return None
            digit = left[0]
            room = rooms((digit,), top)
            if need % room == 0:
                group.append(left.pop(0))
                need //= room
            elif isinstance(digit, int) and digit % need == 0:
                group.append(need)
                left[0], need = digit // need, 1
            else:
                return None
        made.append(tuple(group))
    return None if any(d != 1 for d in left) else tuple(made)


def _broadcast(node: Node, known: Known) -> Dims | None:
    """A position is valid where it is in all operands that are as long."""
    read = [(i.type.dims, known[i]) for i in node.operands if i in known]
    if not read:
        return None
    made: list[Digits] = []
    for axis in range(-node.type.rank, 0):
        size = node.type.dims[axis]
        given = [d[axis] for shape, d in read if len(shape) >= -axis and shape[axis] == size]
        made.append(next((d for d in given if is_open(d)), given[0] if given else (size,)))
    return tuple(made)


def _product(node: Node, known: Known) -> Dims | None:
    """Rows of the one, columns of the other; of several matrices, which those of the larger are."""
    a, b = node.operands
    if min(a.type.rank, b.type.rank) < 2 or not known.keys() & {a, b}:
        return None
    sides = [known.get(i) or tuple((n,) for n in i.type.dims) for i in (a, b)]
    outer: list[Digits] = []
    for axis in range(-node.type.rank, -2):
        size = node.type.dims[axis]
        fits = [d[axis] for d, i in zip(sides, (a, b), strict=True)
                if len(d) >= -axis and i.type.dims[axis] == size]  # fmt: skip
        outer.append(next((d for d in fits if is_open(d)), (size,)))
    return (*outer, sides[0][-2], sides[1][-1])


def _joined(node: Node, known: Known) -> Dims | None:
    """Along the dimension of pieces all counts."""
    axis = node.int("axis") % node.type.rank
    first = next((known[i] for i in node.operands if i in known), None)
    if first is None:
        return None
    return (*first[:axis], (node.type.dims[axis],), *first[axis + 1 :])


def _reduced(node: Node, first: Dims) -> Dims | None:
    given = known_value(node.operands[1]) if len(node.operands) > 1 else None
    if given is None or not given.size:
        return None
    axes = {int(a) % len(first) for a in given.ravel()}
    keep = node.int("keepdims")
    return tuple(() if a in axes else d for a, d in enumerate(first) if keep or a not in axes)
