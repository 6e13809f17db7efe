"""Structural nodes: constants, and one output of a node that has several.

Graph inputs (`input`) are not operators: they have a value only when a graph is run.
"""

from __future__ import annotations

from qcompiler.errors import Error
from qcompiler.ir import Array, Node, Type
from qcompiler.ops.registry import operator, required, typed


@operator("constant", value=required())
def constant(node: Node) -> Array:
    return node.array


@typed(constant)
def _(node: Node) -> Type:
    return Type(node.array.dtype.name, node.array.shape)


@operator("item", index=required())
def item(node: Node, *outputs: Array) -> Array:
    """Output `index` of the node that this one reads."""
    return outputs[node.int("index")]


@typed(item)
def _(node: Node) -> Type:
    if len(node.operands) != 1 or not 0 <= node.int("index") < len(node.operands[0].types):
        raise Error(f"output {node.attrs['index']} does not exist")
    return node.operands[0].types[node.int("index")]
