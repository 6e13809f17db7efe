"""Measured facts of this machine's core, and the TOML file of a device made from them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from qcompiler.hardware.core import Core
from qcompiler.hardware.isa import Cpu
from qcompiler.tune.probe_core import NOISY, Cycles, Fact, clock
from qcompiler.tune.probe_threads import shared_work


@dataclass(frozen=True)
class Probe:
    """Facts of the core, other measurements, and doubts about them."""

    device: Cpu
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


def probe(device: Cpu) -> Probe:
    """Measure this machine, restricted to an instruction set; takes a few seconds. `device` gives
    the instruction set, threads and caches.
    """
    one = replace(device, threads=1)
    begin, own = time.perf_counter(), time.process_time()
    hz, before = clock(one)
    cycles = Cycles(one, hz)
    facts = [
        Fact("hz", hz, "a chain of integer instructions of one cycle, alongside vector products"),
        *cycles.arithmetic(),
        *cycles.memory(),
        *cycles.lines(),
    ]
    notes = cycles.notes()
    again, after = clock(one)
    doubts = [*before, *after]
    if abs(again / hz - 1) > NOISY:
        doubts.append(f"the clock was {hz / 1e9:.2f} GHz before, {again / 1e9:.2f} GHz after")
    share = (time.process_time() - own) / (time.perf_counter() - begin)
    if share < 1 - NOISY:
        doubts.append(f"for {1 - share:.0%} of the time other processes used this core")
    shared, waited = shared_work(device)
    facts += shared
    known = {f.name: f.value for f in facts}
    core, remarks = Core.of(known), (*notes, *_left(facts))
    return Probe(replace(device, core=core), tuple(facts), remarks, (*doubts, *waited))


def _left(facts: Sequence[Fact]) -> list[str]:
    """Facts that were not found, and keep the reference's values."""
    missing = {f.name for f in fields(Core)} - {f.name for f in facts}
    texts = [f"not found, taken from the reference: {name}" for name in sorted(missing)]
    return [f"{s} (0: an in-order core)" if s.endswith("window") else s for s in texts]


def toml(found: Probe, day: str) -> str:
    """A probe -> the text of a device file; `day` is printed as given."""
    d = found.device
    head = [
        f'description = "Measured on the machine itself, {day}"',
        'source = "qcompiler targets --probe: the least of many runs of small kernels"',
        f'isa = "{d.isa.name}"',
        f"threads = {d.threads} # processors always available to the process",
        f"l1_bytes = {d.l1_bytes} # data, one core, reported by the system",
        f"l2_bytes = {d.l2_bytes} # one core, reported by the system",
        f"l3_bytes = {d.l3_bytes} # reported by the system",
    ]
    warned = [f"# Doubtful, measure again when nothing else runs: {text}" for text in found.doubts]
    notes = [f"# {text}" for text in found.notes]
    facts = [f"{f.name} = {_rounded(f.value)} # {f.how}" for f in found.facts]
    return "\n".join([*warned, *head, "", "[core]", *facts, *notes]) + "\n"


def _rounded(value: float) -> str:
    """To three digits, more than two measurements agree in."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if value < 1e6 else f"{value:.3e}"
