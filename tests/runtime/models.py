"""Small artifacts whose answers are easy to tell, for the executor's tests."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from qcompiler import Artifact, compile
from qcompiler.ir import Array

ROWS, WIDTH = 64, 48


def product(batch: int = ROWS, threads: int = 2, name: str = "product") -> Artifact:
    """y = relu(x w), z = -x; of `batch` samples, each by itself."""
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    shape = [batch, WIDTH]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("Relu", ["p"], ["y"]),
            helper.make_node("Neg", ["x"], ["z"]),
        ],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, shape),
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    return compile(_model(graph), threads=threads)


def opened(dims: str = "1..64", best: int = 8, precision: str = "float32") -> Artifact:
    """The product of any number of samples."""
    model = _layers(1, "batch")
    data = "synthetic" if precision == "int8" else None
    given = {"dims": {"batch": dims}, "opt_dims": {"batch": best}}
    return compile(model, threads=2, precision=precision, calibration=data, **given)


def lengths() -> Artifact:
    """The product of one text of any length, whose rows are its positions."""
    model = _layers(1, 1, "length")
    return compile(model, threads=2, dims={"length": "1..32"})


def chain(steps: int = 12, threads: int = 2) -> Artifact:
    """y = relu(... relu(relu(x w0) w1) ...), of one sample and so many steps; z = -x."""
    return compile(_layers(steps, 1), threads=threads)


def _layers(steps: int, *rows: int | str) -> object:
    rng = np.random.default_rng(0)
    shape = [*rows, WIDTH]
    names = ["x", *(f"v{i}" for i in range(steps - 1)), "y"]
    nodes, held = [helper.make_node("Neg", ["x"], ["z"])], []
    for i, (a, b) in enumerate(pairwise(names)):
        weights = rng.standard_normal((WIDTH, WIDTH)) / 5
        held.append(numpy_helper.from_array(weights.astype(np.float32), f"w{i}"))
        nodes += [
            helper.make_node("MatMul", [a, f"w{i}"], [f"p{i}"]),
            helper.make_node("Relu", [f"p{i}"], [b]),
        ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("y", "z")],
        held,
    )
    return _model(graph)


def doubling(size: int = 8) -> Artifact:
    """y = 2 x, as fast as a run can be."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])],
    )
    return compile(_model(graph), threads=1)


def slow(steps: int = 40, size: int = 256) -> Artifact:
    """x w w w ..., some milliseconds long."""
    weights = (np.eye(size) * 0.5).astype(np.float32)
    names = ["x", *(f"v{i}" for i in range(steps - 1)), "y"]
    shape = [size, size]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)],
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    return compile(_model(graph), threads=1)


def mixing(batch: int = 4) -> Artifact:
    """A model whose samples have to do with each other: the mean over the batch is taken away."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
            helper.make_node("Sub", ["x", "m"], ["y"]),
        ],
        "mixing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8])],
        [numpy_helper.from_array(np.array([0], np.int64), "axes")],
    )
    return compile(_model(graph), threads=1)


def sample(seed: int, rows: int = ROWS) -> Array:
    """An input of the product."""
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def _model(graph: object) -> object:
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
