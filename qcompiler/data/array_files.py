"""A .npy or .npz file -> its arrays by name: shapes at once, rows on demand, so that only one
sample is in memory at a time. Nothing is ever unpickled.
"""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from qcompiler.dtypes import Array, Dim
from qcompiler.errors import Error

Take = Callable[[int], Array]
"""Returns the next rows of an array."""


@dataclass(frozen=True)
class Table:
    """An array that is read from its first row to its last; its file stays open as long as the
    stack does.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    rows: Callable[[ExitStack], Take]


def spell(shape: Sequence[Dim]) -> str:
    """A shape as text for errors: [1,3,n]."""
    return f"[{','.join(map(str, shape))}]"


def tables_of_file(path: Path) -> dict[str, Table]:
    """A .npy file -> its array under the file's name; a .npz file -> its arrays by name."""
    where = path.name
    demand_file(path)
    if path.suffix == ".npy":
        return {path.stem: _npy_table(lambda: path.open("rb"), path.stat().st_size, where)}
    if path.suffix != ".npz":
        raise Error("unknown kind of data", where=where, hint="give .npz, .npy or a folder of them")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            if any(m.flag_bits & 1 for m in members):
                raise Error("encrypted", where=where)
    except _DAMAGED as e:
        raise Error(f"not a .npz file ({e})", where=where) from e
    return {
        m.filename[: -len(".npy")]: _npy_table(
            lambda m=m: _open_member(path, m),  # type: ignore[misc]
            m.file_size,
            f"{where}, array {m.filename[: -len('.npy')]!r}",
        )
        for m in members
    }


def demand_file(path: Path) -> None:
    """Raise Error unless the path is a regular file: reading a pipe could block forever."""
    if not path.is_file():
        raise Error("not a file", where=path.name)


def _open_member(path: Path, member: zipfile.ZipInfo) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:  # the open member keeps the file open
        return archive.open(member)


_DAMAGED = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions that zipfile and numpy's header reader raise, or may raise, for damaged files."""


def _npy_table(open_file: Callable[[], IO[bytes]], size: int, where: str) -> Table:
    """A .npy file of `size` bytes -> its header at once, its rows on demand."""
    try:
        with open_file() as file:
            shape, dtype = _npy_header(file, where)
            begin = file.tell()
    except _DAMAGED as e:
        raise Error(f"not an array of numbers ({e})", where=where) from e
    if prod(shape) * dtype.itemsize != size - begin:
        raise Error(f"{size - begin} bytes where {dtype}{spell(shape)} needs others", where=where)

    def rows(files: ExitStack) -> Take:
        file = files.enter_context(open_file())
        _npy_header(file, where)

        def take(count: int) -> Array:
            part = (count, *shape[1:]) if shape else ()
            try:
                data = file.read(prod(part) * dtype.itemsize)
                return np.frombuffer(data, dtype).reshape(part)
            except _DAMAGED as e:
                raise Error(f"damaged ({e})", where=where) from e

        return take

    return Table(shape, dtype, rows)


def _npy_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise Error(f"npy format {version} is not supported", where=where)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject or dtype.fields:
        raise Error("it holds Python objects or records, not numbers", where=where)
    if by_columns and len(shape) > 1:
        raise Error("stored by columns", where=where, hint="save numpy.ascontiguousarray(array)")
    if any(d < 0 for d in shape):
        raise Error("negative dimension", where=where)
    return shape, dtype
