"""Calls that pick or write by indices, or select, where data decide the sizes of operands -> calls
on operands of the largest sizes (carried.py).

Indices count from the start, updates that are not there go to a place behind the last, and what is
not there is not selected.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir import Dim, Node, constant, numpy_dtype
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call, Result, axis_of
from qcompiler.onnx_io.carried import carries, followed
from qcompiler.onnx_io.settle import plain
from qcompiler.ops import known_value


@carries("Gather")
def _gather(call: Call, bounds: Bounds) -> Node:
    x, places = call.need(0), call.need(1)
    axis = axis_of(call, call.number("axis"), x.type.rank)
    own = _from_start(call, bounds, places, bounds.counted(x).get(axis))
    return bounds.carried(call.but(inputs=(x, own)))


@carries("GatherElements")
def _gather_elements(call: Call, bounds: Bounds) -> Node:
    x, places = call.need(0), call.need(1)
    axis = axis_of(call, call.number("axis"), x.type.rank)
    own = _from_start(call, bounds, places, bounds.counted(x).get(axis))
    made = bounds.typed(call, [x, own])
    return bounds.put_sizes(made, bounds.twin(places).shape)


def _from_start(call: Call, bounds: Bounds, places: Node, size: Dim | None) -> Node:
    """Indices along an axis of a size that data decide, counted from the start."""
    if size is None or not_negative(places):
        return places
    s = plain(call)
    number = s.node("Cast", bounds.number(size), to=places.dtype)
    zero = constant(np.zeros(1, numpy_dtype(places.dtype)))
    number = s.node("Reshape", number, [1] * max(places.type.rank, 0))
    zero = s.node("Reshape", zero, [1] * max(places.type.rank, 0))
    behind = s.node("Less", places, zero)
    made = s.node("Where", behind, s.node("Add", places, number), places)
    bounds.twins.update({made: bounds.twin(places)} if bounds.counted(places) else {})
    return made


_MOVES = frozenset({"Cast", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Slice", "Transpose"})
_GROW = frozenset({"Add", "Mul", "Div", "Mod", "Min", "Concat", "Where"})


def not_negative(node: Node, depth: int = 40) -> bool:
    """Is it plain that no number of it is below zero?"""
    known = known_value(node)
    if known is not None:
        return bool((known.astype(np.int64) >= 0).all())
    if node.op in ("ArgMax", "ArgMin", "non_max_suppression", "Shape", "Size"):
        return True
    if node.op == "ConstantOfShape":
        value = node.attrs["value"]
        return value is None or bool((np.asarray(value) >= 0).all())
    if node.op == "item":
        return node.operands[0].op == "TopK" and node.int("index") == 1
    if not depth:
        return False
    if node.op == "Range":
        return all(not_negative(node.operands[i], depth - 1) for i in (0, 2))
    if node.op in _MOVES:
        return node.operands[0].dtype != "bool" and not_negative(node.operands[0], depth - 1)
    if node.op in _GROW:
        values = node.operands[1:] if node.op == "Where" else node.operands
        return all(not_negative(i, depth - 1) for i in values)
    if node.op == "ScatterElements" and node.attrs["reduction"] == "none":
        return all(not_negative(i, depth - 1) for i in (node.operands[0], node.operands[2]))
    return False


@carries("GatherND")
def _gather_nd(call: Call, bounds: Bounds) -> Node:
    x, places = call.need(0), call.need(1)
    depth = places.shape[-1]
    if not isinstance(depth, int):
        raise bounds.refusal(call)
    indexed = range(int(call.number("batch_dims")) + depth)
    open_ = places.type.rank - 1 in bounds.counted(places) or call.number("batch_dims")
    if open_ or (any(a in indexed for a in bounds.counted(x)) and not not_negative(places)):
        raise bounds.refusal(call)
    return bounds.carried(call)


@carries("ScatterElements")
def _scatter_elements(call: Call, bounds: Bounds) -> Node:
    """Updates that are not there go to a place behind the last."""
    x, places, updates = (call.need(i) for i in range(3))
    axis, s = axis_of(call, call.number("axis"), x.type.rank), bounds.settling(call)
    places = _from_start(call, bounds, places, bounds.counted(x).get(axis))
    if not bounds.counted(places) and bounds.counted(updates):
        raise bounds.refusal(call)
    if not bounds.counted(places):
        return bounds.put_sizes(bounds.typed(call, [x, places, updates]), bounds.twin(x).shape)
    size, wide = x.shape[axis], followed(s, x, axis, 1, 0)
    if not not_negative(places):
        zero = constant(np.zeros(1, numpy_dtype(places.dtype)))
        step = s.node("Cast", s.ints([size]), to=places.dtype)
        moved = s.node("Where", s.node("Less", places, zero), s.node("Add", places, step), places)
        bounds.twins[moved] = bounds.twin(places)
        places = moved
    to = bounds.masked(s, places, range(x.type.rank), size)
    made = s.node("ScatterElements", wide, to, updates, **call.attrs)
    cut = s.node("Slice", made, [0], [size], [axis])
    return bounds.put_sizes(cut, bounds.twin(x).shape)


@carries("ScatterND")
def _scatter_nd(call: Call, bounds: Bounds) -> Node:
    x, places, updates = (call.need(i) for i in range(3))
    s, size, depth = bounds.settling(call), x.shape[0], places.shape[-1]
    open_ = bounds.counted(places)
    if not isinstance(depth, int):
        raise bounds.refusal(call)
    indexed = range(depth)
    if any(a in indexed for a in bounds.counted(x)) and not not_negative(places):
        raise bounds.refusal(call)
    if not open_ and bounds.counted(updates):
        raise bounds.refusal(call)
    if not open_:
        return bounds.put_sizes(bounds.typed(call, call.inputs), bounds.twin(x).shape)
    if not not_negative(places) or places.type.rank - 1 in open_:
        raise bounds.refusal(call)
    to = bounds.masked(s, places, range(places.type.rank), size)
    made = s.node("ScatterND", followed(s, x, 0, 1, 0), to, updates, **call.attrs)
    return bounds.put_sizes(s.node("Slice", made, [0], [size], [0]), bounds.twin(x).shape)


@carries("OneHot")
def _one_hot(call: Call, bounds: Bounds) -> Node:
    if any(map(bounds.counted, call.inputs[1:])):
        raise bounds.refusal(call)
    return bounds.carried(call)


# Selecting: still to be settled.


@carries("NonZero")
def _non_zero(call: Call, bounds: Bounds) -> Result:
    x = call.need(0)
    own = bounds.masked(bounds.settling(call), x, range(x.type.rank), 0)
    return call.but(inputs=(own,))


@carries("Compress")
def _compress(call: Call, bounds: Bounds) -> Result:
    x, chosen = call.need(0), call.need(1)
    counted, axis = bounds.counted(x), call.get("axis")
    along = range(x.type.rank)
    if axis is not None:
        along = range(a := axis_of(call, call.number("axis"), x.type.rank), a + 1)
    if any(a not in along for a in counted) or (axis is None and x.type.rank > 1 and counted):
        raise bounds.refusal(call)
    own = bounds.masked(bounds.settling(call), chosen, [0], False)
    return call.but(inputs=(x, own))


@carries("NonMaxSuppression")
def _non_max_suppression(call: Call, bounds: Bounds) -> Result:
    """Boxes that are not there have the lowest score, which is never enough."""
    scores = bounds.masked(bounds.settling(call), call.need(1), [2], -np.inf)
    if any(a != 2 for a in bounds.counted(call.need(1))):
        raise bounds.refusal(call)
    return call.but(inputs=(call.need(0), scores, *call.inputs[2:]))
