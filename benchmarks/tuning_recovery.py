"""What do wrong facts of a device cost, and how much of that does tuning recover?

    python -m benchmarks.tuning_recovery resnet50.onnx --precision int8 --threads 1 --time 60s

The model is compiled for this machine, and for devices with its instruction set but other facts:
the caches of a small core, doubled caches, the facts of an in-order core. Each is tuned for
`--time` from there. All are measured in turn with the one that has the right facts; recovered is
the part of what was lost that tuning wins back. With `--gain` the right facts are tuned, too, which
shows what there is to win besides; with `--probe` this machine is measured (`targets --probe`) and
the model compiled with what was found, untuned. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qcompiler import plugins
from qcompiler.autotune.places import Here
from qcompiler.autotune.request import Tuning, seconds
from qcompiler.autotune.tune import Tuner, subject_of
from qcompiler.autotune.whole import Pair, Verdict
from qcompiler.driver import Compilation
from qcompiler.hardware.isa import Cpu
from qcompiler.options import Options
from qcompiler.tune.journal import Journal
from qcompiler.tune.probe import Probe, probe, toml

WRONG = ("small caches", "doubled caches", "in-order core")


def devices(right: Cpu) -> Mapping[str, Cpu]:
    """Devices of the same instruction set whose facts are those of others."""
    l2, l3 = 2 * right.l2_bytes, 2 * right.l3_bytes
    slow = plugins.device("raspberry_pi_3")
    assert isinstance(slow, Cpu)
    made = (
        replace(right, l1_bytes=32 << 10, l2_bytes=256 << 10, l3_bytes=8 << 20),
        replace(right, l1_bytes=2 * right.l1_bytes, l2_bytes=l2, l3_bytes=l3),
        replace(right, core=slow.core),
    )
    return dict(zip(WRONG, made, strict=True))


def written(device: Cpu, path: Path) -> Path:
    """A device -> its file, with all facts of its core."""
    facts = "\n".join(f"{k} = {v!r}" for k, v in vars(device.core).items())
    path.write_text(f"{toml(Probe(device, (), (), ()), 'for a benchmark')}{facts}\n")
    return path


def tuned(model: Path, options: Options, limit: float, folder: Path) -> tuple[Path, Path]:
    """A model -> its artifacts before and after so many seconds of tuning."""
    records = folder / "records.jsonl"
    records.unlink(missing_ok=True)
    subject = subject_of(Compilation(model, options))
    before = subject.base.built.save(folder / "plain.qc")
    with (
        Journal(records) as journal,
        Tuner([subject], Tuning(time=limit), journal, [Here(subject.base.device.threads)]) as tuner,
    ):
        tuner.run()
    made = Compilation(model, replace(options, tuning_records=records))
    return before, made.built.save(folder / "tuned.qc")


def compared(first: Path, second: Path, threads: int) -> Verdict:
    """Two artifacts in turn, for ten seconds."""
    here = Here(threads)
    with Pair(here) as pair:
        found = pair.compare(first, second, 10.0)
    here.close()
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--time", type=seconds, default=60.0)
    parser.add_argument("--gain", action="store_true", help="tune with the right facts, too")
    parser.add_argument("--probe", action="store_true", help="compile with probed facts, too")
    parser.add_argument("--only-gain", action="store_true", help="no wrong facts")
    parser.add_argument("--repeat", type=int, default=1, help="tune so often with the right facts")
    a = parser.parse_args(words)
    data = "synthetic" if a.precision in ("int8", "int4") else None
    options = Options(threads=a.threads, precision=a.precision, calibration=data)
    right = plugins.device("host", a.threads)
    assert isinstance(right, Cpu)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if a.probe:
            probed = folder / "probed.toml"
            probed.write_text(toml(probe(right), "for a benchmark"))
        for model in a.models:
            best = Compilation(model, options).built.save(folder / "right.qc")
            if a.probe:
                made = Compilation(model, replace(options, target=str(probed)))
                mine = made.built.save(folder / "probed.qc")
                _say(model, "probed facts", compared(best, mine, a.threads))
            for _ in range(a.repeat if a.gain or a.only_gain else 0):
                begin = time.monotonic()
                _, after = tuned(model, options, a.time, folder)
                more = f"{time.monotonic() - begin:.0f} s"
                if after.read_bytes() == best.read_bytes():
                    more += ", the same artifact"
                _say(model, "right facts, tuned", compared(best, after, a.threads), more)
            for what, device in () if a.only_gain else devices(right).items():
                target = str(written(device, folder / f"{what.replace(' ', '_')}.toml"))
                own = replace(options, target=target)
                before, after = tuned(model, own, a.time, folder)
                lost, left = (compared(best, x, a.threads) for x in (before, after))
                _say(model, what, lost)
                recovered = (lost.ratio - left.ratio) / max(lost.ratio - 1, 1e-9)
                more = f"recovered {recovered:.0%}" if lost.ratio > 1.01 else "nothing was lost"
                _say(model, f"{what}, tuned", left, more)


def _say(model: Path, what: str, found: Verdict, more: str = "") -> None:
    sys.stdout.write(
        f"{model.stem:16} {what:24} {found.ratio:.3f} +- {found.noise:.3f} of"
        f" {found.seconds * 1e3:.3f} ms  {more}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
