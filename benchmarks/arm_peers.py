"""Models -> executed instructions an inference beside other engines' builds for ARM, one thread, on
processors that qemu emulates.

    tests/runtime/arm64_python.sh ROOT        # a CPython for 64-bit ARM with numpy
    pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 \\
        --python-version 3.11 -d ROOT onnxruntime==1.23.2
    python -m zipfile -e ROOT/onnxruntime-*.whl ROOT/site
    python -m benchmarks.arm_peers ROOT mobilenetv2.onnx resnet50 --cpu cortex-a76

A model is a file, or a network of benchmarks/networks.py. All get the same random inputs and
calibration data. `--engine onnxruntime mnn ncnn` asks for others, whose packages go to ROOT/site
alike; benchmarks/arm_makers.py says how they get a model.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.accuracy import recent
from benchmarks.arm_instructions import TARGETS, count, plugin
from benchmarks.arm_makers import MAKERS, Maker
from benchmarks.engines import Unavailable
from benchmarks.networks import NETWORKS
from benchmarks.subjects import Subject, prepare
from qcompiler.driver import compile
from qcompiler.options import Options, Watch
from tests.board import emulator

SAMPLES = 2
"""To calibrate with."""


@dataclass(frozen=True)
class Emulated:
    """The folder of an interpreter for ARM, and the plugin that counts."""

    root: Path
    plugin: str

    def count(
        self, maker: Maker, model: Path, feed: Path, cpu: str, runs: int, precision: str
    ) -> float:
        """Instructions of one run: of so many more than one, divided."""
        program = feed.parent / "peer.py"
        program.write_text(maker.program)
        found = []
        for n in (1, runs):
            words = (program, model, feed, n, precision)
            done = subprocess.run(
                [*self._command(cpu), *map(str, words)], capture_output=True, text=True, check=False
            )
            match = re.search(r"instructions (\d+)", done.stderr)
            if done.returncode or not match:
                raise Unavailable(f"it ended with {done.returncode}: {done.stderr[-500:]}")
            found.append(int(match[1]))
        return (found[1] - found[0]) / (runs - 1)

    def _command(self, cpu: str) -> list[str]:
        system = self.root / "system"
        (python,) = (system / "usr" / "bin").glob("python3.[0-9]*[0-9]")
        places = {"PYTHONHOME": system / "usr", "PYTHONPATH": self.root / "site"}
        told = [word for k, v in places.items() for word in ("-E", f"{k}={v}")]
        emulated = [emulator("aarch64"), "-plugin", self.plugin, "-cpu", cpu]
        return [*emulated, "-L", str(system), *told, str(python)]


def ours(subject: Subject, cpu: str, precision: str, made: str) -> float:
    """Instructions of one run of what is compiled for the device that stands for a processor."""
    samples = subject.samples()[:SAMPLES]
    data = samples if precision == "int8" else None
    options = Options(target=TARGETS[cpu], precision=precision, calibration=data, threads=1)
    return count(compile(str(subject.model), options, Watch()), samples[0], cpu, made)


def theirs(
    emulated: Emulated, name: str, subject: Subject, cpu: str, precision: str, a: argparse.Namespace
) -> float:
    """The same of another engine; raises Unavailable."""
    maker, folder = MAKERS[name], subject.folder / name / precision
    folder.mkdir(parents=True, exist_ok=True)
    feed = folder / "feed.npz"
    np.savez(feed, **subject.samples()[0])  # type: ignore[arg-type]
    model = maker.convert(subject, folder, precision, a.tools)
    return emulated.count(maker, model, feed, cpu, a.runs, precision)


def rows(emulated: Emulated, subject: Subject, a: argparse.Namespace) -> None:
    """Print a row of the table for each processor and precision: millions, and behind others' the
    share of them that ours are.
    """
    for cpu in a.cpu:
        for precision in a.precision:
            mine = ours(subject, cpu, precision, emulated.plugin) / 1e6
            cells = [subject.name, f"`{cpu}`", precision, f"{mine:.1f}"]
            for name in a.engine:
                try:
                    its = theirs(emulated, name, subject, cpu, precision, a) / 1e6
                    cells.append(f"{its:.1f} ({mine / its:.2f})")
                except Unavailable as e:
                    cells.append(" ".join(str(e).split()))
            print(f"| {' | '.join(cells)} |", flush=True)


def subject_of(name: str, folder: Path, sizes: Mapping[str, int]) -> Subject:
    """A model's file, or a network's name -> the model with its shapes pinned, and samples."""
    model = NETWORKS[name]() if name in NETWORKS else recent(onnx.load(name))
    return prepare(model, folder / Path(name).stem, batch=1, sizes=sizes, given={})


def main(words: Sequence[str] | None = None) -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--cpu", nargs="+", default=["cortex-a72", "cortex-a76", "max"])
    parser.add_argument("--precision", nargs="+", default=["float32", "int8"])
    parser.add_argument("--size", action="append", default=[], help="SYMBOL=NUMBER")
    parser.add_argument("--engine", nargs="+", default=["onnxruntime"], choices=MAKERS)
    parser.add_argument("--tools", type=Path, default=Path(sys.prefix), help="what converts models")
    parser.add_argument("--runs", type=int, default=3, help="of other engines, less the first")
    a = parser.parse_args(words)
    sizes = {name: int(number) for name, _, number in (s.partition("=") for s in a.size)}
    print(f"| network | processor | precision | qcompiler | {' | '.join(a.engine)} |")
    print(f"|---|---|---|---:|{'---:|' * len(a.engine)}")
    with plugin() as made, tempfile.TemporaryDirectory() as folder:
        for name in a.model:
            rows(Emulated(a.root, made), subject_of(name, Path(folder), sizes), a)


if __name__ == "__main__":
    main()
