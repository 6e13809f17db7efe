"""The registry of operators: type rule, numpy definition and, for elementwise ones, formula.

The families in this folder register themselves here. An operator is defined once:

    @operator("Transpose", perm=None)                     # attributes and their defaults
    def transpose(node: Node, x: Array) -> Array: ...     # the numpy meaning
    @typed(transpose)
    def _(node: Node) -> Type: ...                        # the type rule; node.types is still empty

    @elementwise("HardSwish")                             # read by numpy, kernels, table builders
    def hard_swish(m: Math, x: V) -> V:
        return x * m.clip(x / 6 + 0.5, 0, 1)

The array parameters of the numpy definition are the operator's inputs; those with a default may be
absent. Attributes and defaults are ONNX's, except that dtypes are named ("float32"), and that
operators with optional outputs have the additional attribute `outputs`, the number of outputs (1 by
default).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import inf
from typing import Any

from numpy.typing import NDArray

from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import Array, Attr, Dim, Node, Type
from qcompiler.ops.equal import note_broadcast
from qcompiler.ops.math import NUMPY

TypeRule = Callable[[Node], Type | tuple[Type, ...]]
Meaning = Callable[..., Array | tuple[Array, ...]]
Formula = Callable[..., Any]

Numbers = NDArray[Any]
"""An array of numbers."""

_REQUIRED = object()
_symbols = count()


@dataclass
class Operator:
    """The definition of an operator. Only elementwise operators have a `formula`."""

    name: str
    meaning: Meaning
    defaults: Mapping[str, object]
    type_rule: TypeRule | None = None
    formula: Formula | None = None

    @cached_property
    def arity(self) -> tuple[int, float]:
        """The minimum and maximum number of inputs."""
        parameters = list(inspect.signature(self.formula or self.meaning).parameters.values())[1:]
        inputs = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        return sum(p.default is p.empty for p in inputs), inf if variadic else len(inputs)


OPERATORS: dict[str, Operator] = {}


def is_elementwise(node: Node) -> bool:
    """Does the operator have a formula? Inputs and constants do not."""
    entry = OPERATORS.get(node.op)
    return entry is not None and entry.formula is not None


def required() -> object:
    """The default of a required attribute."""
    return _REQUIRED


def operator(name: str, **defaults: object) -> Callable[[Meaning], Meaning]:
    """Register a numpy definition `f(node, *arrays)`; `defaults` are the operator's attributes."""

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


def elementwise(
    name: str, *, of: str = "", dtype: str | None = None, types: TypeRule | None = None
) -> Callable[[Formula], Formula]:
    """Register a formula `f(m, *values, *, attribute=default)`.

    The inputs have one dtype (`of` "floats" or "numbers", which excludes bool), and so does the
    output unless `dtype` is given; its shape is the inputs' broadcast shape. Floats below 32 bits
    are computed in float32 and rounded once, at the end; 4-bit integers in 8 bits.
    """

    def register(formula: Formula) -> Formula:
        defaults = {
            k: _REQUIRED if p.default is p.empty else p.default
            for k, p in inspect.signature(formula).parameters.items()
            if p.kind is p.KEYWORD_ONLY
        }

        def meaning(node: Node, *arrays: Array | None) -> Array:
            attrs = {k: node.attrs[k] for k in defaults}
            values = (None if a is None else NUMPY.widen(a) for a in arrays)
            return NUMPY.finish(formula(NUMPY, *values, **attrs), node.dtype)

        def rule(node: Node) -> Type:
            own = one_dtype(node)
            if (of == "floats" and "float" not in own) or (of == "numbers" and own == "bool"):
                raise Error(f"inputs of {own} where {of} are needed")
            return Type(dtype or own, broadcast(*(i.type.shape for i in node.operands)))

        _add(Operator(name, meaning, defaults, types or rule, formula))
        return formula

    return register


def _add(entry: Operator) -> None:
    if entry.name in OPERATORS:
        raise ValueError(f"operator {entry.name} is defined twice")
    OPERATORS[entry.name] = entry


def make(op: str, *inputs: Node | None, name: str = "", **attrs: Any) -> Node:
    """Operator, inputs and attributes -> a typed node; omitted attributes take their defaults."""
    entry = OPERATORS.get(op)
    if entry is None or entry.type_rule is None:
        raise Error(f"unknown operator {op}", where=name)
    try:
        _check_inputs(entry, inputs)
        untyped = Node(op, inputs, _complete(entry, attrs), (), name)
        made = entry.type_rule(untyped)
        types = made if isinstance(made, tuple) else (made,)
        if untyped.attrs.get("outputs", len(types)) != len(types) or not types:
            raise Error(f"it does not have {untyped.attrs['outputs']} outputs")
        for fault in filter(None, (type.fault for type in types)):
            raise Error(f"the output {fault}")
    except Error as e:
        raise Error(e.what, where=e.where or f"{name or 'node'} ({op})", hint=e.hint) from e
    return Node(op, inputs, untyped.attrs, types, name)


def _check_inputs(entry: Operator, inputs: Sequence[Node | None]) -> None:
    needed, possible = entry.arity
    if len(inputs) > possible:
        raise Error(f"{len(inputs)} inputs where {possible} are possible")
    for index in range(max(needed, len(inputs)) if possible == inf else needed):
        if index >= len(inputs) or inputs[index] is None:
            raise Error(f"input {index} is missing")


def _complete(entry: Operator, attrs: Mapping[str, Attr]) -> dict[str, Attr]:
    for key in attrs:
        if key not in entry.defaults:
            raise Error(f"unknown attribute {key!r}")
    full: dict[str, Any] = {**entry.defaults, **attrs}
    for key, value in full.items():
        if value is _REQUIRED:
            raise Error(f"attribute {key!r} is missing")
    return full


def one_dtype(node: Node) -> str:
    """The common dtype of all inputs of a node."""
    dtypes = sorted({i.dtype for i in node.operands})
    if len(dtypes) > 1:
        raise Error(f"inputs of {' and '.join(dtypes)} do not go together")
    return dtypes[0]


def optional(node: Node, index: int) -> Node | None:
    """An input of a node; None if it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def fresh() -> Size:
    """A new unique symbol for a dimension known at run time only."""
    return Size.of(f"?{next(_symbols)}")


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The broadcast shape of several shapes, as in numpy.

    A symbol broadcasts with 1, itself and any number. Of two different symbols either may be 1:
    the result is a new symbol.
    """
    result: list[Dim] = []
    for axis in range(-max(map(len, shapes), default=0), 0):
        dims = list(dict.fromkeys(s[axis] for s in shapes if len(s) >= -axis))
        wide = [d for d in dims if d != 1]
        numbers = [d for d in wide if isinstance(d, int)]
        for d in wide[1:]:
            note_broadcast(wide[0], d)
        if len(numbers) > 1:
            raise Error(f"shapes {' and '.join(_shape(s) for s in shapes)} do not broadcast")
        result.append((numbers or wide or [1])[0] if numbers or len(wide) < 2 else fresh())
    return tuple(result)


def _shape(shape: tuple[Dim, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
