"""Loops -> the steps of their bodies, which a run repeats.

A loop becomes the regions of its body, once, between copies: before them each state is copied to a
place of its own, which the body reads; behind them each new state is copied there. A run that comes
to the body's first step goes on behind its last one unless the state `going` is true, and one that
has done the last goes back to the first while it is. What the body reads from outside must stay in
memory until the loop ends, and what it makes lives for one iteration. A new state is written to its
place at once, without a copy, if nothing in the body reads the old one afterwards: so rows are put
into the memory of a stack where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qcompiler.ir import Graph, Node, constant, numpy_dtype
from qcompiler.kernels.registry import Region
from qcompiler.ops import make
from qcompiler.ops.loop import most_iterations
from qcompiler.plan.places import Place
from qcompiler.plan.regions import base, constant_shape, copied, regions

LIKELY = 16
"""Iterations of a loop of which a run alone knows how many there are, where times are predicted."""


@dataclass(frozen=True)
class Repeat:
    """Steps from `first` to before `last` run again and again while a byte, `going`, is true."""

    first: int
    last: int
    going: Place
    times: int = 1
    """How often they do, as far as it is known or likely."""

    def __str__(self) -> str:
        return f"repeat steps {self.first} to {self.last - 1} while {self.going} is true"


@dataclass(frozen=True)
class Loop:
    """A loop among regions in order: those of its body from `first` to before `last`; where its
    states are, and what the copies behind the body write there, `going` first; and how many
    iterations it has, as far as that is known or likely.
    """

    first: int
    last: int
    states: tuple[Node, ...]
    copies: tuple[Node, ...]
    times: int = 1

    def holds(self, index: int) -> bool:
        """Is a region in the body?"""
        return self.first <= index < self.last

    def moved(self, starts: Sequence[int]) -> Loop:
        """The same, where region i became what begins at starts[i]."""
        return replace(self, first=starts[self.first], last=starts[self.last])


@dataclass(frozen=True)
class Flat:
    """A graph without loops, which is what it means if each runs one iteration; its regions in the
    order they run; and the loops among them, the outer before the inner.
    """

    graph: Graph
    regions: tuple[Region, ...]
    loops: tuple[Loop, ...]

    @property
    def kept(self) -> Graph:
        """The graph with the states and their copies as outputs, too: each matters in every run."""
        more = [n for loop in self.loops for n in (*loop.states, *loop.copies)]
        names = [f"kept {i}" for i in range(len(more))]
        graph = self.graph
        outputs, named = (*graph.outputs, *more), (*graph.output_names, *names)
        return replace(graph, outputs=outputs, output_names=named)


def turns(loops: Sequence[Loop] | Sequence[Repeat], count: int) -> list[int]:
    """How often each of so many regions or steps runs, as far as it is known or likely."""
    found = [1] * count
    for loop in loops:
        for i in range(loop.first, min(loop.last, count)):
            found[i] *= loop.times
    return found


def has_loops(graph: Graph) -> bool:
    """Is there a loop in a graph?"""
    return any(n.op == "loop" for n in graph.nodes)


def flattened(graph: Graph) -> Flat:
    """Graph (static shapes) -> regions, those of loops' bodies among them."""
    if not has_loops(graph):
        return Flat(graph, tuple(regions(graph)), ())
    made = _flat(graph, {i: i for i in graph.inputs})
    loops = sorted(made.loops, key=lambda loop: (loop.first, -loop.last))
    return Flat(replace(graph, outputs=made.outputs), tuple(made.regions), tuple(loops))


@dataclass
class _Part:
    """What a graph or a loop became: its regions, the loops among them, and its outputs."""

    outputs: tuple[Node, ...] = ()
    regions: list[Region] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)

    def add(self, other: _Part) -> None:
        """Another's regions behind the own."""
        starts = range(len(self.regions), len(self.regions) + len(other.regions) + 1)
        self.loops += [loop.moved(starts) for loop in other.loops]
        self.regions += other.regions

    def copy(self, node: Node, name: str) -> Node:
        """A value copied by a region behind the own."""
        made = copied(node, name)
        root = base(made)
        self.regions.append(Region(root, (root,), root.operands, root))
        return made

    def zeros(self, room: Node, name: str) -> Node:
        """Zeros in memory, by a region behind the own."""
        zero = constant(np.zeros((), numpy_dtype(room.dtype)))
        root = make("Expand", zero, constant_shape(room.type.dims), name=name)
        self.regions.append(Region(root, (root,), root.operands, root))
        return root


def _flat(graph: Graph, given: Mapping[Node, Node]) -> _Part:
    """A graph on given nodes for its inputs."""
    new = dict(given)
    parts: dict[Node, _Part] = {}
    for node in graph.nodes:
        if node.op == "loop":
            parts[node] = _repeated(node, [new[i] for i in node.operands])
        elif node.op == "item" and node.operands[0] in parts:
            new[node] = parts[node.operands[0]].outputs[node.int("index")]
        elif node.is_constant:
            new[node] = node
        elif node not in new:  # a node of its own, whatever other graphs share it
            new[node] = replace(node, inputs=tuple(i and new[i] for i in node.inputs))
    made = _Part(tuple(new[o] for o in graph.outputs))
    for region in regions(graph):
        root = region.root
        if root in parts:
            made.add(parts[root])
            continue
        nodes = tuple(new[n] for n in region.nodes)
        inputs = tuple(dict.fromkeys(new[i] for i in region.inputs))
        made.regions.append(Region(root and new[root], nodes, inputs, new[region.output]))
    return made


def _repeated(node: Node, operands: Sequence[Node]) -> _Part:
    """A loop on its operands: its outputs are the places of its states when it has ended."""
    body, made, name = node.graph("body"), _Part(), node.name or "loop"
    states: list[Node] = []
    for i, operand in enumerate(operands[: len(body.outputs)]):
        room = operand.op == "room"
        begin = made.zeros if room else made.copy
        states.append(begin(operand, f"{name}/begin{i}"))
    first = len(made.regions)
    inner = _flat(body, dict(zip(body.inputs, (*states, *operands[len(states) :]), strict=True)))
    made.add(inner)
    news = list(inner.outputs)
    places = [base(s) for s in states]
    for i, new in enumerate(news):
        if base(new) in places and base(new) is not places[i]:  # read before it is written anew
            news[i] = made.copy(new, f"{name}/was{i}")
    copies = [
        old if base(new) is place else made.copy(new, f"{name}/next{i}")
        for i, (new, old, place) in enumerate(zip(news, states, places, strict=True))
    ]
    ends = tuple(base(c) for c in copies)
    times = most_iterations(node)
    times = LIKELY if times is None else max(times, 1)
    made.loops.append(Loop(first, len(made.regions), tuple(places), ends, times))
    made.outputs = tuple(copies)
    return made
