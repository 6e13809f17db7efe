"""Records that ship with the package: what was measured on devices, in files beside those of their
facts (targets/devices/*.jsonl). Each counts for the device that it was measured on alone.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from pathlib import Path

from qcompiler.tune.records import Line, Measured, merged, read

log = logging.getLogger(__name__)

SHIPPED = "shipped"


def files() -> list[Path]:
    """The files."""
    folder = importlib.import_module("qcompiler.targets.devices")
    return sorted(p for root in folder.__path__ for p in Path(root).glob("*.jsonl"))


def shipped() -> Measured:
    """All that they hold."""
    return Measured(tuple(map(_marked, merged(map(read, files())).lines)))


def known(path: str | Path | None, *, ships: bool) -> Measured | None:
    """The records of a file, if one is given, which count first, and (`ships`) those that ship;
    None where there are none.
    """
    found = shipped() if ships else Measured()
    if path:
        given = read(path)
        if given.stale:
            names = sorted({f"{x.record.generator} {x.record.version}" for x in given.stale})
            log.warning("tuning records of other generators are ignored: %s", ", ".join(names))
        found = found | given
    return found if found.lines else None


def _marked(line: Line) -> Line:
    return replace(line, record=replace(line.record, origin=SHIPPED))
