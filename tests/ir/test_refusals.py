"""Errors for uncompilable graphs name the node, the operator, the dtype and the cause."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qcompiler

NODE = helper.make_node
X = np.ones((2, 3, 4), np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray] | None = None,
    shapes: dict[str, list[object]] | None = None,
) -> onnx.ModelProto:
    """A model of nodes that compute `y` from inputs like these."""
    ins = [
        helper.make_tensor_value_info(
            k, helper.np_dtype_to_tensor_dtype(a.dtype), (shapes or {}).get(k, a.shape)
        )
        for k, a in inputs.items()
    ]
    out = onnx.ValueInfoProto(name="y")
    out.type.tensor_type.elem_type = 1
    held = [numpy_helper.from_array(v, k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", ins, [out], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


SHAPED_BY_DATA = {
    "Reshape": (["x", "s"], ints(6, 4)),
    "Expand": (["x", "s"], ints(2, 3, 4)),
    "Tile": (["x", "s"], ints(1, 1, 2)),
    "TopK": (["x", "s"], ints(2)),
    "Pad": (["x", "s"], ints(0, 0, 0, 0, 0, 1)),
    "Squeeze": (["x", "s"], ints(0)),
    "Unsqueeze": (["x", "s"], ints(0)),
    "ReduceSum": (["x", "s"], ints(0)),
    "Split": (["x", "s"], ints(1, 1)),
    "Resize": (["x", "", "", "s"], ints(2, 3, 8)),
    "ConstantOfShape": (["s"], ints(2)),
}


@pytest.mark.parametrize("op", SHAPED_BY_DATA)
def test_a_shape_that_depends_on_an_input_is_said(op: str) -> None:
    reads, given = SHAPED_BY_DATA[op]
    inputs = {"x": X, "s": given} if "x" in reads else {"s": given}
    outputs = ["made", "more"] if op in ("TopK", "Split") else ["made"]
    nodes = [NODE(op, reads, outputs, name="mine"), NODE("Relu", ["made"], ["y"], name="after")]
    with pytest.raises(qcompiler.Error) as e:
        qcompiler.compile(model(nodes, inputs))
    assert e.value.where == f"mine ({op})"
    assert "the model's input 's'" in e.value.what
    assert "after" not in str(e.value)


def test_a_shape_that_is_calculated_names_the_input_that_it_comes_from() -> None:
    nodes = [
        NODE("Add", ["s", "s"], ["t"], name="doubled"),
        NODE("Reshape", ["x", "t"], ["y"], name="mine"),
    ]
    with pytest.raises(qcompiler.Error, match=r"computed from the model's 's' by doubled \(Add\)"):
        qcompiler.compile(model(nodes, {"x": X, "s": ints(3, 2)}))


def test_a_missing_kernel_is_reported_with_its_dtype_and_the_rule_s_reason() -> None:
    nodes = [NODE("STFT", ["x", "step", "", "length"], ["y"], name="mine")]
    sizes = {"step": np.array(64), "length": np.array(1 << 13)}
    whole = model(nodes, {"x": np.ones((1, 1 << 14, 1), np.float32)}, sizes)
    with pytest.raises(qcompiler.Error) as e:
        qcompiler.compile(whole)
    assert "STFT of float32: mine (it needs a matrix of 8192 by 8194)" in str(e.value)


def test_a_missing_kernel_is_reported_with_the_operand_known_only_at_run_time() -> None:
    nodes = [NODE("ScatterElements", ["x", "s", "x"], ["y"], name="mine")]
    with pytest.raises(qcompiler.Error) as e:
        qcompiler.compile(model(nodes, {"x": X > 0, "s": np.zeros(X.shape, np.int64)}))
    assert "ScatterElements of bool: mine" in str(e.value)
    assert "its input 1 is the model's input 's'" in str(e.value)


def test_open_sizes_are_reported_also_where_reading_fails() -> None:
    nodes = [NODE("MatMul", ["x", "w"], ["y"], name="mine")]
    whole = model(nodes, {"x": X}, {"w": np.ones((5, 2), np.float32)}, {"x": ["n", 3, 4]})
    with pytest.raises(qcompiler.Error) as e:
        qcompiler.compile(whole)
    assert e.value.where.startswith("mine")
    assert "--input-shape x=<n>x3x4" in e.value.hint
