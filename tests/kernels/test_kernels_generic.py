"""Operators computed one element, or one row, after the other, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import (
    check,
    compare,
    device,
    expected,
    region_of,
    run,
    sharing,
    vector_isas,
)

import qcompiler.kernels.cpu.elements.generic
import qcompiler.kernels.cpu.rows.rows
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Kernel, asked, offered, setting
from qcompiler.ops import make

ISA = vector_isas()[-1]
DTYPES = pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8"])
NUMBERS = pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
FLOATS = pytest.mark.parametrize("dtype", ["float32", "float16"])

Pair = tuple[Node, Array]


def given(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Pair:
    rng = np.random.default_rng((seed, *shape))
    if dtype == "bool":
        array = rng.integers(0, 2, shape).astype(bool)
    elif "float" in dtype:
        array = rng.standard_normal(shape).astype(numpy_dtype(dtype))
    else:
        array = rng.integers(0, 100, shape).astype(dtype)
    return value(array, seed)


def value(array: Array, seed: int = 0) -> Pair:
    return placeholder(f"x{seed}", Type(array.dtype.name, array.shape)), array


def number(n: int) -> Node:
    return constant(np.int64(n))


def agrees(made: Node, *pairs: Pair, root: Node | None = None, close: float = 0) -> None:
    inputs, arrays = [p[0] for p in pairs], [p[1] for p in pairs]
    for threads in (1, 2):
        check(made, root or made, arrays, inputs, ISA, threads=threads, rtol=close, atol=close)


@DTYPES
def test_triangles_reversals_and_one_hots(dtype: str) -> None:
    x = given(dtype, (2, 7, 9))
    for upper in (0, 1):
        for k in (None, number(0), number(2), number(-3)):
            agrees(make("Trilu", x[0], k, upper=upper), x)
    for lengths, batch in ((np.array([3, 0]), 0), (np.arange(9) % 8, 2)):
        count = value(lengths, 1)
        agrees(make("ReverseSequence", x[0], count[0], batch_axis=batch, time_axis=1), x, count)
    where = value(np.random.default_rng(0).integers(-6, 7, (3, 4)), 2)
    values = given(dtype, (2,), 3)
    for axis in (-1, 0, 1):
        made = make("OneHot", where[0], number(5), values[0], axis=axis)
        agrees(made, where, values)
        rest = make("Mod", where[0], number(5))
        agrees(
            hot := make("OneHot", rest, number(5), values[0], axis=axis), where, values, root=hot
        )


def test_numbers_of_a_run_are_bounded_before_they_are_indices() -> None:
    """No other memory is read, and none is taken for what it is in 32 bits."""
    x, cache, update = (given("float32", s, i) for i, s in enumerate([(2, 7, 8)] * 2 + [(2, 3, 8)]))
    tables = [given("float32", (5, 4), i) for i in (3, 4)]
    for low, high in ((-1, 8), (-(1 << 32) + 1, (1 << 32) + 2), (-(1 << 63), (1 << 63) - 1)):
        both, where = value(np.array([low, high]), 5), value(np.full((2, 7), high), 6)
        where[1][:, ::2] = low
        agrees(make("ReverseSequence", x[0], both[0], batch_axis=0, time_axis=1), x, both)
        for mode in ("linear", "circular"):
            made = make("TensorScatter", cache[0], update[0], both[0], axis=1, mode=mode)
            agrees(made, cache, update, both)
        made = make("RotaryEmbedding", x[0], *(n for n, _ in tables), where[0], num_heads=1)
        agrees(made, x, *tables, where, close=1e-6)
        for each in (low, high):
            k = value(np.array(each), 7)
            agrees(make("Trilu", x[0], k[0], upper=1), x, k)


@NUMBERS
def test_sums_and_products_so_far(dtype: str) -> None:
    x = given(dtype, (2, 7, 9))
    for axis in (0, 1, -1):
        for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
            for op in ("CumSum", "CumProd"):
                made = make(op, x[0], number(axis), exclusive=exclusive, reverse=reverse)
                agrees(made, x)


@NUMBERS
def test_the_first_of_equals_comes_first_among_the_top(dtype: str) -> None:
    x = given(dtype, (2, 7, 9))
    x[1][0, 0, :4] = x[1][0, 0, 0]
    for axis in (0, 1, 2):
        for largest in (0, 1):
            for k in (1, 2):
                best = make("TopK", x[0], constant(np.array([k])), axis=axis, largest=largest)
                for index in (0, 1):
                    agrees(make("item", best, index=index), x)


def test_the_top_of_many() -> None:
    x = given("float32", (2, 3000))
    for k in (100, 3000):
        best = make("TopK", x[0], constant(np.array([k])))
        for index in (0, 1):
            agrees(make("item", best, index=index), x)


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_caches_are_written_from_their_starts_on(mode: str) -> None:
    cache, update = given("float32", (2, 8, 5)), given("float32", (2, 3, 5), 1)
    starts = value(np.array([1, 4]) if mode == "linear" else np.array([7, 2]), 2)
    made = make("TensorScatter", cache[0], update[0], starts[0], axis=1, mode=mode)
    agrees(made, cache, update, starts)


@FLOATS
def test_norms_and_sums_along_rows(dtype: str) -> None:
    x, close = given(dtype, (2, 7, 9, 5)), 1e-5 if dtype == "float32" else 2e-3
    for axis in (0, 1, -1):
        agrees(make("Hardmax", x[0], axis=axis), x)
        for p in (1, 2):
            agrees(make("LpNormalization", x[0], axis=axis, p=p), x, close=close)
    for axes in ((0, 2, 3), (1,), (3,)):
        agrees(make("MeanVarianceNormalization", x[0], axes=axes), x, close=close)
        for keep in (0, 1):
            over = constant(np.array(axes))
            agrees(make("ReduceLogSumExp", x[0], over, keepdims=keep), x, close=close)
    each = [given(dtype, (7,), i) for i in range(1, 5)]
    each = [(n, np.abs(a) + a.dtype.type(1)) for n, a in each]
    made = make("BatchNormalization", x[0], *(n for n, _ in each))
    agrees(made, x, *each, close=close)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("part", [0, 2])
def test_positions_rotate_pairs(interleaved: int, part: int) -> None:
    how = {"interleaved": interleaved, "rotary_embedding_dim": part}
    x, half = given("float32", (2, 3, 7, 8)), (part or 8) // 2
    tables = [given("float32", (2, 7, half), i) for i in (1, 2)]
    made = make("RotaryEmbedding", x[0], *(n for n, _ in tables), **how)
    agrees(made, x, *tables, close=1e-6)
    x = given("float32", (2, 7, 24))
    tables = [given("float32", (20, half), i) for i in (1, 2)]
    at = value(np.random.default_rng(0).integers(0, 20, (2, 7)), 3)
    made = make("RotaryEmbedding", x[0], *(n for n, _ in tables), at[0], num_heads=3, **how)
    agrees(made, x, *tables, at, close=1e-6)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_images_are_sampled_on_a_grid(mode: str, padding: str) -> None:
    x = given("float32", (2, 3, 5, 6))
    at = np.random.default_rng(1).uniform(-1.3, 1.3, (2, 4, 7, 2)).astype(np.float32)
    grid = value(at, 1)
    for corners in (0, 1):
        how = {"mode": mode, "padding_mode": padding, "align_corners": corners}
        agrees(make("GridSample", x[0], grid[0], **how), x, grid, close=2e-5)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("how", ["half_pixel", "output_half_pixel"])
def test_regions_are_sampled(mode: str, ratio: int, how: str) -> None:
    x = given("float32", (2, 3, 9, 11))
    corners = np.random.default_rng(0).uniform(-3, 14, (5, 2, 2)).astype(np.float32)
    regions = value(np.sort(corners, 1).reshape(5, 4), 1)
    images = value(np.array([0, 1, 1, 0, 1]), 2)
    attrs = {"output_height": 2, "output_width": 3, "spatial_scale": 0.7, "mode": mode}
    attrs |= {"sampling_ratio": ratio, "coordinate_transformation_mode": how}
    made = make("RoiAlign", x[0], regions[0], images[0], **attrs)
    agrees(made, x, regions, images, close=2e-6)


@pytest.mark.parametrize("shape", [(1, 3), (4, 33), (100, 1000)])
def test_values_are_quantized_over_their_own_range(shape: tuple[int, ...]) -> None:
    x = given("float32", shape)
    for array in (x[1] * 3 + 1, np.zeros(shape, np.float32), -np.abs(x[1])):
        made = make("DynamicQuantizeLinear", x[0])
        for index in range(3):
            agrees(make("item", made, index=index), (x[0], array))


def test_work_before_and_after_is_fused() -> None:
    x = given("float32", (4, 6, 8))
    total = make("CumSum", make("Relu", x[0]), number(1))
    scale = constant(np.arange(8, dtype=np.float32))
    agrees(make("Mul", total, scale), x, root=total)
    kept = make("Trilu", make("Relu", x[0]), upper=1)
    agrees(make("Cast", kept, to="bfloat16"), x, root=kept)


def every_way(made: Node, root: Node, *pairs: Pair, close: float = 0) -> list[str]:
    """Compare each kernel that is offered for a region -> what tells it from others."""
    inputs, arrays = tuple(p[0] for p in pairs), [p[1] for p in pairs]
    graph, shared = Graph(inputs, (made,), ("y",)), sharing(device(ISA, 2))
    region = region_of(graph, root)
    handed = sealed(region, shared)
    (generator,) = asked(handed, shared)
    values = dict(zip(inputs, arrays, strict=True))
    values |= {n: n.array for n in region.inputs if n.is_constant}
    want, ways = expected(graph, values), []
    for candidate in offered(generator, handed, shared):
        kernel = candidate.build()
        assert isinstance(kernel, Kernel)
        compare(run(kernel, region, ISA, values), want, rtol=close, atol=close)
        ways.append(" ".join(f"{k} {v}" for k, v in setting(candidate.knobs).items()))
    return ways


WAYS = ["", "along 0", "along 2", "along 3"]


def test_loops_along_any_dimension_compute_the_same() -> None:
    x = given("float32", (2, 1, 7, 9))
    made = make("Trilu", x[0], number(1), upper=1)
    assert every_way(made, made, x) == WAYS
    row, column = given("float32", (9,), 1), given("float32", (7, 1), 2)
    before = make("Add", make("Mul", x[0], column[0]), row[0])
    root = make("Trilu", before, number(-2), upper=0)
    after = make("Relu", make("Sub", root, column[0]))
    assert every_way(after, root, x, column, row, close=1e-6) == WAYS
    one = make("Add", root, constant(np.ones((1, 1, 1, 1, 9), np.float32)))
    assert every_way(one, root, x, column, row, close=1e-6) == WAYS
    grid = value(np.random.default_rng(1).uniform(-1, 1, (2, 4, 3, 2)).astype(np.float32), 1)
    sampled = make("GridSample", x[0], grid[0])
    assert every_way(sampled, sampled, x, grid, close=2e-5) == WAYS


def test_neighbours_at_once_are_computed_the_same() -> None:
    lanes = ISA.lanes(4)
    last = f"lanes {lanes}"
    x = given("float32", (2, 3, 2 * lanes + 5))
    each = [given("float32", (3,), i) for i in range(1, 5)]
    each = [(n, np.abs(a) + np.float32(1)) for n, a in each]
    root = make("BatchNormalization", x[0], *(n for n, _ in each))
    made = make("Relu", make("Sub", root, (wide := given("float32", (2 * lanes + 5,), 9))[0]))
    assert last in every_way(made, root, x, *each, wide, close=1e-5)
    flat = [given("float32", (lanes + 1,), i) for i in range(5)]
    flat = [(n, np.abs(a) + np.float32(1)) for n, a in flat]
    x = given("float32", (4, lanes + 1))
    root = make("BatchNormalization", x[0], *(n for n, _ in flat[1:]))
    assert last in every_way(root, root, x, *flat[1:], close=1e-5)
    grid = value(np.random.default_rng(1).uniform(-1.3, 1.3, (2, 3, 35, 2)).astype(np.float32), 1)
    image = given("float32", (2, 3, 5, 6))
    for how, outside in (("linear", "zeros"), ("nearest", "border")):
        made = make("GridSample", image[0], grid[0], mode=how, padding_mode=outside)
        assert last in every_way(made, made, image, grid, close=2e-5)
    for interleaved, part in ((0, 8), (1, 0)):
        x = given("float32", (2, 3, 4, 36))
        tables = [given("float32", (2, 4, (part or 36) // 2), i) for i in (1, 2)]
        how_ = {"interleaved": interleaved, "rotary_embedding_dim": part}
        made = make("RotaryEmbedding", x[0], *(n for n, _ in tables), **how_)
        assert last in every_way(made, made, x, *tables, close=1e-6)


def test_what_an_epilogue_makes_larger_has_one_loop() -> None:
    x, wide = given("float32", (7, 9)), given("float32", (3, 7, 9), 1)
    root = make("Trilu", x[0], number(0), upper=1)
    region = region_of(Graph((x[0], wide[0]), (made := make("Add", root, wide[0]),), ("y",)), root)
    assert made.type.dims == (3, 7, 9)
    found = qcompiler.kernels.cpu.elements.generic._loops(region)
    assert found == []
