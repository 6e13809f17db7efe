"""Values whose sizes data decide: a tensor of the largest size there may be, and beside it its
*twin*, a node of the same meaning whose type says the true sizes as expressions of symbols, each of
which a number of the run stands for.

Elements behind the true size are of no meaning: operators that mix elements along such an axis read
them masked (carried.py). Sizes of results, and arithmetic on shapes, follow from the type rules of
the twins. An output of the model is cut to its size when a run has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from qcompiler.artifact.sizes import Size, parts, settled
from qcompiler.ir import EXTENT, Dim, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.onnx_io.call import Call, finish
from qcompiler.onnx_io.checks import Checks
from qcompiler.onnx_io.sequences import Items
from qcompiler.onnx_io.settle import Settling, plain
from qcompiler.ops import known_value, make
from qcompiler.ops.known_sizes import known_sizes, never_below_0

_HINT = "declare the shapes of what is selected by data, if their sizes are known"


@dataclass
class Bounds:
    """The values of a model whose sizes data decide."""

    checks: Checks
    twins: dict[Node, Node] = field(default_factory=dict)
    """What is read -> the same of open sizes, or of values that depend on these."""
    counts: dict[str, tuple[Node, Dim]] = field(default_factory=dict)
    """Symbol -> the number that a run has for it, an int64 vector of one, and the most it may be,
    which may be a size that stays open. A symbol stands for one more than that: symbols are
    positive, and the number may be 0.
    """
    symbols: dict[object, str] = field(default_factory=dict)
    """Whatever tells a number from others -> its symbol."""
    numbers: dict[Dim, Node] = field(default_factory=dict)
    above: dict[Dim, frozenset[Dim]] = field(default_factory=dict)
    """Sizes that are the smallest of others -> these."""
    masks: dict[object, Node] = field(default_factory=dict)
    open_size: Callable[[Dim], Node] | None = None
    """A size that stays open -> int64[1], what it is in a run; None: none does."""
    open: frozenset[str] = frozenset()
    """The symbols of sizes that stay open."""

    # What is known of values.

    def twin(self, node: Node) -> Node:
        """The node of true sizes; itself if data do not decide them."""
        if node.op == "item" and node.operands[0] in self.twins:
            return make("item", self.twins[node.operands[0]], index=node.int("index"))
        return self.twins.get(node, node)

    def reads(self, call: Call) -> bool:
        """Do data decide the sizes, or the values by sizes, of an operand?"""
        return any(i is not None and self.twin(i) is not i for i in call.inputs)

    def counted(self, node: Node | None) -> dict[int, Dim]:
        """The axes along which data decide a value's size, and that size."""
        twin = node if node is None else self.twin(node)
        if twin is None or twin is node or len(twin.types) > 1:
            return {}
        return {a: d for a, d in enumerate(twin.shape) if self.varies(d)}

    def varies(self, size: Dim) -> bool:
        """Do data decide a size?"""
        return isinstance(size, str) and not Size.of(size).symbols <= self.open

    def most(self, size: Dim) -> Dim:
        """The largest that a size may be, as far as data decide it."""
        return self._extreme(size, top=True)

    def least(self, size: Dim) -> Dim:
        """The smallest that a size may be, as far as data decide it."""
        return self._extreme(size, top=False)

    def _extreme(self, size: Dim, *, top: bool) -> Dim:
        if not self.varies(size):
            return size
        counts = {s: self.counts[s][1] for s in Size.of(size).symbols if s in self.counts}
        numbers = {s: (1, most + 1) for s, most in counts.items() if isinstance(most, int)}
        found = Size.of(size).bounds_if_known(numbers)
        if found is not None:
            return found[top]
        made = Size.of(0)
        for monomial, c in Size.of(size).terms.items():
            factors = [f for f, power in monomial for _ in range(power)]
            made = made + prod(
                (self._factor_extreme(f, top == (c > 0)) for f in factors), start=Size.of(c)
            )
        return settled(made)

    def _factor_extreme(self, factor: str, top: bool) -> Size:
        """That of a symbol or a quotient, none of which is below 0."""
        if factor in self.counts:
            return Size.of(self.counts[factor][1]) + 1 if top else Size.of(1)
        if factor[0] != "(":
            return Size.of(factor)
        above, below = (settled(Size.of(part)) for part in parts(factor))
        return Size.of(self._extreme(above, top=top)) // self._extreme(below, top=not top)

    def reaches(self, size: Dim, other: Dim) -> bool:
        """Is a size certainly not below another?"""
        return never_below_0(Size.of(size) - other) or never_below_0(
            Size.of(self.least(size)) - self.most(other)
        )

    def known(self, size: Dim) -> bool:
        """Is it made of what a run has numbers for?"""
        return isinstance(size, int) or Size.of(size).symbols <= self.counts.keys() | self.open

    # New sizes.

    def size(self, key: object, count: Node, most: Dim) -> Dim:
        """A number of a run, an int64 vector of one -> the size that stands for it."""
        if key not in self.symbols:
            symbol = f"?n{len(self.symbols)}"
            self.symbols[key] = symbol
            self.counts[symbol] = count, most
            self.numbers[Size.of(symbol) - 1] = count
        return Size.of(self.symbols[key]) - 1

    def put(self, node: Node, counts: Mapping[int, Node]) -> None:
        """Say how many elements a value has along some axes."""
        dims = list(node.shape)
        for axis, count in counts.items():
            dims[axis] = self.size(count, count, node.shape[axis])
        self.put_sizes(node, dims)

    def put_sizes(self, node: Node, dims: Sequence[Dim]) -> Node:
        """Say which sizes a value has; the value."""
        if tuple(dims) != node.shape:
            self.twins[node] = placeholder(node.name, Type(node.dtype, tuple(dims)))
        return node

    def put_values(self, node: Node, sizes: Sequence[Dim]) -> None:
        """Say which sizes are the values of a small integer tensor."""
        self.twins[node] = _of_values(node, sizes)

    def number(self, size: Dim) -> Node:
        """A size -> what a run has for it, an int64 vector of one."""
        if size not in self.numbers:
            self.numbers[size] = self._computed(size)
        return self.numbers[size]

    def _computed(self, size: Dim) -> Node:
        s = self.settling(Call("extent", (), {}, 1, 1, f"size {size}"))
        if not self.varies(size):
            return s.ints([size])
        parts = []
        for monomial, c in Size.of(size).terms.items():
            factors = [self._factor(s, f) for f, power in monomial for _ in range(power)]
            factors += [s.ints([c])] if c != 1 or not factors else []
            parts.append(reduce(lambda a, b: s.node("Mul", a, b), factors))
        return reduce(lambda a, b: s.node("Add", a, b), parts)

    def _factor(self, s: Settling, factor: str) -> Node:
        if factor in self.counts:
            return s.node("Add", self.counts[factor][0], 1)
        if not self.varies(factor):
            return s.ints([factor])
        above, below = parts(factor)
        return s.node("Div", self.number(settled(above)), self.number(settled(below)))

    def smaller(self, sizes: Sequence[Dim]) -> Dim:
        """The smallest of sizes; a new one where that is not known."""
        left = list(dict.fromkeys(sizes))
        left = [a for a in left if not any(a in self.above.get(b, ()) for b in left)]
        for size in [*left]:
            others = [o for o in left if o != size]
            if any(self.reaches(size, o) for o in others):
                left.remove(size)
        if len(left) == 1:
            return left[0]
        key = ("smallest", frozenset(left))
        if key in self.symbols:
            return Size.of(self.symbols[key]) - 1
        s = plain(Call("smallest", (), {}, 1, 1, f"smallest of {left}"))
        count = reduce(lambda a, b: s.node("Min", a, b), map(self.number, left))
        rooms = [self.most(size) for size in left]
        numbers = [n for n in rooms if isinstance(n, int)]
        made = self.size(key, count, min(numbers) if numbers else rooms[0])
        self.above[made] = frozenset(left)
        return made

    # Calls.

    def carried(self, call: Call) -> Node:
        """A call that keeps elements apart along open axes: its operands that say sizes become the
        largest there may be. Raises Unsupported where the sizes of what it makes are not known.
        """
        twin = self.typed(call, [i and self.twin(i) for i in call.inputs])
        value = None if len(twin.types) > 1 else known_value(twin)
        if value is not None:
            return constant(value, call.name)
        open_ = any(self.varies(d) for t in twin.types for d in t.shape)
        inputs = list(call.inputs)
        for at in _SIZES.get(call.op, ()) if open_ else ():
            given = call.input(at)
            values = None if given is None else known_sizes(self.twin(given))
            if given is not None and values is not None:
                if not all(map(self.known, values.ravel())):
                    raise self.refusal(call)
                most = [self.most(v) for v in values.ravel()]
                inputs[at] = self.settling(call).replaced(at, most).inputs[at]
        made = self.typed(call, inputs)
        return self.twinned(call, made, twin)

    def typed(self, call: Call, inputs: Sequence[Node | None]) -> Node:
        """The node of a call at the newest opset on other operands."""
        made = finish(call.but(inputs=inputs))
        assert isinstance(made, Node)
        return made

    def twinned(self, call: Call, made: Node, twin: Node) -> Node:
        """A node and its twin, whose sizes must be those that the node has room for."""
        for own, true in zip(made.types, twin.types, strict=True):
            sizes = zip(own.shape, true.shape, strict=True)
            if not all(self.known(d) and self.most(d) == room for room, d in sizes):
                raise self.refusal(call)
        if any(self.varies(d) for t in twin.types for d in t.shape):
            self.twins[made] = twin
        elif len(twin.types) == 1:
            values = twin if known_sizes(twin) is not None else self._values(call, twin)
            if values is not None:
                self.twins[made] = values
        return made

    def _values(self, call: Call, twin: Node) -> Node | None:
        """The smallest of some sizes, where it is not known which of them that is -> a twin of new
        sizes.
        """
        if call.op not in ("Min", "ReduceMin"):
            return None
        read = [known_sizes(i) for i in twin.operands[: None if call.op == "Min" else 1]]
        found = [r for r in read if r is not None]
        if len(found) < len(read) or (call.op == "ReduceMin" and twin.type.size != 1):
            return None
        rows = np.broadcast_arrays(*found) if call.op == "Min" else list(found[0].ravel())
        columns = zip(*(np.ravel(r) for r in rows), strict=True)
        sizes = [self.smaller(list(c)) for c in columns]
        if not all(self.known(d) and self.reaches(d, 0) for d in sizes):
            return None
        return _of_values(twin, sizes)

    def shape_of(self, call: Call) -> Node:
        """The Shape or the Size of such a value: what a run sees."""
        s, x = plain(call), self.twin(call.need(0))
        made = self.typed(call, [x])
        sizes = known_sizes(made)
        if sizes is None:
            raise self.refusal(call)
        if all(isinstance(d, int) for d in sizes.ravel()):
            value = sizes.astype(np.int64).reshape(made.type.dims)
            return constant(value, call.name)
        parts = [self.number(d) for d in sizes.ravel()]
        whole = s.node("Concat", *parts, axis=0) if parts else s.ints([])
        real = s.node("Reshape", whole, s.ints(list(made.type.dims)))
        self.twins[real] = made
        return real

    # Masks.

    def settling(self, call: Call) -> Settling:
        """A call, to write its nodes with, some of whose sizes may stay open."""
        return replace(plain(call), size=self.open_size)

    def there(self, s: Settling, size: Dim, room: Dim) -> Node:
        """Which of the elements along an axis are there: bool[room]."""
        key = (size, room)
        if key not in self.masks:
            self.masks[key] = s.node("Less", s.steps(room), self.number(size))
        return self.masks[key]

    def masked(self, s: Settling, x: Node, axes: Sequence[int], fill: Any) -> Node:
        """A value with a number where nothing is along open axes."""
        made = x
        for axis, size in self.counted(x).items():
            if axis not in axes:
                continue
            room = x.shape[axis]
            column = [room if a == axis else 1 for a in range(x.type.rank)]
            own = s.node("Reshape", self.there(s, size, room), column)
            made = s.node("Where", own, made, _filling(s, fill, x.dtype))
        if made is not x:
            self.twins[made] = self.twin(x)
        return made

    # The outputs of the model, and what is refused.

    def extents(self, outputs: Sequence[tuple[str, Node]]) -> list[tuple[str, Node]]:
        """Outputs of the model -> the outputs that say how large such ones are."""
        found = []
        for name, node in outputs:
            if self.counted(node):
                s = plain(Call("extent", (node,), {}, 1, 1, f"{name}.extent"))
                parts = [self.number(d) for d in self.twin(node).shape]
                found.append((EXTENT + name, s.node("Concat", *parts, axis=0)))
        return found

    def same(self, call: Call, a: Dim, b: Dim) -> None:
        """Make runs fail in which two sizes differ."""
        if a != b:
            s = plain(call)
            equal = s.node("Equal", self.number(a), self.number(b))
            self.checks.require(equal, f"{call.name} ({call.op}): sizes differ that must be equal")

    def refusal(self, call: Call) -> Exception:
        """The exception for a call that is given what data decide the size of."""
        what = "an operand whose size is decided by data, when the model runs"
        return call.unsupported(what, _HINT)

    def demand_none(self, call: Call) -> None:
        """Raise Unsupported if data decide the size of an operand of a call."""
        if any(self.counted(i) for i in call.inputs):
            raise self.refusal(call)

    def demand_none_in(self, call: Call, values: Sequence[object]) -> None:
        """Raise Unsupported if data decide the size of a value, or of an element of one."""
        items = [n for v in values for n in (v.nodes if isinstance(v, Items) else (v,))]
        self.demand_none(call.but(inputs=[n for n in items if isinstance(n, Node)]))


def _of_values(node: Node, sizes: Sequence[Dim]) -> Node:
    """A node of the type of another, whose values are known to be these sizes."""
    shape = make("Shape", placeholder("", Type("bool", tuple(sizes))))
    wide = make("Reshape", shape, constant(np.array(node.type.dims, np.int64)))
    return make("Cast", wide, to=node.dtype)


def _filling(s: Settling, fill: Any, dtype: str) -> Node:
    """A number, or a size that stays open, as a value of a dtype."""
    if isinstance(fill, str):
        return s.node("Cast", s.ints([fill]), to=dtype)
    return constant(np.asarray(fill).astype(numpy_dtype(dtype)))


_SIZES: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Range": (1,),
    "Reshape": (1,),
    "Resize": (3,),
    "Tile": (1,),
    "TopK": (1,),
}
"""Operands that say sizes."""
