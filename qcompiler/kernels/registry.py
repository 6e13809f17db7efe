"""An operator's name -> the generators that can make code for it, and the best kernel for a region.

    @candidates("conv")
    def direct(region: Region, device: Device) -> Iterable[Candidate] | Skip

A generator says in how many ways it could make the kernel, and what each would take by the model of
the device's core, or why it cannot; no code is written before one of them is chosen. The least
predicted seconds win, among all generators of an operator, or what a tuner has measured to be best
(tune/records.py). One that has neither choices nor rivals is written as the function that makes its
kernel:

    @kernel("Softmax")
    def softmax(region: Region, device: Device) -> Kernel | Skip

What they are handed is sealed (facts.py): nothing that is not in the region's key is within reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial, wraps
from heapq import nsmallest
from typing import Any, ClassVar, Protocol, TypeVar

from qcompiler.errors import Skip, Unfit
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Array
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.region import Region

__all__ = [
    "GENERATORS",
    "Candidate",
    "Generator",
    "Kernel",
    "Region",
    "candidates",
    "choose",
    "kernel",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Kernel:
    """A generated kernel.

    `func` is a TIR PrimFunc; its parameters are raw pointers: one for each of the region's inputs
    (in order), the output, then, if `scratch_bytes` > 0, a 64-byte aligned scratch area of that
    many bytes in all (the kernel divides it among its tasks). It returns int32 0. `pack` maps the
    position of a constant input to the function that lays its array out as this kernel reads it,
    once, at compile time. `tasks` is how many threads it can use (1: no parallel launch).
    """

    name: str
    func: Any
    pack: Mapping[int, Callable[[Array], Array]] = field(default_factory=dict)
    scratch_bytes: int = 0
    tasks: int = 1
    macs: int = 0
    in_place: tuple[int, ...] = ()
    """Inputs whose memory the output may take over (each element is read before its own is
    written).
    """

    def __post_init__(self) -> None:
        """Pointers are told to be of different memories, except where the output may take one over.

        TVM gives every pointer of such a function a type of memory of its own, so LLVM believes it
        of whatever it inlines the function into as well: callers stand in other modules
        (emit/machine.py).
        """
        object.__setattr__(self, "func", self.func.with_attr("tirx.noalias", not self.in_place))


_BEYOND = "Literal value"
"""Part of what TVM says of a number that its 32-bit type does not hold."""

TOLD = 3
"""So many of a generator's candidates, the best, are remembered."""


class Knobs(Protocol):
    """What a generator decides: a frozen dataclass of whole numbers and words."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class Fixed:
    """The knobs of a generator that has none."""


Setting = Mapping[str, int | str]
"""Knobs by name, as a file holds them."""


def setting(knobs: Knobs) -> Setting:
    """Knobs -> what a file holds of them."""
    return asdict(knobs)


@dataclass(frozen=True)
class Candidate:
    """One way to make a region's kernel, and the seconds that it is predicted to take. `build`
    makes it, and may find only then that it cannot.
    """

    knobs: Knobs
    seconds: float
    build: Callable[[], Kernel | Skip]


Ways = Callable[[Region, Device], Iterable[Candidate] | Skip]
Make = Callable[[Region, Device], Kernel | Skip]


@dataclass(frozen=True)
class Generator:
    """A registered generator. Its `version` rises when its knobs come to mean other code: what was
    measured of them before counts no longer.
    """

    name: str
    ways: Ways
    version: int = 1
    kind: type[Device] = Cpu
    """The kind of device that it makes code for; it is not asked for others."""


GENERATORS: dict[str, list[Generator]] = {}
"""By operator ("elementwise" for regions without a root)."""


class Records(Protocol):
    """What a tuner has measured."""

    def best(self, region: str, device: Device, generator: str, version: int) -> Record | None:
        """The best knobs of a generator for a region's key on a device, if any were measured."""


@dataclass(frozen=True)
class Record:
    """Knobs, and the seconds that they were measured to take."""

    knobs: Setting
    seconds: float


def candidates(*ops: str, version: int = 1, kind: type[Device] = Cpu) -> Callable[[Ways], Ways]:
    """Register a generator, for a kind of device, for regions whose root is one of `ops` (see
    `op_of`).

    What is returned seals the region that it is given, so there is no other way to the generator,
    and builds only what finds its operands as it packs them.
    """

    def register(generate: Ways) -> Ways:
        @wraps(generate)
        def guarded(region: Region, device: Device) -> Iterable[Candidate] | Skip:
            region = sealed(region, device)
            found = _fitting(partial(generate, region, device))
            if isinstance(found, Skip):
                return found
            return (Candidate(c.knobs, c.seconds, partial(_built, region, c.build)) for c in found)

        for op in ops:
            entry = Generator(generate.__name__, guarded, version, kind)
            GENERATORS.setdefault(op, []).append(entry)
        return guarded

    return register


def kernel(*ops: str, version: int = 1, kind: type[Device] = Cpu) -> Callable[[Make], Make]:
    """Register the function that makes the kernels of its operators, as the one candidate there is;
    what is returned makes them at once.
    """

    def register(make: Make) -> Make:
        @candidates(*ops, version=version, kind=kind)
        @wraps(make)
        def one(region: Region, device: Device) -> Iterable[Candidate]:
            return [Candidate(Fixed(), streamed(region, device), partial(make, region, device))]

        @wraps(make)
        def made(region: Region, device: Device) -> Kernel | Skip:
            (candidate,) = one(region, device)  # type: ignore[misc]  # never a Skip
            return candidate.build()

        return made

    return register


def streamed(region: Region, device: Device) -> float:
    """Seconds to move what a region reads and writes, on one core."""
    return 1e-9 * device.core.moved_ns(sum(n.type.bytes for n in (*region.inputs, region.output)))


def _fitting(make: Callable[[], T | Skip]) -> T | Skip:
    """What a generator makes; a Skip also where it finds out deep inside that it cannot."""
    try:
        return make()
    except Unfit as e:
        return Skip(str(e))
    except ValueError as e:
        if _BEYOND not in str(e):
            raise
        return Skip("a size or an offset is beyond 32 bits")


def _built(region: Region, build: Callable[[], Kernel | Skip]) -> Kernel | Skip:
    made = _fitting(build)
    return made if isinstance(made, Skip) else mispacked(made, region) or made


def mispacked(made: Kernel, region: Region) -> Skip | None:
    """Why a kernel would not find its operands laid out as it packs them; None if it will.

    Only constants are packed, and what the anchor wants packed nobody else in the region reads.
    """
    root = region.root
    for i in made.pack:
        node = region.inputs[i]
        if not node.is_constant:
            return Skip(f"{node.type} is no constant, and it is read packed")
        if root is None or node not in root.operands:
            continue
        readers = [n for n in region.nodes for o in n.operands if o is node]
        if len(readers) > 1:
            return Skip(f"{node.type} is read packed, and as it is")
    return None


@dataclass(frozen=True)
class Offer:
    """A generator's candidate."""

    generator: str
    candidate: Candidate

    def same(self, other: Offer) -> bool:
        """Is it the same kernel?"""
        mine, its = self.candidate.knobs, other.candidate.knobs
        return (self.generator, mine) == (other.generator, its)


@dataclass(frozen=True)
class Decision:
    """A region's kernel (or why there is none), and how it came to be."""

    kernel: Kernel | Skip
    chosen: Offer | None = None
    recorded: bool = False
    """Was it chosen by a record, not by the model?"""
    lost: tuple[Offer, ...] = ()
    """The best candidates that were not chosen."""
    skips: tuple[tuple[str, str], ...] = ()
    """(generator, why it cannot make the kernel)."""


def choose(region: Region, device: Device, records: Records | None = None) -> Decision:
    """The kernel that is recorded to be fastest, or else predicted to be."""
    region = sealed(region, device)
    offers: list[Offer] = []
    measured: list[tuple[float, Offer]] = []
    skips: list[tuple[str, str]] = []
    asked = [g for g in GENERATORS.get(op_of(region), []) if isinstance(device, g.kind)]
    for generator in sorted(asked, key=lambda g: g.name, reverse=True):  # of equals: the last
        found = generator.ways(region, device)
        if isinstance(found, Skip):
            skips.append((generator.name, found.reason))
            continue
        if records is not None:
            found = list(found)
            measured += _measured(found, generator, region, device, records)
        best = nsmallest(TOLD, found, key=lambda c: c.seconds)
        if not best:
            skips.append((generator.name, "nothing that it could choose fits"))
        offers += [Offer(generator.name, c) for c in best]
    offers.sort(key=lambda o: o.candidate.seconds)
    known = [o for _, o in sorted(measured, key=lambda m: m[0])]
    return _first_built(region, known, offers, skips)


def _measured(
    found: Sequence[Candidate],
    generator: Generator,
    region: Region,
    device: Device,
    records: Records,
) -> list[tuple[float, Offer]]:
    """Of a generator's candidates the one that is recorded to be best, with its measured time."""
    record = records.best(region.key, device, generator.name, generator.version)
    if record is None:
        return []
    same = (c for c in found if setting(c.knobs) == record.knobs)
    return [(record.seconds, Offer(generator.name, c)) for c in same][:1]


def op_of(region: Region) -> str:
    """What generators are registered for: the root's operator, "elementwise" without a root, "item
    of Split" for an output of a node that has several.
    """
    root = region.root
    if root is None:
        return "elementwise"
    return f"item of {root.operands[0].op}" if root.op == "item" else root.op


def _first_built(
    region: Region, known: Sequence[Offer], offers: list[Offer], skips: list[tuple[str, str]]
) -> Decision:
    """The first that can be made of those `known` to be best, then of all the others."""
    unfit: list[Offer] = []
    for i, offer in enumerate((*known, *offers)):
        made = offer.candidate.build()
        if isinstance(made, Kernel):
            lost = tuple(o for o in offers if not o.same(offer) and not any(map(o.same, unfit)))
            return Decision(made, offer, i < len(known), lost, tuple(skips))
        skips.append((offer.generator, made.reason))
        unfit.append(offer)
    reasons = "; ".join(f"{n}: {r}" for n, r in skips) or "no generator is registered"
    why = Skip(f"no kernel for {op_of(region)} -> {region.output.type} ({reasons})")
    return Decision(why, skips=tuple(skips))
