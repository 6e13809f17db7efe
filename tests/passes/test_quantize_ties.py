"""QuantizeLinear divides: every float32 next to a tie becomes the integer ONNX specifies."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from kernel_harness import check, isas
from onnx import TensorProto, helper, numpy_helper

import qcompiler
import qcompiler.kernels.cpu.elements.elementwise
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Array, Type, constant, placeholder
from qcompiler.ops import make

SCALES = [0.1, 0.3, 1 / 3, 0.007843138, 1.7e-3, 123.4, 2.0**-7, 3e-39, 1e-33, 3e35]
ISAS = pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)
CODES = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
}


def near_ties(scale: float) -> Array:
    """(k + 1/2) * scale and the two adjacent floats on either side, for every byte k and some
    beyond; and numbers without neighbours.
    """
    ties = ((np.arange(-300, 300) + 0.5) * np.float64(np.float32(scale))).astype(np.float32)
    steps = np.arange(-2, 3, dtype=np.int32)[:, None]
    around = (ties.view(np.int32) + steps).view(np.float32).reshape(-1)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, 3e38, -3e38], np.float32)
    return np.concatenate([around, odd])


def integers(x: Array, scale: Array, zero: int, dtype: str) -> Array:
    """saturate(round(x / scale) + zero), as specified."""
    limits = np.iinfo(dtype)
    with np.errstate(all="ignore"):
        whole = np.rint(x / np.asarray(scale, np.float32)).astype(np.float64) + zero
    return np.clip(whole, limits.min, limits.max).astype(dtype)


def test_a_product_by_the_inverse_rounds_otherwise() -> None:
    """Otherwise this file would test nothing."""
    differ = 0
    for scale in (np.float32(s) for s in SCALES[:6]):
        x = near_ties(float(scale))
        with np.errstate(all="ignore"):
            differ += int(np.sum(np.rint(x / scale) != np.rint(x * (np.float32(1) / scale))))
    assert differ > 100


@ISAS
@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 128), ("int8", 0), ("int8", -7)])
def test_kernels_divide(dtype: str, zero: int, isa: Isa) -> None:
    x = np.stack([near_ties(s) for s in SCALES])
    scale = np.array(SCALES, np.float32)[:, None]
    node = placeholder("x", Type("float32", x.shape))
    spread = make(
        "quantize", node, constant(scale), constant(np.int32(zero)), dtype=dtype, divide=1
    )
    check(spread, None, [x], [node], isa, want=integers(x, scale, zero, dtype))
    one = placeholder("x", Type("float32", x[1].shape))
    single = make(
        "quantize", one, constant(scale[1, 0]), constant(np.int32(zero)), dtype=dtype, divide=1
    )
    check(single, None, [x[1]], [one], isa, want=integers(x[1], scale[1], zero, dtype))


def model(nodes: list[onnx.NodeProto], x: Array, code: int, **weights: Array) -> onnx.ModelProto:
    """x -> y."""
    graph = helper.make_graph(
        nodes,
        "ties",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", code, x.shape)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("given", ["one", "each", "computed"])
def test_a_models_own_quantization_is_exact(dtype: str, given: str) -> None:
    x = np.stack([near_ties(s) for s in SCALES[:6]])
    scale = np.array(SCALES[:6] if given == "each" else SCALES[1], np.float32)
    zero = np.full(scale.shape, 3, dtype)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=0)]
    if given == "computed":
        nodes.insert(0, helper.make_node("ReduceMax", ["t"], ["s"], keepdims=0))
    name = "t" if given == "computed" else "s"
    weights = {name: scale.reshape(1) if given == "computed" else scale, "z": zero}
    got = qcompiler.load(qcompiler.compile(model(nodes, x, CODES[dtype], **weights)))(x)
    wide = scale[:, None] if given == "each" else scale
    np.testing.assert_array_equal(got, integers(x, wide, 3, dtype))


@pytest.mark.parametrize("between", [[], ["Relu"], ["Neg", "Relu"], ["Sigmoid"]])
def test_bytes_that_are_quantized_anew_are_divided(between: list[str]) -> None:
    """(q - z) * s is a float32 that ties half of the time if the second scale is twice as large,
    where a product by its inverse may be off.
    """
    x = np.arange(256, dtype=np.uint8).reshape(2, 128)
    for first, second in ((0.1, 0.2), (0.3, 0.6), (0.05, 0.3), (1 / 3, 2 / 3), (0.007, 0.014)):
        s, t = np.float32(first), np.float32(second)
        nodes = [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["v0"])]
        for i, name in enumerate(between):
            nodes.append(helper.make_node(name, [f"v{i}"], [f"v{i + 1}"]))
        last = f"v{len(between)}"
        nodes.append(helper.make_node("QuantizeLinear", [last, "t", "z"], ["y"]))
        made = model(nodes, x, TensorProto.UINT8, s=s, t=t, z=np.uint8(128))
        want = (x.astype(np.float32) - np.float32(128)) * s
        for name in between:
            want = {
                "Relu": lambda v: np.maximum(v, 0),
                "Neg": np.negative,
                "Sigmoid": lambda v: 1 / (1 + np.exp(-v)),
            }[name](want)
        got = qcompiler.load(qcompiler.compile(made))(x)
        np.testing.assert_array_equal(got, integers(want, t, 128, "uint8"), err_msg=f"{s} {t}")
