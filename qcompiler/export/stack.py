"""Machine code -> the most bytes of stack that a run takes, without functions of C that it calls.

Functions take stack where they begin, by a few instructions of known form: what all of these in a
function take together, it takes at most, for no loop moves the stack pointer. A run is the entry,
the functions between, and one kernel at a time.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import zip_longest

from qcompiler.export.elf import FUNCTION, UNDEFINED, Elf

_PIECE = re.compile(r"qcompiler_piece\d+")
"""Functions that call kernels, one after the other (emit/native.py)."""
_NEVER = frozenset(("qcompiler_launch", "qcompiler_work", "qcompiler_signature"))
"""Functions in an artifact's code that the runtime calls, and no run from C."""


class _Unknown(Exception):
    """The stack pointer moves by a number that is not in the code."""


def most(file: Elf, kernels: Collection[str]) -> int | None:
    """A file's code, and the names of its kernels -> bytes; None where they cannot be told."""
    frame = _FRAMES.get(file.machine)
    if frame is None:
        return None
    groups: dict[str, int] = {}
    try:
        for name, code, thumb in _functions(file):
            if name in _NEVER:
                continue
            group = _group(name, kernels)
            groups[group] = max(groups.get(group, 0), (_thumb if thumb else frame)(code))
    except _Unknown:
        return None
    return sum(groups.values())


def _group(name: str, kernels: Collection[str]) -> str:
    """Functions of one group are never active at the same time."""
    if re.sub(r"_phase\d+$", "", name) in kernels or name in kernels:
        return "kernels"
    return "pieces" if _PIECE.fullmatch(name) else f"the function {name}"


def _functions(file: Elf) -> Iterator[tuple[str, bytes, bool]]:
    """Every function: its name, its code with what follows up to the next one, and whether that is
    of 16-bit instructions (then its address is odd).
    """
    data = _data(file)
    odd = 1 if file.machine == _ARM else 0
    functions = [s for s in file.symbols if s.kind == FUNCTION and s.section != UNDEFINED]
    functions.sort(key=lambda s: (s.section, s.value))
    for symbol, after in zip_longest(functions, functions[1:]):
        at = symbol.value & ~odd
        end = at + symbol.size
        if after is not None and after.section == symbol.section:
            end = max(end, after.value & ~odd)
        code = bytearray(file.sections[symbol.section].data[at:end])
        for first, last in data.get(symbol.section, []):
            low, high = max(first - at, 0), min(last - at, len(code))
            if low < high:
                code[low:high] = bytes(high - low)
        yield symbol.name, bytes(code), bool(symbol.value & odd)


def _data(file: Elf) -> dict[int, list[tuple[int, int]]]:
    """Constants among ARM's code, which the symbols $d and $a, $t, $x tell apart: by section."""
    marks: dict[int, list[tuple[int, bool]]] = {}
    for s in file.symbols:
        if re.match(r"\$[datx](\.|$)", s.name) and s.section != UNDEFINED:
            marks.setdefault(s.section, []).append((s.value & ~1, s.name[1] == "d"))
    found: dict[int, list[tuple[int, int]]] = {}
    for section, given in marks.items():
        ends = [*(at for at, _ in sorted(given)[1:]), file.sections[section].size]
        spans = zip(sorted(given), ends, strict=True)
        found[section] = [(at, end) for (at, is_data), end in spans if is_data]
    return found


def _x86(code: bytes) -> int:
    """Seven pushes, the return address, what functions may use below the stack pointer, and what is
    subtracted from it (sub, lea) or cut off to align it (and).
    """
    total = 8 * 8 + 128
    for found in re.finditer(rb"\x48(?:\x83\xec|\x81\xec|\x83\xe4|\x81\xe4|\x8d\x64\x24)", code):
        short = found[0][1] == 0x83 or found[0][1:2] == b"\x8d"
        taken = code[found.end() : found.end() + (1 if short else 4)]
        if len(taken) == (1 if short else 4):
            value = int.from_bytes(taken, "little", signed=True)
            wanted = value if found[0][2] == 0xEC else -value
            total += wanted if 0 < wanted < 1 << 24 and wanted % 8 == 0 else 0
    for found in re.finditer(rb"\x48\x8d\xa4\x24(....)", code, re.DOTALL):
        total += max(-int.from_bytes(found[1], "little", signed=True), 0)
    return total


_PAIRS = {0xA9800000: 8, 0x6D800000: 8, 0xAD800000: 16, 0x29800000: 4, 0x2D800000: 4}
"""stp with a smaller address left in the base, of pairs of registers of so many bytes."""
_SINGLES = {0xF8000C00, 0xFC000C00, 0x3C800C00, 0xB8000C00, 0xBC000C00}
"""str, the same."""


def _aarch64(code: bytes) -> int:
    """sub, stp and str that move sp; and, which aligns it."""
    total = 0
    for (word,) in struct.iter_unpack("<I", code[: len(code) // 4 * 4]):
        base = word >> 5 & 31
        if base == 31 and word & 0xFF800000 == 0xD1000000:  # sub x, sp, #n
            total += (word >> 10 & 0xFFF) << (12 if word & 1 << 22 else 0)
        elif word & 0xFFE0001F == 0xCB20001F:  # sub sp, x, x
            raise _Unknown
        elif word & 0xFFC0001F == 0x9240001F:  # and sp, x, #n
            total += 1 << (64 - (word >> 16 & 63))
        elif base == 31 and word & 0xFFC00000 in _PAIRS:
            total += -_signed(word >> 15, 7) * _PAIRS[word & 0xFFC00000]
        elif base == 31 and word & 0xFFE00C00 in _SINGLES:
            total += -_signed(word >> 12, 9)
    return total


def _signed(value: int, bits: int) -> int:
    """The lowest bits of a number, of which the first is the sign."""
    value &= (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def _arm(code: bytes) -> int:
    """stmdb, vpush, str, strd and sub that move sp; bfc, which aligns it."""
    total = 0
    for (word,) in struct.iter_unpack("<I", code[: len(code) // 4 * 4]):
        if word & 0xFFFF0000 == 0xE92D0000:
            total += 4 * bin(word & 0xFFFF).count("1")
        elif word & 0xFFBF0E00 == 0xED2D0A00:
            total += 4 * (word & 0xFF)
        elif word & 0xFFFF0000 == 0xE52D0000:
            total += word & 0xFFF
        elif word & 0xFFFF00F0 == 0xE16D00F0:
            total += (word >> 4 & 0xF0) | (word & 15)
        elif word & 0xFFFF0000 == 0xE24D0000:  # sub r, sp, #n
            total += _rotated(word & 0xFF, 2 * (word >> 8 & 15))
        elif word & 0xFFFFF000 == 0xE04DD000:  # sub sp, sp, r
            raise _Unknown
        elif word & 0xFFE00FFF == 0xE7C0001F:  # bfc r, #0, #n
            total += _aligned(word >> 16 & 31)
    return total


def _rotated(value: int, by: int) -> int:
    return (value >> by | value << 32 - by) & 0xFFFFFFFF


def _thumb(code: bytes) -> int:
    """push, vpush, str, strd and sub that move sp; bfc, which aligns it: 16 or 32 bits each."""
    total, at = 0, 0
    halves = [h for (h,) in struct.iter_unpack("<H", code[: len(code) // 2 * 2])]
    while at < len(halves):
        first = halves[at]
        wide = first >> 11 in (0b11101, 0b11110, 0b11111)
        if not wide:
            if first & 0xFE00 == 0xB400:
                total += 4 * bin(first & 0x1FF).count("1")
            elif first & 0xFF80 == 0xB080:
                total += 4 * (first & 0x7F)
        elif at + 1 < len(halves):
            total += _wide(first, halves[at + 1])
        at += 2 if wide else 1
    return total


def _wide(first: int, second: int) -> int:
    """An instruction of 32 bits -> bytes that it takes."""
    if first == 0xE92D:
        return 4 * bin(second).count("1")
    if first & 0xFFBF == 0xED2D and second & 0x0E00 == 0x0A00:
        return 4 * (second & 0xFF)
    if first == 0xF84D and second & 0x0F00 == 0x0D00:
        return second & 0xFF
    if first == 0xE96D:
        return 4 * (second & 0xFF)
    if first & 0xFBFF == 0xF2AD and not second & 0x8000:  # subw r, sp, #n
        return (first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF
    if first & 0xFBEF == 0xF1AD and not second & 0x8000:  # sub r, sp, #n
        return _expanded((first >> 10 & 1) << 11 | (second >> 12 & 7) << 8 | second & 0xFF)
    if first == 0xEBAD and second & 0x0F00 == 0x0D00:  # sub sp, sp, r
        raise _Unknown
    if first == 0xF36F and not second & 0xF0C0:  # bfc r, #0, #n
        return _aligned(second & 31)
    return 0


def _aligned(highest: int) -> int:
    """The highest bit that is cleared -> bytes that an address loses; no stack has so many that
    more than eight are.
    """
    return 2 << highest if highest < 8 else 0


def _expanded(bits: int) -> int:
    """Twelve bits -> the number that they stand for (ThumbExpandImm)."""
    low, kind = bits & 0xFF, bits >> 8 & 3
    if bits >> 10 == 0:
        return low * (1, 0x00010001, 0x01000100, 0x01010101)[kind]
    return _rotated(0x80 | low & 0x7F, bits >> 7)


_ARM = 40
_FRAMES: Mapping[int, Callable[[bytes], int]] = {62: _x86, 183: _aarch64, _ARM: _arm}
"""Machines, as an ELF file says -> bytes that a function takes at most. Those of RISC-V may take
vectors whose length only the processor knows.
"""
