"""Measured rows -> a Markdown table for each network, and JSON with every single time."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import groupby
from pathlib import Path

from benchmarks.engines import Settings

FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512", "avx512f", "avx512bw", "avx512vl", "amx")
LIBRARIES = ("qcompiler-tvm", "apache-tvm", "onnxruntime", "openvino", "nncf", "numpy")

NOTE = """\
Milliseconds of one run: the median and the 10th and 90th percentiles over all rounds. *× engine*:
how many times as fast as that engine's best in the same precision, the median of the rounds' ratios
(above 1: faster than it). *first*: importing the library, loading and the first run, in a fresh
process. *peak*: the most memory of that process. *build*: what is done once, ahead of time
(onnxruntime and OpenVINO make their kernels when they load, which *first* counts). *cosine*: of the
least alike output with onnxruntime's in float32.
"""


@dataclass
class Row:
    """One engine on one network. Times in seconds; `reason` says why some of it is missing."""

    network: str
    maker: str
    precision: str
    slow: bool = False
    artifact: str = ""
    artifact_bytes: int = 0
    build_seconds: float = 0.0
    first_seconds: float = 0.0
    peak_bytes: int = 0
    cosine: float | None = None
    rounds: list[list[float]] = field(default_factory=list)
    reason: str = ""

    @property
    def engine(self) -> str:
        """The engine's name."""
        return f"{self.maker} {self.precision}"

    @property
    def family(self) -> str:
        """Precisions that are compared with each other."""
        return self.precision.removesuffix("-dynamic")

    def seconds(self, percent: int) -> float:
        """A percentile of all runs."""
        taken = sorted(t for r in self.rounds for t in r)
        return taken[round((len(taken) - 1) * percent / 100)]

    def times_as_fast_as(self, other: Row) -> float:
        """The median of the ratios within each round that both took part in."""
        pairs = zip(self.rounds, other.rounds, strict=False)
        return statistics.median(statistics.median(b) / statistics.median(a) for a, b in pairs)


@dataclass(frozen=True)
class Machine:
    """Where and how it was measured."""

    cpu: str
    cores: int
    flags: tuple[str, ...]
    system: str
    load: float
    """Runnable processes in the minute before: above about 0.5, others were using the machine."""
    versions: dict[str, str]
    batch: int
    openvino_isa: str
    settings: Settings

    @staticmethod
    def this(settings: Settings, batch: int, openvino_isa: str) -> Machine:
        """The one we are on."""
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
        flags = facts.get("flags", facts.get("Features", "")).split()
        return Machine(
            cpu=facts.get("model name", platform.machine()),
            cores=os.cpu_count() or 1,
            flags=tuple(sorted(f for f in flags if f.startswith(FLAGS))),
            system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
            load=os.getloadavg()[0],
            versions={name: _version(name) for name in LIBRARIES},
            batch=batch,
            openvino_isa=openvino_isa,
            settings=settings,
        )


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"


def to_json(machine: Machine, rows: Iterable[Row]) -> str:
    """Everything."""
    return json.dumps({"machine": asdict(machine), "rows": [asdict(r) for r in rows]}, indent=1)


def markdown(machine: Machine, rows: Iterable[Row]) -> str:
    """The machine, a table for each network, and what the columns mean."""
    settings = machine.settings
    held = f"; OpenVINO held to {machine.openvino_isa}" if machine.openvino_isa else ""
    parts = [
        f"{machine.cpu}, {machine.cores} cores ({' '.join(machine.flags)}), {machine.system}, "
        f"load {machine.load:.1f} at the start. {settings.threads} threads, batch {machine.batch}, "
        f"qcompiler target {settings.target}, onnxruntime's threads "
        f"{'spin' if settings.spin else 'do not spin'}{held}. "
        + ", ".join(f"{k} {v}" for k, v in machine.versions.items())
        + ".\n"
    ]
    for network, group in groupby(rows, lambda r: r.network):
        parts.append(f"### {network}\n\n{table(list(group))}")
    return "\n".join([*parts, NOTE])


def table(rows: Sequence[Row]) -> str:
    """One network's rows, the fastest first within each precision."""
    timed = [r for r in rows if r.rounds and not r.reason]
    makers = sorted({r.maker for r in timed} & {"onnxruntime", "openvino"})
    titles = ["engine", "ms", "p10 to p90", *(f"× {m}" for m in makers)]
    titles += ["first ms", "peak MB", "artifact MB", "build s", "cosine"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for row in sorted(timed, key=lambda r: (r.family, r.seconds(50))):
        cells = [
            row.engine,
            _ms(row.seconds(50)),
            f"{_ms(row.seconds(10))} to {_ms(row.seconds(90))}",
        ]
        cells += [_ratio(row, [r for r in timed if r.maker == maker]) for maker in makers]
        cells += [_ms(row.first_seconds), f"{row.peak_bytes / 1e6:.0f}"]
        cells += [f"{row.artifact_bytes / 1e6:.2f}", f"{row.build_seconds:.1f}"]
        cells.append("" if row.cosine is None else f"{row.cosine:.5f}")
        lines.append(cells)
    left_out = [f"- {r.engine} is left out: {r.reason}\n" for r in rows if r not in timed]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return text + ("\n" + "".join(left_out) if left_out else "")


def _ratio(row: Row, peers: Iterable[Row]) -> str:
    same = [p for p in peers if p.family == row.family]
    best = min(same, key=lambda p: p.seconds(50), default=None)
    return "" if best is None or best is row else f"{row.times_as_fast_as(best):.2f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"
