"""A cubin -> what its functions take of a multiprocessor, as NVIDIA's compiler wrote it there."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_REGISTERS, _FRAME = 0x2F, 0x11
"""Attributes of the section .nv.info: EIATTR_REGCOUNT and EIATTR_FRAME_SIZE, each of a symbol."""
_SIZED = 4
"""Format of an attribute that has as many bytes as it says."""


@dataclass
class Taken:
    """Registers of a thread, and the bytes of memory of its own where those did not suffice."""

    registers: int = 0
    frame_bytes: int = 0


def taken(code: bytes) -> dict[str, Taken]:
    """A cubin -> what its functions take, by name; empty for another kind of ELF file."""
    sections = _sections(code)
    if ".nv.info" not in sections:
        return {}
    names = _symbols(code, sections)
    found: dict[str, Taken] = {}
    for attribute, symbol, value in _attributes(sections[".nv.info"]):
        own = found.setdefault(names[symbol], Taken())
        if attribute == _REGISTERS:
            own.registers = value
        elif attribute == _FRAME:
            own.frame_bytes = value
    return found


def _sections(code: bytes) -> dict[str, bytes]:
    """The sections that have contents, by name."""
    (table,) = struct.unpack_from("<Q", code, 40)
    size, count, strings = struct.unpack_from("<HHH", code, 58)
    heads = [struct.unpack_from("<IIQQQQ", code, table + i * size) for i in range(count)]
    words = heads[strings][4]
    bodies = {}
    for name, kind, _, _, offset, length in heads:
        if kind != 8:  # no bits in the file
            at = words + name
            bodies[code[at : code.index(0, at)].decode()] = code[offset : offset + length]
    return bodies


def _symbols(code: bytes, sections: dict[str, bytes]) -> list[str]:
    words = sections[".strtab"]
    starts = [at for (at, *_) in struct.iter_unpack("<IBBHQQ", sections[".symtab"])]
    return [words[at : words.index(0, at)].decode() for at in starts]


def _attributes(info: bytes) -> Iterator[tuple[int, int, int]]:
    """(attribute, symbol, value) of those that are of a symbol."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == _SIZED:
            if size == 8:
                yield attribute, *struct.unpack_from("<II", info, at)
            at += size
