"""A loop whose body is a graph, and the zeros that a loop writes over.

The body takes the states, the first of which is one boolean, then whatever it reads from around it;
its outputs are the states of the next iteration:

    while going: going, *states = body(going, *states, *around)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder, walk
from qcompiler.ops.evaluate import evaluate, known_value
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.registry import make, operator, required, typed


@operator("loop", body=required())
def loop(node: Node, *arrays: Array) -> tuple[Array, ...]:
    """The states when the first, `going`, has become false; the given ones if it is so before."""
    body = node.graph("body")
    count, names = len(body.outputs), [i.name for i in body.inputs]
    states, around = arrays[:count], arrays[count:]
    while states[0].all():
        found = evaluate(body, dict(zip(names, (*states, *around), strict=True)))
        states = tuple(found[name] for name in body.output_names)
    return states


@typed(loop)
def _(node: Node) -> tuple[Type, ...]:
    body = node.graph("body")
    states = [o.type for o in body.outputs]
    if len(states) < 2 or states[0].dtype != "bool" or states[0].size != 1:
        raise Error("the first of its states, two or more, is not one boolean")
    given, wanted = [i.type for i in node.operands], [i.type for i in body.inputs]
    if given != wanted or given[: len(states)] != states:
        raise Error("its operands, the body's inputs and its outputs do not agree")
    return tuple(states)


@operator("room", dtype=required(), shape=required())
def room(node: Node) -> Array:
    """Zeros that are never a constant: the memory of what a loop stacks, before it begins."""
    return np.zeros(node.type.dims, numpy_dtype(node.dtype))


@typed(room)
def _(node: Node) -> Type:
    shape = node.attrs["shape"]
    assert isinstance(shape, tuple)
    dims = (d if isinstance(d, str) else int(d) for d in shape if isinstance(d, (int, str)))
    return Type(node.str("dtype"), tuple(dims))


def looped(
    firsts: Sequence[Node], states: Sequence[Node], outputs: Sequence[Node], name: str
) -> list[Node]:
    """What states are at first, placeholders for them, and what an iteration makes of these -> the
    states when the loop has ended. What does not depend on them is read from around the loop.
    """
    around = _Around()
    inside: dict[Node, Node] = {n: n for n in states}
    for node in walk(outputs):
        if node not in inside and any(i in inside for i in node.operands):
            inside[node] = node.with_inputs(i and (inside.get(i) or around(i)) for i in node.inputs)
    ends = tuple(inside.get(o) or around(o) for o in outputs)
    names = tuple(f"next{i}" for i in range(len(ends)))
    body = Graph((*states, *around.taken.values()), ends, names, "body")
    made = make("loop", *firsts, *around.taken, body=body, name=name)
    return [make("item", made, index=i, name=f"{name}.{i}") for i in range(len(ends))]


def most_iterations(node: Node) -> int | None:
    """The most iterations that a loop may have, as far as it is known: what it goes on below, where
    it counts a state up from 0, and the rows of what it stacks.
    """
    body, firsts = node.graph("body"), node.operands
    known = [n.type.dims[0] for n in firsts if n.op == "room" and n.type.static and n.type.rank]
    counted = [
        state
        for state, first, new in zip(body.inputs, firsts, body.outputs, strict=False)
        if _number(first) == 0 and _follows(new, state)
    ]
    for condition in _all_of(body.outputs[0]):
        if condition.op == "Less" and any(_follows(condition.operands[0], s) for s in counted):
            limit = _number(condition.operands[1])
            known += [] if limit is None else [limit]
    return min(known, default=None)


def _all_of(condition: Node) -> list[Node]:
    """The conditions that are all true where this one is."""
    if condition.op != "And":
        return [condition]
    return [c for operand in condition.operands for c in _all_of(operand)]


def _follows(node: Node, state: Node) -> bool:
    """Is a value a state and 1?"""
    return node.op == "Add" and node.operands[0] is state and _number(node.operands[1]) == 1


def _number(node: Node) -> int | None:
    value = known_value(node) if node.type.size == 1 else None
    return None if value is None else int(value.item())


class _Around:
    """What a body reads from around it -> constants, or inputs of the body."""

    def __init__(self) -> None:
        self.taken: dict[Node, Node] = {}
        """Nodes around the loop -> the inputs that stand for them."""

    def __call__(self, node: Node) -> Node:
        if node.is_constant:
            return node
        known = known_value(node)
        if known is not None:
            return constant(known, node.name)
        if node.operands and known_sizes(node) is not None:  # it stays known inside
            return node.with_inputs(i and self(i) for i in node.inputs)
        if node not in self.taken:
            self.taken[node] = placeholder(f"around{len(self.taken)}", node.type)
        return self.taken[node]
