"""Lifetimes of values -> offsets in one workspace."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from qcompiler.ir.graph import Graph, Node
from qcompiler.kernels.registry import Region
from qcompiler.plan.places import Place, room
from qcompiler.plan.regions import base

FITTED = 2000
"""So many buffers, the largest, are placed by looking at every pair."""


@dataclass(eq=False)
class _Buffer:
    """Bytes needed from step `first` to step `last`."""

    bytes: int
    first: int
    last: int
    offset: int = -1
    place: Place = field(init=False)

    def __post_init__(self) -> None:
        self.place = Place("workspace", -1 - id(self), self.bytes)

    @property
    def room(self) -> int:
        """Bytes it takes up."""
        return room(self.bytes)

    @property
    def end(self) -> int:
        """The first offset after it."""
        return self.offset + self.room


class Memory:
    """Lifetimes -> offsets in one workspace: the largest first, each at the lowest offset free
    during its life; what is left of very many beside them, in the order of their lives.
    """

    def __init__(self, graph: Graph, order: Sequence[Region]) -> None:
        self.inputs = {
            n: Place("input", i, n.type.bytes, n.type) for i, n in enumerate(graph.inputs)
        }
        self.outputs = {
            base(n): Place("output", i, n.type.bytes, n.type) for i, n in enumerate(graph.outputs)
        }
        self.last: dict[Node, int] = {}
        for i, region in enumerate(order):
            self.last.update((base(n), i) for n in region.inputs)
        self.buffers: dict[Node, _Buffer] = {}
        self.scratches: list[_Buffer] = []
        self.bytes = 0

    def read(self, source: Node) -> Place:
        """Where a value is that was written, or is an input."""
        known = self.inputs.get(source) or self.outputs.get(source)
        return known or self.buffers[source].place

    def write(self, node: Node, index: int, heirs: Iterable[Node]) -> Place:
        """A place for a new value, which takes over an operand's that dies here where the kernel
        allows it.
        """
        if node in self.outputs:
            return self.outputs[node]
        last = self.last.get(node, index)
        for heir in heirs:
            old = self.buffers.get(heir)
            if (
                old is not None
                and self.last[heir] == index == old.last
                and old.bytes == node.type.bytes
            ):
                old.last = last
                self.buffers[node] = old
                return old.place
        self.buffers[node] = _Buffer(node.type.bytes, index, last)
        return self.buffers[node].place

    def scratch(self, size: int, index: int) -> Place:
        """Memory of one step alone."""
        self.scratches.append(_Buffer(size, index, index))
        return self.scratches[-1].place

    def placed(self) -> dict[Place, Place]:
        """Decide all offsets -> {the stand-in handed out before: the final place}."""
        todo = sorted(
            {*self.buffers.values(), *self.scratches}, key=lambda b: (-b.bytes, b.first, b.last)
        )
        _fit(todo[:FITTED])
        _queue(todo[FITTED:], max((b.end for b in todo[:FITTED]), default=0))
        self.bytes = max((b.end for b in todo), default=0)
        return {b.place: Place("workspace", b.offset, b.bytes) for b in todo}


def _fit(buffers: Sequence[_Buffer]) -> None:
    """One after the other at the lowest offset free during its life."""
    placed: list[_Buffer] = []  # by offset
    for buffer in buffers:
        offset = 0
        for other in placed:
            if other.first <= buffer.last and buffer.first <= other.last:
                if offset + buffer.room <= other.offset:
                    break
                offset = max(offset, other.end)
        buffer.offset = offset
        insort(placed, buffer, key=lambda b: b.offset)


def _queue(buffers: Sequence[_Buffer], start: int) -> None:
    """In the order of their lives, each in the lowest gap that those before have left, beyond
    `start`: nearly as tight for many buffers of few sizes, and without a look at every pair.
    """
    gaps: list[tuple[int, int]] = []  # (offset, bytes), by offset
    end = start
    dying: list[tuple[int, int, int]] = []  # (last step, offset, bytes), the first to die on top
    for buffer in sorted(buffers, key=lambda b: b.first):
        while dying and dying[0][0] < buffer.first:
            _, offset, size = heappop(dying)
            _give_back(gaps, offset, size)
        at = next((i for i, (_, size) in enumerate(gaps) if size >= buffer.room), None)
        if at is None:
            buffer.offset, end = end, end + buffer.room
        else:
            buffer.offset, size = gaps.pop(at)
            if size > buffer.room:
                gaps.insert(at, (buffer.offset + buffer.room, size - buffer.room))
        heappush(dying, (buffer.last, buffer.offset, buffer.room))


def _give_back(gaps: list[tuple[int, int]], offset: int, size: int) -> None:
    """One gap more, in one with its neighbours."""
    at = bisect_left(gaps, (offset, size))
    if at < len(gaps) and gaps[at][0] == offset + size:
        size += gaps.pop(at)[1]
    if at and sum(gaps[at - 1]) == offset:
        offset, before = gaps.pop(at - 1)
        at, size = at - 1, size + before
    gaps.insert(at, (offset, size))
