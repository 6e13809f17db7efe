"""What exporters write as constants may be inputs: weights, scales, statistics, bounds, states.

Every operand of every operator here is known at run time only. What comes out is what numpy says,
or the compiler refuses with an Error that names the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

import qcompiler
from qcompiler.ir import Array
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate

OPSET = 22
Case = tuple[str, Sequence[Array | None], dict[str, Any]]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def whole(low: int, high: int, *shape: int, dtype: str = "int64", seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).integers(low, high, shape).astype(dtype)


def unsigned(*shape: int) -> Array:
    return whole(0, 256, *shape, dtype="uint8")


def few(*values: float, dtype: str = "float32") -> Array:
    return np.array(values, dtype)


def scalar(value: float, dtype: str = "float32") -> Array:
    return np.array(value, dtype)


def model(cases: Sequence[Case]) -> ModelProto:
    """A node for each case, all of whose operands are inputs."""
    nodes, given, made = [], [], []
    for n, (op, inputs, attrs) in enumerate(cases):
        named = names(n, inputs)
        given += [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for k, a in zip(named, inputs, strict=True)
            if a is not None
        ]
        outputs = [
            helper.make_empty_tensor_value_info(f"{n}y{i}") for i in range(OUTPUTS.get(op, 1))
        ]
        made += outputs
        nodes.append(helper.make_node(op, named, [o.name for o in outputs], f"my_{op}{n}", **attrs))
    graph = helper.make_graph(nodes, "g", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def names(number: int, inputs: Sequence[Array | None]) -> list[str]:
    return ["" if a is None else f"{number}x{i}" for i, a in enumerate(inputs)]


OUTPUTS = {"DynamicQuantizeLinear": 3, "LSTM": 3, "GRU": 2, "RNN": 2, "TopK": 2, "Split": 2}
IMAGE = normal(2, 8, 9, 10)
BYTES = whole(0, 255, 2, 8, 9, 10, dtype="uint8")
STATES = normal(1, 2, 5, seed=3), normal(1, 2, 5, seed=4)
SEQUENCE = normal(6, 2, 4)
ROWS = normal(6, 16)


def products() -> list[Case]:
    made: list[Case] = []
    for group in (1, 2, 4, 8):
        for size, kernel in ((1, 1), (3, 3), (1, 5)):
            w = normal(16, 8 // group, size, kernel)
            pads = [size // 2, kernel // 2] * 2
            made.append(("Conv", (IMAGE, w, normal(16)), {"group": group, "pads": pads}))
            made.append(("Conv", (IMAGE, w), {"group": group, "strides": [2, 1]}))
            codes = whole(-127, 127, 16, 8 // group, size, kernel, dtype="int8")
            for zero in (None, scalar(3, "uint8")):
                made.append(("ConvInteger", (BYTES, codes, zero), {"group": group, "pads": pads}))
            codes, zeros = unsigned(16, 8 // group, size, kernel), unsigned(16)
            for zero in (None, scalar(3, "uint8")):
                for other in (zeros, zeros[0]):
                    inputs = BYTES, codes, zero, other
                    made.append(("ConvInteger", inputs, {"group": group, "pads": pads}))
        made.append(("ConvTranspose", (IMAGE, normal(8, 3, 3, 2)), {"group": group}))
        strided = {"group": group, "strides": [2, 2], "pads": [1, 0, 0, 1]}
        made.append(("ConvTranspose", (IMAGE, normal(8, 3, 3, 2), normal(3 * group)), strided))
    for depthwise in (normal(8, 1, 3, 3), normal(8, 1, 1, 1), normal(8, 1, 5, 5)):
        made.append(("Conv", (IMAGE, depthwise, normal(8)), {"group": 8}))
    made.append(("Conv", (IMAGE[:, :, 0], normal(8, 1, 4)), {"group": 8, "pads": [3, 0]}))
    made.append(("Conv", (IMAGE[:, :, 0], normal(8, 1, 1)), {"group": 8}))
    made.append(("Conv", (normal(1, 4, 5, 6, 7), normal(6, 2, 3, 2, 1)), {"group": 2}))
    for a, b in (((6, 16), (16, 5)), ((3, 6, 16), (16, 40)), ((3, 6, 16), (3, 16, 7))):
        made.append(("MatMul", (normal(*a), normal(*b)), {}))
        made.append(("MatMul", (normal(*a).astype("float64"), normal(*b).astype("float64")), {}))
        bytes_ = whole(0, 255, *a, dtype="uint8"), whole(-127, 127, *b, dtype="int8")
        made.append(("MatMulInteger", (*bytes_, scalar(7, "uint8"), scalar(-2, "int8")), {}))
    for turn in (0, 1):
        for c in (None, normal(5), normal(6, 1), scalar(0.5)):
            a, b = normal(*((16, 6) if turn else (6, 16))), normal(*((5, 16) if turn else (16, 5)))
            made.append(("Gemm", (a, b, c), {"transA": turn, "transB": turn, "alpha": 0.5}))
    made.append(("Einsum", (normal(2, 3, 4), normal(2, 5, 4)), {"equation": "bij,bkj->bik"}))
    return made


def quantized() -> list[Case]:
    x, w = BYTES, whole(-127, 127, 8, 8, 3, 3, dtype="int8")
    steps = scalar(0.02), scalar(120, "uint8"), scalar(0.4), scalar(110, "uint8")
    each = np.abs(normal(8)) * 0.01
    zeros = np.zeros(8, np.int8)
    bias = whole(-900, 900, 8, dtype="int32")
    made: list[Case] = []
    for scale, zero in ((scalar(0.01), scalar(0, "int8")), (each, zeros)):
        made.append(("QLinearConv", (x, *steps[:2], w, scale, zero, *steps[2:], bias), {}))
        thin = w[:, :1]
        made.append(("QLinearConv", (x, *steps[:2], thin, scale, zero, *steps[2:]), {"group": 8}))
    a, b = whole(0, 255, 6, 16, dtype="uint8"), whole(0, 255, 16, 5, dtype="uint8")
    right = scalar(0.03), scalar(99, "uint8")
    made.append(("QLinearMatMul", (a, *steps[:2], b, *right, *steps[2:]), {}))
    for zero in (None, scalar(7, "uint8")):
        made.append(("QuantizeLinear", (IMAGE, scalar(0.03), zero), {}))
        made.append(("DequantizeLinear", (BYTES, scalar(0.03), zero), {}))
    made.append(("QuantizeLinear", (IMAGE, each + 0.01, zeros), {"axis": 1}))
    made.append(("DequantizeLinear", (x, each, np.zeros(8, np.uint8)), {"axis": 1}))
    made.append(("DynamicQuantizeLinear", (IMAGE,), {}))
    return made


def norms() -> list[Case]:
    spread = np.abs(normal(8, seed=9)) + 0.1
    made: list[Case] = [
        (
            "BatchNormalization",
            (IMAGE, normal(8), normal(8, seed=1), normal(8, seed=2), spread),
            {},
        ),
        ("InstanceNormalization", (IMAGE, normal(8), normal(8, seed=1)), {}),
        ("GroupNormalization", (IMAGE, normal(8), normal(8, seed=1)), {"num_groups": 4}),
        ("LayerNormalization", (ROWS, normal(16), normal(16, seed=1)), {}),
        ("LayerNormalization", (ROWS, normal(16)), {}),
        ("PRelu", (IMAGE, normal(8, 1, 1)), {}),
        ("PRelu", (IMAGE, normal(1)), {}),
        ("Clip", (IMAGE, scalar(-0.5), scalar(0.7)), {}),
        ("Clip", (IMAGE, None, scalar(0.7)), {}),
        ("Pow", (np.abs(IMAGE), scalar(1.7)), {}),
        ("Where", (IMAGE > 0, normal(10), scalar(2)), {}),
        ("Max", (IMAGE, scalar(0.1), normal(10)), {}),
    ]
    return made


def recurrent() -> list[Case]:
    made: list[Case] = []
    for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        w, r = normal(1, gates * 5, 4) / 2, normal(1, gates * 5, 5, seed=1) / 2
        b = normal(1, 2 * gates * 5, seed=2)
        state = STATES[:1] if op != "LSTM" else STATES
        made.append((op, (SEQUENCE, w, r), {"hidden_size": 5}))
        made.append((op, (SEQUENCE, w, r, b, None, *state), {"hidden_size": 5}))
        lengths = few(6, 3, dtype="int32")
        made.append((op, (SEQUENCE, w, r, b, lengths), {"hidden_size": 5}))
    return made


def moves() -> list[Case]:
    axis = few(1, dtype="int64")
    made: list[Case] = [
        ("Gather", (ROWS, whole(-6, 6, 3, 2)), {}),
        ("GatherElements", (ROWS, whole(0, 6, 3, 16)), {}),
        ("GatherND", (ROWS, whole(0, 6, 4, 2)), {}),
        ("ScatterElements", (ROWS, whole(0, 6, 1, 16), normal(1, 16)), {}),
        ("ScatterND", (ROWS, few(0, 3, dtype="int64").reshape(2, 1), normal(2, 16)), {}),
        ("Slice", (ROWS, few(1, dtype="int64"), few(4, dtype="int64")), {}),
        ("Pad", (ROWS, few(0, 1, 2, 0, dtype="int64"), scalar(1.5)), {}),
        ("Tile", (ROWS, few(1, 2, dtype="int64")), {}),
        ("Expand", (ROWS, few(2, 6, 16, dtype="int64")), {}),
        ("Reshape", (ROWS, few(4, 24, dtype="int64")), {}),
        ("Resize", (IMAGE, None, few(1, 1, 2, 2)), {}),
        ("TopK", (ROWS, few(3, dtype="int64")), {}),
        ("ReduceSum", (ROWS, axis), {}),
        ("CumSum", (ROWS, scalar(1, "int64")), {}),
        ("Split", (ROWS, few(2, 4, dtype="int64")), {}),
        ("OneHot", (whole(0, 5, 4), scalar(5, "int64"), few(0, 1)), {}),
        ("Trilu", (ROWS, scalar(1, "int64")), {}),
        ("Range", (scalar(0, "int64"), scalar(5, "int64"), scalar(1, "int64")), {}),
        ("GridSample", (IMAGE, normal(2, 4, 5, 2) / 2), {}),
        ("RoiAlign", (IMAGE, few(0, 0, 4, 4).reshape(1, 4), few(1, dtype="int64")), {}),
        ("ReverseSequence", (ROWS, whole(1, 6, 16)), {}),
        ("MaxUnpool", (normal(1, 1, 2, 2), few(0, 3, 9, 15, dtype="int64").reshape(1, 1, 2, 2)),
         {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Col2Im", (normal(1, 8, 6), few(4, 6, dtype="int64"), few(2, 2, dtype="int64")), {}),
    ]  # fmt: skip
    return made


REFUSABLE = {"Slice", "Pad", "Tile", "Expand", "Reshape", "Resize", "TopK", "ReduceSum", "CumSum"}
REFUSABLE |= {"Split", "OneHot", "Range", "Col2Im"}
"""Operators that may be refused: operands that decide a shape, or how to read another."""


def together() -> dict[str, list[Case]]:
    """Cases of one operator and number of groups share a model; what may be refused is alone."""
    found: dict[str, list[Case]] = {}
    for case in (*products(), *quantized(), *norms(), *recurrent()):
        op, _, attrs = case
        found.setdefault(f"{op}-{attrs.get('group', 1)}", []).append(case)
    for i, case in enumerate(moves()):
        found[f"{case[0]}-{i}"] = [case]
    return found


CASES = together()


@pytest.mark.parametrize("cases", CASES.values(), ids=CASES)
def test_operands_known_at_run_time(cases: list[Case]) -> None:
    proto = model(cases)
    feeds = {
        name: a
        for n, (_, inputs, _) in enumerate(cases)
        for name, a in zip(names(n, inputs), inputs, strict=True)
        if a is not None
    }
    op, *_ = cases[0]
    try:
        made = qcompiler.load(qcompiler.compile(proto))
    except qcompiler.Error as e:
        text = str(e)
        made = None
    if made is None:
        assert op in REFUSABLE, text
        assert op in text
        assert "my_" in text
        return
    for values in (feeds, turned(op, feeds)):
        want = evaluate(read(proto), values)
        for name, got in made.run(values).items():
            assert (got.dtype, got.shape) == (want[name].dtype, want[name].shape)
            if got.dtype.kind == "f":
                np.testing.assert_allclose(got, want[name], rtol=2e-5, atol=2e-5)
            else:
                np.testing.assert_array_equal(got, want[name])


def turned(op: str, feeds: dict[str, Array]) -> dict[str, Array]:
    """Other numbers for the same code: those of each float operand but the first backwards."""
    if op in ("RoiAlign", "QLinearConv"):
        return feeds
    return {
        n: a[..., ::-1].copy() if a.ndim and a.dtype.kind == "f" and not n.endswith("x0") else a
        for n, a in feeds.items()
    }
