"""A file of tuning records that one tuner at a time appends to; a kill loses one line at most."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from qcompiler.errors import Error
from qcompiler.tune.records import Line, Measured, read, written


class Journal:
    """The file, open and locked until it is closed. Any thread may append to it."""

    def __init__(self, path: str | Path) -> None:
        """Raises Error where it cannot be written, holds anything else, or another tuner has it."""
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise Error("cannot write: not a regular file", where=str(path))
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as e:
            raise Error(f"cannot write: {e.strerror or e}", where=str(path)) from e
        self._turn = threading.Lock()
        try:
            self._lock()
            self._lines = list(read(self.path).lines)
            self._mend()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    @property
    def found(self) -> Measured:
        """All lines until now."""
        return Measured(tuple(self._lines))

    def add(self, *lines: Line) -> None:
        """Append lines. Raises Error where there is no room, and leaves the file as it was."""
        data = "".join(map(written, lines)).encode()
        with self._turn:
            before = os.fstat(self._file).st_size
            try:
                done = os.write(self._file, data)
                while done < len(data):
                    done += os.write(self._file, data[done:])
            except OSError as e:
                os.ftruncate(self._file, before)
                hint = "what was measured before is kept; make room and run the same command again"
                what = f"cannot write: {e.strerror or e}"
                raise Error(what, where=str(self.path), hint=hint) from e
            self._lines += lines

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            hint = "give each its own file; `qcompiler records merge` makes one of them"
            raise Error("another tuner writes this file", where=str(self.path), hint=hint) from e

    def _mend(self) -> None:
        """Cut off a last line that a killed tuner has not finished."""
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            os.ftruncate(self._file, whole)
