"""Plan -> artifact of one variant."""

from __future__ import annotations

from qcompiler.artifact.artifact import Artifact, Binary
from qcompiler.emit import native, program
from qcompiler.emit.described import manifest_of
from qcompiler.hardware.isa import Cpu
from qcompiler.options import Watch
from qcompiler.plan.plan import Plan


def assemble(made: Plan, watch: Watch | None = None) -> Artifact:
    """Plan -> artifact of one variant: code, weights, and a manifest that describes them."""
    if watch is not None and watch.progress is not None:
        watch.progress("machine code", 0, 1, made.device.isa.name)
    code = native.emit(made) if isinstance(made.device, Cpu) else program.emit(made)
    return Artifact(manifest_of(made), (Binary(code, made.weights, made.blocks),))
