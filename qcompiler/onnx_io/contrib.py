"""Operators of onnxruntime's domain, com.microsoft -> ONNX operators.

onnxruntime's optimizer and quantizer put them into the models they save. Those without a short
translation (attention with caches, mixtures of experts) are reported as unsupported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from qcompiler.ir import Array, Attr, Node, constant, numpy_dtype
from qcompiler.onnx_io.call import Call, Result, finish, newest
from qcompiler.onnx_io.schema import NEWEST, schema

DOMAIN = "com.microsoft"

Translation = Callable[[Call], Result]
_TRANSLATIONS: dict[str, tuple[Translation, Mapping[str, Attr]]] = {}
_IN_ONNX_DOMAIN = ("SimplifiedLayerNormalization",)
"""Operators that onnxruntime puts into ONNX's own domain."""
_WINDOW: dict[str, Attr] = {
    "auto_pad": "NOTSET",
    "dilations": (),
    "kernel_shape": (),
    "pads": (),
    "strides": (),
}


def _contrib(name: str, **defaults: Attr) -> Callable[[Translation], Translation]:
    def register(translation: Translation) -> Translation:
        exact = {
            k: float(np.float32(v)) if isinstance(v, float) else v for k, v in defaults.items()
        }
        _TRANSLATIONS[name] = (translation, exact)
        return translation

    return register


def known(domain: str, op: str, opsets: Mapping[str, int]) -> bool:
    """Is an operator one of onnxruntime's own with a translation?"""
    if domain == "" and op in _IN_ONNX_DOMAIN:
        return schema(op, opsets.get("", NEWEST)) is None
    return domain == DOMAIN and op in _TRANSLATIONS


def translate(call: Call) -> Node | tuple[Node | None, ...]:
    """A call with the file's attributes -> ONNX operators."""
    translation, defaults = _TRANSLATIONS[call.op]
    for key, value in call.attrs.items():
        if key not in defaults:
            raise call.unsupported(f"attribute {key}={value}")
        if not isinstance(value, type(defaults[key])):
            raise call.error(f"attribute {key!r} is of the wrong type")
    return finish(translation(replace(call, attrs={**defaults, **call.attrs})))


def _onnx(call: Call, what: str, op: str, *inputs: Node | None, **attrs: Attr) -> Node:
    """An ONNX operator that replaces a call, or feeds the replacement under a derived name."""
    name = f"{call.name}.{what}" if what else call.name
    result = finish(newest(Call(op, inputs, attrs, 1, 1, name), NEWEST))
    return result if isinstance(result, Node) else next(r for r in result if r is not None)


def _plus(call: Call, what: str, x: Node, bias: Node | None) -> Node:
    return x if bias is None else _onnx(call, what, "Add", x, bias)


@_contrib("Gelu")
def _gelu(call: Call) -> Result:
    return _onnx(call, "", "Gelu", call.need(0))


@_contrib("BiasGelu")
def _bias_gelu(call: Call) -> Result:
    return _onnx(call, "", "Gelu", _plus(call, "bias", call.need(0), call.need(1)))


@_contrib("FastGelu")
def _fast_gelu(call: Call) -> Result:
    x = _plus(call, "bias", call.need(0), call.input(1))
    return _onnx(call, "", "Gelu", x, approximate="tanh")


@_contrib("QuickGelu", alpha=1.702)
def _quick_gelu(call: Call) -> Result:
    return _onnx(call, "", "Swish", call.need(0), alpha=call.attrs["alpha"])


@_contrib("SimplifiedLayerNormalization", axis=-1, epsilon=1e-5, stash_type=1)
def _rms_norm(call: Call) -> Result:
    kept = {k: call.attrs[k] for k in ("axis", "epsilon", "stash_type")}
    return _onnx(call, "", "RMSNormalization", call.need(0), call.need(1), **kept)


@_contrib("SkipLayerNormalization", epsilon=1e-12)
def _skip_layer_norm(call: Call) -> Result:
    total = _plus(call, "bias", _plus(call, "sum", call.need(0), call.need(1)), call.input(4))
    epsilon = call.attrs["epsilon"]
    inputs = (total, call.need(2), call.input(3))
    normal = _onnx(call, "", "LayerNormalization", *inputs, epsilon=epsilon)
    return normal, None, None, total


@_contrib("SkipSimplifiedLayerNormalization", epsilon=1e-5)
def _skip_rms_norm(call: Call) -> Result:
    total = _plus(call, "bias", _plus(call, "sum", call.need(0), call.need(1)), call.input(3))
    epsilon = call.attrs["epsilon"]
    return (
        _onnx(call, "", "RMSNormalization", total, call.need(2), epsilon=epsilon),
        None,
        None,
        total,
    )


@_contrib("FusedMatMul", alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0)
def _fused_matmul(call: Call) -> Result:
    if call.get("transBatchA") or call.get("transBatchB"):
        raise call.unsupported("transposed batches")
    sides = []
    for index, key in enumerate(("transA", "transB")):
        x = call.need(index)
        if call.get(key) and x.type.rank > 1:
            order = (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)
            x = _onnx(call, key, "Transpose", x, perm=order)
        sides.append(x)
    if call.get("alpha") == 1.0:
        return _onnx(call, "", "MatMul", *sides)
    alpha = call.constant("alpha", call.attrs["alpha"], sides[0].dtype)
    return _onnx(call, "", "Mul", _onnx(call, "product", "MatMul", *sides), alpha)


@_contrib("FusedConv", activation="", activation_params=(), group=1, **_WINDOW)
def _fused_conv(call: Call) -> Result:
    """Conv, then the sum with an optional fourth input, then the activation."""
    attrs = {k: call.attrs[k] for k in ("group", *_WINDOW)}
    x = _onnx(call, "conv", "Conv", call.need(0), call.need(1), call.input(2), **attrs)
    given = call.attrs["activation_params"]
    params = [float(v) for v in given] if isinstance(given, tuple) else []
    return _activated(call, _plus(call, "sum", x, call.input(3)), params)


@_contrib(
    "FusedGemm",
    activation="",
    activation_alpha=0.0,
    activation_beta=0.0,
    alpha=1.0,
    beta=1.0,
    transA=0,
    transB=0,
)
def _fused_gemm(call: Call) -> Result:
    attrs = {k: call.attrs[k] for k in ("alpha", "beta", "transA", "transB")}
    x = _onnx(call, "gemm", "Gemm", call.need(0), call.need(1), call.input(2), **attrs)
    counts = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
    keys = counts.get(str(call.attrs["activation"]), ())
    return _activated(call, x, [call.real(f"activation_{key}") for key in keys])


def _activated(call: Call, x: Node, params: list[float]) -> Node:
    """The activation at the end of a fused operator."""
    op = str(call.attrs["activation"])
    if op in ("Relu", "Sigmoid", "Tanh") and not params:
        return _onnx(call, "", op, x)
    if op == "LeakyRelu" and len(params) == 1:
        return _onnx(call, "", op, x, alpha=params[0])
    if op == "HardSigmoid" and len(params) == 2:
        return _onnx(call, "", op, x, alpha=params[0], beta=params[1])
    if op == "Clip" and len(params) == 2:
        limits = (call.constant(f"limit{i}", v, x.dtype) for i, v in enumerate(params))
        return _onnx(call, "", op, x, *limits)
    raise call.unsupported(f"activation {op!r} with {len(params)} parameters")


@_contrib("MatMulNBits", K=0, N=0, accuracy_level=0, bits=4, block_size=0)
def _matmul_n_bits(call: Call) -> Result:
    """Weights packed [N, blocks, bytes] with one scale per block of each column; the zero point is
    the middle of the range by default. Translated to a blocked DequantizeLinear and a MatMul.
    """
    bits, block = call.number("bits"), call.number("block_size")
    columns, depth = call.number("N"), call.number("K")
    packed, points = call.need(1), call.input(3)
    if bits not in (4, 8) or call.input(4) is not None:
        raise call.unsupported(f"weights of {bits} bits, or reordered by g_idx")
    if not packed.is_constant or (points is not None and not points.is_constant):
        raise call.unsupported("weights that are not constant")
    if packed.dtype != "uint8" or min(block, columns, depth) < 1:
        raise call.error(f"weights {packed.type} in blocks of {block} for {depth}x{columns}")
    blocks = -(-depth // block)
    dtype = f"uint{bits}"
    weights = _unpacked(call, packed.array, (columns, blocks * block), dtype)[:, :depth]
    if points is None:
        zeros = np.full((columns, blocks), 1 << (bits - 1)).astype(numpy_dtype(dtype))
    elif points.dtype == "uint8":
        row = -(-blocks * bits // 8) * 8 // bits  # each column's zero points fill whole bytes
        zeros = _unpacked(call, points.array, (columns, row), dtype)[:, :blocks]
    else:
        raise call.unsupported(f"zero points of {points.dtype}")
    scales = _onnx(call, "scales", "Reshape", call.need(2), call.constant("s", [columns, blocks]))
    exact = _onnx(
        call,
        "exact",
        "DequantizeLinear",
        constant(weights, f"{call.name}.weights"),
        scales,
        constant(zeros, f"{call.name}.zeros"),
        axis=1,
        block_size=block,
    )
    transposed = _onnx(call, "transposed", "Transpose", exact, perm=(1, 0))
    bias = call.input(5)
    if bias is None:
        return _onnx(call, "", "MatMul", call.need(0), transposed)
    return _onnx(call, "", "Add", _onnx(call, "product", "MatMul", call.need(0), transposed), bias)


def _unpacked(call: Call, packed: Array, shape: tuple[int, int], dtype: str) -> Array:
    """Bytes -> 8-bit numbers, or 4-bit ones, low half first."""
    raw = packed.reshape(-1).view(np.uint8)
    values = raw if dtype == "uint8" else np.stack([raw & 15, raw >> 4], -1).reshape(-1)
    if values.size != shape[0] * shape[1]:
        raise call.error(f"{values.size} packed numbers where {shape[0] * shape[1]} are needed")
    return values.astype(numpy_dtype(dtype)).reshape(shape)


# Quantized: dequantize, compute, quantize. Later stages lower this to integer operators.


def _real(call: Call, what: str, first: int) -> Node:
    """Inputs x, scale, zero point -> the dequantized value."""
    x, scale, zero = call.need(first), call.need(first + 1), call.input(first + 2)
    return _onnx(call, what, "DequantizeLinear", x, scale, zero)


def _whole(call: Call, x: Node, first: int) -> Node:
    """A real value and inputs scale, zero point -> the quantized output."""
    return _onnx(call, "", "QuantizeLinear", x, call.need(first), call.input(first + 1))


@_contrib("QLinearAdd")
def _qlinear_add(call: Call) -> Result:
    return _whole(call, _onnx(call, "sum", "Add", _real(call, "a", 0), _real(call, "b", 3)), 6)


@_contrib("QLinearMul")
def _qlinear_mul(call: Call) -> Result:
    return _whole(call, _onnx(call, "product", "Mul", _real(call, "a", 0), _real(call, "b", 3)), 6)


@_contrib("QLinearSigmoid")
def _qlinear_sigmoid(call: Call) -> Result:
    return _whole(call, _onnx(call, "sigmoid", "Sigmoid", _real(call, "x", 0)), 3)


@_contrib("QLinearLeakyRelu", alpha=0.01)
def _qlinear_leaky_relu(call: Call) -> Result:
    alpha = call.attrs["alpha"]
    return _whole(call, _onnx(call, "leaky", "LeakyRelu", _real(call, "x", 0), alpha=alpha), 3)


@_contrib("QLinearSoftmax", axis=-1, opset=NEWEST)
def _qlinear_softmax(call: Call) -> Result:
    x = _real(call, "x", 0)
    inner = Call("Softmax", (x,), {"axis": call.attrs["axis"]}, 1, 1, f"{call.name}.softmax")
    result = finish(newest(inner, call.number("opset")))
    assert isinstance(result, Node)
    return _whole(call, result, 3)


@_contrib("QLinearGlobalAveragePool", channels_last=0)
def _qlinear_global_average_pool(call: Call) -> Result:
    if call.get("channels_last"):
        raise call.unsupported("channels_last=1")
    return _whole(call, _onnx(call, "mean", "GlobalAveragePool", _real(call, "x", 0)), 3)


@_contrib("QLinearAveragePool", ceil_mode=0, count_include_pad=0, channels_last=0, **_WINDOW)
def _qlinear_average_pool(call: Call) -> Result:
    if call.get("channels_last"):
        raise call.unsupported("channels_last=1")
    attrs = {k: call.attrs[k] for k in ("ceil_mode", "count_include_pad", *_WINDOW)}
    return _whole(call, _onnx(call, "mean", "AveragePool", _real(call, "x", 0), **attrs), 3)


@_contrib("QLinearConcat", axis=0)
def _qlinear_concat(call: Call) -> Result:
    parts = [_real(call, f"x{i}", i) for i in range(2, len(call.inputs), 3)]
    return _whole(call, _onnx(call, "concat", "Concat", *parts, axis=call.attrs["axis"]), 0)


@_contrib("QGemm", alpha=1.0, transA=0, transB=0)
def _qgemm(call: Call) -> Result:
    """The bias is in units of both scales' product; without an output scale the output is real."""
    a, b, bias = _real(call, "a", 0), _real_columns(call), call.input(6)
    attrs = {k: call.attrs[k] for k in ("alpha", "transA", "transB")}
    if bias is None:
        product = _onnx(call, "product", "Gemm", a, b, **attrs)
    else:
        alpha = call.constant("alpha", call.attrs["alpha"], "float32")
        step = _onnx(call, "step", "Mul", call.need(1), call.need(4))
        step = _onnx(call, "scaled", "Mul", step, alpha)
        real = _onnx(call, "real", "Cast", bias, to=1)
        real = _onnx(call, "bias", "Mul", real, step)
        product = _onnx(call, "product", "Gemm", a, b, real, **attrs)
    return product if call.input(7) is None else _whole(call, product, 7)


def _real_columns(call: Call) -> Node:
    """The dequantized weights, one scale per output column or per tensor."""
    columns = 0 if call.get("transB") else 1
    inputs = (call.need(3), call.need(4), call.input(5))
    return _onnx(call, "b", "DequantizeLinear", *inputs, axis=columns)


@_contrib("QuantizeLinear", axis=1, block_size=0)
def _quantize_linear(call: Call) -> Result:
    inputs = (call.need(0), call.need(1), call.input(2))
    return _onnx(call, "", "QuantizeLinear", *inputs, **call.attrs)


@_contrib("DequantizeLinear", axis=1, block_size=0)
def _dequantize_linear(call: Call) -> Result:
    inputs = (call.need(0), call.need(1), call.input(2))
    return _onnx(call, "", "DequantizeLinear", *inputs, **call.attrs)
