"""A graph whose outputs have open sizes though the model declares them -> the same with an integer
input that decides them pinned to the values that give the declared shapes; every run checks it.

The values are sought among the declared sizes, in their order: a shape to crop or pad to is part of
the shape that results. Unless exactly one choice gives all declared shapes, the graph stays open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations

import numpy as np
from onnx import GraphProto

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph
from qcompiler.onnx_io.settle import Stated, declared

MOST = 8
"""Most numbers of an input that is pinned."""

Pins = Mapping[str, Array]
"""Input -> its only values."""


def pinned(graph: Graph, proto: GraphProto, read: Callable[[Pins], Graph]) -> Graph:
    """The graph itself if nothing is open, nothing is declared, or nothing fits."""
    wanted = {n: s for n, s in declared(proto).items() if n in graph.results}
    open_ = [n for n, node in graph.results.items() if not node.type.static]
    if not open_ or not all(n in wanted for n in open_):
        return graph
    found = [made for made in _tried(graph, wanted, read) if _fits(made, wanted)]
    return found[0] if len(found) == 1 else graph


def _fits(graph: Graph, wanted: Mapping[str, Stated]) -> bool:
    return all(graph.results[name].shape == shape for name, shape in wanted.items())


def _tried(
    graph: Graph, wanted: Mapping[str, Stated], read: Callable[[Pins], Graph]
) -> Iterator[Graph]:
    vectors = [
        i
        for i in graph.inputs
        if i.dtype in ("int32", "int64") and i.type.rank == 1 and i.type.static
    ]
    if len(vectors) != 1 or not 1 <= vectors[0].type.size <= MOST:
        return
    (vector,) = vectors
    shapes = dict.fromkeys(wanted.values())
    choices = (c for s in shapes if len(s) <= MOST for c in combinations(s, vector.type.size))
    for values in dict.fromkeys(choices):
        try:
            yield read({vector.name: np.array(values, vector.dtype)})
        except Error:
            continue
