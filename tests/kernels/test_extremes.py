"""NaN, infinities, zeros, the ends of integers: kernels give what numpy gives, alone and fused."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import check, vector_isas

from qcompiler import plugins
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make, meaning
from qcompiler.rewrite import PASSES, Rule, rewrite

plugins.load_all()
ISA = vector_isas()[-1]
FLOATS = ("float32", "float64", "float16")
INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
SMALL = [np.nan, np.inf, -np.inf, 0, -0.0, 1e-45, -1e-38, 1, -1, 0.5, 1.5, -2.5, 7, 127.5, 255.5]
LARGE = [
    256,
    -129,
    65536,
    3e9,
    -3e9,
    2.0**31,
    -(2.0**31),
    2.0**63,
    2.0**64,
    1e19,
    -1e19,
    3e38,
    -3e38,
]
REALS = np.array([*SMALL, *LARGE])
BOTH = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Less", "Greater", "Equal")


def ends(dtype: str) -> Array:
    """The awkward numbers of a dtype."""
    if dtype == "bool":
        return np.array([True, False])
    if "float" in dtype:
        with np.errstate(all="ignore"):
            return REALS.astype(dtype)
    info = np.iinfo(dtype)
    values = [info.min, info.max, info.min + 1, info.max - 1, info.max // 2, 0, 1, 2, 3, 7, 8]
    return np.array([*values, *((-1, -2, -7) if info.min else (64, 33))], dtype)


def pairs(dtype: str) -> tuple[Array, Array]:
    """Every pair of them."""
    both = np.meshgrid(ends(dtype), ends(dtype), indexing="ij")
    return both[0].ravel(), both[1].ravel()


def inputs(*arrays: Array) -> list[Node]:
    return [placeholder(f"x{i}", Type(a.dtype.name, a.shape)) for i, a in enumerate(arrays)]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_pairs_of_extremes(dtype: str) -> None:
    arrays = pairs(dtype)
    a, b = inputs(*arrays)
    for op in BOTH:
        how = {"fmod": 1} if op == "Mod" and "float" in dtype else {}
        check(make(op, a, b, **how), None, arrays, (a, b), ISA)
    if "int" in dtype:
        check(make("Mod", a, b, fmod=1), None, arrays, (a, b), ISA)
        for direction in ("LEFT", "RIGHT"):
            check(make("BitShift", a, b, direction=direction), None, arrays, (a, b), ISA)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_one_extreme_is_a_scalar(dtype: str) -> None:
    """Scalars are loaded once, before any loop: a NaN among them counts all the same."""
    x = ends(dtype)
    for value in x[[0, 1, 3]]:
        a, b = inputs(x, np.array(value))
        for op in ("Max", "Min"):
            check(make(op, a, b), None, (x, np.array(value)), (a, b), ISA)
            check(make(op, a, constant(np.array([value]))), None, (x,), (a,), ISA)
        low = make("Clip", a, b, constant(np.array(x[7])))
        check(low, None, (x, np.array(value)), (a, b), ISA)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_single_extremes(dtype: str) -> None:
    x = ends(dtype)
    (a,) = inputs(x)
    for op in ("Neg", "Abs", "Sign", "Relu"):
        check(make(op, a), None, (x,), (a,), ISA)
        check(make("Mul", make(op, make("Add", a, a)), a), None, (x,), (a,), ISA)
    if "float" in dtype:
        for op in ("Floor", "Ceil", "Round", "Sqrt", "Reciprocal", "IsNaN", "IsInf"):
            check(make(op, a), None, (x,), (a,), ISA)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_casts_of_what_does_not_fit(dtype: str) -> None:
    x = ends(dtype)
    (a,) = inputs(x)
    for to in (*FLOATS, *INTEGERS, "bool"):
        check(make("Cast", a, to=to), None, (x,), (a,), ISA)


def test_casts_are_those_of_x86() -> None:
    x = np.array([np.nan, 3e9, -1.5, 300.7, 2.0**63, 2.0**65], np.float32)

    def cast(to: str) -> list[int]:
        return list(map(int, meaning(make("Cast", constant(x), to=to), (x,))[0]))

    assert cast("int32") == [-(2**31), -(2**31), -1, 300, -(2**31), -(2**31)]
    assert cast("int8") == [0, 0, -1, 44, 0, 0]
    assert cast("uint32") == [0, 3_000_000_000, 2**32 - 1, 300, 0, 0]
    assert cast("uint64") == [2**63, 3_000_000_000, 2**64 - 1, 300, 2**63, 0]


def test_swish_of_what_is_far_below_zero() -> None:
    x = np.array([-1e30, -200, -100, -50, 0, 50], np.float32)
    (a,) = inputs(x)
    check(make("Swish", a), None, (x,), (a,), ISA, rtol=1e-5, atol=1e-37)


def rows(dtype: str, shape: tuple[int, ...]) -> Array:
    """Random numbers with extremes and equals among them, NaN in some rows only."""
    rng = np.random.default_rng(shape)
    if "float" not in dtype:
        x = rng.integers(0, 9, shape).astype(dtype)
        x.flat[3], x.flat[-1] = np.iinfo(dtype).max, np.iinfo(dtype).min
        return x
    x = np.round(rng.standard_normal(shape) * 3).astype(dtype)
    x.flat[[3, 5]] = np.nan
    x.flat[x.size // 2], x.flat[-1], x.flat[-2] = np.inf, -np.inf, -np.inf
    return x


SHAPES = pytest.mark.parametrize(("shape", "axis"), [((7, 40), 1), ((40, 70), 0), ((5, 3, 17), 2)])


@SHAPES
@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64", "uint8"])
def test_order_among_extremes(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    x = rows(dtype, shape)
    (a,) = inputs(x)
    for last in (0, 1):
        for op in ("ArgMax", "ArgMin"):
            made = make(op, a, axis=axis, select_last_index=last)
            check(made, made, (x,), (a,), ISA)
    for largest in (0, 1):
        best = make("TopK", a, constant(np.int64(5)), axis=axis, largest=largest)
        for index in (0, 1):
            made = make("item", best, index=index)
            check(made, made, (x,), (a,), ISA)
    if "float" in dtype:
        made = make("Hardmax", a, axis=axis)
        check(made, made, (x,), (a,), ISA)


@SHAPES
@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "int64", "uint32"])
def test_reductions_of_extremes(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    """Also means, roots and logarithms of integers, which are real numbers cut off."""
    x = rows(dtype, shape)
    (a,) = inputs(x)
    axes = constant(np.array([axis]))
    ops = ["ReduceMax", "ReduceMin", "ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"]
    for op in ops + (["ReduceSum", "ReduceProd", "ReduceL1"] if "int" in dtype else []):
        made = make(op, a, axes)
        loose = 3e-3 if dtype == "float16" else 1e-5 if "float" in dtype else 0
        check(made, made, (x,), (a,), ISA, rtol=loose, atol=loose)


def test_the_largest_of_booleans() -> None:
    x = np.random.default_rng(0).integers(0, 5, (6, 40)) == 0
    (a,) = inputs(x)
    for op in ("ReduceMax", "ReduceMin"):
        for axes in ([0], [1], [0, 1]):
            made = make(op, a, constant(np.array(axes)))
            check(made, made, (x,), (a,), ISA)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("exponent", [0.5, -0.5, 2, 3, -1, 1, 0])
def test_powers_of_zeros_and_infinities_are_cs(exponent: float, dtype: str) -> None:
    """As single numbers to the C library, through the passes and through a kernel."""
    x = np.resize(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 4, -4], dtype), 35)
    (a,) = inputs(x)
    power = make("Pow", a, constant(np.array(exponent, dtype)))
    with np.errstate(all="ignore"):
        each = [np.power(np.float64([v, v]), np.float64([exponent, 9]))[0] for v in x]
    want = np.array(each).astype(dtype)
    check(power, None, (x,), (a,), ISA, want=want)
    graph = Graph((a,), (power,), ("y",))
    rule = PASSES["fold_power"]
    assert isinstance(rule, Rule)
    folded = rewrite(graph, [rule])
    for made in (graph, folded):
        with np.errstate(all="ignore"):
            got = evaluate(made, {"x0": x})["y"]
        assert np.array_equal(got, want, equal_nan=True)
        assert np.array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))
