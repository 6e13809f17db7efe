"""NaN and infinities keep their meaning in comparisons, and with constants."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.ir import Array, numpy_dtype
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate
from qcompiler.runtime import load

COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
NUMBERS = (np.nan, -np.inf, -1.0, -0.0, 0.0, 2.0, np.inf)
BITS = 16
"""Conditions that one output holds, a bit each."""


def values() -> dict[str, Array]:
    """Every pair of the numbers; 49 of them, so that there is a tail."""
    pairs = np.array(list(itertools.product(NUMBERS, NUMBERS)), np.float32)
    return {"x": pairs[:, 0].copy(), "y": pairs[:, 1].copy()}


class Model:
    """A model of conditions."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        """A node -> its output's name."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def proto(self, conditions: list[str]) -> onnx.ModelProto:
        """The model: each condition is one bit of an output."""
        outputs = []
        for start in range(0, len(conditions), BITS):
            total = ""
            for i, condition in enumerate(conditions[start : start + BITS]):
                bit = self.add("Constant", value_int=1 << i)
                number = self.add("Mul", self.add("Cast", condition, to=TensorProto.INT64), bit)
                total = self.add("Add", total, number) if total else number
            outputs.append(total)
        size = [len(values()["x"])]
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, size) for n in "xy"]
        made = [helper.make_tensor_value_info(n, TensorProto.INT64, size) for n in outputs]
        graph = helper.make_graph(self.nodes, "conditions", inputs, made)
        opset = helper.make_opsetid("", 20)
        return helper.make_model(graph, opset_imports=[opset], ir_version=9)


def compared_with_itself() -> onnx.ModelProto:
    """x == x and the like, also inverted."""
    model = Model()
    held = [model.add(op, "x", "x") for op in COMPARISONS]
    return model.proto([*held, *(model.add("Not", c) for c in held)])


def combined(op: str) -> onnx.ModelProto:
    """Every pair of comparisons, of the same operands either way round."""
    model = Model()
    first = [model.add(c, "x", "y") for c in COMPARISONS]
    again = [model.add(c, "x", "y") for c in COMPARISONS]
    other = [model.add(c, "y", "x") for c in COMPARISONS]
    pairs = [(a, b) for a in first for b in (*again, *other, *(model.add("Not", c) for c in again))]
    return model.proto([model.add(op, a, b) for a, b in pairs])


MODELS = {
    "with itself": compared_with_itself(),
    **{op: combined(op) for op in ("And", "Or", "Xor")},
}


@pytest.mark.parametrize("target", ["x86_avx2", "host"])
@pytest.mark.parametrize("name", MODELS)
def test_comparisons_of_not_a_number_are_as_in_numpy(name: str, target: str) -> None:
    """The compiled model equals the meaning, a bit a condition."""
    model, feeds = MODELS[name], values()
    with np.errstate(invalid="ignore"):
        wanted = evaluate(read(model), feeds)
    got = load(qcompiler.compile(model, target=target)).run(feeds)
    for output, want in wanted.items():
        np.testing.assert_array_equal(got[output], want)


@pytest.mark.parametrize("target", ["x86_avx2", "host"])
def test_not_a_number_can_be_replaced(target: str) -> None:
    """Where(Not(x == x), 7, x), as exporters write `nan_to_num`."""
    model = Model()
    seven = model.add("Constant", value_float=7.0)
    out = model.add("Where", model.add("Not", model.add("Equal", "x", "x")), seven, "x")
    proto = model.proto([])
    proto.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [49]))
    feeds = values()
    got = load(qcompiler.compile(proto, target=target)).run(feeds)[out]
    np.testing.assert_array_equal(
        got, np.nan_to_num(feeds["x"], nan=7.0, posinf=np.inf, neginf=-np.inf)
    )


CONSTANTS = (0.0, -0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan)
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Mod", "Pow", "PRelu")
DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def arithmetic(op: str, dtype: np.dtype) -> onnx.ModelProto:
    """An operator of x and a constant, either way round, for every constant."""
    nodes, outputs, constants = [], [], []
    extra = {"fmod": 1} if op == "Mod" else {}
    for i, number in enumerate(CONSTANTS):
        constants.append(numpy_helper.from_array(np.array([number], dtype), f"c{i}"))
        for inputs in ([f"c{i}", "x"], ["x", f"c{i}"])[op == "PRelu" :]:
            outputs.append(f"v{len(nodes)}")
            nodes.append(helper.make_node(op, inputs, [outputs[-1]], **extra))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = helper.make_tensor_value_info("x", kind, [len(NUMBERS) * 7])
    made = [helper.make_tensor_value_info(o, kind, [len(NUMBERS) * 7]) for o in outputs]
    graph = helper.make_graph(nodes, "arithmetic", [x], made, constants)
    opset = helper.make_opsetid("", 22)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


@pytest.mark.parametrize("target", ["x86_avx2", "host"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("op", ARITHMETIC)
def test_constants_beside_infinities_and_not_a_number(op: str, dtype: type, target: str) -> None:
    """0 * x is no zero where x is infinite, and 0 / x none where x is not a number."""
    model, feeds = arithmetic(op, np.dtype(dtype)), {"x": values()["x"].astype(dtype)}
    with np.errstate(all="ignore"):
        wanted = evaluate(read(model), feeds)
    got = load(qcompiler.compile(model, target=target)).run(feeds)
    for output, want in wanted.items():
        np.testing.assert_array_equal(got[output].astype(np.float64), want.astype(np.float64))


@pytest.mark.parametrize("scale", ["in float32", "in float64", "blocks"])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8", "int16", "uint16"])
def test_not_a_number_is_quantized_to_the_lowest_integer(dtype: str, scale: str) -> None:
    """However it is lowered: to `quantize`, or as ONNX says it."""
    blocked = scale == "blocks"
    step = np.full((7, 1) if blocked else (), 0.5, np.float32)
    x = np.resize(np.array(NUMBERS, np.float32), (7, 4))
    code = TensorProto.DataType.Value(dtype.upper())
    zero = helper.make_tensor("z", code, step.shape, np.full(step.size, 2))
    how = {"axis": 1, "block_size": 4} if blocked else {}
    if scale == "in float64":
        how = {"precision": TensorProto.DOUBLE}
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **how)
    widened = helper.make_node("Cast", ["q"], ["y"], to=TensorProto.INT32)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT32, x.shape)]
    constants = [numpy_helper.from_array(step, "s"), zero]
    graph = helper.make_graph([node, widened], "g", inputs, outputs, constants)
    opset = helper.make_opsetid("", 23)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    got = load(qcompiler.compile(model, threads=1)).run({"x": x})["y"]
    np.testing.assert_array_equal(got, evaluate(read(model), {"x": x})["y"])
    lowest = int(ml_dtypes.iinfo(numpy_dtype(dtype)).min)
    assert got[np.isnan(x)].tolist() == [lowest] * int(np.isnan(x).sum())
