"""Integers that a run computes from its sizes through floats -> numbers of the run (bounded.py),
each with the most that it may be in any run.

    height = 32..128:   Cast(Floor(Cast(height) * (96 / Cast(height))))  ->  ?n0 - 1, at most 96

Detectors resize images so. What floats make of a size is no expression of it (96 / 51 * 51 may be
rounded to below 96), so it is computed for every run that the ranges allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import MAX_ELEMENTS, Array, Dim, Node
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call
from qcompiler.onnx_io.ranges import Ranges
from qcompiler.onnx_io.settle import plain
from qcompiler.ops import OPERATORS, known_value
from qcompiler.ops.known_sizes import MOST, known_sizes

DEEPEST = 400
"""Most values on the way from sizes to a number."""
MOST_RUNS, AT_ONCE = 1 << 22, 1 << 16
"""Most runs that are looked at, and at once."""

_MOVES = frozenset({"Identity", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape"})
_FOLDS: Mapping[str, Callable[..., Any]] = {
    "ReduceMin": np.min,
    "ReduceMax": np.max,
    "ReduceSum": np.sum,
    "ReduceProd": np.prod,
}


def note_computed(node: Node, bounds: Bounds, ranges: Ranges) -> None:
    """Say that an integer of which only the floats are known that it is made of is a number of the
    run.
    """
    if node.op != "Cast" or not node.dtype.startswith("int") or known_sizes(node) is not None:
        return
    found = extremes(node, ranges) if "float" in node.operands[0].dtype else None
    if found is None or found[0].min() < 0 or found[1].max() > MAX_ELEMENTS:
        return
    s = plain(Call("number", (), {}, 1, 1, f"{node.name}.number"))
    flat, sizes = s.flat(node), list[Dim]()
    for i, (low, high) in enumerate(zip(*(f.ravel().tolist() for f in found), strict=True)):
        own, least = s.node("Slice", flat, [i], [i + 1]), min(low, 1)  # symbols are positive
        more = bounds.size((node, i), s.node("Sub", own, least), high - least)
        size = settled(Size.of(more) + least)
        bounds.numbers[size] = own
        fits = s.node("LessOrEqual", own, high)
        bounds.checks.require(fits, f"{node.name} (Cast): a size above {high}")
        sizes.append(high if low == high else size)
    bounds.put_values(node, sizes)


def extremes(node: Node, ranges: Ranges) -> tuple[Array, Array] | None:
    """A small value made of sizes and constants -> its least and its greatest elements in all runs
    that there may be; None for other values, and where there are too many runs.
    """
    order = _way_to(node)
    leaves = [d for n in order or () for d in _sizes(n)]
    symbols = sorted({s for d in leaves for s in Size.of(d).symbols})
    if not order or not symbols or not ranges.keys() >= set(symbols):
        return None
    each = [np.arange(ranges[s][0], ranges[s][1] + 1) for s in symbols]
    counts = [len(e) for e in each]
    if prod(counts) > MOST_RUNS:
        return None
    lows, highs = list[Array](), list[Array]()
    for first in range(0, prod(counts), AT_ONCE):
        nth = np.unravel_index(np.arange(first, min(first + AT_ONCE, prod(counts))), counts)
        found = _in_runs(order, {s: e[n] for s, e, n in zip(symbols, each, nth, strict=True)})
        lows.append(found.min(-1))
        highs.append(found.max(-1))
    return np.min(lows, 0), np.max(highs, 0)


def _in_runs(order: list[Node], runs: Mapping[str, Array]) -> Array:
    """The last of some values in some runs: [*its shape, runs], or [*its shape, 1] if it is the
    same in all.
    """
    values: dict[Node, Array] = {}
    with np.errstate(all="ignore"):
        for node in order:
            values[node] = _value(node, values, runs)
    return values[order[-1]]


def _sizes(node: Node) -> list[Dim]:
    found = known_sizes(node)
    return [] if found is None else list(found.ravel())


def _way_to(root: Node) -> list[Node] | None:
    """The values that a value is made of, operands first, down to sizes and constants; None where
    one is neither, nor made by what is followed here.
    """
    order: dict[Node, None] = {}
    stack = [(root, False)]
    while stack:
        node, ready = stack.pop()
        if node in order:
            continue
        if ready or known_sizes(node) is not None or known_value(node) is not None:
            order[node] = None
            continue
        operator = OPERATORS.get(node.op)
        follows = node.op in _MOVES or node.op in _FOLDS
        if operator is None or (operator.formula is None and not follows):
            return None
        if not node.type.static or node.type.size > MOST or len(order) > DEEPEST:
            return None
        if any(known_value(i) is None for i in node.operands[len(_read(node)) :]):
            return None
        stack += [(node, True), *((i, False) for i in _read(node))]
    return list(order)


def _read(node: Node) -> tuple[Node, ...]:
    """The operands whose elements are moved or computed with; the others are constants."""
    one = node.op in _FOLDS or (node.op in _MOVES and node.op != "Concat")
    return node.operands[:1] if one else node.operands


def _value(node: Node, values: Mapping[Node, Array], runs: Mapping[str, Any]) -> Array:
    """One value in all runs: [*its shape, runs], or [*its shape, 1] if it is the same in all."""
    known = known_value(node)
    if known is not None:
        return np.asarray(known)[..., None]
    sizes = known_sizes(node)
    if sizes is not None:
        count = len(next(iter(runs.values())))
        rows = [np.broadcast_to(np.asarray(Size.of(d).at(runs)), count) for d in sizes.ravel()]
        return np.stack(rows).reshape(*node.type.dims, count).astype(node.dtype)
    read = [values[i] for i in _read(node)]
    given = [known_value(i) for i in node.operands[len(read) :]]
    if node.op in _FOLDS:
        rank = read[0].ndim - 1
        axes = given[0].ravel().tolist() if given and given[0] is not None else []
        over = tuple(a % rank for a in axes or range(rank))
        return np.asarray(_FOLDS[node.op](read[0], axis=over)).reshape(*node.type.dims, -1)
    if node.op in _MOVES:
        return _moved(node, read, given)
    inputs = (None if i is None else values[i] for i in node.inputs)
    return np.asarray(OPERATORS[node.op].meaning(node, *inputs))


def _moved(node: Node, read: list[Array], given: list[Array | None]) -> Array:
    """Elements moved as their numbers are."""
    count = max(r.shape[-1] for r in read)
    flat = np.concatenate(
        [np.broadcast_to(r, (*r.shape[:-1], count)).reshape(-1, count) for r in read]
    )
    ends = np.cumsum([0, *(prod(r.shape[:-1]) for r in read)])
    numbers = [
        np.arange(a, b).reshape(r.shape[:-1])
        for (a, b), r in zip(pairwise(ends), read, strict=True)
    ]
    to: Array = np.asarray(OPERATORS[node.op].meaning(node, *numbers, *given))
    return np.asarray(flat[to.astype(np.int64)])
