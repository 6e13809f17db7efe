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
from itertools import accumulate

from qcompiler.artifact.manifest import Batch, Pinned
from qcompiler.errors import Error, Skip
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Graph, Node
from qcompiler.ir.refusals import Reasons
from qcompiler.kernels.registry import Decision, Records, Region
from qcompiler.onnx_io.dims import positive
from qcompiler.plan.alike import Alike
from qcompiler.plan.barriers import Slot
from qcompiler.plan.branches import Branch, side_by_side
from qcompiler.plan.choose import Chooser
from qcompiler.plan.counted import Refused, ending, ending_share
from qcompiler.plan.frames import Frames
from qcompiler.plan.images import laid
from qcompiler.plan.opened import as_named
from qcompiler.plan.plan import Opened, Plan, Progress, Step, laid_out, plan
from qcompiler.plan.regions import with_copies
from qcompiler.plan.repeats import Flat, Loop, Repeat, flattened, has_loops, turns
from qcompiler.plan.sharing import at_most, least, saving
from qcompiler.plan.weights import Weights

log = logging.getLogger(__name__)

WORTH = 0.9
"""Many samples at once must take at most this fraction of the predicted time of each alone."""

MOSTLY, FEW = 0.8, 8
"""Where kernels that take this share of the time end where what counts does, there are no others
for smaller sizes, but for the smallest of at most so many positions.
"""

TRIES = 8
"""So often images are laid, without those that there was no kernel for the time before."""

Sized = tuple[int, Graph]
"""A number of samples, and a graph over so many."""
Made = list[tuple[Region, Decision]]


@dataclass(frozen=True)
class Chosen:
    """A graph of so many samples: its kernels in order, and the loops among them."""

    size: int
    flat: Flat
    made: Made
    loops: tuple[Loop, ...]

    @property
    def seconds(self) -> float:
        """The predicted time."""
        each = zip(self.made, self.turns, strict=True)
        return sum(how.predicted * times for (_, how), times in each)

    @property
    def turns(self) -> list[int]:
        """How often each kernel runs, as far as it is known or likely."""
        return turns(self.loops, len(self.made))


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
        chosen = Chooser(device, records, graphs[0][1])
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
    alone = found[-1]
    assert alone.size == 1, "a batch may have one sample"
    most = WORTH * alone.seconds
    kept = [f for f in found[:-1] if f.seconds <= most * f.size] + [alone]
    made, spans = _in_a_row(kept, chosen)
    pairs = zip(spans, kept, strict=True)
    batches = tuple(Batch(f.size, *span, round(f.seconds * 1e9)) for span, f in pairs)
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
    kernels, times = kept[0][1].made, kept[0][1].turns
    ends_images = any(len(r.extents) == 2 for r, _ in kernels)
    ends = (len(opened.inner) == 1 or ends_images) and ending_share(kernels, times) >= MOSTLY
    for one in _few(smaller, opened) if ends else [s for s in smaller if max(s.sizes) > 1]:
        last = kept[-1][1]
        graph = one.graph
        if graph is None:
            continue
        found = _ended(graph, opened, chosen, progress, images=ends_images)
        if found.seconds < WORTH * last.seconds:
            kept.append((one.sizes, found))
    chosen.demand_all(reasons)
    alike = Alike(chosen)
    made, spans = _in_a_row([replace(f, made=alike(f.made)) for _, f in kept], chosen)
    named = [kept[0][0], *(as_named(opened, sizes) for sizes, _ in kept[1:])]
    pinned = tuple(Pinned(n, *span) for n, span in zip(named, spans, strict=True))
    nanoseconds = round(kept[0][1].seconds * 1e9)
    batches = (Batch(1, *spans[0], nanoseconds),) if opened.batched else ()
    return replace(made, apart=False, opened=replace(opened, batches=batches, pinned=pinned))


def _few(smaller: Sequence[Smaller], opened: Opened) -> list[Smaller]:
    """The sizes asked for, and the smallest that there is a graph of."""
    best = tuple(positive(s).best for s in opened.inner)
    least = [s for s in reversed(smaller) if max(s.sizes) <= FEW]
    first = next((s for s in least if s.graph is not None), None)
    return [s for s in smaller if s is first or s.sizes == best]


def _in_a_row(graphs: Sequence[Chosen], chosen: Chooser) -> tuple[Plan, list[tuple[int, int]]]:
    """Graphs with their kernels -> a plan of the steps of each, in one workspace, with weights in
    common; and which steps those are.
    """
    weights = Weights()
    plans = [_laid_out(one, chosen, weights) for one in graphs]
    steps: list[Step] = []
    repeats: list[Repeat] = []
    spans: list[tuple[int, int]] = []
    for one in plans:
        first = len(steps)
        steps += [_later(s, first) for s in _after_all(one.steps)]
        repeats += [replace(r, first=r.first + first, last=r.last + first) for r in one.repeats]
        spans.append((first, len(steps)))
    made_of_all = replace(
        plans[0],
        steps=tuple(steps),
        repeats=tuple(repeats),
        weights=weights.blob(),
        workspace_bytes=max(p.workspace_bytes for p in plans),
        blocks=tuple((p.offset, p.bytes) for p in weights.known.values()),
        skips=tuple(chosen.skips),
    )
    return made_of_all, spans


def _laid_out(one: Chosen, chosen: Chooser, weights: Weights) -> Plan:
    flat, ordered = one.flat, list(one.made)
    branches: list[Branch | None] = []
    if not one.loops:
        ordered, branches = side_by_side(ordered, chosen)
    return laid_out(
        flat.graph,
        chosen.device,
        ordered,
        branches=branches,
        weights=weights,
        loops=one.loops,
        kept=flat.kept,
    )


def _chosen(size: int, graph: Graph, chosen: Chooser, progress: Progress | None) -> Chosen:
    flat = flattened(graph)
    found: list[Made] = []
    for i, region in enumerate(flat.regions):
        if progress is not None:
            progress(i, len(flat.regions), region.output.name)
        found.append(chosen.kernels(region))
    return _in_order(size, flat, found)


def _ended(
    graph: Graph,
    opened: Opened,
    chosen: Chooser,
    progress: Progress | None,
    *,
    images: bool = True,
) -> Chosen:
    """With `images`, kernels that end with a run's images, where these take most of the time."""
    if images and not has_loops(graph):
        one = _ended_with_images(graph, opened, chosen, progress)
        if one is not None and ending_share(one.made, one.turns) >= MOSTLY:
            return one
    flat = flattened(with_copies(graph))
    return _in_order(1, flat, ending(flat, opened, chosen, progress))


def _ended_with_images(
    graph: Graph, opened: Opened, chosen: Chooser, progress: Progress | None
) -> Chosen | None:
    """As many images as there are kernels for lie in memory as a run's own; None if none does."""
    frames, refused = Frames(graph, opened), frozenset[Node]()
    for _ in range(TRIES):
        found = laid(graph, frames, refused)
        if found is None:
            return None
        flat = flattened(with_copies(found.graph))
        try:
            return _in_order(1, flat, ending(flat, opened, chosen, progress, found.extents))
        except Refused as e:
            refused |= {found.origin[n] for n in e.nodes}
    return None


def _in_order(size: int, flat: Flat, found: Sequence[Made]) -> Chosen:
    """The kernels of each region of a graph -> all in a row."""
    starts = [0, *accumulate(map(len, found))]
    loops = tuple(loop.moved(starts) for loop in flat.loops)
    return Chosen(size, flat, [one for made in found for one in made], loops)


def _after_all(steps: Sequence[Step]) -> list[Step]:
    """Steps whose first one begins a section, so that no section is of two batches."""
    return [replace(s, slot=Slot(True, s.slot.owner)) for s in steps[:1]] + [*steps[1:]]


def _later(step: Step, by: int) -> Step:
    """A step whose number rises."""
    branch = step.branch
    if branch is None:
        return step
    return replace(step, branch=replace(branch, first=branch.first + by, last=branch.last + by))
