"""An operator's name -> what it means: its type rule, its numpy meaning, and (elementwise ones) its formula.

The families in this folder register themselves here. An operator is defined once:

    @operator("Transpose", perm=None)                     # attributes and their defaults
    def transpose(node: Node, x: Array) -> Array: ...     # the numpy meaning
    @typed(transpose)
    def _(node: Node) -> Type: ...                        # the type rule; node.types is still empty

    @elementwise("HardSwish")                             # read by numpy, by TIR kernels and by table builders
    def hard_swish(m: Math, x: V) -> V:
        return x * m.clip(x / 6 + 0.5, 0, 1)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import Error
from qcompiler.ir import Array, Attr, Dim, Node, Type
from qcompiler.ops.math import NUMPY

TypeRule = Callable[[Node], Type | tuple[Type, ...]]
Meaning = Callable[..., Array | tuple[Array, ...]]
Formula = Callable[..., Any]

_REQUIRED = object()


@dataclass
class Operator:
    """What one operator means. `formula` is there for elementwise operators only."""

    name: str
    meaning: Meaning
    defaults: Mapping[str, object]
    type_rule: TypeRule | None = None
    formula: Formula | None = None


OPERATORS: dict[str, Operator] = {}


def required() -> object:
    """The default of an attribute that must be given."""
    return _REQUIRED


def operator(name: str, **defaults: object) -> Callable[[Meaning], Meaning]:
    """Register a numpy meaning `f(node, *arrays)`; `defaults` are the operator's attributes."""

    def register(meaning: Meaning) -> Meaning:
        _add(Operator(name, meaning, defaults))
        return meaning

    return register


def typed(*meanings: Meaning) -> Callable[[TypeRule], TypeRule]:
    """Give operators their type rule: `f(node without types) -> Type or tuple of Types`."""

    def register(rule: TypeRule) -> TypeRule:
        for entry in OPERATORS.values():
            if entry.meaning in meanings:
                entry.type_rule = rule
        return rule

    return register


def elementwise(name: str, *, dtype: str | None = None, types: TypeRule | None = None) -> Callable[[Formula], Formula]:
    """Register a formula `f(m, *values, **attributes)`; keyword defaults are the attributes' defaults.

    The output's shape is the inputs' broadcast shape; its dtype is `dtype`, else the first input's.
    """

    def register(formula: Formula) -> Formula:
        defaults = {
            k: _REQUIRED if p.default is p.empty else p.default
            for k, p in inspect.signature(formula).parameters.items()
            if p.kind is p.KEYWORD_ONLY
        }

        def meaning(node: Node, *arrays: Array | None) -> Array:
            attrs = {k: node.attrs[k] for k in defaults}
            result: Array = NUMPY.finish(formula(NUMPY, *arrays, **attrs), node.type)
            return result

        def rule(node: Node) -> Type:
            shape = broadcast(*(i.type.shape for i in node.operands))
            return Type(dtype or node.operands[0].dtype, shape)

        _add(Operator(name, meaning, defaults, types or rule, formula))
        return formula

    return register


def _add(entry: Operator) -> None:
    if entry.name in OPERATORS:
        raise ValueError(f"operator {entry.name} is defined twice")
    OPERATORS[entry.name] = entry


def infer(op: str, inputs: Sequence[Node | None], attrs: Mapping[str, Attr], name: str = "") -> tuple[Type, ...]:
    """Operator, inputs and attributes -> the types of its outputs; a clear error where they do not fit."""
    return make(op, *inputs, name=name, **attrs).types


def make(op: str, *inputs: Node | None, name: str = "", **attrs: Any) -> Node:
    """Operator, inputs and attributes -> a typed node; attributes left out take their defaults."""
    entry = OPERATORS.get(op)
    if entry is None or entry.type_rule is None:
        raise Error(f"unknown operator {op}", where=name)
    full = {**entry.defaults, **attrs}
    missing = [k for k, v in full.items() if v is _REQUIRED]
    if missing:
        raise Error(f"attribute {missing[0]!r} is missing", where=f"{name or 'node'} ({op})")
    untyped = Node(op, inputs, full, (), name)  # type: ignore[arg-type]
    try:
        types = entry.type_rule(untyped)
    except Error as e:
        raise Error(e.what, where=e.where or f"{name or 'node'} ({op})", hint=e.hint) from e
    return Node(op, inputs, untyped.attrs, types if isinstance(types, tuple) else (types,), name)


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Shapes -> the shape numpy's broadcasting gives them; a symbol stands against 1 and against itself."""
    result: list[Dim] = []
    for axis in range(-max(map(len, shapes), default=0), 0):
        dims = {s[axis] for s in shapes if len(s) >= -axis} - {1}
        numbers = {d for d in dims if isinstance(d, int)}
        if len(numbers) > 1 or (not numbers and len(dims) > 1):
            raise Error(f"shapes {' and '.join(_shape(s) for s in shapes)} do not broadcast")
        result.append(next(iter(numbers or dims), 1))
    return tuple(result)


def _shape(shape: tuple[Dim, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
