"""Formulas on vectors against numpy: exact where numpy is, within the stated error elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable

import board
import numpy as np
import pytest
from kernel_harness import check, compare, device, expected, region_of, vector_isas
from kernel_harness import run as fenced_run

import qcompiler.kernels.cpu.elements.elementwise  # noqa: F401  (registers the generator)
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.registry import Kernel, choose
from qcompiler.ops import OPERATORS, make

ISAS = pytest.mark.parametrize("isa", vector_isas(), ids=lambda i: i.name)
INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
FLOATS = ["float32", "float64", "float16", "bfloat16"]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 2.0**-126, 2.5, -3.5, 0.5, 1.0, -1.0]

ERRORS: dict[str, tuple[Callable[..., Array], float]] = {
    "Exp": (np.exp, 1.0),
    "Log": (np.log, 0.9),
    "Tanh": (np.tanh, 1.4),
    "Sin": (np.sin, 1.6),
    "Cos": (np.cos, 1.6),
}
"""Operator -> its exact meaning, and the error that polynomials.py promises (in ulp)."""


def values(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    """Random numbers with the awkward ones first."""
    rng = np.random.default_rng((seed, *shape))
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if "float" in dtype:
        array = (rng.standard_normal(shape) * 3).astype(numpy_dtype(dtype))
        first = np.array(SPECIAL).astype(numpy_dtype(dtype))
    else:
        info = np.iinfo(dtype)
        array = rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
        array[..., ::3] //= np.array(info.max // 40, dtype)
        first = np.array([info.min, info.max, 0, 1, info.min + 1, info.max - 1, 2], dtype)
    flat = array.reshape(-1)
    flat[seed : seed + first.size] = first[: flat.size - seed]
    return array


def run(
    isa: Isa, op: str, *arrays: Array, ulp: float = 0, atol: float = 0, **attrs: object
) -> None:
    """One elementwise node against numpy."""
    inputs = [placeholder(f"x{i}", Type(a.dtype.name, a.shape)) for i, a in enumerate(arrays)]
    check(make(op, *inputs, **attrs), None, arrays, inputs, isa, ulp=ulp, atol=atol)


def sweep() -> Array:
    """float32 numbers evenly over all bit patterns, and densely where functions bend."""
    rng = np.random.default_rng(0)
    positive = np.linspace(0, 2**31 - 1, 1 << 17).astype(np.uint32)
    patterns = np.concatenate([positive, positive | np.uint32(1 << 31)]).view(np.float32)
    near = rng.uniform(-110, 110, 1 << 17).astype(np.float32)
    small = rng.normal(0, 2, 1 << 17).astype(np.float32)
    return np.concatenate([np.array(SPECIAL, np.float32), patterns, near, small])


TINY = 2.0**-125
"""What processors make zeros of, where they do, is smaller."""


def far_off(got: Array, exact: Array) -> Array:
    """The error in units in the last place of the exact value's float32; 0 where both are the same
    infinity or NaN."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(np.float32)
        unit = np.spacing(np.maximum(np.abs(rounded), np.float32(2.0**-126))).astype(np.float64)
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        return np.where(same, 0, np.abs(got.astype(np.float64) - exact) / unit)


@ISAS
@pytest.mark.parametrize("op", ERRORS)
def test_functions_are_as_accurate_as_promised(op: str, isa: Isa) -> None:
    meaning, bound = ERRORS[op]
    x = sweep()
    with np.errstate(all="ignore"):
        exact = meaning(x.astype(np.float64))
    node = placeholder("x", Type("float32", x.shape))
    got: list[Array] = []
    try_ulp(make(op, node), [x], [node], isa, got)
    error = far_off(got[0], exact)
    if isa.name in board.FLUSHES:
        error[(np.abs(x) < TINY) | (np.abs(exact) < TINY)] = 0
    worst = int(np.argmax(error))
    assert error[worst] <= bound, f"{error[worst]} ulp at {x[worst]!r}"


def try_ulp(
    output: Node, arrays: list[Array], inputs: list[Node], isa: Isa, got: list[Array]
) -> None:
    """Run a node and keep what it gives."""
    import kernel_harness as harness

    graph = harness.Graph(tuple(inputs), (output,), ("y",))
    region = harness.region_of(graph, None)
    kernel = harness.choose(region, harness.device(isa)).kernel
    assert isinstance(kernel, harness.Kernel)
    got.append(harness.run(kernel, region, isa, dict(zip(inputs, arrays, strict=True))))


@ISAS
@pytest.mark.parametrize("op", ["Sin", "Cos"])
def test_angles_of_every_exponent_are_reduced_exactly(op: str, isa: Isa) -> None:
    """Also those closest to a multiple of pi/2, and small ones mixed with large ones."""
    rng = np.random.default_rng(7)
    mantissas = rng.integers(0, 1 << 23, (512, 61), np.uint32)
    x = ((np.arange(512, dtype=np.uint32)[:, None] << 23) | mantissas).view(np.float32)
    x[1:, 0] = 16367173 * 2.0**72
    x[2:, 1] = [closest_to_a_turn(e) for e in range(510)]
    node = placeholder("x", Type("float32", x.shape))
    got: list[Array] = []
    try_ulp(make(op, node), [x], [node], isa, got)
    one = math.sin if op == "Sin" else math.cos
    exact = np.array([one(v) if math.isfinite(v) else math.nan for v in x.ravel().tolist()])
    error = far_off(got[0].ravel(), exact)
    worst = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
    assert error[worst] <= 1.6, f"{error[worst]} ulp at {x.ravel()[worst]!r}"
    try_ulp(make(op, node), [x[::-1]], [node], isa, got)
    assert np.array_equal(got[0][::-1], got[1], equal_nan=True), "neighbours count"


def closest_to_a_turn(exponent: int) -> float:
    """Of many float32 numbers of an exponent (and of either sign) one with the smallest sine."""
    rng = np.random.default_rng(exponent)
    bits = rng.integers(0, 1 << 23, 2000, np.uint32) | np.uint32((exponent % 255) << 23)
    x = bits.view(np.float32)
    return float(x[np.argmin(np.abs(np.sin(x.astype(np.float64))))]) * (-1) ** (exponent // 255)


@ISAS
@pytest.mark.parametrize("op", ["Sin", "Tanh", "Erf"])
def test_odd_functions_keep_the_sign_of_zero(op: str, isa: Isa) -> None:
    x = np.resize(np.array([0.0, -0.0, 1.0], np.float32), 67)
    node = placeholder("x", Type("float32", x.shape))
    got: list[Array] = []
    try_ulp(make(op, node), [x], [node], isa, got)
    assert np.array_equal(np.signbit(got[0]), np.signbit(x))


@ISAS
def test_a_gate_that_is_shut_lets_nothing_through_however_large_it_is(isa: Isa) -> None:
    size = 2.0 ** np.arange(7, 128, dtype=np.float32)
    x = np.concatenate([-size, size])
    for op, attrs in (
        ("Gelu", {"approximate": "tanh"}),
        ("Gelu", {}),
        ("Swish", {}),
        ("Sigmoid", {}),
        ("Mish", {}),
    ):
        run(isa, op, x, **attrs)


@ISAS
def test_erf_and_pow_are_as_accurate_as_promised(isa: Isa) -> None:
    from math import erf

    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(0, 1.5, 1 << 14), np.linspace(-5, 5, 1 << 14), SPECIAL])
    x = x.astype(np.float32)
    node, other = (placeholder(n, Type("float32", x.shape)) for n in "xy")
    got: list[Array] = []
    try_ulp(make("Erf", node), [x], [node], isa, got)
    assert far_off(got[0], np.array([erf(v) for v in x.astype(float)])).max() <= 1.1
    y = np.concatenate([rng.normal(0, 9, 1 << 14), rng.integers(-9, 9, 1 << 14), SPECIAL[::-1]])
    y = y.astype(np.float32)
    try_ulp(make("Pow", node, other), [x, y], [node, other], isa, got)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(np.float64), y.astype(np.float64))
    assert far_off(got[1], exact).max() <= 0.6


@ISAS
def test_gelu_sigmoid_and_swish_are_close_to_the_formulas(isa: Isa) -> None:
    x = np.concatenate([np.linspace(-14, 14, 5003), SPECIAL[:2], SPECIAL[5:]]).astype(np.float32)
    wide = np.float32(14) * np.float32(3e-7)
    for op, attrs in (
        ("Gelu", {}),
        ("Gelu", {"approximate": "tanh"}),
        ("Sigmoid", {}),
        ("Swish", {}),
    ):
        run(isa, op, x, atol=wide, **attrs)


@ISAS
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("multiplier", [40, 1 << 10, 1 << 14])
def test_a_gelu_rounded_to_bytes_is_as_accurate_as_promised(
    isa: Isa, approximate: str, multiplier: int
) -> None:
    x = np.concatenate([np.linspace(-9, 9, 20011), np.linspace(-0.05, 0.05, 5000)])
    x = np.concatenate([x, [np.inf, -np.inf]]).astype(np.float32)
    node = placeholder("x", Type("float32", x.shape))
    gelu = make("Gelu", node, approximate=approximate)
    scale, zero = constant(np.float32(multiplier)), constant(np.int32(100))
    region = region_of(
        Graph((node,), (make("quantize", gelu, scale, zero, dtype="uint8"),), ("y",)), None
    )
    kernel = choose(region, device(isa)).kernel
    assert isinstance(kernel, Kernel)
    values = {node: x} | {n: n.array for n in region.inputs if n.is_constant}
    got = fenced_run(kernel, region, isa, values)
    exact = expected(Graph((node,), (gelu,), ("y",)), {node: x})
    exact = np.nan_to_num(exact, posinf=1e9, neginf=0)
    error = np.minimum(np.abs(x) * 2.0**-15.5, 7e-5)
    least, most = (
        np.clip(np.rint((exact + e) * multiplier) + 100, 0, 255) for e in (-error, error)
    )
    assert ((least <= got) & (got <= most)).all()


def swish_error(isa: Isa, x: Array, exact: Array, alpha: float, to: str) -> Array:
    """What `swish_rounded` promises: less where it computes in float16."""
    if to == "bfloat16" or "half_minimum" not in isa.intrinsics:
        return np.abs(exact) * 2.0**-13.5 + 1e-30
    return np.minimum(np.abs(x) * 2.0**-10, 2.0**-10.8 / alpha) + 2.0**-24 / alpha


@ISAS
@pytest.mark.parametrize("alpha", [1.0, 1.702, 0.1])
@pytest.mark.parametrize("to", ["uint8", "bfloat16"])
def test_a_rounded_swish_is_as_accurate_as_promised(isa: Isa, alpha: float, to: str) -> None:
    x = np.concatenate([np.linspace(-95, 95, 20011), np.linspace(-0.05, 0.05, 5000)])
    x = np.concatenate([x, [0.0, -0.0, 3e38, -3e38, np.inf, -np.inf]]).astype(np.float32)
    node = placeholder("x", Type("float32", x.shape))
    swish = make("Swish", node, alpha=alpha)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.asarray(x, np.float64) / (1 + np.exp(-np.float64(alpha) * x))
    exact[x == -np.inf] = 0.0
    error = swish_error(isa, x, exact, alpha, to)
    for multiplier in (10, 1000, 1 << 20):
        rounded = make("Cast", swish, to="bfloat16")
        if to == "uint8":
            scale, zero = constant(np.float32(multiplier)), constant(np.int32(100))
            rounded = make("quantize", swish, scale, zero, dtype="uint8")
        region = region_of(Graph((node,), (rounded,), ("y",)), None)
        kernel = choose(region, device(isa)).kernel
        assert isinstance(kernel, Kernel)
        values = {node: x} | {n: n.array for n in region.inputs if n.is_constant}
        got = fenced_run(kernel, region, isa, values).astype(np.float64)
        if to == "bfloat16":
            finite = np.isfinite(exact)
            bound = error[finite] + np.abs(exact[finite]) * 2.0**-8
            assert (np.abs(got[finite] - exact[finite]) <= bound).all()
            np.testing.assert_array_equal(got[~finite], exact[~finite])
            return
        ends = np.nan_to_num(exact, posinf=1e9)
        least, most = (
            np.clip(np.rint((ends + e) * multiplier) + 100, 0, 255) for e in (-error, error)
        )
        assert ((least <= got) & (got <= most)).all()


@ISAS
def test_a_rounded_swish_of_every_float16_and_what_is_halfway_between(isa: Isa) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    ordered = np.sort(halves[np.isfinite(halves)])
    middle = (ordered[1:] + ordered[:-1]) / 2
    far = np.array([65519, 65520, 65536, 1e30, np.inf], np.float32)
    near = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([ordered, middle, *near, far, -far]).astype(np.float32)
    node = placeholder("x", Type("float32", x.shape))
    swish = make("Swish", node, alpha=1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.asarray(x, np.float64) / (1 + np.exp(-np.asarray(x, np.float64)))
    exact = np.nan_to_num(exact, posinf=1e9, nan=0)
    error = swish_error(isa, x, exact, 1.0, "uint8")
    for multiplier, zero in ((0.01, 0), (700, 200), (1 << 20, 100)):
        factor, at = constant(np.float32(multiplier)), constant(np.int32(zero))
        rounded = make("quantize", swish, factor, at, dtype="uint8")
        region = region_of(Graph((node,), (rounded,), ("y",)), None)
        kernel = choose(region, device(isa)).kernel
        assert isinstance(kernel, Kernel)
        values = {node: x} | {n: n.array for n in region.inputs if n.is_constant}
        got = fenced_run(kernel, region, isa, values).astype(np.float64)
        least, most = (
            np.clip(np.rint((exact + e) * float(factor.array)) + zero, 0, 255)
            for e in (-error, error)
        )
        assert ((least <= got) & (got <= most)).all()


@ISAS
@pytest.mark.parametrize("length", [1, 3, 5, 17])
def test_a_rounded_swish_of_nan_is_the_least_byte(isa: Isa, length: int) -> None:
    x = np.full(length, np.nan, np.float32)
    node = placeholder("x", Type("float32", x.shape))
    swish = make("Swish", node, alpha=1.0)
    factor, zero = constant(np.float32(10)), constant(np.int32(100))
    rounded = make("quantize", swish, factor, zero, dtype="uint8")
    check(rounded, None, (x,), (node,), isa)


@ISAS
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_rounded_to_bfloat16_is_as_accurate_as_promised(isa: Isa, approximate: str) -> None:
    x = np.append(np.linspace(-9, 9, 20011), [1e9, -1e9]).astype(np.float32)
    node = placeholder("x", Type("float32", x.shape))
    gelu = make("Gelu", node, approximate=approximate)
    exact = expected(Graph((node,), (gelu,), ("y",)), {node: x})
    rounding = np.abs(exact) * 2.0**-8
    bound = rounding + np.minimum(np.abs(x) * 2.0**-17, 3e-5)
    rounded = make("Cast", gelu, to="bfloat16")
    region = region_of(Graph((node,), (rounded,), ("y",)), None)
    kernel = choose(region, device(isa)).kernel
    assert isinstance(kernel, Kernel)
    got = fenced_run(kernel, region, isa, {node: x}).astype(np.float32)
    assert (np.abs(got - exact) <= bound).all()


FORMULAS = [name for name, op in OPERATORS.items() if op.formula is not None]
EXACT = {
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Neg", "Abs", "Sign", "Reciprocal", "Mod", "Sum"),
    *("Floor", "Ceil", "Round", "Sqrt", "Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip"),
    *("Shrink", "HardSigmoid", "HardSwish", "Mean", "Softsign"),
}
SPARED = {"Cast", "BitShift", "CastLike", "lookup", "quantize", "dequantize"}
SPARED |= {"as_signed", "as_unsigned"}
"""Tested on their own."""


def arity(op: str) -> int:
    least, most = OPERATORS[op].arity
    return int(least if most == float("inf") else most)


@ISAS
@pytest.mark.parametrize("op", [f for f in FORMULAS if f not in SPARED])
def test_every_formula_means_what_numpy_says(op: str, isa: Isa) -> None:
    """On whichever dtypes the operator takes: + - * / max min round exactly, others closely."""
    seen = 0
    widest = isa is vector_isas()[-1]
    for dtype in ("float32", "float16", "int32", "bool") if widest else ("float32", "int32"):
        arrays = [values(dtype, (3, 37), i) for i in range(max(arity(op), 1))]
        if isa.name in board.FLUSHES and dtype == "float32":
            arrays = [np.where(np.abs(a) < TINY, np.float32(0), a) for a in arrays]
        if op == "Where":
            arrays[0] = values("bool", (3, 37))
        if op in ("Gelu", "Swish", "SwiGLU", "Mish", "Sigmoid", "Elu", "Celu", "Selu", "Softplus"):
            arrays = [np.nan_to_num(a, posinf=9, neginf=-9) for a in arrays]
        try:
            node = make(
                op,
                *(placeholder(f"x{i}", Type(a.dtype.name, a.shape)) for i, a in enumerate(arrays)),
            )
        except Exception:  # the operator has no such inputs
            continue
        if "float" not in dtype and op not in (_OF_INTEGERS if "int" in dtype else _OF_BOOLEANS):
            continue
        close = {} if op in EXACT or dtype != "float32" else {"ulp": 4, "atol": 3e-6}
        close = {"ulp": 1} if dtype == "float16" and op not in EXACT else close
        check(node, None, arrays, list(node.operands), isa, **close)
        seen += 1
    assert seen or op in _OF_BOOLEANS


_OF_INTEGERS = {
    *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Neg", "Abs", "Sign", "Sum", "Max", "Min", "Relu"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Clip", "PRelu"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
}
_OF_BOOLEANS = {"And", "Or", "Xor", "Not", "Where", "Equal"}


@ISAS
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_around_and_never_trap(dtype: str, isa: Isa) -> None:
    a, b = values(dtype, (2, 67)), values(dtype, (2, 67), 3)
    b.reshape(-1)[10:20] = 0
    for op in ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "BitwiseXor"):
        run(isa, op, a, b)
    run(isa, "Mod", a, b, fmod=1)
    if not dtype.startswith("u"):
        run(isa, "Neg", a)
        run(isa, "Abs", a)
    else:
        counts = np.arange(a.size).reshape(a.shape) % np.iinfo(dtype).bits
        run(isa, "BitShift", a, counts.astype(dtype), direction="LEFT")
        run(isa, "BitShift", a, counts.astype(dtype), direction="RIGHT")


@ISAS
def test_a_product_and_a_sum_are_rounded_twice(isa: Isa) -> None:
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal(1003).astype(np.float32) for _ in range(3)]
    x, y, z = (placeholder(n, Type("float32", (1003,))) for n in "xyz")
    check(make("Add", make("Mul", x, y), z), None, arrays, [x, y, z], isa)
    check(
        make("Sub", z, make("Neg", make("Mul", x, y))),
        None,
        arrays[2:] + arrays[:2],
        [z, x, y],
        isa,
    )


@ISAS
def test_a_value_without_itself_is_0_only_where_it_is_finite(isa: Isa) -> None:
    array = np.array([1, -0.0, np.inf, -np.inf, np.nan, 3e38] * 3, np.float32)
    x = placeholder("x", Type("float32", array.shape))
    check(make("Sub", x, x), None, [array], [x], isa)
    check(make("Sub", make("Abs", x), make("Abs", x)), None, [array], [x], isa)


@ISAS
@pytest.mark.parametrize("source", [*FLOATS, *INTEGERS, "bool"])
def test_casts_are_cs(source: str, isa: Isa) -> None:
    x = values(source, (3, 41))
    narrower = ["float32", "bfloat16", "uint8", "int32"]
    for target in [*FLOATS, *INTEGERS, "bool"] if isa is vector_isas()[-1] else narrower:
        inside = x
        if "float" in source and "int" in target:
            inside = np.nan_to_num(np.clip(x.astype(np.float64), -100, 100)).astype(x.dtype)
            inside = np.abs(inside) if target.startswith("u") else inside
        run(isa, "Cast", inside, to=target)


@ISAS
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32"])
def test_quantize_equals_its_meaning_bit_for_bit(dtype: str, isa: Isa) -> None:
    rng = np.random.default_rng(3)
    info = np.iinfo(dtype)
    x = (rng.standard_normal((50, 37)) * 200).astype(np.float32)
    x.reshape(-1)[:9] = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 2.5, -3.5]
    node = placeholder("x", Type("float32", x.shape))
    multipliers = rng.uniform(0.3, 1.5, 37).astype(np.float32)
    for zero in {0, info.min // 2, info.max // 2, 127 if info.max > 126 else 0}:
        made = make("quantize", node, constant(multipliers), constant(np.int32(zero)), dtype=dtype)
        check(made, None, [x], [node], isa)
    halves = np.arange(-200, 200, dtype=np.float32) / 2
    node = placeholder("x", Type("float32", halves.shape))
    one = constant(np.float32(1))
    check(
        make("quantize", node, one, constant(np.int32(3)), dtype=dtype), None, [halves], [node], isa
    )


@ISAS
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantize_of_what_fits_16_bits_equals_its_meaning(dtype: str, isa: Isa) -> None:
    """Every byte, scaled to less than 32,000 and to halves, with any zero point."""
    x = np.arange(256).astype(np.uint8).view("int8").reshape(2, 128)
    node = placeholder("x", Type("int8", x.shape))
    nothing = constant(np.int32(0))
    for most in (31_990, 200, 64):
        floats = make("dequantize", node, constant(np.float32(most / 128)), nothing)
        for zero in (-128, -127, 0, 5, 127):
            given = constant(np.int32(zero))
            made = make("quantize", floats, constant(np.float32(1)), given, dtype=dtype)
            check(made, None, [x], [node], isa)


@ISAS
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_dequantize_and_tables_take_every_byte(dtype: str, isa: Isa) -> None:
    x = np.arange(256).astype(np.uint8).view(dtype)
    node = placeholder("x", Type(dtype, x.shape))
    made = make("dequantize", node, constant(np.float32(0.1)), constant(np.int32(-7)))
    check(made, None, [x], [node], isa)
    turned = make("as_signed" if dtype == "uint8" else "as_unsigned", node)
    check(turned, None, [x], [node], isa)
    for kept in ("uint8", "int8", "float32"):
        table = values(kept, (256,), 1)
        table = np.nan_to_num(table) if kept == "float32" else table
        check(make("lookup", node, constant(table)), None, [x], [node], isa)


def test_far_off_sees_an_error_of_one_unit() -> None:
    exact = np.array([1.0, 2.0, np.inf, np.nan])
    got = np.array([np.nextafter(np.float32(1), np.float32(2)), 2, np.inf, np.nan], np.float32)
    assert far_off(got, exact).tolist() == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(AssertionError):
        compare(got, got + np.float32(1))
