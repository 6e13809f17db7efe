"""Statistics of activations: exact where they claim it, bounded in memory, refused where data is
bad.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.data.calibrate import (
    Statistics,
    Summary,
    calibrate,
    fingerprint,
    value_names,
)
from qcompiler.data.histogram import BINS, Histogram
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.options import METHODS


def net(weight: float = 2.0, names: tuple[str, str] = ("mul", "relu")) -> Graph:
    """relu(x * weight)."""
    x = placeholder("x", Type("float32", (4, 8)))
    scaled = make("Mul", x, constant(np.array(weight, np.float32)), name=names[0])
    return Graph((x,), (make("Relu", scaled, name=names[1]),), ("y",))


def samples(count: int = 5, seed: int = 0) -> list[dict[str, Array]]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal((4, 8)).astype(np.float32)} for _ in range(count)]


def observed(values: list[Array], method: str = "percentile", **options: float) -> Statistics:
    statistics = Statistics(method=method, **options)  # type: ignore[arg-type]
    for v in values:
        statistics.observe("v", v.astype(np.float32))
    return statistics


def test_minmax_is_the_extremes_of_all_samples() -> None:
    given = samples()
    statistics = calibrate(net(), given)
    whole = np.concatenate([s["x"] for s in given]) * np.float32(2)
    assert statistics.range("mul") == (whole.min(), whole.max())
    assert statistics.range("relu") == (0, whole.max())
    assert statistics.range("x") == (whole.min() / 2, whole.max() / 2)
    assert statistics.range("absent") is None


def test_average_is_the_mean_of_each_samples_extremes() -> None:
    given = samples()
    statistics = calibrate(net(), given, method="average")
    low, high = statistics.range("x") or (0, 0)
    assert low == pytest.approx(np.mean([s["x"].min() for s in given]))
    assert high == pytest.approx(np.mean([s["x"].max() for s in given]))


@given(st.lists(arrays(np.float32, 7, elements=st.floats(-1e6, 1e6, width=32)), min_size=1))
def test_a_histogram_counts_every_element_whatever_the_order_of_ranges(values: list[Array]) -> None:
    histogram = Histogram()
    for v in values:
        histogram.add(v)
    assert histogram.counts.sum() == 7 * len(values)
    assert histogram.edge >= max(float(np.abs(v).max()) for v in values)
    assert len(histogram.counts) == BINS
    low, high = histogram.quantiles(0.0)
    whole = np.concatenate(values)
    width = 2 * histogram.edge / BINS
    assert low <= whole.min() + 1e-6 * width
    assert high >= whole.max() - 1e-6 * width


def test_doubling_merges_neighbours_exactly() -> None:
    random = np.random.default_rng(0)
    values = random.uniform(-1, 1, 10_000).astype(np.float32)
    fine = Histogram(edge=1.0)
    fine.add(values)
    fine.add(np.array([3.9], np.float32))
    coarse = Histogram(edge=4.0)
    coarse.add(values)
    coarse.add(np.array([3.9], np.float32))
    assert fine.edge == 4
    np.testing.assert_array_equal(fine.counts, coarse.counts)


@pytest.mark.parametrize("percentile", [90, 99, 99.9])
def test_percentiles_are_numpys_to_a_bin(percentile: float) -> None:
    random = np.random.default_rng(0)
    values = [random.standard_normal(20_000) for _ in range(4)]
    low, high = observed(values, percentile=percentile).range("v") or (0, 0)
    tail = (100 - percentile) / 2
    wanted = np.percentile(np.concatenate(values), [tail, 100 - tail])
    width = 2 * 2 * np.abs(np.concatenate(values)).max() / BINS
    np.testing.assert_allclose([low, high], wanted, atol=1.5 * width)


def test_mse_clips_a_far_outlier_and_leaves_a_uniform_spread() -> None:
    random = np.random.default_rng(0)
    normal = random.standard_normal(200_000)
    normal[0] = 10  # clipped to h it costs 3 (10 - h)^2, all others 0.256 (h + 4)^2: h is 8.9
    _, high = observed([np.clip(normal, -4, 10)], "mse").range("v") or (0, 0)
    assert 8.5 < high < 9.3
    uniform = random.uniform(-1, 1, 100_000)
    low, high = observed([uniform], "mse").range("v") or (0, 0)
    assert low < -0.97
    assert high > 0.97


def test_mse_is_near_the_best_of_all_clipping_points() -> None:
    random = np.random.default_rng(0)
    values = random.laplace(size=50_000).astype(np.float32)
    values = np.maximum(values, 0)

    def error(high: float) -> float:
        step = high / 255
        wrong = (np.clip(np.rint(values / step), 0, 255) * step - values) ** 2
        return float(np.mean(np.where(values > high, 3 * wrong, wrong)))

    _, high = observed([values], "mse").range("v") or (0, 0)
    best = min(error(float(values.max()) * f) for f in np.linspace(0.05, 1, 200))
    assert error(high) < 1.05 * best


def test_of_large_values_a_part_is_counted_another_one_each_time() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((5, 1 << 18)).astype(np.float32)
    summary = Summary(histogram=Histogram())
    for _ in range(5):
        summary.add(values)
    assert summary.histogram is not None
    assert summary.histogram.counts.sum() == values.size  # a fifth, five times
    whole = Histogram()
    whole.reach(float(np.abs(values).max()))
    whole.add(values)
    np.testing.assert_array_equal(summary.histogram.counts, whole.counts)
    assert (summary.low, summary.high) == (values.min(), values.max())


@pytest.mark.parametrize("method", METHODS)
def test_relu_and_constant_values_have_ranges_that_hold_zero_or_more(method: str) -> None:
    random = np.random.default_rng(0)
    low, high = observed([np.maximum(random.standard_normal(9999), 0)], method).range("v") or (1, 1)
    assert low == 0
    assert 1 < high < 5
    assert observed([np.zeros(10)], method).range("v") == (0, 0)
    low, high = observed([np.full(10, 6.0)], method).range("v") or (1, 1)
    assert low <= high == pytest.approx(6, rel=0.06)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_is_refused_by_number_and_input(bad: float) -> None:
    given = samples(3)
    given[1]["x"][2, 3] = bad
    with pytest.raises(Error, match="sample 2: input 'x' holds NaN or infinity"):
        calibrate(net(), given)


def test_an_activation_that_is_not_a_number_is_refused_by_name() -> None:
    x = placeholder("x", Type("float32", (4, 8)))
    graph = Graph((x,), (make("Log", x, name="log"),), ("y",))
    with pytest.raises(Error, match="log: not a number"):
        calibrate(graph, samples())


def test_an_infinite_activation_is_refused_only_where_its_range_is_asked_for() -> None:
    statistics = calibrate(net(weight=3e38), samples())
    with pytest.raises(Error, match="mul: infinite"):
        statistics.range("mul")
    assert statistics.range("x") is not None


def test_missing_inputs_and_no_samples_are_refused() -> None:
    with pytest.raises(Error, match="no calibration samples"):
        calibrate(net(), [])
    with pytest.raises(Error, match="input 'x' is missing"):
        calibrate(net(), [{"z": np.zeros(1)}])
    with pytest.raises(Error, match="unknown calibration method"):
        calibrate(net(), samples(), method="guess")
    with pytest.raises(Error, match="percentile"):
        calibrate(net(), samples(), method="percentile", percentile=101)


def test_names_are_unique_and_the_same_every_time() -> None:
    x = placeholder("a", Type("float32", (2,)))
    one = make("Relu", x, name="a")
    two = make("Relu", make("Neg", make("Neg", one)), name="a#2")
    graph = Graph((x,), (make("Add", two, one, name="a"),), ("y",))
    names = value_names(graph)
    assert len(set(names.values())) == len(names) == 6
    assert list(names.values()) == list(value_names(graph).values())
    assert names[x] == "a"


def test_statistics_are_kept_and_read_back(tmp_path: Path) -> None:
    for method in METHODS:
        made = calibrate(net(), samples(), method=method)
        made.write(tmp_path / "cache.json")
        back = Statistics.read(tmp_path / "cache.json")
        assert [back.range(v) for v in made.values] == [made.range(v) for v in made.values]
        assert back.graph == fingerprint(net())
        assert back.method == method


def test_calibration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    given = samples(6)
    whole = calibrate(net(), given, method="mse")
    calibrate(net(), given[:2], method="mse").write(tmp_path / "half.json")
    resumed = calibrate(net(), given[2:], resume=Statistics.read(tmp_path / "half.json"))
    assert resumed.range("mul") == whole.range("mul")
    assert resumed.values["mul"].samples == 6


def test_statistics_of_another_graph_are_refused() -> None:
    made = calibrate(net(), samples())
    with pytest.raises(Error, match="another graph"):
        calibrate(net(weight=3), samples(), resume=made)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 99}', "\x00\xff", '{"format": 1, "graph": "", "values": 3}'],
    ids=["empty", "list", "nothing", "newer", "binary", "no values"],
)
def test_a_cache_that_is_not_one_is_one_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(Error, match="not a calibration cache"):
        Statistics.read(path)


def test_a_cache_with_bins_out_of_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    calibrate(net(), samples(), method="mse").write(path)
    content = json.loads(path.read_text())
    content["values"]["mul"]["first_bin"] = BINS
    path.write_text(json.dumps(content))
    with pytest.raises(Error, match="bins out of range"):
        Statistics.read(path)


def test_memory_does_not_grow_with_the_samples() -> None:
    def feed(count: int) -> Iterator[dict[str, Array]]:
        for seed in range(count):
            yield samples(1, seed)[0]

    def peak(count: int) -> int:
        tracemalloc.start()
        calibrate(net(), feed(count), method="mse")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(200) < peak(5) + 100_000


def test_another_runner_may_report_the_activations() -> None:
    told: list[int] = []

    def run(sample: object, observe: object) -> None:
        observe("mul", np.array([-1, 5], np.float32))  # type: ignore[operator]

    statistics = calibrate(net(), samples(3), run=run, progress=told.append)
    assert statistics.range("mul") == (-1, 5)
    assert statistics.range("relu") is None
    assert told == [1, 2, 3]


def test_products_keep_the_means_of_their_channels(tmp_path: Path) -> None:
    x = placeholder("x", Type("float32", (4, 8)))
    graph = Graph((x,), (make("MatMul", x, constant(np.ones((8, 2), np.float32))),), ("y",))
    given = samples()
    statistics = calibrate(graph, given)
    wanted = np.concatenate([s["x"] for s in given]).mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(statistics.channels("x").mean, wanted, rtol=1e-6)
    statistics.write(tmp_path / "cache.json")
    back = Statistics.read(tmp_path / "cache.json")
    np.testing.assert_allclose(back.channels("x").mean, wanted, rtol=1e-6)
    assert back.axes == {"x": -1}


def test_what_products_sum_over_two_axes_of_has_no_means_of_channels() -> None:
    x = placeholder("x", Type("float32", (1, 2, 8, 4)))
    conv = make("Conv", x, constant(np.ones((3, 2, 1, 1), np.float32)))
    product = make("MatMul", x, constant(np.ones((4, 5), np.float32)))
    given = [{"x": np.ones((1, 2, 8, 4), np.float32)}]
    both = calibrate(Graph((x,), (conv, product), ("y", "z")), given)
    assert both.channels("x") is None
    assert calibrate(Graph((x,), (conv,), ("y",)), given).channels("x").mean.shape == (2,)


def test_statistics_with_histograms_serve_every_method_that_needs_none() -> None:
    given = samples()
    kept = calibrate(net(), given, method="output")
    for method in ("minmax", "average"):
        alone = calibrate(net(), given, method=method)
        assert replace(kept, method=method).range("mul") == alone.range("mul")
