"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcompiler.errors import Error

_OURS = (".h", ".hpp", ".o", ".weights")
"""Suffixes of the files that an export writes."""


@contextmanager
def replacing_folder(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """A path -> an empty folder beside it, which replaces it when the block ends; an exception
    before leaves the path as it was. Raises Error where something exists already; with `force`,
    only where it holds more than an export wrote.
    """
    _demand_free(folder, force)
    temporary = Path()
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if folder.exists():
            _demand_free(folder, force)
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            os.replace(folder, old / folder.name)
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    except BaseException as e:
        if temporary.name:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(e, OSError):
            raise Error(f"cannot write: {e.strerror or e}", where=str(folder)) from e
        raise


def _demand_free(folder: Path, force: bool) -> None:
    if not folder.name:
        raise Error("this is no name of a new folder", where=str(folder))
    if not folder.parent.is_dir():
        raise Error(f"there is no folder {str(folder.parent)!r}", where=str(folder))
    if not (folder.exists() or folder.is_symlink()):
        return
    if not force:
        raise Error("this is there already", where=str(folder), hint="--force replaces it")
    if folder.is_symlink() or not folder.is_dir():
        raise Error("this is no folder", where=str(folder), hint="name another place")
    others = [p.name for p in sorted(folder.iterdir()) if p.is_dir() or p.suffix not in _OURS]
    if others:
        raise Error(
            f"it holds {others[0]!r}, which no export has written",
            where=str(folder),
            hint="name another folder",
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
