"""The wheel of the runtime alone, built once a session, and what it is built of."""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


@cache
def here(name: str) -> ModuleType:
    """A file of runtime/ -> its module."""
    spec = importlib.util.spec_from_file_location(
        f"runtime_{name}", ROOT / "runtime" / f"{name}.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files() -> list[Path]:
    """The files of qcompiler/ that are in the wheel."""
    found: list[Path] = here("backend").files()
    return found


_folder = tempfile.TemporaryDirectory(prefix="runtime-wheel-")


@cache
def built() -> Path:
    """The wheel."""
    return Path(_folder.name) / here("backend").build_wheel(_folder.name)


def unpacked(folder: Path) -> Path:
    """The same, as it is installed, in a folder."""
    with zipfile.ZipFile(built()) as wheel:
        wheel.extractall(folder)
    return folder
