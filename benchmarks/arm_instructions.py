"""Models -> executed instructions an inference, on processors that qemu emulates.

    python -m benchmarks.arm_instructions mobilenetv2.onnx --input input=1x3x224x224 --steps

One thread, random inputs, weights as they are; three runs minus one, halved, so what comes before
the first run does not count. Instructions are no time, but they need no board, do not depend on
what else runs, and are the same tomorrow. Needs Debian's `qemu-user` (the static one takes no
plugins) and gcc.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qcompiler.artifact.artifact import Artifact
from qcompiler.driver import compile
from qcompiler.dtypes import numpy_dtype
from qcompiler.options import Options, Watch
from tests.board import CPUS, run_artifact

PLUGIN = Path(__file__).with_name("instructions.c")
TARGETS = {
    "cortex-a53": "raspberry_pi_3",
    "cortex-a72": "raspberry_pi_4",
    "cortex-a76": "raspberry_pi_5",
    "neoverse-n1": "graviton2",
    "max": "graviton3",
}
"""Processors that qemu emulates -> the device whose code they run."""
SECONDS = 3600.0
"""What runs may take: a counted one is slow, and more so while others run."""
NOTHING = (0, 0)
"""Steps: none."""
Arrays = Mapping[str, np.ndarray]


@contextmanager
def plugin() -> Iterator[str]:
    """The plugin, built."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "instructions.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(PLUGIN), "-o", str(made)], check=True)
        yield str(made)


def count(artifact: Artifact, sample: Arrays, cpu: str, made: str, *steps: int) -> float:
    """Instructions of one run of an artifact, or of the steps from one up to another; without those
    of a run of no steps, which are of the program around it: it fills the memory.
    """
    found = []
    for runs in (1, 3):
        said: list[str] = []
        run_artifact(
            artifact,
            [sample] * runs,
            cpu,
            options=("-plugin", made),
            steps=steps,
            said=said,
            seconds=SECONDS,
        )
        match = re.search(r"instructions (\d+)", said[0])
        assert match, said
        found.append(int(match[1]))
    each = (found[1] - found[0]) / 2
    return each if steps == NOTHING else each - count(artifact, sample, cpu, made, *NOTHING)


def random_inputs(artifact: Artifact) -> Arrays:
    """Of a model's dtypes and shapes."""
    rng = np.random.default_rng(0)
    return {
        v.name: rng.standard_normal(v.shape).astype(numpy_dtype(v.dtype))
        if "float" in v.dtype
        else rng.integers(0, 2, v.shape).astype(numpy_dtype(v.dtype))
        for v in artifact.manifest.inputs
    }


def compiled(path: Path, cpu: str, precision: str, shapes: Mapping[str, Sequence[int]]) -> Artifact:
    """A model for the device that stands for a processor."""
    data = "synthetic" if precision == "int8" else None
    options = Options(
        target=TARGETS[cpu],
        precision=precision,
        calibration=data,
        calibration_samples=2,
        input_shapes=shapes,
        threads=1,
    )
    return compile(str(path), options, Watch())


def by_step(artifact: Artifact, sample: Arrays, cpu: str, made: str) -> None:
    """Print which kernels execute how many instructions, the most first; each is run once."""
    (variant,) = artifact.manifest.variants
    steps = variant.steps
    often = Counter(s.kernel for s in steps)
    seen: dict[str, tuple[float, int]] = {}
    for i, step in enumerate(steps):
        if step.kernel not in seen:
            seen[step.kernel] = (count(artifact, sample, cpu, made, i, i + 1), step.macs)
    for kernel, (each, macs) in sorted(seen.items(), key=lambda k: -k[1][0] * often[k[0]]):
        total = each * often[kernel]
        rate = f"{macs / each:6.2f}" if macs else "     -"
        print(f"{total / 1e6:8.3f} M  {often[kernel]:3} x  {rate} macs/instruction  {kernel}")


def main() -> None:
    """The table of one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--input", action="append", default=[], help="NAME=1x3x224x224")
    parser.add_argument("--cpu", nargs="+", default=["cortex-a72", "cortex-a76", "max"])
    parser.add_argument("--precision", nargs="+", default=["float32", "int8"])
    parser.add_argument("--steps", action="store_true", help="by kernel, too")
    a = parser.parse_args()
    shapes = {}
    for text in a.input:
        name, _, sizes = text.partition("=")
        shapes[name] = tuple(map(int, sizes.split("x")))
    with plugin() as made:
        for cpu in a.cpu:
            for precision in a.precision:
                artifact = compiled(a.model, cpu, precision, shapes)
                sample = random_inputs(artifact)
                total = count(artifact, sample, cpu, made)
                print(f"{a.model.stem} {precision} {cpu}: {total / 1e6:.1f} M", flush=True)
                if a.steps:
                    by_step(artifact, sample, cpu, made)


assert set(TARGETS) <= {cpu for cpus in CPUS.values() for cpu in cpus}

if __name__ == "__main__":
    main()
