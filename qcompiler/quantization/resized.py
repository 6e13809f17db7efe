"""A quantized graph -> the same quantization of the same model in smaller sizes.

Graphs of several sizes made of one model differ only in what they read of sizes: inputs, and
constants such as the targets of Reshapes. So the quantized graph is built again on those of the
smaller one: scales, zero points, integer weights, corrected biases and the choice of what stays in
float are those that calibration gave the largest sizes. What follows (lowering) may see the sizes,
so `differences` compares what it makes of the numbers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qcompiler.errors import Error, Skip
from qcompiler.ir import Array, Graph, Node, Type
from qcompiler.rewrite.matching import rebuilt

Parameters = Counter[tuple[str, str, str]]
"""(Operator, type, digest) of constants that operators read -> how often."""

_BYTES = frozenset({"int8", "uint8", "int16", "uint16"})
_SIZES = frozenset({"int64", "bool"})


def resized(quantized: Graph, exact: Graph, smaller: Graph) -> Graph | Skip:
    """What passes made of the float graph `exact`, and the same model's float graph of smaller
    sizes -> what they would make of that one; or why that is not known.
    """
    twins = _twins(exact, smaller)
    if isinstance(twins, Skip):
        return twins
    leaves = {n: t for n, t in twins.items() if n.op in ("input", "constant")}
    own = {n: t for n, t in leaves.items() if not _equal(n, t)}
    for node in own:
        if node.is_constant and quantized.readers[node] != exact.readers[node]:
            return Skip(f"what was made of {_named(node)} may depend on the sizes")
    made: dict[Node, Node] = {}
    try:
        for node in quantized.nodes:
            made[node] = own.get(node) or _on(node, made)
    except Error as e:
        return Skip(f"the quantized graph makes no sense in smaller sizes: {e}")
    inputs = tuple(made[n] for n in quantized.inputs)
    outputs = tuple(made[n] for n in quantized.outputs)
    if [n.types for n in outputs] != [n.types for n in smaller.outputs]:
        return Skip("the quantized graph has outputs of other shapes")
    return replace(quantized, inputs=inputs, outputs=outputs)


def differences(lowered: Graph, smaller: Graph) -> str:
    """The lowered graphs of two sizes -> what their integer operators read that is not the same in
    both; "" if their numbers are the same.
    """
    a, b = _parameters(lowered), _parameters(smaller)
    found = [*(a - b), *(b - a)]
    return "; ".join(sorted({f"{type} of {op}" for op, type, _ in found}))


def _twins(graph: Graph, other: Graph) -> Mapping[Node, Node] | Skip:
    """The nodes of a graph -> those of one that differs in sizes only."""
    sides = [(g.inputs, g.outputs, g.output_names) for g in (graph, other)]
    if [list(map(len, side)) for side in sides] != [list(map(len, sides[0]))] * 2:
        return Skip("inputs or outputs are others")
    found: dict[Node, Node] = {}
    todo = [*zip((*graph.inputs, *graph.outputs), (*other.inputs, *other.outputs), strict=True)]
    while todo:
        node, twin = todo.pop()
        if node in found:
            if found[node] is not twin and not _equal(found[node], twin):
                return Skip(f"{_named(node)} is two nodes there")
            continue
        if not _alike(node, twin):
            return Skip(f"{_named(node)} is another node there")
        found[node] = twin
        pairs = zip(node.inputs, twin.inputs, strict=True)
        todo += [(i, j) for i, j in pairs if i is not None and j is not None]
    return found


def _alike(node: Node, twin: Node) -> bool:
    """Are two nodes the same but for sizes, and for the numbers of constants?"""
    if node.op != twin.op or list(map(_kind, node.types)) != list(map(_kind, twin.types)):
        return False
    if node.is_constant:
        return True
    absent = [[i is None for i in n.inputs] for n in (node, twin)]
    attrs = node.attrs.keys() == twin.attrs.keys()
    same = attrs and all(_same(v, twin.attrs[k]) for k, v in node.attrs.items())
    return same and node.name == twin.name and absent[0] == absent[1]


def _kind(type: Type) -> tuple[str, int]:
    return type.dtype, type.rank


def _equal(node: Node, twin: Node) -> bool:
    """Are both constants, of the same numbers?"""
    return node.is_constant and twin.is_constant and _same(node.array, twin.array)


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return alike and (a is b or a.tobytes() == b.tobytes())
    return type(a) is type(b) and bool(a == b)


def _on(node: Node, made: Mapping[Node, Node]) -> Node:
    """A node on the inputs that were made."""
    inputs = [None if i is None else made[i] for i in node.inputs]
    unchanged = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
    return node if unchanged else rebuilt(node, inputs)


def _named(node: Node) -> str:
    return f"{node.name} ({node.op})" if node.name else node.op


def _parameters(graph: Graph) -> Parameters:
    """The constants of few bits, and all numbers that operators on such values read besides."""
    found: Parameters = Counter()
    for node in graph.nodes:
        types = [*node.types, *(t for i in node.operands for t in i.types)]
        whole = any(t.dtype in _BYTES for t in types)
        for i in node.operands:
            if i.is_constant and whole and i.dtype not in _SIZES:
                found[node.op, str(i.type), _digest(i.array)] += 1
    return found


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
