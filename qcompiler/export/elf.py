"""Bytes of an ELF file <-> its sections, symbols and relocations, as values.

Little-endian files of 32 and 64 bits, relocatable ones and shared libraries, as LLVM and linkers
write them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

RELOCATABLE = 1
PROGBITS, SYMTAB, STRTAB, RELA, NOBITS, REL, DYNSYM, GROUP = 1, 2, 3, 4, 8, 9, 11, 17
WRITE, ALLOC, EXECUTE, IN_GROUP = 1, 2, 4, 0x200
LOCAL, GLOBAL, WEAK = 0, 1, 2
NO_TYPE, OBJECT, FUNCTION, SECTION, FILE = 0, 1, 2, 3, 4
UNDEFINED, ABSOLUTE = -1, -2
"""In place of a section's number."""
_FIRST_SPECIAL, _ABS = 0xFF00, 0xFFF1


@dataclass(frozen=True)
class Relocation:
    """At an offset in its section is a value that depends on a symbol, by its number; `addend` is
    None where the bytes there hold it.
    """

    offset: int
    symbol: int
    kind: int
    addend: int | None


@dataclass(frozen=True)
class Section:
    """A section: bytes, or `size` zeros that the file does not hold."""

    name: str
    kind: int
    flags: int
    data: bytes
    size: int
    align: int = 1
    address: int = 0
    entry_bytes: int = 0
    relocations: tuple[Relocation, ...] = ()


@dataclass(frozen=True)
class Symbol:
    """A name of `size` bytes at an offset in a section (in a shared library: at an address)."""

    name: str
    section: int
    value: int = 0
    size: int = 0
    kind: int = NO_TYPE
    bind: int = GLOBAL
    other: int = 0


@dataclass(frozen=True)
class Elf:
    """A file: its machine and flags, sections, and symbols; the first symbol is the null one."""

    bits: int
    machine: int
    flags: int
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...] = field(default=(Symbol("", UNDEFINED, bind=LOCAL),))


@dataclass(frozen=True)
class _Form:
    """The layout of records in files of 32 or 64 bits."""

    bits: int
    header: struct.Struct
    section: struct.Struct
    rel: struct.Struct
    rela: struct.Struct
    symbol: struct.Struct

    def symbol_fields(self, raw: Sequence[int]) -> tuple[int, int, int, int, int, int]:
        """(name, value, size, info, other, section) from a record of either layout."""
        if self.bits == 64:
            name, info, other, section, value, size = raw
        else:
            name, value, size, info, other, section = raw
        return name, value, size, info, other, section

    def symbol_bytes(self, name: int, s: Symbol, section: int) -> bytes:
        """A symbol's record."""
        info = s.bind << 4 | s.kind
        if self.bits == 64:
            return self.symbol.pack(name, info, s.other, section, s.value, s.size)
        return self.symbol.pack(name, s.value, s.size, info, s.other, section)

    @property
    def shift(self) -> int:
        """The bit at which a relocation's word holds its symbol."""
        return 32 if self.bits == 64 else 8


_S = struct.Struct
_FORMS = {
    2: _Form(64, _S("<16sHHIQQQIHHHHHH"), _S("<IIQQQQIIQQ"), _S("<QQ"), _S("<QQq"), _S("<IBBHQQ")),
    1: _Form(32, _S("<16sHHIIIIIHHHHHH"), _S("<IIIIIIIIII"), _S("<II"), _S("<IIi"), _S("<IIIBBH")),
}


def read(data: bytes, symbols: int = SYMTAB) -> Elf:
    """The bytes of a file -> what they say; `symbols`: which table of symbols counts. Raises
    ValueError for what is no little-endian ELF file.
    """
    if data[:4] != b"\x7fELF" or data[4] not in _FORMS or data[5] != 1:
        raise ValueError("no little-endian ELF file")
    form = _FORMS[data[4]]
    _, _, machine, _, _, _, at, flags, _, _, _, size, count, names_at = form.header.unpack_from(
        data
    )
    raw = [form.section.unpack_from(data, at + i * size) for i in range(count)]
    bodies = [b"" if r[1] == NOBITS else data[r[4] : r[4] + r[5]] for r in raw]
    relocations: dict[int, list[Relocation]] = {}
    for i, r in enumerate(raw):
        if r[1] in (REL, RELA):
            relocations.setdefault(r[7], []).extend(_relocations(form, bodies[i], r[1]))
    sections = tuple(
        Section(
            _text(bodies[names_at], r[0]),
            *(r[1], r[2], bodies[i], r[5], max(1, r[8]), r[3], r[9]),
            tuple(relocations.get(i, ())),
        )
        for i, r in enumerate(raw)
    )
    tables = [i for i, r in enumerate(raw) if r[1] == symbols]
    found: list[Symbol] = []
    for i in tables:
        found += _symbols(form, bodies[i], bodies[raw[i][6]])
    return Elf(form.bits, machine, flags, sections, tuple(found))


def _relocations(form: _Form, body: bytes, kind: int) -> Iterator[Relocation]:
    record = form.rela if kind == RELA else form.rel
    mask = (1 << form.shift) - 1
    for offset, info, *addend in record.iter_unpack(body):
        yield Relocation(offset, info >> form.shift, info & mask, addend[0] if addend else None)


def _symbols(form: _Form, body: bytes, names: bytes) -> Iterator[Symbol]:
    for raw in form.symbol.iter_unpack(body):
        name, value, size, info, other, section = form.symbol_fields(raw)
        if section == 0:
            section = UNDEFINED
        elif section >= _FIRST_SPECIAL:
            section = ABSOLUTE if section == _ABS else UNDEFINED
        yield Symbol(_text(names, name), section, value, size, info & 15, info >> 4, other)


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()


class _Names:
    """A growing table of names."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")

    def at(self, name: str) -> int:
        """Add a name -> its offset."""
        if not name:
            return 0
        self.data += name.encode() + b"\0"
        return len(self.data) - len(name.encode()) - 1


def write(elf: Elf) -> bytes:
    """A relocatable file's sections and symbols -> its bytes. Adds section 0 and the tables:
    symbols number `elf.sections` from 0, the file from 1. Local symbols must come first.
    """
    form = _FORMS[elf.bits // 32]
    names, strings = _Names(), _Names()
    heads: list[tuple[Section, int, int]] = [(s, 0, 0) for s in elf.sections]
    symtab = len(elf.sections) + 1
    body = b"".join(_symbol(form, strings, s) for s in elf.symbols)
    first_global = sum(s.bind == LOCAL for s in elf.symbols)
    word = elf.bits // 8
    tables = [
        (_table(".symtab", SYMTAB, body, word, form.symbol.size), symtab + 1, first_global),
        (_table(".strtab", STRTAB, bytes(strings.data), 1, 0), 0, 0),
    ]
    heads += tables
    for i, section in enumerate(elf.sections):
        if section.relocations:
            heads.append((_relocation_table(form, section), symtab, i + 1))
    heads.append((_table(".shstrtab", STRTAB, b"", 1, 0), 0, 0))
    marks = [names.at(s.name) for s, _, _ in heads]
    heads[-1] = (_table(".shstrtab", STRTAB, bytes(names.data), 1, 0), 0, 0)
    out = bytearray(form.header.size)
    records = [form.section.pack(*[0] * 10)]
    for mark, (s, link, info) in zip(marks, heads, strict=True):
        out += bytes(-len(out) % s.align)
        records.append(
            form.section.pack(
                mark, s.kind, s.flags, 0, len(out), s.size, link, info, s.align, s.entry_bytes
            )
        )
        out += s.data
    out += bytes(-len(out) % word)
    ident = bytes((0x7F, 0x45, 0x4C, 0x46, elf.bits // 32, 1, 1)).ljust(16, b"\0")
    out[: form.header.size] = form.header.pack(
        *(ident, RELOCATABLE, elf.machine, 1, 0, 0, len(out), elf.flags),
        *(form.header.size, 0, 0, form.section.size, len(records), len(records) - 1),
    )
    return bytes(out) + b"".join(records)


def _table(name: str, kind: int, body: bytes, align: int, entry_bytes: int) -> Section:
    return Section(name, kind, 0, body, len(body), align, entry_bytes=entry_bytes)


def _symbol(form: _Form, strings: _Names, s: Symbol) -> bytes:
    section = {UNDEFINED: 0, ABSOLUTE: _ABS}.get(s.section, s.section + 1)
    return form.symbol_bytes(strings.at(s.name), s, section)


def _relocation_table(form: _Form, section: Section) -> Section:
    explicit = section.relocations[0].addend is not None
    record = form.rela if explicit else form.rel
    body = b"".join(
        record.pack(r.offset, r.symbol << form.shift | r.kind, *([r.addend] if explicit else []))
        for r in section.relocations
    )
    name = (".rela" if explicit else ".rel") + section.name
    kind = RELA if explicit else REL
    return _table(name, kind, body, form.bits // 8, record.size)
