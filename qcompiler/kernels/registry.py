"""An operator's name -> the generators that can make code for it, and the best kernel for a region.

    @candidates("conv")
    def direct(region: Region, device: Device) -> Iterable[Candidate] | Skip

A generator offers the ways in which it could make the kernel, with the time of each by the model of
the device's core, or says why it cannot; no code is made before one is chosen. The least predicted
time among all generators of an operator wins, or what a tuner has measured to be fastest
(tune/records.py). A generator without choices or rivals is written as the function that makes its
kernel:

    @kernel("Softmax")
    def softmax(region: Region, device: Device) -> Kernel | Skip

They get sealed regions (facts.py), and can read nothing that is not in the region's key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    "After",
    "Candidate",
    "Generator",
    "Grid",
    "Kernel",
    "Region",
    "candidates",
    "choose",
    "kernel",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Grid:
    """How a GPU starts a kernel: blocks along x, y and z, and threads of a block."""

    blocks: tuple[int, int, int]
    threads: int
    shared_bytes: int = 0
    """Shared memory of a block."""

    def __post_init__(self) -> None:
        x, y, z = self.blocks
        if not (1 <= x < 1 << 31 and 1 <= y < 1 << 16 and 1 <= z < 1 << 16):
            raise Unfit(f"a grid of {x} x {y} x {z} blocks")
        if not 1 <= self.threads <= 1024:
            raise Unfit(f"a block of {self.threads} threads")


@dataclass(frozen=True)
class After:
    """A function of a kernel's pointers that a GPU starts when all blocks before it have ended."""

    func: Any
    grid: Grid


@dataclass(frozen=True)
class Kernel:
    """A generated kernel.

    `func` is a TIR PrimFunc; its parameters are raw pointers: one for each of the region's inputs
    (in order), the output, then, if `scratch_bytes` > 0, a 64-byte aligned scratch area of that
    many bytes in all (the kernel divides it among its tasks). It returns int32 0. `pack` maps the
    position of a constant input to the function that packs its array for this kernel, at compile
    time. `tasks` is the number of threads it can use (1: no parallel launch). A kernel written for
    the blocks of a GPU has a `grid` instead, and returns nothing; on a GPU, the tasks of one
    without are threads.
    """

    name: str
    func: Any
    pack: Mapping[int, Callable[[Array], Array]] = field(default_factory=dict)
    scratch_bytes: int = 0
    tasks: int = 1
    macs: int = 0
    in_place: tuple[int, ...] = ()
    """In-place candidates: inputs whose memory the output may reuse (each element is read before
    its own is written).
    """
    mixes_rows: bool = False
    """Whether what is in one row of an operand shows in other rows of the output, by rounding or by
    values that are not finite, though it should not. Not said of a kernel that is told which rows
    count, and mixes no others: these are of one sample.
    """
    counted: bool = False
    """Whether it ends where what counts in a run does (`Region.count`)."""
    grid: Grid | None = None
    generic: bool = False
    """Whether its loops are those of any operator, one element after the other."""
    after: tuple[After, ...] = ()
    """What a GPU starts, in order, when all blocks of `grid` have ended ..."""
    rounds: int = 0
    """... so many times if not 0; each function then gets the number of the round after its
    pointers.
    """

    def __post_init__(self) -> None:
        """Mark the pointers as not aliasing, unless the output may reuse an input's memory.

        TVM gives every pointer of such a function its own alias class, which LLVM would also apply
        to a caller that it inlines the function into; so callers are in other modules
        (emit/machine.py).
        """
        alone = not self.in_place
        object.__setattr__(self, "func", self.func.with_attr("tirx.noalias", alone))
        marked = [replace(a, func=a.func.with_attr("tirx.noalias", alone)) for a in self.after]
        object.__setattr__(self, "after", tuple(marked))

    @property
    def label(self) -> str:
        """Its name, as people read it."""
        return f"{self.name} (generic)" if self.generic else self.name


_BEYOND = "Literal value"
"""Part of TVM's message about a number that does not fit its 32-bit type."""

KEPT = 3
"""Number of a generator's best candidates that are kept."""


class Knobs(Protocol):
    """A generator's decisions: a frozen dataclass of integers and strings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class Fixed:
    """The knobs of a generator without choices."""


Setting = Mapping[str, int | str]
"""Knobs by name, as a file holds them."""


def setting(knobs: Knobs) -> Setting:
    """The values of knobs by name, as records hold them: a flag is 0 or 1."""
    return {k: int(v) if isinstance(v, bool) else v for k, v in asdict(knobs).items()}


@dataclass(frozen=True)
class Candidate:
    """One way to make a region's kernel, and its predicted seconds. `build` makes it, or finds only
    then that it cannot.
    """

    knobs: Knobs
    seconds: float
    build: Callable[[], Kernel | Skip]
    mixes_rows: bool = False
    """As the kernel; also said of one that is told which rows count."""


Ways = Callable[[Region, Any], Iterable[Candidate] | Skip]
"""A generator; its second argument is a device of the kind that it is registered for."""
Make = Callable[[Region, Any], Kernel | Skip]


@dataclass(frozen=True)
class Generator:
    """A registered generator. Its `version` rises when the same knobs give other code, which makes
    earlier measurements invalid.
    """

    name: str
    ways: Ways
    version: int = 1
    kind: type[Device] = Cpu
    """The kind of device that it makes code for."""


GENERATORS: dict[str, list[Generator]] = {}
"""Generators by operator ("elementwise" for regions without a root, EVERY for all operators)."""

EVERY = "every operator"


class Records(Protocol):
    """What a tuner has measured."""

    def best(self, region: str, device: Device) -> Record | None:
        """What is best for a region's key on a device, if that was measured."""


@dataclass(frozen=True)
class Record:
    """What was measured to be best: a generator of a version, its knobs, the threads that its
    kernel is made for (0: the device's), and the seconds that it takes.
    """

    generator: str
    version: int
    knobs: Setting
    seconds: float
    threads: int = 0
    origin: str = field(default="recorded", compare=False)
    """What `--explain` calls it."""


def candidates(*ops: str, version: int = 1, kind: type[Device] = Cpu) -> Callable[[Ways], Ways]:
    """Register a generator, for a kind of device, for regions whose root is one of `ops` (see
    `op_of`).

    The function returned seals its region, so the generator never sees another, and builds only
    kernels that find their operands packed.
    """

    def register(generate: Ways) -> Ways:
        @wraps(generate)
        def guarded(region: Region, device: Device) -> Iterable[Candidate] | Skip:
            region = sealed(region, device)
            found = _fitting(partial(generate, region, device))
            if isinstance(found, Skip):
                return found
            return (replace(c, build=partial(_built, region, c.build)) for c in found)

        for op in ops:
            entry = Generator(generate.__name__, guarded, version, kind)
            GENERATORS.setdefault(op, []).append(entry)
        return guarded

    return register


def kernel(*ops: str, version: int = 1, kind: type[Device] = Cpu) -> Callable[[Make], Make]:
    """Register a function that makes the only kernel of its operators; the function returned makes
    it at once.
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
    """Seconds to move a region's operands and output, on one core or all of a GPU."""
    return device.moved_seconds(sum(n.type.bytes for n in (*region.inputs, region.output)))


def _fitting(make: Callable[[], T | Skip]) -> T | Skip:
    """The result of `make`; a Skip also where it raises Unfit or TVM refuses a number."""
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
    """Why a kernel would not find its operands packed; None if it does.

    Only constants are packed, and no other node of the region may read what is packed for the
    anchor.
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
        """Does it make the same kernel?"""
        mine, its = self.candidate.knobs, other.candidate.knobs
        return (self.generator, mine) == (other.generator, its)


@dataclass(frozen=True)
class Decision:
    """A region's kernel (or why there is none), and how it was chosen."""

    kernel: Kernel | Skip
    chosen: Offer | None = None
    origin: str = ""
    """Of the record that chose it rather than the model."""
    lost: tuple[Offer, ...] = ()
    """The best candidates that were not chosen."""
    skips: tuple[tuple[str, str], ...] = ()
    """(generator, why it cannot make the kernel)."""

    @property
    def recorded(self) -> bool:
        """Whether a record chose it."""
        return bool(self.origin)

    @property
    def predicted(self) -> float:
        """Seconds by the model, also where a record chose; 0 where nothing was chosen."""
        offers = [o for o in (self.chosen, *self.lost) if o is not None]
        return min((o.candidate.seconds for o in offers), default=0.0)


def choose(
    region: Region,
    device: Device,
    records: Records | None = None,
    *,
    apart: bool = False,
    counted: bool = False,
) -> Decision:
    """The kernel recorded as fastest, or else predicted to be. `apart`: none that mixes rows;
    `counted`: only one that ends where what counts does.
    """
    region = sealed(region, device)
    record = None if records is None else records.best(region.key, device)
    known = [] if record is None else _recorded(region, device, record)
    offers: list[Offer] = []
    skips: list[tuple[str, str]] = []
    for generator in asked(region, device):
        found = generator.ways(region, device)
        if isinstance(found, Skip):
            skips.append((generator.name, found.reason))
            continue
        if apart:
            found = [c for c in found if not c.mixes_rows]
        best = nsmallest(KEPT, found, key=lambda c: c.seconds)
        if not best:
            skips.append((generator.name, "nothing that it could choose fits"))
        offers += [Offer(generator.name, c) for c in best]
    offers.sort(key=lambda o: o.candidate.seconds)
    origin = "" if record is None else record.origin
    known = [o for o in known if not (apart and o.candidate.mixes_rows)]
    return _first_built(region, (known, origin), offers, skips, counted)


def asked(region: Region, device: Device) -> list[Generator]:
    """The generators for a region on a device; of equals the last by name is preferred."""
    known = [*GENERATORS.get(op_of(region), []), *GENERATORS.get(EVERY, [])]
    return sorted(
        (g for g in known if isinstance(device, g.kind)), key=lambda g: g.name, reverse=True
    )


def _recorded(region: Region, device: Device, record: Record) -> list[Offer]:
    """The candidate that is recorded to be best, where it is still offered."""
    return [
        Offer(generator.name, c)
        for generator in asked(region, device)
        if (generator.name, generator.version) == (record.generator, record.version)
        for c in offered(generator, region, device, record.threads)
        if setting(c.knobs) == record.knobs
    ][:1]


def offered(
    generator: Generator, region: Region, device: Device, threads: int = 0
) -> list[Candidate]:
    """A generator's candidates for a sealed region, for fewer threads than the device's if so many
    are given.
    """
    some = replace(device, threads=threads) if 0 < threads < device.threads else device
    found = generator.ways(region, some)
    return [] if isinstance(found, Skip) else list(found)


def op_of(region: Region) -> str:
    """The operator that generators are registered for: the root's, "elementwise" without a root,
    "item of Split" for an output of a node with several.
    """
    root = region.root
    if root is None:
        return "elementwise"
    return f"item of {root.operands[0].op}" if root.op == "item" else root.op


def _first_built(
    region: Region,
    known: tuple[Sequence[Offer], str],
    offers: list[Offer],
    skips: list[tuple[str, str]],
    counted: bool,
) -> Decision:
    """The first kernel that can be built: of what a record of some origin chose, of the best
    offers, then of all others.
    """
    unfit: list[Offer] = []
    recorded, origin = known
    for i, offer in enumerate((*recorded, *offers)):
        made = offer.candidate.build()
        if counted and isinstance(made, Kernel) and not made.counted:
            made = Skip("it computes all positions")
        if isinstance(made, Kernel):
            lost = tuple(o for o in offers if not o.same(offer) and not any(map(o.same, unfit)))
            chose = origin if i < len(recorded) else ""
            return Decision(made, offer, chose, lost, tuple(skips))
        skips.append((offer.generator, made.reason))
        unfit.append(offer)
    reasons = "; ".join(f"{n}: {r}" for n, r in skips) or "no generator is registered"
    why = Skip(f"no kernel for {op_of(region)} -> {region.output.type} ({reasons})")
    return Decision(why, skips=tuple(skips))
