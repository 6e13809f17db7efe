"""Hardware as plain values: instruction sets with their products, and devices.

Nothing in qcompiler/ names an instruction set: the files under targets/ make these values, and
kernels ask them ("how many lanes?", "is there a u8 x i8 product?").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qcompiler.errors import Error
from qcompiler.hardware import cpu
from qcompiler.hardware.core import REFERENCE, Core
from qcompiler.hardware.gpu import Gpu, Multiprocessor
from qcompiler.hardware.products import (
    BlockMac,
    Mac,
    MacKey,
    ShortMac,
    TileMac,
    VectorMac,
    WarpMac,
    sizes,
)

EVERY_SIZE = frozenset((1, 2, 4, 8))
"""Sizes of elements in bytes."""


@dataclass(frozen=True)
class Isa:
    """An instruction set: LLVM's name of it, what the CPU must report, its registers and products.

    `intrinsics` maps the name of a vector operation that kernels may use ("round_to_int",
    "quantize", "tile_load") to the function that emits it; kernels have plain code for those that
    are missing. "quantize" takes two or four float32 vectors, an int32 zero point of at most 15
    bits (None: 0) and a dtype, uint8 or int8 -> as many bytes: rounded to nearest even, the zero
    point added, clipped; NaN gives the least (`bounded`: all are within 1e9; `numbers`: none is
    NaN). "quantize_short" does the same, faster for numbers of which none is NaN and all fit int16
    when they are rounded (`short`), or for int8 with a zero point of -128 (`least`). "again" makes
    a pointer of another, through which integers that sums begin with are loaded once more for each
    row, rather than copied. "half_maximum" and "half_minimum" take two vectors of float16 -> the
    larger and the smaller numbers, NaN if either is NaN. "compared" makes a vector of floats that
    is compared of another, where LLVM would not compare all as they are. `permission` is a system
    call (its number, then arguments) that requests registers which a process gets only on request;
    the artifact's own code makes it (emit/entries.py).
    """

    name: str
    triple: str
    llvm: tuple[str, ...]
    cpu_flags: frozenset[str]
    registers: int
    vector_bytes: int
    macs: tuple[Mac, ...] = ()
    """Its own products, besides those of what it extends."""
    short: ShortMac | None = None
    """The product of constants with short sums."""
    intrinsics: Mapping[str, Callable[..., Any]] = field(default_factory=dict, hash=False)
    permission: tuple[int, ...] = ()
    extends: Isa | None = None
    masked: frozenset[int] = EVERY_SIZE
    """Sizes of elements, in bytes, whose partial vectors are loaded and stored under a mask; those
    of other sizes are moved in pieces."""
    preference: int = 0
    """Of those that a CPU can run, one of the highest is chosen: by the compiler for its own
    machine, and by the runtime from an artifact of several."""
    family: str = ""
    """One artifact may be made for all instruction sets of a family, called FAMILY:all."""
    multiprocessor: Multiprocessor | None = None
    """What one multiprocessor holds; None for CPUs."""

    def __post_init__(self) -> None:
        for mac in self.macs:
            held = mac.lanes * sizes(mac.key)[2]
            if not isinstance(mac, TileMac | WarpMac) and held != self.vector_bytes:
                raise ValueError(f"{self.name}: {mac.key} has {held} bytes of sums in a vector")
        if self.short and self.short.lanes * sizes(self.short.key)[0] != self.vector_bytes:
            raise ValueError(f"{self.name}: {self.short.lanes} short sums in a vector")

    def lanes(self, itemsize: int = 4) -> int:
        """Elements of this many bytes in one vector register."""
        return self.vector_bytes // itemsize

    def vector(self, key: MacKey, *, exact: bool | None = None) -> VectorMac | None:
        """The nearest vector product in the lineage; `exact`: whether it must be exact or may
        saturate (None: either).
        """
        for mac in self.inherited:
            if isinstance(mac, VectorMac) and mac.key == key and exact in (None, mac.exact):
                return mac
        return None

    def block(self, key: MacKey) -> BlockMac | None:
        """The nearest product of blocks inside vectors."""
        return next((m for m in self.inherited if isinstance(m, BlockMac) and m.key == key), None)

    def tile(self, key: MacKey) -> TileMac | None:
        """The nearest product of tile registers."""
        return next((m for m in self.inherited if isinstance(m, TileMac) and m.key == key), None)

    def warp(self, key: MacKey) -> WarpMac | None:
        """The nearest product of a warp's matrices."""
        return next((m for m in self.inherited if isinstance(m, WarpMac) and m.key == key), None)

    def best_product(self, keys: Sequence[MacKey]) -> Mac | None:
        """The best product of any of these dtypes: exact before saturating, then by the products of
        an instruction, then in the order of the keys.

        Of `BYTE_PRODUCTS`, its left dtype is the best one for activations.
        """
        found = [mac for key in keys for mac in self.inherited if mac.key == key]
        return max(found, key=lambda mac: (mac.exact, mac.multiplies), default=None)

    @property
    def inherited(self) -> tuple[Mac, ...]:
        """Its own products, then those of all it extends."""
        return self.macs + (self.extends.inherited if self.extends else ())

    @property
    def lacks(self) -> tuple[str, ...]:
        """What it needs and this machine lacks: features of the CPU, or else the permission to use
        them.
        """
        if self.multiprocessor is not None:
            return ("a GPU",)
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
    macs: Sequence[Mac] = (),
    short: ShortMac | None = None,
    intrinsics: Mapping[str, Callable[..., Any] | None] | None = None,
    permission: tuple[int, ...] = (),
    masked: frozenset[int] | None = None,
    preference: int | None = None,
    family: str = "",
    multiprocessor: Multiprocessor | None = None,
) -> Isa:
    """Register an instruction set; what is left out is inherited from the one it extends, to which
    it is preferred. An intrinsic that is None is not inherited: there is something better.
    """
    if name in ISAS:
        raise ValueError(f"instruction set {name} is defined twice")
    base = extends
    if base and preference is not None and preference <= base.preference:
        raise ValueError(f"instruction set {name} is not preferred to {base.name}")
    merged = {**(base.intrinsics if base else {}), **(intrinsics or {})}
    ISAS[name] = Isa(
        name=name,
        triple=triple or (base.triple if base else ""),
        llvm=(base.llvm if base else ()) + tuple(llvm.split()),
        cpu_flags=(base.cpu_flags if base else frozenset()) | frozenset(cpu_flags.split()),
        registers=registers or (base.registers if base else 0),
        vector_bytes=vector_bytes or (base.vector_bytes if base else 0),
        macs=tuple(macs),
        short=short or (base.short if base else None),
        intrinsics={n: f for n, f in merged.items() if f is not None},
        permission=permission or (base.permission if base else ()),
        extends=base,
        masked=(base.masked if base else EVERY_SIZE) if masked is None else masked,
        preference=(base.preference + 1 if base else 0) if preference is None else preference,
        family=family or (base.family if base else ""),
        multiprocessor=multiprocessor or (base.multiprocessor if base else None),
    )
    return ISAS[name]


def family(name: str) -> list[Isa]:
    """A family's name -> its instruction sets, the most preferred last. Raises Error for unknown
    families.
    """
    found = [i for i in ISAS.values() if i.family == name]
    if not found or not name:
        known = dict.fromkeys(i.family for i in ISAS.values() if i.family)
        raise Error(
            f"unknown family of instruction sets {name!r}", hint=f"one of {', '.join(known)}"
        )
    return sorted(found, key=lambda i: i.preference)


@dataclass(frozen=True)
class Cpu:
    """A CPU: an instruction set, threads, caches, and facts of a core."""

    name: str
    isa: Isa
    threads: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    l3_bytes: int = 8 << 20
    core: Core = REFERENCE

    def moved_seconds(self, size: float) -> float:
        """Seconds to move so many bytes sequentially, on one core."""
        return 1e-9 * self.core.moved_ns(size)


Device: TypeAlias = Cpu | Gpu
"""What code is made for; kernels are registered for one kind of device (kernels/registry.py)."""


def host(threads: int = 0) -> Cpu:
    """This machine, with the most preferred instruction set that its CPU supports and the system
    permits.
    """
    fitting = [i for i in ISAS.values() if i.cpu_flags and not i.lacks]
    if not fitting:
        raise Error("no instruction set in targets/ fits this CPU", hint="see `qcompiler targets`")
    best = max(fitting, key=lambda i: i.preference)
    return on_host(best, threads)


def on_host(isa: Isa, threads: int = 0) -> Cpu:
    """This machine's cores and caches, restricted to an instruction set."""
    return Cpu(
        name="host",
        isa=isa,
        threads=threads or cpu.cores(),
        l1_bytes=cpu.cache_bytes(1) or 32 << 10,
        l2_bytes=cpu.cache_bytes(2) or 1 << 20,
        l3_bytes=cpu.cache_bytes(3) or 8 << 20,
    )
