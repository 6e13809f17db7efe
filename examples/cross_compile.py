"""The embedded network -> artifacts for machines other than this one, and one for a whole family.

Compiling needs no such machine; calibrating for int8 runs on this one whatever the target.

python examples/cross_compile.py
"""

from __future__ import annotations

import qcompiler
from qcompiler.demo import MODEL
from qcompiler.hardware import cpu

TARGETS = ("sapphire_rapids", "x86_avx2")
"""A device (targets/devices) and an instruction set (targets)."""
FAMILY = "x86-64:all"
"""All instruction sets of a family in one artifact."""


def main() -> None:
    """Compile for each target, then load those that this CPU can run."""
    for target in TARGETS:
        artifact = qcompiler.compile(
            MODEL, target=target, threads=2, input_shapes={"image": (1, 1, 8, 8)}
        )
        (variant,) = artifact.manifest.variants
        missing = sorted(set(variant.cpu_flags) - cpu.features())
        print(f"{target}: {variant.isa}, {artifact.bytes} bytes, {len(variant.steps)} steps")
        print("  first kernel:", variant.steps[0].kernel)
        try:
            qcompiler.load(artifact)
        except qcompiler.Error as error:
            print(f"  not for this CPU: {error}")
            assert missing
        else:
            print("  loads here")
    fat = qcompiler.compile(MODEL, target=FAMILY, threads=2, input_shapes={"image": (1, 1, 8, 8)})
    print(
        f"{FAMILY}: {len(fat.binaries)} variants, {fat.bytes} bytes, "
        f"{fat.shared_bytes} bytes of weights shared"
    )
    print("  here runs", qcompiler.load(fat).variant)


if __name__ == "__main__":
    main()
