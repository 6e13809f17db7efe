"""Regions -> kernels, chosen once for all regions of one key."""

from __future__ import annotations

import logging
from dataclasses import replace

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir.graph import Node
from qcompiler.ir.refusals import Reasons, missing
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Kernel, Region, choose
from qcompiler.plan.regions import split

log = logging.getLogger(__name__)


class Chooser:
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
            self.known[handed.key] = self.generate(handed, name_of(region))
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


def name_of(region: Region) -> str:
    """The anchor's name (the model's own node name); without an anchor the last named node's."""
    if region.root is not None and region.root.name:
        return region.root.name
    return next((n.name for n in reversed(region.nodes) if n.name), region.output.op)
