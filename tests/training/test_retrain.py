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
from qcompiler.driver import Compilation
from qcompiler.ir import Graph
from qcompiler.onnx_io.writer import write
from qcompiler.ops import evaluate
from qcompiler.options import Options, Watch

torch = pytest.importorskip("torch", reason="torch is not installed")

from qcompiler.training import retrain, torch_graph  # noqa: E402  (they need torch)

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
    made = Compilation(digits(), options())
    batch = batches(1)[0]
    given = {k: torch.from_numpy(v) for k, v in batch.items()}
    for graph in (made.calibrated, made.quantized):
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
    graph = Compilation(operators(), Options(), one_batch=False).float_graph
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 9)).astype("f")
    (found,) = torch_graph.run(graph, {"x": torch.from_numpy(x).requires_grad_()}, {})
    np.testing.assert_allclose(found.detach(), evaluate(graph, {"x": x})["y"], atol=1e-5)
    found.sum().backward()


@pytest.mark.slow
def test_weights_learn_what_three_bits_cost() -> None:
    training = retrain.Training(batches(20), epochs=6, rate=1e-2)
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
    training = retrain.Training(batches(10), epochs=1, rate=2e-2, teacher=digits())
    tuned = retrain.retrain(pruned, plain, training, Watch())
    assert min(tuned.losses) < tuned.losses[0]
    weights = [n.array for n in tuned.graph.nodes if n.is_constant and n.type.rank > 1]
    assert weights
    assert all(np.mean(w == 0) > 0.65 for w in weights if w.size > 100)


@pytest.mark.slow
def test_ternary_weights_learn_and_are_found_again() -> None:
    """What was trained is what the same flags compile: the tuned weights are ternary already."""
    flags = Options(input_shapes=SHAPES, passes=("quantize_weights{scheme=ternary}",))
    tuned = retrain.retrain(digits(), flags, retrain.Training(batches(20), 4, 2e-2), Watch())
    assert min(tuned.losses) < 0.5 * tuned.losses[0]
    for node in tuned.graph.nodes:
        if node.op == "Conv":
            rows = np.abs(node.operands[1].array).reshape(node.operands[1].type.dims[0], -1)
            for row in rows:
                assert len(np.unique(row[row > 0])) <= 1
    written = write(tuned.graph)
    made = Compilation(written, flags)
    batch = batches(1)[0]
    wanted, found = (evaluate(g, batch) for g in (made.calibrated, made.quantized))
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-4 * np.abs(array).max())


def test_fewer_channels_are_written_with_an_open_batch() -> None:
    flags = Options(calibration=batches(4), input_shapes=SHAPES, prune=("channels:0.5",))
    training = retrain.Training(batches(20), 3, 1e-2)
    tuned = retrain.retrain(digits(), flags, training, Watch())
    assert min(tuned.losses) < tuned.losses[0]
    assert tuned.losses[tuned.best] == min(tuned.losses)
    assert tuned.graph.inputs[0].shape == driver.read(digits()).inputs[0].shape
    sizes = [sum(n.type.size for n in g.nodes if n.is_constant) for g in (tuned.graph, read_())]
    assert sizes[0] < 0.5 * sizes[1]
    again = Compilation(write(tuned.graph), Options(input_shapes={"image": (3, 1, 8, 8)}))
    assert again.calibrated.outputs[0].type.dims[0] == 3


def read_() -> Graph:
    return Compilation(digits(), Options(input_shapes=SHAPES), one_batch=False).float_graph


def test_weights_go_little_by_little() -> None:
    flags = Options(calibration=batches(4), input_shapes=SHAPES, prune=("magnitude:0.8",))
    training = retrain.Training(batches(20), 4, 1e-2, gradual=True)
    tuned = retrain.retrain(digits(), flags, training, Watch())
    assert tuned.best >= 3, "before that the schedule is not over"
    weights = [n.operands[1].array for n in tuned.graph.nodes if n.op in ("Conv", "MatMul")]
    large = [np.mean(w == 0) for w in weights if w.size >= 256 and w.shape[1] > 1]
    assert large
    assert all(share == pytest.approx(0.8, abs=0.01) for share in large)
    with pytest.raises(Error, match="little by little"):
        retrain.retrain(digits(), options(), training, Watch())


def test_images_are_flipped_shifted_and_mixed_for_both() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((40, 2, 8, 8)).astype("f")
    flipped = retrain._flipped(x, rng)
    turned = np.array([np.array_equal(a, b[..., ::-1]) for a, b in zip(flipped, x, strict=True)])
    assert 5 < turned.sum() < 35
    np.testing.assert_array_equal(flipped[~turned], x[~turned])
    shifted = retrain._shifted(x, rng)
    assert shifted.shape == x.shape
    assert {len(np.intersect1d(a, b)) > 64 for a, b in zip(shifted, x, strict=True)} == {True}
    assert retrain._mixed(x, rng).max() <= x.max()
    training = retrain.Training(batches(2), augment=("turn",))
    with pytest.raises(Error, match="augmentation"):
        retrain.retrain(digits(), options(), training, Watch())


def test_the_schedule_is_cubic() -> None:
    from qcompiler.training.weights import cubic

    assert [cubic(t) for t in (-1, 0, 0.5, 1, 2)] == [0, 0, 0.875, 1, 1]


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
    assert importlib.util.find_spec("qcompiler.training.retrain") is not None
    with pytest.raises(Error, match="needs torch"):
        retrain.retrain(digits(), options(), retrain.Training(batches(2)), Watch())
