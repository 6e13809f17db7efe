"""The shared library of an artifact -> an object file of the same machine code.

The code of an artifact needs no addresses from a loader except those of the C functions it calls.
So its image runs anywhere as one section, in which stubs that jumped to those functions through a
table jump to them directly. Other code is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qcompiler.errors import Error
from qcompiler.export.elf import (
    ALLOC,
    DYNSYM,
    EXECUTE,
    FUNCTION,
    GLOBAL,
    LOCAL,
    PROGBITS,
    UNDEFINED,
    WRITE,
    Elf,
    Relocation,
    Section,
    Symbol,
    read,
)

_PAGE = 4096
_TABLES = (".dynamic", ".got", ".got.plt", ".relro_padding")
"""Writable sections that only a loader writes."""
_TEAM = frozenset(("sem_init", "sem_wait", "sem_post", "sched_yield"))
"""Functions that only a thread team calls, never a thread alone."""
_HINT = "export the model itself, not its artifact"


@dataclass(frozen=True)
class _Stubs:
    """How a machine's stubs jump. `slot`: relocation of their table's slots; `find(image, base,
    slot)`: offset of a slot's stub; `jump`: a direct jump, relocated at `at` by `kind` and
    `addend`; `stop`: bytes that stop the program.
    """

    slot: int
    find: Callable[[bytes, int, int], int | None]
    jump: bytes
    at: int
    kind: int
    addend: int
    stop: bytes


def _x86(image: bytes, base: int, slot: int) -> int | None:
    """jmp *slot(%rip)"""
    at = -1
    while (at := image.find(b"\xff\x25", at + 1)) >= 0:
        (offset,) = struct.unpack_from("<i", image, at + 2)
        if base + at + 6 + offset == slot:
            return at
    return None


def _aarch64(image: bytes, base: int, slot: int) -> int | None:
    """adrp x16, page of slot; ldr x17, [x16, its offset]; ..."""
    for at in range(0, len(image) - 4, 4):
        first, second = struct.unpack_from("<II", image, at)
        if first & 0x9F00001F != 0x90000010 or second & 0xFFC003FF != 0xF9400211:
            continue
        pages = (first >> 5 & 0x7FFFF) << 2 | first >> 29 & 3
        pages -= (pages & 1 << 20) << 1
        page = (base + at) // _PAGE + pages
        if page * _PAGE + (second >> 10 & 0xFFF) * 8 == slot:
            return at
    return None


_MACHINES: Mapping[int, _Stubs] = {
    62: _Stubs(7, _x86, b"\xe9\0\0\0\0", 1, 4, -4, b"\x0f\x0b"),
    183: _Stubs(1026, _aarch64, struct.pack("<I", 0x14000000), 0, 282, 0, b"\0\0\x20\xd4"),
}


def unlink(code: bytes) -> Elf:
    """A shared library's bytes -> an object file of the same symbols. Raises Error where its code
    needs more from a loader than C functions.
    """
    library = read(code, DYNSYM)
    stubs = _MACHINES.get(library.machine)
    if stubs is None:
        raise Error("no artifact of this machine can be taken apart", hint=_HINT)
    _demand_plain(library, stubs)
    kept = [s for s in library.sections if _is_image(s)]
    base = min(s.address for s in kept) // _PAGE * _PAGE
    image = bytearray(max(s.address + s.size for s in kept) - base)
    for s in kept:
        image[s.address - base : s.address - base + s.size] = s.data
    return _object(library, stubs, image, base)


def _is_image(s: Section) -> bool:
    unwinding = s.name.startswith(".eh_frame")
    return s.kind == PROGBITS and s.flags & (ALLOC | WRITE) == ALLOC and not unwinding


def _demand_plain(library: Elf, stubs: _Stubs) -> None:
    for s in library.sections:
        if s.flags & WRITE and s.size and s.name not in _TABLES:
            raise Error(f"the code keeps variables of its own ({s.name})", hint=_HINT)
        if any(r.kind != stubs.slot for r in s.relocations):
            raise Error("a loader has to fill in addresses of its code", hint=_HINT)


def _object(library: Elf, stubs: _Stubs, image: bytearray, base: int) -> Elf:
    defined = [
        replace(s, section=0, value=s.value - base, kind=FUNCTION, bind=GLOBAL, other=0)
        for s in library.symbols
        if s.section != UNDEFINED and s.name
    ]
    symbols = [Symbol("", UNDEFINED, bind=LOCAL), *defined]
    relocations = []
    for r in (r for s in library.sections for r in s.relocations):
        name = library.symbols[r.symbol].name
        at = stubs.find(bytes(image), base, r.offset)
        if at is None:
            raise Error(f"the code calls {name} in no known way", hint=_HINT)
        if name in _TEAM:
            image[at : at + len(stubs.stop)] = stubs.stop
            continue
        image[at : at + len(stubs.jump)] = stubs.jump
        relocations.append(Relocation(at + stubs.at, len(symbols), stubs.kind, stubs.addend))
        symbols.append(Symbol(name, UNDEFINED))
    whole = Section(
        *(".text", PROGBITS, ALLOC | EXECUTE, bytes(image), len(image), _PAGE),
        relocations=tuple(relocations),
    )
    return Elf(library.bits, library.machine, library.flags, (whole,), tuple(symbols))
