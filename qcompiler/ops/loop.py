"""A loop whose body is a graph, and the zeros that a loop writes over.

The body takes the states, the first of which is one boolean, then whatever it reads from around it;
its outputs are the states of the next iteration:

    while going: going, *states = body(going, *states, *around)
"""

from __future__ import annotations

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Array, Node, Type, numpy_dtype
from qcompiler.ops.evaluate import evaluate
from qcompiler.ops.registry import operator, required, typed


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
    return np.zeros(node.ints("shape"), numpy_dtype(node.str("dtype")))


@typed(room)
def _(node: Node) -> Type:
    return Type(node.str("dtype"), node.ints("shape"))
