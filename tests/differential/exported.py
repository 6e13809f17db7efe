"""A case, exported to C -> what is wrong with what it computes where it is to run: this machine,
ARM of 64 and 32 bits, and boards with a Cortex-M and nothing else.

Its machine is drawn by its seed from those of tests/export. The program around it looks at the
bytes before and behind the workspace, and at how much of the stack a run takes.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompiler.driver import Compilation
from qcompiler.export.c import export_c
from qcompiler.export.elf import read
from qcompiler.export.merge import undefined
from qcompiler.export.request import Exporting
from qcompiler.plugins import device as device_of
from tests import board
from tests.export import machines

from .checks import Outcome, compare, options, outcome_of
from .generate import Case
from .reference import references

TURNS = (0, 1, 0)
"""The sets of inputs of one program's runs."""


def check_exported(case: Case) -> Outcome:
    """Export a case, build a program around it, and run that. Refused where the machine has no
    room for it, or where its compiler or emulator is not at hand.
    """

    def check(outcome: Outcome) -> None:
        try:
            _check(case, outcome)
        except pytest.skip.Exception as reason:
            outcome.refused = str(reason)

    return outcome_of(check)


def for_machine(case: Case) -> tuple[Case, str]:
    """The case for the device of a machine -> it, and the machine's name."""
    rng = np.random.default_rng((case.seed, 0xC0))
    devices = {name: device_of(m.target, 1) for name, m in machines.MACHINES.items()}
    odd = case.kind.endswith("odd")
    names = [n for n, d in devices.items() if not (odd and d.isa.name in board.FLUSHES)]
    name = names[int(rng.integers(len(names)))]
    return replace(case, device=devices[name]), name


def _check(case: Case, outcome: Outcome) -> None:
    case, name = for_machine(case)
    machine = machines.MACHINES[name]
    machines.demand(machine)
    asked = replace(options(case), threads=1)
    made = Compilation(case.model, asked).having(device=case.device)
    short = case.device.isa.short
    wanted = [references(made.lowered, f, kernels=True, short=short) for f in case.feeds[:2]]
    outcome.elements = sum(r.value.size for run in wanted for r in run.values())
    with tempfile.TemporaryDirectory(prefix="qcompiler-exported-") as place:
        folder = Path(place) / "net"
        facts = export_c(made, folder, Exporting(name="net")).facts
        calls = undefined(read((folder / "net.o").read_bytes()))
        if machine.board and calls - {"memcpy", "memset"}:
            outcome.refused = f"the board has no {', '.join(sorted(calls))}"
            return
        feeds = [case.feeds[turn] for turn in TURNS]
        runs = machines.run(machine, facts, folder, feeds)
    for number, (turn, got) in enumerate(zip(TURNS, runs, strict=True)):
        if not compare(f"{name}, run {number}", got, wanted[turn], outcome):
            return
    if any(runs[0][k].tobytes() != runs[2][k].tobytes() for k in runs[0]):
        outcome.fault(name, "the same inputs gave other bits")
