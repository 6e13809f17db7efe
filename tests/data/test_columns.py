"""What products multiply: some of it is kept, and says which range and how many bits it needs."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from qcompiler import load, plugins
from qcompiler.data.calibrate import calibrate
from qcompiler.data.columns import EAGER, NUMBERS, Read
from qcompiler.emit.assemble import assemble
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make
from qcompiler.plan.plan import plan
from qcompiler.stages import Choice, build, run_stage

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


def ruined() -> tuple[Graph, list[dict[str, Array]]]:
    """Two products; the second reads channels of very different ranges."""
    rng = np.random.default_rng(2)
    spread = np.exp(2.5 * rng.standard_normal(DEPTH))
    first, second = rng.standard_normal((2, DEPTH, DEPTH)) / np.sqrt(DEPTH)
    x = placeholder("x", Type("float32", (64, DEPTH)))
    hidden = make("Relu", product(first * spread, x, "first"), name="hidden")
    graph = Graph((x,), (product(second / spread[:, None], hidden, "second"),), ("y",))
    return graph, [{"x": rng.standard_normal((64, DEPTH)).astype(np.float32)} for _ in range(9)]


def noise(found: Array, exact: Array) -> float:
    """Squared error over power."""
    return float(np.square(found - exact).sum() / np.square(exact).sum())


def test_a_product_that_8_bits_would_ruin_stays_float_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    graph, samples = ruined()
    found = {}
    for method in ("output", "mse"):
        with caplog.at_level(logging.WARNING):
            statistics = calibrate(graph, samples, method=method)
            found[method] = build("quantize_static", {"statistics": statistics})(graph)
    exact = evaluate(graph, samples[0])["y"]
    errors = {m: noise(evaluate(g, samples[0])["y"], exact) for m, g in found.items()}
    assert errors["output"] < 1e-3 < errors["mse"]
    assert found["output"].notes["kept_float32"] == "second"
    assert "kept_float32" not in found["mse"].notes
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records] == ["second"]


@pytest.mark.parametrize(
    ("isa", "kind"), [("x86_avx512bf16", "bfloat16"), ("x86_amx", "bfloat16"), ("x86_avx2", "")]
)
def test_it_takes_bfloat16_where_the_device_multiplies_that(isa: str, kind: str) -> None:
    graph, samples = ruined()
    device = plugins.device(isa, 1)
    statistics = calibrate(graph, samples, method="output")
    made = build("quantize_static", {"statistics": statistics}, device)(graph)
    assert {n.op for n in made.nodes} >= {"QuantizeLinear", "MatMul"}  # ONNX can say all of it
    assert ("kept_float32" in made.notes) is not bool(kind)
    whole = run_stage(made, "integer", None, Choice(), device)
    halves = [n for n in whole.nodes if n.op == "matmul" and n.operands[0].dtype == "bfloat16"]
    assert [n.name for n in halves] == (["second"] if kind else [])
    exact = evaluate(graph, samples[0])["y"]
    assert noise(evaluate(whole, samples[0])["y"], exact) < 1e-3


def test_products_of_16_bits_are_bfloat16_in_an_int8_network() -> None:
    graph, samples = ruined()
    options = {"statistics": calibrate(graph, samples, method="mse"), "layers": ("second=16",)}
    made = run_stage(build("quantize_static", options)(graph), "integer")
    exact = evaluate(graph, samples[0])["y"]
    assert noise(evaluate(made, samples[0])["y"], exact) < 1e-3
    (half,) = (n for n in made.nodes if n.op == "matmul")
    assert {i.dtype for i in half.operands} == {"bfloat16"}
    here = plugins.device("host")
    model = load(assemble(plan(run_stage(made, "layout", None, Choice(), here), here)))
    steps = {s.name: s.operands for s in model.variant.steps}
    assert (steps["first"], steps["second"]) == ("uint8", "bfloat16")
    found = model.run(samples[0])["y"]
    assert noise(found, evaluate(made, samples[0])["y"]) < 1e-4


def test_the_range_of_what_a_product_reads_may_be_asked_for() -> None:
    weights = np.random.default_rng(1).standard_normal((DEPTH, 16))
    graph, samples = graph_of(weights), data(20.0)
    statistics = calibrate(graph, samples, method="mse")
    steps = {}
    for ranges in ((), ("product=minmax",), ("other=minmax",), ("prod.*=percentile",)):
        made = build("quantize_static", {"statistics": statistics, "ranges": ranges})(graph)
        (pair,) = (n for n in made.nodes if n.op == "QuantizeLinear")
        steps[ranges] = float(pair.operands[1].array)
    assert steps[("product=minmax",)] == step(graph, samples, "minmax")
    assert steps[("prod.*=percentile",)] == step(graph, samples, "percentile")
    assert steps[()] == steps[("other=minmax",)] != steps[("product=minmax",)]
    with pytest.raises(Error, match="is not PATTERN=METHOD"):
        build("quantize_static", {"statistics": statistics, "ranges": ("a=b",)})(graph)


def depthwise(spread: float) -> tuple[Graph, list[dict[str, Array]]]:
    """Sixteen independent channels; the largest is e^spread times the smallest."""
    rng = np.random.default_rng(3)
    size = np.exp(np.linspace(-spread / 2, spread / 2, 16)).reshape(1, 16, 1, 1)
    w = constant(rng.standard_normal((16, 1, 3, 3)).astype(np.float32))
    x = placeholder("x", Type("float32", (1, 16, 8, 8)))
    y = make("Conv", x, w, group=16, kernel_shape=(3, 3), pads=(1, 1, 1, 1), name="depthwise")
    samples = [{"x": (rng.standard_normal((1, 16, 8, 8)) * size).astype(np.float32)}]
    return Graph((x,), (y,), ("y",)), samples * 3


@pytest.mark.parametrize("spread", [1.0, 9.0])
def test_quiet_channels_of_a_depthwise_convolution_are_not_drowned(spread: float) -> None:
    graph, samples = depthwise(spread)
    statistics = calibrate(graph, samples, method="output")
    made = build("quantize_static", {"statistics": statistics})(graph)
    assert "kept_float32" not in made.notes
    exact, coarse = (evaluate(g, samples[0])["y"][0] for g in (graph, made))
    assert max(noise(c, e) for c, e in zip(coarse, exact, strict=True)) < 2e-3
    (pair,) = (n for n in made.nodes if n.op == "QuantizeLinear")
    steps = pair.operands[1].array
    assert bool(steps.min() < steps.max() / 64) == (spread > 5)


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
