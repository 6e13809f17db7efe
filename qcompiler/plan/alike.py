"""Kernels for smaller sizes -> kernels that read their weights packed as those for larger ones do,
where these are nearly as fast: then weights are kept once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Decision, Kernel, Offer, Region, asked, offered
from qcompiler.plan.choose import Chooser
from qcompiler.plan.regions import base

NEAR = 1.1
"""A kernel may take so many times the predicted time of the fastest to share its weights."""

MOST = 24
"""Most kernels that are tried for one."""

Made = Sequence[tuple[Region, Decision]]


class Alike:
    """The packed weights of plans, one plan after the other."""

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self.known: set[bytes] = set()
        self.found: dict[int, Decision] = {}

    def __call__(self, made: Made) -> list[tuple[Region, Decision]]:
        """Regions and their kernels -> the same, some kernels others."""
        kept = [(region, self._alike(region, how)) for region, how in made]
        for region, how in kept:
            self.known.update(_packed(region, how.kernel))
        return kept

    def _alike(self, region: Region, how: Decision) -> Decision:
        if id(how) not in self.found:
            self.found[id(how)] = self._found(region, how)
        return self.found[id(how)]

    def _found(self, region: Region, how: Decision) -> Decision:
        """The fastest kernel, or one nearly as fast whose weights are packed as others are."""
        wanted = set(_packed(region, how.kernel))
        if how.recorded or how.chosen is None or not self.known or wanted <= self.known:
            return how
        most = how.chosen.candidate.seconds * NEAR
        for offer in self._offers(region, most):
            kernel = offer.candidate.build()
            if not isinstance(kernel, Kernel):
                continue
            ends = isinstance(how.kernel, Kernel) and how.kernel.counted
            if kernel.counted == ends and self.known.issuperset(_packed(region, kernel)):
                return self.chooser.named(replace(how, kernel=kernel, chosen=offer))
        return how

    def _offers(self, region: Region, seconds: float) -> list[Offer]:
        """Candidates that take no longer, by generator and by how they divide the work."""
        device = self.chooser.device
        one = sealed(region, device)
        every = (Offer(g.name, c) for g in asked(one, device) for c in offered(g, one, device))
        near = [o for o in every if o.candidate.seconds <= seconds]
        if self.chooser.keeps_rows(region):
            near = [o for o in near if not o.candidate.mixes_rows]
        return sorted(near, key=lambda o: o.candidate.seconds)[:MOST]


def _packed(region: Region, kernel: object) -> Iterator[bytes]:
    """The keys of a region's packed weights."""
    if not isinstance(kernel, Kernel):
        return
    for place, pack in kernel.pack.items():
        node = region.inputs[place]
        array = pack(base(node).array.reshape(node.type.dims))
        yield hashlib.sha1(array.tobytes(), usedforsecurity=False).digest()
