"""A plan -> the inputs that an output may overwrite, as caches of decoders do: one memory serves
both, and a kernel that works in place then writes only what is new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qcompiler.hardware.isa import Cpu
from qcompiler.plan.plan import Plan, Step


def in_place(plan: Plan) -> list[tuple[str, str]]:
    """(input, output) of one type, of which one step alone reads the input and writes the output,
    and may do so in place. None where a run may fail at its end, as the input is to be kept then.
    """
    opened = plan.opened
    if not isinstance(plan.device, Cpu) or plan.parts > 1 or plan.checks:
        return []
    runs = (opened.pinned or opened.batches) if opened else ()
    spans = [(r.first, r.last) for r in runs] or [(0, len(plan.steps))]
    found = [set(_pairs(plan.steps[first:last])) for first, last in spans]
    names = [n.name for n in plan.graph.inputs], list(plan.graph.results)
    return [(names[0][i], names[1][o]) for i, o in sorted(set.intersection(*found))]


def _pairs(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    read: Counter[int] = Counter()
    written: Counter[int] = Counter()
    for step in steps:
        places = (*step.operands, *(p for p, _ in step.guards))
        read.update(p.offset for p in places if p.space == "input")
        written.update(p.offset for p in step.writes if p.space == "output")
    for step in steps:
        output = step.output
        if output.space == "output" and written[output.offset] == 1:
            for place in (step.operands[i] for i in step.kernel.in_place):
                alone = place.space == "input" and read[place.offset] == 1
                if alone and place.type == output.type:
                    yield place.offset, output.offset
