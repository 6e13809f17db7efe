"""Do records of one model make another with the same kernels faster, without measuring that? A
ResNet-50 is tuned; a ResNet-101 is compiled without its records and with them, and both run in
turn.

    python -m benchmarks.tuning_transfer --precision int8 --time 300s

With `--records FILE` nothing is tuned: those of the file are taken. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from benchmarks.networks import resnet50, resnet101
from benchmarks.tuning_recovery import compared, tuned
from qcompiler.autotune.request import seconds
from qcompiler.driver import Compilation
from qcompiler.options import Options


def main(words: Sequence[str] | None = None) -> None:
    """Print how many kernels have records, and what they do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", type=seconds, default=300.0)
    parser.add_argument("--records", type=Path)
    a = parser.parse_args(words)
    data = "synthetic" if a.precision in ("int8", "int4") else None
    options = Options(threads=a.threads, precision=a.precision, calibration=data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in (resnet50, resnet101):
            onnx.save(model(), folder / f"{model.__name__}.onnx")
        records = a.records or folder / "records.jsonl"
        if a.records is None:
            first = tuned(folder / "resnet50.onnx", options, a.time, folder)
            _say("resnet50", *first, a.threads)
        other = folder / "resnet101.onnx"
        usual = Compilation(other, options)
        mine = Compilation(other, replace(options, tuning_records=records))
        taken = [s for s in mine.plan.steps if s.decision is not None and s.decision.recorded]
        sys.stdout.write(f"resnet101: {len(taken)} of {len(mine.plan.steps)} steps have records\n")
        paths = [m.built.save(folder / f"{i}.qc") for i, m in enumerate((usual, mine))]
        _say("resnet101", paths[0], paths[1], a.threads)


def _say(name: str, before: Path, after: Path, threads: int) -> None:
    found = compared(before, after, threads)
    sys.stdout.write(
        f"{name}: {found.ratio:.3f} +- {found.noise:.3f} of {found.seconds * 1e3:.3f} ms\n"
    )


if __name__ == "__main__":
    main()
