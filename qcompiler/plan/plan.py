"""Graph and device -> plan: the printable list of steps, with kernels, byte offsets and threads all
decided.

Nothing is left to decide at run time: every value lives at a fixed offset of one workspace
(lifetimes overlap nowhere), of one block of weights, or in the caller's own input and output
arrays.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from types import MappingProxyType

import numpy as np

from qcompiler.artifact.artifact import Bytes
from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import Array, Graph, Node, Type
from qcompiler.ir.refusals import Reasons, missing
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Kernel, Region, choose
from qcompiler.plan.batches import in_parts
from qcompiler.plan.regions import base, regions, split, with_copies

log = logging.getLogger(__name__)

ALIGN = 64
GUARD = 64
"""Kernels may read this far past the end of a constant or a workspace buffer."""

FITTED = 2000
"""So many buffers, the largest, are placed by looking at every pair."""

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Place:
    """Where bytes are: space "input" or "output" (index = which), "weights" or "workspace" (offset
    in bytes).
    """

    space: str
    offset: int
    bytes: int
    type: Type | None = None

    def __str__(self) -> str:
        return (
            f"{self.space}[{self.offset}]"
            if self.space in ("input", "output")
            else f"{self.space}+{self.offset}"
        )


@dataclass(frozen=True)
class Step:
    """One kernel call: what it computes, where it reads and writes, and its scratch memory."""

    name: str
    region: Region
    kernel: Kernel
    operands: tuple[Place, ...]
    output: Place
    scratch: Place | None


@dataclass(frozen=True)
class Plan:
    """Steps in the order they run, and the memory they run in."""

    graph: Graph
    device: Device
    steps: tuple[Step, ...]
    weights: Bytes
    workspace_bytes: int
    blocks: tuple[tuple[int, int], ...] = ()
    """(Offset, bytes) of every constant among the weights."""
    skips: tuple[tuple[str, str, str], ...] = ()
    """(step, generator, why it was not used), for --explain."""
    parts: int = 1
    """How often all steps run, each time on the next part of the inputs and outputs (batches.py);
    the steps' sizes are those of one part.
    """

    def __str__(self) -> str:
        rows = [("step", "kernel", "threads", "reads", "writes", "scratch", "type")]
        for s in self.steps:
            reads = " ".join(map(str, s.operands))
            scratch = f"{s.scratch}:{s.scratch.bytes}" if s.scratch else "-"
            rows.append(
                (
                    s.name,
                    s.kernel.name,
                    str(s.kernel.tasks),
                    reads,
                    str(s.output),
                    scratch,
                    str(s.region.output.type),
                )
            )
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]) - 1)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[-1]]) for r in rows
        ]
        head = (
            f"plan {self.graph.name!r} for {self.device.isa.name}, {self.device.threads} threads: "
            f"{len(self.steps)} steps, {len({s.kernel.name for s in self.steps})} kernels, "
            f"weights {self.weights.nbytes} bytes, workspace {self.workspace_bytes} bytes"
            + (f", for each of {self.parts} parts of the batch" if self.parts > 1 else "")
        )
        return "\n".join([head, *lines])


def plan(
    graph: Graph,
    device: Device,
    progress: Progress | None = None,
    reasons: Reasons = MappingProxyType({}),
) -> Plan:
    """Graph (after the layout stage, static shapes) -> plan. `progress(done, all, name)` is told of
    every step; `reasons` says of nodes by name why the layout stage left them alone.
    """
    graph = with_copies(graph)
    whole, (graph, parts) = graph, in_parts(graph, device)
    chosen = _Chooser(device)
    made: list[tuple[Region, Kernel]] = []
    todo = regions(graph)
    for i, region in enumerate(todo):
        if progress is not None:
            progress(i, len(todo), region.output.name)
        made.extend(chosen.kernels(region))
    chosen.demand_all(reasons)
    weights = _Weights()
    memory = _Memory(graph, [r for r, _ in made])
    steps = [_step(i, region, kernel, weights, memory) for i, (region, kernel) in enumerate(made)]
    placed = memory.placed()
    final = tuple(
        Step(
            s.name,
            s.region,
            s.kernel,
            tuple(placed.get(o, o) for o in s.operands),
            placed.get(s.output, s.output),
            None if s.scratch is None else placed[s.scratch],
        )
        for s in steps
    )
    blocks = tuple((p.offset, p.bytes) for p in weights.known.values())
    skips = tuple(chosen.skips)
    return Plan(whole, device, final, weights.blob(), memory.bytes, blocks, skips, parts)


def _step(index: int, region: Region, kernel: Kernel, weights: _Weights, memory: _Memory) -> Step:
    operands = []
    for i, node in enumerate(region.inputs):
        source = base(node)
        if source.is_constant:
            operands.append(weights.place(source, node, kernel, i))
        else:
            operands.append(memory.read(source, index))
    sources = [base(n) for n in region.inputs]
    heirs = [sources[i] for i in kernel.in_place if sources.count(sources[i]) == 1]
    output = memory.write(region.output, index, heirs)
    scratch = memory.scratch(kernel.scratch_bytes, index) if kernel.scratch_bytes else None
    return Step(_name(region), region, kernel, tuple(operands), output, scratch)


def _name(region: Region) -> str:
    """The anchor's name (the model's own node name); without an anchor the last named node's."""
    if region.root is not None and region.root.name:
        return region.root.name
    return next((n.name for n in reversed(region.nodes) if n.name), region.output.op)


class _Chooser:
    """Regions -> kernels; those of equal keys share one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.known: dict[str, Kernel | None] = {}
        self.names: dict[str, int] = {}
        self.skips: list[tuple[str, str, str]] = []
        self.missing: list[Node] = []  # what no generator can make

    def kernels(self, region: Region) -> list[tuple[Region, Kernel]]:
        """One kernel for the region, or, where no generator can make it whole, kernels for its
        parts.
        """
        handed = sealed(region, self.device)
        if handed.key not in self.known:
            self.known[handed.key] = self.generate(handed, _name(region))
        kernel = self.known[handed.key]
        if kernel is not None:
            return [(region, kernel)]
        parts = split(region)
        if not parts:
            self.missing.append(_maker(region))
        return [found for part in parts for found in self.kernels(part)]

    def generate(self, region: Region, name: str) -> Kernel | None:
        """A sealed region, and what to call it when telling why not -> its kernel."""
        found, skips = choose(region, self.device)
        self.skips.extend((name, generator, reason) for generator, reason in skips)
        if isinstance(found, Skip):
            log.info("%s: %s", name, found.reason)
            return None
        count = self.names.get(found.name, 0)
        self.names[found.name] = count + 1
        return replace(found, name=f"{found.name}_{count}") if count else found

    def demand_all(self, reasons: Reasons) -> None:
        """Refuse a graph with nodes that have a meaning but no kernel, naming every one."""
        if self.missing:
            last = {step: reason for step, _, reason in self.skips}  # of the most general generator
            raise missing(self.missing, {**last, **reasons})


def _maker(region: Region) -> Node:
    """The node of the model that a region is mostly about; for an `item` the one it is of."""
    root = region.root or region.output
    return root.operands[0] if root.op == "item" else root


class _Weights:
    """Constants -> one block of bytes, each packed as its kernel reads it, equal ones once."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self.offset = 0
        self.known: dict[tuple[str, bytes], Place] = {}

    def place(self, source: Node, node: Node, kernel: Kernel, position: int) -> Place:
        array = source.array.reshape(node.type.dims)
        pack = kernel.pack.get(position)
        packed = np.ascontiguousarray(pack(array) if pack else array)
        raw = packed.reshape(-1).view(np.uint8)
        key = (packed.dtype.name, hashlib.sha256(raw.tobytes()).digest())
        if key not in self.known:
            self.known[key] = Place("weights", self.offset, raw.size)
            self.arrays.append(raw)
            self.offset += _aligned(raw.size + GUARD)
        return self.known[key]

    def blob(self) -> Bytes:
        blob = np.zeros(self.offset, np.uint8)
        for place, raw in zip(self.known.values(), self.arrays, strict=True):
            blob[place.offset : place.offset + raw.size] = raw
        return blob


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
        return _aligned(self.bytes + GUARD)

    @property
    def end(self) -> int:
        """The first offset after it."""
        return self.offset + self.room


class _Memory:
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

    def read(self, source: Node, index: int) -> Place:
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


def _aligned(size: int) -> int:
    return (size + ALIGN - 1) // ALIGN * ALIGN
