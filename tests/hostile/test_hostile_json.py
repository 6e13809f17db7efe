"""JSON of any kind in a file that is read back is one Error, also where Python gives up on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qcompiler.artifact import manifest, program
from qcompiler.autotune import region_file
from qcompiler.data.calibrate import Statistics
from qcompiler.errors import Error
from qcompiler.files import parsed
from qcompiler.quality.mixed_precision import _State
from qcompiler.tune import records

HOSTILE = {
    "deep": "[" * 100_000,
    "deep objects": '{"format": ' * 100_000,
    "long number": '{"format": 2, "line": "chosen", "seconds": 1' + "0" * 400 + "}",
    "very long number": "1" * 5000,
    "bytes": "\xff\xfe",
}


def _program(path: Path) -> object:
    text = path.read_bytes()
    return program.read(program.MAGIC + len(text).to_bytes(8, "little") + text, str(path))


def _manifest(path: Path) -> object:
    try:
        return manifest.read(path.read_bytes(), str(path))
    except ValueError as e:  # as its callers do
        raise Error(str(e)) from e


READERS: dict[str, Callable[[Path], object]] = {
    "records": records.read,
    "calibration": Statistics.read,
    "search": lambda path: _State(path, "mark"),
    "region": region_file.load,
    "program": _program,
    "manifest": _manifest,
}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("reader", READERS)
def test_json_that_python_cannot_read_is_an_error(reader: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(HOSTILE[text] + "\n", encoding="latin-1")
    with pytest.raises(Error):
        READERS[reader](path)


def test_whole_numbers_that_a_float_can_hold_are_read() -> None:
    assert parsed(b'[-3, 1e3, 18446744073709551615, "x"]') == [-3, 1000.0, (1 << 64) - 1, "x"]
    assert float(parsed("9" * 300)) > 1e299
