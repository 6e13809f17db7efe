"""What hardware is, as plain values: instruction sets with their multiply-accumulate tiles, and
devices.

Nothing here or elsewhere in qcompiler/ names an instruction set: the files under targets/ make
these values, and kernels ask them ("how many lanes?", "is there a u8 x i8 product?").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qcompiler import cpu
from qcompiler.core import REFERENCE, Core
from qcompiler.errors import Error

MacKey = tuple[str, str, str]
"""(left dtype, right dtype, sum dtype): ("u8", "i8", "i32"), ("bf16", "bf16", "f32"), ("f32",
"f32", "f32").
"""
EVERY_SIZE = frozenset((1, 2, 4, 8))
"""Of elements, in bytes."""


@dataclass(frozen=True)
class Mac:
    """A multiply-accumulate instruction (or a short sequence): sums[rows, lanes] += left[rows, k] *
    right[k, lanes].

    rows == 1: a vector instruction. `emit(sums, left, right)` takes and returns TIR vector
    expressions: `lanes` sums, the left operand's k values broadcast to every lane, and lanes x k
    right values (k innermost). rows > 1: a tile instruction on numbered tile registers.
    `emit(sum_tile, left_tile, right_tile)` gives a statement. `exact` is False when the instruction
    can saturate on the way (then right values must stay within 7 bits); its two halves are then
    `pairs(left, right)`, the sums of two products in 16 bits, and `join(sums, pairs)`, which adds
    them in 32. `temporaries` are vector registers that the sequence needs besides its operands'.
    """

    lanes: int
    k: int
    emit: Callable[..., Any]
    rows: int = 1
    tiles: int = 0
    exact: bool = True
    temporaries: int = 0
    pairs: Callable[..., Any] | None = None
    join: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Isa:
    """An instruction set: what LLVM is told, what the CPU must report, and its registers and
    products.

    `intrinsics` maps the name of a vector operation that kernels may ask for ("round_to_int",
    "quantize", "tile_load") to the function that emits it; kernels have a plain way for those an
    instruction set lacks. `permission` is a system call, its number first, that gives a process
    registers which it has only when it asks; the artifact's own code makes it (emit/entries.py).
    """

    name: str
    triple: str
    llvm: tuple[str, ...]
    cpu_flags: frozenset[str]
    registers: int
    vector_bytes: int
    mac: Mapping[MacKey, Mac] = field(default_factory=dict)
    intrinsics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    permission: tuple[int, ...] = ()
    extends: Isa | None = None
    masked: frozenset[int] = EVERY_SIZE
    """Sizes of elements, in bytes, of which a part of a vector is loaded and stored under a mask;
    parts of others are moved in pieces."""

    def lanes(self, itemsize: int = 4) -> int:
        """Elements of this many bytes in one vector register."""
        return self.vector_bytes // itemsize

    def vector_mac(self, key: MacKey) -> Mac | None:
        """The nearest product in the lineage whose left operand is one row."""
        mac = self.mac.get(key)
        if mac is not None and mac.rows == 1:
            return mac
        return self.extends.vector_mac(key) if self.extends else None

    @property
    def lacks(self) -> tuple[str, ...]:
        """What this machine does not have of all that it needs: features of the CPU, or, where
        those are there, the permission to use them.
        """
        missing = tuple(sorted(self.cpu_flags - cpu.features()))
        if missing or cpu.granted(self.permission):
            return missing
        return ("the system's permission",)

    @property
    def lineage(self) -> tuple[str, ...]:
        """Its own name, then the names of all it extends."""
        return (self.name, *(self.extends.lineage if self.extends else ()))


ISAS: dict[str, Isa] = {}


def isa(
    name: str,
    *,
    extends: Isa | None = None,
    triple: str = "",
    llvm: str = "",
    cpu_flags: str = "",
    registers: int = 0,
    vector_bytes: int = 0,
    mac: Mapping[MacKey, Mac] | None = None,
    intrinsics: Mapping[str, Callable[..., Any]] | None = None,
    permission: tuple[int, ...] = (),
    masked: frozenset[int] | None = None,
) -> Isa:
    """Register an instruction set; what is left out is taken from the one it extends."""
    if name in ISAS:
        raise ValueError(f"instruction set {name} is defined twice")
    base = extends
    ISAS[name] = Isa(
        name=name,
        triple=triple or (base.triple if base else ""),
        llvm=(base.llvm if base else ()) + tuple(llvm.split()),
        cpu_flags=(base.cpu_flags if base else frozenset()) | frozenset(cpu_flags.split()),
        registers=registers or (base.registers if base else 0),
        vector_bytes=vector_bytes or (base.vector_bytes if base else 0),
        mac={**(base.mac if base else {}), **(mac or {})},
        intrinsics={**(base.intrinsics if base else {}), **(intrinsics or {})},
        permission=permission or (base.permission if base else ()),
        extends=base,
        masked=(base.masked if base else EVERY_SIZE) if masked is None else masked,
    )
    return ISAS[name]


@dataclass(frozen=True)
class Device:
    """What code is made for: an instruction set, threads, caches, what a core does in a cycle."""

    name: str
    isa: Isa
    threads: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    l3_bytes: int = 8 << 20
    core: Core = REFERENCE


def host(threads: int = 0) -> Device:
    """This machine, with the richest instruction set whose every feature the CPU reports and the
    system lets this process use.
    """
    fitting = [i for i in ISAS.values() if i.cpu_flags and not i.lacks]
    if not fitting:
        raise Error("no instruction set in targets/ fits this CPU", hint="see `qcompiler targets`")
    best = max(fitting, key=lambda i: (i.vector_bytes, len(i.lineage), len(i.cpu_flags)))
    return on_host(best, threads)


def on_host(isa: Isa, threads: int = 0) -> Device:
    """This machine's cores and caches, held to an instruction set."""
    return Device(
        name="host",
        isa=isa,
        threads=threads or cpu.cores(),
        l1_bytes=cpu.cache_bytes(1) or 32 << 10,
        l2_bytes=cpu.cache_bytes(2) or 1 << 20,
        l3_bytes=cpu.cache_bytes(3) or 8 << 20,
    )
