"""What a tuner measured <-> a JSON file: the best knobs by region, device, generator and version.

    {"format": 1, "records": [{"region": "%0 ...", "device": "zen4 ...", "generator": "tiled",
        "version": 1, "knobs": {"rows": 6, ...}, "seconds": 1e-05}, ...]}

A record counts for the version of the generator that it was measured with: knobs of another may
mean other code, so they are kept in the file and never found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qcompiler.errors import Error
from qcompiler.files import contents, write_text
from qcompiler.hardware.isa import Device
from qcompiler.kernels.registry import GENERATORS, Record

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """What a record is of: a region's key, a device as `described`, a generator of a version."""

    region: str
    device: str
    generator: str
    version: int


def described(device: Device) -> str:
    """What must be equal of two devices for the times of one to count on the other."""
    caches = f"{device.l1_bytes}/{device.l2_bytes}/{device.l3_bytes}"
    return f"{device.name} {device.isa.name} threads={device.threads} caches={caches}"


@dataclass(frozen=True)
class Measured:
    """Records by key (see `kernels.registry.Records`)."""

    records: Mapping[Key, Record] = field(default_factory=dict)

    def best(self, region: str, device: Device, generator: str, version: int) -> Record | None:
        """The best knobs of a generator for a region's key on a device, if any were measured."""
        return self.records.get(Key(region, described(device), generator, version))

    def added(self, key: Key, record: Record) -> Measured:
        """With one more; of two of the same key the faster one stays."""
        known = self.records.get(key)
        if known is not None and known.seconds <= record.seconds:
            return self
        return Measured({**self.records, key: record})

    @property
    def stale(self) -> tuple[Key, ...]:
        """Those of generators that there are no more, or of another version."""
        now = {(g.name, g.version) for some in GENERATORS.values() for g in some}
        return tuple(k for k in self.records if (k.generator, k.version) not in now)


def read(path: str | Path) -> Measured:
    """A file -> its records. Raises Error where it cannot be read, or holds anything else."""
    try:
        document = json.loads(contents(path))
    except ValueError as e:
        raise Error(f"no JSON: {e}", where=str(path)) from e
    if not isinstance(document, dict) or not isinstance(document.get("records"), list):
        raise Error("no tuning records", where=str(path))
    if document.get("format") != FORMAT:
        raise Error(
            f"records of format {document.get('format')!r}, not {FORMAT}",
            where=str(path),
            hint="tune again with this version",
        )
    found = Measured()
    for i, entry in enumerate(document["records"]):
        try:
            found = found.added(*_entry(entry))
        except (KeyError, TypeError, ValueError) as e:
            raise Error(f"record {i} is broken: {e!r}", where=str(path)) from e
    return found


def write(path: str | Path, measured: Measured) -> None:
    """Records -> a file, whole or not at all. Raises Error where it cannot be written."""
    entries = [{**asdict(k), **asdict(r)} for k, r in measured.records.items()]
    text = ",\n".join(json.dumps(e) for e in entries)
    write_text(path, f'{{"format": {FORMAT}, "records": [\n{text}\n]}}\n')


def _entry(entry: Mapping[str, object]) -> tuple[Key, Record]:
    """Raises KeyError, TypeError or ValueError where it is no record."""
    words = {name: entry[name] for name in ("region", "device", "generator")}
    version, knobs, seconds = entry["version"], entry["knobs"], entry["seconds"]
    if not all(isinstance(w, str) for w in words.values()) or type(version) is not int:
        raise TypeError("its key is of other types")
    if not isinstance(knobs, dict) or any(type(v) not in (int, str) for v in knobs.values()):
        raise TypeError("its knobs are no whole numbers and words")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError("its seconds are no number")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("its seconds are no time")
    return Key(**words, version=version), Record(knobs, float(seconds))  # type: ignore[arg-type]
