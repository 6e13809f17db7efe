"""Retraining: torch computes what numpy means, and quantization costs less afterwards."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qcompiler import Error, cli, driver
from qcompiler.demo import DATA, MODEL
from qcompiler.driver import Options, Watch
from qcompiler.ops import evaluate
from qcompiler.stages import Choice

torch = pytest.importorskip("torch", reason="torch is not installed")

from qcompiler import retrain, torch_graph  # noqa: E402  (they need torch)

BATCH = 20
SHAPES = {"image": (BATCH, 1, 8, 8)}


def batches(count: int) -> list[dict[str, np.ndarray]]:
    with np.load(DATA) as stored:
        images = np.concatenate([stored["calibration"], stored["test_images"]])
    starts = range(0, min(count * BATCH, len(images) - BATCH + 1), BATCH)
    return [{"image": images[i : i + BATCH].reshape(BATCH, 1, 8, 8)} for i in starts]


def options(*passes: str) -> Options:
    data = batches(2)
    return Options(precision="int8", calibration=data, input_shapes=SHAPES, passes=passes)


def digits() -> onnx.ModelProto:
    return onnx.load(MODEL)


def test_torch_computes_what_numpy_means() -> None:
    made = driver.made(digits(), options(), Watch())
    batch = batches(1)[0]
    given = {k: torch.from_numpy(v) for k, v in batch.items()}
    for graph in (made.exact, made.coarse):
        wanted = evaluate(graph, batch)
        found = torch_graph.run(graph, given, {})
        for name, tensor in zip(graph.output_names, found, strict=True):
            np.testing.assert_allclose(tensor.numpy(), wanted[name], atol=2e-5)


def operators() -> onnx.ModelProto:
    """Most of what has a meaning of its own in torch, one after the other."""
    rng = np.random.default_rng(0)
    steps = [
        ("Conv", ["w"], {"pads": [1, 1, 1, 0], "strides": [1, 2]}),
        ("LeakyRelu", [], {"alpha": 0.2}),
        ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0, 1, 1, 0]}),
        ("AveragePool", [], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}),
        ("Slice", ["one", "four", "axis", "one"], {}),
        ("Pad", ["pads"], {}),
        ("HardSwish", [], {}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("LayerNormalization", ["scale", "shift"], {"axis": -1}),
        ("MatMul", ["v"], {}),
        ("Gelu", [], {}),
        ("ReduceMean", ["axis"], {"keepdims": 0}),
        ("Softmax", [], {"axis": -1}),
        ("Erf", [], {}),
    ]
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype("f"),
        "scale": rng.random(4).astype("f"),
        "shift": rng.random(4).astype("f"),
        "v": rng.standard_normal((4, 6)).astype("f"),
        "one": np.array([1]),
        "four": np.array([4]),
        "axis": np.array([2]),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
    }
    nodes, last = [], "x"
    for i, (op, more, attrs) in enumerate(steps):
        nodes.append(helper.make_node(op, [last, *more], [f"t{i}"], f"n{i}", **attrs))
        last = f"t{i}"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "operators",
        [helper.make_tensor_value_info("x", 1, [2, 3, 8, 9])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_every_operator_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "meaning", None)  # no help from numpy
    graph = driver.fused(operators(), Options(), Choice(), driver.plugins.device("host"), Watch())
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 9)).astype("f")
    (found,) = torch_graph.run(graph, {"x": torch.from_numpy(x).requires_grad_()}, {})
    np.testing.assert_allclose(found.detach(), evaluate(graph, {"x": x})["y"], atol=1e-5)
    found.sum().backward()


def test_weights_learn_what_three_bits_cost() -> None:
    training = retrain.Training(batches(20), epochs=6, rate=1e-3)
    tuned = retrain.retrain(digits(), options("quantize_static{weight_bits=3}"), training, Watch())
    assert min(tuned.losses) < 0.7 * tuned.losses[0]
    assert tuned.graph.inputs[0].shape[0] != BATCH  # as open as it was


def test_pruned_weights_stay_zero_and_learn_from_the_original() -> None:
    pruned = digits()
    for tensor in pruned.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim > 1:
            array[np.abs(array) < np.quantile(np.abs(array), 0.7)] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    plain = Options(input_shapes=SHAPES)
    training = retrain.Training(batches(10), epochs=1, rate=2e-3, teacher=digits())
    tuned = retrain.retrain(pruned, plain, training, Watch())
    assert min(tuned.losses) < tuned.losses[0]
    weights = [n.array for n in tuned.graph.nodes if n.is_constant and n.type.rank > 1]
    assert weights
    assert all(np.mean(w == 0) > 0.65 for w in weights if w.size > 100)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", image=np.concatenate([b["image"] for b in batches(4)]))
    made = tmp_path / "r.onnx"
    data = str(tmp_path / "d.npz")
    words = ["retrain", str(MODEL), "--data", data, "--calibration", data, "-o", str(made)]
    shape = ["--input-shape", f"image={BATCH}x1x8x8"]
    assert cli.main([*words, *shape, "--epochs", "1"]) == 0
    assert "loss" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load(made), full_check=True)


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert importlib.util.find_spec("qcompiler.retrain") is not None
    with pytest.raises(Error, match="needs torch"):
        retrain.retrain(digits(), options(), retrain.Training(batches(2)), Watch())
