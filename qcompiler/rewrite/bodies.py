"""Loops of a graph -> the same with other bodies.

A constant that a body reads from around it becomes one of the body's own, so that what is known of
it is known there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qcompiler.ir import Graph, Node, substitute
from qcompiler.ops import make


def with_bodies(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """A graph -> the same with every loop's body changed; itself if none is."""

    def one(node: Node) -> Node:
        if node.op != "loop":
            return node
        own = _with_constants(node)
        body = change(own.graph("body"))
        return own if body is own.graph("body") else replace(own, attrs={"body": body})

    return substitute(graph, one)


def _with_constants(node: Node) -> Node:
    """A loop whose operands, but the states, are no constants."""
    body = node.graph("body")
    states = len(body.outputs)
    pairs = list(zip(body.inputs, node.operands, strict=True))
    moved = {i: n for i, n in pairs[states:] if n.is_constant}
    if not moved:
        return node
    changed = substitute(body, lambda n: moved.get(n, n))
    kept = [(i, n) for i, n in pairs if i not in moved]
    inner = replace(changed, inputs=tuple(i for i, _ in kept))
    return make("loop", *(n for _, n in kept), name=node.name, body=inner)
