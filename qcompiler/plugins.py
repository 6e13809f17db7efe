"""The one module that knows passes/ and targets/ exist: imports every file there by name, each registers itself."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from qcompiler.errors import Error


@cache
def load_all() -> None:
    """Import every pass and every instruction set that is installed; once a process."""
    for package in ("qcompiler.passes", "qcompiler.targets"):
        folder = importlib.import_module(package)
        for module in sorted(m.name for m in pkgutil.iter_modules(folder.__path__)):
            importlib.import_module(f"{package}.{module}")


def load_file(path: Path) -> ModuleType:
    """A user's own pass or instruction set (`--pass ./mine.py`, `--target ./mine.py`) -> the module, registered."""
    if not path.is_file():
        raise Error("no such file", where=str(path))
    name = f"qcompiler_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Error("not a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
