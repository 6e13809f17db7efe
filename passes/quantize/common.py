"""What the quantize and prune passes share.

Constant weights on the left move to the right:

MatMul(w, x)  ->  Transpose(MatMul(Transpose(x), w'))        w constant, x an activation

Transposing bytes is cheap, and everything implemented for weights on the right (a scale per column,
packing, rounding) then applies. The layout stage cancels the Transposes with their neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import numpy as np

from qcompiler.ir import Graph, Node, constant
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.rewrite.matching import channel_shape, transpose

Twins = dict[Node, Node]
"""New value -> the value of the original graph with the same numbers, in another order."""
BFLOAT16_NOTE = "bfloat16_products"
"""Key of the note that names the products to lower to bfloat16."""


def noted(graph: Graph, names: Iterable[str]) -> Graph:
    """The graph with a note to lower these products to bfloat16."""
    wanted = sorted(set(names))
    return graph.note(**{BFLOAT16_NOTE: json.dumps(wanted)}) if wanted else graph


def weights_right(graph: Graph, wants: Callable[[Node], bool]) -> tuple[Graph, Twins]:
    """The graph with constants on the right of the selected products; itself if there are none."""
    new: dict[Node, Node] = {}
    twins: Twins = {}
    for node in graph.nodes:
        made = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        if _constant_left(node) and wants(node):
            transposed, product, made = _transposed(made)
            twins.update({transposed: node.operands[1], product: node, made: node})
        new[node] = made
    return graph.with_outputs(new[o] for o in graph.outputs), twins


def _constant_left(node: Node) -> bool:
    """Is it a product of a float constant and an activation, both of rank 2 or more?"""
    if node.op != "MatMul" or node.dtype != "float32":
        return False
    w, x = node.operands
    return w.is_constant and not x.is_constant and min(w.type.rank, x.type.rank) > 1


def _transposed(node: Node) -> tuple[Node, Node, Node]:
    """MatMul(w, x) -> (Transpose(x), its product, that product transposed back)."""
    w, x = node.operands
    transposed = transpose(x, _swap(x.type.rank), name=f"{x.name or x.op}/transposed")
    weights = constant(np.ascontiguousarray(w.array.swapaxes(-1, -2)), w.name)
    product = make("MatMul", transposed, weights, name=node.name)
    return (
        transposed,
        product,
        transpose(product, _swap(node.type.rank), name=f"{node.name}/transposed"),
    )


def _swap(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def scaled(conv: Node, scale: Numbers, bias: Node | None) -> Node:
    """A convolution -> conv * scale + bias, both per channel, [O]."""
    rank = conv.type.rank
    shape = channel_shape(rank, 1) if scale.size > 1 else ()
    made = make("Mul", conv, constant(scale.astype(np.float32).reshape(shape)), name=conv.name)
    if bias is None:
        return made
    if bias.is_constant:
        spread = constant(bias.array.reshape(channel_shape(rank, 1)), bias.name)
    else:
        spread = make("Unsqueeze", bias, constant(np.arange(1, rank - 1)))
    return make("Add", made, spread, name=conv.name)
