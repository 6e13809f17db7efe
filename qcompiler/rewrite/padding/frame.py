"""What a graph of the largest sizes is made with: the sizes of a run, masks, and indices.

The sizes that a run computes with are small hidden inputs, each an expression of the open sizes
that the runtime fills before it starts. Masks and indices are ordinary nodes, made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from qcompiler.artifact.manifest import Symbol
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import SIZE, Dim, Node, Type, constant, placeholder
from qcompiler.ir.refusals import described
from qcompiler.ops import known_value, make, runs
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.shapes import total
from qcompiler.rewrite.matching import const, int64s, reshape, to_dtype
from qcompiler.rewrite.padding.digits import Digits, digits_of, is_open, regrouped

Axes = frozenset[int]
SIZED = Type("int32", (1,))
"""The type of a size as an input."""


@dataclass(frozen=True)
class Padded:
    """A value: its node in the graph of the largest sizes, and the digits of its dimensions. What
    lies at positions that are not valid is arbitrary, NaN too, except: along the dimensions `zero`
    it is 0, and along `calm` it is finite, at positions that are valid along the others.
    """

    node: Node
    dims: tuple[Digits, ...]
    zero: Axes = frozenset()
    calm: Axes = frozenset()

    @property
    def open(self) -> list[int]:
        """Its open dimensions."""
        return [i for i, d in enumerate(self.dims) if is_open(d)]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.dims)


class Padding:
    """One walk over a graph: values by node, and what was made besides."""

    def __init__(
        self,
        symbols: Sequence[Symbol],
        zeroed: frozenset[Node] = frozenset(),
        grown: frozenset[Node] = frozenset(),
        checked: frozenset[tuple[Dim, Dim]] = frozenset(),
    ) -> None:
        """`zeroed`: nodes of which an earlier walk found that it pays to set them to 0 where they
        are not valid; `grown`: those that put rows behind a cache (caches.py); `checked`: pairs of
        sizes of which every run checks that the first is not above the second.
        """
        self.symbols = tuple(symbols)
        self.ranges = {s.name: (s.low, s.high) for s in symbols}
        self.top = {s.name: s.high for s in symbols}
        self.zeroed, self.wanted = zeroed, set[Node]()
        self.grown, self.checked = grown, checked
        self.sizes: dict[Dim, Node] = {}
        self.known: dict[Node, tuple[Padded, ...]] = {}
        self.node = constant(0)
        self._made: dict[object, Node] = {}

    # -- sizes

    def at(self, size: Dim) -> int:
        """The largest number that a size may be."""
        return size if isinstance(size, int) else Size.of(size).at(self.top)

    def whole(self, digits: Digits) -> int:
        """How many positions a dimension has in memory."""
        return prod(map(self.at, digits))

    def bounds(self, size: Dim) -> tuple[int, int]:
        """The least and the largest number that a size may be, or beyond."""
        return runs.bounds(size, self.symbols)

    def at_least(self, size: Dim, least: int) -> bool:
        """Is a size as large in all runs? `least`: from 0 up."""
        return runs.at_least(size, least, self.symbols)

    def demand_largest(self, size: Dim) -> None:
        """Raise Error unless a size is largest where all that are open are: memory is for that."""
        if not self.is_largest(size):
            raise self.refused(f"{size} is not largest where all sizes are")

    def is_largest(self, size: Dim) -> bool:
        """Is a size largest where all open sizes are?"""
        most = self.at(size)
        if self.bounds(size)[1] <= most:
            return True
        factor = runs.factor_of(size, self.symbols)
        if factor is not None and self.at_least(factor, 0) and self.is_largest(factor):
            return True
        found = runs.extremes(Size.of(size), self.symbols)
        return found is not None and found[1] <= most

    def size(self, size: Dim, dtype: str = "int32") -> Node:
        """A size in this run, as a tensor of one number."""
        if isinstance(size, int):
            return const([size], dtype)
        if size not in self.sizes:
            self.sizes[size] = placeholder(f"{SIZE}{size}", SIZED)
        return self._once(("size", size, dtype), lambda: to_dtype(self.sizes[size], dtype))

    def _once(self, key: object, made: Callable[[], Node]) -> Node:
        if key not in self._made:
            self._made[key] = made()
        return self._made[key]

    # -- values

    def refused(self, reason: str, hint: str = "") -> Error:
        """The Error for the node at hand."""
        names = " ".join(f"--dim {name}=N" for name in sorted(self.ranges))
        what = f"its sizes cannot stay open: {reason}"
        return Error(what, where=described(self.node), hint=hint or f"pin them: {names}")

    def value(self, node: Node) -> Padded:
        """An operand. Arithmetic on shapes is made of the sizes of the run."""
        if node in self.known:
            return self.known[node][0]
        found = known_value(node)
        if found is not None:
            made = constant(np.asarray(found), node.name)
        else:
            sizes = known_sizes(node)
            if sizes is None:
                raise self.refused(f"{described(node)} is not known")
            made = self._computed(node, sizes.ravel().tolist())
        self.known[node] = (Padded(made, self.closed(node.type)),)
        return self.known[node][0]

    def _computed(self, node: Node, sizes: list[Dim]) -> Node:
        if not all(isinstance(s, (int, str)) for s in sizes) or node.dtype == "bool":
            raise self.refused(f"{described(node)} is a condition on sizes")
        parts = [self.size(s, node.dtype) for s in sizes]
        made = make("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]
        return reshape(made, node.type.dims, node.name)

    def closed(self, type: Type) -> tuple[Digits, ...]:
        """The digits of a shape in which nothing is open."""
        return tuple(digits_of([d]) for d in type.dims)

    def numbers(self, node: Node | None) -> tuple[int, ...] | None:
        """A small integer tensor that is the same in all runs."""
        found = known_value(node)
        return None if found is None else tuple(int(v) for v in found.ravel())

    # -- masks

    def steps(self, count: int) -> Node:
        """0, 1, 2, ..."""
        return self._once(("steps", count), lambda: const(np.arange(count), "int32"))

    def valid(self, digits: Digits) -> Node:
        """Which positions of a dimension are valid: bool[positions]."""
        return self._once(("valid", digits), lambda: self._valid(digits))

    def _valid(self, digits: Digits) -> Node:
        tests, inner = [], 1
        for digit in reversed(digits):
            count = self.at(digit)
            if isinstance(digit, str):
                places = np.arange(self.whole(digits)) // inner % count
                tests.append(make("Less", const(places, "int32"), self.size(digit)))
            inner *= count
        made = tests[0]
        for test in tests[1:]:
            made = make("And", made, test)
        return made

    def along(self, vector: Node, axis: int, rank: int) -> Node:
        """A vector over one dimension, to be broadcast to others."""
        if axis == rank - 1:
            return vector
        shape = (vector.type.size, *[1] * (rank - 1 - axis))
        return self._once((vector, shape), lambda: reshape(vector, shape))

    def mask(self, value: Padded, axes: Iterable[int]) -> Node | None:
        """Where a value is valid along some dimensions, to be broadcast to it; None: everywhere."""
        made: Node | None = None
        for axis in axes:
            if is_open(value.dims[axis]):
                one = self.along(self.valid(value.dims[axis]), axis, value.rank)
                made = one if made is None else make("And", made, one)
        return made

    def masked(self, value: Padded, axes: Iterable[int], fill: float | Node) -> Padded:
        """A value, with `fill` where it is not valid along some dimensions."""
        over = frozenset(a for a in axes if is_open(value.dims[a]))
        is_zero = not isinstance(fill, Node) and fill == 0
        mask = self.mask(value, sorted(over - value.zero if is_zero else over))
        if mask is None:
            return value
        other = fill if isinstance(fill, Node) else const(fill, value.node.dtype)
        made = make("Where", mask, value.node, other, hides=1)
        if is_zero:
            return replace(value, node=made, zero=value.zero | over, calm=value.calm | over)
        return replace(value, node=made, zero=value.zero - over, calm=value.calm - over)

    # -- indices

    def places(self, target: Digits, source: Digits) -> Node:
        """For every position in some digits, that of the same element in others: int32[positions].
        Both have as many valid positions.
        """
        return self._once(("places", target, source), lambda: self._places(target, source))

    def _places(self, target: Digits, source: Digits) -> Node:
        count, inner = self.whole(target), 1
        nth, step = const(np.zeros(count), "int32"), const([1], "int32")
        for digit in reversed(target):
            each = const(np.arange(count) // inner % self.at(digit), "int32")
            nth = make("Add", nth, make("Mul", each, step))
            step = make("Mul", step, self.size(digit))
            inner *= self.at(digit)
        found, inner = const(np.zeros(count), "int32"), 1
        for i, digit in enumerate(reversed(source)):
            size = self.size(digit)
            if not self.at_least(digit, 1):  # nothing counts then, and nothing is divided by 0
                size = make("Max", size, const([1], "int32"))
            place = nth if i == len(source) - 1 else make("Mod", nth, size)
            nth = make("Div", nth, size)
            found = make("Add", found, make("Mul", place, const([inner], "int32")))
            inner *= self.at(digit)
        return make("Min", found, const([self.whole(source) - 1], "int32"))

    def take(self, value: Padded, axis: int, index: Node, digits: Digits) -> Padded:
        """A value at other positions along a dimension, whose digits are then these."""
        made = make("Gather", value.node, index, axis=axis)
        dims = (*value.dims[:axis], digits, *value.dims[axis + 1 :])
        others = frozenset(range(value.rank)) - {axis}
        return Padded(made, dims, value.zero & others, value.calm & others)

    def prefix(self, value: Padded, axis: int) -> Padded:
        """A value whose valid positions along a dimension come first."""
        axis %= value.rank
        digits = value.dims[axis]
        if len(digits) < 2:
            return value
        whole = digits_of([total(digits)])
        return self.take(value, axis, self.places(whole, digits), whole)

    def reshaped(self, value: Padded, shape: Sequence[Dim]) -> Padded:
        """A value of another shape, whose elements move only if they must."""
        fixed = [self.at(d) for d in shape]
        groups = regrouped(value.dims, shape)
        if groups is not None:
            dims = tuple(digits_of(d for d, _ in group) for group in groups)
            zero, calm = (
                frozenset(
                    i
                    for i, group in enumerate(groups)
                    if is_open(dims[i])
                    and kept.issuperset(s for d, s in group if isinstance(d, str))
                )
                for kept in (value.zero, value.calm)
            )
            return Padded(self._shaped(value.node, fixed), dims, zero, calm)
        source = digits_of(d for digits in value.dims for d in digits)
        target = digits_of(shape)
        flat = Padded(self._shaped(value.node, [self.whole(source)]), (source,))
        moved = self.take(flat, 0, self.places(target, source), target)
        return Padded(self._shaped(moved.node, fixed), tuple(digits_of([d]) for d in shape))

    def _shaped(self, node: Node, shape: Sequence[int]) -> Node:
        if node.type.dims == tuple(shape):
            return node
        return make("Reshape", node, int64s(shape), name=self.node.name, allowzero=1)
