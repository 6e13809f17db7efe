"""Records that ship with the package: what was measured on devices, in files beside those of their
facts (targets/devices/*.jsonl). Each counts for the device that it was measured on alone.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from qcompiler.tune.records import Line, Measured, merged, read

SHIPPED = "shipped"


def files() -> list[Path]:
    """The files."""
    folder = importlib.import_module("qcompiler.targets.devices")
    return sorted(p for root in folder.__path__ for p in Path(root).glob("*.jsonl"))


def shipped() -> Measured:
    """All that they hold."""
    return Measured(tuple(map(_marked, merged(map(read, files())).lines)))


def _marked(line: Line) -> Line:
    return replace(line, record=replace(line.record, origin=SHIPPED))
