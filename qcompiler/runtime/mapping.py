"""The bytes of a shared library <-> the library, mapped into this process.

The loader wants a file. That is an anonymous one in memory where the kernel has such, which needs
no folder to write to and none whose files may be executed; else one in a temporary folder, which is
gone once it is mapped.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path

from qcompiler.errors import Error

_MFD_CLOEXEC, _MFD_EXEC = 1, 0x10  # linux/uapi/linux/memfd.h
_FOLDERS = ("/dev/shm", "/var/tmp")
"""Where else to try when the temporary folder is of no use."""

_counter = itertools.count()


def mapped(code: bytes) -> ctypes.CDLL:
    """A shared library's bytes -> the library; every call maps it anew. Raises Error with what the
    loader said of each place that was tried.
    """
    said = []
    for place in _places():
        try:
            with place(code) as path:
                return ctypes.CDLL(path)
        except OSError as e:
            said.append(f"{e}")
    raise Error(f"the machine code cannot be loaded: {'; '.join(dict.fromkeys(said))}")


def unmapped(library: ctypes.CDLL) -> None:
    """Give a library back; nobody may be in it, or call it again."""
    _libc().dlclose(ctypes.c_void_p(library._handle))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _places() -> Iterator[Callable[[bytes], AbstractContextManager[str]]]:
    yield _in_memory
    for folder in (None, *_FOLDERS):
        yield partial(_in_folder, folder=folder)


@contextmanager
def _in_memory(code: bytes) -> Iterator[str]:
    """A library's bytes -> the path of an anonymous file."""
    file = _anonymous_file()
    try:
        rest = memoryview(code)
        while rest:
            rest = rest[os.write(file, rest) :]
        yield _new_path(file)
    finally:
        os.close(file)


def _anonymous_file() -> int:
    """An empty file in memory that may be executed; OSError where there is none."""
    create = getattr(_libc(), "memfd_create", None)
    if create is None:
        raise OSError("this C library has no memfd_create")
    for flags in (_MFD_CLOEXEC | _MFD_EXEC, _MFD_CLOEXEC):  # Linux before 6.3 knows no MFD_EXEC
        file = int(create(b"qcompiler", flags))
        if file >= 0:
            return file
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error))


def _new_path(file: int) -> str:
    """A descriptor -> a path of it that was never used before.

    The loader takes a path that it knows for the library it knows by it, without looking, and a
    descriptor's number is used again. So a number that counts up is spelled, bit by bit, with
    slashes and dots that mean nothing.
    """
    spelled = "".join("/." if bit == "1" else "/" for bit in f"{next(_counter):b}")
    return f"/proc/self/fd{spelled}/{file}"


@contextmanager
def _in_folder(code: bytes, folder: str | None) -> Iterator[str]:
    """A library's bytes -> the path of a file in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-", dir=folder) as made:
        path = Path(made) / "code.so"
        path.write_bytes(code)
        yield str(path)
