"""Steps of products: matrices, convolutions of every kind, weights that are inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompiler.errors import Error

from .arithmetic import activation
from .builder import LENGTHS, Builder, Value
from .moves import ranked


def follow(b: Builder, y: Value) -> Value:
    """What often comes after a product: an activation, a factor, a sum with what has its shape."""
    kind = b.between(0, 5)
    if kind == 0:
        return activation(b, y, ("Relu", "Clip", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh"))
    if kind == 1:
        return b.add("Add", y, b.pick(lambda v: v.shape == y.shape))
    if kind == 2:
        c = b.numbers(y.shape[1], *[1] * (y.rank - 2)) if y.rank > 2 else b.numbers(y.shape[-1])
        return b.add(b.choose(("Add", "Mul")), y, b.constant(c))
    return y


def weight(b: Builder, shape: tuple[int, ...], fan: int) -> Value:
    """A constant, now and then the one of an earlier product, or an input of the model."""
    scale = max(fan, 1) ** -0.5
    if b.chance(0.08):
        return b.input(shape, scale=scale)
    same = [v for v in b.shared if v.shape == shape]
    if same and b.chance(0.4):
        return b.choose(same)
    b.shared.append(b.constant(b.numbers(*shape, scale=scale)))
    return b.shared[-1]


def matmul(b: Builder) -> None:
    x = b.pick(lambda v: 0 < v.rank < 5)
    depth, width = x.shape[-1], b.choose(LENGTHS)
    lead = x.shape[:-2] if x.rank > 2 and b.chance(0.2) else ()
    w = weight(b, (*lead, depth, width), depth)
    follow(b, b.add("MatMul", x, w))


def constant_left(b: Builder) -> None:
    x = ranked(b, 2, 4)
    depth, rows = x.shape[-2], b.choose(LENGTHS)
    follow(b, b.add("MatMul", weight(b, (rows, depth), depth), x))


def with_itself(b: Builder) -> None:
    x = ranked(b, 2, 4)
    perm = list(range(x.rank))
    perm[-1], perm[-2] = perm[-2], perm[-1]
    y = b.add("MatMul", x, b.add("Transpose", x, perm=perm))
    b.add("Mul", y, b.constant(np.float32(max(x.shape[-1], 1) ** -0.5)))


def two_values(b: Builder) -> None:
    x = ranked(b, 2, 4)
    y = b.pick(lambda v: v.rank in (2, x.rank) and v.shape[-2] == x.shape[-1])
    z = b.add("MatMul", x, y)
    b.add("Mul", z, b.constant(np.float32(max(x.shape[-1], 1) ** -0.5)))


def gemm(b: Builder) -> None:
    x = ranked(b, 2, 2)
    ta, tb = b.choose((0, 0, 1)), b.choose((0, 1))
    rows, depth = x.shape[::-1] if ta else x.shape
    width = b.choose(LENGTHS)
    w = weight(b, (width, depth) if tb else (depth, width), depth)
    attrs = {"alpha": float(b.choose((1, 1, 0.5))), "beta": float(b.choose((1, 1, 2)))}
    sides = b.choose(((width,), (1, width), (1,), (), (rows, width), None))
    c = () if sides is None else (b.constant(b.numbers(*sides)),)
    follow(b, b.add("Gemm", x, w, *c, transA=ta, transB=tb, **attrs))


def einsum(b: Builder) -> None:
    x = ranked(b, 2, 3)
    if x.rank == 2:
        w = weight(b, (x.shape[1], b.choose((3, 8, 17))), x.shape[1])
        b.add("Einsum", x, w, equation=b.choose(("ij,jk->ik", "ij,jk->ki")))
    else:
        w = weight(b, (x.shape[2], b.choose((3, 8, 17))), x.shape[2])
        b.add("Einsum", x, w, equation=b.choose(("bij,jk->bik", "bij,jk->bki")))


def windows(b: Builder, spatial: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Kernel, strides, dilations and pads for axes of these lengths."""
    each = range(spatial)
    kernel = [b.choose((1, 1, 2, 3, 3, 3, 5)) for _ in each]
    if b.chance(0.4):
        kernel = [b.choose((1, 3))] * spatial
    dilations = [b.choose((1, 1, 1, 2, 3)) if b.chance(0.3) else 1 for _ in each]
    strides = [b.choose((1, 1, 2, 3))] * spatial
    pads = []
    for k, d in zip(kernel, dilations, strict=True):
        extent = (k - 1) * d + 1
        pads.append(b.choose(((0, 0), (extent // 2, extent // 2), (1, 0), (0, 2))))
    for size, k, d, (before, after) in zip(sizes, kernel, dilations, pads, strict=True):
        if size + before + after < (k - 1) * d + 1:
            raise Error("the window does not fit")
    flat = [p[0] for p in pads] + [p[1] for p in pads]
    return {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": flat}


def conv(b: Builder) -> None:
    x = ranked(b, 3, 5)
    channels, spatial = x.shape[1], x.rank - 2
    attrs = windows(b, spatial, x.shape[2:])
    group = b.choose(
        [g for g in (1, 1, 1, 2, 3, 4, max(channels, 1), max(channels, 1)) if channels % g == 0]
    )
    outputs = group * b.choose((1, 1, 2, 3, 5, 8, 16, 17))
    if outputs > 96:
        raise Error("too many channels")
    each = channels // group
    fan = each * int(np.prod(attrs["kernel_shape"]))
    w = weight(b, (outputs, each, *attrs["kernel_shape"]), fan)
    bias = (b.constant(b.numbers(outputs)),) if b.chance(0.6) else ()
    follow(b, b.add("Conv", x, w, *bias, group=group, **attrs))


def equal_convs(b: Builder) -> None:
    """Convolutions of one shape in a row, each with its own weights, bias and end."""
    x = b.pick(lambda v: v.rank == 4)
    channels, k = x.shape[1], b.choose((1, 3))
    group = max(channels, 1) if b.chance(0.3) else 1
    for _ in range(b.between(2, 4)):
        fan = channels // group * k * k
        w = b.constant(b.numbers(channels, channels // group, k, k, scale=max(fan, 1) ** -0.5))
        bias = (b.constant(b.numbers(channels)),) if b.chance(0.8) else ()
        y = b.add("Conv", x, w, *bias, pads=[k // 2] * 4, group=group)
        kind = b.between(0, 3)
        if kind == 0:
            y = b.add("Clip", y, b.constant(np.float32(0)), b.constant(np.float32(b.between(1, 6))))
        elif kind == 1:
            y = b.add("PRelu", y, b.constant(b.numbers(channels, 1, 1)))
        elif kind == 2:
            y = b.add("Relu", y)
        x = b.add("Add", x, y) if b.chance(0.3) else y


def transposed_conv(b: Builder) -> None:
    x = ranked(b, 3, 4)
    channels, spatial = x.shape[1], x.rank - 2
    attrs = windows(b, spatial, tuple(99 for _ in range(spatial)))
    group = b.choose([g for g in (1, 1, 2, max(channels, 1)) if channels % g == 0])
    each = b.choose((1, 2, 3, 8))
    kernel, strides = attrs["kernel_shape"], attrs["strides"]
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, attrs["dilations"], strict=True)]
    attrs["pads"] = [min(p, e - 1) for p, e in zip(attrs["pads"], extents * 2, strict=True)]
    if b.chance(0.3):
        attrs["output_padding"] = [b.between(0, s - 1) for s in strides]
    w = weight(b, (channels, each, *kernel), channels // group * int(np.prod(kernel)))
    bias = (b.constant(b.numbers(each * group)),) if b.chance(0.5) else ()
    follow(b, b.add("ConvTranspose", x, w, *bias, group=group, **attrs))


def batch_norm(b: Builder) -> None:
    x = ranked(b, 2, 5)
    n = x.shape[1]
    values = (b.numbers(n), b.numbers(n), b.numbers(n), np.abs(b.normal(n)) + np.float32(0.3))
    b.add("BatchNormalization", x, *map(b.constant, values), epsilon=1e-3)


def residual(b: Builder) -> None:
    """conv, batch norm, relu, conv, the input added."""
    x = b.pick(lambda v: v.rank == 4 and v.shape[1] > 1)
    n, y = x.shape[1], x
    for last in (False, True):
        w = b.constant(b.numbers(n, n, 3, 3, scale=(9 * n) ** -0.5))
        y = b.add("Conv", y, w, pads=[1] * 4)
        values = (b.numbers(n), b.numbers(n), b.numbers(n), np.abs(b.normal(n)) + np.float32(0.3))
        y = b.add("BatchNormalization", y, *map(b.constant, values))
        y = b.add("Add", y, x) if last else y
        y = b.add("Relu", y)


def adapted(b: Builder) -> None:
    """A product whose weights are computed, by another product."""
    x = ranked(b, 3, 4)
    n, outputs = x.shape[1], b.choose((1, 4, 8))
    size = n * outputs * (1 if x.rank == 3 else 9)
    seed = b.constant(b.numbers(1, 4))
    w = b.add("MatMul", b.add("Mul", seed, _mean(b, x)), b.constant(b.normal(4, size)))
    w = b.add("Reshape", w, b.ints(outputs, n, *[1 if x.rank == 3 else 3] * (x.rank - 2)))
    b.add("Conv", x, w, pads=[0 if x.rank == 3 else 1] * 2 * (x.rank - 2))


def biased(b: Builder) -> None:
    """A norm or a convolution whose last operands are computed, by another product."""
    x = ranked(b, 3, 4)
    if b.chance(0.5):
        n = x.shape[1]
        w = b.constant(b.normal(8, n, *[1] * (x.rank - 2), scale=n**-0.5))
        b.add("Conv", x, w, _row(b, x, 8))
    else:
        n = x.shape[-1]
        b.add("LayerNormalization", x, _row(b, x, n), _row(b, x, n))


def _row(b: Builder, x: Value, n: int) -> Value:
    """float32[n], computed from x."""
    row = b.add("MatMul", _mean(b, x), b.constant(b.normal(1, n)))
    return b.add("Reshape", row, b.ints(n))


def _mean(b: Builder, x: Value) -> Value:
    """The mean of all of x, [1, 1]."""
    mean = b.add("ReduceMean", x, keepdims=0)
    return b.add("Reshape", mean, b.ints(1, 1))


def squeeze_excite(b: Builder) -> None:
    x = b.pick(lambda v: v.rank == 4 and v.shape[1] > 1)
    n, few = x.shape[1], max(1, x.shape[1] // 2)
    y = b.add("GlobalAveragePool", x)
    y = b.add("Relu", b.add("Conv", y, b.constant(b.normal(few, n, 1, 1, scale=n**-0.5))))
    y = b.add("Conv", y, b.constant(b.normal(n, few, 1, 1, scale=few**-0.5)))
    b.add("Mul", x, b.add(b.choose(("Sigmoid", "HardSigmoid")), y))
