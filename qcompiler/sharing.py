"""Graph, device -> a plan for as many threads as are worth it: for one where more save little.

Threads that share a step cost the calls between them, and the first step of a run may begin before
a worker is awake. A network of few microseconds gains nothing by them, and takes the cores from
whatever runs beside it.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir import Graph, numpy_dtype
from qcompiler.isa import Device
from qcompiler.plan import Plan, Progress, Step, plan
from qcompiler.refusals import Reasons

WAKE_NS = 5_000
"""A worker that sleeps is woken: two system calls, measured on a virtual machine."""

SECTION_NS = 500
"""A step that is shared: a few cache lines move between cores, and units are not quite equal."""

LEAST_NS = 100_000
"""What threads must save of a run to be worth the cores that they take. Steps of a few microseconds
that are divided take up to a tenth longer in all, which counts where no other core is free.
"""

_CALL_NS = 150.0


def planned(
    graph: Graph, device: Device, progress: Progress | None, reasons: Reasons, *, asked: bool
) -> Plan:
    """A plan; unless a number of threads was asked for, for one where more are not worth it.
    `reasons` as of `plan`.
    """
    made = plan(graph, device, progress, reasons)
    if asked or device.threads == 1 or saving(made) >= LEAST_NS:
        return made
    return plan(graph, replace(device, threads=1), progress, reasons)


def saving(made: Plan) -> float:
    """Nanoseconds of a run that its threads are predicted to save, of one."""
    threads = made.device.threads
    saved = -float(WAKE_NS)
    for step in made.steps:
        units = min(step.kernel.tasks, threads)
        if units > 1:
            saved += made.parts * (nanoseconds(step, made.device) * (1 - 1 / units) - SECTION_NS)
    return saved


def nanoseconds(step: Step, device: Device) -> float:
    """About what a step takes on one core: its products of vectors a cycle, and bytes at the pace
    of the outer caches.
    """
    core = device.core
    root = step.region.root
    itemsize = (
        numpy_dtype(root.operands[0].dtype).itemsize if step.kernel.macs and root is not None else 4
    )
    rate = core.hz / 1e9 * core.macs_per_cycle * device.isa.lanes(itemsize)
    moved = sum(p.bytes for p in (*step.operands, step.output))
    return step.kernel.macs / rate + core.moved_ns(moved) + core.mixed_ns(_CALL_NS)
