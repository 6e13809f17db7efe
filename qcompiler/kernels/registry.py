"""An operator's name -> the generators that can make code for it, best first.

    @kernel("conv", rows=(4, 6, 8), columns=(1, 2, 3))   # what the tuner may try
    def direct(region: Region, device: Device, *, rows: int = 0, columns: int = 0) -> Kernel | Skip

0 or an absent knob means "choose by the cost model". Generators are tried in the order of `rank`
(highest first); the first that does not `Skip` wins, the generic ones (rank 0) always answer. What
they are handed is sealed (facts.py): nothing that is not in the region's key is within reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from qcompiler.errors import Skip, Unfit
from qcompiler.hardware.isa import Cpu, Device
from qcompiler.ir import Array
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.region import Region

__all__ = ["GENERATORS", "Generator", "Kernel", "Region", "choose", "kernel"]


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

Generate = Callable[..., Kernel | Skip]


@dataclass(frozen=True)
class Generator:
    """A registered generator and the knobs it may be tuned by."""

    name: str
    op: str
    generate: Generate
    rank: int
    knobs: Mapping[str, tuple[int, ...]]
    kind: type[Device] = Cpu
    """The kind of device that it makes code for; it is not asked for others."""


GENERATORS: dict[str, list[Generator]] = {}


def kernel(
    *ops: str, rank: int = 1, isa: str = "", kind: type[Device] = Cpu, **knobs: tuple[int, ...]
) -> Callable[[Generate], Generate]:
    """Register a generator, for a kind of device, of kernels for regions whose root is one of `ops`
    ("elementwise" for regions without a root).

    `isa` restricts it to instruction sets that are or extend the named one. What is returned seals
    the region that it is given, so there is no other way to the generator.
    """

    def register(generate: Generate) -> Generate:
        @wraps(generate)
        def guarded(region: Region, device: Device, **values: int) -> Kernel | Skip:
            if isa and isa not in device.isa.lineage:
                return Skip(f"not {isa}")
            region = sealed(region, device)
            try:
                made = generate(region, device, **values)
            except Unfit as e:
                return Skip(str(e))
            except ValueError as e:
                if _BEYOND not in str(e):
                    raise
                return Skip("a size or an offset is beyond 32 bits")
            return made if isinstance(made, Skip) else mispacked(made, region) or made

        for op in ops:
            entry = Generator(generate.__name__, op, guarded, rank, knobs, kind)
            GENERATORS.setdefault(op, []).append(entry)
            GENERATORS[op].sort(key=lambda g: -g.rank)
        return guarded

    return register


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


def choose(region: Region, device: Device) -> tuple[Kernel | Skip, list[tuple[str, str]]]:
    """Region -> the first kernel that answers (or Skip), and why each one before it did not:
    [(generator, reason)].
    """
    region = sealed(region, device)
    op = region.root.op if region.root else "elementwise"
    skipped: list[tuple[str, str]] = []
    for generator in GENERATORS.get(op, []):
        if not isinstance(device, generator.kind):
            continue
        made = generator.generate(region, device)
        if isinstance(made, Kernel):
            return made, skipped
        skipped.append((generator.name, made.reason))
    reasons = "; ".join(f"{n}: {r}" for n, r in skipped) or "no generator is registered"
    return Skip(f"no kernel for {op} -> {region.output.type} ({reasons})"), skipped
