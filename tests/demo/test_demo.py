"""The embedded network: it is what its script makes, and it reads digits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from oracles import peer

from qcompiler.demo import DATA, MODEL, autograd, train
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate


def test_the_embedded_network_reads_985_of_1000_digits() -> None:
    with np.load(DATA, allow_pickle=False) as data:
        images, labels = data["test_images"], data["test_labels"]
    (scores,) = evaluate(read(MODEL), {"image": images}).values()
    assert np.mean(scores.argmax(1) == labels) >= 0.985


def test_the_embedded_data_is_the_split_that_the_script_makes() -> None:
    peer("sklearn.datasets")
    made = train.split()
    with np.load(DATA, allow_pickle=False) as data:
        assert set(data) == {"calibration", "test_images", "test_labels"}
        for name in data:
            np.testing.assert_array_equal(data[name], made[name])


def test_no_test_image_is_a_training_image() -> None:
    peer("sklearn.datasets")
    made = train.split()
    seen = {image.tobytes() for image in made["train_images"]}
    assert not any(image.tobytes() in seen for image in made["test_images"])
    assert all(image.tobytes() in seen for image in made["calibration"])


def test_the_embedded_network_has_the_nodes_that_the_script_writes() -> None:
    written = train.model(train.network())
    embedded = onnx.load(MODEL)
    assert embedded.graph.node == written.graph.node
    assert embedded.graph.input == written.graph.input
    assert embedded.graph.output == written.graph.output


def test_gradients_agree_with_finite_differences() -> None:
    net = train.network()
    random = np.random.default_rng(0)
    # In float64, so that small steps show: the operators keep whatever dtype they are given.
    weights = {name: w.astype(np.float64) for name, w in net.weights.items()}
    image = random.random((3, 1, 8, 8))
    towards = random.standard_normal((3, 10))

    def loss(changed: dict[str, np.ndarray]) -> float:
        fresh = {name: w.copy() for name, w in changed.items()}  # batch norms move their statistics
        tape = autograd.Tape(net.nodes, {**fresh, "image": image})
        return float((tape.arrays["scores"] * towards).sum())

    tape = autograd.Tape(net.nodes, {**{k: w.copy() for k, w in weights.items()}, "image": image})
    gradients = tape.gradients("scores", towards)
    for name in weights:
        if name.endswith((".mean", ".var")):
            assert name not in gradients
            continue
        direction = random.standard_normal(weights[name].shape)
        step = 1e-7
        ahead = loss({**weights, name: weights[name] + step * direction})
        behind = loss({**weights, name: weights[name] - step * direction})
        expected = float((gradients[name] * direction).sum())
        assert (ahead - behind) / (2 * step) == pytest.approx(expected, rel=1e-4, abs=1e-4), name
