"""Regions -> the conditions under which their results matter: those of the Wheres that select among
them, as If and loops that end early become. Runs in which one does not hold skip the step.

What selects takes whole values: its condition is one boolean. Of an And of two, the second matters
only if the first is true. A skipped step leaves memory as it is, which nothing then reads but what
does not select it.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.ir import Graph, Node
from qcompiler.kernels.region import Region
from qcompiler.plan.regions import base

Guard = tuple[Node, bool]
"""A boolean in memory, and what it must be."""


def guards(graph: Graph, order: Sequence[Region]) -> list[list[Guard]]:
    """For each of some regions, in the order they run, what must hold for it to matter; only what
    is in memory before it runs.
    """
    made = {region.output: i for i, region in enumerate(order)}
    known = _conditions(graph)
    if not any(known.values()):
        return [[] for _ in order]
    found = []
    for i, region in enumerate(order):
        wanted = known.get(region.output, frozenset())
        early = [g for g in wanted if g[0].op == "input" or made.get(g[0], i) < i]
        found.append(sorted(early, key=lambda g: made.get(g[0], -1)))
    return found


def _conditions(graph: Graph) -> dict[Node, frozenset[Guard]]:
    """Value -> what holds whenever it is read: what holds for all that read it."""
    known: dict[Node, frozenset[Guard]] = {o: frozenset() for o in graph.outputs}
    for node in reversed(graph.nodes):
        own = known.get(node, frozenset())
        chooses = node.op in ("Where", "And") and node.operands[0].type.size == 1
        for at, operand in enumerate(node.inputs):
            if operand is None:
                continue
            here = own
            if chooses and at and not base(node.operands[0]).is_constant:
                here = own | {(base(node.operands[0]), at == 1)}
            known[operand] = here & known[operand] if operand in known else here
    return known
