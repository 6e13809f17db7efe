"""Depthwise convolutions, pools, Resize, reductions, norms and attention equal their meaning, and
touch no memory but their own (every array ends at a page that may not be touched)."""

import numpy as np
import pytest
from emulated import SIGNED
from kernel_harness import check, isas, vector_isas

from qcompiler.ir import Array, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.isa import Isa
from qcompiler.ops import make

RNG = np.random.default_rng(0)
ALL = [pytest.param(i, id=i.name) for i in isas()]
WIDTHS = [pytest.param(i, id=i.name) for i in vector_isas()]


def array_of(dtype: str, *shape: int) -> Array:
    if "float" in dtype:
        return RNG.standard_normal(shape).astype(numpy_dtype(dtype))
    info = np.iinfo(dtype)
    return RNG.integers(max(info.min, -999), min(info.max, 999) + 1, shape).astype(dtype)


def given(name: str, array: Array) -> Node:
    return placeholder(name, Type(array.dtype.name, array.shape))


def one(
    op: str, x: Array, isa: Isa, *others: Node | None, rtol: float = 0.0, **attrs: object
) -> None:
    """One operator on one array."""
    node = given("x", x)
    root = make(op, node, *others, **attrs)
    check(root, root, [x], [node], isa, rtol=rtol, atol=rtol)


# ------------------------------------------------------------------------------------ depthwise

WINDOWS = [  # height, width, channels, kernel, stride, pad, dilation
    (7, 7, 96, 3, 1, 1, 1),
    (14, 15, 33, 3, 2, 1, 1),
    (5, 6, 70, 5, 1, 2, 1),
    (9, 9, 17, 3, 2, 0, 1),
    (4, 3, 64, 3, 1, 1, 1),
    (10, 10, 3, 2, 1, 0, 1),
    (12, 13, 16, 3, 1, 2, 2),
    (3, 3, 5, 5, 1, 2, 1),
]


DEPTHWISE = [
    pytest.param(w, dtype, i, id=f"{'x'.join(map(str, w))}-{dtype}-{i.name}")
    for n, w in enumerate(WINDOWS)
    for dtype, sets in (
        ("float32", vector_isas()),
        ("uint8", (*isas(), SIGNED)),
        ("int8", isas()[n % 3 :: 3]),
    )
    for i in sets
]


@pytest.mark.parametrize(("window", "dtype", "isa"), DEPTHWISE)
def test_depthwise_convolutions(window: tuple[int, ...], dtype: str, isa: Isa) -> None:
    height, width, channels, kernel, stride, pad, dilation = window
    x = array_of(dtype, 2, height, width, channels)
    node = given("x", x)
    w = array_of("float32" if dtype == "float32" else "int8", kernel, kernel, 1, channels)
    root = make(
        "conv",
        node,
        constant(w),
        strides=(stride, stride),
        pads=(pad,) * 4,
        dilations=(dilation, dilation),
        group=channels,
        pad_value=0 if dtype == "float32" else 7,
    )
    if dtype == "float32":
        out = make("Relu", make("Add", root, constant(array_of("float32", channels))))
        check(out, root, [x], [node], isa, threads=2, rtol=1e-5, atol=1e-5)
        return
    multiplier = (RNG.random(channels) * 0.01).astype(np.float32)
    sums = make("Add", root, constant(array_of("int32", channels)))
    floats = make("Cast", sums, to="float32")
    out = make("quantize", floats, constant(multiplier), constant(np.int32(3)), dtype="uint8")
    kernel_made = check(out, root, [x], [node], isa, threads=2)
    assert kernel_made.name.startswith("depthwise")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_rows_outside_the_image_are_read_by_the_code_of_all_others(dtype: str) -> None:
    """Padding above and below adds little to a kernel, which is its time to compile, too."""

    def lines(rows: int) -> int:
        x = array_of(dtype, 1, 12, 12, 96)
        node = given("x", x)
        w = constant(array_of("float32" if dtype == "float32" else "int8", 5, 5, 1, 96))
        root = make("conv", node, w, pads=(rows, 2, rows, 2), strides=(1, 1), group=96)
        return len(
            str(check(root, root, [x], [node], isas()[-1], rtol=1e-4, atol=1e-4).func).splitlines()
        )

    assert lines(2) < 1.2 * lines(0)


@pytest.mark.parametrize("isa", ALL)
def test_the_extreme_bytes_of_a_depthwise_convolution_do_not_saturate(isa: Isa) -> None:
    x = np.full((1, 6, 6, 40), 255, np.uint8)
    node = given("x", x)
    w = np.where(RNG.integers(0, 2, (3, 3, 1, 40)), 127, -128).astype(np.int8)
    w[:, :, :, :8] = 127
    root = make("conv", node, constant(w), pads=(1,) * 4, strides=(1, 1), group=40)
    check(root, root, [x], [node], isa)


@pytest.mark.parametrize("isa", ALL)
@pytest.mark.parametrize(("dtype", "kernel"), [("uint8", 3), ("int8", 3), ("uint8", 5)])
def test_depthwise_weights_that_never_saturate(dtype: str, kernel: int, isa: Isa) -> None:
    """Two kernel rows of them fit 16 bits: the product of bytes serves where it saturates, too."""
    x = array_of(dtype, 1, 6, 7, 112)
    node = given("x", x)
    w = RNG.integers(-64, 65, (kernel, kernel, 1, 112)).astype(np.int8)
    root = make(
        "conv", node, constant(w), pads=(kernel // 2,) * 4, strides=(1, 1), group=112, pad_value=5
    )
    check(root, root, [x], [node], isa)
    sums = make("Add", root, constant(array_of("int32", 112)))
    floats = make("Cast", sums, to="float32")
    multiplier = (RNG.random(112) * 0.01).astype(np.float32)
    for zero in (0, 128):
        out = make("quantize", floats, constant(multiplier), constant(np.int32(zero)))
        check(out, root, [x], [node], isa)


# ---------------------------------------------------------------------------------------- pools


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int8", "float16"])
def test_pools(dtype: str, isa: Isa) -> None:
    x = array_of(dtype, 2, 7, 9, 19)
    window = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1)}
    one("max_pool", x, isa, **window)
    for counted in (0, 1):
        one("average_pool", x, isa, rtol=1e-3, count_include_pad=counted, **window)


@pytest.mark.parametrize("isa", WIDTHS)
def test_pools_of_one_and_three_dimensions_and_long_windows(isa: Isa) -> None:
    one(
        "max_pool",
        array_of("float32", 1, 30, 64),
        isa,
        kernel_shape=(27,),
        strides=(1,),
        pads=(13, 13),
    )
    one(
        "average_pool",
        array_of("float32", 1, 5, 6, 7, 3),
        isa,
        rtol=1e-5,
        kernel_shape=(3, 2, 2),
        strides=(1, 2, 1),
        pads=(1, 1, 1, 0, 0, 1),
        dilations=(2, 1, 1),
    )


# --------------------------------------------------------------------------------------- resize


@pytest.mark.parametrize("isa", WIDTHS)
def test_images_are_resized_in_every_mode(isa: Isa) -> None:
    x = array_of("float32", 1, 5, 7, 19)
    twice = constant(np.array([1, 2, 1.5, 1], np.float32))
    one("Resize", x, isa, None, twice)
    one("Resize", array_of("uint8", 1, 5, 7, 19), isa, None, twice)
    for how in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
        one(
            "Resize",
            x,
            isa,
            None,
            twice,
            rtol=1e-5,
            mode="linear",
            coordinate_transformation_mode=how,
        )
    sizes = constant(np.array([1, 10, 3, 19], np.int64))
    one("Resize", x, isa, None, None, sizes, rtol=1e-4, mode="cubic")
    some = constant(np.array([3, 4], np.int64))
    one("Resize", x, isa, None, None, some, rtol=1e-4, mode="linear", antialias=1, axes=(1, 2))


@pytest.mark.parametrize("isa", WIDTHS[:1])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("axes", [(3, 2), (-1, 1), (2, 1), (3, 0, 2)])
def test_the_axes_of_a_resize_are_named_in_any_order(
    isa: Isa, axes: tuple[int, ...], mode: str
) -> None:
    x = array_of("float32", 2, 3, 5, 4)
    sizes = constant(np.array([11, 7, 3][: len(axes)], np.int64))
    one("Resize", x, isa, None, None, sizes, rtol=1e-4, mode=mode, axes=axes)
    scales = constant(np.array([2, 1.5, 1.4][: len(axes)], np.float32))
    one("Resize", x, isa, None, scales, rtol=1e-4, mode=mode, axes=axes)


@pytest.mark.parametrize("isa", WIDTHS[:1])
@pytest.mark.parametrize("axes", [(3, 1), (2, 0), (3, 2, 0), (-1, 1)])
def test_the_axes_of_a_norm_are_named_in_any_order(isa: Isa, axes: tuple[int, ...]) -> None:
    x = array_of("float32", 2, 3, 5, 4)
    one("MeanVarianceNormalization", x, isa, rtol=1e-4, axes=axes)


# ----------------------------------------------------------------------------------- reductions

SUMS = ["Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "Prod"]


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("name", SUMS)
def test_reductions(name: str, isa: Isa) -> None:
    x = array_of("float32", 3, 5, 70)
    for axes in ([2], [1], [0, 2], [0, 1, 2]):
        one(f"Reduce{name}", x, isa, constant(np.array(axes, np.int64)), rtol=1e-4)


@pytest.mark.parametrize("isa", WIDTHS)
def test_reductions_of_integers(isa: Isa) -> None:
    one("ReduceSum", array_of("int32", 3, 5, 19), isa, constant(np.array([0, 2])))
    one("ReduceSum", array_of("int64", 4, 5, 6, 7), isa, constant(np.array([1, 3])), keepdims=0)
    one("ReduceMax", array_of("uint8", 3, 5, 70), isa, constant(np.array([2])))
    one("ReduceMin", array_of("int8", 3, 5, 70), isa, constant(np.array([0])))


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bfloat16"])
def test_the_last_axis_may_be_resized(mode: str, dtype: str, isa: Isa) -> None:
    if dtype == "uint8" and mode != "nearest":
        mode = "nearest"  # what others cut off may be one more or less
    for shape, sizes in (((2, 3, 5, 7), (2, 3, 8, 33)), ((1, 3, 20), (1, 5, 9)), ((3,), (70,))):
        x = array_of(dtype, *shape)
        node, to = given("x", x), constant(np.array(sizes, np.int64))
        made = make("Resize", node, None, None, to, mode=mode)
        close = {"float32": 2e-6, "uint8": 0, "bfloat16": 0.05}[dtype]
        check(made, made, [x], [node], isa, threads=2, atol=close * 3, rtol=close)


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_place_of_the_best(op: str, isa: Isa) -> None:
    x = RNG.integers(0, 4, (3, 21, 5)).astype(np.float32)  # with ties
    for axis in (0, 1, 2):
        for last in (0, 1):
            one(op, x, isa, axis=axis, select_last_index=last, keepdims=last)
    one(op, np.round(array_of("float32", 37, 71) * 3), isa, axis=1)
    one(op, array_of("float32", 1, 5, 37), isa, axis=1)
    one(op, array_of("uint8", 2, 5, 70), isa, axis=1)
    one(op, array_of("int32", 70, 16), isa, axis=1)


# ---------------------------------------------------------------------------------------- norms


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 19), 2), ((3, 5, 64), 1), ((2, 3), 0)])
def test_layer_norms(shape: tuple[int, ...], axis: int, isa: Isa) -> None:
    x = array_of("float32", *shape)
    scale, bias = (constant(array_of("float32", *shape[axis:])) for _ in "ab")
    one("LayerNormalization", x, isa, scale, bias, rtol=1e-4, axis=axis)
    one("LayerNormalization", x, isa, scale, rtol=1e-4, axis=axis)
    one("RMSNormalization", x, isa, scale, rtol=1e-4, axis=axis)


@pytest.mark.parametrize("isa", WIDTHS)
def test_a_layer_norm_of_bytes_into_bytes(isa: Isa) -> None:
    x = array_of("uint8", 9, 100)
    node = given("x", x)
    before = make("dequantize", node, constant(np.float32(0.01)), constant(np.int32(120)))
    root = make("LayerNormalization", before, constant(np.ones(100, np.float32)), axis=1)
    after = make("quantize", root, constant(np.float32(30)), constant(np.int32(128)), dtype="uint8")
    floats = make("dequantize", after, constant(np.float32(1)), constant(np.int32(0)))
    check(floats, root, [x], [node], isa, threads=2, atol=1.0)  # a tie may round either way


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_along_every_axis(axis: int, op: str, isa: Isa) -> None:
    one(op, array_of("float32", 4, 7, 33) * 20, isa, rtol=1e-5, axis=axis)


@pytest.mark.parametrize("isa", WIDTHS)
def test_softmax_of_large_scores_does_not_overflow(isa: Isa) -> None:
    one("Softmax", np.float32([[1e30, 0, -1e30], [88, 89, 90]]), isa, rtol=1e-5)


# ------------------------------------------------------------------------------------ attention

ATTENTIONS = [  # batch, heads, key heads, queries, keys, size, value size, 3-D, causal, mask
    (1, 2, 2, 7, 7, 8, 8, False, False, ()),
    (2, 3, 3, 17, 19, 16, 16, False, False, (2, 1, 1, 19)),
    (1, 2, 2, 33, 33, 20, 20, False, True, ()),
    (1, 4, 2, 16, 16, 32, 32, True, False, ()),
    (2, 2, 2, 5, 40, 17, 9, True, False, (5, 40)),
    (1, 1, 1, 65, 65, 64, 64, False, False, (1, 1, 65, 65)),
]


@pytest.mark.parametrize("isa", WIDTHS)
@pytest.mark.parametrize("case", ATTENTIONS, ids=str)
def test_attention(
    case: tuple[int, int, int, int, int, int, int, bool, bool, tuple[int, ...]], isa: Isa
) -> None:
    batch, heads, shared, queries, keys, size, wide, flat, causal, mask = case

    def operand(heads: int, length: int, size: int) -> Array:
        shape = (batch, length, heads * size) if flat else (batch, heads, length, size)
        return array_of("float32", *shape)

    arrays = [
        operand(heads, queries, size),
        operand(shared, keys, size),
        operand(shared, keys, wide),
    ]
    if mask:
        arrays.append(np.where(RNG.random(mask) < 0.3, -1e4, 0).astype(np.float32))
    inputs = [given(n, a) for n, a in zip("qkvm", arrays, strict=False)]
    counts = {"q_num_heads": heads, "kv_num_heads": shared} if flat else {}
    root = make("Attention", *inputs, is_causal=int(causal), **counts)
    check(root, root, arrays, inputs, isa, threads=2, rtol=1e-4, atol=1e-5)
