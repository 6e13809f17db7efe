"""The networks of the benchmarks are real models: valid, finite, and they depend on their input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from oracles import onnxruntime_outputs

from benchmarks import networks
from qcompiler.onnx_io.reader import read

SHALLOW: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet50": networks.resnet50,
    "mobilenetv2": networks.mobilenetv2,
    "vit_s16": lambda: networks.vit_s16(layers=1),
    "bert_base": lambda: networks.bert_base(layers=1),
}


def test_every_network_is_tried_here() -> None:
    assert set(SHALLOW) == set(networks.NETWORKS)


@pytest.mark.parametrize("name", SHALLOW)
def test_a_network_is_valid_and_keeps_its_activations_in_size(name: str) -> None:
    model = SHALLOW[name]()
    onnx.checker.check_model(model, full_check=True)
    graph = read(model)
    random = np.random.default_rng(0)
    feed = {
        i.name: random.standard_normal((2, *i.shape[1:]), np.float32)
        if i.dtype == "float32"
        else random.integers(0, 2, (2, *i.shape[1:]))
        for i in graph.inputs
    }
    for output in onnxruntime_outputs(model, feed, ours=True).values():
        assert np.isfinite(output).all()
        assert 0.1 < output.std() < 100
        assert np.abs(output[0] - output[1]).max() > 0.1


def test_the_same_network_twice_is_the_same_file() -> None:
    first, second = networks.mobilenetv2(), networks.mobilenetv2()
    assert first.SerializeToString() == second.SerializeToString()
