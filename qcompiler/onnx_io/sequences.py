"""Sequences and optionals -> the tensors in them: how long a sequence is, and whether an optional
holds a value, is known when the model is read.

A position known at run time only selects among elements of one type. As an input or output of the
model, a sequence `s` is the tensors `s[0]`, `s[1]`, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import TypeProto, ValueInfoProto

from qcompiler.errors import Error
from qcompiler.ir import Node, constant
from qcompiler.onnx_io.call import Call
from qcompiler.onnx_io.settle import Settling
from qcompiler.onnx_io.tensors import Unsupported
from qcompiler.ops import known_value, make


@dataclass(frozen=True)
class Items:
    """A sequence: its elements in order."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Pieces:
    """A sequence of as many tensors as only a run knows: those of a tensor along an axis."""

    length: Node
    """int64, a scalar."""
    x: Node | None
    """What is cut into pieces of one; None: into others, of which only the number is asked."""
    axis: int
    keeps: bool
    """Does a piece keep the axis?"""


@dataclass(frozen=True)
class Absent:
    """An optional that holds nothing."""


Held = Node | Items | Pieces | Absent | None
"""What an operator of this file takes; None: no input."""

OPERATORS = frozenset(
    {"ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt"}
    | {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"}
    | {"SplitToSequence"}
)

Rule = Callable[[Call, Sequence[Held], Settling], Held]
_RULES: dict[str, Rule] = {}


def _rule(op: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES[op] = rule
        return rule

    return register


def applied(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    """An operator on sequences and optionals; `call` has its attributes, `s` makes its nodes."""
    return _RULES[call.op](call, inputs, s)


def takes(op: str, inputs: Sequence[object]) -> bool:
    """Is this a call of an operator of this file?"""
    return op in OPERATORS or (op == "Identity" and not isinstance(inputs[0], Node))


def are_among(value: Held, inputs: Sequence[Held]) -> bool:
    """Is a value made of nothing but what is in the inputs, or of no tensor?"""
    own, given = (
        {n for v in values for n in (v.nodes if isinstance(v, Items) else (v,)) if n is not None}
        for values in ((value,), inputs)
    )
    return all(not isinstance(n, Node) or n.is_constant or n in given for n in own)


@_rule("Identity")
def _identity(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    return inputs[0]


@_rule("SequenceConstruct")
def _construct(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    return Items(tuple(_tensor(call, i) for i in inputs))


@_rule("SequenceEmpty")
def _empty(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    return Items(())


@_rule("SequenceLength")
def _length(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    if isinstance(inputs[0], Pieces):
        return inputs[0].length
    return constant(np.array(len(_items(call, inputs[0])), np.int64), call.name)


@_rule("SequenceAt")
def _at(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    if isinstance(inputs[0], Pieces) and inputs[0].x is not None:
        return _piece(s, inputs[0], inputs[0].x, _tensor(call, inputs[1]))
    nodes, index = _items(call, inputs[0]), _tensor(call, inputs[1])
    known = known_value(index)
    if known is not None:
        return nodes[_position(call, int(known.ravel()[0]), len(nodes))]
    if not nodes:
        raise call.error("an element of an empty sequence")
    position = _positive(s, index, len(nodes))
    return _chosen(s, position, nodes)


@_rule("SequenceInsert")
def _insert(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    nodes, new = _items(call, inputs[0]), _tensor(call, inputs[1])
    index = inputs[2] if len(inputs) > 2 else None
    if index is None:
        return Items((*nodes, new))
    known = known_value(_tensor(call, index))
    if known is not None:
        at = int(known.ravel()[0])
        at = _position(call, at, len(nodes)) if at < len(nodes) else at
        if at > len(nodes):
            raise call.error(f"position {at} in a sequence of {len(nodes)}")
        return Items((*nodes[:at], new, *nodes[at:]))
    position = _positive(s, _tensor(call, index), len(nodes), last=len(nodes))
    made = []
    for i in range(len(nodes) + 1):
        parts = [(0, nodes[i])] if i < len(nodes) else []  # inserted behind, at, or before it
        if i > 0:
            parts.append((2, nodes[i - 1]))
        side = s.node("Sub", 1, s.node("Sign", s.node("Sub", position, i)))
        made.append(_among(s, side, [(1, new), *parts]))
    return Items(tuple(made))


@_rule("SequenceErase")
def _erase(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    nodes = _items(call, inputs[0])
    index = inputs[1] if len(inputs) > 1 else None
    if index is None:
        return Items(nodes[:-1])
    known = known_value(_tensor(call, index))
    if known is not None:
        at = _position(call, int(known.ravel()[0]), len(nodes))
        return Items((*nodes[:at], *nodes[at + 1 :]))
    position = _positive(s, _tensor(call, index), len(nodes))
    pairs = enumerate(pairwise(nodes))
    return Items(
        tuple(
            _among(s, s.node("Cast", s.node("Greater", position, i), to="int64"), [(1, a), (0, b)])
            for i, (a, b) in pairs
        )
    )


@_rule("ConcatFromSequence")
def _concat(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    nodes, axis = _items(call, inputs[0]), call.number("axis")
    if not nodes:
        raise call.error("a concatenation of no tensors")
    if call.number("new_axis"):
        nodes = tuple(s.node("Unsqueeze", n, [axis]) for n in nodes)
    return make("Concat", *nodes, axis=axis, name=call.name)


@_rule("SplitToSequence")
def _split(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    x, sizes = _tensor(call, inputs[0]), inputs[1] if len(inputs) > 1 else None
    axis = call.number("axis") % max(x.type.rank, 1)
    each = s.ints(1) if sizes is None else _tensor(call, sizes)
    if not each.type.static:
        _demand_whole(s, x, axis, each)
        return Pieces(s.scalar(s.node("Shape", each)), None, axis, True)
    known = known_value(each)
    if isinstance(x.shape[axis], str) and known is not None and known.tolist() == 1:
        length = s.scalar(s.length(x, axis))
        return Pieces(length, x, axis, sizes is not None or bool(call.number("keepdims")))
    whole = x.shape[axis]
    if isinstance(whole, str):
        raise call.unsupported(_OPEN, "pin it: --dim NAME=N, or --input-shape")
    if known is None and each.type.rank == 1 and s.bound is not None:
        return _pieces(s, x, axis, whole, each)
    if known is None:
        raise call.unsupported(
            "input 'split', known at run time only, decides how long the sequence is",
            "make it a constant (an initializer) of the model",
        )
    if known.ndim:
        lengths = [int(n) for n in known]
    else:
        step = int(known)
        if step < 1:
            raise call.error(f"pieces of {step}")
        lengths = [min(step, whole - i) for i in range(0, whole, step)]
    if sum(lengths) != whole or min(lengths, default=0) < 0:
        raise call.error(f"pieces of {lengths} do not make up {whole}")
    ends = np.cumsum([0, *lengths])
    parts = [s.node("Slice", x, [int(a)], [int(b)], [axis]) for a, b in pairwise(ends)]
    if sizes is None and not call.number("keepdims"):
        parts = [s.node("Squeeze", p, [axis]) for p in parts]
    return Items(tuple(parts))


def _pieces(s: Settling, x: Node, axis: int, whole: int, sizes: Node) -> Items:
    """A tensor cut into pieces of sizes known at run time only; each is as long as the whole, and
    how much of it there is goes with it.
    """
    lengths = _demand_whole(s, x, axis, sizes)
    if not whole:
        return Items((x,) * lengths.type.size)
    starts = s.node("Sub", s.node("CumSum", lengths, 0), lengths)
    made = []
    for i in range(lengths.type.size):
        start, length = (s.node("Slice", n, [i], [i + 1]) for n in (starts, lengths))
        places = s.node("Min", s.node("Add", start, list(range(whole))), whole - 1)
        made.append(s.node("Gather", x, places, axis=axis))
        assert s.bound is not None
        s.bound(made[-1], {axis: length})
    return Items(tuple(made))


def _demand_whole(s: Settling, x: Node, axis: int, sizes: Node) -> Node:
    """Check that a tensor can be cut into pieces of these sizes, a vector; they as int64."""
    lengths = s.flat(sizes)
    total = s.node("ReduceSum", lengths, [0], keepdims=1)
    whole = s.length(x, axis)
    s.check(s.node("Equal", total, whole), f"its sizes do not make up {x.shape[axis]}")
    s.check(s.node("GreaterOrEqual", lengths, 0), "a size is negative")
    return lengths


def _piece(s: Settling, pieces: Pieces, x: Node, index: Node) -> Node:
    """A piece of one, by its number, from behind if that is negative."""
    flat = s.flat(index)
    low = s.node("GreaterOrEqual", s.node("Add", flat, pieces.length), 0)
    s.check(s.node("And", low, s.node("Less", flat, pieces.length)), "no such position")
    return s.node("Gather", x, flat if pieces.keeps else s.scalar(flat), axis=pieces.axis)


@_rule("Optional")
def _optional(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    return inputs[0] if inputs and inputs[0] is not None else Absent()


@_rule("OptionalHasElement")
def _has(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    held = bool(inputs) and inputs[0] is not None and not isinstance(inputs[0], Absent)
    return constant(np.array(held), call.name)


@_rule("OptionalGetElement")
def _get(call: Call, inputs: Sequence[Held], s: Settling) -> Held:
    if isinstance(inputs[0], Absent) or inputs[0] is None:
        raise call.error("the optional holds nothing")
    return inputs[0]


_OPEN = "a sequence of as many tensors as only a run knows"


def _items(call: Call, value: Held) -> tuple[Node, ...]:
    if isinstance(value, Pieces):
        raise call.unsupported(_OPEN, "pin it: --dim NAME=N, or --input-shape")
    if not isinstance(value, Items):
        raise call.error("a tensor where a sequence is needed")
    return value.nodes


def _tensor(call: Call, value: Held) -> Node:
    if not isinstance(value, Node):
        raise call.error("a sequence where a tensor is needed")
    return value


def _position(call: Call, at: int, length: int) -> int:
    if not -length <= at < length:
        raise call.error(f"position {at} in a sequence of {length}")
    return at % length


def _positive(s: Settling, index: Node, length: int, last: int | None = None) -> Node:
    """A position known at run time -> counted from the start, in a vector of one; checked."""
    flat = s.flat(index)
    most = length - 1 if last is None else last
    low, high = s.node("GreaterOrEqual", flat, -length), s.node("LessOrEqual", flat, most)
    s.check(s.node("And", low, high), f"no such position in a sequence of {length}")
    return s.node("Where", s.node("Less", flat, 0), s.node("Add", flat, length), flat)


def _chosen(s: Settling, key: Node, nodes: Sequence[Node]) -> Node:
    return _among(s, key, list(enumerate(nodes)))


def _among(s: Settling, key: Node, results: Sequence[tuple[int, Node]]) -> Node:
    """The result with the number `key`; all must have one type."""
    if len({n.type for _, n in results}) > 1:
        types = ", ".join(dict.fromkeys(str(n.type) for _, n in results))
        raise s.call.unsupported(
            f"a position known at run time only, among elements of {types}",
            "make the position a constant (an initializer) of the model",
        )
    return s.chosen(key, results)


def merged(s: Settling, condition: Node, yes: Held, no: Held) -> Held:
    """Of the outputs of two branches, that which a condition selects."""
    if isinstance(yes, Items) and isinstance(no, Items) and len(yes.nodes) == len(no.nodes):
        pairs = zip(yes.nodes, no.nodes, strict=True)
        return Items(tuple(_where(s, condition, a, b) for a, b in pairs))
    if isinstance(yes, Node) and isinstance(no, Node):
        return _where(s, condition, yes, no)
    raise s.call.unsupported("a condition known at run time only, between unlike sequences")


def _where(s: Settling, condition: Node, yes: Node, no: Node) -> Node:
    if yes.type != no.type:
        raise s.call.unsupported(
            f"a condition known at run time only, between {yes.type} and {no.type}"
        )
    return s.node("Where", condition, yes, no)


# Inputs and outputs of the model.

Wanted = Any
"""The shape of a tensor; a list of shapes, of a sequence; None, of an absent optional."""


def flattened(
    infos: Iterable[ValueInfoProto], wanted: Mapping[str, Wanted]
) -> tuple[list[ValueInfoProto], dict[str, tuple[int, ...]], dict[str, list[str] | None]]:
    """A graph's inputs, and the shapes asked for -> the same with each sequence as its tensors, and
    which names are sequences (of which tensors) or absent (None).
    """
    found: list[ValueInfoProto] = []
    shapes = {name: shape for name, shape in wanted.items()}
    held: dict[str, list[str] | None] = {}
    for info in infos:
        kind, optional = info.type, False
        while kind.WhichOneof("value") == "optional_type":
            kind, optional = kind.optional_type.elem_type, True
        if info.name in wanted and wanted[info.name] is None:
            if not optional:
                hint = "only an optional may be absent"
                raise Error("None is no shape", where=f"input {info.name!r}", hint=hint)
            held[info.name] = None
            del shapes[info.name]
        elif kind.WhichOneof("value") == "sequence_type":
            found += _elements(info.name, kind, shapes, held)
        elif optional:
            found.append(ValueInfoProto(name=info.name, type=kind))
        else:
            found.append(info)
    return found, shapes, held


def _elements(
    name: str, kind: TypeProto, shapes: dict[str, Wanted], held: dict[str, list[str] | None]
) -> list[ValueInfoProto]:
    given = shapes.pop(name, None)
    if given is None or not all(isinstance(i, (tuple, list)) for i in given):
        raise Unsupported(
            "the length of a sequence must be known",
            where=f"input {name!r}",
            hint=f"give the shapes of its elements: input_shapes={{{name!r}: [(3, 4), (5, 4)]}}",
        )
    names = [f"{name}[{i}]" for i in range(len(given))]
    held[name] = names
    element = kind.sequence_type.elem_type
    made = []
    for each, shape in zip(names, given, strict=True):
        info = ValueInfoProto(name=each, type=element)
        info.type.tensor_type.ClearField("shape")
        for size in shape:
            info.type.tensor_type.shape.dim.add(dim_value=int(size))
        if not shape:
            info.type.tensor_type.shape.SetInParent()
        made.append(info)
    return made


def outputs_of(name: str, value: Held) -> list[tuple[str, Node]]:
    """An output of the model -> the tensors it stands for, by name."""
    if isinstance(value, Items):
        return [(f"{name}[{i}]", node) for i, node in enumerate(value.nodes)]
    if isinstance(value, Node):
        return [(name, value)]
    if isinstance(value, Pieces):
        raise Error(_OPEN, where=f"output {name!r}", hint="pin it: --dim NAME=N")
    raise Error("an output holds nothing", where=f"output {name!r}")
