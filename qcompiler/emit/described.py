"""Plan -> the manifest that describes its code, and the number that both must agree on."""

from __future__ import annotations

from importlib.metadata import version

from qcompiler.artifact.artifact import Binary, Check, Manifest, StepFact, Variant
from qcompiler.plan.in_place import in_place
from qcompiler.plan.plan import Plan, Step
from qcompiler.plan.shares import shares
from qcompiler.version import __version__


def signature_of(plan: Plan) -> int:
    """What the code of a plan returns, so that it is run with its own manifest only."""
    manifest, weights = manifest_of(plan), Binary(b"", plan.weights, plan.blocks)
    return manifest.signature(manifest.variants[0], plan.weights.nbytes, weights.digest)


def manifest_of(made: Plan) -> Manifest:
    """A plan -> the manifest of an artifact of one variant."""
    graph, device, opened = made.graph, made.device, made.opened
    inputs, outputs = made.sides
    steps = tuple(
        StepFact(
            s.name,
            s.kernel.name,
            s.kernel.tasks,
            s.kernel.macs * made.parts,
            s.bytes * made.parts,
            _multiplied(s),
            share.ram,
            share.weights,
        )
        for s, share in zip(made.steps, shares(made), strict=True)
    )
    variant = Variant(
        isa=device.isa.name,
        triple=device.isa.triple,
        cpu_flags=tuple(sorted(device.isa.cpu_flags)),
        threads=made.useful_threads,
        workspace_bytes=made.workspace_bytes,
        steps=steps,
        extents=tuple((name, p.offset) for name, p in made.extents.items()),
        checks=tuple(Check(what, p.offset, p.bytes) for what, p in made.checks.items()),
        batches=opened.batches if opened else (),
        pinned=opened.pinned if opened else (),
        in_place=tuple(in_place(made)),
        repeats=tuple((r.first, r.last, r.going.offset) for r in made.repeats),
    )
    return Manifest(
        name=graph.name,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        variants=(variant,),
        producer={"qcompiler": __version__, "apache-tvm": version("apache-tvm")},
        notes={**graph.notes, **({"parts": str(made.parts)} if made.parts > 1 else {})},
        apart=made.apart,
        symbols=opened.symbols if opened else (),
        sizes=opened.sizes if opened else (),
    )


def _multiplied(step: Step) -> str:
    """The dtype that a step multiplies, that of its root's first operand; "" if none."""
    root = step.region.root
    return root.operands[0].dtype if step.kernel.macs and root is not None else ""
