"""Recurrent layers: folded, quantized and written, they run in onnxruntime and read back."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from oracles import onnxruntime_outputs

from qcompiler.driver import Compilation
from qcompiler.ir import Node, substitute
from qcompiler.onnx_io.reader import read
from qcompiler.onnx_io.writer import write
from qcompiler.ops import evaluate, make
from qcompiler.options import Options
from qcompiler.rewrite.matching import rebuilt
from qcompiler.stages import run_stage

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
CASES = [
    (kind, direction, extra)
    for kind, direction, extra in product(
        GATES,
        ("forward", "reverse", "bidirectional"),
        ("plain", "bias", "states", "lengths", "reset", "peepholes"),
    )
    if (extra != "reset" or kind == "GRU") and (extra != "peepholes" or kind == "LSTM")
]


def layer(
    kind: str, direction: str, extra: str, *, size: int = 6, inputs: int = 5
) -> tuple[onnx.ModelProto, np.ndarray]:
    """A model of one layer, with its sequence and last state summed by a product; and its x."""
    random = np.random.default_rng(3)
    count = 2 if direction == "bidirectional" else 1

    def numbers(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.4).astype(np.float32)

    gates = GATES[kind]
    held = {"w": numbers(count, gates * size, inputs), "r": numbers(count, gates * size, size)}
    reads = ["x", "w", "r", "", "", "", "", ""]
    if extra != "plain":
        held["b"], reads[3] = numbers(count, 2 * gates * size), "b"
    if extra == "lengths":
        held["n"], reads[4] = np.array([7, 4], np.int32), "n"
    if extra == "states":
        held["h0"], reads[5] = numbers(count, 2, size), "h0"
        if kind == "LSTM":
            held["c0"], reads[6] = numbers(count, 2, size), "c0"
    if extra == "peepholes":
        held["p"], reads[7] = numbers(count, 3 * size), "p"
    while not reads[-1]:
        reads.pop()
    attrs: dict[str, object] = {"linear_before_reset": 1} if extra == "reset" else {}
    held |= {"o": numbers(size, 3), "one": np.array([1])}
    attrs |= {"hidden_size": size, "direction": direction}
    nodes = [
        helper.make_node(kind, reads, ["Y", "h"], "rnn", **attrs),
        helper.make_node("ReduceSum", ["Y", "one"], ["s"], keepdims=0),
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[0], keepdims=0),
        helper.make_node("Add", ["s", "m"], ["t"]),
        helper.make_node("MatMul", ["t", "o"], ["y"], "head"),
    ]
    x = helper.make_tensor_value_info("x", 1, [7, 2, inputs])
    y = helper.make_tensor_value_info("y", 1, [7, 2, 3])
    constants = [numpy_helper.from_array(v, k) for k, v in held.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return model, numbers(7, 2, inputs)


@pytest.mark.parametrize(("kind", "direction", "extra"), CASES)
def test_a_folded_layer_is_written_as_the_layer_it_was(
    kind: str, direction: str, extra: str
) -> None:
    model, x = layer(kind, direction, extra)
    graph = run_stage(read(model), "fold")
    assert any(n.op == "recurrent" for n in graph.nodes)
    written = write(graph)
    assert kind in {n.op_type for n in written.graph.node}
    assert max((np.prod(t.dims) for t in written.graph.initializer), default=0) < 400, "no identity"
    wanted = onnxruntime_outputs(model, {"x": x}, ours=True)["y"]
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], wanted, atol=2e-6)
    theirs = onnxruntime_outputs(written, {"x": x}, ours=True)["y"]
    np.testing.assert_allclose(theirs, wanted, atol=2e-6)
    again = evaluate(run_stage(read(written), "fold"), {"x": x})["y"]
    np.testing.assert_allclose(again, wanted, atol=2e-6)


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights", "int8-dynamic"])
@pytest.mark.parametrize("kind", GATES)
def test_a_quantized_layer_runs_in_onnxruntime(kind: str, precision: str) -> None:
    model, x = layer(kind, "forward", "bias")
    options = Options(precision=precision, calibration=[{"x": x}, {"x": -x}])
    graph = Compilation(model, options).quantized
    written = write(graph)
    onnx.checker.check_model(written, full_check=True)
    wanted = onnxruntime_outputs(model, {"x": x}, ours=True)["y"]
    theirs = onnxruntime_outputs(written, {"x": x}, ours=True)["y"]
    loss = 0.25 if precision == "int4-weights" else 0.05
    np.testing.assert_allclose(theirs, wanted, atol=loss * np.abs(wanted).max())
    ours = evaluate(graph, {"x": x})["y"]
    np.testing.assert_allclose(theirs, ours, atol=1e-2 * np.abs(wanted).max())


def test_sums_that_are_no_product_go_through_an_identity() -> None:
    model, x = layer("LSTM", "forward", "bias")
    graph = run_stage(read(model), "fold")

    def bent(node: Node) -> Node:
        if node.op != "recurrent":
            return node
        return rebuilt(node, (make("Relu", node.inputs[0]), *node.inputs[1:]))

    changed = substitute(graph, bent)
    theirs = onnxruntime_outputs(write(changed), {"x": x}, ours=True)["y"]
    np.testing.assert_allclose(theirs, evaluate(changed, {"x": x})["y"], atol=2e-6)
