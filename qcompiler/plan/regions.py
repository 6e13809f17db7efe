"""Graph -> regions: nodes that one kernel computes together, in an executable order.

An elementwise node joins the kernel of the value it reads if nothing else reads that value. So
bias, activation, residual addition and quantization fuse into the convolution before them. Views
(Reshape and others), which only rename memory, belong to no region.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np

from qcompiler.ir import Graph, Node, constant
from qcompiler.kernels.registry import Region
from qcompiler.ops import OPERATORS, make
from qcompiler.ops.kinds import VIEWS

NO_PROLOGUE = frozenset({"conv", "matmul", "matmul_narrow", "Attention", "attention", "loop"})
"""Anchors that read their operands many times: an elementwise prologue would be repeated."""

MAX_INPUTS = 24

MAX_NODES = 64
"""A longer chain becomes several kernels: the code of one would grow faster than its nodes."""


def is_view(node: Node) -> bool:
    """Does it only rename memory? So does what reads one of a loop's states."""
    return node.op in VIEWS or (node.op == "item" and node.operands[0].op == "loop")


def is_elementwise(node: Node) -> bool:
    """Does it have a formula?"""
    return OPERATORS[node.op].formula is not None


def base(node: Node) -> Node:
    """A view, or views of views -> the node whose memory they show."""
    while is_view(node):
        node = node.operands[0]
    return node


@dataclass(eq=False)
class _Group:
    """A region while it grows."""

    output: Node
    root: Node | None = None
    nodes: list[Node] = field(default_factory=list)


def regions(graph: Graph) -> list[Region]:
    """A graph of static types -> its regions, each after those it reads; a loop is one of them,
    whose kernels are those of its body (repeats.py).
    """
    groups: dict[Node, _Group] = {}  # by output
    moved = _fused_into_readers(graph)
    for node in graph.nodes:
        if node.op in ("input", "constant", "room") or is_view(node):
            continue
        if node.op == "loop":
            group = _Group(node, node, [node])
        elif len(node.types) > 1:
            continue
        elif node in moved:
            group = _Group(node, None, [node])
        elif is_elementwise(node):
            group = _join(node, groups, graph)
        else:
            group = _anchor(node, groups, graph)
        groups[node] = group
    return _ordered([_region(g) for g in groups.values()])


def _fused_into_readers(graph: Graph) -> set[Node]:
    """Nodes that widen their operand: a dequantize, or a cast from 16-bit floats, joins its
    reader's kernel, not its operand's, so that memory holds the smaller type.
    """
    found = set()
    for node in graph.nodes:
        for i in node.operands:
            half = i.op == "Cast" and i.operands[0].dtype in ("bfloat16", "float16")
            if (half or i.op == "dequantize") and i.operands[0].type.bytes < i.type.bytes:
                fuses = is_elementwise(node) and i.shape == node.shape
                leads = i is node.operands[0] and node.op not in NO_PROLOGUE | VIEWS
                if (fuses or leads) and _only_reader(i, node, graph):
                    found.add(i)
    return found


def _join(node: Node, groups: dict[Node, _Group], graph: Graph) -> _Group:
    """Merge an elementwise node with the groups that only it reads."""
    open_ = [
        g
        for i in dict.fromkeys(node.operands)
        if (g := groups.get(i)) and _only_reader(i, node, graph)
    ]
    open_ = [g for g in open_ if g.output.type.shape == node.type.shape]
    anchored = [g for g in open_ if g.root is not None]
    joined = anchored[-1:] + [g for g in open_ if g.root is None]
    nodes = [n for g in joined for n in g.nodes]
    wide = len(_outside(nodes)) + len(node.operands) > MAX_INPUTS
    if not joined or wide or len(nodes) >= MAX_NODES:
        return _Group(node, None, [node])
    for g in joined:
        del groups[g.output]
    return _Group(node, joined[0].root, [*_in_order(nodes), node])


def _anchor(node: Node, groups: dict[Node, _Group], graph: Graph) -> _Group:
    """An anchor starts a group, with the elementwise group of its first operand as its prologue.

    A node of several outputs is computed with each `item` that reads it.
    """
    if node.op == "item":
        return _Group(node, node, [node.operands[0], node])
    source = node.operands[0] if node.operands else None
    producer = groups.get(source) if source is not None and node.op not in NO_PROLOGUE else None
    if (
        source is None
        or producer is None
        or producer.root is not None
        or not _only_reader(source, node, graph)
    ):
        return _Group(node, node, [node])
    del groups[source]
    return _Group(node, node, [*producer.nodes, node])


def _only_reader(source: Node, reader: Node, graph: Graph) -> bool:
    return graph.readers[source] == sum(i is source for i in reader.operands)


def _in_order(nodes: Iterable[Node]) -> list[Node]:
    """Nodes of several groups -> one list, each after what it reads."""
    todo = dict.fromkeys(nodes)  # ordered, so that equal graphs give equal kernels
    order: list[Node] = []
    stack = [(n, False) for n in reversed(todo)]
    done: set[Node] = set()
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node in todo and node not in done:
            done.add(node)
            stack.append((node, True))
            stack.extend((i, False) for i in reversed(node.operands))
    return order


def _outside(nodes: Iterable[Node]) -> list[Node]:
    """What nodes read from outside themselves, each once, in order of reading."""
    inside = set(nodes)
    return list(dict.fromkeys(i for n in nodes for i in n.operands if i not in inside))


def _region(group: _Group) -> Region:
    nodes = tuple(group.nodes)
    return Region(group.root, nodes, tuple(_outside(nodes)), group.output)


def split(region: Region) -> list[Region]:
    """A region that no generator can make -> regions of its prologue, anchor and epilogue."""
    if region.root is None:
        return []
    anchor = (*(i for i in region.root.operands if len(i.types) > 1), region.root)
    if len(anchor) == len(region.nodes):
        return []
    reached = _reached(region.root, region.nodes)
    prologue = tuple(n for n in region.nodes if n in reached and n not in anchor)
    epilogue = [n for n in region.nodes if n not in reached]
    parts = []
    if prologue:
        parts.append(Region(None, prologue, tuple(_outside(prologue)), prologue[-1]))
    parts.append(Region(region.root, anchor, tuple(_outside(anchor)), region.root))
    if epilogue:
        parts.append(Region(None, tuple(epilogue), tuple(_outside(epilogue)), region.output))
    return parts


def _reached(root: Node, nodes: Iterable[Node]) -> set[Node]:
    """The nodes of a region that its anchor depends on, and the anchor."""
    inside = set(nodes)
    found: set[Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in inside and node not in found:
            found.add(node)
            stack.extend(node.operands)
    return found


def _ordered(found: list[Region]) -> list[Region]:
    """Regions, each after those it reads, otherwise in the model's order."""
    makers = {r.output: r for r in found}
    order = {r: i for i, r in enumerate(found)}
    links: nx.DiGraph[Region] = nx.DiGraph()
    links.add_nodes_from(found)
    for region in found:
        links.add_edges_from((makers[b], region) for i in region.inputs if (b := base(i)) in makers)
    return list(nx.lexicographical_topological_sort(links, key=order.__getitem__))


def with_copies(graph: Graph) -> Graph:
    """Graph -> a graph whose outputs are each made by their own region: an output that is an input,
    a constant, a state of a loop, or shares another output's memory, is copied.
    """
    taken: set[Node] = set()
    outputs = []
    for output in graph.outputs:
        source = base(output)
        if source.op in ("input", "constant", "loop") or source in taken:
            output = copied(output, output.name)
            source = output
        taken.add(source)
        outputs.append(output)
    return graph.with_outputs(outputs)


def copied(node: Node, name: str) -> Node:
    """What copies a value in memory."""
    perm = tuple(range(node.type.rank))
    if perm:
        return make("Transpose", node, perm=perm, name=name)
    rows = make("Reshape", node, constant_shape((1,)))
    return make("Reshape", make("Transpose", rows, perm=(0,), name=name), constant_shape(()))


def constant_shape(shape: tuple[int, ...]) -> Node:
    """The constant that Reshape reads as its target shape."""
    return constant(np.array(shape, np.int64))
