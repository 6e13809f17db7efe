"""The bytes of a shared library <-> the library, mapped into this process.

The loader needs a file: an anonymous one in memory where the kernel offers that, which needs no
writable folder and no permission to execute files there; else one in a temporary folder, which is
deleted once mapped.
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
"""Tried when the temporary folder cannot be used."""

_counter = itertools.count()


def mapped(code: bytes) -> ctypes.CDLL:
    """A shared library's bytes -> the library; every call maps it anew. Raises Error with the
    loader's message for each place tried.
    """
    failures = []
    for place in _places():
        try:
            with place(code) as path:
                return ctypes.CDLL(path)
        except OSError as e:
            failures.append(f"{e}")
    raise Error(f"the machine code cannot be loaded: {'; '.join(dict.fromkeys(failures))}")


def unmapped(library: ctypes.CDLL) -> None:
    """Unload a library, which no thread may be executing or call again."""
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
    """An empty executable file in memory; OSError where the system has none."""
    create = getattr(_libc(), "memfd_create", None)
    if create is None:
        raise OSError("this C library has no memfd_create")
    for flags in (_MFD_CLOEXEC | _MFD_EXEC, _MFD_CLOEXEC):  # Linux before 6.3 has no MFD_EXEC
        file = int(create(b"qcompiler", flags))
        if file >= 0:
            return file
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error))


def _new_path(file: int) -> str:
    """A descriptor -> a path to it that was never used before.

    The loader takes a path that it has seen for the library it loaded from there, without looking,
    and descriptors are reused. So a counter is spelled in the path, bit by bit, as slashes and dots
    that change nothing.
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
