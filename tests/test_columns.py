"""What products multiply: some of it is kept, and says which range and how many bits it needs."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from qcompiler.calibrate import calibrate
from qcompiler.columns import EAGER, NUMBERS, Read
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make
from qcompiler.stages import build

DEPTH = 128


def product(weights: Array, x: Node, name: str = "product") -> Node:
    return make("MatMul", x, constant(weights.astype(np.float32)), name=name)


def graph_of(weights: Array) -> Graph:
    x = placeholder("x", Type("float32", (64, DEPTH)))
    return Graph((x,), (product(weights, x),), ("y",))


def data(loud: float, count: int = 60) -> list[dict[str, Array]]:
    """Channel 0 is mostly silent and sometimes `loud`."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        x = rng.standard_normal((64, DEPTH))
        x[:, 0] = np.where(rng.random(64) < 0.004, loud, 0)
        made.append({"x": x.astype(np.float32)})
    return made


def step(graph: Graph, samples: list[dict[str, Array]], method: str) -> float:
    made = build("quantize_static", {"statistics": calibrate(graph, samples, method=method)})(graph)
    (pair,) = (n for n in made.nodes if n.op == "QuantizeLinear")
    return float(pair.operands[1].array)


def test_what_the_readers_need_decides_where_a_range_ends() -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((DEPTH, 16))
    deaf, keen = weights.copy(), weights.copy()
    deaf[0], keen[0] = 0, 20 * weights[0]
    samples = data(20.0)
    whole = step(graph_of(weights), samples, "minmax")
    assert step(graph_of(deaf), samples, "output") < 0.7 * whole
    assert step(graph_of(keen), samples, "output") > 0.9 * whole


def test_a_product_that_8_bits_would_ruin_stays_float_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = np.random.default_rng(2)
    spread = np.exp(2.5 * rng.standard_normal(DEPTH))
    first, second = rng.standard_normal((2, DEPTH, DEPTH)) / np.sqrt(DEPTH)
    x = placeholder("x", Type("float32", (64, DEPTH)))
    hidden = make("Relu", product(first * spread, x, "first"), name="hidden")
    graph = Graph((x,), (product(second / spread[:, None], hidden, "second"),), ("y",))
    samples = [{"x": rng.standard_normal((64, DEPTH)).astype(np.float32)} for _ in range(9)]
    found = {}
    for method in ("output", "mse"):
        with caplog.at_level(logging.WARNING):
            statistics = calibrate(graph, samples, method=method)
            found[method] = build("quantize_static", {"statistics": statistics})(graph)
    exact = evaluate(graph, samples[0])["y"]
    errors = {
        m: np.square(evaluate(g, samples[0])["y"] - exact).sum() / np.square(exact).sum()
        for m, g in found.items()
    }
    assert errors["output"] < 1e-3 < errors["mse"]
    assert found["output"].notes["kept_float32"] == "second"
    assert "kept_float32" not in found["mse"].notes
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records] == ["second"]


def test_columns_are_drawn_evenly_from_all_samples_and_are_few() -> None:
    weights = np.zeros((DEPTH, 4))
    read = Read(graph_of(weights).outputs[0])
    for number in range(1000):
        read.add(np.full((64, DEPTH), number, np.float32))
    drawn = read.columns[0, 0]
    assert read.columns.size <= NUMBERS
    assert len(drawn) >= EAGER
    assert 350 < drawn.mean() < 650
    assert drawn.max() > 800
    assert drawn.min() < 200
