"""Quantization end to end: other tools' models, hard cases, and the options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from oracles import nncf_quantized, onnxruntime_outputs, onnxruntime_quantized
from qcompiler.passes.quantize import ranges

import qcompiler
from qcompiler import ops
from qcompiler.data.calibrate import calibrate
from qcompiler.errors import Error
from qcompiler.hardware.isa import Cpu, Isa
from qcompiler.hardware.products import VectorMac
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.writer import write
from qcompiler.ops import make
from qcompiler.rewrite.matching import int64s
from qcompiler.stages import Choice, build, run_stage

Feed = dict[str, Array]
FLOAT_PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}


class Net:
    """A small network with random weights, built operator by operator."""

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.x = placeholder("x", Type("float32", shape))

    def weights(self, *shape: int, spread: float = 1.0) -> Node:
        fan = int(np.prod(shape[1:])) or 1
        return constant(
            (self.random.standard_normal(shape) * spread / np.sqrt(fan)).astype(np.float32)
        )

    def conv(self, x: Node, outputs: int, size: int = 3, group: int = 1, **attrs: object) -> Node:
        inputs = x.type.dims[1]
        w = self.weights(outputs, inputs // group, *[size] * (x.type.rank - 2))
        pads = (size // 2,) * (2 * (x.type.rank - 2))
        b = self.weights(outputs)
        return make("Conv", x, w, b, pads=pads, group=group, name=self.name("conv"), **attrs)

    def name(self, word: str) -> str:
        self.count = getattr(self, "count", 0) + 1
        return f"{word}{self.count}"

    def graph(self, *outputs: Node) -> Graph:
        names = tuple(f"y{i}" for i in range(len(outputs)))
        return Graph((self.x,), outputs, names)

    def samples(self, count: int = 8) -> list[Feed]:
        random = np.random.default_rng(1)
        dims = self.x.type.dims
        return [{"x": random.standard_normal(dims).astype(np.float32)} for _ in range(count)]


def plain(net: Net) -> Graph:
    a = make("Relu", net.conv(net.x, 8))
    return net.graph(make("Relu", net.conv(a, 6, size=1)))


def residual(net: Net) -> Graph:
    a = make("Relu", net.conv(net.x, 8))
    b = net.conv(make("Relu", net.conv(a, 8)), 8)
    c = make("Relu", make("Add", b, a))
    pool = make("MaxPool", c, kernel_shape=(2, 2), strides=(2, 2))
    return net.graph(net.conv(pool, 4))


def depthwise(net: Net) -> Graph:
    six = [constant(np.array(v, np.float32)) for v in (0, 6)]
    a = make("Clip", net.conv(net.x, 8), *six)
    b = make("Clip", net.conv(a, 8, group=8, strides=(2, 2)), *six)
    mean = make("GlobalAveragePool", net.conv(b, 16, size=1))
    flat = make("Reshape", mean, constant(np.array([2, 16], np.int64)))
    w = net.weights(10, 16)
    return net.graph(make("Gemm", flat, w, net.weights(10), transB=1))


def branches(net: Net) -> Graph:
    a = make("Relu", net.conv(net.x, 4))
    left, right = make("Relu", net.conv(a, 6, size=1)), make("Relu", net.conv(a, 6))
    joined = make("Concat", left, right, axis=1)
    return net.graph(make("Sigmoid", net.conv(joined, 5)))


def swish(net: Net) -> Graph:
    a = net.conv(net.x, 8)
    b = make("Mul", a, make("Sigmoid", a))
    return net.graph(net.conv(b, 4))


def enlarged(net: Net) -> Graph:
    a = make("Relu", net.conv(net.x, 6))
    w = net.weights(6, 4, 2, 2)
    b = make("ConvTranspose", a, w, net.weights(4), strides=(2, 2), name="up")
    return net.graph(net.conv(make("Relu", b), 3))


NETS = [plain, residual, depthwise, branches, swish, enlarged]
MakeNet = Callable[[Net], Graph]


def integer(graph: Graph) -> Graph:
    """Run the stages up to the lowering of quantization."""
    for stage in ("fold", "fuse", "integer"):
        graph = run_stage(graph, stage)
    return graph


def statically(graph: Graph, samples: list[Feed], **options: object) -> Graph:
    """Folded, fused, calibrated, with q/dq pairs, not lowered yet."""
    for stage in ("fold", "fuse"):
        graph = run_stage(graph, stage)
    return build("quantize_static", {"statistics": calibrate(graph, samples), **options})(graph)


def float_products(graph: Graph) -> set[str]:
    return {n.op for n in graph.nodes} & FLOAT_PRODUCTS


def step_of(graph: Graph) -> float:
    """The largest scale of the last bytes before an output."""
    scales = [n.operands[1].array.max() for n in graph.nodes if n.op == "dequantize"]
    return float(scales[-1])


@pytest.mark.parametrize("net", NETS, ids=lambda n: n.__name__)
@pytest.mark.parametrize("activation", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_a_qdq_model_of_onnxruntime_becomes_integer_and_stays_within_a_step(
    net: MakeNet, activation: str, per_channel: bool, tmp_path: Path
) -> None:
    made = Net(2, 3, 8, 8)
    graph, samples = net(made), made.samples()
    path = onnxruntime_quantized(
        write(graph),
        samples,
        tmp_path,
        quant_format="QDQ",
        activation_type=activation,
        weight_type="QInt8",
        per_channel=per_channel,
    )
    ours = integer(read(path, {}))
    assert not float_products(ours)
    for feed in samples[:3]:
        wanted = onnxruntime_outputs(path, feed, ["y0"], plain=True)["y0"]
        got = ops.evaluate(ours, feed)["y0"]
        assert np.abs(got - wanted).max() <= 1.01 * step_of(ours)


@pytest.mark.parametrize("net", [plain, residual, depthwise], ids=lambda n: n.__name__)
def test_a_model_of_quantized_operators_becomes_integer_too(net: MakeNet, tmp_path: Path) -> None:
    made = Net(2, 3, 8, 8)
    graph, samples = net(made), made.samples()
    path = onnxruntime_quantized(
        write(graph),
        samples,
        tmp_path,
        quant_format="QOperator",
        activation_type="QUInt8",
        weight_type="QInt8",
    )
    ours = integer(read(path, {}))
    assert not float_products(ours)
    assert not any(n.op.startswith("QLinear") for n in ours.nodes)
    for feed in samples[:3]:
        wanted = onnxruntime_outputs(path, feed, ["y0"], plain=True)["y0"]
        got = ops.evaluate(ours, feed)["y0"]
        assert np.abs(got - wanted).max() <= 1.01 * step_of(ours)


@pytest.mark.parametrize("net", NETS, ids=lambda n: n.__name__)
def test_a_model_of_nncf_becomes_integer_too(net: MakeNet) -> None:
    made = Net(2, 3, 8, 8)
    graph, samples = net(made), made.samples()
    model = nncf_quantized(write(graph), samples)
    ours = integer(read(model, {}))
    assert not float_products(ours)
    for feed in samples[:3]:
        wanted = onnxruntime_outputs(model, feed, ["y0"], plain=True)["y0"]
        # Their outputs are floats: an intermediate byte one step off is visible in them.
        assert np.abs(ops.evaluate(ours, feed)["y0"] - wanted).max() <= np.abs(wanted).max() / 100


@pytest.mark.parametrize("net", NETS, ids=lambda n: n.__name__)
@pytest.mark.parametrize("activation", ["uint8", "int8"])
def test_our_own_pairs_become_integer_and_mean_the_same(net: MakeNet, activation: str) -> None:
    made = Net(2, 3, 8, 8)
    graph, samples = net(made), made.samples()
    pairs = statically(graph, samples, activation=activation)
    ours = run_stage(pairs, "integer")
    laid_out = run_stage(ours, "layout")
    assert not float_products(ours)
    for feed in samples[:3]:
        exact = ops.evaluate(graph, feed)["y0"]
        plain_pairs = ops.evaluate(pairs, feed)["y0"]
        got = ops.evaluate(ours, feed)["y0"]
        assert np.abs(got - plain_pairs).max() <= np.abs(exact).max() / 100
        assert similarity(exact, got) > 0.999
        np.testing.assert_allclose(ops.evaluate(laid_out, feed)["y0"], got, rtol=1e-5, atol=1e-6)


def test_our_pairs_run_in_onnxruntime_as_here() -> None:
    made = Net(2, 3, 8, 8)
    graph, samples = residual(made), made.samples()
    pairs = statically(graph, samples)
    theirs = onnxruntime_outputs(write(pairs), samples[0], plain=True, ours=True)["y0"]
    np.testing.assert_allclose(ops.evaluate(pairs, samples[0])["y0"], theirs, rtol=1e-5, atol=1e-5)


def similarity(a: Array, b: Array) -> float:
    """Cosine."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


# Networks that collapse elsewhere (onnxruntime issues 5644, 9599, 11286, 19850 and others).


def quantized_similarity(graph: Graph, samples: list[Feed], **options: object) -> float:
    """Cosine of the integer graph's outputs with the float graph's, over samples not used in
    calibration.
    """
    pairs = statically(graph, samples[:-2], **options)
    ours = run_stage(pairs, "integer")
    assert any(n.dtype == "int32" for n in ours.nodes if len(n.types) == 1)
    found = [
        similarity(ops.evaluate(graph, f)["y0"], ops.evaluate(ours, f)["y0"]) for f in samples[-2:]
    ]
    return min(found)


def test_weights_of_very_different_channels_keep_theirs() -> None:
    net = Net(2, 8, 8, 8)
    w = net.weights(8, 1, 3, 3).array * np.logspace(-4, 2, 8).reshape(8, 1, 1, 1)
    a = make("Conv", net.x, constant(w.astype(np.float32)), group=8, pads=(1, 1, 1, 1))
    mean = make("ReduceMean", a, constant(np.array([2, 3], np.int64)), keepdims=1)
    size = make("ReduceMean", make("Abs", a), constant(np.array([2, 3], np.int64)), keepdims=1)
    graph = net.graph(make("Div", make("Sub", a, mean), size))
    assert quantized_similarity(graph, net.samples()) > 0.999


def test_channels_that_died_do_not_overflow_their_bias() -> None:
    net = Net(1, 3, 6, 6)
    w = net.weights(4, 3, 3, 3).array.copy()
    w[1] = 0
    w[2] = 1e-30
    bias = constant(np.array([0.1, 5.0, -3.0, 0.0], np.float32))
    a = make("Relu", make("Conv", net.x, constant(w), bias, pads=(1, 1, 1, 1)))
    graph = net.graph(net.conv(a, 4), a)
    assert quantized_similarity(graph, net.samples()) > 0.999
    ours = run_stage(statically(graph, net.samples()), "integer")
    dead = ops.evaluate(ours, net.samples()[0])["y1"][:, 1]
    np.testing.assert_allclose(dead, 5, atol=0.03)


def test_an_activation_that_never_changes_does_not_coarsen_the_bias() -> None:
    net = Net(1, 3, 4, 4)
    low, high = (constant(np.array(v, np.float32)) for v in (-1e-6, 0))
    a = make("Clip", make("Abs", net.x), low, high)  # always 0
    b = make("Add", make("MatMul", a, net.weights(4, 4)), constant(np.ones(4, np.float32)))
    graph = net.graph(b)
    pairs = statically(graph, net.samples())
    got = ops.evaluate(run_stage(pairs, "integer"), net.samples()[0])["y0"]
    np.testing.assert_allclose(got, 1, rtol=1e-4)


def transformer(net: Net, mask: float) -> Graph:
    """One layer as exported: a mask of huge numbers, outliers in a few channels."""
    width, heads = net.x.type.dims[-1], 2
    gain = np.ones(width, np.float32)
    gain[:2] = 40  # outlier channels, as trained transformers have them
    scale, shift = constant(gain), constant(np.zeros(width, np.float32))
    x = make("LayerNormalization", net.x, scale, shift, axis=-1)
    split = constant(np.array([*net.x.type.dims[:2], heads, width // heads], np.int64))
    q, k, v = (
        make(
            "Transpose",
            make("Reshape", make("MatMul", x, net.weights(width, width)), split),
            perm=p,
        )
        for p in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    )
    root = constant(np.array(np.sqrt(width // heads) * 40, np.float32))
    scores = make("Div", make("MatMul", q, k), root)
    hidden = np.zeros((1, 1, 1, net.x.type.dims[1]), np.float32)
    hidden[..., -2:] = mask
    weights = make("Softmax", make("Add", scores, constant(hidden)), axis=-1)
    back = make("Transpose", make("MatMul", weights, v), perm=(0, 2, 1, 3))
    flat = make("Reshape", back, constant(np.array(net.x.type.dims, np.int64)))
    attended = make("Add", x, make("MatMul", flat, net.weights(width, width)))
    y = make("LayerNormalization", attended, scale, shift, axis=-1)
    up = make("Gelu", make("MatMul", y, net.weights(width, 4 * width)))
    down = make("MatMul", up, net.weights(4 * width, width))
    return net.graph(make("LayerNormalization", make("Add", y, down), scale, shift, axis=-1))


@pytest.mark.parametrize("mask", [-1e4, -3.4028235e38, -np.inf])
@pytest.mark.parametrize("options", [{}, {"activation": "int8"}, {"weight_bits": 7}], ids=str)
def test_a_transformer_with_a_mask_and_outliers_does_not_collapse(
    mask: float, options: dict[str, object]
) -> None:
    net = Net(2, 6, 32)
    assert quantized_similarity(transformer(net, mask), net.samples(), **options) > 0.99


@pytest.mark.parametrize("method", ["average", "percentile", "mse", "entropy"])
def test_every_calibration_method_keeps_a_residual_network(method: str) -> None:
    net = Net(2, 3, 8, 8)
    graph = residual(net)
    for stage in ("fold", "fuse"):
        graph = run_stage(graph, stage)
    statistics = calibrate(graph, net.samples(), method=method)
    pairs = build("quantize_static", {"statistics": statistics})(graph)
    feed = net.samples(9)[-1]
    wanted = ops.evaluate(graph, feed)["y0"]
    assert similarity(wanted, ops.evaluate(pairs, feed)["y0"]) > 0.99


# Options.


def saturating(exact: bool) -> Cpu:
    half = None if exact else lambda *a: a
    key = ("u8", "i8", "i32")
    mac = VectorMac(key, 16, 4, lambda *a: a, exact=exact, pairs=half, join=half)
    return Cpu("d", Isa("d", "", (), frozenset(), 16, 64, (mac,)), 1)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 127),
        ({"weight_bits": 7}, 63),
        ({"device": saturating(exact=True)}, 127),
        ({"device": saturating(exact=False)}, 63),
        ({"device": saturating(exact=False), "weight_bits": 8}, 127),
    ],
    ids=["usual", "asked", "exact", "saturating", "insisted"],
)
def test_weights_use_the_bits_that_the_device_multiplies_exactly(
    options: dict[str, object], most: int
) -> None:
    net = Net(2, 3, 8, 8)
    pairs = statically(plain(net), net.samples(), **options)
    largest = [
        np.abs(n.operands[0].array.astype(int)).max()
        for n in pairs.nodes
        if n.op == "DequantizeLinear"
        and n.operands[0].is_constant
        and n.operands[0].dtype == "int8"
    ]
    assert largest == [most, most]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"exclude": ("conv1",)}, ("conv1",)),
        ({"exclude": (r"conv\d",)}, ("conv1", "conv2")),
        ({"exclude": ("Conv",)}, ("conv1", "conv2")),
        ({"include": ("conv2",)}, ("conv1",)),
        ({"include": ("Conv",), "exclude": ("conv2",)}, ("conv2",)),
    ],
    ids=str,
)
def test_named_nodes_stay_float(options: dict[str, object], kept: tuple[str, ...]) -> None:
    net = Net(2, 3, 8, 8)
    ours = run_stage(statically(plain(net), net.samples(), **options), "integer")
    assert {n.name for n in ours.nodes if n.op == "Conv"} == set(kept)


def test_a_bad_regular_expression_is_named() -> None:
    net = Net(2, 3, 8, 8)
    with pytest.raises(Error, match=r"'conv\('"):
        statically(plain(net), net.samples(), exclude=("conv(",))


def test_static_int8_without_data_or_with_that_of_another_graph_is_refused() -> None:
    net, other = Net(2, 3, 8, 8), Net(2, 3, 8, 8, seed=5)
    with pytest.raises(Error, match="needs calibration data"):
        build("quantize_static")(plain(net))
    statistics = calibrate(plain(other), other.samples())
    with pytest.raises(Error, match="another graph"):
        build("quantize_static", {"statistics": statistics})(plain(net))


def test_synthetic_calibration_is_in_the_notes() -> None:
    net = Net(2, 3, 8, 8)
    graph = plain(net)
    statistics = calibrate(graph, net.samples())
    quantized = build("quantize_static", {"statistics": statistics})(graph)
    assert "SYNTHETIC" not in quantized.notes["quantization"]
    statistics.synthetic = True
    quantized = build("quantize_static", {"statistics": statistics})(graph)
    assert "SYNTHETIC" in quantized.notes["quantization"]


def test_what_is_quantized_is_not_quantized_again() -> None:
    net = Net(2, 3, 8, 8)
    graph = plain(net)
    choice = Choice({"quantize_static": {"statistics": calibrate(graph, net.samples())}})
    once = run_stage(graph, "quantize", None, choice)
    assert run_stage(once, "quantize", None, choice) is once


def test_bias_correction_takes_the_mean_error_of_rounding_away() -> None:
    net = Net(4, 8, 12, 12)
    graph = net.graph(net.conv(make("Abs", net.x), 6, size=1))
    wanted = np.concatenate([ops.evaluate(graph, f)["y0"] for f in net.samples()])

    def bias(correct: str) -> float:
        pairs = statically(graph, net.samples(), correct_bias=correct, weight_bits=3)
        got = np.concatenate([ops.evaluate(pairs, f)["y0"] for f in net.samples()])
        return float(np.abs((got - wanted).mean(axis=(0, 2, 3))).max())

    assert bias("fast") < 0.05 * bias("none")


# Dynamic and half precision.


def test_bias_correction_leaves_windows_of_padding_alone() -> None:
    """Their outputs are the bias, which the errors of weights that meet zeros cannot move."""
    rng = np.random.default_rng(3)
    x = placeholder("x", Type("float32", (1, 16, 1, 7)))
    w, b = rng.normal(size=(6, 16, 1, 1)).astype("f4"), np.full(6, 1e-3, "f4")
    y = make("Conv", x, constant(w), constant(b), pads=(1, 0, 0, 0), strides=(2, 1))
    graph = Graph((x,), (y,), ("y",))
    samples = [{"x": rng.normal(1, 0.3, x.type.dims).astype("f4")} for _ in range(4)]
    found = ops.evaluate(statically(graph, samples), samples[0])["y"]
    np.testing.assert_allclose(found, 1e-3, rtol=0.1)


def test_bias_correction_counts_padding_as_zero() -> None:
    """Of a small image most windows see some: with means of the whole input, corrections go too
    far.
    """
    rng = np.random.default_rng(4)
    x = placeholder("x", Type("float32", (4, 32, 3, 3)))
    w = rng.normal(size=(8, 32, 3, 3)).astype("f4")
    y = make("Conv", x, constant(w), pads=(1, 1, 1, 1))
    graph = Graph((x,), (y,), ("y",))
    samples = [{"x": rng.normal(2, 0.2, x.type.dims).astype("f4")} for _ in range(4)]
    pairs = statically(graph, samples, weight_bits=4)
    errors = [ops.evaluate(pairs, s)["y"] - ops.evaluate(graph, s)["y"] for s in samples]
    mean = np.mean(errors, axis=(0, 1, 3, 4))
    assert np.abs(mean).max() < 0.1 * np.std(errors)


def test_dynamic_int8_serves_rows_of_any_size() -> None:
    net = Net(2, 6, 32)
    graph = transformer(net, -1e4)
    for stage in ("fold", "fuse"):
        graph = run_stage(graph, stage)
    ours = run_stage(graph, "quantize", None, Choice({"quantize_dynamic": {}}))
    assert not any(n.op == "MatMul" and n.operands[1].is_constant for n in ours.nodes)
    shared = [n for n in ours.nodes if n.op == "quantize"]
    assert len(shared) == 4, "q, k and v share bytes"
    for scale in (1e-6, 1, 1e6):
        feed = {"x": net.samples()[0]["x"] * np.float32(scale)}
        wanted = ops.evaluate(graph, feed)["y0"]
        assert similarity(wanted, ops.evaluate(ours, feed)["y0"]) > 0.999


def test_dynamic_int8_of_zeros_is_zero() -> None:
    net = Net(3, 8)
    graph = net.graph(make("MatMul", net.x, net.weights(8, 4)))
    ours = build("quantize_dynamic")(graph)
    zeros = {"x": np.zeros((3, 8), np.float32)}
    np.testing.assert_array_equal(ops.evaluate(ours, zeros)["y0"], np.zeros((3, 4)))


@pytest.mark.parametrize("net", NETS, ids=lambda n: n.__name__)
@pytest.mark.parametrize(("dtype", "loss"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_precision_costs_its_own_rounding_only(net: MakeNet, dtype: str, loss: float) -> None:
    made = Net(2, 3, 8, 8)
    graph, feed = net(made), made.samples()[0]
    for stage in ("fold", "fuse"):
        graph = run_stage(graph, stage)
    ours = run_stage(graph, "quantize", None, Choice({"quantize_half": {"dtype": dtype}}))
    laid_out = run_stage(ours, "layout")
    assert not any(n.op in ("Conv", "MatMul") for n in ours.nodes)
    wanted = ops.evaluate(graph, feed)["y0"]
    got = ops.evaluate(laid_out, feed)["y0"]
    assert np.abs(got - wanted).max() <= loss * np.abs(wanted).max()
    products = [n for n in laid_out.nodes if n.op in ("conv", "matmul")]
    half = [n for n in products if all(i.dtype == dtype for i in n.operands)]
    assert len(half) >= len(products) - (net is enlarged), "a transposed convolution stays float32"


def test_pieces_of_a_split_in_16_bits_may_stay_in_float32() -> None:
    net = Net(1, 8, 6, 6)
    pieces = make("Split", net.x, constant(np.array([5, 3])), axis=1)
    first, second = (make("item", pieces, index=i) for i in (0, 1))
    graph = net.graph(make("Conv", first, net.weights(4, 5, 3, 3)), make("ReduceMax", second))
    for dtype in ("bfloat16", "float16"):
        ours = run_stage(graph, "quantize", None, Choice({"quantize_half": {"dtype": dtype}}))
        feed = net.samples()[0]
        wanted, got = ops.evaluate(graph, feed), ops.evaluate(ours, feed)
        assert all(np.allclose(got[k], wanted[k], rtol=0.02, atol=0.02) for k in wanted)


def test_half_precision_stores_what_a_transformer_carries_in_16_bits() -> None:
    net = Net(2, 6, 32)
    graph = transformer(net, -1e4)
    for stage in ("fold", "fuse"):
        graph = run_stage(graph, stage)
    ours = run_stage(graph, "quantize", None, Choice({"quantize_half": {}}))
    norms = [n for n in ours.nodes if n.op == "LayerNormalization"]
    assert all(n.dtype == "float32" for n in norms), "norms are computed in float32"
    feed = net.samples()[0]
    wanted = ops.evaluate(graph, feed)["y0"]
    assert similarity(wanted, ops.evaluate(ours, feed)["y0"]) > 0.999


MASK = np.zeros((4, 8), np.float32)
MASK[0], MASK[1, 3] = 1, 1
MASKS: dict[str, Callable[[Node, Node, np.float32], Node]] = {
    "added": lambda x, m, size: make("Add", x, constant(MASK * size)),
    "chosen": lambda x, m, size: make("Where", constant(MASK > 0), constant(np.array(size)), x),
    "computed": lambda x, m, size: make("Add", x, make("Mul", m, constant(np.array(size)))),
}
"""Scores, a mask that is given, and what is added to masked ones -> masked scores."""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [np.float32(-1e9), np.finfo(np.float32).min])
@pytest.mark.parametrize("name", MASKS)
def test_masks_that_16_bits_do_not_hold_stay_in_float32(
    name: str, size: np.float32, dtype: str
) -> None:
    """Of a row that is masked whole, softmax is uniform, as in float32, not NaN."""
    net, m = Net(4, 8), placeholder("m", Type("float32", (4, 8)))
    made = make("MatMul", make("Softmax", MASKS[name](net.x, m, size)), net.weights(8, 5))
    graph = Graph((net.x, m), (made,), ("y0",))
    feed = {"x": net.samples()[0]["x"], "m": MASK}
    ours = run_stage(graph, "quantize", None, Choice({"quantize_half": {"dtype": dtype}}))
    assert "matmul" in {n.op for n in ours.nodes}
    wanted, got = ops.evaluate(graph, feed)["y0"], ops.evaluate(ours, feed)["y0"]
    np.testing.assert_allclose(got, wanted, rtol=0.02, atol=0.02)


def test_products_of_what_float16_does_not_hold_stay_in_float32() -> None:
    net = Net(4, 8)
    weights = net.weights(8, 5)
    table = constant(np.float32(1e35) * net.weights(3, 8).array)
    rows = make("Gather", table, constant(np.array([2, 0])), axis=0)
    for x, w in (
        (net.x, weights.array * 1e-7),
        (net.x, weights.array * 1e7),
        (rows, weights.array),
    ):
        graph = net.graph(make("MatMul", x, constant(w.astype(np.float32))))
        ours = run_stage(graph, "quantize", None, Choice({"quantize_half": {"dtype": "float16"}}))
        assert "MatMul" in {n.op for n in ours.nodes}


def test_a_convolution_s_bias_may_make_its_result_too_large_for_float16() -> None:
    net = Net(1, 8, 5, 5)
    first = make("Conv", net.x, net.weights(6, 8, 3, 3), constant(np.full(6, 1e6, np.float32)))
    graph = net.graph(make("Conv", first, net.weights(4, 6, 1, 1, spread=1e-3)))
    ours = run_stage(graph, "quantize", None, Choice({"quantize_half": {"dtype": "float16"}}))
    feed = net.samples()[0]
    wanted, got = ops.evaluate(graph, feed)["y0"], ops.evaluate(ours, feed)["y0"]
    np.testing.assert_allclose(got, wanted, rtol=0.01)


# Transposed convolutions.


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_transposed_convolution_is_the_convolution_of_its_phases(data: st.DataObject) -> None:
    draw = data.draw
    rank, group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    sizes = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    pads = [draw(st.integers(0, (k - 1) // 2)) for k in (*kernel, *kernel)]
    more = tuple(draw(st.integers(0, s - 1)) for s in strides)
    random = np.random.default_rng(0)
    x = placeholder("x", Type("uint8", (2, 2 * group, *sizes)))
    w = constant(random.integers(-127, 128, (2 * group, 3, *kernel)).astype(np.int8))
    one, zero = constant(np.array(0.5, np.float32)), constant(np.array(7, np.int32))
    scales = constant((2.0 ** random.integers(-3, 3, (3, *[1] * rank))).astype(np.float32))
    y = make(
        "ConvTranspose",
        make("dequantize", x, one, zero),
        make("dequantize", w, scales, constant(np.zeros((), np.int32))),
        constant(4 * random.integers(-9, 9, 3 * group).astype(np.float32)),  # whole steps
        group=group,
        strides=strides,
        pads=tuple(pads),
        output_padding=more,
    )
    graph = Graph((x,), (y,), ("y0",))
    ours = run_stage(graph, "integer")
    assert not float_products(ours)
    feed = {"x": random.integers(0, 256, x.type.dims).astype(np.uint8)}
    np.testing.assert_allclose(
        ops.evaluate(ours, feed)["y0"], ops.evaluate(graph, feed)["y0"], rtol=1e-6
    )


LEFT = {"MatMul": (96, 64), "MatMul of a batch": (2, 96, 64), "Gemm": (96, 64)}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("how", ["quantize_static", "quantize_dynamic", "quantize_weights"])
def test_constants_on_the_left_of_a_product_are_its_weights(name: str, how: str) -> None:
    random = np.random.default_rng(2)
    shape = LEFT[name]
    x = placeholder("x", Type("float32", shape))
    w = constant((random.standard_normal((48, 96)) * 0.1).astype(np.float32), "w")
    if name == "Gemm":
        bias = constant(random.standard_normal((48, 1)).astype(np.float32))
        y = make("Gemm", w, x, bias, name="left")
    else:
        y = make("MatMul", w, x, name="left")
    graph = run_stage(Graph((x,), (y,), ("y",)), "fold")
    samples = [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(8)]
    asked = {"statistics": calibrate(graph, samples)} if how == "quantize_static" else {}
    made = build(how, {**asked, **({"bits": 8} if how == "quantize_weights" else {})})(graph)
    small = run_stage(made, "integer")
    integers = {"MatMulInteger", "matmul_narrow"} & {n.op for n in small.nodes}
    assert integers, "there is a product of bytes"
    wanted, got = (ops.evaluate(g, samples[0])["y"] for g in (graph, small))
    assert np.square(got - wanted).mean() < 1e-3 * np.square(wanted).mean()
    kept = build(how, {**asked, "exclude": ("left",)})(graph)
    assert {n.op for n in kept.nodes} == {n.op for n in graph.nodes}, "excluded nodes are unchanged"


def two_ranges(join: str) -> tuple[Graph, list[Feed]]:
    """Branches of ranges 200 times apart, concatenated or sliced, then rescaled by products."""
    random = np.random.default_rng(1)

    def w(*shape: int, scale: float = 1) -> Node:
        return constant((random.standard_normal(shape) * scale).astype(np.float32))

    x = placeholder("x", Type("float32", (1, 8, 6, 6)))
    a = make("Relu", make("Conv", x, w(8, 8, 1, 1, scale=0.02), name="small"))
    b = make("Relu", make("Conv", x, w(8, 8, 1, 1, scale=4), name="large"))
    up, down = w(8, 8, 1, 1, scale=10), w(8, 8, 1, 1, scale=0.005)
    both = constant(np.concatenate([up.array, down.array], 1))
    whole = make("Concat", a, b, axis=1, name="join")
    if join in ("Slice", "Split"):
        apart = constant(np.concatenate([w(8, 8, 1, 1, scale=0.02).array, w(8, 8, 1, 1).array * 4]))
        one = make("Conv", x, apart, name="first")
        if join == "Split":
            split = make("Split", one, int64s([8, 8]), axis=1)
            parts = [make("item", split, index=i) for i in (0, 1)]
        else:
            parts = [make("Slice", one, int64s([i]), int64s([i + 8]), int64s([1])) for i in (0, 8)]
        y = make("Add", *(make("Conv", p, v) for p, v in zip(parts, (up, down), strict=True)))
    elif join == "spatial":
        y = make("Conv", make("Concat", a, b, axis=2), up, name="last")
        y = make("Slice", y, int64s([0]), int64s([6]), int64s([2]))
    elif join == "MatMul":
        rows = [make("Transpose", v, perm=(0, 2, 3, 1)) for v in (a, b)]
        y = make("MatMul", make("Concat", *rows, axis=3), constant(both.array[:, :, 0, 0].T))
    elif join == "depthwise":
        y = make("Conv", make("Conv", whole, w(16, 1, 1, 1), group=16, name="each"), both)
    elif join == "nested":
        outer = make("Concat", whole, a, axis=1)
        y = make("Conv", outer, constant(np.concatenate([both.array, up.array], 1)))
    else:
        between = make(join, whole, **({"kernel_shape": (2, 2)} if "Pool" in join else {}))
        y = make("Conv", between, both, pads=(1, 1, 1, 1), name="last")
    samples = [{"x": random.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(9)]
    return Graph((x,), (y,), ("y",)), samples


JOINS = ("Identity", "Relu", "MaxPool", "AveragePool", "spatial", "MatMul", "depthwise", "nested")


@pytest.mark.parametrize("join", [*JOINS, "Slice", "Split"])
def test_values_of_very_different_ranges_share_no_scale(
    join: str, caplog: pytest.LogCaptureFixture
) -> None:
    graph, samples = two_ranges(join)
    for stage in ("fold", "fuse"):
        graph = run_stage(graph, stage)
    statistics = calibrate(graph, samples[:8])
    ranges.warn.cache_clear()
    made = build("quantize_static", {"statistics": statistics})(graph)
    small = run_stage(run_stage(made, "integer"), "layout")
    wanted, pairs, got = (ops.evaluate(g, samples[8])["y"] for g in (graph, made, small))
    assert np.square(pairs - wanted).sum() < 1e-2 * np.square(wanted).sum(), "20 dB"
    assert np.square(got - wanted).sum() < 1e-2 * np.square(wanted).sum(), "20 dB"
    assert ("times apart" in caplog.text) == (join not in ("Slice", "Split"))
    if join in ("Identity", "Relu", "MatMul"):
        assert not float_products(small), "each part has its own scale, and nothing stays float"


def test_a_model_without_activations_is_calibrated() -> None:
    nodes = [helper.make_node("Transpose", [a], [b], perm=[1, 0, 2]) for a, b in ("xh", "hy")]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 1]) for n in "xy")
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]))
    sample = {"x": np.ones((1, 1, 1), np.float32)}
    artifact = qcompiler.compile(model, precision="int8", calibration=[sample])
    np.testing.assert_array_equal(qcompiler.load(artifact).run(sample)["y"], sample["x"])
