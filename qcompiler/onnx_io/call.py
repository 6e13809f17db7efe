"""An ONNX operator call -> a node at the newest opset.

`@until(13, "Squeeze")` registers an adapter that rewrites calls of every opset below 13 to opset
13, so that a call climbs from adapter to adapter; `@always` adapters make explicit what ONNX leaves
implicit. Omitted attributes already have the defaults of the call's own opset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.errors import Error
from qcompiler.ir import Attr, Node, constant, numpy_dtype
from qcompiler.onnx_io.schema import known_attributes
from qcompiler.onnx_io.tensors import Unsupported
from qcompiler.ops import OPERATORS, make

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """An operator with its inputs (None: absent) and all its attributes.

    It has `outputs` outputs, of which only the first `read` are used.
    """

    op: str
    inputs: tuple[Node | None, ...]
    attrs: Mapping[str, Attr]
    outputs: int
    read: int
    name: str

    def input(self, index: int) -> Node | None:
        """An input, or None if absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def need(self, index: int) -> Node:
        """A required input."""
        node = self.input(index)
        if node is None:
            raise self.error(f"input {index} is missing")
        return node

    def get(self, key: str) -> Attr:
        """An attribute, or None if it has no value."""
        return self.attrs.get(key)

    def number(self, key: str) -> int:
        """A required integer attribute."""
        value = self.get(key)
        if not isinstance(value, int):
            raise self.error(f"attribute {key!r} is missing")
        return value

    def real(self, key: str) -> float:
        """A required float attribute."""
        value = self.get(key)
        if not isinstance(value, (int, float)):
            raise self.error(f"attribute {key!r} is missing")
        return float(value)

    def numbers(self, key: str) -> tuple[int, ...] | None:
        """A list of integers, or None if absent or empty."""
        value = self.get(key)
        return tuple(int(v) for v in value) if isinstance(value, tuple) and value else None

    def but(
        self,
        *,
        op: str = "",
        inputs: Sequence[Node | None] | None = None,
        drop: tuple[str, ...] = (),
        **attrs: Attr,
    ) -> Call:
        """A copy with another operator, other inputs, and attributes dropped or set."""
        kept = {k: v for k, v in self.attrs.items() if k not in drop}
        return replace(
            self,
            op=op or self.op,
            inputs=self.inputs if inputs is None else tuple(inputs),
            attrs={**kept, **attrs},
        )

    def constant(self, what: str, value: object, dtype: str = "int64") -> Node:
        """A constant made from an attribute of this call."""
        return constant(np.asarray(value, numpy_dtype(dtype)), f"{self.name}.{what}")

    def node(self, what: str, op: str, *inputs: Node | None, **attrs: Attr) -> Node:
        """One of the nodes this call is translated to."""
        return make(op, *inputs, name=f"{self.name}.{what}", **attrs)

    def error(self, what: str, hint: str = "") -> Error:
        """An Error about this call."""
        return Error(what, where=f"{self.name} ({self.op})", hint=hint)

    def unsupported(self, what: str, hint: str = "") -> Unsupported:
        """An Error about this call, reported together with all others after reading the model."""
        return Unsupported(what, where=f"{self.name} ({self.op})", hint=hint)


Result = Call | Node | tuple[Node | None, ...]
"""An adapter's result: a call of the next opset, or the finished outputs (None: not made)."""
Adapter = Callable[[Call], Result]

_ALWAYS = 1 << 20
_ADAPTERS: dict[str, dict[int, Adapter]] = {}


def until(opset: int, *ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for the calls of these operators in opsets below `opset`."""

    def register(adapter: Adapter) -> Adapter:
        for op in ops:
            steps = _ADAPTERS.setdefault(op, {})
            if opset in steps:
                raise ValueError(f"{op} has two adapters until {opset}")
            steps[opset] = adapter
        return adapter

    return register


def always(*ops: str) -> Callable[[Adapter], Adapter]:
    """Register an adapter for the calls of these operators in every opset."""
    return until(_ALWAYS, *ops)


def newest(call: Call, opset: int) -> Result:
    """A call of `opset` -> the call at the newest opset, or its finished outputs."""
    reached = opset
    while True:
        steps = _ADAPTERS.get(call.op, {})
        following = min((limit for limit in steps if limit > reached), default=None)
        if following is None:
            return call
        result = steps[following](call)
        if not isinstance(result, Call):
            return result
        call, reached = result, following


def adapted(op: str) -> bool:
    """Does an operator have adapters, so that it may be translated to another?"""
    return op in _ADAPTERS


def axis_of(call: Call, axis: int, rank: int) -> int:
    """A possibly negative axis -> counted from the start. Raises Error if out of range."""
    if not -rank <= axis < rank:
        raise call.error(f"axis {axis} does not exist in {rank} dimensions")
    return axis % rank


def finish(result: Result) -> Node | tuple[Node | None, ...]:
    """A call at the newest opset -> a typed node."""
    if not isinstance(result, Call):
        return result
    where = f"{result.name} ({result.op})"
    if result.op not in OPERATORS:
        raise Unsupported("unknown operator", where=where)
    inputs = list(result.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    attrs = known_attributes(result.op, result.attrs, where)
    if "outputs" in OPERATORS[result.op].defaults:  # as many as its readers use
        attrs["outputs"] = max(result.read, 1)
    return make(result.op, *inputs, name=result.name, **attrs)


_FAILURES = (AssertionError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
"""Exceptions of Python and numpy when a type rule meets invalid numbers."""


class Malformed:
    """Converts a type rule's exception over invalid numbers into an Error that names the node."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _FAILURES):
            log.debug("a type rule failed", exc_info=error)
            raise Error(
                f"its inputs and attributes do not fit ({error or type(error).__name__})",
                where=self.where,
            ) from error
