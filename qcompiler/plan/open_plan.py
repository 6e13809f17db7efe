"""Graphs of one model, each over a fixed number of samples -> one plan for any number of samples.

The plan holds the steps of a graph of many samples, then those of a graph of one, with weights and
kernels in common and one workspace. A run is as many rounds of the former as fit, then of the
latter (`runtime/open_batch.py`); every round reads and writes the next samples of the caller's
arrays. So every kernel of every precision serves an open batch, its sizes are numbers, and memory
does not grow with the batch. Many samples at once are kept only where that is predicted to be
faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qcompiler.artifact.manifest import Batch
from qcompiler.errors import Error
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Graph
from qcompiler.ir.refusals import Reasons
from qcompiler.kernels.registry import Decision, Records, Region
from qcompiler.plan.barriers import Slot
from qcompiler.plan.branches import side_by_side
from qcompiler.plan.choose import Chooser
from qcompiler.plan.plan import Opened, Plan, Progress, Step, laid_out, plan
from qcompiler.plan.regions import regions, with_copies
from qcompiler.plan.sharing import at_most, least, saving
from qcompiler.plan.weights import Weights

WORTH = 0.9
"""Many samples at once must take at most this fraction of the predicted time of each alone."""

Sized = tuple[int, Graph]
"""A number of samples, and a graph over so many."""
Chosen = tuple[int, Graph, list[tuple[Region, Decision]], float]
"""The same, with its kernels and their predicted seconds."""


def planned(
    graphs: Sequence[Sized],
    opened: Opened,
    device: Device,
    progress: Progress | None,
    reasons: Reasons,
    *,
    asked: bool,
    records: Records | None = None,
) -> Plan:
    """Graphs of fewer and fewer samples, down to one -> the plan; other arguments as of
    `plan.sharing.planned`.
    """
    if not isinstance(device, Cpu):
        hint = f"pin it: --dim {opened.symbol.name}=N"
        raise Error(f"{opened.symbol.name} is open, {device.name} takes fixed sizes", hint=hint)
    one = replace(device, threads=1)
    if not asked and at_most(graphs[0][1], device) < least(device):
        device = one
    made = _plan(graphs, opened, device, progress, reasons, records)
    if asked or device.threads == 1 or saving(made) >= least(device):
        return made
    return _plan(graphs, opened, one, progress, reasons, records)


def fixed(
    graph: Graph,
    device: Device,
    progress: Progress | None,
    reasons: Reasons,
    records: Records | None = None,
) -> Plan:
    """A graph of one of these numbers of samples by itself: the steps that the plan has for it."""
    return plan(graph, device, progress, reasons, records, parts=1)


def _plan(
    graphs: Sequence[Sized],
    opened: Opened,
    device: Cpu,
    progress: Progress | None,
    reasons: Reasons,
    records: Records | None,
) -> Plan:
    chosen = Chooser(device, records)
    found = [_chosen(size, with_copies(graph), chosen, progress) for size, graph in graphs]
    chosen.demand_all(reasons)
    size, _, _, alone = found[-1]
    assert size == 1, "a batch may have one sample"
    kept = [f for f in found[:-1] if f[3] <= WORTH * f[0] * alone] + found[-1:]
    weights = Weights()
    plans = []
    for _, graph, made, _ in kept:
        ordered, branches = side_by_side(made, chosen)
        plans.append(laid_out(graph, device, ordered, branches=branches, weights=weights))
    steps: list[Step] = []
    batches: list[Batch] = []
    for one, (size, _, _, seconds) in zip(plans, kept, strict=True):
        first = len(steps)
        steps += [_later(s, first) for s in _after_all(one.steps)]
        batches.append(Batch(size, first, len(steps), round(seconds * 1e9)))
    return replace(
        plans[0],
        graph=with_copies(graphs[0][1]),
        steps=tuple(steps),
        weights=weights.blob(),
        workspace_bytes=max(p.workspace_bytes for p in plans),
        blocks=tuple((p.offset, p.bytes) for p in weights.known.values()),
        skips=tuple(chosen.skips),
        apart=not any(s.kernel.mixes_rows for s in steps),
        opened=replace(opened, batches=tuple(batches)),
    )


def _chosen(size: int, graph: Graph, chosen: Chooser, progress: Progress | None) -> Chosen:
    made: list[tuple[Region, Decision]] = []
    todo = regions(graph)
    for i, region in enumerate(todo):
        if progress is not None:
            progress(i, len(todo), region.output.name)
        made.extend(chosen.kernels(region))
    return size, graph, made, sum(how.predicted for _, how in made)


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
