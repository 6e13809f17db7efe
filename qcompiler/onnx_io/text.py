"""A graph with strings -> a graph without, and a note of what runs in Python before it.

Kernels know no strings. What reads or makes them must be made of the model's inputs and constants
by such operators alone; what these make besides strings become inputs of the machine code. So does
a tensor as large as strings of an open size, which nothing reads but who asks for their shape.
"""

from __future__ import annotations

import json
from dataclasses import replace

from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, Type, placeholder, substitute
from qcompiler.ops import make
from qcompiler.runtime.text import MEANINGS, NOTE


def without_text(graph: Graph) -> Graph:
    """The graph itself if it has no strings."""
    if not any(t.dtype == "string" for n in graph.nodes for t in n.types):
        return graph
    graph, sizes = _with_sizes(graph)
    nodes = tuple(dict.fromkeys((*graph.nodes, *sizes)))
    strings = {n for n in nodes if any(t.dtype == "string" for t in n.types)}
    found = [n for n in nodes if n in strings or not strings.isdisjoint(n.operands)]
    names = {n: str(i) for i, n in enumerate(found)}
    steps, constants, inputs = [], {}, {}
    for node in found:
        if node.op == "input":
            inputs[node.name] = [str(d) if isinstance(d, str) else d for d in node.shape]
            names[node] = node.name
        elif node.is_constant:
            constants[names[node]] = [list(node.type.dims), node.array.ravel().tolist()]
        elif node.op == "item":
            names[node] = f"{names[node.operands[0]]}.{node.int('index')}"
        else:
            steps.append(_step(node, names))
    made = {n: names[o] for n, o in graph.results.items() if o in names}
    read = dict.fromkeys([*sizes, *_read_elsewhere(graph, names)])
    taken = {names[n]: placeholder(f"text {names[n]}", _known(n)) for n in read}
    whole = {n: taken[names[n]] for n in names if names[n] in taken}
    pairs = [
        (name, o)
        for name, o in zip(graph.output_names, graph.outputs, strict=True)
        if name not in made
    ]
    program = {
        "inputs": [i.name for i in graph.inputs],
        "outputs": list(graph.results),
        "strings": inputs,
        "constants": constants,
        "steps": steps,
        "feeds": {p.name: name for name, p in taken.items()},
        "made": made,
    }
    kept = tuple(i for i in graph.inputs if i.dtype != "string")
    outputs = tuple(o for _, o in pairs)
    rest = Graph(kept, outputs, tuple(n for n, _ in pairs), graph.name, graph.notes)
    rest = substitute(rest, lambda n: whole.get(n, n)) if taken else rest
    rest = replace(rest, inputs=(*kept, *taken.values()))
    return rest.note(**{NOTE: json.dumps(program)})


def _with_sizes(graph: Graph) -> tuple[Graph, list[Node]]:
    """The graph, in which strings are not asked for their shape, but what is as large; and what is
    as large as inputs of open sizes.
    """
    large: dict[Node, Node] = {}

    def sized(node: Node) -> Node:
        return large.setdefault(node, make("Equal", node, node, name=f"{node.name}.sizes"))

    def asked(node: Node) -> Node:
        if node.op not in ("Shape", "Size") or node.operands[0].dtype != "string":
            return node
        return node.with_inputs([sized(node.operands[0])])

    made = substitute(graph, asked)
    return made, [sized(i) for i in made.inputs if i.dtype == "string" and not i.type.static]


def _step(node: Node, names: dict[Node, str]) -> list[object]:
    if _is_renamed(node):  # a check, if it needs one, is made of sizes
        return ["Identity", {}, [names[node.operands[0]]], [names[node]]]
    if node.op not in MEANINGS:
        raise Error("strings are not supported here", where=f"{node.name} ({node.op})")
    for i in node.operands:
        if i not in names:
            raise Error("strings made of numbers", where=f"{node.name} ({node.op})")
    own = names[node]
    several = len(node.types) > 1
    made = [f"{own}.{i}" for i in range(len(node.types))] if several else [own]
    return [node.op, dict(node.attrs), [names[i] for i in node.operands], made]


def _is_renamed(node: Node) -> bool:
    """Do strings stay as they are, and only one of their sizes gets another name?"""
    if node.op != "Reshape":
        return False
    before, after = node.operands[0].shape, node.shape
    differ = [a for a, b in zip(before, after, strict=False) if a != b]
    return len(before) == len(after) and len(differ) < 2 and 0 not in before


def _read_elsewhere(graph: Graph, names: dict[Node, str]) -> list[Node]:
    """What the other nodes read of what is made here."""
    read = [i for n in graph.nodes if n not in names for i in n.operands if i in names]
    return list(dict.fromkeys(read))


def _known(node: Node) -> Type:
    """A value's type. Raises Error if text decides its size."""
    if node.dtype == "string" or any(s[0] == "?" for s in node.type.symbols):
        raise Error("its size depends on text", where=f"{node.name} ({node.op})")
    return node.type
