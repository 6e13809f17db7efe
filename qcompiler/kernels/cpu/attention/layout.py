"""An attention's operands and a device -> what its kernel decides before any code is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

from qcompiler.hardware.isa import Cpu
from qcompiler.kernels.cpu.attention.operands import Heads, Keys, Values
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.loops import shared_seconds, tasks
from qcompiler.kernels.cpu.contraction.blocking import highest, spare
from qcompiler.kernels.cpu.contraction.operands import Product

_FLOPS_PER_NS = 40.0  # of the reference core
_MOST_QUERIES = 12
_GUARD = 64
"""Bytes behind a task's scratch that a vector may reach into."""


@dataclass(frozen=True)
class Layout:
    """How work is cut, and where in a task's scratch what lies; each is decided once. `heads` are
    those of queries, keys and values, `for_scores` and `for_values` the products of both.
    """

    heads: tuple[Heads, Heads, Heads]
    for_scores: Product
    for_values: Product
    device: Cpu
    suffix: ClassVar[str] = ""
    """Of the kernel's name."""

    @cached_property
    def lanes(self) -> int:
        """Of a vector of sums."""
        return self.for_scores.mac.lanes

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of both products."""
        q, k, v = self.heads
        return q.batch * q.heads * q.length * k.length * (q.size + v.size)

    @cached_property
    def vectors(self) -> int:
        """Vectors of the output's columns at a time."""
        most = 4 if self.device.isa.registers > 22 else 2
        return min(-(-self.heads[2].size // self.lanes), most)

    @cached_property
    def held(self) -> int:
        """Queries that registers hold sums for."""
        products, registers = (self.for_scores, self.for_values), self.device.isa.registers
        free = (registers - 2 - p.temporaries - spare(p, short=False) for p in products)
        most = (highest(p, self.vectors, f) for p, f in zip(products, free, strict=True))
        return min(self.heads[0].length, _MOST_QUERIES, *most)

    @property
    def block(self) -> int:
        """Queries at a time."""
        return self.held

    @cached_property
    def parts(self) -> int:
        """What may be dealt to tasks of a head."""
        q, threads = self.heads[0], self.device.threads
        return 1 if q.batch * q.heads >= threads else min(threads, -(-q.length // self.held))

    @cached_property
    def tasks(self) -> int:
        """Tasks in all."""
        q = self.heads[0]
        return tasks(self.device, self._alone_ns, q.batch * q.heads * self.parts)

    @property
    def seconds(self) -> float:
        """What vectors take, softmax included."""
        ns, q = self._alone_ns, self.heads[0]
        return shared_seconds(self.device, ns, tasks(self.device, ns, q.batch * q.heads))

    @property
    def _alone_ns(self) -> float:
        ns = 2 * self.macs / (_FLOPS_PER_NS * self.for_scores.mac.k)
        return self.device.core.product_ns(ns)

    @cached_property
    def keys(self) -> Keys:
        """A head's keys, packed."""
        return Keys(self.for_scores, self.heads[1])

    @cached_property
    def values(self) -> Values:
        """A head's values, packed or as they lie."""
        return Values(self.for_values, self.heads[2])

    @cached_property
    def padded(self) -> int:
        """Keys, those that fill the last vector too."""
        return -(-self.heads[1].length // self.lanes) * self.lanes

    @property
    def row(self) -> int:
        """Elements from one query's scores to the next one's."""
        return self.padded

    @property
    def copies(self) -> bool:
        """Are queries copied, converted to what the product takes?"""
        source = self.heads[0].node.dtype
        return self.for_scores.flipped or self.for_scores.left != tir.stored(source)

    @cached_property
    def query_row(self) -> int:
        """Elements from one query to the next one."""
        q, chunk = self.heads[0], self.lanes * self.for_scores.mac.k
        return -(-q.size // chunk) * chunk if self.copies else q.steps[2]

    def pieces(self) -> dict[str, int]:
        """What lies in a task's scratch -> its bytes, in order."""
        copied = self.block * self.query_row * tir.bits(self.for_scores.left) // 8
        weight = tir.bits(self.for_values.left) // 8
        scores = self.block * self.row
        return {
            "keys": self.keys.bytes,
            "values": self.values.bytes,
            "queries": copied if self.copies else 0,
            "scores": scores * 4,
            **({"weights": scores * weight} if weight < 4 else {}),  # else in place of scores
            "tops": self.block * self.lanes * 4,
            "inverses": self.block * 4,
        }

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each piece begins, in whole cache lines; "end": behind all of them."""
        pieces = self.pieces()
        lines = map(self.device.core.whole_lines, pieces.values())
        return dict(zip([*pieces, "end"], accumulate(lines, initial=0), strict=True))

    @cached_property
    def task_bytes(self) -> int:
        """Of a task's scratch."""
        return self.places["end"] + _GUARD
