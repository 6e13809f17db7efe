"""A flag that could not act is an Error: nobody believes that it did."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from onnx import parser

import qcompiler
from qcompiler.cli import main
from qcompiler.cli.acting import RULES
from qcompiler.cli.arguments import parser as command_line

MODEL = """
    <ir_version: 8, opset_import: ["": 20]>
    net (float[2, 3] x) => (float[2, 3] y) { y = Neg(x) }
"""
IDLE = (
    "compile M --calibration D",
    "compile M --calibration-method mse",
    "compile M --precision int8-dynamic --calibration-samples 3",
    "compile M --exclude MatMul",
    "compile M --prune-include MatMul",
    "compile M --evaluation D",
    "compile M --dry-run --max-drop 1",
    "compile M --dry-run --report r.html",
    "quantize M --precision float32 --nodes-to-exclude MatMul",
    "export M -o c --variant x86_avx2",
    "export A -o c --explain",
    "inspect M --text --plan",
    "inspect M --precision int8-dynamic",
    "inspect M --dim n=1..3",
    "inspect A --text",
    "inspect A --plan --target haswell",
    "inspect A --input-shape x=1",
    "run A --inputs D --fill-mode ones",
    "run A --fill-mode ones --seed 3",
    "run A --streams 2",
    "run A --limit 3",
    "run A --key board",
    "bench A --wait 3",
    "bench A --token-file none",
    "bench A --max-queue-delay-us 3",
    "compare A M --inputs D --seed 3",
    "tune M --wait 3",
    "tune M --exclude Conv",
    "targets --probe --target board.toml",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("acting")
    model = parser.parse_model(MODEL)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    artifact: Path = qcompiler.compile(model, threads=1).save(folder / "net.qc")
    return {"M": str(folder / "net.onnx"), "A": str(artifact), "D": str(folder / "data.npz")}


@pytest.mark.parametrize("words", IDLE)
def test_a_flag_that_could_not_act_is_an_error(
    words: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [places.get(word, word) for word in words.split()]
    assert main(given) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "does nothing here\nhint: it acts " in said.err


def test_every_rule_is_of_flags_that_a_command_has() -> None:
    top = command_line()
    commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    for name, rules in RULES.items():
        known = {a.dest for a in commands.choices[name]._actions}
        for rule in rules:
            assert known.intersection(rule.flags), (name, rule.flags)
            assert set(rule.flags) - known <= {"compress"}, (name, rule.flags)
