"""Graphs of one model, each over a fixed number of samples -> one plan for any number of samples.

The plan holds the steps of a graph of many samples, then those of a graph of one, with weights and
kernels in common and one workspace. A run is as many rounds of the former as fit, then of the
latter (`runtime/open_batch.py`); every round reads and writes the next samples of the caller's
arrays. So every kernel of every precision serves an open batch, its sizes are numbers, and memory
does not grow with the batch. Many samples at once are kept only where that is predicted to be
faster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from qcompiler.artifact.manifest import Batch, Pinned
from qcompiler.errors import Error, Skip
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Graph
from qcompiler.ir.refusals import Reasons
from qcompiler.kernels.registry import Decision, Records, Region
from qcompiler.onnx_io.dims import positive
from qcompiler.plan.alike import Alike
from qcompiler.plan.barriers import Slot
from qcompiler.plan.branches import side_by_side
from qcompiler.plan.choose import Chooser, padded
from qcompiler.plan.counted import ending, ending_share
from qcompiler.plan.opened import as_named
from qcompiler.plan.plan import Opened, Plan, Progress, Step, laid_out, plan
from qcompiler.plan.regions import regions, with_copies
from qcompiler.plan.sharing import at_most, least, saving
from qcompiler.plan.weights import Weights

log = logging.getLogger(__name__)

WORTH = 0.9
"""Many samples at once must take at most this fraction of the predicted time of each alone."""

MOSTLY, FEW = 0.8, 8
"""Where kernels that take this share of the time end where what counts does, there are no others
for smaller sizes, but for the smallest of at most so many positions.
"""

Sized = tuple[int, Graph]
"""A number of samples, and a graph over so many."""
Made = list[tuple[Region, Decision]]
Chosen = tuple[int, Graph, Made, float]
"""The same, with its kernels and their predicted seconds."""


@dataclass(frozen=True)
class Smaller:
    """Sizes as types have them, and what makes the graph of these when it is needed, or says why
    there is none.
    """

    sizes: tuple[int, ...]
    make: Callable[[], Graph | Skip]

    @cached_property
    def graph(self) -> Graph | None:
        """The graph, if there is one."""
        made = self.make()
        if not isinstance(made, Skip):
            return made
        named = "x".join(map(str, self.sizes))
        log.info("there are no steps for sizes to %s: %s", named, made.reason)
        return None


def planned(
    graphs: Sequence[Sized],
    opened: Opened,
    device: Device,
    progress: Progress | None,
    reasons: Reasons,
    *,
    asked: bool,
    records: Records | None = None,
    smaller: Sequence[Smaller] = (),
) -> Plan:
    """Graphs of fewer and fewer samples, down to one, -> the plan; or that of the largest sizes,
    and `smaller` and smaller ones. Other arguments as of `plan.sharing.planned`.
    """
    device = demand_cpu(device, opened)
    one = replace(device, threads=1)
    if not asked and at_most(graphs[0][1], device) < least(device):
        device = one

    def made_for(device: Cpu) -> Plan:
        chosen = Chooser(device, records, padded=padded(graphs[0][1]))
        if opened.inner:
            return _pinned(graphs[0][1], smaller, opened, chosen, progress, reasons)
        return _rounds(graphs, opened, chosen, progress, reasons)

    made = made_for(device)
    steps = made.steps[: made.opened.pinned[0].last] if made.opened and opened.inner else made.steps
    if asked or device.threads == 1 or saving(replace(made, steps=steps)) >= least(device):
        return made
    return made_for(one)


def fixed(
    graph: Graph,
    device: Device,
    progress: Progress | None,
    reasons: Reasons,
    records: Records | None = None,
) -> Plan:
    """A graph of one of these numbers of samples by itself: the steps that the plan has for it."""
    return plan(graph, device, progress, reasons, records, parts=1)


def demand_cpu(device: Device, opened: Opened) -> Cpu:
    """Raise Error for a device that takes fixed sizes only."""
    if isinstance(device, Cpu):
        return device
    hint = f"pin it: --dim {opened.symbol.name}=N"
    raise Error(f"{opened.symbol.name} is open, {device.name} takes fixed sizes", hint=hint)


def _rounds(
    graphs: Sequence[Sized],
    opened: Opened,
    chosen: Chooser,
    progress: Progress | None,
    reasons: Reasons,
) -> Plan:
    """Graphs of fewer and fewer samples -> the plan of those that are worth it, and of one."""
    found = [_chosen(size, with_copies(graph), chosen, progress) for size, graph in graphs]
    chosen.demand_all(reasons)
    size, _, _, alone = found[-1]
    assert size == 1, "a batch may have one sample"
    kept = [f for f in found[:-1] if f[3] <= WORTH * f[0] * alone] + found[-1:]
    made, spans = _in_a_row([f[1:3] for f in kept], chosen)
    pairs = zip(spans, kept, strict=True)
    batches = tuple(Batch(f[0], *span, round(f[3] * 1e9)) for span, f in pairs)
    apart = not any(s.kernel.mixes_rows for s in made.steps)
    return replace(made, apart=apart, opened=replace(opened, batches=batches))


def _pinned(
    largest: Graph,
    smaller: Sequence[Smaller],
    opened: Opened,
    chosen: Chooser,
    progress: Progress | None,
    reasons: Reasons,
) -> Plan:
    """Graphs of smaller and smaller sizes -> the plan of those that are worth it."""
    first = tuple(s.high for s in opened.inner)
    kept = [(first, _ended(largest, opened, chosen, progress))]
    chosen.demand_all(reasons)
    ends = len(opened.inner) == 1 and ending_share(kept[0][1][2]) >= MOSTLY
    for one in _few(smaller, opened) if ends else [s for s in smaller if max(s.sizes) > 1]:
        last = kept[-1][1]
        graph = one.graph
        if graph is None:
            continue
        found = _ended(graph, opened, chosen, progress)
        if found[3] <= WORTH * last[3]:
            kept.append((one.sizes, found))
    chosen.demand_all(reasons)
    alike = Alike(chosen)
    made, spans = _in_a_row([(f[1], alike(f[2])) for _, f in kept], chosen)
    named = [kept[0][0], *(as_named(opened, sizes) for sizes, _ in kept[1:])]
    pinned = tuple(Pinned(n, *span) for n, span in zip(named, spans, strict=True))
    seconds = kept[0][1][3]
    batches = (Batch(1, *spans[0], round(seconds * 1e9)),) if opened.batched else ()
    return replace(made, apart=False, opened=replace(opened, batches=batches, pinned=pinned))


def _few(smaller: Sequence[Smaller], opened: Opened) -> list[Smaller]:
    """The sizes asked for, and the smallest that there is a graph of."""
    best = tuple(positive(s).best for s in opened.inner)
    least = [s for s in reversed(smaller) if max(s.sizes) <= FEW]
    first = next((s for s in least if s.graph is not None), None)
    return [s for s in smaller if s is first or s.sizes == best]


def _in_a_row(
    graphs: Sequence[tuple[Graph, Made]], chosen: Chooser
) -> tuple[Plan, list[tuple[int, int]]]:
    """Graphs with their kernels -> a plan of the steps of each, in one workspace, with weights in
    common; and which steps those are.
    """
    weights = Weights()
    plans = []
    for graph, made in graphs:
        ordered, branches = side_by_side(made, chosen)
        plans.append(laid_out(graph, chosen.device, ordered, branches=branches, weights=weights))
    steps: list[Step] = []
    spans: list[tuple[int, int]] = []
    for one in plans:
        first = len(steps)
        steps += [_later(s, first) for s in _after_all(one.steps)]
        spans.append((first, len(steps)))
    made_of_all = replace(
        plans[0],
        steps=tuple(steps),
        weights=weights.blob(),
        workspace_bytes=max(p.workspace_bytes for p in plans),
        blocks=tuple((p.offset, p.bytes) for p in weights.known.values()),
        skips=tuple(chosen.skips),
    )
    return made_of_all, spans


def _chosen(size: int, graph: Graph, chosen: Chooser, progress: Progress | None) -> Chosen:
    made: Made = []
    todo = regions(graph)
    for i, region in enumerate(todo):
        if progress is not None:
            progress(i, len(todo), region.output.name)
        made.extend(chosen.kernels(region))
    return size, graph, made, sum(how.predicted for _, how in made)


def _ended(graph: Graph, opened: Opened, chosen: Chooser, progress: Progress | None) -> Chosen:
    graph = with_copies(graph)
    made = ending(graph, opened, chosen, progress)
    return 1, graph, made, sum(how.predicted for _, how in made)


def _after_all(steps: Sequence[Step]) -> list[Step]:
    """Steps whose first one begins a section, so that no section is of two batches."""
    first, *others = steps
    return [replace(first, slot=Slot(True, first.slot.owner)), *others]


def _later(step: Step, by: int) -> Step:
    """A step whose number rises."""
    branch = step.branch
    if branch is None:
        return step
    return replace(step, branch=replace(branch, first=branch.first + by, last=branch.last + by))
