"""Operators on padded values: a node and its operands -> the same with the largest sizes.

A rule makes nodes whose valid positions hold exactly what the node means in the sizes of the run,
whatever lies elsewhere. What mixes positions of an open dimension first hides those that are not
valid; what is not known to do that right is refused. `@pads(op, ...)` registers a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Node, constant
from qcompiler.ops import is_elementwise, make, meaning
from qcompiler.ops.known_sizes import is_open as sizes_open
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.rewrite.padding.digits import Digits, is_open
from qcompiler.rewrite.padding.frame import Axes, Padded, Padding
from qcompiler.rewrite.padding.repeats import is_repeat

Rule = Callable[[Padding, Node], "Padded | tuple[Padded, ...]"]
RULES: dict[str, Rule] = {}

NONE: Axes = frozenset()
_FOLDED = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"})
_FOLDED |= {"Slice", "Gather", "Concat", "Add", "Sub", "Mul", "Div"}
"""What is computed here where it reads constants, which rules look at."""
_SIZED = frozenset({"Range", "Slice", "Pad", "Tile", "OneHot", "TopK", "Split"})
"""What may be of one size in all runs, though it is computed from open ones."""
_OF_NONE = frozenset(
    {"Concat", "ConstantOfShape", "CumSum", "Expand", "Flatten", "Gather", "MatMul", "Range"}
)
_OF_NONE |= {
    "ReduceMean",
    "ReduceSum",
    "Reshape",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "Softmax",
    "Split",
}
_OF_NONE |= {"Squeeze", "Transpose", "Unsqueeze", "item", "loop", "room"}
"""What is known to be right where a run has no elements along a dimension, besides elementwise."""
_QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})


def pads(*ops: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators some of whose operands or outputs have open dimensions."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def see(p: Padding, node: Node) -> None:
    """Find out about a node, after those it reads. Raises Error where it cannot be padded."""
    p.node = node
    if node.op == "input" or known_sizes(node) is not None:
        return  # arithmetic on shapes is made where it is read
    if is_repeat(p, node):
        return  # so are repeats
    _demand_sizes(p, node)
    if node.op == "item":
        p.known[node] = (p.known[node.operands[0]][node.int("index")],)
    elif node.is_constant:
        p.known[node] = (Padded(node, p.closed(node.type)),)
    else:
        made = _whole(p, node) if _closed(p, node) else _by_rule(p, node)
        p.known[node] = made if isinstance(made, tuple) else (made,)
    _check(p, node)
    if node in p.zeroed:
        (only,) = p.known[node]
        p.known[node] = (p.masked(only, only.open, 0),)


def _demand_sizes(p: Padding, node: Node) -> None:
    """Every size is made of those that are open, and grows with them; it may be 0 where that is
    known to be right.
    """
    least = 0 if _works_on_none(node) else 1
    read = (t for i in node.operands if i.op != "input" for t in i.types)
    for type in (*node.types, *(read if least else ())):
        for d in type.shape:
            if isinstance(d, str):
                if not Size.of(d).symbols <= p.ranges.keys():
                    raise p.refused(f"the size of {type} depends on data, or is not known")
                if not p.at_least(d, least) or p.at(d) < 1:
                    low = "a larger LO in --dim NAME=LO..HI may help"
                    raise p.refused(f"the size {d} of {type} may be below {least or 1}", low)
                p.demand_largest(d)


def _works_on_none(node: Node) -> bool:
    return (
        node.op in _OF_NONE
        or is_elementwise(node)
        or (node.op == "Pad" and node.str("mode") == "constant")
    )


def _closed(p: Padding, node: Node) -> bool:
    """Is nothing open in what a node reads and writes, besides numbers that it computes with?"""
    if not all(t.static for t in node.types):
        return False
    if node.op in _SIZED and any(map(sizes_open, node.operands)):
        return False
    return not any(v.open for i in node.operands for v in p.known.get(i, ()))


def _whole(p: Padding, node: Node) -> tuple[Padded, ...]:
    made = made_of(p, node)
    if node.op in _FOLDED and all(i.is_constant for i in made.operands):
        (array,) = meaning(made, tuple(None if i is None else i.array for i in made.inputs))
        made = constant(array, node.name)
    return outputs(p, made, [p.closed(t) for t in node.types])


def _by_rule(p: Padding, node: Node) -> Padded | tuple[Padded, ...]:
    rule = RULES.get(node.op)
    if rule is not None:
        return rule(p, node)
    if is_elementwise(node):
        return elementwise(p, node)
    raise p.refused(f"{node.op} is not known to work with open sizes")


def _check(p: Padding, node: Node) -> None:
    """The types are those that the node has with the largest sizes."""
    for value, type in zip(p.known[node], node.types, strict=True):
        wanted = tuple(map(p.at, type.shape))
        if value.node.type.shape != wanted or value.node.dtype != type.dtype:
            raise p.refused(f"{type} became {value.node.type}")
        if any(p.whole(d) != n for d, n in zip(value.dims, wanted, strict=True)):
            raise p.refused(f"{type} has {value.dims}")


def made_of(p: Padding, node: Node, *first: Node, **attrs: object) -> Node:
    """The same operator on padded operands, the first of which may be given."""
    rest = [None if i is None else p.value(i).node for i in node.inputs[len(first) :]]
    changed = {**node.attrs, **attrs}
    return make(node.op, *first, *rest, name=node.name, **changed)


def outputs(p: Padding, made: Node, dims: Sequence[tuple[Digits, ...]]) -> tuple[Padded, ...]:
    """A node of one output, or of several, as values."""
    if len(made.types) == 1:
        return (Padded(made, dims[0]),)
    names = enumerate(dims)
    return tuple(Padded(make("item", made, index=i, name=made.name), d) for i, d in names)


def demand_closed(p: Padding, node: Node, *places: int) -> None:
    """Raise Error unless operands have no open dimensions."""
    for place in places or range(1, len(node.inputs)):
        i = node.inputs[place] if place < len(node.inputs) else None
        if i is not None and p.value(i).open:
            raise p.refused(f"its operand {place}, {i.type}, has open sizes")


def demand_axis(p: Padding, value: Padded, axes: Sequence[int]) -> None:
    """Raise Error if one of these dimensions is open."""
    for axis in axes:
        if is_open(value.dims[axis]):
            raise p.refused(f"{p.node.op} along an open size is not supported")


def elementwise(p: Padding, node: Node) -> Padded:
    """Operands that are broadcast to each other: every position by itself."""
    values = [None if i is None else p.value(i) for i in node.inputs]
    given, dims = together(p, [v for v in values if v is not None], node.types[0].rank)
    left = iter(given)
    inputs = [None if v is None else next(left).node for v in values]
    made = make(node.op, *inputs, name=node.name, **node.attrs)
    return Padded(made, dims, *_kept(node, given))


def together(
    p: Padding, values: Sequence[Padded], rank: int
) -> tuple[list[Padded], tuple[Digits, ...]]:
    """Values that are broadcast together -> the same with equal digits; and those of the result."""
    made, dims = list(values), []
    for axis in range(-rank, 0):
        having = [i for i, v in enumerate(made) if v.rank >= -axis and v.dims[axis] != ()]
        if len({made[i].dims[axis] for i in having}) > 1:
            for i in having:
                made[i] = p.prefix(made[i], axis)
        found = {made[i].dims[axis] for i in having}
        if len(found) > 1:
            sizes = " and ".join(sorted("*".join(map(str, d)) for d in found))
            hint = "multiples may be, --dim NAME=LO..HI:STEP; or pin them, --dim NAME=N"
            raise p.refused(f"{sizes} are only equal for some sizes", hint)
        dims.append(found.pop() if found else ())
    return made, tuple(dims)


def _kept(node: Node, values: Sequence[Padded]) -> tuple[Axes, Axes]:
    """Along which dimensions what is not valid stays 0, and stays finite."""
    moving = [v for v in values if not v.node.is_constant]
    if len(moving) != 1:
        return NONE, NONE
    (value,) = moving
    shift = node.types[0].rank - value.rank
    zero, calm = (frozenset(a + shift for a in axes) for axes in (value.zero, value.calm))
    others = [v.node.array for v in values if v is not value]
    if node.op == "Cast" and "float" in node.dtype:
        return zero, calm
    if node.op not in ("Add", "Sub", "Mul", "Div") or not all(map(_moderate, others)):
        return NONE, NONE
    if node.op == "Div" and (values[1] is value or any((o == 0).any() for o in others)):
        return NONE, NONE
    return (zero if node.op in ("Mul", "Div") else NONE), zero | calm


def _moderate(array: object) -> bool:
    """Are all numbers finite, and of moderate size?"""
    numbers = np.abs(np.asarray(array).astype(np.float64))
    return bool((numbers < 1e4).all())


@pads("Identity", "Dropout")
def _identity(p: Padding, node: Node) -> Padded | tuple[Padded, ...]:
    x = p.value(node.operands[0])
    kept = constant(np.ones(x.node.type.dims, np.bool_))
    return x if len(node.types) == 1 else (x, Padded(kept, x.dims))


@pads("BatchNormalization", "DequantizeLinear", "QuantizeLinear")
def _per_position(p: Padding, node: Node) -> Padded:
    """What computes each position by itself, with numbers for each position along a dimension."""
    x = p.value(node.operands[0])
    if node.attrs.get("training_mode"):
        raise p.refused("what is seen of a batch in training")
    axis = 1 if node.op == "BatchNormalization" else node.int("axis") % max(x.rank, 1)
    axis = min(axis, max(x.rank - 1, 0))
    others = [p.value(i) for i in node.operands[1:]]
    in_blocks = node.attrs.get("block_size") and others[0].rank == x.rank
    if in_blocks and (x.open or any(v.open for v in others)):
        return _of_blocks(p, node, x, others, axis)
    if any(v.open for v in others):
        if any(v.rank and v.dims != (x.dims[axis],) for v in others):
            raise p.refused("its operands are only as many for some sizes")
    elif node.op not in _QUANTIZERS or node.operands[1].type.size > 1:
        demand_axis(p, x, [axis] if x.rank else [])
    return Padded(made_of(p, node, x.node), x.dims)


def _of_blocks(p: Padding, node: Node, x: Padded, others: Sequence[Padded], axis: int) -> Padded:
    """Scales and zero points of blocks: each is repeated for every value of its block."""
    x = p.prefix(x, axis)
    block = np.arange(p.whole(x.dims[axis])) // node.int("block_size")
    spread = []
    for value in others:
        last = value.node.type.dims[axis] - 1
        index = constant(np.minimum(block, last).astype(np.int32))
        spread.append(p.take(p.prefix(value, axis), axis, index, x.dims[axis]))
    (x, *spread), dims = together(p, [x, *spread], x.rank)
    attrs = {**node.attrs, "block_size": 1}
    made = make(node.op, x.node, *(v.node for v in spread), name=node.name, **attrs)
    return Padded(made, dims)
