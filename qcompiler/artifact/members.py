"""A zip of stored members, each at a multiple of 64 bytes -> named bytes.

Bytes are hashed as they are read, so the bytes that are used are those that were checked.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import queue
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.abi import ALIGN
from qcompiler.errors import Error

_MAX_TEXT_BYTES = 64 << 20
_CHUNK = 1 << 20  # stays in a cache between reading and hashing
_ASIDE_BYTES = 4 << 20  # from here on a thread pays, and mapped memory

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """Where a member's data lies in its file, in bytes."""

    name: str
    offset: int
    size: int


def layout(file: BinaryIO, text: str) -> tuple[bytes, dict[str, Place]]:
    """A file whose member `text` is text -> that text, and where all members lie.

    Raises ValueError or one of zipfile's errors where the layout is wrong.
    """
    end = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        stored = (e.compress_type == zipfile.ZIP_STORED for e in entries)
        if not all(stored) or any(e.file_size != e.compress_size for e in entries):
            raise ValueError("a member is compressed")
        if archive.getinfo(text).file_size > _MAX_TEXT_BYTES:
            raise ValueError(f"{text} is too large")
        words = archive.read(text)
        places = {
            e.filename: Place(e.filename, _data_offset(file, e), e.file_size) for e in entries
        }
    if len(places) < len(entries):
        raise ValueError("two members have one name")
    for place in places.values():
        if place.offset % ALIGN or place.offset + place.size > end:
            raise ValueError(f"{place.name} is out of place")
    return words, places


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes start, after its local header, whose extra field varies in length."""
    file.seek(entry.header_offset)
    header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(entry.header_offset) + 30 + int(name) + int(extra)


Consumer = Callable[[memoryview], None]
"""Takes bytes part by part, in order."""


class Member:
    """A member's bytes, which may be read from any offset."""

    def __init__(self, file: BinaryIO, place: Place) -> None:
        self._file, self._place = file, place
        self.name, self.size = place.name, place.size

    def fill(self, into: Bytes, at: int = 0, consume: Consumer | None = None) -> None:
        """Fill `into` with its bytes from `at` on; `consume` gets each part while it is in a cache.
        Raises ValueError where the member ends early.
        """
        view = into.data
        if at + len(view) > self.size:
            raise ValueError(f"{self.name} ends early")
        self._file.seek(self._place.offset + at)
        for begin in range(0, len(view), _CHUNK):
            part = view[begin : begin + _CHUNK]
            self._read(part)
            if consume is not None:
                consume(part)

    def _read(self, part: memoryview) -> None:
        done = 0
        while done < len(part):
            count = self._file.readinto(part[done:])  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"{self.name} ends early")
            done += count

    @property
    def digest(self) -> str:
        """The SHA-256 of the member's bytes."""
        found = hashlib.sha256()
        scratch = np.empty(min(_CHUNK, self.size), np.uint8)
        for at in range(0, self.size, _CHUNK):
            self.fill(scratch[: self.size - at], at, found.update)
        return found.hexdigest()


def parts(view: memoryview) -> Iterator[memoryview]:
    """Bytes -> the parts that `Member.fill` reads them in."""
    return (view[at : at + _CHUNK] for at in range(0, len(view), _CHUNK))


def changed(name: str, where: str) -> Error:
    """The Error of a member whose digest differs."""
    return Error(
        f"{name} is not what was compiled: its SHA-256 differs from the manifest's",
        where=where,
        hint="the file was changed or damaged; compile the model again",
    )


@contextmanager
def aside(size: int) -> Iterator[Callable[[Consumer, memoryview], None]]:
    """A function (consumer, bytes) that calls consumers in order in another thread, until the block
    ends: reading and hashing `size` bytes then take only as long as the slower of both. Where they
    are few, or no thread can be started, it calls them at once.
    """
    todo: queue.SimpleQueue[tuple[Consumer, memoryview] | None] = queue.SimpleQueue()

    def run() -> None:
        while (item := todo.get()) is not None:
            item[0](item[1])

    thread = threading.Thread(target=run, name="qcompiler-hash", daemon=True)
    worth = size >= _ASIDE_BYTES
    if worth:
        try:
            thread.start()
        except RuntimeError:
            worth = False
    if not worth:
        yield lambda consume, part: consume(part)
        return
    try:
        yield lambda consume, part: todo.put((consume, part))
    finally:
        todo.put(None)
        thread.join()


def aligned(size: int) -> Bytes:
    """Zeros at a multiple of 64 bytes. Large ones are mapped, in huge pages if possible: kernels
    stream through weights, and 4 KiB pages cost them 2 to 4 % in address translation.
    """
    if size >= _ASIDE_BYTES and hasattr(mmap, "MAP_ANONYMOUS"):
        own = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            own.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(own, np.uint8)
    raw = np.zeros(size + ALIGN, np.uint8)
    skip = -int(raw.__array_interface__["data"][0]) % ALIGN
    return raw[skip : skip + size]
