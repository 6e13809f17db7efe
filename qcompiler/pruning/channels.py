"""Graph -> which channels must be removed together.

    labels = label(graph)                   for every axis of every value, the channels along it
    shrunk = without(graph, labels, kept)   smaller weights, constants and shapes (slimming.py)

Channels are found as in Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023). A
product creates new channels. The operators after it pass them on, join them (a residual sum joins
the channels of both operands), repeat them (Flatten, or a reshape that merges axes), or need all of
them (operators without a rule here, and the model's outputs), in which case they are kept.
Attention heads are channels too: a reshape that splits an axis into heads joins the channels of
each head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import Graph, Node
from qcompiler.ops import OPERATORS
from qcompiler.rewrite.matching import input_at, ints, perm_of

Ids = NDArray[np.int64]
Axes = tuple[Ids | None, ...]
"""For each axis of a value, the channel of every element along it; None: nothing can be removed."""

FIXED = 0
"""The channel of everything that must be kept."""

POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"})
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"})
WITHIN = frozenset({"Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"})
"""Operators that work along the last axes, separately for each position of the others."""


@dataclass
class Labels:
    """The result of `label`. `makes` and `reads`: products -> the channels of their weights'
    outputs and inputs, in order.
    """

    values: dict[tuple[Node, int], Axes] = field(default_factory=dict)
    makes: dict[Node, Ids] = field(default_factory=dict)
    reads: dict[Node, Ids] = field(default_factory=dict)
    parents: list[int] = field(default_factory=lambda: [FIXED])

    def find(self, channel: int) -> int:
        """The channel that represents all channels joined with this one; FIXED if they are kept."""
        while self.parents[channel] != channel:
            self.parents[channel] = self.parents[self.parents[channel]]
            channel = self.parents[channel]
        return channel

    def roots(self, ids: Ids) -> Ids:
        """`find` for every element of an array."""
        return np.array([self.find(int(i)) for i in ids], np.int64)

    def join(self, a: Ids, b: Ids) -> None:
        """Element by element: remove both or neither."""
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.find(x), self.find(y)))
            self.parents[high] = low

    def fix(self, ids: Iterable[Ids | None]) -> None:
        """Keep these channels."""
        for each in ids:
            if each is not None:
                self.join(each, np.zeros_like(each))

    def new(self, count: int) -> Ids:
        """Create `count` new channels."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def groups(self) -> list[Ids]:
        """The channels that can be removed, as roots, grouped by the products that make them."""
        made: dict[int, list[int]] = {}
        for number, ids in enumerate(self.makes.values()):
            for root in set(self.roots(ids).tolist()) - {FIXED}:
                made.setdefault(root, []).append(number)
        found: dict[tuple[int, ...], list[int]] = {}
        for root in sorted(made):
            found.setdefault(tuple(made[root]), []).append(root)
        return [np.array(g, np.int64) for g in found.values()]


def label(graph: Graph) -> Labels:
    """Float graph with static shapes, before the layout stage -> its channels."""
    labels = Labels()
    for node in graph.nodes:
        rule = _rule(node)
        made = rule(labels, node) if rule else _stay(labels, node)
        axes = [made] if len(node.types) == 1 else _parts(labels, node, made)
        for i, a in enumerate(axes):
            labels.values[node, i] = a
    for output in graph.outputs:
        labels.fix(labels.values[output, 0])
    return labels


Rule = Callable[[Labels, Node], Axes]


def _rule(node: Node) -> Rule | None:
    if node.op in RULES:
        return RULES[node.op]
    return _elementwise if OPERATORS[node.op].formula is not None else None


def _of(labels: Labels, node: Node) -> Axes:
    if node.op == "item":
        return labels.values[node.operands[0], node.int("index")]
    return labels.values[node, 0]


def _stay(labels: Labels, node: Node) -> Axes:
    """For unknown operators: keep all channels of the inputs."""
    _whole(labels, node.operands)
    return (None,) * (node.types[0].rank)


def _whole(labels: Labels, operands: Iterable[Node]) -> None:
    """Keep all channels of these operands."""
    for i in operands:
        if len(i.types) == 1:
            labels.fix(_of(labels, i))


def _item(labels: Labels, node: Node) -> Axes:
    return labels.values[node.operands[0], node.int("index")]


def _same(labels: Labels, node: Node) -> Axes:
    return _of(labels, node.operands[0])


def _elementwise(labels: Labels, node: Node) -> Axes:
    """Operands along the same axis are removed together; constants are cut to fit. An operand that
    is repeated along an axis keeps the one element that it has there.
    """
    return _together(labels, node, node.operands, node.type.dims)


def _together(
    labels: Labels, node: Node, operands: Sequence[Node], dims: Sequence[int], skip: int = -1
) -> Axes:
    made: list[Ids | None] = []
    for axis in range(len(dims)):
        found, fixed = [], False
        for operand in operands:
            own = axis - len(dims) + operand.type.rank
            if own < 0 or axis == skip:
                continue
            ids = _of(labels, operand)[own]
            if operand.type.dims[own] != dims[axis]:
                labels.fix([ids])
            elif ids is not None:
                found.append(ids)
            elif not operand.is_constant and dims[axis] > 1:
                fixed = True
        for other in found[1:]:
            labels.join(found[0], other)
        if fixed:
            labels.fix(found)
        made.append(found[0] if found else None)
    return tuple(made)


def _conv(labels: Labels, node: Node) -> Axes:
    x, w = node.operands[:2]
    if not w.is_constant or not _constant_bias(node):
        return _stay(labels, node)
    batch, ids, *spatial = _of(labels, x)
    labels.fix(spatial)
    group, outputs = node.int("group"), w.type.dims[0]
    rest = (None,) * (node.type.rank - 2)
    if group == 1:
        made = labels.new(outputs)
        _product(labels, node, ids, made)
    elif w.type.dims[1] == 1:  # depthwise
        if ids is None:
            return (batch, None, *rest)
        made = np.repeat(ids, outputs // group)
        labels.makes[node] = made
    else:  # remove as many from every group
        if ids is not None:
            each = ids.reshape(group, -1)
            for other in each[1:]:
                labels.join(each[0], other)
        made = np.tile(labels.new(outputs // group), group)
        _product(labels, node, None if ids is None else ids[: w.type.dims[1]], made)
    return (batch, made, *rest)


def _product(labels: Labels, node: Node, ids: Ids | None, made: Ids) -> None:
    labels.makes[node] = made
    if ids is not None:
        labels.reads[node] = ids


def _constant_bias(node: Node) -> bool:
    bias = input_at(node, 2)
    return bias is None or bias.is_constant


def _conv_transpose(labels: Labels, node: Node) -> Axes:
    w = node.operands[1]
    if node.int("group") != 1 or not w.is_constant or not _constant_bias(node):
        return _stay(labels, node)
    batch, ids, *spatial = _of(labels, node.operands[0])
    labels.fix(spatial)
    made = labels.new(w.type.dims[1])
    _product(labels, node, ids, made)
    return (batch, made, *(None for _ in spatial))


def _mat_mul(labels: Labels, node: Node) -> Axes:
    a, b = node.operands
    if b.is_constant and b.type.rank == 2 and a.type.rank >= 2:
        *before, ids = _of(labels, a)
        made = labels.new(b.type.dims[1])
        _product(labels, node, ids, made)
        return (*before, made)
    if a.is_constant or b.is_constant or a.type.rank < 2 or b.type.rank < 2:
        return _stay(labels, node)
    left, right = _of(labels, a), _of(labels, b)
    labels.fix([left[-1], right[-2]])
    dims = node.type.dims
    batch = _batch(labels, (a, left), (b, right), dims[:-2])
    return (*batch, left[-2], right[-1])


def _batch(
    labels: Labels, a: tuple[Node, Axes], b: tuple[Node, Axes], dims: Sequence[int]
) -> list[Ids | None]:
    """The batch axes of a product of two values."""
    made: list[Ids | None] = []
    for axis, size in enumerate(dims):
        found = []
        for node, axes in (a, b):
            own = axis - len(dims) - 2 + node.type.rank
            if own >= 0 and node.type.dims[own] == size:
                found.append(axes[own])
            elif own >= 0:
                labels.fix([axes[own]])
        known = [i for i in found if i is not None]
        if len(known) == 2:
            labels.join(known[0], known[1])
        elif len(known) < len(found):
            labels.fix(known)
        made.append(known[0] if known else None)
    return made


def _attention(labels: Labels, node: Node) -> Axes:
    """Heads are removed together from queries, keys and values; a key head may serve several query
    heads.
    """
    if len(node.types) > 1 or len(node.operands) > 4 or node.type.rank != 4:
        return _stay(labels, node)
    _whole(labels, node.operands[3:])
    q, k, v = (_of(labels, i) for i in node.operands[:3])
    labels.fix([q[0], q[2], q[3], *k[2:], v[2], k[0], v[0]])
    heads = [h for h in (q[1], k[1], v[1]) if h is not None]
    mask = input_at(node, 3)
    if len(heads) < 3 or (mask is not None and mask.type.rank > 2 and mask.type.dims[-3] > 1):
        labels.fix(heads)
    else:
        for h in heads[1:]:
            labels.join(heads[0], np.repeat(h, len(heads[0]) // len(h)))
    return (None, q[1], None, v[3])


def _within(labels: Labels, node: Node) -> Axes:
    """Softmax and similar operators need all elements of the axes they work along."""
    x = _of(labels, node.operands[0])
    axis = node.int("axis") % len(x)
    if any(i.type.rank > len(x) - axis for i in node.operands[1:]):
        return _stay(labels, node)
    _whole(labels, node.operands[1:])
    last = axis + 1 if "max" in node.op else len(x)
    labels.fix(x[axis:last])
    return tuple(None if axis <= i < last else a for i, a in enumerate(x))


def _batch_norm(labels: Labels, node: Node) -> Axes:
    if len(node.types) > 1 or not all(i.is_constant for i in node.operands[1:]):
        return _stay(labels, node)
    return _of(labels, node.operands[0])


def _pool(labels: Labels, node: Node) -> Axes:
    if len(node.types) > 1:
        return _stay(labels, node)
    batch, ids, *rest = _of(labels, node.operands[0])
    labels.fix(rest)
    return (batch, ids, *(None for _ in rest))


def _transpose(labels: Labels, node: Node) -> Axes:
    x = _of(labels, node.operands[0])
    return tuple(x[p] for p in perm_of(node))


def _reduce(labels: Labels, node: Node) -> Axes:
    x = _of(labels, node.operands[0])
    axes = reduced(node)
    if axes is None:
        return _stay(labels, node)
    labels.fix(x[a] for a in axes)
    kept = bool(node.int("keepdims"))
    return tuple(None if i in axes else a for i, a in enumerate(x) if kept or i not in axes)


def reduced(node: Node) -> tuple[int, ...] | None:
    """The axes of a reduction, counted from the front; None if they are not known."""
    rank = node.operands[0].type.rank
    axes = input_at(node, 1)
    values = () if axes is None else ints(axes)
    if values == () and not node.int("noop_with_empty_axes"):
        return tuple(range(rank))
    return None if values is None else tuple(a % rank for a in values)


def _concat(labels: Labels, node: Node) -> Axes:
    axis = node.int("axis") % node.type.rank
    made = list(_together(labels, node, node.operands, node.type.dims, skip=axis))
    parts = [_of(labels, i)[axis] for i in node.operands]
    sizes = [i.type.dims[axis] for i in node.operands]
    if any(p is not None for p in parts):
        zeros = (np.zeros(n, np.int64) for n in sizes)
        made[axis] = np.concatenate(
            [z if p is None else p for p, z in zip(parts, zeros, strict=True)]
        )
    return tuple(made)


def _slice(labels: Labels, node: Node) -> Axes:
    x = list(_of(labels, node.operands[0]))
    cuts = slices(node)
    if cuts is None:
        return _stay(labels, node)
    for axis, cut in cuts.items():
        ids = x[axis]
        if ids is not None and cut.step != 1:
            labels.fix([ids])
        x[axis] = None if ids is None else ids[cut]
    return tuple(x)


def slices(node: Node) -> dict[int, slice] | None:
    """A Slice's axes, counted from the front, and the slice of each; None if they are not known."""
    dims = node.operands[0].type.dims
    starts, ends = ints(input_at(node, 1)), ints(input_at(node, 2))
    axes, steps = input_at(node, 3), input_at(node, 4)
    if starts is None or ends is None:
        return None
    places = ints(axes) if axes is not None else tuple(range(len(starts)))
    widths = ints(steps) if steps is not None else (1,) * len(starts)
    if places is None or widths is None or min(widths, default=1) < 1:
        return None
    each = zip(places, starts, ends, widths, strict=True)
    return {a % len(dims): slice(*slice(b, e, s).indices(dims[a])) for a, b, e, s in each}


def _pad(labels: Labels, node: Node) -> Axes:
    """Padding adds new channels, which belong to no weights."""
    x = list(_of(labels, node.operands[0]))
    around = pads(node)
    if around is None:
        return _stay(labels, node)
    for axis, (before, after) in enumerate(around):
        ids = x[axis]
        if ids is not None and (before or after):
            if node.str("mode") != "constant":
                labels.fix([ids])
                x[axis] = None
            else:
                x[axis] = np.concatenate([labels.new(before), ids, labels.new(after)])
    return tuple(x)


def pads(node: Node) -> list[tuple[int, int]] | None:
    """The amounts that a Pad adds before and after each axis; None if they are not known."""
    rank = node.type.rank
    amounts, axes = ints(input_at(node, 1)), input_at(node, 3)
    places = ints(axes) if axes is not None else tuple(range(rank))
    if amounts is None or places is None:
        return None
    made = [(0, 0)] * rank
    for i, axis in enumerate(places):
        made[axis % rank] = (amounts[i], amounts[i + len(places)])
    return None if min(map(min, made), default=0) < 0 else made


def _resize(labels: Labels, node: Node) -> Axes:
    x, same = _of(labels, node.operands[0]), node.operands[0].type.dims
    if len(x) < 3 or node.attrs.get("axes") is not None or same[:2] != node.type.dims[:2]:
        return _stay(labels, node)
    labels.fix(x[2:])
    return (*x[:2], *(None for _ in x[2:]))


def _reshape(labels: Labels, node: Node) -> Axes:
    """Axes that are kept, merged or split; in more complex cases, all channels are kept."""
    x = _of(labels, node.operands[0])
    made: list[Ids | None] = []
    for before, after in factors(node.operands[0].type.dims, node.type.dims):
        inner = [(i, x[i]) for i in before]
        known = [(i, ids) for i, ids in inner if ids is not None]
        sizes = [node.operands[0].type.dims[i] for i in before]
        news = [node.type.dims[i] for i in after]
        if len(known) != 1 or (len(after) > 1 and prod(sizes) != sizes[before.index(known[0][0])]):
            labels.fix(ids for _, ids in known)
            made.extend([None] * len(after))
            continue
        at, ids = before.index(known[0][0]), known[0][1]
        around = (prod(sizes[:at]), len(ids), prod(sizes[at + 1 :]))
        flat = np.broadcast_to(ids[None, :, None], around).reshape(-1)
        made.extend(_cut(labels, flat, news))
    return tuple(made)


def _cut(labels: Labels, flat: Ids, sizes: Sequence[int]) -> list[Ids | None]:
    """Channels along an axis that is split into several: the last but one carries them (heads)."""
    wide = [i for i, n in enumerate(sizes) if n > 1]
    if not sizes:
        labels.fix([flat])
        return []
    carrier = wide[-2] if len(wide) > 1 else wide[0] if wide else 0
    rows = np.moveaxis(flat.reshape(tuple(sizes)), carrier, 0).reshape(sizes[carrier], -1)
    for column in rows.T[1:]:
        labels.join(rows[:, 0], column)
    return [rows[:, 0] if i == carrier else None for i in range(len(sizes))]


def factors(a: Sequence[int], b: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Two shapes of equal size -> the shortest runs of axes that have equal sizes in both."""
    made: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        left, right = [i] if i < len(a) else [], [j] if j < len(b) else []
        i, j = i + len(left), j + len(right)
        while (p := prod(a[n] for n in left)) != (q := prod(b[n] for n in right)):
            if p < q:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        made.append((left, right))
    while len(made) > 1 and (not made[-1][0] or not made[-1][1]):  # ones at the end
        last = made.pop()
        made[-1] = (made[-1][0] + last[0], made[-1][1] + last[1])
    return made


def _split(labels: Labels, node: Node) -> Axes:
    return _of(labels, node.operands[0])


def _parts(labels: Labels, node: Node, whole: Axes) -> list[Axes]:
    """A Split's input -> its outputs; other operators with several outputs are not known."""
    if node.op != "Split":
        return [(None,) * t.rank for t in node.types]
    axis = node.int("axis") % len(whole)
    sizes = [t.dims[axis] for t in node.types]
    made, first = [], 0
    for size in sizes:
        ids = whole[axis]
        part = None if ids is None else ids[first : first + size]
        made.append((*whole[:axis], part, *whole[axis + 1 :]))
        first += size
    return made


def _none(labels: Labels, node: Node) -> Axes:
    return (None,) * node.type.rank


RULES: dict[str, Rule] = {
    "input": _none,
    "constant": _none,
    "item": _item,
    "Identity": _same,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _mat_mul,
    "Attention": _attention,
    "BatchNormalization": _batch_norm,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Resize": _resize,
    **dict.fromkeys(WITHIN, _within),
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(REDUCTIONS, _reduce),
}
