"""Artifacts of int8 with open sizes: steps of smaller sizes have the numbers of the largest, and
answer as these do.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

import qcompiler
from qcompiler import driver
from qcompiler.driver import Compilation
from qcompiler.errors import Skip
from qcompiler.ir import Array, Graph, Node, constant, substitute
from qcompiler.ops import make
from qcompiler.options import Options, Watch
from qcompiler.plan import open_plan
from qcompiler.quantization.resized import differences, resized
from qcompiler.runtime import open_sizes
from tests.networks.test_open_sizes import answers
from tests.rewrite.test_padding import IMAGES, SEQUENCES, model_of, random_feed

LAYERS = """g (float[1,seq,16] x) => (float[1,seq,16] h, uint8[1,seq,16] y)
    <float[16,16] v = {@256}, float[16,16] w = {@256}, float[16] b = {@16}> {
    a = MatMul(x, v) c = Add(a, b) d = Relu(c) e = MatMul(d, w) h = Add(e, b)
    s = Constant<value_float=0.05>() i = Constant<value_int=1>() z = Cast<to=2>(i)
    y = QuantizeLinear(h, s, z) }"""
DIMS = {"seq": "1..64"}
"""Of these sizes, one is the width of a layer, too."""
Feed = dict[str, Array]


@pytest.fixture(autouse=True)
def nan_behind_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_sizes, "BEHIND", {"f": float("nan"), "i": 1})


def rows(length: int) -> Feed:
    random = np.random.default_rng(length)
    return {"x": random.standard_normal((1, length, 16)).astype(np.float32)}


def pixels(size: int) -> Feed:
    random = np.random.default_rng(size)
    return {"x": random.standard_normal((1, 2, size, size + 1)).astype(np.float32)}


def compilation(precision: str = "int8") -> Compilation:
    data = [rows(n) for n in (3, 17, 40, 64)]
    asked = {"dims": DIMS, "opt_dims": {"seq": 8}}  # so that this size has steps, too
    options = Options(**asked, precision=precision, calibration=data, threads=1)
    return Compilation(model_of(LAYERS), options, Watch())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_integers_are_the_same_whichever_steps_compute_them(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compilation(precision).artifact
    assert [p.sizes for p in made.manifest.variants[0].pinned] == [(64,), (8,), (1,)]
    model = qcompiler.load(made)
    for length in (1, 7, 8):
        *smaller, largest = answers(model, rows(length), monkeypatch)
        assert len(smaller) == 1 + (length == 1)
        for found in smaller:
            np.testing.assert_array_equal(found["y"], largest["y"])
            np.testing.assert_allclose(found["h"], largest["h"], 1e-6, 1e-6)


def test_images_are_the_same_whichever_steps_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_plan, "TRIES", 0)  # kernels that end with images need no other steps
    data = [pixels(n) for n in (9, 14, 19)]
    dims = {"h": "9..20", "w": "9..20"}
    model = model_of(f"g {IMAGES['convolutions']}")
    made = qcompiler.compile(model, dims=dims, precision="int8", calibration=data, threads=1)
    *smaller, largest = answers(qcompiler.load(made), pixels(9), monkeypatch)
    assert smaller
    for found in smaller:
        np.testing.assert_allclose(found["y"], largest["y"], 1e-5, 1e-5)


def test_weights_are_kept_once() -> None:
    made = compilation()
    alone = made.having(smaller=[])
    assert len(made.plan.weights) < 1.2 * len(alone.plan.weights)


def test_sizes_whose_integers_would_be_others_have_no_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "resized", lambda quantized, *_: _with_another_weight(quantized))
    with caplog.at_level(logging.INFO, "qcompiler.plan.open_plan"):
        opened = compilation().plan.opened
    assert opened is not None
    assert [p.sizes for p in opened.pinned] == [(64,)]
    assert "no steps for sizes to 8: integers would be others: int8[16,16]" in caplog.text


def _with_another_weight(graph: Graph) -> Graph:
    def change(node: Node) -> Node:
        if not node.is_constant or node.dtype != "int8" or node.type.rank < 2:
            return node
        array = np.array(node.array)
        array.flat[0] ^= 1
        return constant(array, node.name)

    return substitute(graph, change)


def test_a_scale_or_a_weight_that_differs_is_found() -> None:
    lowered = compilation().lowered
    assert not differences(lowered, lowered)
    assert "int8[16,16]" in differences(lowered, _with_another_weight(lowered))

    def coarser(node: Node) -> Node:
        scale = node.is_constant and node.dtype == "float32" and not node.type.rank
        return constant(node.array * np.float32(1.001), node.name) if scale else node

    assert "float32[]" in differences(lowered, substitute(lowered, coarser))


def test_a_graph_that_differs_in_more_than_sizes_is_refused() -> None:
    made = compilation()
    exact, quantized = made.calibrated, made.quantized
    assert isinstance(resized(quantized, exact, exact), Graph)

    def other(node: Node) -> Node:
        return make("Sigmoid", *node.operands, name=node.name) if node.op == "Relu" else node

    found = resized(quantized, exact, substitute(exact, other))
    assert isinstance(found, Skip)
    assert "another node" in found.reason


def test_weights_that_differ_are_refused() -> None:
    made = compilation()
    exact, quantized = made.calibrated, made.quantized

    def scaled(node: Node) -> Node:
        weights = node.is_constant and node.dtype == "float32" and node.type.rank > 1
        return constant(node.array * 2, node.name) if weights else node

    found = resized(quantized, exact, substitute(exact, scaled))
    assert isinstance(found, Skip)
    assert "may depend on the sizes" in found.reason


def test_outputs_of_fewer_rows_than_inputs_are_compared_with_float() -> None:
    model = model_of(f"g {SEQUENCES['last']}")
    data = [random_feed(model, {"s": n}, n) for n in (3, 8)]
    made = qcompiler.compile(model, dims={"s": "2..9"}, precision="int8", calibration=data)
    assert "SQNR inf dB" in made.manifest.notes["agreement"]


def test_pruned_models_have_the_largest_sizes_alone() -> None:
    made = compilation()
    pruned = replace(made, options=replace(made.options, prune=["2:4"]))
    assert not pruned.smaller
