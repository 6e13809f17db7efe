"""Numpy definitions against ONNX's node tests, defaults against its schemas, our own exactly."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.backend.test.case.test_case import TestCase
from onnx_cases import DTYPE_ATTRIBUTES, as_array, attributes, foreign, node_cases

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.tensors import DTYPES
from qcompiler.ops import OPERATORS, evaluate, make
from qcompiler.ops.registry import required

ONNX_OPERATORS = sorted(op for op in OPERATORS if op[0].isupper())

BEYOND_US = re.compile(
    "a condition known|which dimensions of .* are 1|a number of iterations known at run"
    "|the length of a sequence must be known|optional_type|unlike sequences"
)
"""Unsupported parts of ONNX: dynamic control flow; and sequences, of lengths not given here."""


def assert_close(got: Array, want: Array, rtol: float, atol: float) -> None:
    """Within ONNX's tolerance; floats of at most 16 bits within three units in the last place."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if "float" not in got.dtype.name:
        np.testing.assert_array_equal(got, want)
        return
    bits = {"float32": 23, "float64": 52, "float16": 10, "bfloat16": 7}.get(got.dtype.name)
    rtol = 0 if bits is None else max(rtol, 3 * 2.0**-bits)
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol, atol)


def run_case(case: TestCase) -> None:
    graph = read(case.model)
    names = [i.name for i in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        got = evaluate(graph, dict(zip(names, map(as_array, inputs), strict=False)))
        for value, want in zip(got.values(), map(as_array, outputs), strict=True):
            assert_close(value, want, case.rtol, case.atol)


DRAWN = (
    "test_bernoulli_expanded",
    "test_bernoulli_double_expanded",
    "test_bernoulli_seed_expanded",
)
"""Cases of random numbers: ONNX says of their data that no implementation need give the same."""


def failure(case: TestCase) -> str:
    """Why a case fails, or "" if it passes or is unsupported."""
    if case.name in DRAWN:
        return ""
    try:
        run_case(case)
    except Error as e:
        unknown = re.findall(r"(\w+) \([\w.]+\): unknown operator", str(e))
        if BEYOND_US.search(str(e)) or (unknown and not set(unknown) & OPERATORS.keys()):
            return ""
        return f"{case.name}: {e}"
    except AssertionError as e:
        return f"{case.name}: {e}"
    return ""


@pytest.mark.parametrize("op", ONNX_OPERATORS)
def test_onnx_says_the_same(op: str) -> None:
    assert not list(filter(None, map(failure, node_cases().get(op, []))))


def test_onnx_says_the_same_of_functions() -> None:
    """The same for ONNX's definitions of operators as functions."""
    assert not list(filter(None, map(failure, node_cases()[""])))


def test_most_of_onnx_is_supported() -> None:
    """The fraction of node cases that are read; the reader names the rest."""
    refused: dict[str, int] = defaultdict(int)
    total = 0
    for op, of_op in node_cases().items():
        for case in of_op:
            total += 1
            try:
                read(case.model)
            except Error:
                refused[op] += 1
    passed = total - sum(refused.values())
    assert passed / total > 0.8, f"{passed} of {total}; refused: {dict(refused)}"


IMPLICIT = [
    "Conv",
    "ConvTranspose",
    "ConvInteger",
    "QLinearConv",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "Split",
    "Transpose",
    "Dropout",
    "Cast",
    "CastLike",
]


@pytest.mark.parametrize("op", IMPLICIT)
def test_attributes_that_onnx_leaves_implicit(op: str) -> None:
    """Nodes as in the file, without the reader's adapters: auto_pad, ceil_mode, no pads."""
    newest = onnx.defs.get_schema(op).since_version
    for case in node_cases().get(op, []):
        (proto,) = case.model.graph.node
        if case.model.opset_import[0].version < newest or case.name.startswith("test_training"):
            continue
        attrs = attributes(proto)
        for inputs, outputs in case.data_sets:
            if "string" in attrs.values() or any(map(foreign, inputs)):
                continue
            given = iter([constant(as_array(i)) for i in inputs])
            node = make(op, *(next(given) if i else None for i in proto.input), **attrs)
            for value, want in zip(values(node), map(as_array, outputs), strict=True):
                assert_close(value, want, case.rtol, case.atol)


def values(node: Node) -> list[Array]:
    """All outputs of a node whose inputs are constants."""
    count = len(node.types)
    items = [make("item", node, index=i) for i in range(count)] if count > 1 else [node]
    names = tuple(f"y{i}" for i in range(count))
    return list(evaluate(Graph((), tuple(items), names), {}).values())


def value(op: str, *inputs: object, **attrs: object) -> Array:
    """One operator on numbers."""
    given = (None if i is None else constant(np.asarray(i)) for i in inputs)
    (result,) = values(make(op, *given, **attrs))
    return result


@pytest.mark.parametrize("op", ONNX_OPERATORS)
def test_attributes_and_defaults_are_those_of_onnx(op: str) -> None:
    schema = onnx.defs.get_schema(op)
    for key, default in OPERATORS[op].defaults.items():
        attribute = schema.attributes.get(key)
        if attribute is None:  # our own, or from an opset newer than the installed onnx
            assert key != "outputs" or schema.max_output > 1
            continue
        wanted = (
            helper.get_attribute_value(attribute.default_value)
            if attribute.default_value.type
            else None
        )
        if attribute.required:
            assert default is required()
        elif key in DTYPE_ATTRIBUTES:
            assert default == (DTYPES[wanted] if wanted else None)
        elif isinstance(wanted, float):
            assert np.float32(default) == np.float32(wanted)  # type: ignore[arg-type]
        elif isinstance(wanted, list):
            assert default == tuple(w.decode() if isinstance(w, bytes) else w for w in wanted)
        else:
            assert default == (wanted.decode() if isinstance(wanted, bytes) else wanted), key
    missing = schema.attributes.keys() - OPERATORS[op].defaults.keys()
    assert not missing


@pytest.mark.parametrize("op", ONNX_OPERATORS)
def test_inputs_are_those_of_onnx(op: str) -> None:
    schema = onnx.defs.get_schema(op)
    needed, possible = OPERATORS[op].arity
    assert needed >= schema.min_input or (needed, schema.min_input) == (1, 0)
    assert possible >= min(schema.max_input, len(schema.inputs))


def test_every_operator_has_a_type_rule() -> None:
    assert not [op for op, entry in OPERATORS.items() if entry.type_rule is None]


# The compiler's own operators.

BYTES = ("uint8", "int8")


def random(shape: Sequence[int], dtype: str, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    if dtype in BYTES:
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return rng.standard_normal(shape).astype(numpy_dtype(dtype))


@pytest.mark.parametrize("a", BYTES)
@pytest.mark.parametrize("b", BYTES)
@pytest.mark.parametrize("group", [1, 2, 6])
def test_sums_of_bytes_are_exact_int32(a: str, b: str, group: int) -> None:
    x, w = random((2, 7, 5, 6), a), random((3, 2, 6 // group, 6), b, 1)
    got = value("conv", x, w, strides=(2, 1), pads=(1, 0, 1, 1), group=group, pad_value=3)
    padded = np.pad(x.astype(np.int64), ((0, 0), (1, 1), (0, 1), (0, 0)), constant_values=3)
    want = np.zeros((2, 4, 5, 6), np.int64)
    each = 6 // group
    for n, h, v, o in np.ndindex(want.shape):
        first = o // each * each
        seen = padded[n, 2 * h : 2 * h + 3, v : v + 2, first : first + each]
        want[n, h, v, o] = (seen * w[..., o].astype(np.int64)).sum()
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want)


def test_sums_of_bytes_wrap_around() -> None:
    long = 70_000  # 255 * 127 * 70,000 is more than int32 holds
    x, w = np.full((1, long), 255, np.uint8), np.full((long, 1), 127, np.int8)
    assert value("matmul", x, w)[0, 0] == np.int64(255 * 127 * long).astype(np.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("transpose_b", [0, 1])
def test_float_products_are_float32(dtype: str, transpose_b: int) -> None:
    a, b = random((2, 3, 5), dtype), random((5, 4), dtype, 1)
    got = value("matmul", a, b.T if transpose_b else b, transpose_b=transpose_b)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("channels", [8, 32])
def test_channels_last_convolution_is_onnx_convolution(
    dims: int, group: int, channels: int
) -> None:
    x = random((2, channels, *(9, 7, 5)[:dims]), "float32")
    w = random((16, channels // group, *(3, 2, 3)[:dims]), "float32", 1)
    attrs = {"strides": (2, 1, 1)[:dims], "dilations": (1, 2, 1)[:dims], "pads": (1,) * 2 * dims}
    want = value("Conv", x, w, group=group, **attrs)
    kernel = np.moveaxis(w, (0, 1), (-1, -2))
    got = value("conv", np.moveaxis(x, 1, -1), kernel, group=group, **attrs)
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["max_pool", "average_pool"])
def test_channels_last_pools_are_onnx_pools(pool: str) -> None:
    x = random((2, 3, 9, 8), "float32")
    attrs = {"kernel_shape": (3, 2), "strides": (2, 2), "pads": (1, 0, 1, 1)}
    want = value({"max_pool": "MaxPool", "average_pool": "AveragePool"}[pool], x, **attrs)
    got = value(pool, np.moveaxis(x, 1, -1), **attrs)
    np.testing.assert_array_equal(np.moveaxis(got, -1, 1), want)


def test_channels_last_pixels_of_channels_are_those_of_onnx() -> None:
    x = np.random.default_rng(4).standard_normal((2, 3, 5, 12)).astype(np.float32)
    image = placeholder("x", Type("float32", x.shape))
    made = make("depth_to_space", image, down=2, across=2)
    first = placeholder("y", Type("float32", (2, 12, 3, 5)))
    onnx_s = make("DepthToSpace", first, blocksize=2, mode="DCR")
    own = evaluate(Graph((image,), (made,), ("z",)), {"x": x})["z"]
    planes = evaluate(Graph((first,), (onnx_s,), ("z",)), {"y": x.transpose(0, 3, 1, 2)})["z"]
    np.testing.assert_array_equal(own, planes.transpose(0, 2, 3, 1))
    wide = evaluate(Graph((image,), (make("depth_to_space", image, across=3),), ("z",)), {"x": x})[
        "z"
    ]
    np.testing.assert_array_equal(wide, x.reshape(2, 3, 15, 4))


@pytest.mark.parametrize("dtype", BYTES)
def test_the_average_of_bytes_is_rounded_half_to_even(dtype: str) -> None:
    x = np.array([1, 2, 2, 3, 5, 4, -8, 100]).astype(dtype).reshape(1, 8, 1)
    got = value("average_pool", x, kernel_shape=(2,), strides=(2,))
    pairs = x.reshape(4, 2).astype(np.float32)
    np.testing.assert_array_equal(got.ravel(), np.rint(pairs.sum(1) / np.float32(2)).astype(dtype))
    assert got.dtype == np.dtype(dtype)


def test_quantize_rounds_half_to_even_and_saturates() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9, np.inf, -np.inf, np.nan], np.float32)
    zero = np.int32(10)
    got = value("quantize", x, np.float32(1), zero, dtype="uint8")
    assert got.tolist() == [10, 12, 12, 10, 255, 0, 255, 0, 0]
    got = value("quantize", x, np.float32(1), np.int32(0), dtype="int8")
    assert got.tolist() == [0, 2, 2, 0, 127, -128, 127, -128, -128]


def test_quantize_takes_one_multiplier_a_channel() -> None:
    x = np.array([[1, 1], [3, 3]], np.float32)
    got = value("quantize", x, np.array([1, 10], np.float32), np.int32(-5), dtype="int8")
    assert got.tolist() == [[-4, 5], [-2, 25]]
    back = value("dequantize", got, np.array([1, 0.1], np.float32), np.int32(-5))
    np.testing.assert_array_equal(back, np.array([[1, 1], [3, 3]], np.float32))


def test_a_look_up_counts_int8_from_its_lowest() -> None:
    table = np.arange(256).astype(np.float32)
    assert value("lookup", np.array([0, 255], np.uint8), table).tolist() == [0, 255]
    assert value("lookup", np.array([-128, 0, 127], np.int8), table).tolist() == [0, 128, 255]


def test_signs_change_and_change_back() -> None:
    x = np.arange(-128, 128).astype(np.int8)
    unsigned = value("as_unsigned", x)
    assert unsigned.tolist() == list(range(256))
    np.testing.assert_array_equal(value("as_signed", unsigned), x)


def test_16_bit_floats_are_rounded_once() -> None:
    x = random((64,), "bfloat16")
    got = value("HardSwish", x)
    wide = x.astype(np.float32)
    want = (wide * np.clip(wide / 6 + np.float32(0.5), 0, 1)).astype(x.dtype)
    assert got.tobytes() == want.tobytes()


def test_integers_divide_towards_zero() -> None:
    a = np.array([7, -7, 7, -7, 5, -(2**31)], np.int32)
    b = np.array([2, 2, -2, -2, 0, -1], np.int32)
    assert value("Div", a, b).tolist() == [3, -3, -3, 3, 0, -(2**31)]
    assert value("Mod", a[:4], b[:4]).tolist() == [1, 1, -1, -1]
    assert value("Mod", a[:4], b[:4], fmod=1).tolist() == [1, -1, 1, -1]


def test_powers_of_integers() -> None:
    x, y = np.array([2, -1, -1, 3, 3], np.int64), np.array([-1, -3, -2, 4, 0], np.int32)
    assert value("Pow", x, y).tolist() == [0, -1, 1, 81, 1]


def test_erf_is_as_good_as_the_c_library() -> None:
    import math

    x = np.linspace(-7, 7, 10_001)
    want = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(value("Erf", x), want, atol=4e-16, rtol=2e-13)


def test_the_clip_of_an_lstm_bounds_what_its_activations_read() -> None:
    x, w, r = (
        np.full((1, 1, 1), 100, np.float32),
        np.ones((1, 4, 1), np.float32),
        np.zeros((1, 4, 1), np.float32),
    )
    node = make("LSTM", constant(x), constant(w), constant(r), hidden_size=1, clip=0.5)
    _, _, cell = values(node)
    np.testing.assert_allclose(cell.ravel(), np.tanh(0.5) / (1 + np.exp(-0.5)), rtol=1e-6)


def test_a_short_sequence_ends_where_it_ends() -> None:
    """Beyond its length, hidden states are zeros; the last state is that at its end."""
    x = random((5, 2, 3), "float32")
    w, r = random((2, 4, 3), "float32", 1), random((2, 4, 4), "float32", 2)
    lengths = np.array([5, 2], np.int32)
    inputs = [constant(i) for i in (x, w, r)]
    attrs: dict[str, Any] = {"hidden_size": 4, "direction": "bidirectional"}
    whole, last = values(make("RNN", *inputs, None, constant(lengths), **attrs))
    short, end = values(make("RNN", constant(x[:2, 1:]), *inputs[1:], **attrs))
    np.testing.assert_allclose(whole[:2, :, 1:], short, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last[:, 1:], end, rtol=1e-5, atol=1e-6)
    assert not whole[2:, :, 1].any()


@pytest.mark.parametrize(
    ("op", "types", "attrs", "what"),
    [
        (
            "Conv",
            ["float32[1,5,8,8]", "float32[4,2,3,3]"],
            {"group": 3},
            "3 groups do not divide 4",
        ),
        (
            "Conv",
            ["float32[1,5,8,8]", "float32[4,2,3,3]"],
            {"group": 2},
            "2 groups do not divide 5",
        ),
        ("Conv", ["float32[1,3,8,8]", "float32[4,2,3,3]"], {}, "weights for 2 channels"),
        ("Conv", ["float32[1,3,2,2]", "float32[4,3,3,3]"], {}, "does not fit into 2"),
        ("Conv", ["float32[1,3,8,8]", "float32[4,3,3,3]"], {"strides": (0, 1)}, "below 1"),
        ("MatMul", ["float32[2,3]", "float32[4,5]"], {}, "do not multiply"),
        ("Add", ["float32[2,3]", "float32[4]"], {}, "do not broadcast"),
        ("Add", ["float32[2]", "int64[2]"], {}, "float32 and int64 do not go together"),
        ("Add", ["float32[2]"], {}, "input 1 is missing"),
        ("Relu", ["float32[2]", "float32[2]"], {}, "2 inputs where 1"),
        ("Softmax", ["float32[2]"], {"axes": 1}, "unknown attribute 'axes'"),
        ("Softmax", ["float32[2]"], {"axis": 3}, "axis 3 does not exist in 1 dimensions"),
        ("Concat", ["float32[2]"], {}, "attribute 'axis' is missing"),
        ("Nonsense", ["float32[2]"], {}, "unknown operator Nonsense"),
    ],
)
def test_what_does_not_fit_is_a_clear_error(
    op: str, types: list[str], attrs: Any, what: str
) -> None:
    inputs = [placeholder(f"x{i}", typed(t)) for i, t in enumerate(types)]
    with pytest.raises(Error, match=what) as caught:
        make(op, *inputs, name="layer/1", **attrs)
    assert caught.value.where.startswith("layer/1")


def typed(text: str) -> Type:
    dtype, _, dims = text.rstrip("]").partition("[")
    return Type(dtype, tuple(int(d) if d.isdigit() else d for d in dims.split(",")))
