"""ONNX's backend tests of single operators, compiled for a GPU and run by the emulator: each is
right, or refused as it is for CPUs. The smallest cases of each operator run, in parts: one of them
with the slow tests, all with QCOMPILER_ALL_CASES=1.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

import pytest
from onnx.backend.test.case.test_case import TestCase
from onnx_cases import loaded, node_cases, outcome

pytestmark = pytest.mark.usefixtures("for_this_cpu")
EACH = 2
"""Cases of an operator."""
PARTS = 12
CHOSEN = range(PARTS) if os.environ.get("QCOMPILER_ALL_CASES") else [5]


@cache
def cases() -> list[TestCase]:
    """The smallest cases of each operator, of traditional machine learning none."""
    found = []
    for of_op in node_cases().values():
        ours = [c for c in of_op if not c.name.startswith("test_ai_onnx_ml")]
        found += sorted(ours, key=lambda c: (_size(c), c.name))[:EACH]
    return sorted(found, key=lambda c: c.name)


def _size(case: TestCase) -> int:
    _, sets = loaded(case)
    return sum(
        v.size for inputs, outputs in sets for v in (*inputs, *outputs) if hasattr(v, "size")
    )


def check(mine: list[TestCase]) -> None:
    """Right, or refused on both."""
    found = {c.name: (c, *outcome(c, "sm_80")) for c in mine}
    wrong = [text for _, kind, text in found.values() if kind == "wrong"]
    assert not wrong, "\n\n".join(wrong)
    refused = {n: why for n, (c, kind, why) in found.items() if kind == "refused"}
    here = {n: why for n, why in refused.items() if outcome(found[n][0])[0] != "refused"}
    assert not here, f"refused for a GPU only: {here}"


@pytest.mark.slow
@pytest.mark.parametrize("part", CHOSEN)
def test_operators_are_right_on_a_gpu(part: int, installed: ctypes.CDLL) -> None:
    check(cases()[part::PARTS])
