"""Second moments and their uses, against plain numpy on the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product as every

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler import ops
from qcompiler.data.calibrate import Calibration, Observe, Run
from qcompiler.data.columns import columns_of, rows, unrows
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.quantization.correction import corrections
from qcompiler.quantization.reconstruct import (
    Grid,
    compensate,
    damped,
    descend,
    gptq,
    least_squares,
    loss,
    moments,
)
from qcompiler.quantization.rounding import Scheme, bits_of, grid_of, round_rows

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def columns_seen(depth: int, count: int = 400) -> Array:
    """[K,P] with strong correlations, like neighbouring pixels."""
    return floats(depth, depth) @ floats(depth, count)


CONVS = [
    {"group": 1, "pads": (1, 1, 1, 1), "strides": (1, 1), "dilations": (1, 1)},
    {"group": 2, "pads": (0, 1, 2, 0), "strides": (2, 1), "dilations": (1, 2)},
    {"group": 4, "pads": (1, 1, 1, 1), "strides": (2, 2), "dilations": (1, 1)},
]


@pytest.mark.parametrize("attrs", CONVS, ids=lambda a: f"group{a['group']}")
def test_rows_times_columns_are_the_convolution(attrs: dict[str, object]) -> None:
    x = placeholder("x", Type("float32", (2, 4, 7, 6)))
    w = floats(8, 4 // int(str(attrs["group"])), 3, 3)
    conv = make("Conv", x, constant(w), **attrs)
    array = floats(2, 4, 7, 6)
    columns = columns_of(conv, array, 10**6, RANDOM)
    got = np.einsum("gok,gkp->gop", rows(conv, w), columns)
    wanted = ops.evaluate(Graph((x,), (conv,), ("y",)), {"x": array})["y"]
    flat = np.moveaxis(wanted, 1, 0).reshape(8, -1)
    np.testing.assert_allclose(got.reshape(8, -1), flat, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(unrows(conv, rows(conv, w)), w)


def network() -> tuple[Graph, list[Node]]:
    x = placeholder("x", Type("float32", (1, 3, 8, 8)))
    first = make("Conv", x, constant(floats(6, 3, 3, 3)), constant(floats(6)), name="first")
    second = make("Conv", make("Relu", first), constant(floats(5, 6, 3, 3)), name="second")
    flat = make("Reshape", second, constant(np.array([1, 80], np.int64)))
    last = make("MatMul", flat, constant(floats(80, 4)), name="last")
    return Graph((x,), (last,), ("y",)), [first, second, last]


class Counted:
    """Samples that count how often they are read, and how many are in memory."""

    def __init__(self, count: int) -> None:
        self.count, self.sweeps = count, 0

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        self.sweeps += 1
        random = np.random.default_rng(7)
        return (
            {"x": random.standard_normal((1, 3, 8, 8)).astype(np.float32)}
            for _ in range(self.count)
        )


def test_moments_are_those_of_all_columns_of_all_samples() -> None:
    graph, products = network()
    samples = Counted(9)
    found = dict(moments(graph, products, Calibration(samples), columns=10**6))
    assert samples.sweeps == 1
    inputs: dict[Node, list[Array]] = {}
    for sample in samples:
        ops.evaluate(graph, sample, lambda n, a: inputs.setdefault(n, []).append(a))
    for node in products:
        seen = [columns_of(node, a, 10**6, RANDOM) for a in inputs[node.operands[0]]]
        whole = np.concatenate(seen, axis=2)[0].astype(np.float64)
        np.testing.assert_allclose(
            found[node].second[0], whole @ whole.T / whole.shape[1], 1e-3, 1e-3
        )
        np.testing.assert_allclose(found[node].first[0], whole.mean(1), 1e-3, 1e-5)
        np.testing.assert_allclose(found[node].covariance[0], np.cov(whole, bias=True), 1e-2, 1e-3)


@pytest.mark.parametrize("count", [3, 30])
def test_moments_hold_no_more_than_their_budget_however_many_samples(count: int) -> None:
    graph, products = network()
    sizes = [4 * 27 * 27, 4 * 54 * 54, 4 * 80 * 80]
    samples = Counted(count)
    made = moments(graph, products, Calibration(samples), budget_bytes=sum(sizes[:2]))
    held = 0
    order = []
    for node, found in made:
        order.append(node.name)
        held = max(held, found.products.nbytes)
    assert order == ["first", "second", "last"]
    assert samples.sweeps == 2, "the third does not fit with the first two"
    assert held <= sizes[2]


def test_few_columns_of_a_sample_stand_for_all() -> None:
    graph, products = network()
    found = dict(moments(graph, products, Calibration(Counted(5)), columns=10))
    assert found[products[0]].count == 5 * 10


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 9))
def test_least_squares_is_the_regression_on_the_samples(
    depth: int, outputs: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((depth, 50))
    w = random.standard_normal((outputs, depth))
    kept = random.random((outputs, depth)) < 0.6
    got = least_squares(w, x @ x.T, kept, damping=1e-10)
    assert not got[~kept].any()
    for row in range(outputs):
        mask = kept[row]
        wanted = np.linalg.lstsq(x[mask].T, w[row] @ x, rcond=None)[0]
        np.testing.assert_allclose(got[row, mask], wanted, rtol=1e-5, atol=1e-6)
    one = least_squares(w, x @ x.T, kept[0], damping=1e-10)
    np.testing.assert_allclose(one[0], got[0], rtol=1e-9, atol=1e-12)


def test_a_weight_taken_away_is_made_up_for_as_in_optimal_brain_surgeon() -> None:
    x = columns_seen(6).astype(np.float64)
    w, h = floats(3, 6).astype(np.float64), x @ x.T
    order = []

    def begin(first: int, block: Array, d: Array) -> object:
        def change(j: int, column: Array) -> Array:
            order.append(j)
            return np.zeros_like(column) if j == 0 else column

        return change

    got = compensate(w, h, begin, block=4, damping=1e-9)  # type: ignore[arg-type]
    assert order == list(range(6))
    inverse = np.linalg.inv(h)
    wanted = w - np.outer(w[:, 0] / inverse[0, 0], inverse[0])  # Hassibi & Stork, equation 5
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        got, least_squares(w, h, np.arange(6) > 0, damping=1e-9), rtol=1e-4, atol=1e-5
    )


def coarse(w: Array, bits: int = 3) -> Grid:
    return grid_of(w.astype(np.float64), Scheme(bits=bits))


def test_rounding_that_looks_at_the_data_is_better_than_the_nearest() -> None:
    x = columns_seen(200, 3000).astype(np.float64)
    w, h = floats(12, 200).astype(np.float64), x @ x.T / 3000
    grid = coarse(w)
    near = loss(w, grid.values(grid.nearest(w)), h)
    by_gptq = loss(w, grid.values(gptq(w, h, grid)), h)
    by_descent = loss(w, grid.values(descend(w, damped(h), grid, grid.nearest(w))), h)
    assert by_gptq < 0.6 * near
    assert by_descent < 0.6 * near


def test_gptq_on_columns_that_do_not_correlate_is_the_nearest() -> None:
    w = floats(5, 40).astype(np.float64)
    grid = coarse(w)
    np.testing.assert_array_equal(gptq(w, np.diag(np.arange(1.0, 41)), grid), grid.nearest(w))


def test_descent_finds_the_best_rounding_of_all_or_nearly() -> None:
    exact = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        x = random.standard_normal((6, 6)) @ random.standard_normal((6, 100))
        w, h = random.standard_normal((1, 6)), x @ x.T
        grid = coarse(w)
        start = grid.nearest(w)
        got = descend(w, h, grid, start)
        low = np.maximum(np.floor(grid.steps(w)), grid.low)
        best = min(
            loss(w, grid.values(np.clip(low + np.array(up), grid.low, grid.high)), h)
            for up in every((0, 1), repeat=6)
        )
        reached = loss(w, grid.values(got), h)
        assert reached <= loss(w, grid.values(start), h) + 1e-9
        assert np.abs(got - grid.steps(w)).max() < 1 or np.array_equal(got, start)
        exact += reached <= best * (1 + 1e-9)
    assert exact >= 8, "coordinate descent often finds the best of all 64"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [-1, 0, 32])
def test_a_grid_is_as_fine_as_its_bits_allow(bits: int, symmetric: bool, group: int) -> None:
    w = floats(4, 70).astype(np.float64) + (0 if symmetric else 2)
    grid = grid_of(w, Scheme(bits=bits, group=group, symmetric=symmetric))
    q = grid.nearest(w)
    assert q.min() >= grid.low
    assert q.max() <= grid.high
    assert grid.high - grid.low == 2**bits - (2 if symmetric else 1)
    counts = {-1: 1, 0: 4, 32: 12}
    assert np.unique(np.broadcast_to(grid.scale, w.shape)).size == counts[group]
    plain = np.square(w - grid.values(q)).sum()
    loose = Grid(grid.scale * 1.3, grid.zero, grid.low, grid.high)
    assert plain < np.square(w - loose.values(loose.nearest(w))).sum()
    if bits == 8:
        assert np.abs(w - grid.values(q)).max() <= 0.51 * np.max(grid.scale)


def test_groups_of_rows_are_rounded_by_their_own_moments() -> None:
    w = floats(4, 9).astype(np.float64)
    h = np.stack([np.cov(columns_seen(9)) for _ in range(2)])
    grid = coarse(w)
    got = round_rows(w, grid, "gptq", h)
    for i in range(2):
        part = slice(2 * i, 2 * i + 2)
        np.testing.assert_array_equal(got[part], gptq(w[part], h[i], grid.part(part, w.shape)))


def test_a_measured_correction_gives_every_channel_its_mean_back() -> None:
    graph, products = network()
    convs = products[:2]
    data = Calibration(list(Counted(6)))

    def rounded(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
            if node in convs:
                inputs = list(moved.inputs)
                inputs[1] = constant(np.rint(moved.operands[1].array * 2) / np.float32(2))
                moved = make("Conv", *inputs, name=node.name)
            new[node] = moved
        return graph.with_outputs(new[o] for o in graph.outputs), {n: new[n] for n in convs}

    quantized, inner = rounded(graph)
    biases = corrections(graph, inner, data)

    def channel_means(graph: Graph, named: list[Node]) -> list[Array]:
        seen: dict[Node, list[Array]] = {n: [] for n in named}
        for sample in data.samples:
            ops.evaluate(graph, sample, lambda n, a: seen[n].append(a) if n in seen else None)
        return [np.concatenate(v).mean((0, 2, 3)) for v in seen.values()]

    fixed: dict[Node, Node] = {}
    for node in quantized.nodes:
        moved = node.with_inputs(None if i is None else fixed[i] for i in node.inputs)
        for old, new in inner.items():
            if node is new:
                bias = constant(biases[old].astype(np.float32))
                moved = make("Conv", *moved.inputs[:2], bias, name=node.name)
        fixed[node] = moved
    corrected = quantized.with_outputs(fixed[o] for o in quantized.outputs)
    before = channel_means(graph, convs)
    after = channel_means(corrected, [fixed[inner[n]] for n in convs])
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max() + 1e-3)


def test_what_makes_no_sense_is_refused_by_name() -> None:
    with pytest.raises(Error, match="9 bits"):
        Scheme(bits=9)
    with pytest.raises(Error, match="hqq"):
        Scheme(rounding="hqq")
    with pytest.raises(Error, match="PATTERN=BITS"):
        bits_of(make("Relu", placeholder("x", Type("float32", (1,)))), ("conv1",))


def test_bits_are_those_of_the_last_pattern_that_names_a_node() -> None:
    node = make("Relu", placeholder("x", Type("float32", (1,))), name="a.b")
    assert bits_of(node, ("Relu=4", r"a\..*=3")) == 3
    assert bits_of(node, ("Conv=4",)) == 0


def _never(graph: Graph) -> Run:
    def run(sample: Mapping[str, Array], observe: Observe) -> None:
        raise AssertionError("nothing should be measured")

    return run


def test_products_without_constant_weights_have_no_moments() -> None:
    x = placeholder("x", Type("float32", (2, 4, 4)))
    graph = Graph((x,), (make("MatMul", x, x),), ("y",))
    assert not list(moments(graph, graph.nodes, Calibration([], _never)))
