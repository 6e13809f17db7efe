"""Movement of padded values: shapes, pieces, indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node, constant
from qcompiler.ops import make, meaning
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.positions import open_reach, reach
from qcompiler.ops.shapes import total
from qcompiler.rewrite.matching import const, int64s, perm_of, reshape, to_dtype
from qcompiler.rewrite.padding.caches import grown
from qcompiler.rewrite.padding.digits import digits_of, is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.repeats import is_repeat, joined
from qcompiler.rewrite.padding.rules import demand_closed, made_of, pads, together


@pads("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshape(p: Padding, node: Node) -> Padded:
    if is_repeat(p, node.operands[0]):
        return joined(p, node.operands[0], node.type.shape)
    x, (old, new) = p.value(node.operands[0]), (node.operands[0].type.shape, node.type.shape)
    differ = [i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if len(old) == len(new) and len(differ) == 1:
        return _renamed(p, x, differ[0], new[differ[0]])
    return p.reshaped(x, new)


def _renamed(p: Padding, x: Padded, axis: int, size: Dim) -> Padded:
    """A value whose other dimensions stay as they are, so that one is as long as before: its size
    only has another name, and maybe another largest number.
    """
    x, most = p.prefix(x, axis), p.at(size)
    dims = (*x.dims[:axis], digits_of([size]), *x.dims[axis + 1 :])
    if p.whole(x.dims[axis]) < most:
        last = const([p.whole(x.dims[axis]) - 1], "int32")
        return p.take(x, axis, make("Min", p.steps(most), last), dims[axis])
    if p.whole(x.dims[axis]) > most:
        return replace(piece(p, x, axis, 0, 1, size), dims=dims, zero=x.zero, calm=x.calm)
    return replace(x, dims=dims)


@pads("Transpose")
def _transpose(p: Padding, node: Node) -> Padded:
    x, perm = p.value(node.operands[0]), perm_of(node)
    zero, calm = (
        frozenset(i for i, a in enumerate(perm) if a in kept) for kept in (x.zero, x.calm)
    )
    made = make("Transpose", x.node, perm=perm, name=node.name)
    return Padded(made, tuple(x.dims[a] for a in perm), zero, calm)


@pads("Expand")
def _expand(p: Padding, node: Node) -> Padded:
    x, rank = p.value(node.operands[0]), node.type.rank
    given = (*[()] * (rank - x.rank), *x.dims)
    dims = tuple(d or digits_of([s]) for d, s in zip(given, node.type.shape, strict=True))
    made = make("Expand", x.node, int64s(map(p.at, node.type.shape)), name=node.name)
    return Padded(made, dims)


@pads("ConstantOfShape")
def _constant_of_shape(p: Padding, node: Node) -> Padded:
    shape = int64s(map(p.at, node.type.shape))
    made = make("ConstantOfShape", shape, name=node.name, **node.attrs)
    return Padded(made, tuple(digits_of([d]) for d in node.type.shape))


@pads("drawn")
def _drawn(p: Padding, node: Node) -> Padded:
    """As many numbers as there may be, of which a run's are the first."""
    count = total(node.type.shape)
    whole = make("drawn", int64s([p.at(count)]), name=node.name, **node.attrs)
    (numbers,) = meaning(whole, (np.array([p.at(count)]),))
    return p.reshaped(Padded(constant(numbers), (digits_of([count]),)), node.type.shape)


@pads("Range")
def _range(p: Padding, node: Node) -> Padded:
    """As many steps as there may be, from where this run begins."""
    (size,) = node.type.shape
    start, step = (p.value(node.operands[i]).node for i in (0, 2))
    steps = const(np.arange(p.at(size)), node.dtype)
    dims = (digits_of([size]),)
    if all(p.numbers(node.operands[i]) == (i // 2,) for i in (0, 2)):
        return Padded(steps, dims)
    made = make("Add", reshape(start, (1,)), make("Mul", steps, reshape(step, (1,))))
    return Padded(made, dims)


@pads("Tile")
def _tile(p: Padding, node: Node) -> Padded:
    x, repeats = p.value(node.operands[0]), known_sizes(node.operands[1])
    if repeats is None:
        raise p.refused("the number of repeats depends on data")
    times: list[Dim] = repeats.ravel().tolist()
    dims = tuple(digits_of([r, *d]) for r, d in zip(times, x.dims, strict=True))
    return Padded(make("Tile", x.node, int64s(map(p.at, times)), name=node.name), dims)


@pads("Trilu", "EyeLike")
def _trilu(p: Padding, node: Node) -> Padded:
    x = p.prefix(p.prefix(p.value(node.operands[0]), -1), -2)
    demand_closed(p, node)
    return Padded(made_of(p, node, x.node), x.dims)


@pads("DepthToSpace", "SpaceToDepth")
def _blocks(p: Padding, node: Node) -> Padded:
    """Of an open number of channels, by a Transpose of six dimensions."""
    x, b, before = p.value(node.operands[0]), node.int("blocksize"), node.operands[0].type.shape
    parts = {1: b * b} if node.op == "DepthToSpace" else {2: b, 3: b}
    for axis in (2, 3):
        x = p.prefix(x, axis)
    for axis, by in parts.items():
        if Size.of(before[axis]).over(by) is None:
            raise p.refused(f"{by} may not divide {before[axis]} of {node.operands[0].type}")
    if not is_open(x.dims[1]):
        made = make(node.op, x.node, name=node.name, **node.attrs)
        return Padded(made, (x.dims[0], *(digits_of([d]) for d in node.type.shape[1:])))
    by_channel = node.str("mode") == "CRD"
    split: tuple[Dim, ...]
    if node.op == "DepthToSpace":
        n, c, h, w = before[0], node.type.shape[1], *before[2:]
        split = (n, c, b, b, h, w) if by_channel else (n, b, b, c, h, w)
        perm = (0, 1, 4, 2, 5, 3) if by_channel else (0, 3, 4, 1, 5, 2)
    else:
        n, c, h, w = *before[:2], *node.type.shape[2:]
        split, perm = (n, c, h, b, w, b), (0, 1, 3, 5, 2, 4) if by_channel else (0, 3, 5, 1, 2, 4)
    blocks = p.reshaped(x, split)
    moved = make("Transpose", blocks.node, perm=perm)
    return p.reshaped(Padded(moved, tuple(blocks.dims[a] for a in perm)), node.type.shape)


@pads("Concat")
def _concat(p: Padding, node: Node) -> Padded:
    """Pieces behind an open one move to where it ends in this run."""
    if node in p.grown:
        return grown(p, node)
    rank = node.type.rank
    axis = node.int("axis") % rank
    values = [p.prefix(p.value(i), axis) for i in node.operands]
    bare = [Padded(v.node, (*v.dims[:axis], (), *v.dims[axis + 1 :])) for v in values]
    same, dims = together(p, bare, rank)
    made = make("Concat", *(v.node for v in same), axis=axis, name=node.name)
    sizes = [i.shape[axis] for i in node.operands]
    whole = digits_of([node.type.shape[axis]])
    zero = frozenset.intersection(*(v.zero for v in values)) - {axis}
    calm = frozenset.intersection(*(v.calm | v.zero for v in values)) - {axis}
    value = Padded(made, (*dims[:axis], whole, *dims[axis + 1 :]), zero, calm)
    if not any(isinstance(s, str) for s in sizes[:-1]):
        return value
    return p.take(value, axis, _joined(p, sizes), whole)


def _joined(p: Padding, sizes: Sequence[Dim]) -> Node:
    """Sizes of pieces in a row -> where each element of them lies, each of its largest size."""
    steps = p.steps(sum(map(p.at, sizes)))
    made, end, moved = steps, Size.of(0), 0
    for size in sizes[:-1]:
        end, moved = end + size, moved + p.at(size)
        behind = make("GreaterOrEqual", steps, p.size(settled(end)))
        there = make("Add", make("Sub", steps, p.size(settled(end))), const([moved], "int32"))
        made = make("Where", behind, there, made)
    return make("Min", made, const([steps.type.size - 1], "int32"))


def piece(p: Padding, value: Padded, axis: int, start: Dim, step: int, size: Dim) -> Padded:
    """So many elements along a dimension, from `start` on, with a step between them."""
    value = p.prefix(value, axis)
    if _lies(p, value, axis, start, step, size):
        return _cut(p, value, [(axis, int(start), step, size)])
    count, last = p.at(size), p.whole(value.dims[axis]) - 1
    index = make("Add", const(np.arange(count) * step, "int32"), p.size(start))
    index = make("Max", make("Min", index, const([last], "int32")), const([0], "int32"))
    return p.take(value, axis, index, digits_of([size]))


def _lies(p: Padding, value: Padded, axis: int, start: Dim, step: int, size: Dim) -> bool:
    """Are the elements of a piece those that they are in memory?"""
    if not isinstance(start, int) or step < 1:
        return False
    return start + (p.at(size) - 1) * step < p.whole(value.dims[axis])


def _cut(p: Padding, value: Padded, cuts: Sequence[tuple[int, int, int, Dim]]) -> Padded:
    """Pieces along some dimensions, each (axis, start, step, size), as they are in memory."""
    if not cuts:
        return value
    axes, starts, steps, sizes = zip(*cuts, strict=True)
    ends = [a + (p.at(n) - 1) * s + 1 for _, a, s, n in cuts]
    made = make("Slice", value.node, *map(int64s, (starts, ends, axes, steps)))
    own = {a: digits_of([n]) for a, n in zip(axes, sizes, strict=True)}
    dims = tuple(own.get(a, d) for a, d in enumerate(value.dims))
    return Padded(made, dims, value.zero.difference(own), value.calm.difference(own))


@pads("Slice")
def _slice(p: Padding, node: Node) -> Padded:
    x, source = p.value(node.operands[0]), node.operands[0].type.shape
    given = [None if i is None else known_sizes(i) for i in (*node.inputs[1:], None, None)[:4]]
    starts, ends = ([*g.ravel()] if g is not None else None for g in given[:2])
    if starts is None or ends is None:
        raise p.refused("where it begins or ends depends on data")
    axes = range(len(starts)) if given[2] is None else [int(a) % x.rank for a in given[2].ravel()]
    steps = [1] * len(starts) if given[3] is None else [int(s) for s in given[3].ravel()]
    cuts: list[tuple[int, int, int, Dim]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        old, new = source[axis], node.type.shape[axis]
        if old == new and start == 0 and step == 1:
            continue
        begin = _begin(p, old, start, end, step, new)
        x = p.prefix(x, axis)
        if _lies(p, x, axis, begin, step, new):
            cuts.append((axis, int(begin), step, new))
        else:
            x = piece(p, x, axis, begin, step, new)
    return _cut(p, x, cuts)


def _begin(p: Padding, size: Dim, start: Dim, end: Dim, step: int, count: Dim) -> Dim:
    """Where a slice begins. Raises Error unless it is sure to lie inside, and to have so many."""
    if isinstance(size, int) and isinstance(count, int) and isinstance(start, int):
        return min(start if start >= 0 else max(start + size, 0), size - 1 if step < 0 else size)
    begin = settled(Size.of(size) + start) if isinstance(start, int) and start < 0 else start
    if step < 0 and start == -1 and isinstance(end, int) and end <= np.iinfo(np.int32).min:
        return begin  # all of it, from behind
    behind = settled(Size.of(begin) + (Size.of(count) - 1) * step + 1)
    to_end = isinstance(end, int) and end >= np.iinfo(np.int32).max  # as many as there are
    behind = begin if to_end else behind
    inside = step > 0 and p.at_least(begin, 0)
    ends_inside = (behind, size) in p.checked or p.at_least(settled(Size.of(size) - behind), 0)
    if not inside or not ends_inside:
        sizes = f"from {start} to {end} of {size}"
        raise p.refused(f"a slice {sizes} may reach beyond", "a smaller HI in --dim may help")
    return begin


@pads("Split")
def _split(p: Padding, node: Node) -> tuple[Padded, ...]:
    x, axis = p.value(node.operands[0]), node.int("axis") % node.operands[0].type.rank
    if not is_open(x.dims[axis]):
        made = made_of(p, node, x.node)
        others = frozenset(range(x.rank)) - {axis}
        items = [make("item", made, index=i, name=node.name) for i in range(len(node.types))]
        if len(node.types) == 1:
            items = [made]
        sizes = [digits_of([t.shape[axis]]) for t in node.types]
        dims = [(*x.dims[:axis], s, *x.dims[axis + 1 :]) for s in sizes]
        pairs = zip(items, dims, strict=True)
        return tuple(Padded(i, d, x.zero & others, x.calm & others) for i, d in pairs)
    pieces, at = [], Size.of(0)
    for type in node.types:
        pieces.append(piece(p, x, axis, settled(at), 1, type.shape[axis]))
        at = at + type.shape[axis]
    rest = settled(Size.of(node.operands[0].type.shape[axis]) - at)
    if not (p.at_least(rest, 0) and p.at_least(settled(-Size.of(rest)), 0)):
        raise p.refused("its pieces do not make up the whole")
    return tuple(pieces)


@pads("Gather")
def _gather(p: Padding, node: Node) -> Padded:
    """Indices from behind count from where the dimension ends in this run."""
    x, index = p.value(node.operands[0]), p.value(node.operands[1])
    axis = node.int("axis") % x.rank
    size = node.operands[0].type.shape[axis]
    at = index.node
    if is_open(x.dims[axis]):
        x = p.prefix(x, axis)
        at = counted(p, node.operands[1], at, size)
    at = _inside(p, node.operands[1], at, x.node.type.dims[axis])
    made = make("Gather", x.node, at, axis=axis, name=node.name)
    return Padded(made, (*x.dims[:axis], *index.dims, *x.dims[axis + 1 :]))


def _inside(p: Padding, index: Node, at: Node, room: int) -> Node:
    """Indices made of sizes, of which every run checks those that count, within memory."""
    least = open_reach(index)
    if isinstance(least, int) or least is None or p.at(least) <= room:
        return at
    return make("Min", at, const(room - 1, at.dtype))


def counted(p: Padding, index: Node, at: Node, size: Dim) -> Node:
    """Indices along a dimension, counted from its begin."""
    least = reach(index)
    if least is not None:
        if (least, size) not in p.checked and not p.at_least(size, least):
            low = "a larger LO in --dim NAME=LO..HI helps"
            raise p.refused(
                f"an index may reach beyond {size}: there may be fewer than {least}", low
            )
        if min(p.numbers(index) or (), default=0) >= 0:
            return at
    whole = p.size(size, at.dtype)
    behind = make("Add", at, whole if at.type.rank else reshape(whole, ()))
    return make("Where", make("Less", at, const(0, at.dtype)), behind, at)


@pads("GatherElements")
def _gather_elements(p: Padding, node: Node) -> Padded:
    """Indices of the same shape in the other dimensions; from behind, they count from the end."""
    x, index = (p.value(i) for i in node.operands)
    axis = node.int("axis") % x.rank
    x, along = p.prefix(x, axis), index.dims[axis]
    at = index.node
    if is_open(x.dims[axis]):
        at = counted(p, node.operands[1], at, node.operands[0].type.shape[axis])
    at = _inside(p, node.operands[1], at, x.node.type.dims[axis])
    bare = [replace(v, dims=(*v.dims[:axis], (), *v.dims[axis + 1 :])) for v in (x, index)]
    (x, index), dims = together(p, [bare[0], replace(bare[1], node=at)], x.rank)
    made = make("GatherElements", x.node, index.node, axis=axis, name=node.name)
    return Padded(made, (*dims[:axis], along, *dims[axis + 1 :]))


@pads("OneHot")
def _one_hot(p: Padding, node: Node) -> Padded:
    """Of an open depth, indices from behind count from where it ends in this run."""
    index, axis = p.value(node.operands[0]), node.int("axis") % node.type.rank
    size = node.type.shape[axis]
    depth, dims = digits_of([size]), (*index.dims[:axis], digits_of([size]), *index.dims[axis:])
    if not is_open(depth):
        return Padded(made_of(p, node, index.node), dims)
    at = counted(p, node.operands[0], to_dtype(index.node, "int64"), size)
    values = p.value(node.operands[2]).node
    most = const([p.at(size)], "int64")
    return Padded(make("OneHot", at, most, values, name=node.name, axis=node.int("axis")), dims)
