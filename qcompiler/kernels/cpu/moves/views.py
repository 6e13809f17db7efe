"""A node that moves values -> boxes: parts of its output that step evenly through an operand.

Transpose, Slice, Split, Expand, Tile, DepthToSpace, SpaceToDepth   one box
Concat                                                              one an operand
Pad                                                                 one a piece of the border

A box is a nest of loops; each iteration moves a fixed distance along each axis of the operand and
of the output. Numbers that are constants of the model (starts, pads, repeats) are used at compile
time; if they are known only at run time, there is no box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from qcompiler.errors import Skip
from qcompiler.ir import Array, Node
from qcompiler.kernels.region import Region

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One loop: its iterations, and how far one moves along each axis (axis -> distance)."""

    size: int
    source: dict[int, int]
    output: dict[int, int]


@dataclass(frozen=True)
class Box:
    """Loops over a part of the output, outermost first; `operand` None: filled with one value.

    `source` and `output` are the multi-dimensional indices at which the loops begin.
    """

    operand: Node | None
    loops: tuple[Step, ...]
    source: Ints
    output: Ints

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(step.size for step in self.loops)


def boxes(region: Region) -> tuple[Box, ...] | Skip:
    """A region -> the boxes that make up its root's output, or why it has none."""
    node = region.root
    assert node is not None
    op = node.operands[0].op if node.op == "item" else node.op
    if op not in _KINDS and op not in _BY_NUMBERS:
        return Skip(f"{node.op} does not step evenly")
    found = _KINDS[op](node) if op in _KINDS else _BY_NUMBERS[op](node, region)
    return found if isinstance(found, Skip) else tuple(b for b in found if b.size)


def moved_by(moved: Mapping[int, int], steps: Sequence[int]) -> int:
    """The distance of an iteration along each axis, and each axis' step -> distance in memory."""
    return sum(distance * steps[axis] for axis, distance in moved.items())


def merge(sizes: Sequence[int], moves: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Loops' sizes and the distance of each in every operand -> the fewest equivalent loops:
    [(innermost of those merged, size)], outermost first."""
    kept: list[tuple[int, int]] = []
    for i, size in enumerate(sizes):
        if size == 1:
            continue
        if kept and all(m[kept[-1][0]] == m[i] * size for m in moves):
            kept[-1] = (i, kept[-1][1] * size)
        else:
            kept.append((i, size))
    return kept


def _simple(
    operand: Node, shape: Ints, along: Callable[[int], dict[int, int]], start: Ints
) -> tuple[Box, ...]:
    """One box of the whole output; `along`: an output axis -> its steps in the operand."""
    loops = tuple(Step(size, along(axis), {axis: 1}) for axis, size in enumerate(shape))
    return (Box(operand, loops, start, (0,) * len(shape)),)


def _transpose(node: Node) -> tuple[Box, ...]:
    x = node.operands[0]
    order = node.ints("perm") if node.attrs["perm"] is not None else range(x.type.rank)[::-1]
    axes = [a % x.type.rank for a in order]
    return _simple(x, node.type.dims, lambda axis: {axes[axis]: 1}, (0,) * x.type.rank)


def _expand(node: Node) -> tuple[Box, ...]:
    x, rank = node.operands[0], node.type.rank
    missing = rank - x.type.rank
    dims = x.type.dims

    def along(axis: int) -> dict[int, int]:
        own = axis - missing
        return {own: 1} if own >= 0 and dims[own] > 1 else {}

    return _simple(x, node.type.dims, along, (0,) * x.type.rank)


def _tile(node: Node) -> tuple[Box, ...]:
    x = node.operands[0]
    dims = x.type.dims
    loops: list[Step] = []
    for axis, (size, whole) in enumerate(zip(dims, node.type.dims, strict=True)):
        loops.append(Step(whole // size if size else 0, {}, {axis: size}))
        loops.append(Step(size, {axis: 1}, {axis: 1}))
    return (Box(x, tuple(loops), (0,) * len(dims), (0,) * len(dims)),)


def _slice(node: Node, region: Region) -> tuple[Box, ...] | Skip:
    x = node.operands[0]
    found = [_numbers(i, region) for i in (*node.inputs[1:], None, None)[:4]]
    starts, ends, axes, steps = found
    if starts is None or ends is None or (node.inputs[3:] and node.inputs[3] and axes is None):
        return Skip("starts or ends are known at run time only")
    if len(node.inputs) > 4 and node.inputs[4] is not None and steps is None:
        return Skip("steps are known at run time only")
    rank, dims = x.type.rank, x.type.dims
    begin, by = [0] * rank, [1] * rank
    over = [a % rank for a in axes] if axes is not None else range(len(starts))
    for axis, start, step in zip(over, starts, steps or [1] * len(starts), strict=True):
        start = max(start + dims[axis] if start < 0 else start, 0)
        begin[axis] = min(start, dims[axis] - 1) if step < 0 else min(start, dims[axis])
        by[axis] = step
    return _simple(x, node.type.dims, lambda axis: {axis: by[axis]}, tuple(begin))


def _split(node: Node) -> tuple[Box, ...]:
    """One output of a Split: `item`."""
    whole, index = node.operands[0], node.int("index")
    x = whole.operands[0]
    axis = whole.int("axis") % x.type.rank
    start = [0] * x.type.rank
    start[axis] = sum(t.dims[axis] for t in whole.types[:index])
    return _simple(x, node.type.dims, lambda a: {a: 1}, tuple(start))


def _depth_to_space(node: Node) -> tuple[Box, ...]:
    x, b = node.operands[0], node.int("blocksize")
    n, c, h, w = x.type.dims
    each = c // (b * b)
    # A channel of the operand is (block row, block column, channel) or (channel, row, column).
    row, column, channel = (b * each, each, 1) if node.str("mode") == "DCR" else (b, 1, b * b)
    loops = (
        Step(n, {0: 1}, {0: 1}),
        Step(each, {1: channel}, {1: 1}),
        Step(h, {2: 1}, {2: b}),
        Step(b, {1: row}, {2: 1}),
        Step(w, {3: 1}, {3: b}),
        Step(b, {1: column}, {3: 1}),
    )
    return (Box(x, loops, (0,) * 4, (0,) * 4),)


def _space_to_depth(node: Node) -> tuple[Box, ...]:
    x, b = node.operands[0], node.int("blocksize")
    n, c, h, w = x.type.dims
    row, column, channel = (b * c, c, 1) if node.attrs.get("mode") != "CRD" else (b, 1, b * b)
    blocks = [
        (row, Step(b, {2: 1}, {1: row})),
        (column, Step(b, {3: 1}, {1: column})),
        (channel, Step(c, {1: 1}, {1: channel})),
    ]
    inner = [step for _, step in sorted(blocks, key=lambda s: -s[0])]
    loops = (
        Step(n, {0: 1}, {0: 1}),
        *inner,
        Step(h // b, {2: b}, {2: 1}),
        Step(w // b, {3: b}, {3: 1}),
    )
    return (Box(x, loops, (0,) * 4, (0,) * 4),)


def _concat(node: Node) -> tuple[Box, ...]:
    axis = node.int("axis") % node.type.rank
    found, at = [], 0
    for x in node.operands:
        loops = tuple(Step(size, {a: 1}, {a: 1}) for a, size in enumerate(x.type.dims))
        start = tuple(at if a == axis else 0 for a in range(node.type.rank))
        found.append(Box(x, loops, (0,) * node.type.rank, start))
        at += x.type.dims[axis]
    return tuple(found)


@dataclass(frozen=True)
class _Piece:
    """Part of an output axis: where it begins, its size, and where it reads (step 0: one place)."""

    output: int
    size: int
    source: int
    step: int
    fill: bool = False


def _pad(node: Node, region: Region) -> tuple[Box, ...] | Skip:
    x = node.operands[0]
    rank, dims = x.type.rank, x.type.dims
    pads = _numbers(node.inputs[1], region)
    axes = _numbers(node.inputs[3], region) if len(node.inputs) > 3 else None
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None and axes is None):
        return Skip("pads are known at run time only")
    over = [a % rank for a in axes] if axes is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(over):
        before[axis], after[axis] = pads[i], pads[i + len(over)]
    mode = node.str("mode")
    pieces = [_pieces(dims[a], before[a], after[a], mode) for a in range(rank)]
    return tuple(_padded(x, chosen) for chosen in _combinations(pieces, mode, node.type.dims))


def _pieces(size: int, before: int, after: int, mode: str) -> list[_Piece]:
    """One axis of a padded operand as runs of even steps; negative pads crop."""
    output = size + before + after
    first, last = max(before, 0), min(size + before, output)
    if mode == "constant":
        outside = [_Piece(0, first, 0, 0, True), _Piece(last, output - last, 0, 0, True)]
        inside = [_Piece(first, last - first, first - before, 1)]
        return [p for p in (*inside, *outside) if p.size > 0]
    kept = np.arange(size)[max(-before, 0) : size - max(-after, 0)]
    index = np.pad(kept, (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]
    return list(_runs(index))


def _runs(index: Array) -> list[_Piece]:
    """Indices -> the longest runs with a step of 1, -1 or 0."""
    values = [int(v) for v in index]
    found, at = [], 0
    while at < len(values):
        end = at + 1
        step = values[end] - values[at] if end < len(values) else 1
        step = step if step in (-1, 0, 1) else 1
        while end < len(values) and values[end] - values[end - 1] == step:
            end += 1
        found.append(_Piece(at, end - at, values[at], step))
        at = end
    return found


def _combinations(
    pieces: Sequence[Sequence[_Piece]], mode: str, output: Ints
) -> list[tuple[_Piece, ...]]:
    """The pieces of every axis -> parts of the output. Where a piece is all fill, later axes are
    taken whole."""
    if mode != "constant":
        return list(product(*pieces))
    inside = [next((p for p in found if not p.fill), None) for found in pieces]
    parts: list[tuple[_Piece, ...]] = []
    for axis, found in enumerate(pieces):
        whole = [_Piece(0, size, 0, 0, True) for size in output[axis + 1 :]]
        for piece in found:
            if piece.fill and all(p is not None for p in inside[:axis]):
                parts.append((*[p for p in inside[:axis] if p is not None], piece, *whole))
    if all(p is not None for p in inside):
        parts.insert(0, tuple(p for p in inside if p is not None))
    return parts


def _padded(x: Node, chosen: tuple[_Piece, ...]) -> Box:
    fill = any(p.fill for p in chosen)
    loops = tuple(
        Step(p.size, {} if fill else {axis: p.step}, {axis: 1}) for axis, p in enumerate(chosen)
    )
    start = tuple(0 if fill else p.source for p in chosen)
    return Box(None if fill else x, loops, start, tuple(p.output for p in chosen))


def _numbers(node: Node | None, region: Region) -> Ints | None:
    """The integers of an operand; None for an absent input or an unknown value."""
    numbers = None if node is None else region.known(node).numbers
    return None if numbers is None else tuple(int(v) for v in numbers)


_KINDS: dict[str, Callable[[Node], tuple[Box, ...]]] = {
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Split": _split,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Concat": _concat,
}
_BY_NUMBERS: dict[str, Callable[[Node, Region], tuple[Box, ...] | Skip]] = {
    "Slice": _slice,
    "Pad": _pad,
}
"""Operators whose boxes depend on the numbers of some operands."""
