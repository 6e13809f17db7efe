"""A graph with strings -> a graph without, and a note of what runs in Python before it.

Kernels know no strings. What reads or makes them must be made of the model's inputs and constants
by such operators alone; what these make besides strings become inputs of the machine code.
"""

from __future__ import annotations

import json
from dataclasses import replace

from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, placeholder, substitute
from qcompiler.runtime.text import MEANINGS, NOTE


def without_text(graph: Graph) -> Graph:
    """The graph itself if it has no strings."""
    strings = {n for n in graph.nodes if any(t.dtype == "string" for t in n.types)}
    found = [n for n in graph.nodes if n in strings or not strings.isdisjoint(n.operands)]
    if not found:
        return graph
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
    taken = {
        names[n]: placeholder(f"text {names[n]}", n.type) for n in _read_elsewhere(graph, names)
    }
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


def _step(node: Node, names: dict[Node, str]) -> list[object]:
    if node.op not in MEANINGS:
        raise Error("strings are not supported here", where=f"{node.name} ({node.op})")
    for i in node.operands:
        if i not in names:
            raise Error("strings made of numbers", where=f"{node.name} ({node.op})")
    own = names[node]
    several = len(node.types) > 1
    made = [f"{own}.{i}" for i in range(len(node.types))] if several else [own]
    return [node.op, dict(node.attrs), [names[i] for i in node.operands], made]


def _read_elsewhere(graph: Graph, names: dict[Node, str]) -> list[Node]:
    """What the other nodes read of what is made here."""
    read = [i for n in graph.nodes if n not in names for i in n.operands if i in names]
    found = list(dict.fromkeys(read))
    for node in found:
        if not node.type.static or node.dtype == "string":
            raise Error("its size depends on text", where=f"{node.name} ({node.op})")
    return found
