"""Steps -> an ONNX model, its nodes typed and computed as they are added.

A value that nothing finite comes of, or that is too large, is not added: random chains would soon
be all infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from qcompiler.errors import Error
from qcompiler.ir import Array, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.onnx_io.schema import DTYPE_ATTRIBUTES
from qcompiler.onnx_io.tensors import CODES, encode
from qcompiler.ops import OPERATORS, make, meaning

MAX_ELEMENTS = 12_000
LARGEST = 1e4
"""Values beyond this are not built on."""
LENGTHS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65)
"""Around the widths of vectors, and the small ones."""

T = TypeVar("T")


@dataclass(frozen=True)
class Value:
    """A value of the model: its name, its node for type rules, and what it is on the first feed."""

    name: str
    node: Node
    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.node.type.dims

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> str:
        """Its dtype's name."""
        return self.node.dtype


class Builder:
    """A model that grows step by step. What does not fit raises Error and adds nothing."""

    def __init__(self, rng: np.random.Generator, feeds: int, odd: bool = False) -> None:
        self.rng = rng
        self.odd = odd
        self.opset = 21
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.inputs: list[ValueInfoProto] = []
        self.feeds: list[dict[str, Array]] = [{} for _ in range(feeds)]
        self.values: list[Value] = []
        self.shared: list[Value] = []  # weights that a later product may use again
        self.steps: list[tuple[str, float]] = []  # values in bytes, and their scales
        self.read: set[str] = set()
        self._count = 0

    # Random choices.

    def choose(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """True in that share of all cases."""
        return bool(self.rng.random() < share)

    def between(self, low: int, high: int) -> int:
        """An integer of low..high; Error where there is none, as of an empty dimension."""
        if low > high:
            raise Error(f"no number from {low} to {high}")
        return int(self.rng.integers(low, high + 1))

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        """float32."""
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def numbers(self, *shape: int, scale: float = 1.0) -> Array:
        """float32 of some kind that a compiler may treat as special: mostly normal, but also all
        equal, all zero, all positive, few values, sparse, of very different sizes.
        """
        x = self.normal(*shape, scale=scale)
        kind = self.between(0, 15)
        if kind == 0:
            x = np.zeros_like(x)
        elif kind == 1:
            x = np.full_like(x, self.choose((1, -1, 0.5, 2, -0.25, 1e-3, 6)))
        elif kind == 2:
            x = np.abs(x)
        elif kind == 3:
            x = -np.abs(x)
        elif kind == 4:
            x = np.round(x / max(scale, 1e-9)).astype(np.float32) * np.float32(scale)
        elif kind == 5:
            x = x * (self.rng.random(shape) < 0.2)
        elif kind == 6:
            x = x * np.exp2(self.rng.integers(-6, 3, shape))
        elif kind == 7 and x.size:
            x.flat[self.between(0, x.size - 1)] = 0
        return x.astype(np.float32)

    def shape(self, rank: int, most: int = 4000) -> tuple[int, ...]:
        """A random shape of `rank` dimensions."""
        while True:
            found = tuple(self.choose(LENGTHS) for _ in range(rank))
            if np.prod(found) <= most:
                return found

    # Values.

    def input(self, shape: Sequence[int], dtype: str = "float32", scale: float = 1.0) -> Value:
        """A new input of the model, with random arrays for every feed."""
        name = self.name("x")
        for feed in self.feeds:
            feed[name] = self.random(tuple(shape), dtype, scale)
        self.inputs.append(helper.make_tensor_value_info(name, CODES[dtype], list(shape)))
        node = placeholder(name, Type(dtype, tuple(shape)))
        self.values.append(Value(name, node, self.feeds[0][name]))
        return self.values[-1]

    def random(self, shape: tuple[int, ...], dtype: str, scale: float) -> Array:
        """Values of a dtype; odd ones among floats (NaN, infinities, -0) where this model has
        them.
        """
        if dtype == "bool":
            return self.rng.random(shape) < 0.5
        if "int" in dtype:
            low, high = (
                (0, 255) if dtype == "uint8" else (-128, 127) if dtype == "int8" else (-9, 9)
            )
            return self.rng.integers(low, high, shape, endpoint=True).astype(dtype)
        x = self.normal(*shape, scale=scale)
        if self.odd:
            places = self.rng.random(shape) < 0.05
            odd = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42, 3e38, 0.5, -0.5], np.float32)
            x = np.where(places, self.rng.choice(odd, shape), x).astype(np.float32)
        return x.astype(numpy_dtype(dtype))

    def constant(self, array: Any, dtype: str = "") -> Value:
        """A constant of the model; equal ones are stored as often as they are asked for."""
        value = np.array(array, numpy_dtype(dtype) if dtype else None)
        name = self.name("c")
        self.weights[name] = encode(value, name)
        return Value(name, constant(value.copy(), name), value)

    def ints(self, *values: int) -> Value:
        """int64[n]."""
        return self.constant(np.array(values, np.int64))

    def pick(self, accepts: Callable[[Value], bool] | None = None, dtype: str = "float32") -> Value:
        """A value made before, the later ones more often; Error where none is as wanted."""
        fits = [v for v in self.values if (not dtype or v.dtype == dtype)]
        fits = [v for v in fits if accepts is None or accepts(v)]
        if not fits:
            raise Error("no such value yet")
        return self.choose(fits[-6:] if self.chance(0.8) else fits)

    def name(self, prefix: str) -> str:
        """A name not used before."""
        self._count += 1
        return f"{prefix}{self._count}"

    # Nodes.

    def add(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """A node of one output."""
        return self.add_all(op, *inputs, outputs=1, **attrs)[0]

    def add_all(
        self, op: str, *inputs: Value | None, outputs: int, keep: bool = True, **attrs: Any
    ) -> list[Value]:
        """A node, typed and computed -> its outputs. `keep`: later steps may read them."""
        own = {k: tuple(v) if isinstance(v, list) else v for k, v in attrs.items()}
        if "outputs" in OPERATORS[op].defaults or op == "Split":
            own["outputs"] = outputs
        if "outputs" not in OPERATORS[op].defaults:
            own.pop("outputs", None)
        node = make(op, *(None if i is None else i.node for i in inputs), **own)
        if sum(t.size for t in node.types) > MAX_ELEMENTS:
            raise Error("too large")
        arrays = meaning(node, tuple(None if i is None else i.array for i in inputs))
        if not all(self._tame(a) for a in arrays):
            raise Error("too large, or nothing finite")
        names = [self.name("v") for _ in arrays]
        self._write(op, inputs, names, attrs)
        items = (
            [node]
            if len(arrays) == 1
            else [make("item", node, index=i) for i in range(len(arrays))]
        )
        made = [Value(*each) for each in zip(names, items, arrays, strict=True)]
        if keep:
            self.values.extend(made)
        return made

    def _tame(self, array: Array) -> bool:
        if array.dtype.kind in "biu" or array.size == 0:
            return True
        wide = np.abs(array.astype(np.float64))
        finite = wide[np.isfinite(wide)]
        enough = finite.size == wide.size or (self.odd and finite.size > wide.size / 2)
        return bool(enough and (self.odd or finite.max(initial=0) <= LARGEST))

    def _write(
        self, op: str, inputs: Sequence[Value | None], outputs: list[str], attrs: dict[str, Any]
    ) -> None:
        spelled = {
            k: CODES[v] if k in DTYPE_ATTRIBUTES and isinstance(v, str) else v
            for k, v in attrs.items()
        }
        spelled = {k: list(v) if isinstance(v, tuple) else v for k, v in spelled.items()}
        read = [i.name if i is not None else "" for i in inputs]
        self.read.update(read)
        self.nodes.append(helper.make_node(op, read, outputs, name=f"{op}_{outputs[0]}", **spelled))

    def unsized(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node whose data decide its size: the name of its output, which no other step reads."""
        name = self.name("u")
        self.read.update(inputs)
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{name}", **attrs))
        return name

    def sized(self, op: str, inputs: Sequence[str], array: Array, **attrs: Any) -> Value:
        """A node whose output has a fixed size again, and what that is on the first feed."""
        if not self._tame(array):
            raise Error("too large, or nothing finite")
        name = self.unsized(op, *inputs, **attrs)
        node = placeholder(name, Type(array.dtype.name, array.shape))
        self.values.append(Value(name, node, array))
        return self.values[-1]

    # The whole.

    def outputs(self) -> list[Value]:
        """Values that nothing reads, and sometimes one that is read, or an input."""
        made = {o for n in self.nodes for o in n.output}
        leaves = [v for v in self.values if v.name in made and v.name not in self.read]
        found = leaves[-6:]
        inner = [v for v in self.values if v.name in made and v not in found]
        if inner and (not found or self.chance(0.3)):
            found.append(self.choose(inner))
        if self.chance(0.06) and self.inputs:
            found.append(self.choose([v for v in self.values if v.name in self.feeds[0]]))
        return found

    def model(self, outputs: Sequence[Value]) -> ModelProto:
        """The model as it stands."""
        infos = [helper.make_tensor_value_info(v.name, CODES[v.dtype], v.shape) for v in outputs]
        graph = helper.make_graph(
            self.nodes, "random", self.inputs, infos, list(self.weights.values())
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
