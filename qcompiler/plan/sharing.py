"""Graph, device -> a plan for all threads of the device, or for one if more save little.

Threads that share a step must synchronize, and the first step of a run may begin before a worker is
awake. A network of a few microseconds gains nothing from threads, and takes cores from other
programs.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import inf, prod

from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Graph, Node, numpy_dtype
from qcompiler.ir.refusals import Reasons
from qcompiler.ir.text import write
from qcompiler.kernels.registry import Record, Records
from qcompiler.ops.work import PACE, work
from qcompiler.plan.batches import parts_of
from qcompiler.plan.plan import Plan, Progress, Step, plan
from qcompiler.plan.regions import regions
from qcompiler.plan.repeats import has_loops, turns

WHOLE, VERSION = "plan", 1
"""Stands for a generator in records of whole plans."""
_LEAST = 20.0
"""What threads must save of a run to be worth their cores, in times of waking one. Dividing steps
of a few microseconds makes them up to a tenth longer in all, which counts where no core is free.
"""
_CALL_NS = 150.0
_WINOGRAD = 4
"""Transformed weights of float convolutions take up to this many times the memory."""


def planned(
    graph: Graph,
    device: Device,
    progress: Progress | None,
    reasons: Reasons,
    *,
    asked: bool,
    records: Records | None = None,
) -> Plan:
    """A plan; unless a number of threads was asked for, for one where more are not worth it.
    `reasons` and `records` as of `plan`, and these may say how many threads, and parts of a batch.
    """
    if not isinstance(device, Cpu):
        return plan(graph, device, progress, reasons, records)
    one = replace(device, threads=1)
    if (best := recorded(graph, device, records)) is not None:
        some = replace(device, threads=min(best.threads or device.threads, device.threads))
        parts, branches = map(int, _knobs(best))
        return plan(graph, some, progress, reasons, records, parts, bool(branches))
    if not asked and at_most(graph, device) < least(device):
        return plan(graph, one, progress, reasons, records)
    made = plan(graph, device, progress, reasons, records)
    if asked or device.threads == 1 or saving(made) >= least(device):
        return made
    return plan(graph, one, progress, reasons, records)


def recorded(graph: Graph, device: Device, records: Records | None) -> Record | None:
    """What was measured to be best for a plan as a whole: its threads, the parts of its batch (knob
    "parts"), and whether branches run side by side (knob "branches": 0, they do not). None where
    the graph's batch has no such parts.
    """
    best = None if records is None else records.best(key_of(graph), device)
    if best is None or (best.generator, best.version) != (WHOLE, VERSION) or not best.knobs:
        return None  # without knobs: as without records
    parts, branches = _knobs(best)
    known = parts in (0, *parts_of(graph)) and branches in (0, 1)
    return best if known else None


def _knobs(record: Record) -> tuple[int | str, int | str]:
    """The parts of the batch, and whether branches run side by side, as a record has them."""
    return record.knobs.get("parts", 0), record.knobs.get("branches", 1)


def key_of(graph: Graph) -> str:
    """Text that is equal for graphs of the same operators, types and links: what stands for a
    region's key in records of plans.
    """
    return f"plan {hashlib.sha256(write(graph)[0].encode()).hexdigest()}"


def least(device: Cpu) -> float:
    """Nanoseconds that threads must save in a run."""
    return _LEAST * device.core.wake_ns


def at_most(graph: Graph, device: Cpu) -> float:
    """An upper bound of a plan's `saving`, without making kernels: that takes most of the time of
    planning, and a small network need be planned only once.
    """
    share = 1 - 1 / device.threads
    if has_loops(graph):
        return inf
    found = 0.0
    for region in regions(graph):
        root = region.root
        macs = 0.0 if root is None else _products(root)
        moved = sum(n.type.bytes for n in (*region.inputs, region.output))
        if root is not None and root.op == "conv" and root.dtype.startswith("float"):
            moved += (_WINOGRAD - 1) * root.operands[1].type.bytes
        found += _predicted(macs, root, moved, device) * share  # without barriers: side by side
    return found


def _products(root: Node) -> float:
    """An upper bound of a node's products; infinite where unknown."""
    if root.op == "conv":
        return float(root.type.size * prod(root.operands[1].type.dims[:-1]))
    return work(root) * PACE


def saving(made: Plan) -> float:
    """Nanoseconds that the plan's threads are predicted to save, compared with one thread."""
    device = made.device
    assert isinstance(device, Cpu), "only steps of a CPU share threads"
    threads, core = device.threads, device.core
    saved = 0.0
    loads: dict[int, list[float]] = {}  # of the threads, by the first step of a group of branches
    for step, times in zip(made.steps, turns(made.repeats, len(made.steps)), strict=True):
        alone, units = nanoseconds(step, device), min(step.kernel.tasks, threads)
        if step.branch is not None:
            loads.setdefault(step.branch.first, [0.0] * threads)[step.branch.thread] += alone
        elif units > 1:
            saved += times * (alone * (1 - 1 / units) - core.barrier_ns)
    saved += sum(sum(some) - max(some) - core.barrier_ns for some in loads.values())
    return made.parts * saved - core.wake_ns


def nanoseconds(step: Step, device: Cpu) -> float:
    """Predicted nanoseconds of a step on one core, by its vector products and by the bytes that it
    moves through the outer caches.
    """
    return _predicted(step.kernel.macs, step.region.root, step.bytes, device)


def _predicted(macs: float, root: Node | None, moved: int, device: Cpu) -> float:
    core = device.core
    multiplies = macs and root is not None and root.operands
    itemsize = numpy_dtype(root.operands[0].types[0].dtype).itemsize if multiplies and root else 4
    rate = core.hz / 1e9 * core.macs_per_cycle * device.isa.lanes(itemsize)
    return macs / rate + core.moved_ns(moved) + core.mixed_ns(_CALL_NS)
