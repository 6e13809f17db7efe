"""Softmax, normalization and reductions for GPUs, run on this CPU."""

import numpy as np
import pytest
from emulation import check, gpu
from kernel_harness import normal

from qcompiler.ir import Node, Type, constant, placeholder
from qcompiler.ops import make


def floats(name: str, *shape: int) -> Node:
    return placeholder(name, Type("float32", shape))


@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 32), (4, 33), (1, 1000), (2, 300)])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_a_team_of_threads_joins_a_row(op: str, shape: tuple[int, ...]) -> None:
    x = floats("x", *shape)
    y = make(op, x, axis=-1)
    out = make("Mul", y, constant(np.float32(2)))
    values = 5 * normal(shape)
    kernel = check(out, y, [values], (x,), gpu(), rtol=1e-5, atol=1e-6)
    assert kernel.grid is not None


def test_a_row_of_infinities_is_nothing() -> None:
    x = floats("x", 2, 40)
    values = normal((2, 40))
    values[0, 3], values[1] = np.nan, -np.inf
    y = make("Softmax", x, axis=-1)
    check(y, y, [values], (x,), gpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((6, 48), -1), ((2, 3, 8, 5), 2), ((3, 700), -1)])
@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_rows_are_normalized(op: str, shape: tuple[int, ...], axis: int) -> None:
    x, inner = floats("x", *shape), shape[axis:]
    scale, bias = (constant(normal(inner, i)) for i in (1, 2))
    others = [scale, bias] if op == "LayerNormalization" else [scale]
    y = make(op, make("Relu", x), *others, axis=axis, epsilon=1e-5)
    kernel = check(y, y, [normal(shape)], (x,), gpu(), rtol=2e-5, atol=2e-5)
    assert kernel.grid is not None


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 70), (1,)),
        ((3, 5, 40), (1,)),
        ((2, 6, 5, 33), (1, 2)),
        ((7, 9), (0, 1)),
        ((500, 3), (0,)),
    ],
)
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2"])
def test_neighbouring_axes_are_reduced(
    op: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    x = floats("x", *shape)
    y = make(op, x, constant(np.array(axes)), keepdims=0)
    out = make("Add", y, constant(np.float32(1)))
    kernel = check(out, y, [normal(shape)], (x,), gpu(), rtol=1e-5, atol=1e-4)
    assert kernel.grid is not None


def test_sums_of_integers_are_exact() -> None:
    x = placeholder("x", Type("int32", (6, 50)))
    y = make("ReduceSum", x, constant(np.array([1])), keepdims=1)
    values = np.random.default_rng(0).integers(-1000, 1000, (6, 50)).astype(np.int32)
    check(y, y, [values], (x,), gpu())
