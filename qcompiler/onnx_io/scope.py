"""The names of a graph, branch or function body while they are read, and what they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from onnx import AttributeProto, SparseTensorProto, TensorProto

from qcompiler.ir import Node
from qcompiler.onnx_io.sequences import Absent, Items, Pieces
from qcompiler.onnx_io.settle import Stated


@dataclass
class Missing:
    """A value that could not be made; `why` is empty if that has been reported."""

    why: str = ""


Value = Node | Missing | Items | Pieces | Absent | None
"""None: an omitted optional input of a function."""


@dataclass
class Scope:
    """The names in a graph, branch or function body. A branch also sees the enclosing scopes."""

    opsets: Mapping[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    initializers: Mapping[str, TensorProto | SparseTensorProto] = field(default_factory=dict)
    attributes: Mapping[str, AttributeProto] | None = None
    outer: Scope | None = None
    read: Collection[str] = ()
    """The names read in this scope."""
    declared: dict[str, Stated] = field(default_factory=dict)
    """Shapes that the file states, or that follow from these for what a value is made of."""
    prefix: str = ""
    depth: int = 0
