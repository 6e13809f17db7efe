"""What becomes of products of queries and keys: scale, cap, mask; in units of log 2, so that a
weight is a power of two. Where its heads' rows begin, and where its output's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from tvm import tirx

from qcompiler.ir import Node
from qcompiler.kernels.cpu.attention.operands import Heads
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Value
from qcompiler.kernels.cpu.code.vec import Vec
from qcompiler.kernels.gpu.code.device import power2
from qcompiler.kernels.gpu.code.draft import GridDraft
from qcompiler.ops.attention import LEAST

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Query:
    """A query's number, its row of the mask, and that row's step along the keys (0: one value)."""

    number: Value
    mask: Value | None
    step: int


class Scores:
    """The scores of one head, while their code is written; to be made before any loop."""

    def __init__(self, d: GridDraft, image: Value, head: Value) -> None:
        self.d, self.b, self.m, self.root = d, d.b, d.m, d.root
        self.image, self.head = image, head
        self.q, self.k, self.v = Heads.all(self.root)
        self.mask, self._scale = (*self.root.inputs, *[None] * 4)[3:5]
        self._factor = self._made_factor()
        self.hides = self.mask is not None and self.mask.dtype == "bool"
        """Whether a query that sees no key gives 0."""

    @property
    def causal(self) -> bool:
        """Whether queries see only keys up to their own number."""
        return bool(self.root.int("is_causal"))

    def starts(self) -> tuple[Value, Value, Value]:
        """Where the head's queries, keys and values begin."""
        shared = self.q.heads // self.k.heads
        group = self.b.let(self.head // shared, "group") if shared > 1 else self.head
        heads = ((self.q, self.head), (self.k, group), (self.v, group))
        q, k, v = (self.b.let(of.at(self.image, h, 0), "start") for of, h in heads)
        return q, k, v

    def query(self, number: Value) -> Query:
        """A query of the head; `number` is below the count of queries."""
        if self.mask is None:
            return Query(number, None, 0)
        dims = (1,) * (4 - self.mask.type.rank) + self.mask.type.dims
        offset: Value = tir.const(0)
        step = 1
        for size, index in zip(dims[::-1], (None, number, self.head, self.image), strict=True):
            if index is not None and size > 1:
                offset = offset + index * step
            step *= size
        return Query(number, self.b.let(offset, "mask"), int(dims[-1] > 1))

    def score(self, product: Vec, query: Query, key: Value) -> Vec:
        """A product of a query and a key, in float32 -> its score. Hidden keys, and those behind
        the last one, get the lowest.
        """
        m, cap, scale = self.m, self.root.float("softcap"), self._factor
        value = product
        if cap > 0:
            value, scale = m.tanh(value * scale), m.splat(cap * _LOG2_E, "float32")
        if query.mask is None:
            value = value * scale
        else:
            value = self._masked(value * scale, query, key)
        seen = key < self.k.length
        if self.causal:
            seen = tirx.And(seen, key <= query.number)
        return m.where(m.condition(seen), value, LEAST)

    def _masked(self, value: Vec, query: Query, key: Value) -> Vec:
        assert self.mask is not None
        m, last = self.m, tir.const(self.k.length - 1)
        at = query.mask + tirx.Min(key, last) * query.step
        given = self.d.read(self.mask, self.b.let(at, "at"))
        if given.dtype == "bool":
            return m.where(given, value, LEAST)
        bias = m.cast(given, "float32") * _LOG2_E
        return m.larger(m.like(LEAST, value), value + bias)

    def power(self, x: Vec) -> Vec:
        """2^x, zero where that is tiny."""
        return self.m.vec(power2(x.expr))

    def weight(self, score: Vec, top: Vec, key: Value) -> Vec:
        """A score and its row's largest one -> its weight; none of keys behind the last one."""
        inside = self.m.condition(key < self.k.length)
        return self.m.where(inside, self.power(score - top), 0.0)

    def inverse(self, total: Vec, top: Vec) -> Vec:
        """The factor of a row's output."""
        made = self.m.splat(1.0, "float32") / total
        return self.m.where(top > LEAST, made, 0.0) if self.hides else made

    def place(self, number: Value) -> tuple[Value, Value]:
        """A query -> its row in the output, and the column where the head begins."""
        q, b = self.q, self.b
        if self.root.type.rank == 3:  # heads are adjacent in one row
            return b.let(self.image * q.length + number, "row"), self.head * self.v.size
        row = (self.image * q.heads + self.head) * q.length + number
        return b.let(row, "row"), tir.const(0)

    def _made_factor(self) -> Vec:
        """The factor of products: the scale in units of log 2, or of the cap."""
        given, cap = self.root.attrs["scale"], self.root.float("softcap")
        unit = _LOG2_E if cap <= 0 else 1 / cap
        if isinstance(self._scale, Node):
            return self.d.read(self._scale, tir.const(0)) * unit
        scale = 1 / sqrt(self.q.size) if given is None else self.root.float("scale")
        return self.m.splat(scale * unit, "float32")
