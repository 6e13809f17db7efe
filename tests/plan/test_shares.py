"""The memory of each step, against a byte for every byte of the workspace."""

from __future__ import annotations

import numpy as np

from qcompiler.demo import MODEL
from qcompiler.driver import Compilation
from qcompiler.options import Options
from qcompiler.plan.places import Place, room
from qcompiler.plan.plan import Plan
from qcompiler.plan.shares import shares


def byte_by_byte(plan: Plan) -> list[int]:
    """Backwards: bytes that a later step reads before one writes them, and those of the step."""
    alive = np.zeros(plan.workspace_bytes + 64, bool)

    def of(*places: Place) -> np.ndarray:
        found = np.zeros_like(alive)
        for p in places:
            if p.space == "workspace":
                found[p.offset : p.offset + room(p.bytes)] = True
        return found

    held = []
    for step in reversed(plan.steps):
        writes, reads = of(*step.writes), of(*step.operands)
        held.append(int((alive | writes | reads).sum()))
        alive = (alive & ~writes) | reads
    return held[::-1]


def test_ram_is_what_is_alive_and_weights_count_once() -> None:
    options = Options(target="arm_neon", input_shapes={"image": (1, 1, 8, 8)}, threads=1)
    plan = Compilation(MODEL, options).plan
    found = shares(plan)
    assert [s.ram for s in found] == byte_by_byte(plan)
    assert max(s.ram for s in found) <= plan.workspace_bytes
    offsets = {p.offset: p.bytes for s in plan.steps for p in s.operands if p.space == "weights"}
    assert sum(s.weights for s in found) == sum(map(room, offsets.values()))
