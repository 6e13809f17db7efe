"""Lifetimes of values -> offsets in one workspace."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from qcompiler.ir.graph import Graph, Node
from qcompiler.kernels.registry import Region
from qcompiler.plan.branches import Branch
from qcompiler.plan.guards import Guard
from qcompiler.plan.places import Place, room
from qcompiler.plan.regions import base
from qcompiler.plan.repeats import Loop

FITTED = 2000
"""Number of largest buffers that are placed by comparing every pair."""


@dataclass(eq=False)
class _Buffer:
    """Bytes needed from step `first` to step `last`; `branch`: of the step that writes them first,
    if others run side by side with it.
    """

    bytes: int
    first: int
    last: int
    branch: Branch | None = None
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

    @property
    def begin(self) -> int:
        """The first step that may run when it is needed."""
        return self.first if self.branch is None else self.branch.first

    def meets(self, other: _Buffer) -> bool:
        """Are both needed at once?"""
        mine, its = self.branch, other.branch
        if mine and its and mine.first == its.first and mine.thread != its.thread:
            return True
        return other.first <= self.last and self.first <= other.last


class Memory:
    """Lifetimes -> offsets in one workspace: the largest first, each at the lowest offset free
    during its lifetime; beyond FITTED buffers, the rest after them in order of first use.
    """

    def __init__(
        self,
        graph: Graph,
        order: Sequence[Region],
        branches: Sequence[Branch | None] = (),
        conditions: Sequence[Sequence[Guard]] = (),
        loops: Sequence[Loop] = (),
    ) -> None:
        """`conditions`: what each step reads besides, if anything; `loops`: among the steps."""
        self.branches = branches or [None] * len(order)
        self.loops = loops
        self.inputs = {
            n: Place("input", i, n.type.bytes, n.type) for i, n in enumerate(graph.inputs)
        }
        self.outputs = {
            base(n): Place("output", i, n.type.bytes, n.type)
            for i, n in enumerate(graph.results.values())
        }
        self.last: dict[Node, int] = {}
        self.reads: dict[Node, list[int]] = {}
        makers = {region.output: i for i, region in enumerate(order)}
        for i, region in enumerate(order):
            beside = [n for n, _ in conditions[i]] if conditions else []
            for source in (*map(base, region.inputs), *beside):
                last = max(self.last.get(source, 0), self._until(i, makers.get(source, -1)))
                self.last[source] = last
                self.reads.setdefault(source, []).append(i)
        kept = (*graph.checks.values(), *graph.extents.values())
        self.last.update((base(n), len(order)) for n in kept)
        self.buffers: dict[Node, _Buffer] = {}
        self.scratches: list[_Buffer] = []
        self.bytes = 0
        self.homes: dict[Node, Node] = {}
        """What loops write -> the state in whose place it comes."""
        self.direct: dict[Node, tuple[Loop, Node]] = {}
        """What a loop's copies read -> the state in whose place it may be written at once."""
        for loop in reversed(loops):  # the inner first
            self._keep(loop, order, makers)

    def _keep(self, loop: Loop, order: Sequence[Region], makers: Mapping[Node, int]) -> None:
        """Let a loop's states stay until it ends, and what it leaves there until it is read."""
        for state, copy in zip(loop.states, loop.copies, strict=True):
            ends = (loop.last - 1, self.last.get(copy, 0), self.last.get(state, 0))
            self.last[state] = max(ends)
            if copy is not state:
                self.homes[copy] = state
                (source,) = map(base, order[makers[copy]].inputs)
                self.direct.setdefault(source, (loop, state))

    def read(self, source: Node) -> Place:
        """The place of an input, or of a value that was written."""
        known = self.inputs.get(source) or self.outputs.get(source)
        return known or self.buffers[source].place

    def write(self, node: Node, index: int, candidates: Collection[Node]) -> Place:
        """A place for a new value: that of the first in-place candidate (an operand that the kernel
        may overwrite) of its size that is not read later, or a new one.
        """
        if node in self.outputs:
            return self.outputs[node]
        home = self.homes.get(node) or self._at_once(node, index, candidates)
        if home is not None:
            self.buffers[node] = self.buffers[home]
            return self.buffers[home].place
        last = self.last.get(node, index)
        for candidate in candidates:
            old = self.buffers.get(candidate)
            if (
                old is not None
                and self.last[candidate] == index == old.last
                and old.bytes == node.type.bytes
            ):
                old.last = last
                self.buffers[node] = old
                return old.place
        self.buffers[node] = _Buffer(node.type.bytes, index, last, self.branches[index])
        return self.buffers[node].place

    def scratch(self, size: int, index: int) -> Place:
        """Memory that lives for one step."""
        self.scratches.append(_Buffer(size, index, index, self.branches[index]))
        return self.scratches[-1].place

    def _until(self, index: int, maker: int) -> int:
        """The last step at which what a step reads is needed: in branches the last of their group,
        unless the same thread made it there; in a loop its last, unless it was made there.
        """
        branch = self.branches[index]
        around = [x.last - 1 for x in self.loops if x.holds(index) and not x.holds(maker)]
        if branch is None or branch == _at(self.branches, maker):
            return max(around, default=index)
        return branch.last

    def _at_once(self, node: Node, index: int, candidates: Collection[Node]) -> Node | None:
        """The state whose place a value may be written to at once: nothing in the body reads the
        state later, and the step itself only if its kernel may overwrite it.
        """
        loop, state = self.direct.get(node, (None, node))
        if loop is None or not loop.holds(index) or node.type.bytes != state.type.bytes:
            return None
        reads = [i for i in self.reads.get(state, ()) if loop.holds(i)]
        free = index if state in candidates else index - 1
        return state if max(reads, default=-1) <= free else None

    def placed(self) -> dict[Place, Place]:
        """Decide all offsets -> {provisional place: final place}."""
        todo = sorted(
            {*self.buffers.values(), *self.scratches}, key=lambda b: (-b.bytes, b.first, b.last)
        )
        _fit(todo[:FITTED])
        _queue(todo[FITTED:], max((b.end for b in todo[:FITTED]), default=0))
        self.bytes = max((b.end for b in todo), default=0)
        return {b.place: Place("workspace", b.offset, b.bytes) for b in todo}


def _fit(buffers: Sequence[_Buffer]) -> None:
    """Place each buffer at the lowest offset free during its lifetime."""
    placed: list[_Buffer] = []  # by offset
    for buffer in buffers:
        offset = 0
        for other in placed:
            if buffer.meets(other):
                if offset + buffer.room <= other.offset:
                    break
                offset = max(offset, other.end)
        buffer.offset = offset
        insort(placed, buffer, key=lambda b: b.offset)


def _queue(buffers: Sequence[_Buffer], start: int) -> None:
    """Place buffers in order of first use, each in the lowest gap beyond `start` that earlier ones
    have left: nearly as tight for many buffers of few sizes, without comparing every pair.
    """
    gaps: list[tuple[int, int]] = []  # (offset, bytes), by offset
    end = start
    live: list[tuple[int, int, int]] = []  # (last step, offset, bytes), the earliest on top
    for buffer in sorted(buffers, key=lambda b: b.begin):
        while live and live[0][0] < buffer.begin:
            _, offset, size = heappop(live)
            _free(gaps, offset, size)
        at = next((i for i, (_, size) in enumerate(gaps) if size >= buffer.room), None)
        if at is None:
            buffer.offset, end = end, end + buffer.room
        else:
            buffer.offset, size = gaps.pop(at)
            if size > buffer.room:
                gaps.insert(at, (buffer.offset + buffer.room, size - buffer.room))
        last = buffer.last if buffer.branch is None else max(buffer.last, buffer.branch.last)
        heappush(live, (last, buffer.offset, buffer.room))


def _at(branches: Sequence[Branch | None], index: int) -> Branch | None:
    return branches[index] if index >= 0 else None


def _free(gaps: list[tuple[int, int]], offset: int, size: int) -> None:
    """Add a gap, joined with its neighbours."""
    at = bisect_left(gaps, (offset, size))
    if at < len(gaps) and gaps[at][0] == offset + size:
        size += gaps.pop(at)[1]
    if at and sum(gaps[at - 1]) == offset:
        offset, before = gaps.pop(at - 1)
        at, size = at - 1, size + before
    gaps.insert(at, (offset, size))
