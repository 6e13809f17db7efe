"""What goes along an axis, on a GPU: sorts, scans, the best of a line, and lines of any axes."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from emulation import check, check_all, gpu
from kernel_harness import normal

from qcompiler import plugins
from qcompiler.ir import Array, Node, Type, constant, placeholder
from qcompiler.kernels.gpu.rows.lines import Lines
from qcompiler.kernels.gpu.rows.top import Sort, gpu_top
from qcompiler.ops import make

plugins.load_all()


def node_of(array: Array) -> Node:
    return placeholder("x", Type(array.dtype.name, array.shape))


def awkward(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Many equal values; among floats NaN, infinities and zeros of both signs."""
    rng = np.random.default_rng(prod(shape))
    array = rng.integers(0, 6, shape).astype(dtype)
    if array.dtype.kind == "f":
        array.reshape(-1)[:: prod(shape) // 5 + 1] = np.nan
        array.reshape(-1)[1 :: prod(shape) // 4 + 1] = -np.inf
        array.reshape(-1)[2 :: prod(shape) // 3 + 1] = -0.0
    return array


def check_one(
    op: str, array: Array, *others: Array, tolerance: float = 0.0, **attrs: object
) -> None:
    """An operator's kernel, which is one of its own, against its meaning."""
    x = node_of(array)
    y = make(op, x, *map(constant, others), **attrs)
    kernel = check(y, y, [array], (x,), gpu(), rtol=tolerance, atol=tolerance)
    assert kernel.grid is not None


def test_lines_lie_where_numpy_says() -> None:
    dims = (3, 4, 5, 6)
    flat = np.arange(prod(dims)).reshape(dims)
    for axes in [(3,), (0,), (1,), (1, 2), (0, 2), (0, 3), (0, 1, 2, 3), (-2,)]:
        lines = Lines.of(dims, axes)
        kept = [a for a in range(4) if a not in {x % 4 for x in axes}]
        whole = flat.transpose(*kept, *sorted(x % 4 for x in axes)).reshape(-1, lines.length)

        def places(steps: tuple[tuple[int, int], ...]) -> Array:
            found = np.zeros(1, int)
            for size, step in steps:
                found = (found[:, None] + np.arange(size) * step).reshape(-1)
            return found

        made = places(lines.between)[:, None] + places(lines.along)
        np.testing.assert_array_equal(made, whole)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 7), 1), ((3, 40, 2), 1), ((2, 700), -1), ((6, 3), 0)]
)
def test_the_best_is_the_first_or_the_last_of_equals(
    op: str, shape: tuple[int, ...], axis: int
) -> None:
    for dtype, last in [("float32", 0), ("float16", 1)]:
        check_one(op, awkward(shape, dtype), axis=axis, select_last_index=last)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "axis"), [((4, 33), 1), ((2, 9, 3), 1)])
def test_hardmax(shape: tuple[int, ...], axis: int) -> None:
    check_one("Hardmax", awkward(shape), axis=axis)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5), 1), ((2, 33), 1), ((2, 300), 1), ((2, 9, 3), 1), ((1, 2100), 1)]
)
def test_sums_up_to_each_element(shape: tuple[int, ...], axis: int) -> None:
    where = np.array(axis)
    for exclusive, reverse in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        attrs = {"exclusive": exclusive, "reverse": reverse}
        check_one("CumSum", awkward(shape, "int32"), where, **attrs)
    check_one("CumSum", normal(shape), where, tolerance=1e-4)
    check_one("CumSum", normal(shape).astype(np.float16), where, tolerance=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "axis"), [("Softmax", 1), ("LogSoftmax", 0), ("LpNormalization", 1)]
)
def test_lines_of_other_axes(op: str, axis: int) -> None:
    check_one(op, normal((3, 5, 4)), axis=axis, tolerance=1e-5)
    check_one(op, normal((2, 70, 4)), axis=axis, tolerance=1e-5)


@pytest.mark.slow
def test_deviations_and_exponentials_of_some_axes() -> None:
    check_one("MeanVarianceNormalization", normal((2, 3, 4, 5)), axes=(0, 2, 3), tolerance=1e-5)
    check_one("MeanVarianceNormalization", normal((2, 3, 4, 5)), axes=(1,), tolerance=1e-5)
    for axes in [(1,), (0, 2), (0, 1, 2)]:
        check_one("ReduceLogSumExp", normal((4, 5, 6)), np.array(axes), keepdims=0, tolerance=1e-5)


@pytest.mark.slow
def test_lines_that_are_too_long_for_registers() -> None:
    array = normal((1, 17000))
    check_one("Softmax", array, axis=1, tolerance=1e-5)
    scale = np.ones(17000, np.float32)
    check_one("LayerNormalization", array, scale, axis=-1, epsilon=1e-5, tolerance=1e-4)


@pytest.mark.slow
def test_reductions_of_any_axes() -> None:
    for axes in [(0, 2), (1, 3), (0, 3)]:
        check_one("ReduceSum", normal((3, 4, 5, 6)), np.array(axes), keepdims=0, tolerance=1e-5)
    check_one("ReduceMean", awkward((4, 6), "int32"), np.array([1]), keepdims=0)
    check_one("ReduceMax", awkward((3, 4, 5), "float32"), np.array([0, 2]), keepdims=1)


@pytest.mark.slow
def test_a_long_line_is_reduced_in_parts() -> None:
    array = awkward((1, 20000), "int32")
    x = node_of(array)
    y = make("ReduceSum", x, constant(np.array([1])), keepdims=0)
    kernel = check(y, y, [array], (x,), gpu())
    assert len(kernel.after) == 1
    check_one("ReduceMax", awkward((2, 17000)), np.array([1]), keepdims=0)


def top(array: Array, k: int, index: int, axis: int = -1, largest: int = 1) -> tuple[Node, Node]:
    x = node_of(array)
    many = make("TopK", x, constant(np.array([k])), axis=axis, largest=largest)
    return x, make("item", many, index=index)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "uint8", "int64", "float64"])
def test_the_first_of_a_line(dtype: str, index: int) -> None:
    for shape, axis, k, largest in [((3, 17), 1, 5, 1), ((70, 2), 0, 70, 0)]:
        array = awkward(shape, dtype)
        x, y = top(array, k, index, axis, largest)
        knobs = check_all(gpu_top, y, y, [array], (x,), gpu())
        assert len(knobs) == 2 - (dtype in ("int64", "float64"))


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_long_lines_are_sorted_in_parts(index: int) -> None:
    array = awkward((1, 9000), "int32") + np.arange(9000, dtype=np.int32) % 977
    x, y = top(array, 20, index)
    knobs = check_all(gpu_top, y, y, [array], (x,), gpu())
    assert Sort(1024, 4) in knobs


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1, 2])
def test_dynamic_scales_are_those_of_all_values(index: int) -> None:
    for size in (7, 600):
        array = 3 * normal((size,))
        x = node_of(array)
        y = make("item", make("DynamicQuantizeLinear", x), index=index)
        assert check(y, y, [array], (x,), gpu()).grid is not None


def test_no_digits_of_float64_are_lost() -> None:
    array, scale = normal((3, 4, 5, 6)).astype(np.float64), normal((6,), 1).astype(np.float64)
    for each in (array, array * 1e60):
        check_one("Softmax", each, axis=1, tolerance=1e-12)
        for op in ("LayerNormalization", "RMSNormalization"):
            check_one(op, each, scale, axis=-1, epsilon=2.0**-17, tolerance=1e-12)
    pooled = {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    check_one("average_pool", array, **pooled, count_include_pad=0, tolerance=1e-12)


def test_small_numbers_are_not_zero_in_the_text_for_a_gpu() -> None:
    array = normal((40,)).astype(np.float64)
    x = node_of(array)
    y = make("LeakyRelu", x, alpha=1.2345678e-17)
    check(y, None, [array], (x,), gpu(), rtol=1e-13)


def test_a_sample_of_what_goes_along_lines() -> None:
    check_one("ArgMax", awkward((3, 40)), axis=1, select_last_index=0)
    check_one("CumSum", awkward((2, 300), "int32"), np.array(1), exclusive=0, reverse=1)
    check_one("Softmax", normal((3, 5, 4)), axis=1, tolerance=1e-5)
    check_one("ReduceSum", awkward((3, 4, 5), "int32"), np.array([0, 2]), keepdims=0)
    array = awkward((2, 70))
    x, y = top(array, 5, 1)
    check_all(gpu_top, y, y, [array], (x,), gpu())
