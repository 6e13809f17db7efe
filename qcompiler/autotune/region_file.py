"""A region <-> two files (NAME.json, NAME.npz): what a process that builds its kernels reads, and
what is kept of one whose kernel was wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from qcompiler.errors import Error
from qcompiler.files import contents, parsed
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder, text
from qcompiler.kernels.registry import Region
from qcompiler.ops.kinds import VIEWS


def graph_of(region: Region) -> Graph:
    """A region -> a graph of it alone: what it reads are inputs and constants called i0, i1, ...,
    its nodes are n0, n1, ...
    """
    new: dict[Node, Node] = {}
    for i, node in enumerate(region.inputs):
        array = _constant(node)
        name = f"i{i}"
        made = placeholder(name, node.type) if array is None else constant(array, name)
        new[node] = made
    for i, node in enumerate(region.nodes):
        reads = tuple(None if r is None else new[r] for r in node.inputs)
        new[node] = Node(node.op, reads, node.attrs, node.types, f"n{i}")
    inputs = tuple(new[n] for n in region.inputs if not new[n].is_constant)
    return Graph(inputs, (new[region.output],), ("y",), "region")


def region_in(graph: Graph, root: str, least: Iterable[int] = ()) -> Region:
    """Such a graph -> the region again; `least`: as the region has it."""
    named = {n.name: n for n in graph.nodes}
    inputs = [named[f"i{i}"] for i in range(sum(n[0] == "i" for n in named))]
    nodes = [named[f"n{i}"] for i in range(sum(n[0] == "n" for n in named))]
    anchor, output = named[root] if root else None, graph.outputs[0]
    return Region(anchor, tuple(nodes), tuple(inputs), output, least=tuple(least))


def alone(region: Region) -> Region:
    """A region -> the same of a graph of its own."""
    return region_in(graph_of(region), _root(region), region.least)


def _root(region: Region) -> str:
    return "" if region.root is None else f"n{region.nodes.index(region.root)}"


def save(region: Region, path: Path, **more: object) -> None:
    """A region, and facts that JSON takes -> files. Raises Error where they cannot be written."""
    written, arrays = text.write(graph_of(region))
    facts = {"root": _root(region), "least": region.least, "graph": written, **more}
    try:
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1))
        raw = {k: np.ascontiguousarray(v).reshape(-1).view(np.uint8) for k, v in arrays.items()}
        np.savez(path.with_suffix(".npz"), **raw)  # type: ignore[arg-type]  # its stubs
    except OSError as e:
        raise Error(f"cannot write: {e.strerror or e}", where=str(path)) from e


def load(path: Path) -> tuple[Region, Mapping[str, object]]:
    """Files -> the region, and all facts. Raises Error where there are no such files."""
    try:
        facts = parsed(contents(path.with_suffix(".json")))
        with np.load(path.with_suffix(".npz")) as file:
            raw = {name: file[name] for name in file.files}
        graph = text.read(facts["graph"], lambda name, type: _typed(raw[name], type))
        return region_in(graph, facts["root"], facts["least"]), facts
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise Error(f"no region: {e!r}", where=str(path)) from e


def _typed(raw: Array, type: Type) -> Array:
    return raw.view(numpy_dtype(type.dtype)).reshape(type.dims)


def _constant(node: Node) -> Array | None:
    """A constant, seen through views; None for other values."""
    source = node
    while source.op in VIEWS:
        source = source.operands[0]
    return source.array.reshape(node.type.dims) if source.is_constant else None
