"""ONNX's backend tests through the whole compiler, with every input known at run time only: each is
right, or refused with an Error. golden/onnx_nodes_refused.txt lists the refused ones by reason; a
case that is refused but not listed fails, and so does one that is listed but not refused
(`--update-golden` writes the list anew). A few cases run in every `pytest`, all of them in .ci/run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import pytest
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from onnx_cases import node_cases, outcome

PARTS = 32
OTHERS = ("simple", "pytorch-converted", "pytorch-operator")
REFUSED = Path(__file__).parents[1] / "golden" / "onnx_nodes_refused.txt"
SAMPLE = 60
"""Every so manieth case runs in every `pytest`."""


@cache
def cases() -> list[TestCase]:
    """All cases except traditional machine learning, whose operators are unsupported."""
    found = [c for of_op in node_cases().values() for c in of_op]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in OTHERS:
            found += load_model_tests(kind=kind)
    ours = [c for c in found if not c.name.startswith("test_ai_onnx_ml")]
    return sorted(ours, key=lambda c: c.name)


def listed(file: Path = REFUSED) -> tuple[str, dict[str, str]]:
    """The onnx version the list was made with, and {case: reason}."""
    if not file.exists():
        return "", {}
    version, found, why = "", {}, ""
    for line in file.read_text().splitlines():
        if line.startswith("onnx "):
            version = line.removeprefix("onnx ")
        elif line.startswith("  "):
            found[line.strip()] = why
        else:
            why = line
    return version, found


@pytest.mark.slow  # minutes; .ci/run includes them
@pytest.mark.parametrize("part", range(PARTS))
def test_onnx_cases_are_right_or_refused(part: int, request: pytest.FixtureRequest) -> None:
    check(cases()[part::PARTS], update=request.config.getoption("--update-golden"))


def test_a_sample_of_onnx_cases_is_right_or_refused() -> None:
    check(cases()[7::SAMPLE])


def check(
    mine: list[TestCase],
    *,
    update: bool = False,
    file: Path = REFUSED,
    run: Callable[[TestCase], tuple[str, str]] = outcome,
) -> None:
    """Each case is right, or refused as listed in a file."""
    version, expected = listed(file)
    found = {c.name: run(c) for c in mine}
    refused = {n: why for n, (kind, why) in found.items() if kind == "refused"}
    if update:
        _record(file, refused, set(found))
    wrong = [text for kind, text in found.values() if kind == "wrong"]
    assert not wrong, "\n\n".join(wrong)
    if version == onnx.__version__ and not update:
        new = {n: why for n, why in refused.items() if n not in expected}
        assert not new, f"passed before, refused now: {new}"
        passed = [n for n, (kind, _) in found.items() if kind == "passed" and n in expected]
        assert not passed, f"passed now, to be taken off {file.name}: {passed}"


def _record(file: Path, refused: dict[str, str], seen: set[str]) -> None:
    """Add one part's results to the list; one process at a time (`-n 0`)."""
    _, known = listed(file)
    known = {n: why for n, why in known.items() if n not in seen} | refused
    by_reason: dict[str, list[str]] = {}
    for name, why in sorted(known.items()):
        by_reason.setdefault(why, []).append(name)
    lines = [f"onnx {onnx.__version__}"]
    for why, names in sorted(by_reason.items()):
        lines += [why, *(f"  {n}" for n in names)]
    partial = file.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n")
    os.replace(partial, file)
