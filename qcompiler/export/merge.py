"""Relocatable files -> one that exports only given symbols, as by `ld -r` and then
`objcopy --keep-global-symbol`, but without a linker for every machine.

Sections stay as they are, one after the other. A symbol that one file defines and another uses
becomes local, so two models in one program do not collide.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qcompiler.errors import Error
from qcompiler.export.elf import (
    ALLOC,
    FILE,
    GLOBAL,
    IN_GROUP,
    LOCAL,
    OBJECT,
    PROGBITS,
    UNDEFINED,
    WEAK,
    Elf,
    Relocation,
    Section,
    Symbol,
)

_ATTRIBUTES = 0x70000003
"""Kind of the section that describes calling conventions and the required processor."""
_UNWINDING = (".eh_frame", ".ARM.exidx", ".ARM.extab")
_STACK = Section(".note.GNU-stack", PROGBITS, 0, b"", 0)
"""Marks the stack as not executable."""


def merge(files: Sequence[Elf], shown: Mapping[str, str]) -> Elf:
    """Relocatable files -> one; `shown`: symbols that stay global, and their new names. Raises
    Error where two files define one name.
    """
    made = _Merged(shown)
    chosen = _definitions(files)
    for number, file in enumerate(files):
        made.add(number, file, chosen)
    return _used(made.elf(files[0]))


def undefined(file: Elf) -> set[str]:
    """The names that a file needs from others."""
    used = {r.symbol for s in file.sections for r in s.relocations}
    return {
        s.name
        for i, s in enumerate(file.symbols)
        if s.section == UNDEFINED and i in used and s.name
    }


def _definitions(files: Sequence[Elf]) -> dict[str, int]:
    """Every global name -> the file whose definition counts, strong before weak."""
    strong: dict[str, int] = {}
    weak: dict[str, int] = {}
    for number, file in enumerate(files):
        for s in file.symbols:
            if s.section == UNDEFINED or s.bind == LOCAL:
                continue
            if s.bind == WEAK:
                weak.setdefault(s.name, number)
            elif strong.setdefault(s.name, number) != number:
                raise Error(f"two object files define {s.name}")
    return {**weak, **strong}


@dataclass
class _Merged:
    """The growing file; local and global symbols are numbered separately until it is complete."""

    shown: Mapping[str, str]
    sections: list[Section] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """The file of each section."""
    locals: list[Symbol] = field(default_factory=list)
    globals: dict[str, Symbol] = field(default_factory=dict)
    numbers: dict[tuple[int, int], tuple[str, int] | str] = field(default_factory=dict)
    """(file, its symbol) -> the number of a local symbol, or the name of a global one."""
    common: dict[str, int] = field(default_factory=dict)
    """Names that became local -> their numbers."""

    def add(self, number: int, file: Elf, chosen: Mapping[str, int]) -> None:
        """Add a file's sections and symbols."""
        moved = self._sections(number, file)
        for i, symbol in enumerate(file.symbols):
            here = symbol.section if symbol.section < 0 else moved.get(symbol.section)
            if i == 0 or symbol.kind == FILE or here is None:
                continue
            placed = replace(symbol, section=here)
            if symbol.bind == LOCAL:
                self.numbers[number, i] = ("", self._local(placed))
                continue
            self.numbers[number, i] = symbol.name
            if symbol.section != UNDEFINED and chosen[symbol.name] == number:
                self._define(placed)
            elif symbol.name not in chosen:
                self.globals.setdefault(symbol.name, placed)

    def _sections(self, number: int, file: Elf) -> dict[int, int]:
        moved: dict[int, int] = {}
        known = any(s.kind == _ATTRIBUTES for s in self.sections)
        for i, s in enumerate(file.sections):
            attributes = s.kind == _ATTRIBUTES and not known
            if attributes or (s.flags & ALLOC and s.size and not s.name.startswith(_UNWINDING)):
                moved[i] = len(self.sections)
                self.sections.append(replace(s, flags=s.flags & ~IN_GROUP))
                self.owners.append(number)
        return moved

    def _local(self, symbol: Symbol) -> int:
        self.locals.append(replace(symbol, bind=LOCAL, other=0))
        return len(self.locals)

    def _define(self, symbol: Symbol) -> None:
        if symbol.name in self.shown:
            name = self.shown[symbol.name]
            self.globals[symbol.name] = replace(symbol, name=name, bind=GLOBAL, other=0)
        else:
            self.common[symbol.name] = self._local(symbol)

    def elf(self, like: Elf) -> Elf:
        """The complete file."""
        order = {name: 1 + len(self.locals) + i for i, name in enumerate(self.globals)}

        def moved(owner: int, relocation: Relocation) -> Relocation:
            found = self.numbers[owner, relocation.symbol]
            if isinstance(found, tuple):
                return replace(relocation, symbol=found[1])
            at = self.common[found] if found in self.common else order[found]
            return replace(relocation, symbol=at)

        sections = [
            replace(s, relocations=tuple(moved(owner, r) for r in s.relocations))
            for s, owner in zip(self.sections, self.owners, strict=True)
        ]
        null = Symbol("", UNDEFINED, bind=LOCAL)
        symbols = (null, *self.locals, *self.globals.values())
        return Elf(like.bits, like.machine, like.flags, (*sections, _STACK), symbols)


def _used(file: Elf) -> Elf:
    """The file without sections and symbols that no exported symbol reaches."""
    live = _reached(file)
    sections = {old: new for new, old in enumerate(sorted(live))}
    wanted = {r.symbol for i in live for r in file.sections[i].relocations}

    def stays(number: int, symbol: Symbol) -> bool:
        if symbol.section == UNDEFINED:
            return number == 0 or number in wanted
        return symbol.section in live or number in wanted

    kept = [i for i, s in enumerate(file.symbols) if stays(i, s)]
    numbers = {old: new for new, old in enumerate(kept)}
    return replace(
        file,
        sections=tuple(_renumbered(file.sections[i], numbers) for i in sorted(live)),
        symbols=tuple(
            replace(s, section=sections.get(s.section, s.section))
            for s in (file.symbols[i] for i in kept)
        ),
    )


def _renumbered(section: Section, numbers: Mapping[int, int]) -> Section:
    moved = tuple(replace(r, symbol=numbers[r.symbol]) for r in section.relocations)
    return replace(section, relocations=moved)


def _reached(file: Elf) -> set[int]:
    """The sections that exported symbols are in or refer to, and those that take no memory."""
    live = {i for i, s in enumerate(file.sections) if not s.flags & ALLOC}
    todo = {s.section for s in file.symbols if s.bind == GLOBAL and s.section >= 0}
    while todo:
        at = todo.pop()
        live.add(at)
        used = {file.symbols[r.symbol].section for r in file.sections[at].relocations}
        todo |= {i for i in used if i >= 0} - live
    return live


def data(name: str, section: str, content: bytes, align: int, like: Elf) -> Elf:
    """Bytes -> a file that holds them, read-only, under a name; for the same machine as `like`."""
    kept = Section(section, PROGBITS, ALLOC, content, len(content), align)
    named = Symbol(name, 0, 0, len(content), OBJECT, GLOBAL)
    null = Symbol("", UNDEFINED, bind=LOCAL)
    return Elf(like.bits, like.machine, like.flags, (kept,), (null, named))


def sized(file: Elf, flags: int) -> int:
    """Bytes of all sections that have exactly these of the flags WRITE, ALLOC and EXECUTE."""
    return sum(s.size for s in file.sections if s.flags & 7 == flags)


def names(file: Elf, kinds: Collection[int]) -> dict[str, int]:
    """Defined symbols of some kinds -> their sizes."""
    return {s.name: s.size for s in file.symbols if s.kind in kinds and s.section != UNDEFINED}
