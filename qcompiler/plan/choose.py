"""Regions -> kernels, chosen once for each key."""

from __future__ import annotations

import logging
from dataclasses import replace

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import SELECTED, SIZE, Graph, Node
from qcompiler.ir.refusals import Reasons, missing
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Decision, Kernel, Records, Region, choose
from qcompiler.plan.regions import split

log = logging.getLogger(__name__)

APART = "apart"
"""Stands for a generator in records of regions whose anchor and elementwise nodes are faster as
kernels of their own."""


class Chooser:
    """The regions of a graph -> kernels; regions of equal keys share one."""

    def __init__(self, device: Device, records: Records | None, graph: Graph) -> None:
        self.device, self.records = device, records
        self.padded = any(n.name.startswith(SIZE) for n in graph.inputs)
        self.selected = SELECTED in graph.notes
        self.known: dict[str, Decision] = {}
        self.single: dict[str, Decision] = {}
        self.names: dict[str, int] = {}
        self.skips: list[tuple[str, str, str]] = []
        self.missing: list[Node] = []  # nodes without a kernel

    def kernels(self, region: Region) -> list[tuple[Region, Decision]]:
        """A kernel for the region, or for each of its parts if no generator makes the whole."""
        handed = sealed(region, self.device)
        parts = split(region)
        if parts and self.apart(handed):
            return [found for part in parts for found in self.kernels(part)]
        if handed.key not in self.known:
            self.known[handed.key] = self.decide(handed, name_of(region))
        how = self.known[handed.key]
        if isinstance(how.kernel, Kernel):
            return [(region, how)]
        if not parts:
            self.missing.append(_maker(region))
        return [found for part in parts for found in self.kernels(part)]

    def apart(self, region: Region) -> bool:
        """Is a sealed region recorded to be faster in parts?"""
        best = None if self.records is None else self.records.best(region.key, self.device)
        return best is not None and best.generator == APART

    def ending(self, region: Region) -> Decision | None:
        """The kernel of a region with extents, if there is one that ends where they say."""
        handed = sealed(region, self.device)
        if handed.key not in self.known:
            apart = self.keeps_rows(handed)
            how = choose(handed, self.device, self.records, apart=apart, counted=True)
            self.known[handed.key] = self.named(how)
        how = self.known[handed.key]
        return how if isinstance(how.kernel, Kernel) else None

    def keeps_rows(self, region: Region) -> bool:
        """May rows not show in others? Those that do not count in a run may hold anything; a kernel
        that is told which of an open size count mixes no others, but it is not told what data
        select.
        """
        return self.selected or (self.padded and not region.extents)

    def decide(self, region: Region, name: str) -> Decision:
        """A sealed region, and its name in reported skips -> its kernel."""
        how = choose(region, self.device, self.records, apart=self.keeps_rows(region))
        self.skips.extend((name, generator, reason) for generator, reason in how.skips)
        if isinstance(how.kernel, Skip):
            log.info("%s: %s", name, how.kernel.reason)
        return self.named(how)

    def alone(self, region: Region) -> Decision:
        """The kernel of a region for one thread, by the model alone: records are of all threads."""
        one = replace(self.device, threads=1)
        handed = sealed(region, one)
        if handed.key not in self.single:
            ends = bool(region.extents)  # what does not count may be no number
            how = choose(handed, one, apart=self.keeps_rows(handed), counted=ends)
            self.single[handed.key] = self.named(how)
        return self.single[handed.key]

    def named(self, how: Decision) -> Decision:
        """A decision whose kernel has a name that no other has."""
        if isinstance(how.kernel, Skip):
            return how
        count = self.names.get(how.kernel.name, 0)
        self.names[how.kernel.name] = count + 1
        if not count:
            return how
        return replace(how, kernel=replace(how.kernel, name=f"{how.kernel.name}_{count}"))

    def demand_all(self, reasons: Reasons) -> None:
        """Raise an Error that names every node without a kernel, if there are any."""
        if self.missing:
            last = {step: reason for step, _, reason in self.skips}  # of the most general generator
            raise missing(list(dict.fromkeys(self.missing)), {**last, **reasons})


def _maker(region: Region) -> Node:
    """The node of the model that a region stands for; for an `item` the node that it belongs to."""
    root = region.root or region.output
    return root.operands[0] if root.op == "item" else root


def name_of(region: Region) -> str:
    """The anchor's name (the model's own node name); without an anchor the last named node's."""
    if region.root is not None and region.root.name:
        return region.root.name
    return next((n.name for n in reversed(region.nodes) if n.name), region.output.op)
