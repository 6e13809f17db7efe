"""Every calibrated compile reports int8's agreement with float, and the worst layer."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qcompiler
from qcompiler.cli import main
from qcompiler.driver import Compilation
from qcompiler.options import Options

RANDOM = np.random.default_rng(0)


def network(first: np.ndarray) -> onnx.ModelProto:
    """Two products and a Relu, ten classes."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "bent"),
        helper.make_node("MatMul", ["r", "b"], ["y"], "second"),
    ]
    second = RANDOM.standard_normal((32, 10)).astype(np.float32)
    held = [numpy_helper.from_array(v, k) for k, v in (("a", first), ("b", second))]
    x = helper.make_tensor_value_info("x", 1, [2, 16])
    y = helper.make_tensor_value_info("y", 1, [2, 10])
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def samples(count: int = 6) -> list[dict[str, np.ndarray]]:
    return [{"x": RANDOM.standard_normal((2, 16)).astype(np.float32)} for _ in range(count)]


def plain() -> np.ndarray:
    return RANDOM.standard_normal((16, 32)).astype(np.float32)


def test_agreement_is_measured_and_noted() -> None:
    data = samples()
    options = Options(precision="int8", calibration=data)
    made = Compilation(network(plain()), options)
    found = made.agreement
    assert found is not None
    assert found.samples == 4
    assert 20 < found.decibels < 70
    assert found.top1 is not None
    assert found.top1[1] == 8
    assert found.layer in ("first", "second")
    assert made.artifact.manifest.notes["agreement"] == str(found)
    exact = qcompiler.load(qcompiler.compile(network(plain())))
    assert "agreement" not in exact.manifest.notes


def test_a_poor_agreement_is_warned_of_with_the_cure(caplog: pytest.LogCaptureFixture) -> None:
    data = samples()
    for sample in data:  # one column dominates the others, and its weights are zero
        sample["x"][:, 0] = 1e5
    first = plain()
    first[0] = 1e-7
    # The default method would detect it, and keep the product in float32.
    options = Options(precision="int8", calibration=data, calibration_method="minmax")
    with caplog.at_level(logging.WARNING):
        made = Compilation(network(first), options)
    assert made.agreement is not None
    assert made.agreement.poor
    assert "--exclude 'first'" in caplog.text


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_line_says_it(
    as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(network(plain()), str(tmp_path / "m.onnx"))
    np.savez(tmp_path / "c.npz", x=np.concatenate([s["x"] for s in samples()]))
    words = ["compile", str(tmp_path / "m.onnx"), "--precision", "int8", "--no-progress"]
    words += ["--calibration", str(tmp_path / "c.npz"), "-o", str(tmp_path / "m.qc")]
    assert main([*words, "--json"] if as_json else words) == 0
    said = capsys.readouterr()
    assert said.err.startswith("SQNR ")
    assert "worst layer" in said.err
    if as_json:
        found = json.loads(said.out)["agreement"]
        assert found["sqnr_db"] > 20
        assert found["worst_layer"] in ("first", "second")
