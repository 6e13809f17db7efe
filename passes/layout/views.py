"""Move elementwise operators above a Reshape, so that they fuse into the kernel that made x.

f(Reshape(x), y)  ->  Reshape(f(x, y'))        y' is y reshaped to broadcast to x's shape

This applies if the values between have no other readers. A one-dimensional convolution, which runs
as a two-dimensional one, then ends in its bias and activation; so does a transposed convolution
before its outputs are shuffled.
"""

from __future__ import annotations

from math import prod

import numpy as np
from qcompiler.passes.layout.transposes import merged

from qcompiler.ir import Array, Graph, Node
from qcompiler.ops import is_elementwise
from qcompiler.ops.quantized import TABLES
from qcompiler.rewrite import graph_pass
from qcompiler.rewrite.matching import const, rebuilt, rematerialized, reshape

MAX_GROWN = 1 << 16
"""Most elements of a constant that must be repeated along merged axes."""


@graph_pass
class LayoutViews:
    """f(Reshape(x), y) -> Reshape(f(x, y'))."""

    def __call__(self, graph: Graph) -> Graph:
        """One walk, inputs first; a chain of elementwise nodes passes as a whole."""
        new: dict[Node, Node] = {}
        computed = _Computed()
        for node in graph.nodes:
            moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
            new[node] = _before(moved, node, graph, computed) or moved
        return graph.with_outputs(new[o] for o in graph.outputs)


def _before(node: Node, was: Node, graph: Graph, computed: _Computed) -> Node | None:
    """A node on Reshapes -> a Reshape of the node; None if there is nothing to gain."""
    if not is_elementwise(node) or not node.type.static or node.type.size == 1:
        return None
    whole = [i for i in zip(node.operands, was.operands, strict=True) if i[0].shape == node.shape]
    ends = [i for i, old in whole if _alone(old, graph)]
    if any(i.op != "Reshape" and not rematerialized(i) and computed(i) for i in ends):
        return None  # it already fuses into another kernel
    for view in ends:
        source = view.operands[0] if view.op == "Reshape" else view
        if source is view or not source.type.static or not computed(source):
            continue
        if (operands := _against(node, source.type.dims)) is not None:
            return reshape(rebuilt(node, operands), node.type.dims)
    return None


def _alone(node: Node, graph: Graph) -> bool:
    """Do a value and the values it is a view of have one reader?"""
    below = node.operands[0] if node.op == "Reshape" else node
    return graph.readers[node] == 1 and graph.readers[below] == 1


class _Computed:
    """Is a value made by a kernel, possibly through elementwise nodes, that could fuse more?
    Results are memoized, so that a chain is walked once.
    """

    def __init__(self) -> None:
        self.known: dict[Node, bool] = {}

    def __call__(self, node: Node) -> bool:
        passed: list[Node] = []
        while node not in self.known:
            passed.append(node)
            if not is_elementwise(node):
                self.known[node] = node.op not in ("input", "constant", "Reshape")
                break
            wide = (i for i in node.operands if i.shape == node.shape and not i.is_constant)
            below = next(wide, None)
            if below is None:
                self.known[node] = False
                break
            node = below
        self.known.update((n, self.known[node]) for n in passed)
        return self.known[node]


def _against(node: Node, shape: tuple[int, ...]) -> list[Node | None] | None:
    """The operands of an elementwise node, reshaped to broadcast to another shape of its size."""
    groups = merged(list(node.type.dims), shape) if node.type.size else None
    if groups is None:
        return None
    made: list[Node | None] = []
    for place, operand in enumerate(node.inputs):
        if operand is None or place in TABLES.get(node.op, ()):
            made.append(operand)
        elif (seen := _seen(operand, node.type.dims, shape, groups)) is not None:
            made.append(seen)
        else:
            return None
    return made


def _seen(
    operand: Node,
    whole: tuple[int, ...],
    shape: tuple[int, ...],
    groups: list[tuple[list[int], list[int]]],
) -> Node | None:
    """An operand that broadcasts to `whole` -> to `shape`; None if no Reshape does it."""
    if operand.type.size == 1:
        return operand if operand.type.rank <= 1 else reshape(operand, ())
    if rematerialized(operand) and operand.shape == whole and (inner := _against(operand, shape)):
        return rebuilt(operand, inner)
    given = (1,) * (len(whole) - operand.type.rank) + operand.type.dims
    grown, target = list(given), [1] * len(shape)
    for before, after in groups:
        if all(given[a] == 1 for a in before):
            continue
        for a in before:
            grown[a] = whole[a]
        for a in after:
            target[a] = shape[a]
    if not operand.is_constant:
        return reshape(operand, target) if tuple(grown) == given else None
    if tuple(grown) != given and prod(grown) > MAX_GROWN:
        return None
    return _vector(np.broadcast_to(operand.array.reshape(given), grown).reshape(target))


def _vector(array: Array) -> Node:
    """A constant without leading axes of length 1."""
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    return const(np.ascontiguousarray(array))
