"""A graph with open sizes -> the same of their largest sizes, with the sizes of a run as inputs.

For every run, an output's first elements along each dimension are exactly what the graph means in
that run's sizes; what lies behind them is arbitrary. Inputs may hold anything behind their own.
What is not proven to be so is refused by an Error that names the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import CHECK, Dim, Graph, Node, Type, placeholder, walk
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.rewrite.padding import (
    alone,
    along,
    borders,
    loops,
    moves,
    products,
    resampling,
    scatters,
    windows,
)
from qcompiler.rewrite.padding.caches import room_of, rooms
from qcompiler.rewrite.padding.digits import Digits, digits_of
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.rules import see

__all__ = ["Result", "padded"]

RULES_OF = (alone, along, borders, loops, moves, products, resampling, scatters, windows)
"""Where the rules are."""

_WALKS = 16
"""So often a graph is walked, at most: each time, more is set to 0 where it helps most."""


@dataclass(frozen=True)
class Result:
    """A graph of the largest sizes."""

    graph: Graph
    sizes: tuple[str, ...]
    """Which expressions its last inputs are, each int32[1]."""
    symbols: tuple[Symbol, ...]
    """The open sizes, and what they may be."""
    dims: Mapping[str, tuple[Digits, ...]]
    """The digits of values, by the names of the nodes that make them."""
    rooms: Mapping[str, tuple[Dim, ...]]
    """The shapes in memory of inputs that have room for more."""

    @property
    def top(self) -> Mapping[str, int]:
        """The largest size of each symbol."""
        return {s.name: s.high for s in self.symbols}


def padded(graph: Graph, symbols: Sequence[Symbol]) -> Result:
    """A graph with symbols in its types -> that of their largest numbers. Raises Error for what
    cannot be padded.
    """
    names = " ".join(f"--dim {s.name}=N" for s in symbols)
    zeroed: frozenset[Node] = frozenset()
    caches, checked = rooms(graph), _checked(graph)
    for _ in range(_WALKS):
        p = Padding(symbols, zeroed, frozenset(caches.values()), checked)
        inputs = [_input(p, node, room_of(node, caches)) for node in graph.inputs]
        for node in graph.nodes:
            see(p, node)
        if p.wanted <= zeroed:
            break
        zeroed |= p.wanted
    else:
        raise Error(
            "the sizes cannot stay open: what they mix is not found", hint=f"pin them: {names}"
        )
    pairs = zip(graph.output_names, graph.outputs, strict=True)
    made_of = [_check(p, n) if name.startswith(CHECK) else _output(p, n) for name, n in pairs]
    outputs = _named(p, made_of)
    read = set(walk(outputs))
    sizes = {str(size): node for size, node in p.sizes.items() if node in read}
    made = replace(graph, inputs=(*inputs, *sizes.values()), outputs=tuple(outputs))
    dims = {n.name: v[0].dims for n, v in p.known.items() if n.name and len(v) == 1}
    larger = {node.name: room_of(node, caches) for node in caches}
    return Result(made, tuple(sizes), tuple(symbols), dims, larger)


def _checked(graph: Graph) -> frozenset[tuple[Dim, Dim]]:
    """Pairs of sizes of which every run checks that the first is not above the second."""
    nodes = [n for n in graph.checks.values() if n.op == "LessOrEqual" and n.type.size == 1]
    sides = [[known_sizes(i) for i in n.operands] for n in nodes]
    found = [(a, b) for a, b in sides if a is not None and b is not None]
    return frozenset((a.item(), b.item()) for a, b in found)


def _named(p: Padding, outputs: Sequence[Node]) -> list[Node]:
    """The same outputs, in a graph in which a name is that of the value of its node, not of what
    was made on the way to it. Inputs keep theirs, also where a value is a size of the run.
    """
    names: dict[Node, str] = {}
    for node, values in p.known.items():
        if node.name and len(values) == 1 and values[0].node.op != "input":
            names.setdefault(values[0].node, node.name)
    taken, made = set(names.values()), dict[Node, Node]()
    for node in walk(outputs):
        name = names.get(node, "" if node.name in taken else node.name)
        one = node if name == node.name else replace(node, name=name)
        made[node] = one.with_inputs(None if i is None else made[i] for i in node.inputs)
    return [made[node] for node in outputs]


def _input(p: Padding, node: Node, room: Sequence[Dim]) -> Node:
    p.node = node
    for d in node.type.shape:
        if isinstance(d, str) and not Size.of(d).symbols <= p.ranges.keys():
            raise p.refused(f"{d} is open, too", f"--dim {d}=N")
        p.demand_largest(d)
    made = placeholder(node.name, Type(node.dtype, tuple(map(p.at, room))))
    p.known[node] = (Padded(made, tuple(digits_of([d]) for d in node.type.shape)),)
    return made


def _check(p: Padding, node: Node) -> Node:
    """What must be true in every run, where it is valid."""
    p.node = node
    value = p.value(node)
    return p.masked(value, value.open, True).node


def _output(p: Padding, node: Node) -> Node:
    """An output, with its valid positions first."""
    p.node = node
    value = p.value(node)
    for axis in range(value.rank):
        value = p.prefix(value, axis)
    return value.node
