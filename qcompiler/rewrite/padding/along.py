"""Operators along open dimensions: reductions, softmax, extremes, sorts and scans.

What is not valid is hidden behind what changes nothing: 0 in a sum, the lowest number in a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

import ml_dtypes

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node, Type, numpy_dtype
from qcompiler.ops import make
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.pooling import lowest
from qcompiler.ops.shapes import axes_of, total
from qcompiler.rewrite.matching import const, int64s, reshape, to_dtype
from qcompiler.rewrite.padding.digits import Digits, digits_of, is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.moves import piece
from qcompiler.rewrite.padding.products import want_finite_keys
from qcompiler.rewrite.padding.rules import (
    NONE,
    demand_closed,
    made_of,
    outputs,
    pads,
    together,
)


def highest(dtype: str) -> float | int:
    """The highest value of a dtype."""
    if "int" in dtype:
        return int(ml_dtypes.iinfo(numpy_dtype(dtype)).max)  # type: ignore[no-untyped-call]
    return True if dtype == "bool" else inf


_NEUTRAL: dict[str, Callable[[str], float | int]] = {
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2"), lambda _: 0),
    **dict.fromkeys(("ReduceSumSquare", "ReduceLogSum"), lambda _: 0),
    "ReduceMax": lowest,
    "ReduceMin": highest,
    "ReduceProd": lambda _: 1,
    "ReduceLogSumExp": lambda _: -inf,
}
"""A reduction -> what changes no result."""


@pads(*_NEUTRAL)
def _reduce(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    axes = _axes(p, node, x.rank)
    if len(node.operands) > 1 and p.numbers(node.operands[1]) is None:
        raise p.refused("its axes are not known")
    return reduced(p, node.op, x, axes, node.type, keep=bool(node.int("keepdims")))


def _axes(p: Padding, node: Node, rank: int) -> tuple[int, ...]:
    given = p.numbers(node.operands[1]) if len(node.operands) > 1 else ()
    if not given:
        return () if node.int("noop_with_empty_axes") else tuple(range(rank))
    return axes_of(given, rank)


def reduced(
    p: Padding, op: str, x: Padded, axes: Sequence[int], type: Type, *, keep: bool
) -> Padded:
    """A reduction along some dimensions, each position of the others by itself."""
    kept = [(i, d) for i, d in enumerate(x.dims) if keep or i not in axes]
    dims = tuple(() if i in axes else d for i, d in kept)
    open_ = [a for a in axes if is_open(x.dims[a])]
    if not axes:
        return x
    over, wide = int64s(axes), x
    hidden = p.masked(wide, open_, _NEUTRAL[op](x.node.dtype))
    if op != "ReduceMean" or not open_:
        return Padded(make(op, hidden.node, over, keepdims=int(keep), name=p.node.name), dims)
    if "float" not in x.node.dtype:
        raise p.refused("a mean of integers")
    count = p.size(total([d for a in axes for d in x.dims[a]]), "float32")
    exact = "float64" if x.node.dtype == "float64" else "float32"
    values = to_dtype(hidden.node, exact)
    sums = make("ReduceSum", values, over, keepdims=int(keep))
    mean = make("Div", sums, make("Reshape", to_dtype(count, exact), int64s([1] * sums.type.rank)))
    return Padded(to_dtype(mean, x.node.dtype), dims)


@pads("Softmax", "LogSoftmax", "Hardmax")
def _softmax(p: Padding, node: Node) -> Padded:
    """exp(-inf) is 0, so what is not valid gets no weight, not even of equals."""
    x, axis = p.value(node.operands[0]), node.int("axis") % node.type.rank
    hidden = p.masked(x, [axis], -inf)
    if is_open(x.dims[axis]) and axis == x.rank - 1:
        want_finite_keys(p, node.operands[0])
    made = Padded(made_of(p, node, hidden.node), x.dims)
    if node.op == "Softmax" and is_open(x.dims[axis]):
        return replace(made, zero=frozenset([axis]), calm=frozenset([axis]))
    return made


@pads("ArgMax", "ArgMin")
def _arg(p: Padding, node: Node) -> Padded:
    """Of equals the first counts, which is a valid one."""
    x, axis = p.value(node.operands[0]), node.int("axis") % node.operands[0].type.rank
    keep = bool(node.int("keepdims"))
    if not is_open(x.dims[axis]):
        return Padded(made_of(p, node, x.node), _without(x.dims, axis, keep))
    size = node.operands[0].type.shape[axis]
    last = settled(Size.of(size) - 1)
    if node.int("select_last_index"):  # the first from behind
        x = piece(p, x, axis, last, -1, size)
    x = p.prefix(x, axis)
    x = p.masked(x, [axis], (lowest if node.op == "ArgMax" else highest)(x.node.dtype))
    made = make(node.op, x.node, axis=axis, keepdims=int(keep))
    if node.int("select_last_index"):
        end = p.size(last, "int64")
        made = make("Sub", end if made.type.rank else reshape(end, ()), made)
    return Padded(made, _without(x.dims, axis, keep))


def _without(dims: tuple[Digits, ...], axis: int, keep: bool) -> tuple[Digits, ...]:
    return (*dims[:axis], *[()] * keep, *dims[axis + 1 :])


@pads("TopK")
def _top(p: Padding, node: Node) -> tuple[Padded, ...]:
    """Of equals the first count, which are valid ones, as there are k of these."""
    x, axis = p.value(node.operands[0]), node.int("axis") % node.operands[0].type.rank
    given = known_sizes(node.operands[1])
    if given is None:
        raise p.refused("k depends on data")
    k: Dim = given.ravel()[0]
    if is_open(x.dims[axis]) or isinstance(k, str):
        size = node.operands[0].shape[axis]
        enough = (k, size) in p.checked or p.at_least(settled(Size.of(size) - k), 0)
        if not enough or p.at(k) > p.whole(x.dims[axis]):
            raise p.refused(f"there may be fewer than {k}", "a larger LO in --dim may help")
        if isinstance(k, str) and not node.int("sorted"):
            raise p.refused("the first of unsorted ones, as many as a size")
        x = p.prefix(x, axis)
        x = p.masked(x, [axis], (lowest if node.int("largest") else highest)(x.node.dtype))
    dims = (*x.dims[:axis], digits_of([k]), *x.dims[axis + 1 :])
    most = int64s([p.at(k)])
    made = make(node.op, x.node, most, name=node.name, **node.attrs)
    return outputs(p, made, [dims, dims])


@pads("non_max_suppression")
def _suppress(p: Padding, node: Node) -> Padded:
    """Boxes that are not valid have the lowest score, which is never enough. Behind the most that a
    run may keep comes how many it has kept.
    """
    boxes, scores = (p.value(i) for i in node.operands[:2])
    for axis in range(3):
        boxes, scores = p.prefix(boxes, axis), p.prefix(scores, axis)
    if boxes.dims[:2] != (scores.dims[0], scores.dims[2]):
        raise p.refused("boxes and scores are only equally many for some sizes")
    scores = p.masked(scores, scores.open, -inf)
    most, (rows, _) = node.attrs["most"], node.type.shape
    assert isinstance(most, (int, str))
    made = made_of(p, node, boxes.node, scores.node, most=p.at(most))
    value = Padded(made, (digits_of([p.at(rows)]), digits_of([3])))
    if isinstance(most, int):
        return value
    steps, last = p.steps(p.at(rows)), const([p.at(most)], "int32")
    at = make("Where", make("Less", steps, p.size(most)), steps, last)
    return p.take(value, 0, at, digits_of([rows]))


@pads("CumSum", "CumProd")
def _cumulate(p: Padding, node: Node) -> Padded:
    x, given = p.value(node.operands[0]), p.numbers(node.operands[1])
    if given is None:
        raise p.refused("its axis is not known")
    axis = given[0] % x.rank
    x = p.prefix(x, axis)
    if node.int("reverse"):
        x = p.masked(x, [axis], 0 if node.op == "CumSum" else 1)
    return Padded(made_of(p, node, x.node), x.dims)


@pads("GlobalAveragePool", "GlobalMaxPool")
def _global(p: Padding, node: Node) -> Padded:
    x = p.value(node.operands[0])
    op = "ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax"
    return reduced(p, op, x, range(2, x.rank), node.type, keep=True)


@pads("InstanceNormalization", "GroupNormalization")
def _normalize(p: Padding, node: Node) -> Padded:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, in float32, over what is valid."""
    x, rank = p.prefix(p.value(node.operands[0]), 1), node.type.rank
    factors = [p.prefix(p.value(i), 0) for i in node.operands[1:]]
    if any(f.dims[0] != x.dims[1] for f in factors):
        raise p.refused("its scale and bias are only as many as the channels for some sizes")
    batch, channels = node.type.shape[:2]
    groups = channels if node.op == "InstanceNormalization" else node.int("num_groups")
    members = Size.of(channels).over(groups)
    if members is None:
        raise p.refused(f"{groups} groups may not divide {channels} channels")
    wide = replace(x, node=to_dtype(x.node, "float32"))
    split = p.reshaped(wide, (batch, groups, settled(members), *node.type.shape[2:]))
    over = range(2, rank + 1)
    mean = reduced(p, "ReduceMean", split, over, node.type, keep=True)
    centred = replace(split, node=make("Sub", split.node, mean.node))
    squares = replace(split, node=make("Mul", centred.node, centred.node))
    variance = reduced(p, "ReduceMean", squares, over, node.type, keep=True)
    epsilon = const(node.float("epsilon"), "float32")
    deviation = make("Sqrt", make("Add", variance.node, epsilon))
    split = replace(split, node=make("Div", centred.node, deviation))
    whole = p.prefix(p.reshaped(split, node.type.shape), 1)
    made = whole.node
    for op, factor in zip(("Mul", "Add"), factors, strict=True):
        numbers = to_dtype(factor.node, "float32")
        made = make(op, made, make("Reshape", numbers, int64s([-1, *[1] * (rank - 2)])))
    return Padded(to_dtype(made, node.dtype), whole.dims)


@pads("LayerNormalization", "RMSNormalization")
def _layer(p: Padding, node: Node) -> tuple[Padded, ...]:
    """Along open dimensions: with the mean over what is valid, in float32."""
    x, axis = p.value(node.operands[0]), node.int("axis") % node.types[0].rank
    others = [p.value(i) for i in node.operands[1:]]
    rows = (*x.dims[:axis], *[()] * (x.rank - axis))
    if not any(map(is_open, x.dims[axis:])):
        demand_closed(p, node)
        dims = [x.dims, *[rows] * (len(node.types) - 1)]
        return outputs(p, made_of(p, node, x.node), dims)
    over, type = range(axis, x.rank), node.operands[0].type
    wide = replace(x, node=to_dtype(x.node, "float32"), zero=NONE, calm=NONE)
    mean = None
    if node.op == "LayerNormalization":
        mean = reduced(p, "ReduceMean", wide, over, type, keep=True)
        wide = replace(wide, node=make("Sub", wide.node, mean.node))
    squares = replace(wide, node=make("Mul", wide.node, wide.node))
    variance = reduced(p, "ReduceMean", squares, over, type, keep=True)
    spread = make("Sqrt", make("Add", variance.node, const(node.float("epsilon"), "float32")))
    value = replace(wide, node=to_dtype(make("Div", wide.node, spread), node.types[0].dtype))
    for op, other in zip(("Mul", "Add"), others, strict=False):
        (a, b), dims_ = together(p, [value, other], x.rank)
        value = Padded(make(op, a.node, b.node), dims_)
    more = [] if mean is None else [mean.node, make("Reciprocal", spread)]
    kinds = [t.dtype for t in node.types[1:]]
    return (value, *(Padded(to_dtype(n, k), rows) for n, k in zip(more, kinds, strict=False)))


@pads("RNN", "GRU", "LSTM")
def _recurrent(p: Padding, node: Node) -> tuple[Padded, ...]:
    """Along an open time, every sequence is as long as the run is."""
    inputs = [None if i is None else p.value(i) for i in (*node.inputs, *[None] * 5)[:8]]
    x = inputs[0]
    assert x is not None
    at = 1 if node.attrs.get("layout") else 0
    batch = x.dims[1 - at]
    w = inputs[1]
    assert w is not None
    if x.dims[2] != w.dims[2] or is_open(w.dims[0]) or is_open(w.dims[1]):
        raise p.refused("its weights have open sizes")
    x = p.masked(x, [2], 0)
    inputs[1] = Padded(p.masked(w, [2], 0).node, p.closed(Type(w.node.dtype, w.node.type.dims)))
    x = inputs[0] = p.prefix(x, at)
    _demand_states(p, inputs, batch, 0 if at else 1)
    if is_open(x.dims[at]) and inputs[4] is None:
        count, rows = p.size(node.operands[0].type.shape[at]), x.node.type.dims[1 - at]
        inputs[4] = Padded(make("Expand", count, int64s([rows])), (batch,))
    nodes = [None if i is None else i.node for i in inputs]
    while nodes[-1] is None:
        nodes.pop()
    made = make(node.op, *nodes, name=node.name, **node.attrs)
    one, states = digits_of([node.types[0].shape[2 if at else 1]]), x.dims[:2]
    features = digits_of([node.types[0].shape[-1]])
    if at:
        dims = [(*states, one, features), *[(batch, one, features)] * (len(node.types) - 1)]
    else:
        dims = [
            (states[0], one, batch, features),
            *[(one, batch, features)] * (len(node.types) - 1),
        ]
    return outputs(p, made, dims)


def _demand_states(p: Padding, inputs: Sequence[Padded | None], batch: Digits, axis: int) -> None:
    """Raise Error unless lengths and states are open along the batch alone, as the sequences."""
    lengths, states = inputs[4], inputs[5:7]
    own = [lengths.dims] if lengths is not None else []
    own += [(*s.dims[:axis], *s.dims[axis + 1 :]) for s in states if s is not None]
    fits = all(s is None or s.dims[axis] == batch for s in states)
    if not fits or (lengths is not None and lengths.dims != (batch,)):
        raise p.refused("its states or lengths are only as many as its sequences for some sizes")
    others = [i for i in (*inputs[1:4], inputs[7]) if i is not None and i.open]
    if others or any(is_open(d) for dims in own[lengths is not None :] for d in dims):
        raise p.refused("an operand besides sequences and states has open sizes")
