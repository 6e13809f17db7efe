"""Compute the queries, keys and values of one tensor by one product, in adjacent columns.

attention(f(matmul(x, q)), f(matmul(x, k)), f(matmul(x, v)), mask)
                                      ->  attention(f(matmul(x, [q k v])), mask)

f are the elementwise operators after each product, equal but for their constants, which are scalar
or per column. Then x is read once, and the product has more columns to share among threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.ir import Graph, Node
from qcompiler.ops import OPERATORS, is_elementwise, make
from qcompiler.ops.quantized import TABLES
from qcompiler.rewrite import Explain, Skip, graph_pass
from qcompiler.rewrite.matching import const, per_channel, rebuilt, reshape


@graph_pass
class LayoutQkv:
    """attention(f(matmul(x, q)), f(matmul(x, k)), f(matmul(x, v))) -> one product for all."""

    explain: Explain | None = None

    def __call__(self, graph: Graph) -> Graph:
        """Merge the products of every attention with interleaved heads."""
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
            made = joined(moved, graph, node) if attends(node) else moved
            if isinstance(made, Skip):
                if self.explain is not None:
                    self.explain("layout_qkv", node, made.reason)
                made = moved
            new[node] = made
        return graph.with_outputs(new[o] for o in graph.outputs)


def attends(node: Node) -> bool:
    """Is it attention of three tensors with interleaved heads?"""
    named = node.op in ("Attention", "attention") and len(node.types) == 1
    past = node.op == "Attention" and any(node.inputs[4:])
    apart = len(node.inputs) >= 3 and None not in node.inputs[:3]
    return named and apart and not past and node.type.rank == 3


def joined(node: Node, graph: Graph, before: Node) -> Node | Skip:
    """Attention of three chains -> of one. `before` is the node in the original graph."""
    if any(graph.readers[link] > 1 for i in before.operands[:3] for link in chain(i)):
        return Skip("queries, keys or values have other readers too")
    rows = list(zip(*(chain(i) for i in node.operands[:3]), strict=False))
    if not rows or not all(_alike(*links) for links in rows) or rows[-1][0].op != "matmul":
        return Skip("queries, keys and values do not come from similar products of one tensor")
    *after, products = rows
    if any(_zeros_differ(links) for links in after):
        return Skip("the zero points differ")
    transposed = products[0].int("transpose_b")
    weights = np.concatenate([n.operands[1].array for n in products], axis=0 if transposed else 1)
    made = rebuilt(products[0], (products[0].operands[0], const(weights)))
    for links in reversed(after):
        made = merged(links, made)
    attrs = {k: v for k, v in node.attrs.items() if k in OPERATORS["attention"].defaults}
    rest = (None, None, *node.inputs[3:]) if any(node.inputs[3:]) else ()
    return make("attention", made, *rest, name=node.name, **attrs)


def chain(node: Node) -> list[Node]:
    """An operand of attention, its operand, ..., down to a product where possible."""
    found = [node]
    while node.op != "matmul":
        data = [i for i in node.operands if not i.is_constant]
        if len(data) != 1:
            break
        view = node.op == "Reshape" and node.shape[-1:] == data[0].shape[-1:]
        if not view and (not _by_columns(node) or data[0].shape != node.shape):
            break
        node = data[0]
        found.append(node)
    return found


def _by_columns(node: Node) -> bool:
    """Is it elementwise, with constants that are scalar or per column?"""
    if not is_elementwise(node) or node.op in TABLES:
        return False
    rank = node.type.rank
    return all(per_channel(i.array, rank, -1) is not None for i in node.operands if i.is_constant)


def _alike(first: Node, *others: Node) -> bool:
    """Can nodes of three chains be merged? They must be products of one tensor by constant
    matrices, or the same operators.
    """
    if any(n.op != first.op or dict(n.attrs) != dict(first.attrs) for n in others):
        return False
    places = list(zip(*(n.inputs for n in (first, *others)), strict=False))
    if first.op == "matmul":
        weights = places[1]
        plain = all(w is not None and w.is_constant and w.type.rank == 2 for w in weights)
        return plain and len(set(places[0])) == 1
    return all(len({i is not None and i.is_constant for i in place}) == 1 for place in places)


def _zeros_differ(links: Sequence[Node]) -> bool:
    zeros = [n.operands[2].array for n in links if n.op in ("quantize", "dequantize")]
    return len({z.tobytes() for z in zeros}) > 1


def merged(links: Sequence[Node], data: Node) -> Node:
    """Similar nodes of three chains -> one on `data`, with their results in adjacent columns."""
    if links[0].op == "Reshape":
        return reshape(data, (*links[0].type.dims[:-1], data.type.dims[-1]))
    places = zip(*(n.inputs for n in links), strict=True)
    widths = [n.type.dims[-1] for n in links]
    return rebuilt(links[0], [_columns(place, widths) or data for place in places])


def _columns(place: Sequence[Node | None], widths: Sequence[int]) -> Node | None:
    """Scalar or per-column constants -> the constant for all columns."""
    arrays = [n.array.reshape(-1) for n in place if n is not None and n.is_constant]
    if not arrays:
        return None
    if all(a.size == 1 and a[0] == arrays[0][0] for a in arrays):
        return place[0]
    pairs = zip(arrays, widths, strict=True)
    return const(np.concatenate([np.broadcast_to(a, width) for a, width in pairs]))
