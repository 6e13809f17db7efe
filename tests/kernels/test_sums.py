"""Sums of many nearly equal values: in order, each of them would be cut off alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qcompiler
from qcompiler.ir import Array
from qcompiler.runtime import load

UNIT = 2.0**-24
VECTORS = 80
"""Units of a sum that some accumulators share; in order, 4,096 values may be off by a thousand."""
WIDE = 2.5
"""Units of what is made of a sum in float64 or many accumulators; in order, 3 to 43 were seen."""


def built(
    op: str, shape: tuple[int, ...], constants: list[Array], **attrs: float
) -> onnx.ModelProto:
    """A model of one operator of x and constants."""
    inputs = ["x", *(f"c{i}" for i in range(len(constants)))]
    given = helper.make_tensor_value_info("x", 1, shape)
    made = helper.make_tensor_value_info("y", 1, None)
    named = [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(constants)]
    node = helper.make_node(op, inputs, ["y"], **attrs)
    graph = helper.make_graph([node], "sums", [given], [made], named)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def normalized(x: Array, axes: tuple[int, ...]) -> Array:
    """By mean and deviation."""
    off = x - x.mean(axes, keepdims=True)
    return off / np.sqrt((off * off).mean(axes, keepdims=True) + 1e-12)


Meaning = Callable[[Array, tuple[int, ...]], Array]
REDUCTIONS: dict[str, Meaning] = {
    "ReduceSum": lambda x, axes: x.sum(axes),
    "ReduceMean": lambda x, axes: x.mean(axes),
    "ReduceL1": lambda x, axes: x.sum(axes),
    "ReduceL2": lambda x, axes: np.sqrt((x * x).sum(axes)),
    "ReduceSumSquare": lambda x, axes: (x * x).sum(axes),
    "ReduceLogSumExp": lambda x, axes: np.log(np.exp(x).sum(axes)),
}
SHAPES = [((4096,), (0,)), ((4096, 1), (0,)), ((8, 4096, 3), (1,)), ((2, 64, 64, 3), (1, 2, 3))]


def nearly_equal(shape: tuple[int, ...]) -> Array:
    """1.7 to 1.701."""
    return (1.7 + 0.001 * np.random.default_rng(0).random(shape)).astype(np.float32)


def run(model: onnx.ModelProto, x: Array) -> Array:
    """Compiled for this machine."""
    return load(qcompiler.compile(model)).run({"x": x})["y"]


@pytest.mark.parametrize(("shape", "axes"), SHAPES, ids=str)
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions_of_thousands_keep_their_digits(
    op: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """Against float64, relative to the sum."""
    x = nearly_equal(shape)
    want = REDUCTIONS[op](x.astype(np.float64), axes)
    got = run(built(op, shape, [np.array(axes)], keepdims=0), x)
    units = WIDE if op == "ReduceLogSumExp" else VECTORS
    assert (np.abs(got - want) <= units * UNIT * np.abs(want)).all()


@pytest.mark.parametrize("shape", [(4, 4096), (4, 4096, 1), (4, 512, 3), (4, 64, 64)], ids=str)
def test_layers_of_nearly_equal_values_are_normalized_by_their_true_mean(
    shape: tuple[int, ...],
) -> None:
    """The last axis may be short; an error of the mean counts 5,900 times, for it is divided by the
    deviation.
    """
    x = nearly_equal(shape)
    axes = tuple(range(1, len(shape)))
    want = normalized(x.astype(np.float64), axes)
    got = run(
        built("LayerNormalization", shape, [np.ones(shape[1:], np.float32)], axis=1, epsilon=1e-12),
        x,
    )
    assert (np.abs(got - want) <= WIDE * UNIT * 5900).all()


@pytest.mark.parametrize("p", [1, 2])
def test_norms_of_thousands_keep_their_digits(p: int) -> None:
    """LpNormalization of 4096 values."""
    x = nearly_equal((8, 4096))
    wide = x.astype(np.float64)
    want = wide / (wide**p).sum(1, keepdims=True) ** (1 / p)
    got = run(built("LpNormalization", (8, 4096), [], axis=1, p=p), x)
    assert (np.abs(got - want) <= WIDE * UNIT * want).all()
