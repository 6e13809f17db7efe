"""Graph, its channels, and which of them to keep -> a smaller graph with these channels only.

Weights lose rows and columns, constants along channels lose elements, and operators that contain
sizes (Reshape, Slice, Pad, Split, Resize) get the new ones. All other operators are rebuilt on
their smaller inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import Array, Graph, Node, constant
from qcompiler.ops import OPERATORS
from qcompiler.pruning.channels import RESHAPES, Axes, Ids, Labels, pads, slices
from qcompiler.rewrite.matching import const, input_at, int64s, rebuilt

Mask = NDArray[np.bool_]


def without(graph: Graph, labels: Labels, kept: Mask) -> tuple[Graph, dict[Node, Node]]:
    """`kept`, whether each channel is kept -> the smaller graph, and the new node of each node."""
    cut = _Cut(labels, kept)
    for node in graph.nodes:
        cut.new[node] = cut.node(node)
    return graph.with_outputs(cut.new[o] for o in graph.outputs), cut.new


class _Cut:
    """The graph under construction."""

    def __init__(self, labels: Labels, kept: Mask) -> None:
        self.labels, self.kept = labels, kept
        self.new: dict[Node, Node] = {}

    def mask(self, ids: Ids | None) -> Mask | None:
        """Which elements along an axis are kept; None: all."""
        if ids is None:
            return None
        found: Mask = self.kept[self.labels.roots(ids)]
        return None if found.all() else found

    def axes(self, node: Node, index: int = 0) -> Axes:
        """A value's channels."""
        return self.labels.values[node, index]

    def node(self, node: Node) -> Node:
        """A node, rebuilt on its new inputs."""
        if node.op in ("input", "constant"):
            return node
        inputs = [None if i is None else self.new[i] for i in node.inputs]
        change = CHANGES.get(node.op)
        if change is not None:
            return change(self, node, inputs)
        if OPERATORS[node.op].formula is not None:
            inputs = [None if i is None else self.fitted(i, node) for i in node.inputs]
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        return node if same else rebuilt(node, inputs)

    def fitted(self, operand: Node, node: Node) -> Node:
        """An elementwise node's new operand; a constant is cut to the channels that are kept."""
        if not operand.is_constant:
            return self.new[operand]
        axes, rank = self.axes(node), node.type.rank
        array = operand.array
        for axis, size in enumerate(operand.type.dims):
            place = axis + rank - operand.type.rank
            if size > 1 and size == node.type.dims[place]:
                array = take(array, axis, self.mask(axes[place]))
        return operand if array is operand.array else constant(array, operand.name)


Change = Callable[[_Cut, Node, list[Node | None]], Node]


def take(array: Array, axis: int, mask: Mask | None) -> Array:
    """The elements along an axis that are kept."""
    return array if mask is None else np.ascontiguousarray(np.compress(mask, array, axis))


def _trimmed(node: Node | None, *cuts: tuple[int, Mask | None]) -> Node | None:
    """A constant without the elements that are removed along some axes."""
    if node is None:
        return None
    array = node.array
    for axis, mask in cuts:
        array = take(array, axis, mask)
    return node if array is node.array else constant(array, node.name)


def _conv(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    labels = cut.labels
    if node not in labels.makes:
        return node.with_inputs(inputs) if None in inputs else rebuilt(node, inputs)
    outs = cut.mask(labels.makes[node])
    ins = cut.mask(labels.reads.get(node))
    transposed = node.op == "ConvTranspose"
    rows, columns = (1, 0) if transposed else (0, 1)
    w = _trimmed(node.operands[1], (rows, outs), (columns, ins))
    bias = _trimmed(input_at(node, 2), (0, outs))
    x = inputs[0]
    group = node.int("group")
    if group > 1 and node.operands[1].type.dims[1] == 1 and x is not None:
        group = x.type.dims[1]
    return rebuilt(node, [x, w, bias], group=group)


def _mat_mul(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    labels = cut.labels
    if node not in labels.makes:
        return rebuilt(node, inputs)
    outs, ins = cut.mask(labels.makes[node]), cut.mask(labels.reads.get(node))
    return rebuilt(node, [inputs[0], _trimmed(node.operands[1], (0, ins), (1, outs))])


def _batch_norm(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    if not all(i.is_constant for i in node.operands[1:]):
        return rebuilt(node, inputs)
    mask = cut.mask(cut.axes(node)[1])
    return rebuilt(node, [inputs[0], *(_trimmed(i, (0, mask)) for i in node.operands[1:])])


def _dims(cut: _Cut, node: Node) -> list[int]:
    """A value's new shape."""
    axes = zip(node.type.dims, cut.axes(node), strict=True)
    masks = ((n, cut.mask(a)) for n, a in axes)
    return [n if m is None else int(m.sum()) for n, m in masks]


def _reshape(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    if node.op != "Reshape":
        return rebuilt(node, inputs)
    return rebuilt(node, [inputs[0], int64s(_dims(cut, node))])


def _concat(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    made = []
    for operand in node.operands:
        new = cut.new[operand]
        if operand.is_constant:
            masks = [cut.mask(a) for a in cut.axes(node)]
            masks[node.int("axis") % node.type.rank] = None
            new = _trimmed(operand, *enumerate(masks)) or new
        made.append(new)
    return rebuilt(node, made)


def _slice(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    cuts = slices(node)
    if cuts is None:
        return rebuilt(node, inputs)
    starts, ends = [], []
    for axis, taken in cuts.items():
        mask = cut.mask(cut.axes(node.operands[0])[axis])
        count = None if mask is None else np.concatenate([[0], np.cumsum(mask)])
        starts.append(taken.start if count is None else int(count[taken.start]))
        ends.append(taken.stop if count is None else int(count[taken.stop]))
    steps = int64s(t.step for t in cuts.values())
    return rebuilt(node, [inputs[0], int64s(starts), int64s(ends), int64s(cuts), steps])


def _pad(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    around = pads(node)
    if around is None:
        return rebuilt(node, inputs)
    befores, afters = [], []
    for (before, after), ids in zip(around, cut.axes(node), strict=True):
        mask = cut.mask(ids)
        whole = mask is None or not (before or after)
        befores.append(before if whole or mask is None else int(mask[:before].sum()))
        afters.append(after if whole or mask is None else int(mask[len(mask) - after :].sum()))
    return rebuilt(node, [inputs[0], int64s([*befores, *afters]), input_at(node, 2)])


def _split(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    axis = node.int("axis") % node.types[0].rank
    sizes = []
    for i, type in enumerate(node.types):
        mask = cut.mask(cut.axes(node, i)[axis])
        sizes.append(type.dims[axis] if mask is None else int(mask.sum()))
    return rebuilt(node, [inputs[0], int64s(sizes)])


def _resize(cut: _Cut, node: Node, inputs: list[Node | None]) -> Node:
    sizes = input_at(node, 3)
    if sizes is not None and sizes.is_constant:
        inputs[3] = const(np.array(_dims(cut, node)), sizes.dtype)
    return rebuilt(node, inputs)


CHANGES: Mapping[str, Change] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MatMul": _mat_mul,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Slice": _slice,
    "Pad": _pad,
    "Split": _split,
    "Resize": _resize,
    **dict.fromkeys(RESHAPES, _reshape),
}
