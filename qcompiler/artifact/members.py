"""Named bytes <-> a zip of stored members, each at a multiple of 64 bytes.

What is read is hashed as it comes, so the bytes that are used are those that were checked.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import queue
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qcompiler.artifact.abi import ALIGN
from qcompiler.errors import Error

_PADDING_FIELD = 0xD935  # the zip extra field that Android's zipalign uses for alignment
_LARGE_BYTES = 1 << 30  # zip has two forms of header; zipfile takes the small one up to 2 GiB
_MAX_TEXT_BYTES = 64 << 20
_CHUNK = 1 << 20  # read and hashed at once: stays in a cache between the two
_ASIDE_BYTES = 4 << 20  # from here on a thread pays, and memory of its own

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """Where a member's data lies in its file, in bytes."""

    name: str
    offset: int
    size: int


def layout(file: BinaryIO, text: str, others: Sequence[str]) -> tuple[bytes, dict[str, Place]]:
    """A file of one member of text and others -> the text, and where all members lie.

    Raises ValueError or one of zipfile's errors where they do not lie as they should.
    """
    end = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sorted(e.filename for e in entries) != sorted((text, *others)):
            raise ValueError("its members are not those of an artifact")
        stored = (e.compress_type == zipfile.ZIP_STORED for e in entries)
        if not all(stored) or any(e.file_size != e.compress_size for e in entries):
            raise ValueError("a member is compressed")
        if archive.getinfo(text).file_size > _MAX_TEXT_BYTES:
            raise ValueError(f"{text} is too large")
        words = archive.read(text)
        places = [Place(e.filename, _data_offset(file, e), e.file_size) for e in entries]
    for place in places:
        if place.offset % ALIGN or place.offset + place.size > end:
            raise ValueError(f"{place.name} is out of place")
    return words, {place.name: place for place in places}


def _data_offset(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header, whose extra field has a length of its
    own.
    """
    file.seek(entry.header_offset)
    header = file.read(30)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(entry.header_offset) + 30 + int(name) + int(extra)


class Member:
    """A member's bytes, read in order and hashed as they come; `digest` is what their SHA-256 has
    to be.
    """

    def __init__(self, file: BinaryIO, place: Place, where: str, digest: str) -> None:
        self._file, self._where, self._digest = file, where, digest
        self._hash = hashlib.sha256()
        self._at = place.offset
        self.name, self.size = place.name, place.size

    def fill(self, into: Bytes) -> None:
        """The next bytes, as many as there is room for; ValueError where the file has ended."""
        view = into.data
        self._file.seek(self._at)
        self._at += len(view)
        with _aside(self._hash.update, len(view) >= _ASIDE_BYTES) as hashed:
            for at in range(0, len(view), _CHUNK):
                part = view[at : at + _CHUNK]
                self._read(part)
                hashed(part)

    def _read(self, part: memoryview) -> None:
        done = 0
        while done < len(part):
            count = self._file.readinto(part[done:])  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"{self.name} ends early")
            done += count

    def pass_over(self) -> None:
        """All bytes are hashed, and none kept."""
        scratch = np.empty(min(_CHUNK, self.size), np.uint8)
        for at in range(0, self.size, _CHUNK):
            self.fill(scratch[: self.size - at])

    def bytes(self) -> bytes:
        """All of them."""
        data = np.empty(self.size, np.uint8)
        self.fill(data)
        return data.tobytes()

    def check(self) -> None:
        """Raise Error unless what was read is what was compiled."""
        if self._hash.hexdigest() != self._digest:
            raise Error(
                f"{self.name} is not what was compiled: its SHA-256 differs from the manifest's",
                where=self._where,
                hint="the file was changed or damaged; compile the model again",
            )


@contextmanager
def _aside(
    work: Callable[[memoryview], None], worth: bool
) -> Iterator[Callable[[memoryview], None]]:
    """A function -> the same, done in order by a thread of its own until the block ends: reading
    and hashing then take as long as the slower one. Where that is not worth it, or no thread is to
    be had, the function itself.
    """
    parts: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()

    def run() -> None:
        while (part := parts.get()) is not None:
            work(part)

    thread = threading.Thread(target=run, name="qcompiler-hash", daemon=True)
    if worth:
        try:
            thread.start()
        except RuntimeError:
            worth = False
    if not worth:
        yield work
        return
    try:
        yield parts.put
    finally:
        parts.put(None)
        thread.join()


def aligned(size: int) -> Bytes:
    """Zeros at a multiple of 64 bytes. Many are in memory of their own, in huge pages where there
    are such: kernels stream through weights, and 4 KiB pages cost them 2 to 4 % in address lookups.
    """
    if size >= _ASIDE_BYTES and hasattr(mmap, "MAP_ANONYMOUS"):
        own = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            own.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(own, np.uint8)
    raw = np.zeros(size + ALIGN, np.uint8)
    skip = -int(raw.__array_interface__["data"][0]) % ALIGN
    return raw[skip : skip + size]


def write(file: BinaryIO, members: Mapping[str, memoryview]) -> None:
    """Members -> the zip, at the beginning of an empty file."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)  # its default date, 1980: equal inputs give equal files
            large = len(data) >= _LARGE_BYTES
            header = file.tell() + 30 + len(name) + (20 if large else 0) + 4
            padding = -header % ALIGN
            info.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
            info.file_size = len(data)
            with archive.open(info, "w", force_zip64=large) as member:
                member.write(data)
    file.flush()
