"""Low-bit weights: from their ONNX form to the kernels that decode them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcompiler import ops, plugins
from qcompiler.data.calibrate import Calibration
from qcompiler.emit.assemble import assemble
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.onnx_io.reader import read
from qcompiler.ops import make
from qcompiler.plan.plan import plan
from qcompiler.runtime import load
from qcompiler.stages import Choice, build, run_stage

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def stored(dtype: str, shape: tuple[int, ...], scale: tuple[int, ...], **attrs: int) -> Node:
    kind = numpy_dtype(dtype)
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    low = 0 if dtype[0] == "u" else -(1 << (bits - 1))
    q = constant(RANDOM.integers(low, low + (1 << bits), shape).astype(kind))
    s = constant(np.abs(floats(*scale)) / np.float32(1 << bits))
    z = constant(RANDOM.integers(max(low, -3), 3, scale).astype(kind))
    return make("DequantizeLinear", q, s, z, **attrs)


def lowered(graph: Graph) -> Graph:
    for stage in ("fold", "fuse", "quantize", "integer", "layout"):
        graph = run_stage(graph, stage, None, None, plugins.device("host", 1))
    return graph


def check(graph: Graph, narrow: bool) -> Graph:
    """Same meaning before and after, in numpy and compiled; the operators that must be there."""
    x = graph.inputs[0]
    feed = {x.name: floats(*x.type.dims)}
    wanted = ops.evaluate(graph, feed)["y"]
    made = lowered(graph)
    assert any(n.op == "matmul_narrow" for n in made.nodes) == narrow
    assert not any(n.op in ("dequantize", "DequantizeLinear") for n in made.nodes)
    bound = {"rtol": 1e-4, "atol": 1e-4 * np.abs(wanted).max()}
    np.testing.assert_allclose(ops.evaluate(made, feed)["y"], wanted, **bound)
    artifact = assemble(plan(made, plugins.device("host", 1)))
    np.testing.assert_allclose(load(artifact).run(feed)["y"], wanted, **bound)
    return made


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize(
    ("scale", "attrs"),
    [
        ((3, 20), {"axis": 0, "block_size": 32}),
        ((20,), {"axis": 1}),
        ((), {}),
    ],
    ids=["blocks", "columns", "one"],
)
def test_a_product_by_stored_weights_decodes_them(
    dtype: str, scale: tuple[int, ...], attrs: dict[str, int]
) -> None:
    x = placeholder("x", Type("float32", (3, 5, 80)))
    y = make("MatMul", x, stored(dtype, (80, 20), scale, **attrs))
    made = check(Graph((x,), (make("Add", y, constant(floats(20))),), ("y",)), narrow=True)
    (node,) = (n for n in made.nodes if n.op == "matmul_narrow")
    assert node.int("bits") == (4 if dtype.endswith("4") else 8)


@pytest.mark.parametrize(
    ("scale", "attrs"), [((20, 3), {"axis": 1, "block_size": 32}), ((20,), {"axis": 0})]
)
def test_transposed_weights_are_stored_transposed(
    scale: tuple[int, ...], attrs: dict[str, int]
) -> None:
    x = placeholder("x", Type("float32", (5, 80)))
    w = make("Transpose", stored("int4", (20, 80), scale, **attrs), perm=(1, 0))
    check(Graph((x,), (make("MatMul", x, w),), ("y",)), narrow=True)


def test_matmul_n_bits_of_onnxruntime_runs_in_its_bits() -> None:
    packed = RANDOM.integers(0, 256, (24, 2, 16)).astype(np.uint8)
    scales = np.abs(floats(24 * 2)) / 16
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=64,
        N=24,
        bits=4,
        block_size=32,
    )
    made = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 24])],
        [numpy_helper.from_array(packed, "w"), numpy_helper.from_array(scales, "s")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)
    check(read(model, {}), narrow=True)


def test_a_convolution_scales_its_sums_instead_of_its_weights() -> None:
    x = placeholder("x", Type("float32", (2, 6, 8, 8)))
    q = constant(RANDOM.integers(-7, 8, (10, 6, 3, 3)).astype(numpy_dtype("int4")))
    w = make("DequantizeLinear", q, constant(np.abs(floats(10))), axis=0)
    y = make("Conv", x, w, constant(floats(10)), pads=(1, 1, 1, 1))
    made = check(Graph((x,), (make("Relu", y),), ("y",)), narrow=False)
    (conv,) = (n for n in made.nodes if n.op == "conv")
    assert np.unique(conv.operands[1].array).size <= 15, "its weights are the integers"


def test_stored_numbers_that_no_product_reads_become_a_constant() -> None:
    x = placeholder("x", Type("float32", (80, 20)))
    w = stored("int4", (80, 20), (3, 20), axis=0, block_size=32)
    check(Graph((x,), (make("Add", x, w),), ("y",)), narrow=False)


@pytest.mark.parametrize("activation", ["uint16", "int16"])
def test_activations_of_16_bits_lie_in_memory_so_and_cost_next_to_nothing(activation: str) -> None:
    x = placeholder("x", Type("float32", (2, 6, 8, 8)))
    a = make("Relu", make("Conv", x, constant(floats(8, 6, 3, 3)), constant(100 * floats(8))))
    b = make("Conv", a, constant(floats(8, 1, 3, 3)), group=8)
    flat = make("Reshape", b, constant(np.array([2, 128], np.int64)))
    graph = Graph((x,), (make("MatMul", flat, constant(floats(128, 10))),), ("y",))
    feeds = [{"x": floats(2, 6, 8, 8)} for _ in range(4)]
    options = {"activation": activation}
    choice = Choice({"quantize_static": options})
    pairs = build("quantize_static", options, data=Calibration(feeds))(graph)
    made = run_stage(graph, "quantize", None, choice, None, Calibration(feeds))
    made = run_stage(made, "layout")
    stored = [n.dtype for n in made.nodes if n.op == "quantize"]
    assert len(stored) >= 3
    assert set(stored) == {activation}
    assert not any(n.op == "DequantizeLinear" for n in made.nodes)
    artifact = assemble(plan(made, plugins.device("host", 1)))
    feed = feeds[0]
    wanted = ops.evaluate(pairs, feed)["y"]
    bound = {"rtol": 1e-3, "atol": 1e-4 * np.abs(wanted).max()}
    np.testing.assert_allclose(ops.evaluate(made, feed)["y"], wanted, **bound)
    np.testing.assert_allclose(load(artifact).run(feed)["y"], wanted, **bound)
