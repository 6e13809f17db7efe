"""Reading regular files and JSON, atomic writes, and sizes for display."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from qcompiler.errors import Error

_MOST_DIGITS = 300
"""Of whole numbers that float takes, whatever they are."""


def opened(path: str | Path) -> BinaryIO:
    """A path -> the regular file there, open for reading.

    Raises Error with the system's reason if it cannot be read, or if it is not a regular file:
    reading a pipe or device could block forever.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Error("not a regular file", where=str(path))
        return file
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        reason = getattr(e, "strerror", None) or e
        raise Error(f"cannot be read ({reason})", where=str(path)) from e


def contents(path: str | Path) -> bytes:
    """The bytes of a file; see `opened`."""
    with opened(path) as file:
        try:
            return file.read()
        except OSError as e:
            raise Error(f"cannot be read ({e.strerror or e})", where=str(path)) from e


def parsed(text: str | bytes | bytearray) -> Any:
    """JSON -> what it says. Raises ValueError for anything else, also for what is nested too deeply
    for Python, and for whole numbers of more than 300 digits: hardly more fit a float.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _without_waiting(path: str, flags: int) -> int:
    """An opener for `open` that does not block on a pipe without a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A path -> a temporary file in the same folder, which replaces it once flushed to disk.

    On an exception or a signal the original stays untouched. Raises Error with the system's reason
    if the path cannot be written, or is not a regular file (a folder, /dev/null).
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise Error("cannot write: not a regular file", where=str(path))
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as e:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise Error(f"cannot write: {e.strerror or e}", where=str(path)) from e
        raise


def write_text(path: str | Path, text: str) -> None:
    """Text -> a UTF-8 file; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def size(count: int) -> str:
    """Bytes -> "1.2 MB" (powers of ten)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
