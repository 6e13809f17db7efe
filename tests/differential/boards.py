"""A case, compiled for another processor, which qemu emulates -> what is wrong with it there.

Its instruction set and processor are drawn by its seed from those of `tests/board`, whatever this
machine's are; so kernels of ARM and of RISC-V run inside whole random models, not only alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qcompiler import plugins
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.hardware.isa import ISAS
from tests import board

from .checks import Outcome, compare, options, outcome_of
from .generate import Case
from .poison import BYTES
from .reference import references

TURNS = (0, 1, 0)
"""The sets of inputs of one program's runs."""


def check_on_board(case: Case) -> Outcome:
    """Run a case on a processor, by one thread and by two, in memory full of two bytes. Refused
    where there is no emulator or no compiler for it, or where the emulator has a known fault.
    """

    def check(outcome: Outcome) -> None:
        try:
            _check(case, outcome)
        except (board.Unavailable, pytest.skip.Exception) as reason:
            outcome.refused = str(reason)

    return outcome_of(check)


def on_board(case: Case) -> tuple[Case, str]:
    """The case for an instruction set that qemu has -> it, and a processor for qemu."""
    plugins.load_all()
    rng = np.random.default_rng((case.seed, 0xB0))
    names = [n for n in board.CPUS if not (case.kind.endswith("odd") and n in board.FLUSHES)]
    name = names[int(rng.integers(len(names)))]
    processor = board.CPUS[name][int(rng.integers(len(board.CPUS[name])))]
    return replace(case, device=replace(case.device, isa=ISAS[name])), processor


def _check(case: Case, outcome: Outcome) -> None:
    case, processor = on_board(case)
    made = Compilation(case.model, options(case)).having(device=case.device)
    artifact = assemble(made.plan)
    short = case.device.isa.short
    wanted = [references(made.lowered, f, kernels=True, short=short) for f in case.feeds[:2]]
    outcome.elements = sum(r.value.size for run in wanted for r in run.values())
    feeds = [case.feeds[turn] for turn in TURNS]
    for threads, byte in ((1, BYTES[0]), (2, BYTES[1])):
        runs = board.run_artifact(artifact, feeds, processor, threads=threads, poison=byte)
        for number, (turn, got) in enumerate(zip(TURNS, runs, strict=True)):
            where = f"{processor}, {threads} threads, run {number}"
            if not compare(where, got, wanted[turn], outcome):
                return
        if any(runs[0][k].tobytes() != runs[2][k].tobytes() for k in runs[0]):
            outcome.fault(processor, "the same inputs gave other bits")
