"""Sums of products: convolutions and matrix products.

8-bit integers are multiplied in float64, where their sums are exact (numpy's integer matmul is
slow), and wrap to int32 at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type, numpy_dtype
from qcompiler.ops.equal import note
from qcompiler.ops.registry import (
    Numbers,
    broadcast,
    fresh,
    one_dtype,
    operator,
    optional,
    required,
    typed,
)
from qcompiler.ops.shapes import agree, need_floats, need_rank, need_shape, unite
from qcompiler.ops.window import Ints, Window

_WINDOW = {
    "auto_pad": "NOTSET",
    "dilations": None,
    "group": 1,
    "kernel_shape": None,
    "pads": None,
    "strides": None,
}
_FEW_CHANNELS = 16
"""Below this many channels, the filter positions are gathered into one row (im2col)."""

_BYTES = ("uint8", "int8")
_SUMS = {"float16": "float32", "bfloat16": "float32", "uint8": "float64", "int8": "float64"}
"""Accumulator dtype for each operand dtype."""


def sums_of(*dtypes: str) -> str:
    """The accumulator dtype for products of these dtypes."""
    return str(np.result_type(*(_SUMS.get(d, d) for d in dtypes)))


def wrapped(sums: Numbers, dtype: str) -> Numbers:
    """Cast sums to the output's dtype; integers wrap."""
    exact = sums.astype(np.int64) if dtype == "int32" and sums.dtype.kind == "f" else sums
    return exact.astype(numpy_dtype(dtype))


def multiply(a: Numbers, b: Numbers) -> Numbers:
    """numpy.matmul in the dtype given by `sums_of`."""
    dtype = sums_of(a.dtype.name, b.dtype.name)
    product: Numbers = np.matmul(a.astype(dtype, copy=False), b.astype(dtype, copy=False))
    return product


def convolve(x: Numbers, w: Numbers, window: Window, group: int, pad_value: int) -> Numbers:
    """x[N,*S,C], w[*K,C/group,O] -> sums[N,*S',O], one matrix product per filter position."""
    counts = numbers(window.outputs(x.shape[1:-1]))
    dtype = sums_of(x.dtype.name, w.dtype.name)
    x = window.pad(x, counts, pad_value).astype(dtype, copy=False)
    w = w.astype(dtype, copy=False)
    if w.shape[-2] == 1:
        return _depthwise(x, w, window, group, counts)
    if group == 1 and w.shape[-2] < _FEW_CHANNELS:
        made = [_gathered(x[i : i + 1], w, window, counts) for i in range(len(x))]
        return np.reshape(made, (len(x), *counts, w.shape[-1]))
    return _grouped(x, w, window, group, counts)


def _depthwise(x: Numbers, w: Numbers, window: Window, group: int, counts: Ints) -> Numbers:
    """One channel per group."""
    sums = np.zeros((len(x), *counts, group, w.shape[-1] // group), x.dtype)
    for tap, weights in zip(
        window.taps(x, counts), w.reshape(-1, group, w.shape[-1] // group), strict=True
    ):
        sums += tap[..., None] * weights
    return sums.reshape(len(x), *counts, -1)


def _gathered(x: Numbers, w: Numbers, window: Window, counts: Ints) -> Numbers:
    """Gather each window into one row (im2col)."""
    rows = np.concatenate(list(window.taps(x, counts)), -1)
    product: Numbers = rows @ w.reshape(-1, w.shape[-1])
    return product


def _grouped(x: Numbers, w: Numbers, window: Window, group: int, counts: Ints) -> Numbers:
    """Groups as the leading dimension of a batched product."""
    inputs, batch = w.shape[-2], len(x)
    x = np.moveaxis(x.reshape(*x.shape[:-1], group, inputs), -2, 0)
    w = np.moveaxis(w.reshape(-1, inputs, group, w.shape[-1] // group), -2, 1)
    sums = np.zeros((group, batch * prod(counts), w.shape[-1]), x.dtype)
    for tap, weights in zip(window.taps(x, counts, first=2), w, strict=True):
        sums += tap.reshape(group, -1, inputs) @ weights
    return np.moveaxis(sums, 0, 1).reshape(batch, *counts, -1)


def numbers(dims: Sequence[Dim]) -> Ints:
    """The dimensions of an existing array, as integers."""
    return tuple(int(d) for d in dims)


def check_channels(channels: Dim, each: Dim, outputs: Dim, group: int) -> None:
    """Raise Error unless `group` divides the channels and the weights match them."""
    if group < 1 or (isinstance(outputs, int) and outputs % group):
        raise Error(f"{group} groups do not divide {outputs} output channels")
    if isinstance(channels, int) and channels % group:
        raise Error(f"{group} groups do not divide {channels} channels")
    if isinstance(channels, str) and isinstance(each, int):
        note(channels, each * group)
    if isinstance(channels, int) and not agree(channels // group, each):
        raise Error(f"weights for {each} channels per group, but there are {channels} in {group}")


def last(x: Numbers) -> Numbers:
    """Channels second -> channels last."""
    return np.moveaxis(x, 1, -1)


def second(x: Numbers) -> Numbers:
    """Channels last -> channels second."""
    return np.moveaxis(x, -1, 1)


def conv_shape(node: Node, x: Type, w: Type, bias: Node | None = None) -> tuple[Dim, ...]:
    """The shape of an ONNX convolution of x[N,C,*S] by w[O,C/group,*K]."""
    if x.rank < 3 or w.rank != x.rank:
        raise Error(f"weights {w} do not fit the input {x}")
    check_channels(x.shape[1], w.shape[1], w.shape[0], node.int("group"))
    need_shape(bias, (w.shape[0],), "bias")
    window = Window.of(node, x.shape[2:], w.shape[2:])
    return (x.shape[0], w.shape[0], *window.outputs(x.shape[2:]))


def conv_sums(node: Node, x: Numbers, w: Numbers, pad_value: int = 0) -> Numbers:
    """x[N,C,*S], w[O,C/group,*K] -> the sums, channels last."""
    window = Window.of(node, x.shape[2:], w.shape[2:])
    kernel = np.moveaxis(w, (0, 1), (-1, -2))
    return convolve(last(x), kernel, window, node.int("group"), pad_value)


@operator("Conv", **_WINDOW)
def conv(node: Node, x: Numbers, w: Numbers, b: Numbers | None = None) -> Numbers:
    sums = conv_sums(node, x, w)
    return second(sums if b is None else sums + b.astype(sums.dtype)).astype(x.dtype)


@typed(conv)
def _(node: Node) -> Type:
    x, w = node.operands[:2]
    need_floats(node)
    return Type(one_dtype(node), conv_shape(node, x.type, w.type, optional(node, 2)))


@operator("ConvTranspose", **_WINDOW, output_padding=None, output_shape=None)
def conv_transpose(node: Node, x: Numbers, w: Numbers, b: Numbers | None = None) -> Numbers:
    """Every input adds a scaled filter to the outputs around it; the padding is cropped."""
    group = node.int("group")
    window, outputs = transposed(node, x.shape[2:], w.shape[2:])
    counts, sizes = x.shape[2:], numbers(outputs)
    dtype = sums_of(x.dtype.name)
    begins = [p[0] for p in window.pads if p is not None]
    spans = zip(counts, window.strides, window.reach, begins, sizes, strict=True)
    full = [max((n - 1) * s + r, b + size) for n, s, r, b, size in spans]
    inputs, each = w.shape[0] // group, w.shape[1]
    rows = np.moveaxis(last(x).reshape(-1, group, inputs), 1, 0).astype(dtype)
    kernel = w.reshape(group, inputs, each, -1).astype(dtype)
    total = np.zeros((len(x), *full, group * each), dtype)
    for position, seen in enumerate(window.taps(total, counts)):
        products = rows @ kernel[..., position]
        seen += np.moveaxis(products, 0, 1).reshape(seen.shape)
    cut = (slice(b, b + size) for b, size in zip(begins, sizes, strict=True))
    total = second(total[(slice(None), *cut)])
    bias = 0 if b is None else b.astype(dtype).reshape(-1, *[1] * len(sizes))
    return np.asarray(total + bias).astype(x.dtype)


def transposed(
    node: Node, sizes: Sequence[Dim], kernel: Sequence[Dim]
) -> tuple[Window, tuple[Dim, ...]]:
    """(The window over the output, the output's spatial sizes)."""
    rank = len(sizes)
    window = Window.of(node, ["?"] * rank, kernel)
    added = node.ints("output_padding") if node.attrs["output_padding"] else (0,) * rank
    wanted = node.ints("output_shape") if node.attrs["output_shape"] else None
    if len(added) != rank or min(added) < 0 or (wanted is not None and len(wanted) != rank):
        raise Error(f"output_padding or output_shape does not fit {rank} dimensions")
    pads, outputs = list(window.pads), [fresh() if wanted is None else w for w in wanted or sizes]
    for i, (size, stride) in enumerate(zip(sizes, window.strides, strict=True)):
        fixed = pads[i]
        plain = wanted is None and not node.str("auto_pad").startswith("SAME")
        if isinstance(size, str) and fixed is not None and plain and size != "?":
            rest = window.reach[i] + added[i] - sum(fixed) - stride
            outputs[i] = settled(Size.of(size) * stride + rest)
        if not isinstance(size, int):
            continue
        whole = (size - 1) * stride + window.reach[i] + added[i]
        if fixed is not None and plain:
            outputs[i] = whole - sum(fixed)
            continue
        output = size * stride if wanted is None else wanted[i]
        over = max(whole - output, 0)
        half = (over // 2, over - over // 2)
        pads[i] = half if node.str("auto_pad") == "SAME_UPPER" else half[::-1]
        outputs[i] = output
    return replace(window, pads=tuple(pads)), tuple(outputs)


@typed(conv_transpose)
def _(node: Node) -> Type:
    x, w = node.operands[:2]
    need_floats(node)
    group = node.int("group")
    if x.type.rank < 3 or w.type.rank != x.type.rank:
        raise Error(f"weights {w.type} do not fit the input {x.type}")
    if group < 1 or not agree(x.shape[1], w.shape[0]):
        raise Error(f"weights {w.type} do not fit the input {x.type} in {group} groups")
    if isinstance(w.shape[0], int) and w.shape[0] % group:
        raise Error(f"{group} groups do not divide {w.shape[0]} channels")
    channels = settled(Size.of(w.shape[1]) * group)
    need_shape(optional(node, 2), (channels,), "bias")
    _, outputs = transposed(node, x.shape[2:], w.shape[2:])
    return Type(one_dtype(node), (x.shape[0], channels, *outputs))


@operator(
    "conv",
    strides=None,
    pads=None,
    dilations=None,
    group=1,
    pad_value=0,
    density=1.0,
    compact=0,
)
def conv_channels_last(node: Node, x: Numbers, w: Numbers) -> Numbers:
    """x[N,*S,C], w[*K,C/group,O] -> [N,*S',O]; padding reads as `pad_value`.

    `density` and `compact` do not change the result. They tell kernels what fraction of the
    weights' blocks is nonzero, and (1) not to expand the weights.
    """
    window = Window.of(node, x.shape[1:-1], w.shape[:-2])
    sums = convolve(x, w, window, node.int("group"), node.int("pad_value"))
    return wrapped(sums, node.dtype)


@typed(conv_channels_last)
def _(node: Node) -> Type:
    x, w = (i.type for i in node.operands)
    if x.rank < 3 or w.rank != x.rank:
        raise Error(f"weights {w} do not fit the input {x}")
    check_channels(x.shape[-1], w.shape[-2], w.shape[-1], node.int("group"))
    window = Window.of(node, x.shape[1:-1], w.shape[:-2])
    counts = window.outputs(x.shape[1:-1])
    return Type(_sum_dtype(x.dtype, w.dtype), (x.shape[0], *counts, w.shape[-1]))


def _sum_dtype(a: str, b: str) -> str:
    """The accumulator dtype of the compiler's own products: exact int32 for bytes, float32 for
    floats, else the operands' own (integers wrap around).
    """
    if a in _BYTES and b in _BYTES:
        return "int32"
    if a == b and a in ("float32", "bfloat16", "float16"):
        return "float32"
    if a == b and a in ("float64", "int32", "int64", "uint32", "uint64"):
        return a
    raise Error(f"no product of {a} and {b}")


def product_shape(a: Type, b: Type) -> tuple[Dim, ...]:
    """The shape of numpy.matmul."""
    if not a.rank or not b.rank:
        raise Error(f"{a} and {b} are not matrices")
    if not agree(a.shape[-1], b.shape[-2 if b.rank > 1 else 0]):
        raise Error(f"{a} and {b} do not multiply")
    rows = a.shape[-2:-1] if a.rank > 1 else ()
    columns = b.shape[-1:] if b.rank > 1 else ()
    return (*broadcast(a.shape[:-2], b.shape[:-2]), *rows, *columns)


@operator("MatMul")
def mat_mul(node: Node, a: Numbers, b: Numbers) -> Numbers:
    return wrapped(multiply(a, b), node.dtype)


@typed(mat_mul)
def _(node: Node) -> Type:
    a, b = node.operands
    return Type(one_dtype(node), product_shape(a.type, b.type))


@operator("matmul", transpose_b=0, density=1.0)
def matmul(node: Node, a: Numbers, b: Numbers) -> Numbers:
    """a[...,M,K] times b[...,K,N] (transpose_b: b[...,N,K]); `density` as in conv."""
    return wrapped(
        multiply(a, np.swapaxes(b, -1, -2) if node.int("transpose_b") else b), node.dtype
    )


@typed(matmul)
def _(node: Node) -> Type:
    a, b = (need_rank(i, 2, "operand") for i in node.operands)
    if node.int("transpose_b"):
        b = Type(b.dtype, (*b.shape[:-2], b.shape[-1], b.shape[-2]))
    return Type(_sum_dtype(a.dtype, b.dtype), product_shape(a, b))


@operator("Gemm", alpha=1.0, beta=1.0, transA=0, transB=0)
def gemm(node: Node, a: Numbers, b: Numbers, c: Numbers | None = None) -> Numbers:
    """alpha * A' B' + beta * C."""
    product = multiply(a.T if node.int("transA") else a, b.T if node.int("transB") else b)
    number = product.dtype.type
    total = product if node.float("alpha") == 1 else product * number(node.float("alpha"))
    if c is not None:
        total = total + c.astype(product.dtype) * number(node.float("beta"))
    return total.astype(a.dtype)


@typed(gemm)
def _(node: Node) -> Type:
    a, b = (i.shape for i in node.operands[:2])
    if len(a) != 2 or len(b) != 2:
        raise Error("Gemm multiplies matrices of two dimensions")
    a, b = a[:: -1 if node.int("transA") else 1], b[:: -1 if node.int("transB") else 1]
    if not agree(a[1], b[0]):
        raise Error(f"{a} and {b} do not multiply")
    c = optional(node, 2)
    if c is not None:
        wide = broadcast((a[0], b[1]), c.shape)
        if len(wide) > 2 or not all(map(agree, wide, (a[0], b[1]))):
            raise Error(f"{c.type} does not broadcast to the product")
    return Type(one_dtype(node), (a[0], b[1]))


@operator("Einsum", equation=required())
def einsum(node: Node, first: Numbers, *rest: Numbers) -> Numbers:
    xs = (first, *rest)
    wide = [x.astype(_SUMS.get(x.dtype.name, x.dtype)) for x in xs]
    sums = np.einsum(_compact(node), *wide, optimize=len(xs) > 1)
    return np.asarray(sums).astype(xs[0].dtype)


def _compact(node: Node) -> str:
    return "".join(node.str("equation").split())


@typed(einsum)
def _(node: Node) -> Type:
    left, arrow, right = _compact(node).partition("->")
    terms = left.split(",")
    if len(terms) != len(node.operands):
        raise Error(f"{left!r} has {len(terms)} terms, but there are {len(node.operands)} inputs")
    sizes: dict[str, Dim] = {}
    stacked: tuple[Dim, ...] = ()
    for term, x in zip(terms, node.operands, strict=True):
        before, dots, after = term.partition("...")
        labels, spare = before + after, x.type.rank - len(before + after)
        if spare < 0 or (spare and not dots) or (labels and not labels.isalpha()):
            raise Error(f"{term!r} does not fit {x.type}")
        stacked = broadcast(stacked, x.shape[len(before) : len(before) + spare])
        dims = (*x.shape[: len(before)], *x.shape[len(before) + spare :])
        own: dict[str, Dim] = {}
        for label, dim in zip(labels, dims, strict=True):
            own[label] = unite(own.get(label, dim), dim)
        for label, dim in own.items():
            (sizes[label],) = broadcast((sizes.get(label, dim),), (dim,))
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        right = "..." * ("..." in left) + "".join(once)
    before, dots, after = right.partition("...")
    if len(set(before + after)) < len(before + after):
        raise Error(f"{right!r} has a label twice")
    if not set(before + after) <= set(sizes):
        raise Error(f"{right!r} has labels that no input has")
    made = (*(sizes[c] for c in before), *(stacked if dots else ()), *(sizes[c] for c in after))
    return Type(one_dtype(node), made)
