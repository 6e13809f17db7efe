"""Numpy definitions against onnxruntime, over random shapes and attributes."""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ValueInfoProto, helper
from oracles import onnxruntime_outputs, onnxruntime_quantized

from qcompiler.ir import Array, Graph, constant
from qcompiler.onnx_io.reader import read
from qcompiler.ops import OPERATORS, evaluate, make

OPSET = 21
"""An IR version that every supported onnxruntime reads."""

examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


def theirs(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], outputs: int
) -> list[Array]:
    """onnxruntime's values, without its optimizations."""
    given = {f"x{i}": v for i, v in enumerate(inputs) if v is not None}
    names = [f"x{i}" if v is not None else "" for i, v in enumerate(inputs)]
    types = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
    ]
    made = [ValueInfoProto(name=f"y{i}") for i in range(outputs)]
    node = helper.make_node(op, names, [o.name for o in made], **attrs)
    model = helper.make_model(
        helper.make_graph([node], "g", types, made),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    return list(onnxruntime_outputs(model, given, plain=True).values())


def ours(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], outputs: int
) -> list[Array]:
    attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in attrs.items()}
    if "outputs" in OPERATORS[op].defaults:
        attrs["outputs"] = outputs
    node = make(op, *(None if a is None else constant(a) for a in inputs), **attrs)
    items = (
        [node] if len(node.types) == 1 else [make("item", node, index=i) for i in range(outputs)]
    )
    names = tuple(f"y{i}" for i in range(len(items)))
    return list(evaluate(Graph((), tuple(items), names), {}).values())


def agree(
    op: str, *inputs: Any, rtol: float = 1e-5, outputs: int = 1, refuse: str = "", **attrs: Any
) -> None:
    """Both agree, or we raise Error too if onnxruntime's error matches `refuse`.

    onnxruntime may be stricter than we are: it limits pads, dilations and dtypes.
    """
    arrays = [None if i is None else np.asarray(i) for i in inputs]
    try:
        want = theirs(op, arrays, attrs, outputs)
    except pytest.skip.Exception as e:
        if not refuse or not re.search(refuse, str(e)):
            raise
        return
    for got, wanted in zip(ours(op, arrays, attrs, outputs), want, strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        if got.dtype.kind == "f":
            scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=1))
            np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * scale)
        else:
            np.testing.assert_array_equal(got, wanted)


def floats(seed: int, shape: Sequence[int]) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sizes(least: int, most: int, low: int = 1, high: int = 7) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(low, high), min_size=least, max_size=most)


@st.composite
def windows(draw: st.DrawFn, dims: int, pool: bool = False) -> dict[str, Any]:
    def each(low: int, high: int, count: int = dims) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    attrs: dict[str, Any] = {"kernel_shape": each(1, 3)}
    if draw(st.booleans()):
        attrs["strides"] = each(1, 3)
    if draw(st.booleans()):
        attrs["dilations"] = each(1, 2)
    mode = draw(st.sampled_from(["pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", ""]))
    if mode == "pads":
        limit = min(attrs["kernel_shape"]) - 1 if pool else 2
        attrs["pads"] = each(0, limit, 2 * dims)
    elif mode:
        attrs["auto_pad"] = mode
        # onnxruntime ignores dilations here, and computes negative pads for windows with gaps.
        attrs.pop("dilations", None)
        steps = zip(attrs["kernel_shape"], attrs.get("strides", ()), strict=False)
        attrs["strides"] = [min(k, s) for k, s in steps] or [1] * dims
    return attrs


@pytest.mark.parametrize("dims", [1, 2, 3])
@examples
@given(data=st.data())
def test_convolution(dims: int, data: st.DataObject) -> None:
    attrs = data.draw(windows(dims))
    group = data.draw(st.sampled_from([1, 1, 2, 4]))
    each, outputs = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)) * group
    size = data.draw(sizes(dims, dims))
    x = floats(0, (data.draw(st.integers(1, 2)), each * group, *size))
    w = floats(1, (outputs, each, *attrs["kernel_shape"]))
    bias = floats(2, (outputs,)) if data.draw(st.booleans()) else None
    agree("Conv", x, w, bias, group=group, refuse="Invalid input shape", **attrs)


@pytest.mark.parametrize("dims", [1, 2])
@examples
@given(data=st.data())
def test_transposed_convolution(dims: int, data: st.DataObject) -> None:
    attrs = data.draw(windows(dims))
    attrs.pop("auto_pad", None)  # onnxruntime and ONNX disagree over it
    strides = attrs.get("strides", [1] * dims)
    if data.draw(st.booleans()):
        attrs["output_padding"] = [s - 1 for s in strides]
    group, each, inputs = (data.draw(st.integers(1, 2)) for _ in range(3))
    x = floats(0, (2, inputs * group, *data.draw(sizes(dims, dims))))
    w = floats(1, (inputs * group, each, *attrs["kernel_shape"]))
    agree("ConvTranspose", x, w, group=group, refuse="output dimension is <= 0", **attrs)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@examples
@given(data=st.data())
def test_pools(op: str, data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    attrs = data.draw(windows(dims, pool=True))
    if op == "AveragePool":
        attrs["count_include_pad"] = data.draw(st.integers(0, 1))
    if "auto_pad" not in attrs and op != "LpPool":
        attrs["ceil_mode"] = data.draw(st.integers(0, 1))
    x = floats(0, (2, 3, *data.draw(sizes(dims, dims, 5))))  # no window is larger than 5
    outputs = data.draw(st.integers(1, 2)) if op == "MaxPool" else 1
    agree(op, x, outputs=outputs, **attrs)


@examples
@given(sizes(0, 2), sizes(0, 2), *[st.integers(1, 5)] * 3, st.integers(0, 3))
def test_matrix_products(a: list[int], b: list[int], m: int, k: int, n: int, ones: int) -> None:
    left, right = ([1 if ones & bit else d for d in dims] for bit, dims in ((1, a), (2, b)))
    agree("MatMul", floats(0, (*left, m, k)), floats(1, (*right, k, n)), refuse="Incompatible dim")
    agree("MatMul", floats(0, (k,)), floats(1, (*right, k, n)))
    agree("MatMul", floats(0, (*left, m, k)), floats(1, (k,)))


@examples
@given(
    *[st.integers(1, 4)] * 3, *[st.integers(0, 1)] * 2, st.sampled_from([(), (1,), "n", "m1", "mn"])
)
def test_gemm(m: int, k: int, n: int, ta: int, tb: int, c: Any) -> None:
    shape = {"n": (n,), "m1": (m, 1), "mn": (m, n)}.get(c, c) if isinstance(c, str) else c
    a, b = floats(0, (k, m) if ta else (m, k)), floats(1, (n, k) if tb else (k, n))
    agree("Gemm", a, b, floats(2, shape), alpha=0.5, beta=2.0, transA=ta, transB=tb)


@examples
@given(st.data())
def test_slices(data: st.DataObject) -> None:
    shape = data.draw(sizes(1, 3, 0, 5))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    far = st.one_of(st.integers(-7, 7), st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]))
    starts, ends = (data.draw(st.lists(far, min_size=len(axes), max_size=len(axes))) for _ in "ab")
    step = st.integers(-3, 3).filter(bool)
    steps = data.draw(st.lists(step, min_size=len(axes), max_size=len(axes)))
    # For negative steps, onnxruntime takes the largest end as the smallest.
    ends = [min(e, 7) if s < 0 else e for e, s in zip(ends, steps, strict=True)]
    agree("Slice", floats(0, shape), *map(np.array, (starts, ends, axes, steps)))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@examples
@given(data=st.data())
def test_padding(mode: str, data: st.DataObject) -> None:
    shape = data.draw(sizes(1, 3, 2, 5))
    least = -1 if mode == "constant" else 0
    pads = data.draw(
        st.lists(st.integers(least, 1), min_size=2 * len(shape), max_size=2 * len(shape))
    )
    agree("Pad", floats(0, shape), np.array(pads), np.float32(3), mode=mode)


@examples
@given(st.data())
def test_reshapes(data: st.DataObject) -> None:
    shape = data.draw(sizes(1, 4, 1, 4))
    target = data.draw(st.lists(st.sampled_from([0, -1, 1, 2, 3, 4, 6]), max_size=4))
    agree("Reshape", floats(0, shape), np.array(target, np.int64), refuse="reshape_helper")


@examples
@given(sizes(2, 4, 1, 4), st.integers(-4, 3), st.integers(0, 1))
def test_reductions(shape: list[int], axis: int, keep: int) -> None:
    axis = axis % len(shape)
    axes = np.array([axis])
    for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceLogSumExp", "ReduceProd"):
        agree(op, floats(0, shape), axes, keepdims=keep)
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)
    for last in (0, 1):
        agree("ArgMax", x, axis=axis, keepdims=keep, select_last_index=last)


@examples
@given(sizes(1, 3, 1, 6), st.integers(0, 1), st.integers(0, 4), st.integers(-3, 2))
def test_top_k(shape: list[int], largest: int, k: int, axis: int) -> None:
    x = np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)  # with many ties
    axis, k = axis % len(shape), min(k, shape[axis % len(shape)])
    agree("TopK", x, np.array([k]), outputs=2, largest=largest, axis=axis)


MODES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", MODES)
@examples
@given(data=st.data())
def test_resizes(mode: str, coordinates: str, data: st.DataObject) -> None:
    shape = [1, 2, *data.draw(sizes(2, 2, 2, 6))]
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attrs["nearest_mode"] = data.draw(
            st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
        )
    if data.draw(st.booleans()):
        scales = [1, 1, *(data.draw(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])) for _ in "hw")]
        if coordinates == "align_corners":  # ONNX's own data take a resized length as a fraction
            scales = [s if s * n == int(s * n) else 2.0 for s, n in zip(scales, shape, strict=True)]
        agree("Resize", floats(0, shape), None, np.array(scales, np.float32), rtol=1e-4, **attrs)
    else:
        counts = np.array([1, 2, *data.draw(sizes(2, 2, 1, 9))])
        agree("Resize", floats(0, shape), None, None, counts, rtol=1e-4, **attrs)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_samples(mode: str, padding: str, corners: int) -> None:
    grid = np.random.default_rng(1).uniform(-1.7, 1.7, (2, 5, 6, 2)).astype(np.float32)
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    agree("GridSample", floats(0, (2, 3, 4, 7)), grid, rtol=1e-4, **attrs)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [None, (3, 5, 1)])
def test_recurrent_layers(op: str, direction: str, lengths: Any) -> None:
    gates, two = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 1 + (direction == "bidirectional")
    x, w = floats(0, (5, 3, 4)), floats(1, (two, gates * 6, 4))
    r, b = floats(2, (two, gates * 6, 6)), floats(3, (two, 2 * gates * 6))
    states = [floats(4, (two, 3, 6)), *[floats(5, (two, 3, 6))] * (op == "LSTM")]
    given = None if lengths is None else np.array(lengths, np.int32)
    attrs: dict[str, Any] = {"hidden_size": 6, "direction": direction}
    if op == "GRU":
        attrs["linear_before_reset"] = int(lengths is None)
    if op == "LSTM" and lengths is None:
        states.append(floats(6, (two, 18)))
    agree(op, x, w, r, b, given, *states, outputs=3 if op == "LSTM" else 2, rtol=1e-4, **attrs)


@pytest.mark.parametrize("activation", ["Relu", "HardSigmoid", "LeakyRelu", "Softsign", "Elu"])
def test_other_activations_of_recurrent_layers(activation: str) -> None:
    x, w, r = floats(0, (5, 3, 4)), floats(1, (1, 6, 4)), floats(2, (1, 6, 6))
    attrs = {"activations": [activation], "hidden_size": 6, "clip": 0.7}
    agree("RNN", x, w, r, outputs=2, rtol=1e-4, **attrs)


@examples
@given(st.data())
def test_quantized_linear(data: st.DataObject) -> None:
    shape = data.draw(sizes(2, 4, 1, 5))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    count = shape[axis] if data.draw(st.booleans()) else 0
    dtype = data.draw(st.sampled_from([np.int8, np.uint8, np.int16, np.uint16]))
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 1, (count,) if count else ()).astype(np.float32)
    zero = rng.integers(0, 9, scale.shape).astype(dtype)
    x = floats(1, shape) * 100
    agree("QuantizeLinear", x, scale, zero, axis=axis)
    agree("DequantizeLinear", rng.integers(0, 99, shape).astype(dtype), scale, zero, axis=axis)


@examples
@given(
    st.sampled_from([np.uint8, np.int8]),
    st.sampled_from([np.uint8, np.int8]),
    *[st.integers(1, 5)] * 3,
)
def test_integer_products(a: Any, b: Any, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(0)
    x, y = (
        rng.integers(np.iinfo(d).min, np.iinfo(d).max, s).astype(d)
        for d, s in ((a, (m, k)), (b, (k, n)))
    )
    zero_a, zero_b = a(3), rng.integers(0, 9, n).astype(b)
    agree("MatMulInteger", x, y, zero_a, zero_b)
    image = rng.integers(0, 255, (1, 2, m + 2, k + 2)).astype(np.uint8)
    kernel = rng.integers(-9, 9, (3, 2, 2, 3)).astype(b)
    agree("ConvInteger", image, kernel, np.uint8(7), pads=[1, 0, 1, 1])
    scales = (np.float32(0.02), rng.uniform(0.01, 0.1, 3).astype(np.float32), np.float32(0.5))
    zero_w = np.zeros(3, b)
    bias = rng.integers(-99, 99, 3).astype(np.int32)
    inputs = (
        image,
        scales[0],
        np.uint8(7),
        kernel,
        scales[1],
        zero_w,
        scales[2],
        np.uint8(99),
        bias,
    )
    agree("QLinearConv", *inputs)
    agree("DynamicQuantizeLinear", floats(m, (m, k)) * n, outputs=3)


@pytest.mark.parametrize("op", ["Mod", "Div", "Pow", "Add", "Max", "Equal", "Less", "BitShift"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "float32"])
def test_arithmetic(op: str, dtype: str) -> None:
    if (op, dtype) == ("Pow", "uint8") or (op == "BitShift" and dtype != "uint8"):
        pytest.skip("onnxruntime has no such operator")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 50, (3, 4)).astype(dtype), rng.integers(1, 5, (4,)).astype(dtype)
    if dtype.startswith("int"):
        a = a - np.asarray(25, dtype)
    attrs: dict[str, Any] = {}
    if op == "BitShift":
        attrs["direction"] = "LEFT"
    if op == "Mod" and dtype == "float32":
        attrs["fmod"] = 1
    agree(op, a, b, **attrs)


ACTIVATIONS = """
    Sigmoid Tanh Erf Gelu HardSigmoid HardSwish Mish Softplus Softsign Selu Elu Celu Relu LeakyRelu
    ThresholdedRelu Shrink Exp Abs Neg Sign Floor Ceil Round Sin Cos Tan Atan Sinh Cosh Asinh
"""


@pytest.mark.parametrize("op", ACTIVATIONS.split())
def test_activations(op: str) -> None:
    x = np.concatenate([np.linspace(-9, 9, 181), [0.0, -0.0, np.inf, -np.inf]]).astype(np.float32)
    agree(op, x[: -2 if op in ("Sin", "Cos", "Tan") else None], rtol=2e-6)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("activations", ["QUInt8", "QInt8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_network_that_onnxruntime_quantized(
    form: str, activations: str, per_channel: bool, tmp_path: Path
) -> None:
    """The same class for every image, and scores within one step of the output."""
    demo = resources.files("qcompiler.demo")
    with demo.joinpath("digits.npz").open("rb") as file, np.load(file) as data:
        calibration, images = data["calibration"][:32], data["test_images"][:100]
    path = onnxruntime_quantized(
        onnx.load_from_string(demo.joinpath("digits.onnx").read_bytes()),
        [{"image": image[None]} for image in calibration],
        tmp_path,
        quant_format=form,
        activation_type=activations,
        per_channel=per_channel,
    )
    (want,) = onnxruntime_outputs(path, {"image": images}, plain=True).values()
    (got,) = evaluate(read(path), {"image": images}).values()
    np.testing.assert_array_equal(got.argmax(1), want.argmax(1))
    step = np.diff(np.unique(want)).max(initial=0, where=np.diff(np.unique(want)) > 1e-6)
    assert np.abs(got - want).max() <= min(step, np.ptp(want) / 50)
