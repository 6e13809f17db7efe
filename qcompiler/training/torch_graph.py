"""A graph -> a differentiable function of torch tensors.

Elementwise operators evaluate their formula with torch's arithmetic; the others are written here.
Operators that need no gradient use the numpy meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node
from qcompiler.ops import OPERATORS
from qcompiler.ops.evaluate import meaning
from qcompiler.rewrite.matching import input_at, ints, perm_of

Tensor = Any
"""A torch.Tensor; torch may be missing where types are checked."""
Meaning = Callable[..., Any]


class TorchMath:
    """`ops.math.Math` on torch tensors. Rounding passes gradients unchanged (the straight-through
    estimator of Bengio, Leonard and Courville, 2013).
    """

    def max(self, a: Any, b: Any) -> Tensor:
        return torch.maximum(*_both(a, b))

    def min(self, a: Any, b: Any) -> Tensor:
        return torch.minimum(*_both(a, b))

    def clip(self, x: Tensor, low: Any, high: Any) -> Tensor:
        return self.min(self.max(x, low), high)

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        return torch.where(condition, *_both(a, b))

    def round(self, x: Tensor) -> Tensor:
        return x + (torch.round(x) - x).detach()

    def libm(self, name: str, x: Tensor) -> Tensor:
        function: Callable[[Tensor], Tensor] = getattr(torch, name)
        return function(x)

    def pow(self, x: Tensor, y: Any) -> Tensor:
        return torch.pow(x, y)

    def divide(self, a: Any, b: Any) -> Any:
        return a / b

    def is_nan(self, x: Tensor) -> Tensor:
        return torch.isnan(x)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        return x.to(getattr(torch, dtype))

    def __getattr__(self, name: str) -> Callable[[Tensor], Tensor]:
        if name not in ("abs", "floor", "ceil", "sqrt", "exp", "log", "tanh", "erf", "sin", "cos"):
            raise AttributeError(name)
        found: Callable[[Tensor], Tensor] = getattr(torch, name)
        return found


TORCH = TorchMath()


def _both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    like = a if isinstance(a, torch.Tensor) else b
    return tuple(
        v if isinstance(v, torch.Tensor) else torch.as_tensor(v, dtype=like.dtype) for v in (a, b)
    )


MEANINGS: dict[str, Meaning] = {}


def _means(*names: str) -> Callable[[Meaning], Meaning]:
    def register(function: Meaning) -> Meaning:
        MEANINGS.update(dict.fromkeys(names, function))
        return function

    return register


def run(graph: Graph, inputs: Mapping[str, Tensor], given: Mapping[Node, Tensor]) -> list[Tensor]:
    """Inputs by name -> the outputs, in order; `given` replaces nodes (trained weights)."""
    values: dict[Node, Any] = {}
    rounded = _rounded(graph)
    skipped = set(rounded.values())
    for node in graph.nodes:
        if node in skipped:
            continue
        if node in rounded:
            values[node] = _fake_quantized(rounded[node], values[rounded[node].operands[0]])
        elif node in given:
            values[node] = given[node]
        elif node.op == "input":
            values[node] = inputs[node.name]
        elif node.is_constant:
            values[node] = tensor_of(node.array)
        elif node.op == "item":
            values[node] = values[node.operands[0]][node.int("index")]
        else:
            values[node] = _value(node, [None if i is None else values[i] for i in node.inputs])
    return [values[o] for o in graph.outputs]


def tensor_of(array: Array) -> Tensor:
    """A constant's array -> a tensor of a dtype that torch computes in."""
    name = array.dtype.name
    if name in ("bfloat16", "int4", "uint4") or name.startswith("float8"):
        array = array.astype(np.float32 if "float" in name else np.int8)
    return torch.from_numpy(np.array(array))


def _value(node: Node, operands: Sequence[Any]) -> Any:
    if node.op in MEANINGS:
        return MEANINGS[node.op](node, *operands)
    formula = OPERATORS[node.op].formula
    if formula is not None and all(t.dtype.startswith("float") for t in node.types):
        attrs = {k: node.attrs[k] for k in OPERATORS[node.op].defaults}
        return formula(TORCH, *operands, **attrs)
    tensors = [v for v in operands if isinstance(v, torch.Tensor)]
    if any(t.requires_grad for t in tensors):
        raise Error(f"no gradient through {node.op}", where=node.name)
    arrays = tuple(None if v is None else v.detach().numpy() for v in operands)
    made = [tensor_of(a) for a in meaning(node, arrays)]
    return made[0] if len(made) == 1 else made


# Products.


@_means("Conv")
def _(node: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    padded = _padded(x, node.ints("pads"), 0.0)
    made: Tensor = function(
        padded, w, bias, node.ints("strides"), 0, node.ints("dilations"), node.int("group")
    )
    return made


@_means("MatMul")
def _(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@_means("Gemm")
def _(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.transpose(0, 1) if node.int("transA") else a
    b = b.transpose(0, 1) if node.int("transB") else b
    made = node.float("alpha") * (a @ b)
    return made if c is None else made + node.float("beta") * c


@_means("Attention")
def _(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scale = node.attrs.get("scale")
    causal = bool(node.attrs.get("is_causal"))
    if q.ndim != 4 or len(node.types) != 1 or len(node.operands) > 4:
        raise Error("no gradient through this form of Attention", where=node.name)
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=None if scale is None else node.float("scale")
    )


# Windows.


def _padded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    """Pad the last axes by ONNX's pads: all begins, then all ends."""
    half = len(pads) // 2
    order = [p for axis in reversed(range(half)) for p in (pads[axis], pads[half + axis])]
    return F.pad(x, order, value=value) if any(order) else x


@_means("MaxPool")
def _(node: Node, x: Tensor) -> Tensor:
    rank = x.ndim - 2
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    padded = _padded(x, node.ints("pads"), float("-inf"))
    made: Tensor = function(
        padded, node.ints("kernel_shape"), node.ints("strides"), 0, node.ints("dilations")
    )
    return made


@_means("AveragePool")
def _(node: Node, x: Tensor) -> Tensor:
    rank = x.ndim - 2
    function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    kernel, strides, pads = (node.ints(k) for k in ("kernel_shape", "strides", "pads"))
    made: Tensor = function(_padded(x, pads, 0.0), kernel, strides)
    if any(pads) and not node.int("count_include_pad"):
        ones = _padded(torch.ones_like(x[:1, :1]), pads, 0.0)
        made = made / function(ones, kernel, strides)
    return made


@_means("GlobalAveragePool")
def _(node: Node, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@_means("GlobalMaxPool")
def _(node: Node, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


# Along axes.


def _axes(node: Node, rank: int) -> tuple[int, ...]:
    found = ints(input_at(node, 1))
    if found is None and input_at(node, 1) is not None:
        raise Error(f"no gradient through {node.op} with axes told at run time", where=node.name)
    return tuple(a % rank for a in found) if found else tuple(range(rank))


@_means("ReduceMean")
def _(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.mean(_axes(node, x.ndim), keepdim=bool(node.int("keepdims")))


@_means("ReduceSum")
def _(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.sum(_axes(node, x.ndim), keepdim=bool(node.int("keepdims")))


@_means("ReduceMax")
def _(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.amax(_axes(node, x.ndim), keepdim=bool(node.int("keepdims")))


@_means("Softmax")
def _(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.int("axis"))


@_means("LogSoftmax")
def _(node: Node, x: Tensor) -> Tensor:
    return torch.log_softmax(x, node.int("axis"))


@_means("LayerNormalization")
def _(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = tuple(range(node.int("axis") % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    made = centred * torch.rsqrt(variance + node.float("epsilon")) * scale
    return made if bias is None else made + bias


@_means("RMSNormalization")
def _(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(node.int("axis") % x.ndim, x.ndim))
    square = x.square().mean(axes, keepdim=True)
    return x * torch.rsqrt(square + node.float("epsilon")) * scale


# Data movement; the compiler has already inferred all shapes and positions.


@_means("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _(node: Node, x: Tensor, *_: Tensor) -> Tensor:
    return x.reshape(node.type.dims)


@_means("Identity", "Dropout")
def _(node: Node, x: Tensor, *_: Tensor) -> Tensor:
    return x


@_means("Transpose")
def _(node: Node, x: Tensor) -> Tensor:
    return x.permute(perm_of(node))


@_means("Expand")
def _(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(node.type.dims)


@_means("Concat")
def _(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, node.int("axis"))


@_means("Split")
def _(node: Node, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    axis = node.int("axis")
    return list(torch.split(x, [t.dims[axis] for t in node.types], axis))


@_means("Slice")
def _(node: Node, x: Tensor, *_: Tensor) -> Tensor:
    starts, ends, axes, steps = (ints(input_at(node, i)) for i in range(1, 5))
    if starts is None or ends is None:
        raise Error("no gradient through a Slice told at run time", where=node.name)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[i] if axes else i
        places = range(x.shape[axis])[start : end : steps[i] if steps else 1]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


@_means("Gather")
def _(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.int("axis") % x.ndim
    flat = torch.where(indices < 0, indices + x.shape[axis], indices).reshape(-1).long()
    made = x.index_select(axis, flat)
    return made.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@_means("Pad")
def _(node: Node, x: Tensor, pads: Tensor, value: Tensor | None = None, *_: Tensor) -> Tensor:
    found = ints(input_at(node, 1))
    if found is None or node.str("mode") != "constant" or input_at(node, 3) is not None:
        raise Error("no gradient through this form of Pad", where=node.name)
    return _padded(x, found, 0.0 if value is None else float(value))


# Quantization, by straight-through estimators: rounding has gradient 1, clipping 0.


def _rounded(graph: Graph) -> dict[Node, Node]:
    """A DequantizeLinear -> its QuantizeLinear, if nothing else reads that and there is one scale:
    torch has one operator for both.
    """
    found = {}
    for node in graph.nodes:
        q = node.operands[0] if node.op == "DequantizeLinear" else None
        if q is None or q.op != "QuantizeLinear" or graph.readers[q] != 1:
            continue
        whole = q.dtype in ("int8", "uint8") and len(q.operands) == 3 == len(node.operands)
        numbers = node.operands[1:]
        same = all(a is b for a, b in zip(q.operands[1:], numbers, strict=True)) if whole else False
        if same and all(i.is_constant and i.array.size == 1 for i in numbers):
            found[node] = q
    return found


def _fake_quantized(node: Node, x: Tensor) -> Tensor:
    """A QuantizeLinear and its DequantizeLinear."""
    info = np.iinfo(node.dtype)
    scale, zero = (i.array.reshape(()).item() for i in node.operands[1:])
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, int(info.min), int(info.max))


@_means("QuantizeLinear")
def _(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if "int" not in node.dtype or node.int("block_size"):
        raise Error(f"no gradient through a quantization to {node.dtype}", where=node.name)
    info = np.iinfo(node.dtype)
    step, shift = (_along(node, v, x) for v in (scale, zero))
    whole = TORCH.round(x / step) + shift
    return torch.clamp(whole, int(info.min), int(info.max))


@_means("DequantizeLinear")
def _(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    step, shift = (_along(node, v, x) for v in (scale, zero))
    return (x.to(torch.float32) - shift) * step


def _along(node: Node, values: Tensor | None, x: Tensor) -> Any:
    """[] or [C] -> a shape that broadcasts with x along the node's axis."""
    if values is None:
        return 0.0
    values = values.to(torch.float32)
    if values.ndim != 1:
        return values
    shape = [1] * x.ndim
    shape[node.int("axis")] = -1
    return values.reshape(shape)
