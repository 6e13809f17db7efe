"""Plan -> artifact of one variant."""

from __future__ import annotations

from importlib.metadata import version

from qcompiler.artifact.artifact import Artifact, Binary, Check, Manifest, StepFact, Variant
from qcompiler.emit import native, program
from qcompiler.errors import Error
from qcompiler.hardware.isa import Cpu
from qcompiler.options import Watch
from qcompiler.plan.plan import Plan, Step
from qcompiler.plan.shares import shares
from qcompiler.version import __version__


def assemble(made: Plan, watch: Watch | None = None) -> Artifact:
    """Plan -> artifact of one variant: code, weights, and a manifest that describes them."""
    if watch is not None and watch.progress is not None:
        watch.progress("machine code", 0, 1, made.device.isa.name)
    if (made.checks or made.extents) and not isinstance(made.device, Cpu):
        first = next(iter((*made.checks, *made.extents)))
        hint = "make these operands constants (initializers) of the model"
        raise Error(f"on a GPU, no run is checked for its sizes: {first}", hint=hint)
    code = native.emit(made) if isinstance(made.device, Cpu) else program.emit(made)
    graph, device, opened = made.graph, made.device, made.opened
    inputs, outputs = made.sides
    steps = tuple(
        StepFact(
            s.name,
            s.kernel.name,
            s.kernel.tasks,
            s.kernel.macs * made.parts,
            s.bytes * made.parts,
            multiplied(s),
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
    )
    manifest = Manifest(
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
    return Artifact(manifest, (Binary(code, made.weights, made.blocks),))


def multiplied(step: Step) -> str:
    """The dtype that a step multiplies, that of its root's first operand; "" if none."""
    root = step.region.root
    return root.operands[0].dtype if step.kernel.macs and root is not None else ""
