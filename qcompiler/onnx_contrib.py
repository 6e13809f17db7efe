"""Operators of onnxruntime's own domain, com.microsoft -> ONNX's, where the translation is plain.

onnxruntime's optimizer and quantizer put them into the models they save. What has no short
translation (attention with caches, packed 4-bit weights) is reported as not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from qcompiler.ir import Attr, Node
from qcompiler.onnx_call import Call, Result, finish, newest
from qcompiler.onnx_schema import NEWEST, schema

DOMAIN = "com.microsoft"

Translation = Callable[[Call], Result]
_TRANSLATIONS: dict[str, tuple[Translation, Mapping[str, Attr]]] = {}
_IN_ONNX_DOMAIN = ("SimplifiedLayerNormalization",)
"""What onnxruntime puts into ONNX's own domain."""
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
    """Whether an operator is one of onnxruntime's own, and has a translation."""
    if domain == "" and op in _IN_ONNX_DOMAIN:
        return schema(op, opsets.get("", NEWEST)) is None
    return domain == DOMAIN and op in _TRANSLATIONS


def translate(call: Call) -> Node | tuple[Node | None, ...]:
    """A call with the attributes that the file gives -> ONNX operators."""
    translation, defaults = _TRANSLATIONS[call.op]
    for key, value in call.attrs.items():
        if key not in defaults:
            raise call.unsupported(f"attribute {key}={value}")
        if not isinstance(value, type(defaults[key])):
            raise call.error(f"attribute {key!r} is of the wrong type")
    return finish(translation(replace(call, attrs={**defaults, **call.attrs})))


def _onnx(call: Call, what: str, op: str, *inputs: Node | None, **attrs: Attr) -> Node:
    """An ONNX operator in place of a call, or before it under a name of its own."""
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
    """Conv, then the sum with a fourth input if there is one, then the activation."""
    attrs = {k: call.attrs[k] for k in ("group", *_WINDOW)}
    x = _onnx(call, "conv", "Conv", call.need(0), call.need(1), call.input(2), **attrs)
    x = _plus(call, "sum", x, call.input(3))
    activation, given = call.attrs["activation"], call.attrs["activation_params"]
    params = [float(v) for v in given] if isinstance(given, tuple) else []
    if activation in ("Relu", "Sigmoid", "Tanh") and not params:
        return _onnx(call, "", str(activation), x)
    if activation == "LeakyRelu" and len(params) == 1:
        return _onnx(call, "", "LeakyRelu", x, alpha=params[0])
    if activation == "HardSigmoid" and len(params) == 2:
        return _onnx(call, "", "HardSigmoid", x, alpha=params[0], beta=params[1])
    if activation == "Clip" and len(params) == 2:
        low = call.constant("low", params[0], x.dtype)
        high = call.constant("high", params[1], x.dtype)
        return _onnx(call, "", "Clip", x, low, high)
    raise call.unsupported(f"activation {activation!r} of {len(params)} numbers")


# Quantized: dequantize, compute, quantize. The quantize and layout stages make integers of it.


def _real(call: Call, what: str, first: int) -> Node:
    """Inputs x, scale, zero point -> the real number."""
    x, scale, zero = call.need(first), call.need(first + 1), call.input(first + 2)
    return _onnx(call, what, "DequantizeLinear", x, scale, zero)


def _whole(call: Call, x: Node, first: int) -> Node:
    """A real number and inputs scale, zero point -> the quantized output."""
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
    """The bias counts in steps of both scales; without an output scale the output stays real."""
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
    """The weights, one scale for each output column or one for all."""
    columns = 0 if call.get("transB") else 1
    inputs = (call.need(3), call.need(4), call.input(5))
    return _onnx(call, "b", "DequantizeLinear", *inputs, axis=columns)


@_contrib("QuantizeLinear", axis=1)
def _quantize_linear(call: Call) -> Result:
    inputs = (call.need(0), call.need(1), call.input(2))
    return _onnx(call, "", "QuantizeLinear", *inputs, axis=call.attrs["axis"])


@_contrib("DequantizeLinear", axis=1)
def _dequantize_linear(call: Call) -> Result:
    inputs = (call.need(0), call.need(1), call.input(2))
    return _onnx(call, "", "DequantizeLinear", *inputs, axis=call.attrs["axis"])
