"""Caches that grow by rows in each run, as decoders have them: Concat(past, new), an input before
and an output behind.

The input has room for the output. Rows are written behind those that it has, which may be done in
place; so where one memory serves both, no row moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qcompiler.ir import Dim, Graph, Node
from qcompiler.ops import make
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.rewrite.matching import int64s
from qcompiler.rewrite.padding.digits import digits_of
from qcompiler.rewrite.padding.frame import Padded, Padding

_SAME = ("Identity", "Dropout")


def rooms(graph: Graph) -> dict[Node, Node]:
    """Inputs that only a Concat reads, which puts something behind them -> that Concat, which is an
    output.
    """
    readers: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if known_sizes(node) is None:
            for operand in set(node.operands):
                readers.setdefault(operand, []).append(node)
    outputs = {_bare(n) for n in graph.outputs}
    found = {}
    for given in graph.inputs:
        only = readers.get(given, [])
        if len(only) == 1 and only[0] in outputs and _grows(only[0], given):
            found[given] = only[0]
    return found


def _bare(node: Node) -> Node:
    while node.op in _SAME and len(node.types) == 1:
        node = node.operands[0]
    return node


def _grows(node: Node, given: Node) -> bool:
    if node.op != "Concat" or len(node.operands) != 2 or node.operands[0] is not given:
        return False
    axis = node.int("axis") % node.type.rank
    return axis > 0 and isinstance(given.shape[axis], str) and node.operands[1] is not given


def room_of(node: Node, into: Mapping[Node, Node]) -> tuple[Dim, ...]:
    """The shape of an input in memory."""
    return into[node].shape if node in into else node.shape


def grown(p: Padding, node: Node) -> Padded:
    """The rows of a run behind those of the cache; what lies behind both is finite."""
    axis = node.int("axis") % node.type.rank
    past, new = p.value(node.operands[0]), p.prefix(p.value(node.operands[1]), axis)
    if axis not in new.zero | new.calm:
        new = p.masked(new, [axis], 0)
    count = past.node.type.dims[0]
    starts = p.size(node.operands[0].shape[axis], "int64")
    starts = make("Expand", starts, int64s([count])) if count > 1 else starts
    made = make("TensorScatter", past.node, new.node, starts, axis=axis, name=node.name)
    if any(a != b for i, (a, b) in enumerate(zip(past.dims, new.dims, strict=True)) if i != axis):
        raise p.refused("what is put behind the cache is only as wide for some sizes")
    whole = digits_of([node.type.shape[axis]])
    value = Padded(made, (*past.dims[:axis], whole, *past.dims[axis + 1 :]))
    return replace(value, calm=frozenset([axis]))
