"""The embedded network -> artifacts for machines other than this one, and what each holds.

Compiling needs no such machine; calibrating for int8 runs on this one whatever the target.

python examples/cross_compile.py
"""

from __future__ import annotations

import qcompiler
from qcompiler.demo import MODEL
from qcompiler.hardware import cpu

TARGETS = ("sapphire_rapids", "x86_avx2")
"""A device (targets/devices) and an instruction set (targets)."""


def main() -> None:
    """Compile for each target, then load those that this CPU can run."""
    for target in TARGETS:
        artifact = qcompiler.compile(
            MODEL, target=target, threads=2, input_shapes={"image": (1, 1, 8, 8)}
        )
        manifest = artifact.manifest
        missing = sorted(set(manifest.cpu_flags) - cpu.features())
        print(f"{target}: {manifest.isa}, {artifact.bytes} bytes, {len(manifest.steps)} steps")
        print("  first kernel:", manifest.steps[0].kernel)
        try:
            qcompiler.load(artifact)
        except qcompiler.Error as error:
            print(f"  not for this CPU: {error}")
            assert missing
        else:
            print("  loads here")


if __name__ == "__main__":
    main()
