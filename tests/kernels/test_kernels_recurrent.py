"""The loop of RNN, GRU and LSTM: kernels against numpy, whole layers against onnxruntime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from kernel_harness import check, vector_isas
from onnx import helper, numpy_helper
from oracles import onnxruntime_outputs

import qcompiler
import qcompiler.kernels.cpu.rows.recurrent
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Array, Node, Type, constant, placeholder
from qcompiler.ops import make
from qcompiler.ops.recurrent import GATES

ISAS = pytest.mark.parametrize("isa", vector_isas(), ids=lambda i: i.name)
KINDS = pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])


def floats(seed: int, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    rng = np.random.default_rng((seed, *shape))
    return (rng.standard_normal(shape) * 0.5).astype(dtype)


def loop(
    kind: str,
    steps: int,
    batch: int,
    hidden: int,
    isa: Isa,
    *,
    dtype: str = "float32",
    lengths: tuple[int, ...] | None = None,
    states: bool = True,
    peepholes: bool = False,
    bias: bool = False,
    constant_weights: bool = True,
    threads: int = 1,
    **attrs: Any,
) -> None:
    """One `recurrent` kernel against its meaning."""
    two, wide = 1 + (attrs.get("direction") == "bidirectional"), GATES[kind] * hidden
    arrays = {
        "sums": floats(0, (steps, batch, two * wide), dtype),
        "r": floats(1, (two, hidden, wide), dtype),
        "bias": floats(2, (two, hidden), dtype) if bias else None,
        "lengths": None if lengths is None else np.array(lengths, np.int32),
        "h0": floats(3, (two, batch, hidden), dtype) if states else None,
        "c0": floats(4, (two, batch, hidden), dtype) if states and kind == "LSTM" else None,
        "peepholes": floats(5, (two, 3 * hidden), dtype) if peepholes else None,
    }
    nodes: list[Node | None] = []
    given: list[tuple[Node, Array]] = []
    for name, array in arrays.items():
        if array is None:
            nodes.append(None)
        elif name == "r" and constant_weights:
            nodes.append(constant(array))
        else:
            given.append((placeholder(name, Type(array.dtype.name, array.shape)), array))
            nodes.append(given[-1][0])
    made = make("recurrent", *nodes, kind=kind, **attrs)
    # Each of the sum's `hidden` addends, of about 1, is rounded once.
    rtol, atol = (1e-5, 3e-6 + hidden * 2**-24) if dtype == "float32" else (1e-12, 1e-13)
    inputs, values = [n for n, _ in given], [a for _, a in given]
    check(made, made, values, inputs, isa, threads=threads, rtol=rtol, atol=atol)


@ISAS
@KINDS
@pytest.mark.parametrize("hidden", [1, 7, 16, 33])
def test_any_number_of_hidden_units(kind: str, hidden: int, isa: Isa) -> None:
    loop(kind, 3, 1, hidden, isa)


@ISAS
@KINDS
def test_both_directions_of_several_sequences(kind: str, isa: Isa) -> None:
    for direction, batch in (("forward", 4), ("reverse", 3), ("bidirectional", 6)):
        loop(kind, 4, batch, 19, isa, direction=direction, bias=kind == "GRU", threads=2)


@ISAS
@KINDS
def test_sequences_end_where_they_end(kind: str, isa: Isa) -> None:
    for direction in ("forward", "reverse", "bidirectional"):
        loop(kind, 5, 3, 9, isa, direction=direction, lengths=(3, 5, 0), states=False)


@ISAS
def test_what_only_some_layers_have(isa: Isa) -> None:
    loop("LSTM", 3, 2, 18, isa, peepholes=True, direction="bidirectional")
    loop("LSTM", 3, 2, 18, isa, input_forget=1, clip=0.3)
    loop("GRU", 3, 2, 18, isa, linear_before_reset=1, bias=True, direction="bidirectional")
    loop("GRU", 3, 2, 18, isa, linear_before_reset=0, bias=True, direction="reverse")


@ISAS
@KINDS
def test_weights_that_only_running_the_model_tells(kind: str, isa: Isa) -> None:
    loop(kind, 3, 2, 21, isa, constant_weights=False, direction="bidirectional")


@KINDS
def test_a_loop_in_float64(kind: str) -> None:
    loop(kind, 3, 2, 11, vector_isas()[-1], dtype="float64")


def test_a_long_loop_is_shared_among_threads() -> None:
    loop("LSTM", 20, 8, 64, vector_isas()[-1], threads=2, direction="bidirectional")


@KINDS
@pytest.mark.parametrize("steps", [1, 2])
def test_the_units_of_one_long_sequence_are_shared_among_threads(kind: str, steps: int) -> None:
    """More units than fill the blocks, so the last task has some of its own."""
    bias = kind == "GRU"
    loop(kind, steps, 1, 231, vector_isas()[-1], threads=3, bias=bias, linear_before_reset=bias)
    loop(kind, steps, 2, 200, vector_isas()[-1], threads=4, direction="bidirectional")


ACTIVATIONS = ["Relu", "Tanh", "Sigmoid", "HardSigmoid", "Affine", "Elu", "ScaledTanh", "Softsign"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name(name: str) -> None:
    loop("RNN", 3, 1, 17, vector_isas()[-1], activations=(name,), activation_alpha=(0.3,))


@pytest.mark.parametrize(
    ("kind", "direction", "layout"),
    [*product(["RNN", "GRU", "LSTM"], ["forward", "reverse", "bidirectional"], [0])],
)
def test_a_layer_as_onnxruntime_computes_it(kind: str, direction: str, layout: int) -> None:
    two, wide, steps, batch, size, hidden = (
        1 + (direction == "bidirectional"),
        GATES[kind],
        5,
        3,
        4,
        6,
    )
    shapes = {"w": (two, wide * hidden, size), "r": (two, wide * hidden, hidden)}
    shapes["b"] = (two, 2 * wide * hidden)
    weights = [numpy_helper.from_array(floats(9, s), n) for n, s in shapes.items()]
    outputs = ["y", "h", "c"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(
        *(kind, ["x", "w", "r", "b", "lengths", "h0"], outputs, "layer"),
        hidden_size=hidden,
        direction=direction,
    )
    feed = {
        "x": floats(1, (steps, batch, size)),
        "lengths": np.array([2, 5, 4], np.int32),
        "h0": floats(2, (two, batch, hidden)),
    }
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feed.items()
        ],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ours = qcompiler.load(qcompiler.compile(model)).run(feed)
    for name, want in onnxruntime_outputs(model, feed, outputs).items():
        np.testing.assert_allclose(ours[name], want, rtol=1e-4, atol=1e-5)
