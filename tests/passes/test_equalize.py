"""Equalization and smoothing: same results, equal ranges, and no collapse after quantization."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler import ops
from qcompiler.data.calibrate import Calibration, calibrate, value_names
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.stages import Choice, build, run_stage

Feed = dict[str, Array]


class Net:
    """A small network with random weights whose channels differ by orders of magnitude."""

    def __init__(self, *shape: int) -> None:
        self.random = np.random.default_rng(0)
        self.x = placeholder("x", Type("float32", shape))

    def floats(self, *shape: int) -> Array:
        return self.random.standard_normal(shape).astype(np.float32)

    def conv(self, x: Node, outputs: int, size: int = 3, group: int = 1, pad: int = 1) -> Node:
        w = self.floats(outputs, x.type.dims[1] // group, size, size) / np.float32(size)
        spread = np.float32(10) ** self.random.uniform(-1.5, 1.5, outputs).astype(np.float32)
        w, b = w * spread.reshape(-1, 1, 1, 1), self.floats(outputs) * spread
        return make("Conv", x, constant(w), constant(b), pads=(pad,) * 4, group=group)

    def samples(self, count: int = 8) -> list[Feed]:
        return [{"x": self.floats(*self.x.type.dims)} for _ in range(count)]


def clip(x: Node, low: float, high: float) -> Node:
    return make("Clip", x, *(constant(np.array(v, np.float32)) for v in (low, high)))


def separable(net: Net, activation: str) -> Graph:
    """1x1, depthwise, 1x1, as in MobileNet."""

    def after(x: Node) -> Node:
        if activation == "Clip":
            return clip(x, 0, 6)
        if activation == "bounds":
            return clip(x, -3, 5)
        return make(activation, x) if activation else x

    a = after(net.conv(net.x, 16, size=1, pad=0))
    b = after(net.conv(a, 16, group=16))
    return Graph((net.x,), (net.conv(b, 6, size=1, pad=0),), ("y",))


def largest(conv: Node) -> Array:
    """The largest magnitude of each output channel's weights and bias."""
    w, b = (i.array for i in conv.operands[1:])
    return np.maximum(np.abs(w).reshape(len(w), -1).max(1), np.abs(b))


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Clip", "bounds", ""])
def test_equalization_keeps_the_meaning_and_equals_the_ranges(activation: str) -> None:
    net = Net(2, 3, 7, 7)
    graph = separable(net, activation)
    made = build("quantize_equalize")(graph)
    assert "2 pairs" in made.notes["equalized"]
    for feed in net.samples(3):
        wanted = ops.evaluate(graph, feed)["y"]
        got = ops.evaluate(made, feed)["y"]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    first, depthwise, last = (n for n in made.nodes if n.op == "Conv")
    reads = np.abs(depthwise.operands[1].array).reshape(16, -1).max(1)
    np.testing.assert_allclose(largest(first), reads, rtol=0.05)
    reads = np.abs(last.operands[1].array).max((0, 2, 3))
    np.testing.assert_allclose(largest(depthwise), reads, rtol=0.05)
    assert build("quantize_equalize")(made) is made


def test_a_channel_without_weights_keeps_its_scale() -> None:
    net = Net(1, 3, 5, 5)
    a = net.conv(net.x, 4, size=1, pad=0)
    w = a.operands[1].array.copy()
    w[2] = 0
    a = make("Conv", net.x, constant(w), a.operands[2])
    graph = Graph((net.x,), (net.conv(make("Relu", a), 3),), ("y",))
    made = build("quantize_equalize")(graph)
    feed = net.samples(1)[0]
    wanted = ops.evaluate(graph, feed)["y"]
    got = ops.evaluate(made, feed)["y"]
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_channels_of_dead_weights_and_a_live_bias_do_not_explode() -> None:
    """As in MobileNets, where batch norms disable channels."""
    net = Net(2, 3, 9, 9)
    a = net.conv(net.x, 16, size=1, pad=0)
    w = net.floats(16, 3, 1, 1)
    w[::3] *= np.float32(1e-8)
    a = clip(make("Conv", net.x, constant(w), constant(np.abs(net.floats(16)))), 0, 6)
    b = make("Conv", a, constant(net.floats(5, 16, 3, 3)))
    graph, samples = Graph((net.x,), (b,), ("y",)), net.samples()
    made = build("quantize_equalize")(graph)
    choice = Choice({"quantize_static": {}, "quantize_equalize": {}})
    ours = run_stage(graph, "quantize", None, choice, None, Calibration(samples))
    bounds = next(n.operands[1].array for n in made.nodes if n.op == "Min")
    assert bounds.max() < 100
    feed = samples[0]
    assert cosine(ops.evaluate(graph, feed)["y"], ops.evaluate(ours, feed)["y"]) > 0.999


def test_what_is_read_twice_is_not_equalized() -> None:
    net = Net(1, 3, 5, 5)
    a = net.conv(net.x, 3)
    told: list[str] = []
    graph = Graph((net.x,), (make("Add", net.conv(make("Relu", a), 3), a),), ("y",))
    made = build("quantize_equalize", explain=lambda p, n, why: told.append(why))(graph)
    assert made is graph
    assert told == ["its output is read more than once"]


def cosine(a: Array, b: Array) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def uneven(net: Net) -> Graph:
    """A network with channels between two convolutions rescaled unevenly."""
    s = np.float32(10) ** net.random.uniform(-2, 2, 16).astype(np.float32)
    w, v = net.floats(16, 3, 3, 3), net.floats(5, 16, 3, 3)
    scaled = constant(w * s.reshape(-1, 1, 1, 1)), constant(net.floats(16) * s)
    a = make("Relu", make("Conv", net.x, *scaled, pads=(1,) * 4))
    return Graph((net.x,), (make("Conv", a, constant(v / s.reshape(1, -1, 1, 1))),), ("y",))


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_collapses_without_equalization_recovers_with_it(per_channel: bool) -> None:
    """Nagel et al., 2019, table 1: MobileNets drop to chance without it, and recover."""
    net = Net(2, 3, 9, 9)
    graph, samples = uneven(net), net.samples()

    def similarity(*more: str) -> float:
        choice = {"quantize_static": {"per_channel": per_channel}, **{m: {} for m in more}}
        made = run_stage(graph, "quantize", None, Choice(choice), None, Calibration(samples))
        made = run_stage(made, "integer")
        assert sum(n.op == "ConvInteger" for n in made.nodes) == 2
        pairs = [(ops.evaluate(graph, f)["y"], ops.evaluate(made, f)["y"]) for f in net.samples(3)]
        return min(cosine(a, b) for a, b in pairs)

    assert similarity() < 0.9
    assert similarity("quantize_equalize") > 0.999


def test_biases_that_always_pass_are_absorbed() -> None:
    net = Net(2, 3, 6, 6)
    a = net.conv(make("Tanh", net.x), 4, size=1, pad=0)
    bias = a.operands[2].array + np.float32([1e4, 0, 1e4, 0])
    a = make("Conv", *a.operands[:2], constant(bias))
    graph = Graph((net.x,), (net.conv(make("Relu", a), 3, pad=0),), ("y",))
    samples = net.samples()
    data = Calibration(samples)
    made = build("quantize_equalize", data=data)(graph)
    assert "2 biases absorbed" in made.notes["equalized"]
    for feed in samples:
        wanted = ops.evaluate(graph, feed)["y"]
        got = ops.evaluate(made, feed)["y"]
        np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())
    relu = next(n for n in made.nodes if n.op == "Relu")
    name = value_names(made)[relu]
    low = calibrate(made, samples).channels(name)
    assert low is not None
    np.testing.assert_allclose(low.lows[[0, 2]] / low.highs[[0, 2]], 0, atol=0.01)


# SmoothQuant.


def normed(net: Net, residual: bool, op: str) -> Graph:
    """A norm with outlier channels, read by two products (and a residual sum)."""
    width = net.x.type.dims[-1]
    gain = np.ones(width, np.float32)
    gain[:3] = 60
    extra = [constant(net.floats(width))] if op == "LayerNormalization" else []
    n = make(op, net.x, constant(gain), *extra, axis=-1)
    a, b = (make("MatMul", n, constant(net.floats(width, 8))) for _ in range(2))
    y = make("Mul", a, make("Sigmoid", b))
    more = (make("Add", n, net.x),) if residual else ()
    return Graph((net.x,), (y, *more), ("y", "z")[: 1 + len(more)])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_smoothing_keeps_the_meaning_and_balances_ranges(residual: bool, op: str) -> None:
    net = Net(4, 16)
    graph, samples = normed(net, residual, op), net.samples()
    made = build("quantize_smooth", data=Calibration(samples))(graph)
    assert any(n.op == "Mul" and n.name.endswith("/smooth") for n in made.nodes) == residual
    for feed in samples:
        for name, wanted in ops.evaluate(graph, feed).items():
            np.testing.assert_allclose(ops.evaluate(made, feed)[name], wanted, 1e-3, 1e-3)
    products = [n for n in made.nodes if n.op == "MatMul"]
    seen = calibrate(made, samples).channels(value_names(made)[products[0].operands[0]])
    assert seen is not None
    largest = np.maximum(-seen.lows, seen.highs)
    weights = np.max([np.abs(p.operands[1].array).max(1) for p in products], 0)
    np.testing.assert_allclose(largest, weights, rtol=0.02)  # alpha 1/2: both sqrt(x * w)
    assert build("quantize_smooth", data=Calibration(samples))(made) is made


def test_outliers_cost_less_when_smoothed() -> None:
    net = Net(32, 16)
    graph, samples = normed(net, False, "LayerNormalization"), net.samples()
    data = Calibration(samples)

    def error(*more: str) -> float:
        choice = Choice({name: {} for name in ("quantize_static", *more)})
        made = run_stage(graph, "quantize", None, choice, None, data)
        feed = samples[0]
        return 1 - cosine(ops.evaluate(graph, feed)["y"], ops.evaluate(made, feed)["y"])

    assert error("quantize_smooth") < 0.5 * error()


def test_smoothing_without_data_is_refused() -> None:
    with pytest.raises(Error, match="needs calibration data"):
        build("quantize_smooth")(normed(Net(4, 16), False, "RMSNormalization"))
