"""Elementwise kernels for GPUs, run on this CPU."""

import numpy as np
import pytest
from emulation import check, gpu
from kernel_harness import normal

from qcompiler.ir import Node, Type, constant, numpy_dtype, placeholder
from qcompiler.ops import make


def floats(name: str, *shape: int) -> Node:
    return placeholder(name, Type("float32", shape))


@pytest.mark.parametrize(
    "shapes",
    [
        ((7,), (7,)),
        ((4, 6, 32), (32,)),
        ((5, 8, 3), (5, 1, 3)),
        ((2, 1, 12), (1, 9, 1)),
        ((64,), ()),
    ],
)
def test_operands_are_broadcast(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, y = (floats(n, *s) for n, s in zip("xy", shapes, strict=True))
    check(make("Sub", make("Mul", x, x), y), None, [normal(s) for s in shapes], (x, y), gpu())


@pytest.mark.parametrize("op", ["Tanh", "Erf", "Exp", "Sigmoid", "Gelu", "Floor", "Sqrt", "Relu"])
def test_functions_are_those_of_the_cpu(op: str) -> None:
    x = floats("x", 3, 40)
    values = 3 * normal((3, 40))
    values[0, :5] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
    exact = op in ("Floor", "Sqrt", "Relu")
    check(
        make(op, x), None, [values], (x,), gpu(), ulp=0 if exact else 4, atol=0 if exact else 1e-6
    )


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int32", "int64", "float16", "bfloat16", "float64"]
)
def test_every_dtype_is_added(dtype: str) -> None:
    kind = Type(dtype, (3, 48))
    x, y = placeholder("x", kind), placeholder("y", kind)
    rng = np.random.default_rng(1)
    arrays = [rng.integers(-100, 100, (3, 48)).astype(numpy_dtype(dtype)) for _ in "xy"]
    kernel = check(make("Add", x, y), None, arrays, (x, y), gpu())
    assert kernel.grid is not None
    assert kernel.in_place == (0, 1)


def test_bytes_are_quantized_sixteen_at_a_time() -> None:
    x = floats("x", 4, 64)
    scale = constant(np.float32(30))
    wide = make("quantize", x, scale, constant(np.int32(5)), dtype="uint8", divide=0)
    check(wide, None, [normal((4, 64))], (x,), gpu())


def test_conditions_are_bytes() -> None:
    x, y = floats("x", 33), floats("y", 33)
    less = make("Less", x, y)
    check(less, None, [normal((33,)), normal((33,), 1)], (x, y), gpu())
    check(make("Where", less, x, y), None, [normal((33,)), normal((33,), 1)], (x, y), gpu())


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("Softmax", {"axis": -1}),
        ("CumSum", {}),
        ("Transpose", {"perm": (1, 0)}),
        ("ReduceSum", {"keepdims": 1}),
    ],
)
def test_the_cpu_s_kernel_runs_where_there_is_no_other(op: str, attrs: dict[str, object]) -> None:
    x = floats("x", 5, 12)
    more = {"CumSum": [constant(np.int64(1))], "ReduceSum": [constant(np.array([1]))]}.get(op, [])
    y = make(op, x, *more, **attrs)
    check(y, y, [normal((5, 12))], (x,), gpu(), rtol=1e-5, atol=1e-6)
