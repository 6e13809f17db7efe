"""The graph: immutable nodes that point at their inputs.

A rewrite makes new nodes; a node that nothing points at no longer exists. Capitalized operator
names are ONNX operators at their newest semantics; lower-case names are the compiler's own.
"""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.dtypes import Array as Array
from qcompiler.dtypes import Dim as Dim
from qcompiler.dtypes import numpy_dtype as numpy_dtype
from qcompiler.errors import Error

_Attrs: TypeAlias = tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Attr: TypeAlias = "int | float | str | _Attrs | Array | Graph | None"

MAX_RANK = 32
MAX_ELEMENTS = (1 << 31) - 1
"""Upper bounds for every tensor: kernels count elements in 32 bits."""


@dataclass(frozen=True, slots=True)
class Type:
    """A tensor's dtype ("float32", "uint8", ...) and shape; a string in the shape is the symbol of
    an unknown dimension.
    """

    dtype: str
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def static(self) -> bool:
        """Is every dimension a number?"""
        return all(isinstance(d, int) for d in self.shape)

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols of its unknown dimensions."""
        return frozenset[str]().union(
            *(Size.of(d).symbols for d in self.shape if isinstance(d, str))
        )

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as numbers. Raises Error for a symbolic dimension, naming it."""
        for d in self.shape:
            if isinstance(d, str):
                raise Error(f"dimension {d!r} is unknown", hint="pin it with --input-shape")
        return tuple(int(d) for d in self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.size * numpy_dtype(self.dtype).itemsize

    @property
    def fault(self) -> str:
        """What is wrong with the shape, or "".

        A symbolic dimension counts as 1, and so does an empty one: the other sizes may still
        be used to read other tensors.
        """
        numbers = [int(d) for d in self.shape if not isinstance(d, str)]
        if min(numbers, default=0) < 0:
            return f"{self} has a negative dimension"
        if self.rank > MAX_RANK:
            return f"{self.rank} dimensions are more than {MAX_RANK}"
        if (count := prod(max(n, 1) for n in numbers)) > MAX_ELEMENTS:
            return f"{self} has {count} elements, more than the {MAX_ELEMENTS} that are supported"
        return ""

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class _Watched:
    """A slot for weak references; `dataclass(weakref_slot=True)` needs Python 3.11."""

    __slots__ = ("__weakref__",)


@dataclass(frozen=True, eq=False, slots=True)
class Node(_Watched):
    """One operator applied to its inputs (None where an optional input is absent); compared by
    identity.

    `types` has one entry per output. The outputs of a multi-output node are read through `item`.
    """

    op: str
    inputs: tuple[Node | None, ...]
    attrs: Mapping[str, Attr]
    types: tuple[Type, ...]
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    @property
    def type(self) -> Type:
        """The type of a single-output node."""
        if len(self.types) != 1:
            raise ValueError(f"{self.op} {self.name!r} has {len(self.types)} outputs")
        return self.types[0]

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The single output's shape."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """The single output's dtype."""
        return self.type.dtype

    @property
    def array(self) -> Array:
        """The value of a constant."""
        value = self.attrs["value"]
        assert isinstance(value, np.ndarray), f"{self.op} {self.name!r} is not a constant"
        return value

    @property
    def is_constant(self) -> bool:
        """Is it a constant?"""
        return self.op == "constant"

    @property
    def operands(self) -> tuple[Node, ...]:
        """The inputs, without absent ones."""
        return tuple(i for i in self.inputs if i is not None)

    def ints(self, key: str) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        value = self.attrs[key]
        if not isinstance(value, tuple):
            raise self._wrong(key, "a list")
        return tuple(int(v) for v in value)

    def int(self, key: str) -> int:
        """An attribute that is an integer."""
        value = self.attrs[key]
        if not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        return int(value)

    def float(self, key: str) -> float:
        """An attribute that is a number."""
        value = self.attrs[key]
        if not isinstance(value, (int, float)):
            raise self._wrong(key, "a number")
        return float(value)

    def str(self, key: str) -> str:
        """An attribute that is a string."""
        value = self.attrs[key]
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def graph(self, key: builtins.str) -> Graph:
        """An attribute that is a graph."""
        value = self.attrs[key]
        if not isinstance(value, Graph):
            raise self._wrong(key, "a graph")
        return value

    def _wrong(self, key: builtins.str, kind: builtins.str) -> Error:
        return Error(f"the attribute {key} is not {kind}", where=f"{self.op} {self.name!r}")

    def with_inputs(self, inputs: Iterable[Node | None]) -> Node:
        """The same node on other inputs; itself if they are unchanged."""
        new = tuple(inputs)
        same = all(a is b for a, b in zip(new, self.inputs, strict=True))
        return self if same else replace(self, inputs=new)

    def __repr__(self) -> builtins.str:
        return f"<{self.op} {self.name!r} {' '.join(map(str, self.types))}>"


def constant(array: Array | float | int, name: str = "") -> Node:
    """numpy array -> constant node (the array is made read-only)."""
    value = np.asarray(array)
    value.setflags(write=False)
    dtype = "string" if value.dtype == object else value.dtype.name
    return Node("constant", (), {"value": value}, (Type(dtype, value.shape),), name)


def placeholder(name: str, type: Type) -> Node:
    """A graph input."""
    return Node("input", (), {}, (type,), name)


CHECK = "check: "
"""Begins the name of an output that no caller gets: a run fails, with the rest of the name, unless
all of that output is true."""

EXTENT = "extent: "
"""Begins the name of an output that says, in int64, how large the one of the rest of the name is,
where data decide it: a caller gets that one cut to this size."""


SELECTED = "sizes decided by data"
"""The note of a graph whose values have room for the most that data may select."""


SIZE = "size: "
"""Begins the name of an input, int32[1], that no caller gives: the rest of the name is an
expression of open sizes, whose value in a run, 1 or more, it is."""


@dataclass(frozen=True)
class Graph:
    """Inputs and outputs, in the model's order; its nodes are what the outputs reach."""

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    output_names: tuple[str, ...]
    name: str = "main"
    notes: Mapping[str, str] = field(default_factory=dict)
    """Facts for the artifact's manifest (producer, opset, quantization)."""

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The inputs and every node the outputs reach, in topological order."""
        return tuple(walk((*self.inputs, *self.outputs)))

    @cached_property
    def results(self) -> dict[str, Node]:
        """The outputs that a caller gets, by name."""
        pairs = zip(self.output_names, self.outputs, strict=True)
        return {name: node for name, node in pairs if not name.startswith((CHECK, EXTENT))}

    @cached_property
    def checks(self) -> dict[str, Node]:
        """What must be all true -> what is wrong otherwise: the outputs that no caller gets."""
        pairs = zip(self.output_names, self.outputs, strict=True)
        return {n.removeprefix(CHECK): node for n, node in pairs if n.startswith(CHECK)}

    @cached_property
    def extents(self) -> dict[str, Node]:
        """Outputs whose size data decide -> what says it."""
        pairs = zip(self.output_names, self.outputs, strict=True)
        return {n.removeprefix(EXTENT): node for n, node in pairs if n.startswith(EXTENT)}

    @cached_property
    def readers(self) -> Counter[Node]:
        """Number of uses of each node; being a graph output counts as one."""
        count: Counter[Node] = Counter(self.outputs)
        for node in self.nodes:
            count.update(node.operands)
        return count

    def with_outputs(self, outputs: Iterable[Node]) -> Graph:
        """The same graph with other outputs; itself if they are unchanged."""
        new = tuple(outputs)
        return (
            self
            if all(a is b for a, b in zip(new, self.outputs, strict=True))
            else replace(self, outputs=new)
        )

    def note(self, **notes: str) -> Graph:
        """The same graph with facts added for the manifest."""
        return replace(self, notes={**self.notes, **notes})


def walk(roots: Iterable[Node]) -> Iterator[Node]:
    """Roots -> every node they reach, inputs first. Not recursive: graphs may be deep."""
    seen: set[Node] = set()
    stack = [(root, False) for root in reversed(tuple(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((i, False) for i in reversed(node.operands) if i not in seen)


def substitute(graph: Graph, change: Callable[[Node], Node]) -> Graph:
    """Replace every node by `change(node)`, whose inputs are already replaced."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
        new[node] = change(moved)
    inputs = tuple(new[i] for i in graph.inputs)
    changed = graph.with_outputs(new[o] for o in graph.outputs)
    return (
        changed
        if all(a is b for a, b in zip(inputs, graph.inputs, strict=True))
        else replace(changed, inputs=inputs)
    )
