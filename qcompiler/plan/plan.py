"""Graph and device -> plan: the printable list of steps, with all kernels, byte offsets and threads
decided.

Nothing is left to decide at run time: every value has a fixed offset in the workspace (values alive
at the same time do not overlap) or in the block of weights, or is an input or output array of the
caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import MappingProxyType

import numpy as np

from qcompiler.artifact.abi import MOST_UNITS
from qcompiler.artifact.artifact import Bytes
from qcompiler.artifact.manifest import Batch, Pinned, Symbol, Value
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Dim, Graph, Node
from qcompiler.ir.refusals import Reasons
from qcompiler.kernels.registry import Decision, Kernel, Records, Region
from qcompiler.plan.barriers import AFTER_ALL, Slot, Work, slots
from qcompiler.plan.batches import apart, in_parts
from qcompiler.plan.branches import Branch, side_by_side
from qcompiler.plan.choose import Chooser, name_of
from qcompiler.plan.guards import guards
from qcompiler.plan.memory import Memory
from qcompiler.plan.places import Place
from qcompiler.plan.regions import base, with_copies
from qcompiler.plan.repeats import Loop, Repeat, flattened
from qcompiler.plan.weights import Weights

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Opened:
    """Open sizes: their symbols, the shapes of inputs and outputs with them, and what runs are made
    of.
    """

    symbols: tuple[Symbol, ...]
    """The symbol of the batch first, if the batch is open."""
    shapes: tuple[tuple[tuple[Dim, ...], ...], tuple[tuple[Dim, ...], ...]]
    batches: tuple[Batch, ...] = ()
    """Of an open batch: the batches of fixed sizes that runs are made of, the largest first."""
    pinned: tuple[Pinned, ...] = ()
    """Of other open sizes: the sizes up to which steps compute, the largest first."""
    batched: bool = False
    """Is the first symbol that of a batch?"""
    sizes: tuple[str, ...] = ()
    """What the graph's last inputs are, which no caller gives: sizes, as expressions of symbols."""
    rooms: Mapping[str, tuple[Dim, ...]] = field(default_factory=dict)
    """Inputs that have room for more in memory -> their shapes there."""

    @property
    def symbol(self) -> Symbol:
        """The first symbol, that of the batch if the batch is open."""
        return self.symbols[0]

    @property
    def inner(self) -> tuple[Symbol, ...]:
        """The symbols of other sizes than the batch."""
        return self.symbols[self.batched :]

    def __str__(self) -> str:
        open_ = ", ".join(map(str, self.symbols))
        if self.pinned:
            return f"{open_}: {', '.join(map(str, self.pinned))}"
        return f"{open_}: {', then '.join(map(str, self.batches))}" if self.batches else open_


@dataclass(frozen=True)
class Step:
    """One kernel call: what it computes, where it reads and writes, its scratch memory, and its
    slot: whether all threads wait before it, and which task runs it.
    """

    name: str
    region: Region
    kernel: Kernel
    operands: tuple[Place, ...]
    output: Place
    scratch: Place | None
    decision: Decision | None = None
    """How the kernel was chosen."""
    slot: Slot = AFTER_ALL
    branch: Branch | None = None
    """Where it stands, if it runs side by side with others."""
    guards: tuple[tuple[Place, bool], ...] = ()
    """Booleans in memory, and what they must be: other runs skip it (guards.py)."""

    @property
    def bytes(self) -> int:
        """Bytes that it reads and writes, each operand once."""
        return sum(p.bytes for p in (*self.operands, self.output))

    @property
    def writes(self) -> tuple[Place, ...]:
        """The places that it writes: output and scratch."""
        return (self.output, *([self.scratch] if self.scratch else []))


@dataclass(frozen=True)
class Plan:
    """Steps in the order they run, and the memory they run in."""

    graph: Graph
    device: Device
    steps: tuple[Step, ...]
    weights: Bytes
    workspace_bytes: int
    blocks: tuple[tuple[int, int], ...] = ()
    """(offset, bytes) of every constant in the weights."""
    skips: tuple[tuple[str, str, str], ...] = ()
    """(step, generator, why it was not used), for --explain."""
    parts: int = 1
    """Parts of the batch (batches.py): all steps run once for each; their sizes are of one part."""
    apart: bool = False
    """Whether every sample of the batch is known to be computed by itself."""
    checks: Mapping[str, Place] = field(default_factory=dict)
    """What is wrong -> where in the workspace a run leaves booleans that tell (false: it is)."""
    extents: Mapping[str, Place] = field(default_factory=dict)
    """Output whose size data decide -> where a run leaves that size, in int64."""
    opened: Opened | None = None
    """Of open sizes: which, and the steps that run for so many samples."""
    repeats: tuple[Repeat, ...] = ()
    """Loops: steps that run again and again, the outer loops before the inner."""

    @property
    def sides(self) -> tuple[list[Value], list[Value]]:
        """The inputs and the outputs."""
        graph, opened = self.graph, self.opened
        given = graph.inputs[: len(graph.inputs) - len(opened.sizes)] if opened else graph.inputs
        ins = [(n.name, n) for n in given]
        outs = list(graph.results.items())
        opens = opened.shapes if opened else (((),) * len(ins), ((),) * len(outs))
        rooms = opened.rooms if opened else {}
        inputs, outputs = (
            [
                Value(name, n.dtype, self._shown(n, open_), open_, rooms.get(name, ()))
                for (name, n), open_ in pairs
            ]
            for pairs in (zip(ins, opens[0], strict=True), zip(outs, opens[1], strict=True))
        )
        return inputs, outputs

    def _shown(self, node: Node, open_: tuple[Dim, ...]) -> tuple[int, ...]:
        """The shape of an input or output. With an open batch it is that of the number of samples
        that will be most frequent, as plans for other devices may compute others at once.
        """
        if self.opened is None or not self.opened.batched or not open_:
            return node.type.dims
        most = {s.name: s.high for s in self.opened.symbols}
        rows = Size.of(open_[0]).at({**most, self.opened.symbol.name: self.opened.symbol.best})
        return (rows, *node.type.dims[1:])

    @property
    def useful_threads(self) -> int:
        """The most threads that have work at the same time."""
        tasks = (max(s.kernel.tasks, s.slot.owner + 1) for s in self.steps)
        return min(self.device.threads, max(tasks, default=1))

    def __str__(self) -> str:
        rows = [("step", "kernel", "threads", "runs", "reads", "writes", "scratch", "type")]
        for s in self.steps:
            reads = " ".join(map(str, s.operands))
            scratch = f"{s.scratch}:{s.scratch.bytes}" if s.scratch else "-"
            rows.append(
                (
                    s.name,
                    s.kernel.label,
                    str(s.kernel.tasks),
                    str(s.slot) + (" if" if s.guards else ""),
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
            + (f", {self.opened}" if self.opened else "")
        )
        return "\n".join([head, *lines, *map(str, self.repeats)])


def plan(
    graph: Graph,
    device: Device,
    progress: Progress | None = None,
    reasons: Reasons = MappingProxyType({}),
    records: Records | None = None,
    parts: int = 0,
    branches: bool = True,
) -> Plan:
    """Graph (after the layout stage, static shapes) -> plan. `progress(done, all, name)` is called
    before every region; `reasons`: why the layout stage skipped nodes, by name; `records`: measured
    decisions, which are used where there are any; `parts`: how many a batch runs in, 0: as many as
    are predicted to help; `branches`: run independent ones side by side where that is predicted to
    help.
    """
    graph = with_copies(graph)
    whole, (graph, parts) = graph, in_parts(graph, device, parts)
    flat = flattened(graph)
    if flat.loops and not isinstance(device, Cpu):
        what = f"{device.name} runs no loops in a plan"
        raise Error(what, hint="export the model with fewer iterations, or compile for a CPU")
    chosen = Chooser(device, records, graph)
    made: list[tuple[Region, Decision]] = []
    starts = [0]
    for i, region in enumerate(flat.regions):
        if progress is not None:
            progress(i, len(flat.regions), region.output.name)
        made.extend(chosen.kernels(region))
        starts.append(len(made))
    chosen.demand_all(reasons)
    loops = [loop.moved(starts) for loop in flat.loops]
    beside: list[Branch | None] = []
    if branches and not loops:
        made, beside = side_by_side(made, chosen)
    one = laid_out(flat.graph, device, made, parts, beside, loops=loops, kept=flat.kept)
    return replace(one, graph=whole, skips=tuple(chosen.skips))


def laid_out(
    graph: Graph,
    device: Device,
    made: Sequence[tuple[Region, Decision]],
    parts: int = 1,
    branches: Sequence[Branch | None] = (),
    weights: Weights | None = None,
    loops: Sequence[Loop] = (),
    kept: Graph | None = None,
) -> Plan:
    """Regions of a graph in the order they run, their kernels, and the branch of each, if there are
    any -> the plan: places for all that they read and write, and whose turn it is. `weights`: those
    of other plans, to share, whose block it then does not hold; `loops`: among the regions, and the
    graph with their states `kept`.
    """
    shared, weights = weights is not None, weights or Weights()
    branches = branches or [None] * len(made)
    order = [r for r, _ in made]
    conditions = guards(kept or graph, order) if parts == 1 else [[] for _ in made]
    conditions = [[] if b else c for b, c in zip(branches, conditions, strict=True)]
    memory = Memory(graph, order, branches, conditions, loops)
    steps = [_step(i, region, how, weights, memory) for i, (region, how) in enumerate(made)]
    steps = [
        replace(s, branch=b, guards=tuple((memory.read(n), wanted) for n, wanted in c))
        for s, b, c in zip(steps, branches, conditions, strict=True)
    ]
    placed = memory.placed()
    final = [
        replace(
            s,
            operands=tuple(placed.get(o, o) for o in s.operands),
            output=placed.get(s.output, s.output),
            scratch=None if s.scratch is None else placed[s.scratch],
            guards=tuple((placed.get(p, p), wanted) for p, wanted in s.guards),
        )
        for s in steps
    ]
    final, repeats = _repeated(final, loops, placed, memory)
    bounds = {at for r in repeats for at in (r.first, r.last)}
    works = [replace(_work(i, s), begins=i in bounds) for i, s in enumerate(final)]
    turns = slots(works, min(device.threads, MOST_UNITS))
    final = [replace(s, slot=t) for s, t in zip(final, turns, strict=True)]
    blocks = tuple((p.offset, p.bytes) for p in weights.known.values())
    checks = {what: placed[memory.read(base(n))] for what, n in graph.checks.items()}
    extents = {name: placed[memory.read(base(n))] for name, n in graph.extents.items()}
    separate = not any(s.kernel.mixes_rows for s in final) and (parts > 1 or apart(graph))
    separate = separate and not loops
    return Plan(
        graph,
        device,
        tuple(final),
        np.zeros(0, np.uint8) if shared else weights.blob(),
        memory.bytes,
        blocks,
        (),
        parts,
        separate,
        checks,
        extents,
        repeats=repeats,
    )


def _repeated(
    steps: Sequence[Step], loops: Sequence[Loop], placed: Mapping[Place, Place], memory: Memory
) -> tuple[list[Step], tuple[Repeat, ...]]:
    """Steps without the copies of states that were written to their places at once, and which of
    the others repeat.
    """
    copies = {n for loop in loops for n in loop.copies}
    needed = [s.region.output not in copies or s.operands != (s.output,) for s in steps]
    starts = [0, *accumulate(needed)]
    left = [s for s, wanted in zip(steps, needed, strict=True) if wanted]
    going = [placed[memory.read(loop.states[0])] for loop in loops]
    moved = [loop.moved(starts) for loop in loops]
    pairs = zip(moved, going, strict=True)
    return left, tuple(Repeat(m.first, m.last, place, m.times) for m, place in pairs)


def _step(index: int, region: Region, how: Decision, weights: Weights, memory: Memory) -> Step:
    kernel, operands = how.kernel, []
    assert isinstance(kernel, Kernel)
    for i, node in enumerate(region.inputs):
        source = base(node)
        if source.is_constant:
            operands.append(weights.place(source, node, kernel, i))
        else:
            operands.append(memory.read(source))
    sources = [base(n) for n in region.inputs]
    candidates = [sources[i] for i in kernel.in_place if sources.count(sources[i]) == 1]
    output = memory.write(region.output, index, candidates)
    scratch = memory.scratch(kernel.scratch_bytes, index) if kernel.scratch_bytes else None
    return Step(name_of(region), region, kernel, tuple(operands), output, scratch, how)


def _work(index: int, step: Step) -> Work:
    cost = 1000 + step.kernel.macs + step.bytes
    reads = (*step.operands, *(p for p, _ in step.guards))
    work = Work(reads, step.writes, step.kernel.tasks > 1, cost)
    if step.branch is None:
        return work
    begins = step.branch.first == index
    group = step.branch.last - step.branch.first + 1 if begins else 0
    return replace(work, thread=step.branch.thread, group=group)
