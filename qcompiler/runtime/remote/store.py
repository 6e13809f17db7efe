"""Uploaded artifacts -> files by their SHA-256, complete or not at all; the least recently used are
removed when there are too many bytes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qcompiler.errors import Error
from qcompiler.runtime.remote.wire import Data

_HALF, _WHOLE = ".half-", ".qc"
_CHUNK = 1 << 20


class Store:
    """A folder of artifacts, for one server; several threads may use it at once."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._lock = threading.Lock()
        self._known: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for half in folder.glob(f"{_HALF}*"):  # of a server that was killed
            half.unlink()

    def find(self, digest: str) -> Path | None:
        """The file with this SHA-256. One that an earlier server stored is hashed when first asked
        for, and removed if damaged.
        """
        path = self.folder / f"{digest}{_WHOLE}"
        try:
            if digest not in self._known and _digest(path) != digest:
                path.unlink()
                return None
            os.utime(path)
        except OSError:
            return None
        self._known.add(digest)
        return path

    def add(self, digest: str, receive: Callable[[Callable[[Data], object]], None]) -> None:
        """Store what `receive(take)` passes to `take`, part by part, under its SHA-256. Raises
        Error, after all was received, where it has another SHA-256 or cannot be written.
        """
        try:
            handle, half = tempfile.mkstemp(prefix=_HALF, dir=self.folder)
        except OSError as e:
            receive(lambda part: None)
            raise _unkept(e) from e
        try:
            self._write(handle, receive, digest)
            os.replace(half, self.folder / f"{digest}{_WHOLE}")
        except OSError as e:
            raise _unkept(e) from e
        finally:
            with suppress(FileNotFoundError):
                os.unlink(half)
        self._known.add(digest)
        self._make_room(digest)

    def _write(
        self, handle: int, receive: Callable[[Callable[[Data], object]], None], wanted: str
    ) -> None:
        found = hashlib.sha256()
        failed: list[OSError] = []
        with os.fdopen(handle, "wb", buffering=0) as file:

            def take(part: Data) -> None:
                found.update(part)
                try:
                    rest = memoryview(part)
                    while rest and not failed:
                        rest = rest[file.write(rest) :]
                except OSError as e:  # the other parts are on their way and must be read
                    failed.append(e)

            receive(take)
            if failed:
                raise failed[0]
            os.fsync(file.fileno())
        if found.hexdigest() != wanted:
            raise Error("the artifact did not arrive as it was sent", hint="send it again")

    def _make_room(self, kept: str) -> None:
        """Remove the least recently used, except the newest."""
        with self._lock:
            files = []
            for path in self.folder.glob(f"*{_WHOLE}"):
                with suppress(OSError):
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            size = sum(s for _, s, _ in files)
            for _, bytes_, path in sorted(files):
                if size <= self.most_bytes or path.stem == kept:
                    continue
                path.unlink(missing_ok=True)
                self._known.discard(path.stem)
                size -= bytes_


def _unkept(error: OSError) -> Error:
    return Error(f"the device cannot keep the artifact ({error.strerror or error})")


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            found.update(part)
    return found.hexdigest()
