"""Plan -> the number that its code and its manifest must agree on (artifact.signature)."""

from __future__ import annotations

from qcompiler.artifact.artifact import Binary, signature
from qcompiler.plan.plan import Plan


def signature_of(plan: Plan) -> int:
    """What the code of a plan expects of its manifest."""
    graph = plan.graph
    inputs = [(n.name, n.dtype, n.type.dims) for n in graph.inputs]
    outputs = [(name, n.dtype, n.type.dims) for name, n in graph.results.items()]
    sizes: tuple[int, ...] = (plan.weights.nbytes, plan.workspace_bytes)
    sizes += (len(plan.steps), plan.useful_threads)
    sizes += tuple(n for p in plan.checks.values() for n in (p.offset, p.bytes))
    isa, weights = plan.device.isa, Binary(b"", plan.weights, plan.blocks)
    machine = (isa.name, isa.triple, isa.cpu_flags)
    return signature(inputs, outputs, sizes, machine, weights.digest)
