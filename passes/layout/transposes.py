"""Sink Transposes through the graph until they meet and cancel; the remaining ones are made once.

f(Transpose(x))                       ->  Transpose(f'(x))       f' is f with its axes permuted
g(Transpose(x), Transpose(y))         ->  Transpose(g(x, y))     the order that moves the fewest
bytes Transpose(x) that moves no element    ->  Reshape(x)

The handlers below (`through`) define how each operator works on permuted axes; elementwise ones
need none.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Graph, Node
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.layouts import Perm, Seen, Sinking, common_layout, seen_as, through, to_first
from qcompiler.rewrite.matching import axes_of, const, input_at, int64s, ints, rebuilt, reshape

Inputs = list[Seen | None]


@graph_pass
class LayoutTransposes:
    """f(Transpose(x)) -> Transpose(f(x)), as far as it goes."""

    def __call__(self, graph: Graph) -> Graph:
        """One walk, inputs first."""
        return Sinking().run(graph)


def _first(inputs: Inputs) -> Seen | None:
    """The data input, if it alone is permuted."""
    first, *rest = inputs
    others = any(i is not None and i.permuted for i in rest)
    return first if first is not None and first.permuted and not others else None


def _others(inputs: Inputs) -> list[Node | None]:
    return [None if i is None else i.node for i in inputs[1:]]


@through("Split")
def _split(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Split(Transpose(x), axis) -> Transpose(Split(x, perm[axis])), unless the pieces are
    contiguous.
    """
    x = _first(inputs)
    if x is None or _leads(x, node.int("axis")):
        return None
    return _along_axis(node, inputs, sinking)


def _leads(x: Seen, axis: int) -> bool:
    """Is an axis the first (longer than 1) of the value, but not of its memory?

    Channels are never split in channels-first memory: convolutions read them last.
    """
    axis %= len(x.perm)
    if x.perm == to_first(len(x.perm)):
        return False
    dims = x.node.type.dims
    before = [p for p in x.perm[:axis] if dims[p] > 1]
    return not before and any(dims[p] > 1 for p in range(x.perm[axis]))


@through("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
def _along_axis(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """f(Transpose(x), axis) -> Transpose(f(x, perm[axis]))."""
    x = _first(inputs)
    if x is None:
        return None
    axis = x.perm[node.int("axis") % len(x.perm)]
    return Seen(rebuilt(node, (x.node, *_others(inputs)), axis=axis), x.perm)


@through("Concat")
def _concat(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Concat(Transpose(x), y, axis) -> Transpose(Concat(x, y', perm[axis]))."""
    values = [i for i in inputs if i is not None]
    layout = common_layout(values, node.type.rank)
    if layout == tuple(range(len(layout))):
        return None
    axis = layout[node.int("axis") % len(layout)]
    joined = [sinking.physical(v, layout) for v in values]  # constants keep all their axes too
    return Seen(rebuilt(node, joined, axis=axis), layout)


@through(
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
)
def _reduce(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Reduce(Transpose(x), axes) -> Transpose(Reduce(x, perm[axes])) of the remaining axes."""
    x = _first(inputs)
    axes = None if x is None else axes_of(node, input_at(node, 1), len(x.perm))
    if x is None or axes is None:
        return None
    physical = sorted(x.perm[a] for a in axes)
    made = rebuilt(node, (x.node, int64s(physical)))
    return seen_as(made, x.perm if node.int("keepdims") else without(x.perm, axes))


@through("ArgMax", "ArgMin")
def _arg_reduce(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """ArgMax(Transpose(x), axis) -> Transpose(ArgMax(x, perm[axis])) of the remaining axes."""
    x = _first(inputs)
    if x is None:
        return None
    axis = node.int("axis") % len(x.perm)
    made = rebuilt(node, (x.node,), axis=x.perm[axis])
    return seen_as(made, x.perm if node.int("keepdims") else without(x.perm, (axis,)))


def without(perm: Perm, axes: tuple[int, ...]) -> Perm:
    """A permutation with some axes removed from both sides."""
    kept = [p for a, p in enumerate(perm) if a not in axes]
    return tuple(sorted(kept).index(p) for p in kept)


@through("Gather")
def _gather(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Gather(Transpose(x), one index or a list, axis) -> Transpose(Gather(x, ..., perm[axis]))."""
    x, indices = _first(inputs), inputs[1]
    if x is None or indices is None or indices.node.type.rank > 1:
        return None
    axis = node.int("axis") % len(x.perm)
    if _leads(x, axis):
        return None
    made = rebuilt(node, (x.node, indices.node), axis=x.perm[axis])
    return seen_as(made, x.perm if indices.node.type.rank else without(x.perm, (axis,)))


@through("Slice")
def _slice(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Slice(Transpose(x), axes) -> Transpose(Slice(x, perm[axes]))."""
    x, starts = _first(inputs), ints(input_at(node, 1))
    if x is None or starts is None:
        return None
    given = ints(input_at(node, 3))
    axes = tuple(range(len(starts))) if input_at(node, 3) is None else given
    if axes is None:
        return None
    physical = int64s(x.perm[a % len(x.perm)] for a in axes)
    made = rebuilt(node, (x.node, node.inputs[1], node.inputs[2], physical, *node.inputs[4:]))
    return Seen(made, x.perm)


@through("Pad")
def _pad(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Pad(Transpose(x), axes) -> Transpose(Pad(x, perm[axes]))."""
    x = _first(inputs)
    axes_input = input_at(node, 3)
    axes = tuple(range(node.type.rank)) if axes_input is None else ints(axes_input)
    if x is None or axes is None:
        return None
    physical = int64s(x.perm[a % len(x.perm)] for a in axes)
    return Seen(rebuilt(node, (x.node, node.inputs[1], input_at(node, 2), physical)), x.perm)


@through("Resize")
def _resize(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Resize(Transpose(x), scales or sizes) -> Transpose(Resize(x, permuted ones))."""
    x = _first(inputs)
    if x is None or input_at(node, 1) is not None:  # a region of interest
        return None
    rank = len(x.perm)
    axes = node.attrs.get("axes")
    if axes:
        physical = tuple(x.perm[a % rank] for a in node.ints("axes"))
        return Seen(rebuilt(node, (x.node, *node.inputs[1:]), axes=physical), x.perm)
    moved = [_reordered(input_at(node, i), x.perm) for i in (2, 3)]
    return Seen(rebuilt(node, (x.node, None, *moved)), x.perm)


@through("Tile", "Expand")
def _repeat(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Tile(Transpose(x), counts), Expand(...) -> Transpose(Tile(x, permuted counts))."""
    x = _first(inputs)
    if x is None or node.type.rank != len(x.perm):
        return None
    counts = input_at(node, 1)
    if counts is None or not counts.is_constant or counts.array.size != len(x.perm):
        return None
    return Seen(rebuilt(node, (x.node, _reordered(counts, x.perm))), x.perm)


def _reordered(numbers: Node | None, perm: Perm) -> Node | None:
    """One number per axis -> in the order of the node's axes."""
    if numbers is None or numbers.array.size == 0:
        return None
    array = np.empty_like(numbers.array)
    array[list(perm)] = numbers.array
    return const(array)


@through("QuantizeLinear", "DequantizeLinear")
def _quantize(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """QuantizeLinear(Transpose(x), axis) -> Transpose(QuantizeLinear(x, perm[axis]))."""
    x, scale = _first(inputs), inputs[1]
    if x is None or scale is None or scale.node.type.rank > 1 or node.attrs.get("block_size"):
        return None
    rank = len(x.perm)
    axis = x.perm[node.int("axis") % rank] if scale.node.type.rank else node.int("axis")
    return Seen(rebuilt(node, (x.node, *_others(inputs)), axis=axis), x.perm)


@through("DynamicQuantizeLinear")
def _dynamic_quantize(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """It treats all elements alike."""
    x = _first(inputs)
    return None if x is None else Seen(rebuilt(node, (x.node,)), x.perm)


@through("LayerNormalization", "RMSNormalization")
def _normalize(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """LayerNormalization(Transpose(x)) -> Transpose(...(x)) if the last axes stay."""
    x = _first(inputs)
    if x is None or len(node.types) > 1:
        return None
    first = node.int("axis") % len(x.perm)
    if x.perm[first:] != tuple(range(first, len(x.perm))):
        return None
    return Seen(rebuilt(node, (x.node, *_others(inputs))), x.perm)


@through("Reshape")
def _reshape(node: Node, inputs: Inputs, sinking: Sinking) -> Seen | None:
    """Reshape(Transpose(x)) -> Transpose(Reshape(x)) if merged axes are adjacent.

    If they are not, the axes are moved to be adjacent, and no further.
    """
    x = _first(inputs)
    if x is None or node.type.size == 0:
        return None
    shape = [x.node.type.dims[p] for p in x.perm]
    groups = merged(shape, node.type.dims)
    if groups is None:
        return None
    # The positions of each group's axes in memory; the group that ends last stays last.
    places = [tuple(x.perm[a] for a in ins) for ins, _ in groups]
    order = sorted(range(len(groups)), key=lambda g: max(places[g]))
    memory = [p for g in order for p in places[g]]
    ones = [p for p, d in enumerate(x.node.type.dims) if d == 1]
    if memory == sorted(memory):
        source = x.node
    else:
        source = sinking.transpose(x.node, (*ones, *memory))
    outs = _with_ones([o for g in order for o in groups[g][1]], node.type.rank)
    if memory != sorted(memory) and outs == list(range(node.type.rank)):
        return None  # all in order in the end: keep the Transpose
    made = reshape(source, [node.type.dims[o] for o in outs], name=node.name)
    return seen_as(made, tuple(outs.index(o) for o in range(node.type.rank)))


def merged(shape: list[int], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]] | None:
    """Shapes of equal size -> the smallest groups of axes (longer than 1) that merge or split."""
    ins = [a for a, d in enumerate(shape) if d != 1]
    outs = [a for a, d in enumerate(target) if d != 1]
    groups: list[tuple[list[int], list[int]]] = []
    i = o = 0
    while i < len(ins) and o < len(outs):
        left, right = [ins[i]], [outs[o]]
        a, b = shape[ins[i]], target[outs[o]]
        i, o = i + 1, o + 1
        while a != b:
            if a < b and i < len(ins):
                a, left, i = a * shape[ins[i]], [*left, ins[i]], i + 1
            elif b < a and o < len(outs):
                b, right, o = b * target[outs[o]], [*right, outs[o]], o + 1
            else:
                return None
        groups.append((left, right))
    return groups if i == len(ins) and o == len(outs) else None


def _with_ones(outs: list[int], rank: int) -> list[int]:
    """A permutation of the axes longer than 1, with the others inserted after their neighbours."""
    placed = list(outs)
    for axis in range(rank):
        if axis not in placed:
            placed.insert(placed.index(axis - 1) + 1 if axis else 0, axis)
    return placed
