"""What a tuner measured <-> a file of JSON lines: a line a measurement, and a line a choice.

    {"format": 2, "line": "measured", "region": "%0 ...", "device": "zen4 ...",
        "generator": "tiled", "version": 1, "threads": 0, "knobs": {"rows": 6, ...},
        "seconds": 1e-05, "ratio": 0.97, "noise": 0.01, "step": "conv1", "host": "...",
        "compiler": "..."}

A compilation reads the lines "chosen" alone, and of one region and device the last. One that is of
another version of its generator counts for nothing: its knobs may mean other code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qcompiler.errors import Error
from qcompiler.files import contents, parsed, write_text
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Graph, text
from qcompiler.kernels.registry import GENERATORS, Record, Records
from qcompiler.plan.choose import APART
from qcompiler.plan.sharing import VERSION, WHOLE

log = logging.getLogger(__name__)

FORMAT = 2
MEASURED, FAILED, CHOSEN = "measured", "failed", "chosen"
APART_VERSION = 1
MODEL, MODEL_VERSION = "model", 1
"""Stands for a generator in records of whole models: passes that are better left out (knob
"disabled"), and nodes that are better left in float ("exclude"), as lists in JSON."""

LATE = ("integer", "layout")
"""Stages whose passes a record of a model may leave out."""


@dataclass(frozen=True)
class Key:
    """What a record is of: a region's key, and a device as `described`."""

    region: str
    device: str


def described(device: Device) -> str:
    """What must be equal of two devices for the times of one to count on the other."""
    if not isinstance(device, Cpu):
        return f"{device.name} {device.isa.name}"
    caches = f"{device.l1_bytes}/{device.l2_bytes}/{device.l3_bytes}"
    return f"{device.name} {device.isa.name} threads={device.threads} caches={caches}"


def model_key(graph: Graph, precision: str) -> str:
    """What stands for a region's key in records of a model: its fused graph, and the precision."""
    return f"model {precision} {hashlib.sha256(text.write(graph)[0].encode()).hexdigest()}"


def names_in(record: Record, knob: str) -> tuple[str, ...]:
    """The list that a knob of a model's record holds. Raises Error where it holds anything else."""
    try:
        found = parsed(str(record.knobs.get(knob, "[]")))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(n, str) for n in found):
        raise Error(f"{knob!r} of a model's tuning record is no list of names")
    return tuple(found)


@dataclass(frozen=True)
class Line:
    """A line of the file.

    `ratio` is its time divided by that of what would be chosen without records, in the same runs;
    `noise` how far such ratios were from each other. `step` names one that the region is of; `why`
    says of a failed one what happened.
    """

    line: str
    key: Key
    record: Record
    ratio: float = 1.0
    noise: float = 0.0
    step: str = ""
    why: str = ""
    host: str = ""
    compiler: str = ""

    @property
    def made_by(self) -> tuple[str, int]:
        """The generator, and its version."""
        return self.record.generator, self.record.version


def _now() -> set[tuple[str, int]]:
    """The generators that there are, and their versions."""
    own = {(WHOLE, VERSION), (APART, APART_VERSION), (MODEL, MODEL_VERSION)}
    return own | {(g.name, g.version) for some in GENERATORS.values() for g in some}


@dataclass(frozen=True)
class Measured:
    """The lines of a file, in order (see `kernels.registry.Records`)."""

    lines: tuple[Line, ...] = field(default=(), repr=False)
    chosen: Mapping[Key, Line] = field(init=False, compare=False)
    """The choices that count."""

    def __post_init__(self) -> None:
        now = _now()
        made = (x for x in self.lines if x.line == CHOSEN)
        object.__setattr__(self, "chosen", {x.key: x for x in made if x.made_by in now})

    def best(self, region: str, device: Device) -> Record | None:
        """What was chosen last for a region's key on a device, if anything was."""
        found = self.chosen.get(Key(region, described(device)))
        return None if found is None else found.record

    @property
    def stale(self) -> tuple[Line, ...]:
        """The choices of generators that there are no more, or of another version."""
        now = _now()
        return tuple(x for x in self.lines if x.line == CHOSEN and x.made_by not in now)

    def __or__(self, other: Measured) -> Measured:
        """All lines of both, each once; where both chose, the other's choice counts."""
        last = {written(x): x for x in reversed((*self.lines, *other.lines))}
        return Measured(tuple(reversed(last.values())))

    def pruned(self) -> Measured:
        """Without what counts for nothing: stale lines, choices that later ones replace, and all
        but the last measurement of each candidate."""
        now, kept = _now(), dict[tuple[object, ...], Line]()
        for x in self.lines:
            if x.made_by not in now:
                continue
            if x.line == CHOSEN:
                mark: tuple[object, ...] = (CHOSEN, x.key)
            else:
                mark = (x.key, x.record.generator, x.record.threads, _text(x.record.knobs), x.host)
            kept.pop(mark, None)
            kept[mark] = x
        return Measured(tuple(kept.values()))


def joined_records(first: Records | None, more: Measured | None) -> Records | None:
    """Records, and more of them that count before these."""
    if first is None or more is None:
        return first if more is None else more
    return _Both(first, more)


@dataclass(frozen=True)
class _Both:
    """See `kernels.registry.Records`."""

    first: Records
    more: Measured

    def best(self, region: str, device: Device) -> Record | None:
        found = self.more.best(region, device)
        return self.first.best(region, device) if found is None else found


def read(path: str | Path) -> Measured:
    """A file -> its lines. Raises Error where it cannot be read, or holds anything else.

    A last line without an end is one that was being written when a tuner was killed: left out.
    """
    whole, _, torn = contents(path).rpartition(b"\n")
    if torn:
        log.warning("%s: the last line is not whole, and left out", path)
    lines = []
    for number, each in enumerate(whole.split(b"\n"), 1):
        if each.strip():
            lines.append(_read_line(each, f"{path}, line {number}"))
    return Measured(tuple(lines))


def write(path: str | Path, measured: Measured) -> None:
    """Lines -> a file, whole or not at all. Raises Error where it cannot be written."""
    write_text(path, "".join(map(written, measured.lines)))


def written(line: Line) -> str:
    """A line as it stands in a file, with its end."""
    r = line.record
    entry: dict[str, object] = {
        "format": FORMAT,
        "line": line.line,
        "region": line.key.region,
        "device": line.key.device,
        "generator": r.generator,
        "version": r.version,
        "threads": r.threads,
        "knobs": dict(r.knobs),
        "seconds": r.seconds,
        "ratio": line.ratio,
        "noise": line.noise,
    }
    words = {"step": line.step, "why": line.why, "host": line.host, "compiler": line.compiler}
    return json.dumps({**entry, **{k: v for k, v in words.items() if v}}) + "\n"


def merged(files: Iterable[Measured]) -> Measured:
    """Several files -> all they hold; of choices for one region that of the last file counts."""
    whole = Measured()
    for each in files:
        whole = whole | each
    return whole


def _text(knobs: Mapping[str, int | str]) -> str:
    return json.dumps(dict(knobs), sort_keys=True)


def _read_line(line: bytes, where: str) -> Line:
    try:
        entry = parsed(line)
    except ValueError as e:
        raise Error(f"no JSON: {e}", where=where, hint="a file that `qcompiler tune` wrote") from e
    if not isinstance(entry, dict) or "format" not in entry:
        raise Error("no tuning record", where=where)
    if entry["format"] != FORMAT:
        raise Error(
            f"a record of format {entry['format']!r}, not {FORMAT}",
            where=where,
            hint="tune again with this version",
        )
    try:
        return _line(entry)
    except (KeyError, TypeError, ValueError) as e:
        raise Error(f"the record is broken: {e!r}", where=where) from e


def _line(entry: Mapping[str, object]) -> Line:
    """Raises KeyError, TypeError or ValueError where it is no record."""
    if entry["line"] not in (MEASURED, FAILED, CHOSEN):
        raise ValueError(f"a line {entry['line']!r}")
    words = {n: _word(entry.get(n, "")) for n in ("step", "why", "host", "compiler")}
    knobs = entry["knobs"]
    if not isinstance(knobs, dict) or any(type(v) not in (int, str) for v in knobs.values()):
        raise TypeError("its knobs are no whole numbers and words")
    record = Record(
        _word(entry["generator"]),
        _whole(entry["version"]),
        knobs,
        _time(entry["seconds"]),
        _whole(entry["threads"]),
    )
    key = Key(_word(entry["region"]), _word(entry["device"]))
    ratio, noise = _time(entry["ratio"]), _time(entry["noise"])
    return Line(_word(entry["line"]), key, record, ratio, noise, **words)


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no time")
    return float(value)
