"""How long an axis must be for indices along it that are made of constants and open sizes.

    Range(past, past + seq)  ->  past + seq

Only what is exact is told: a run is checked by it, and must not fail where all indices fit.
"""

from __future__ import annotations

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.known_sizes import known_sizes, never_below_0
from qcompiler.ops.shapes import together

_SAME = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Flatten"})
"""Operators whose output has all elements of their first operand, and no others."""
DEEPEST = 50


def reach(indices: Node) -> int | None:
    """How many positions there must be, at least, for indices that are known; None for others."""
    known = known_value(indices)
    if known is None:
        return None
    numbers = known.astype(np.int64)
    return max(int(numbers.max(initial=-1)) + 1, -int(numbers.min(initial=0)))


def open_reach(indices: Node) -> Dim | None:
    """The same, of indices that only depend on open sizes, too, as far as they are not negative."""
    known = reach(indices)
    if known is not None:
        return known
    greatest = _greatest(indices, 0)
    return None if greatest is None else settled(Size.of(greatest) + 1)


def _greatest(node: Node, depth: int) -> Dim | None:
    """The greatest element of a value, if there is any; None where it is not known."""
    known = known_value(node)
    if known is not None or depth > DEEPEST:
        return int(known.max()) if known is not None and known.size else None
    sizes = known_sizes(node)
    if sizes is not None:
        return _single(node)
    alone = node.op == "Concat" and len(node.operands) == 1
    if node.op in _SAME or alone or (node.op == "Cast" and "int" in node.operands[0].dtype):
        return _greatest(node.operands[0], depth + 1)
    if node.op == "Range":
        return _last(node)
    if node.op == "Add" and _apart(*node.operands):
        each = [_greatest(i, depth + 1) for i in node.operands]
        return None if None in each else together([e for e in each if e is not None])
    if node.op not in ("Sub", "Mul"):
        return None
    a, b = node.operands
    a, b = (b, a) if node.op == "Mul" and _single(a) is not None else (a, b)
    top, by = _greatest(a, depth + 1), _single(b)
    if top is None or by is None:
        return None
    if node.op == "Sub":
        return settled(Size.of(top) - by)
    return settled(Size.of(top) * by) if never_below_0(by) else None


def _single(node: Node) -> Dim | None:
    """The size, or number, that a value of one element is."""
    sizes = known_sizes(node)
    return None if sizes is None or sizes.size != 1 else sizes.item()


def _last(node: Node) -> Dim | None:
    """The last number of a Range by steps of 1."""
    limit, step = (_single(i) for i in node.operands[1:])
    return None if limit is None or step != 1 else settled(Size.of(limit) - 1)


def _apart(a: Node, b: Node) -> bool:
    """Is every element of one value added to every element of the other?"""
    pairs = zip(reversed(a.shape), reversed(b.shape), strict=False)
    return all(1 in pair for pair in pairs)
