"""Plan -> the number that its code and its manifest must agree on (artifact.signature)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from qcompiler.artifact.artifact import Binary, signature
from qcompiler.plan.plan import Plan


def signature_of(plan: Plan) -> int:
    """What the code of a plan expects of its manifest."""
    sides, opened = plan.sides, plan.opened
    inputs, outputs = ([(v.name, v.dtype, v.shape) for v in side] for side in sides)
    open_: list[Sequence[object]] = []
    if opened:
        batches = [astuple(b) for b in opened.batches]
        # older artifacts have no step, and older runtimes are to refuse any but 1
        symbols = [astuple(s)[: 4 + (s.step > 1)] for s in opened.symbols]
        open_ = [*symbols, *batches, *map(astuple, opened.pinned)]
        open_ += [*(v.open for side in sides for v in side), *([opened.sizes] * bool(opened.sizes))]
    sizes: tuple[int, ...] = (plan.weights.nbytes, plan.workspace_bytes)
    sizes += (len(plan.steps), plan.useful_threads)
    sizes += tuple(n for p in plan.checks.values() for n in (p.offset, p.bytes))
    sizes += tuple(p.offset for p in plan.extents.values())
    isa, weights = plan.device.isa, Binary(b"", plan.weights, plan.blocks)
    machine = (isa.name, isa.triple, isa.cpu_flags)
    return signature(inputs, outputs, sizes, machine, weights.digest, open_)
