"""A limit on what may be lost -> an artifact that keeps to it; no trial is made twice."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qcompiler import Error, load, plugins
from qcompiler.cli.quality import allowed
from qcompiler.data.calibrate import CANDIDATES, Statistics, calibrate
from qcompiler.driver import Compilation
from qcompiler.emit.assemble import assemble
from qcompiler.ir import Graph, substitute
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.writer import write
from qcompiler.ops import evaluate
from qcompiler.options import Options, Watch
from qcompiler.plan.plan import plan
from qcompiler.quality import mixed_precision, trial
from qcompiler.quality.metrics import (
    METRICS,
    agreement,
    cosine,
    divergence,
    loss,
    paired,
    top1,
    top5,
)
from qcompiler.quality.mixed_precision import Demand
from qcompiler.quality.mixture import Layer, Mixture, chosen_ranges, mixed, ordered
from qcompiler.runtime import Model
from qcompiler.stages import Choice, build, run_stage
from qcompiler.tune import timing

pytestmark = pytest.mark.usefixtures("weights_of_8_bits")

WIDTH = 32


def network() -> onnx.ModelProto:
    """Three layers; one input channel of the second is a thousand times larger than the others, so
    that int8 ruins it.
    """
    rng = np.random.default_rng(0)
    first, second, third = (rng.standard_normal((WIDTH, WIDTH)).astype("f") for _ in range(3))
    first[:, 0] *= 1000
    second[0] /= 1000
    names = ("first", "second", "third")
    nodes = [
        helper.make_node("MatMul", [x, f"w{i}"], [y], names[i])
        for i, (x, y) in enumerate((("x", "a"), ("a", "b"), ("b", "y")))
    ]
    weights = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate((first, second, third))]
    shape = ["N", WIDTH]
    graph = helper.make_graph(
        nodes,
        "three layers",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def data(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((4, WIDTH)).astype("f")} for _ in range(count)]


OPTIONS = Options(
    precision="int8",
    calibration=data(20),
    calibration_method="mse",  # the default keeps what suffers in float by itself
    input_shapes={"x": (4, WIDTH)},
)


@pytest.fixture(autouse=True)
def int8_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "of_steps", lambda model, inputs: {})
    monkeypatch.setattr(mixed_precision, "multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(timing, "medians", lambda a, b: (1.0, 2.0))


def found(drop: float, count: int = 60, **more: object) -> mixed_precision.Found:
    demand = Demand(drop, data(count, 1), **more)  # type: ignore[arg-type]
    return mixed_precision.compile(network(), OPTIONS, demand, Watch())


def test_what_loses_too_much_goes_back_to_float() -> None:
    kept = found(2.0, 200)
    assert kept.chosen.floats == ("second",)
    assert kept.chosen.score >= 98.0 == kept.floor
    worst = max(kept.layers, key=lambda x: x.sensitivity)
    assert worst.name == "second"
    x = data(1, 2)[0]["x"]
    exact = evaluate(read(network()), {"x": x})["y"]
    assert cosine({"y": load(kept.made.artifact)(x)}, {"y": exact}, None) > 99.0


def test_a_wide_limit_keeps_everything_in_int8() -> None:
    kept = found(200.0)
    assert kept.chosen.floats == ()
    assert kept.chosen.method == "mse"
    assert len(kept.trials) == 1  # the first was good enough


def test_no_loss_at_all_is_float() -> None:
    kept = found(0.0, metric="cosine")
    assert kept.chosen.score >= kept.floor == pytest.approx(100.0)
    assert kept.chosen.method == "float32" or len(kept.chosen.floats) == 3


def test_what_is_slower_than_float_is_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "medians", lambda a, b: (2.0, 1.0))
    kept = found(200.0)
    assert kept.chosen.method == "float32"
    assert kept.chosen.seconds == 1.0


def test_a_quantized_model_is_no_float_model() -> None:
    coarse = write(Compilation(network(), OPTIONS).quantized)
    with pytest.raises(Error, match="the model is quantized already"):
        mixed_precision.compile(coarse, OPTIONS, Demand(1.0, data(4)), Watch())


def test_labels_and_a_relative_limit() -> None:
    exact = read(network())
    labels = np.concatenate([evaluate(exact, s)["y"].argmax(-1) for s in data(60, 1)])
    labels[::4] = 0  # the float model is right in about three of four
    kept = found(4.0, relative=True, labels=labels)
    assert kept.metric == "top1"
    assert kept.exact < 90
    assert kept.floor == pytest.approx(kept.exact * 0.96)
    assert kept.chosen.score >= kept.floor


def test_an_interrupted_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.json"
    whole = trial.Trier.outputs
    measured: list[object] = []

    def until(count: int) -> None:
        def outputs(self: trial.Trier, mixture: Mixture, samples: object) -> object:
            if len(measured) == count:
                raise KeyboardInterrupt
            measured.append(mixture)
            return whole(self, mixture, samples)  # type: ignore[arg-type]

        monkeypatch.setattr(trial.Trier, "outputs", outputs)

    until(4)
    with pytest.raises(KeyboardInterrupt):
        found(2.0, state=state)
    assert state.exists()
    until(-1)
    resumed = found(2.0, state=state)
    total = len(measured)
    assert not state.exists()
    measured.clear()
    fresh = found(2.0)
    assert total == len(measured)  # nothing was measured twice
    assert resumed.chosen.floats == fresh.chosen.floats


def test_a_state_of_other_data_or_labels_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state.json"
    monkeypatch.setattr(mixed_precision._State, "forget", lambda self: None)
    marks = []
    for seed, label in ((1, 0), (1, 0), (1, 1), (2, 0)):
        labels = np.full(60, label)
        demand = Demand(0.01, data(15, seed), labels=labels, metric="cosine", state=state)
        mixed_precision.compile(network(), OPTIONS, demand, Watch())
        marks.append(mixed_precision.json.loads(state.read_text())["mark"])
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


def test_a_state_of_something_else_is_not_used(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"mark": "another model", "values": {"x": [1, 2]}}')
    assert found(200.0, state=state).chosen.floats == ()
    state.write_text("half a fi")
    with pytest.raises(Error, match="not the state of a search"):
        found(200.0, state=state)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "top1"}, "needs labels"),
        ({"metric": "best"}, "unknown metric"),
        ({"labels": np.zeros(7)}, "labels of shape"),
        ({"data": []}, "no samples"),
        ({"drop": -1.0}, "a loss of -1"),
        ({"drop": math.nan}, "a loss of nan"),
    ],
)
def test_demands_that_cannot_be_met(change: dict[str, object], told: str) -> None:
    demand = Demand(**{"drop": 1.0, "data": data(8), **change})  # type: ignore[arg-type]
    with pytest.raises(Error, match=told):
        mixed_precision.compile(network(), OPTIONS, demand, Watch())


def test_int8_is_what_is_searched_for() -> None:
    with pytest.raises(Error, match="float32"):
        mixed_precision.compile(network(), Options(), Demand(1.0, data(8)), Watch())


def test_limits_as_people_write_them() -> None:
    assert allowed("0.5") == (0.5, False)
    assert allowed("1%") == (1.0, True)
    with pytest.raises(Error, match="max-drop"):
        allowed("little")


# Metrics, against what their names mean.


def test_metrics() -> None:
    scores = np.array([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9], [0.6, 0.3, 0.1]])
    exact = {"y": np.roll(scores, 2, axis=0)}
    labels = np.array([1, 0, 0, 0])
    assert top1({"y": scores}, exact, labels) == 75.0
    assert agreement({"y": scores}, {"y": scores}, None) == 100.0
    assert agreement({"y": scores}, exact, None) == 50.0
    assert cosine({"y": 2 * scores}, {"y": scores}, None) == pytest.approx(100.0)
    assert cosine({"y": np.zeros((2, 3))}, {"y": np.zeros((2, 3))}, None) == 100.0
    assert loss({"y": scores * 1.1}, {"y": scores}) == pytest.approx(0.01)
    wide = np.tile(np.arange(9.0), (2, 1))
    assert top5({"y": wide}, {}, np.array([4, 3])) == 50.0
    assert set(METRICS) == {"top1", "top5", "agreement", "cosine"}


def test_divergence_is_smooth_where_scores_are_not() -> None:
    scores = np.random.default_rng(0).standard_normal((50, 5))
    exact = {"y": scores}
    shares = {"y": np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)}
    noise = np.random.default_rng(1).standard_normal((50, 5))
    found = [divergence({"y": scores + f * noise}, exact) for f in (0, 0.001, 0.01, 0.1, 1)]
    assert found[0] == 0
    assert found == sorted(found)
    assert len({agreement({"y": scores + f * noise}, exact, None) for f in (0, 0.001)}) == 1
    near = {"y": shares["y"] * (1 + 0.01 * noise)}
    assert 0 < divergence(near, shares) < 1e-3  # probabilities are taken as they are
    maps = {"y": np.ones((2, 3, 4))}
    assert divergence({"y": maps["y"] * 1.1}, maps) == pytest.approx(0.01)


def rows(lost: int, won: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows were right before, and after."""
    before = np.repeat([True, False, True], [lost, won, kept])
    return before, np.repeat([False, True, True], [lost, won, kept])


@pytest.mark.parametrize(
    ("lost", "won", "kept", "drop", "passed"),
    [
        (0, 0, 200, 0.0, True),
        (1, 0, 199, 0.0, False),  # nothing may be lost
        (1, 0, 199, 0.5, True),
        (5, 3, 192, 0.5, True),  # one row beyond the limit, and eight changed
        (2, 0, 198, 0.2, False),  # more than a row beyond
        (30, 0, 1970, 0.5, False),  # 1.5 points, all one way
        (30, 24, 1946, 0.25, True),  # within a row of the limit
        (200, 0, 1800, 12.0, True),
        (9000, 0, 1000, 50.0, False),
    ],
)
def test_a_loss_is_judged_by_the_rows_that_changed(
    lost: int, won: int, kept: int, drop: float, passed: bool
) -> None:
    assert paired(*rows(lost, won, kept), drop).passed is passed


def test_data_too_small_for_the_limit_is_said() -> None:
    assert "200 rows tell losses apart" in paired(*rows(3, 2, 195), 0.5).unsure
    assert paired(*rows(30, 20, 49950), 0.5).unsure == ""


# The order in which products leave int8.


def layer(name: str, lost: float, half: float, seconds: tuple[float, float, float]) -> Layer:
    """A product; its loss in int8 and bfloat16, its seconds in these and in float32."""
    return Layer(name, "MatMul", seconds[2], seconds[0], lost, seconds[1], half)


def test_steps_out_of_int8_are_taken_by_what_they_are_worth() -> None:
    usual, slow = layer("usual", 1.0, 0.1, (1, 2, 4)), layer("slow", 0.6, 0.01, (1, 5, 4))
    useless = layer("useless", 0.5, 0.45, (1, 2, 4))
    never = layer("never", 0.4, math.nan, (1, math.nan, 4))
    steps = ordered([never, useless, slow, usual])
    assert steps == [
        ("usual", "bfloat16"),  # 0.9 for a second
        ("slow", "float32"),  # 0.6 for three: bfloat16 is slower than float32
        ("useless", "float32"),  # 0.5 for three: bfloat16 is hardly better than int8
        ("never", "float32"),
        ("usual", "float32"),  # 0.1 for two more
    ]
    assert mixed(steps[:2]) == Mixture(("slow",), ("usual",))
    assert set(mixed(steps).floats) == {"usual", "slow", "useless", "never"}
    assert mixed(steps).halves == ()


def test_a_range_is_changed_for_a_tenth_less_loss() -> None:
    losses = {
        "a": {"mse": 1.0, "minmax": 0.95},
        "b": {"mse": 1.0, "minmax": 0.8, "percentile": 0.7},
    }
    assert chosen_ranges(losses, "mse") == {"b": "percentile"}


# The trial model.


def residual() -> onnx.ModelProto:
    """Sums, moves and a pool between products, which int8 goes through."""
    rng = np.random.default_rng(0)
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        residual (float[1, 8, 6, 6] x) => (float[1, 8, 3, 3] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            b = Relu(a)
            c = Conv <pads = [1, 1, 1, 1]> (b, v)
            d = Add(b, c)
            e = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
            y = Conv(e, u)
        }
    """
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, "abcdey", strict=True):
        node.name = name
    shapes = {"w": (8, 8, 3, 3), "v": (8, 8, 3, 3), "u": (8, 8, 1, 1)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_all_float_is_the_float_model_and_all_int8_the_quantized_one() -> None:
    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(8)]
    graph = read(residual())
    for stage in ("fold", "fuse"):
        graph = run_stage(graph, stage)
    statistics = calibrate(graph, samples, method="mse", percentile=99)

    def quantize(graph: Graph, statistics: Statistics, **more: object) -> Graph:
        return build("quantize_static", {"statistics": statistics, **more})(graph)

    here = plugins.device("host")
    trier = trial.Trier("mse", graph, statistics, quantize, Choice(), here, "acy", CANDIDATES)
    exact = np.concatenate([evaluate(graph, s)["y"] for s in samples])
    pairs = quantize(graph, statistics)
    coarse = np.concatenate([evaluate(pairs, s)["y"] for s in samples])
    size = np.abs(exact).max()
    everything = tuple(trier.units)
    assert set(everything) == {"a", "c", "y"}
    np.testing.assert_allclose(
        trier.outputs(Mixture(everything), samples)["y"], exact, rtol=0, atol=1e-5 * size
    )
    noise = np.abs(coarse - exact).max()
    assert noise > 1e-3 * size
    assert np.abs(trier.outputs(Mixture(), samples)["y"] - coarse).max() < 0.3 * noise
    alone = trier.outputs(Mixture(("c", "y")), samples)["y"]
    assert 0 < np.abs(alone - exact).max() < noise
    half = trier.outputs(Mixture((), everything), samples)["y"]
    assert 1e-4 * size < np.abs(half - exact).max() < noise / 2
    whole = mixed_artifact(graph, statistics, Mixture((), everything), samples)
    assert np.abs(half - whole).max() < 1e-2 * size
    # What moves of data link has one range, in the trial model as in the artifact.
    mixture = Mixture((), (), (("c", "minmax"), ("y", "percentile")))
    found = trier.outputs(mixture, samples)["y"]
    assert trier.others("y") == ["percentile"]
    cut = mixed_artifact(graph, statistics, mixture, samples)
    assert np.abs(found - cut).max() < 0.1 * np.abs(cut - whole).max()


def mixed_artifact(
    graph: Graph, statistics: Statistics, mixture: Mixture, samples: list[dict[str, np.ndarray]]
) -> np.ndarray:
    """A mixture, compiled for itself -> its outputs."""
    here = plugins.device("host")
    options = {"statistics": statistics, **mixture.options()}
    pairs = build("quantize_static", options)(graph)
    lowered = run_stage(run_stage(pairs, "integer"), "layout", None, Choice(), here)
    model = load(assemble(plan(lowered, here)))
    return np.concatenate([model.run(s)["y"] for s in samples])


def test_parts_of_one_product_are_one_unit() -> None:
    """They have one name, as what was split has."""
    graph = read(residual())
    c = next(n for n in graph.nodes if n.name == "c")
    twins = {c: replace(c, name="a")}
    graph = graph.with_outputs(substitute(graph, lambda n: twins.get(n, n)).outputs)
    samples = [{"x": np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype("f")}] * 2
    statistics = calibrate(graph, samples, method="mse")

    def quantize(graph: Graph, statistics: Statistics, **more: object) -> Graph:
        return build("quantize_static", {"statistics": statistics, **more})(graph)

    here = plugins.device("host")
    trier = trial.Trier("mse", graph, statistics, quantize, Choice(), here, "ay", CANDIDATES)
    assert set(trier.units) == {"a", "y"}
    exact = evaluate(graph, samples[0])["y"]
    floats = trier.outputs(Mixture(("a", "y")), samples[:1])["y"]
    np.testing.assert_allclose(floats, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
    pairs = quantize(graph, statistics, **Mixture(("a",)).options())
    assert not [n for n in pairs.nodes if n.name == "a" and n.operands[0].op == "DequantizeLinear"]


def half_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose int8 takes 1 second a product, bfloat16 2 and float32 4."""
    lasts = {"uint8": 1.0, "int8": 1.0, "bfloat16": 2.0, "float32": 4.0}

    def of_steps(model: Model, inputs: object) -> dict[str, float]:
        return {s.name: lasts.get(s.operands, 0.0) for s in model.variant.steps}

    monkeypatch.setattr(timing, "of_steps", of_steps)
    monkeypatch.setattr(mixed_precision, "multiplies_bfloat16", lambda device: True)


def test_what_8_bits_ruin_is_bfloat16_before_it_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    half_as_long(monkeypatch)
    kept = found(2.0, 200)
    assert kept.chosen.halves == ("second",)
    assert kept.chosen.floats == ()
    assert kept.chosen.form("second") == "bfloat16"
    steps = {s.name: s.operands for s in kept.made.artifact.manifest.variants[0].steps}
    assert steps["second"] == "bfloat16"
    assert steps["third"] == "uint8"
    x = data(1, 2)[0]["x"]
    exact = evaluate(read(network()), {"x": x})["y"]
    assert cosine({"y": load(kept.made.artifact)(x)}, {"y": exact}, None) > 99.0


def test_a_limit_that_bfloat16_breaks_ends_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    half_as_long(monkeypatch)
    kept = found(1e-7, metric="cosine")
    assert kept.chosen.method == "float32"
    assert any(t.halves for t in kept.trials)  # it was tried


def test_another_range_is_tried_before_other_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two products needs another method's range: no method serves the whole network."""
    half_as_long(monkeypatch)
    rng = np.random.default_rng(0)

    def sample(loud: float) -> dict[str, np.ndarray]:
        # What is far out in a matters; in b it is multiplied by zero.
        a, b = rng.standard_normal((2, 64, WIDTH)).astype("f")
        a[:32, 0], a[:32, 1], b[0, 0] = 10, 3, loud
        return {"a": a, "b": b}

    graph = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        two (float[64, {WIDTH}] a, float[64, {WIDTH}] b) => (float[64, 8] y, float[64, 8] z) {{
            y = MatMul(a, v)
            z = MatMul(b, w)
        }}
    """)
    v, w = rng.standard_normal((2, WIDTH, 8)).astype("f")
    v[:2], w[0] = 30 * v[:2], 0
    graph.graph.initializer.extend(
        [numpy_helper.from_array(v, "v"), numpy_helper.from_array(w, "w")]
    )
    for node, name in zip(graph.graph.node, "yz", strict=True):
        node.name = name
    calibration = [sample(4000), *(sample(0) for _ in range(19))]
    for quiet in calibration[1:]:
        quiet["a"][:, 0] = 0
    calibration[0]["a"][1:, 0] = 0
    options = replace(OPTIONS, calibration=calibration, input_shapes={})
    options = replace(options, calibration_method="minmax")
    monkeypatch.setattr(mixed_precision, "CANDIDATES", ("minmax", "percentile"))
    checked = [sample(0) for _ in range(20)]
    kept = mixed_precision.compile(graph, options, Demand(0.3, checked, metric="cosine"), Watch())
    assert kept.chosen.ranges
    assert not kept.chosen.halves
    assert not kept.chosen.floats


def test_int8_that_is_good_enough_is_compiled_once_and_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no(*given: object) -> None:
        raise AssertionError("a trial model was made")

    monkeypatch.setattr(mixed_precision, "Trier", no)
    kept = found(200.0)
    assert [t.floats for t in kept.trials] == [()]


def test_classes_of_maps_are_axis_one() -> None:
    maps = np.zeros((1, 2, 2, 2))
    maps[0, 1, 0] = 1
    assert top1({"y": maps}, {}, np.array([[[1, 1], [0, 1]]])) == 75.0


def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def score(outputs, reference, labels):\n    return 42.0 + len(labels)\n")
    kept = found(1.0, metric=f"{file}:score", labels=np.zeros(240))
    assert kept.chosen.score == 42.0 + 240
    missing = SimpleNamespace(metric=f"{file}:absent")
    with pytest.raises(Error, match="no function 'absent'"):
        found(1.0, metric=missing.metric)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def score(o, r, l): return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("def score(o): return 1.0", "raised TypeError"),
        ("def score(o, r, l): return None", "raised TypeError"),
        ("def score(o, r, l): return float('nan')", "the score of the samples is nan"),
        ("def score(o, r, l): r['y'][...] = 0", "raised ValueError"),
        ("def score(", "raised SyntaxError"),
        ("import sys; sys.exit(0)", "raised SystemExit"),
    ],
)
def test_a_metric_that_fails_says_so(tmp_path: Path, code: str, told: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(Error, match=told) as raised:
        found(1.0, metric=f"{file}:score")
    assert "mine.py" in str(raised.value)


@pytest.mark.parametrize("labels", [np.full(240, "a"), np.full(240, np.nan), np.full(240, 0.5)])
def test_labels_that_are_no_classes(labels: np.ndarray) -> None:
    with pytest.raises(Error, match="are no classes"):
        found(1.0, labels=labels)
