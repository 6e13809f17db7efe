"""ONNX nodes and arrays -> their outputs, and the gradients of every weight.

Only the operators of the demo's network, in numpy. A `Tape` runs the nodes in order and keeps each
one's backward function; `gradients` calls these in reverse. Images are [N, C, H, W], weights
[O, I, kh, kw].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Backward: TypeAlias = Callable[[Floats], Sequence[Floats | None]]
"""An output's gradient -> the gradients of the inputs; None for inputs without a gradient."""

MOMENTUM = 0.1
"""The weight of each batch in the running statistics."""


class Tape:
    """One run of a graph: every array by name, and the backward functions."""

    def __init__(self, nodes: Sequence[onnx.NodeProto], arrays: Mapping[str, Floats]) -> None:
        self.arrays = dict(arrays)
        self._steps: list[tuple[onnx.NodeProto, Backward]] = []
        for node in nodes:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs = [self.arrays[name] for name in node.input]
            output, backward = OPERATORS[node.op_type](*inputs, **attributes)
            self.arrays[node.output[0]] = output
            self._steps.append((node, backward))

    def gradients(self, name: str, gradient: Floats) -> dict[str, Floats]:
        """The gradient of output `name` -> the gradients of all arrays that it depends on."""
        found = {name: gradient}
        for node, backward in reversed(self._steps):
            for source, part in zip(node.input, backward(found[node.output[0]]), strict=False):
                if part is not None:
                    found[source] = found[source] + part if source in found else part
        return found


def conv(
    x: Floats, w: Floats, *, kernel_shape: Sequence[int], pads: Sequence[int], group: int
) -> tuple[Floats, Backward]:
    """A convolution of stride 1: one matrix product per group, over the patch of each output."""
    (n, c, height, width), (o, i, *_), (kh, kw) = x.shape, w.shape, kernel_shape
    top, left, bottom, right = pads
    frame = ((0, 0), (0, 0), (top, bottom), (left, right))
    windows = sliding_window_view(np.pad(x, frame), (kh, kw), axis=(2, 3))
    rows, columns = windows.shape[2:4]
    # [N, group, I * kh * kw, rows * columns]: the right operands of the groups' matrix products
    patches = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, group, i * kh * kw, rows * columns)
    matrix = w.reshape(group, o // group, i * kh * kw)

    def backward(dy: Floats) -> tuple[Floats, Floats]:
        dy = dy.reshape(n, group, o // group, rows * columns)
        dw = np.matmul(dy, patches.swapaxes(2, 3)).sum(0)
        spread = np.matmul(matrix.swapaxes(1, 2), dy).reshape(n, c, kh, kw, rows, columns)
        dx = np.zeros((n, c, height + top + bottom, width + left + right), np.float32)
        for a, b in np.ndindex(kh, kw):
            dx[:, :, a : a + rows, b : b + columns] += spread[:, :, a, b]
        return dx[:, :, top : top + height, left : left + width], dw.reshape(w.shape)

    return np.matmul(matrix, patches).reshape(n, o, rows, columns), backward


def batch_norm(
    x: Floats, gamma: Floats, beta: Floats, mean: Floats, variance: Floats, *, epsilon: float
) -> tuple[Floats, Backward]:
    """(x - mean) / deviation * gamma + beta, with the batch's own mean and deviation.

    Also updates the running statistics `mean` and `variance` in place.
    """
    axes, count = (0, 2, 3), x.size // x.shape[1]
    batch_mean, batch_variance = x.mean(axes), x.var(axes)
    mean += MOMENTUM * (batch_mean - mean)
    variance += MOMENTUM * (batch_variance * count / (count - 1) - variance)
    scale = 1 / np.sqrt(batch_variance + np.float32(epsilon))
    normal = (x - _channels(batch_mean)) * _channels(scale)

    def backward(dy: Floats) -> tuple[Floats, Floats, Floats, None, None]:
        dgamma, dbeta = (dy * normal).sum(axes), dy.sum(axes)
        centred = dy - _channels(dbeta / count) - normal * _channels(dgamma / count)
        return centred * _channels(gamma * scale), dgamma, dbeta, None, None

    return normal * _channels(gamma) + _channels(beta), backward


def relu(x: Floats) -> tuple[Floats, Backward]:
    """max(x, 0)."""
    return np.maximum(x, 0), lambda dy: (dy * (x > 0),)


def add(a: Floats, b: Floats) -> tuple[Floats, Backward]:
    """a + b, of equal shapes."""
    return a + b, lambda dy: (dy, dy)


def max_pool(
    x: Floats, *, kernel_shape: Sequence[int], strides: Sequence[int]
) -> tuple[Floats, Backward]:
    """Windows without overlap -> the maximum of each; equal maxima share its gradient."""
    assert tuple(kernel_shape) == tuple(strides)
    n, c, height, width = x.shape
    kh, kw = kernel_shape
    windows = x.reshape(n, c, height // kh, kh, width // kw, kw)
    largest = windows.max((3, 5), keepdims=True)

    def backward(dy: Floats) -> tuple[Floats]:
        chosen = windows == largest
        share = chosen / chosen.sum((3, 5), keepdims=True, dtype=np.float32)
        return ((share * dy[:, :, :, None, :, None]).reshape(x.shape),)

    return largest[:, :, :, 0, :, 0], backward


def global_average_pool(x: Floats) -> tuple[Floats, Backward]:
    """[N, C, H, W] -> [N, C, 1, 1]."""
    area = x.shape[2] * x.shape[3]
    return x.mean((2, 3), keepdims=True), lambda dy: (np.broadcast_to(dy / area, x.shape),)


def flatten(x: Floats) -> tuple[Floats, Backward]:
    """[N, C, 1, 1] -> [N, C]."""
    return x.reshape(len(x), -1), lambda dy: (dy.reshape(x.shape),)


def gemm(x: Floats, w: Floats, b: Floats, *, transB: int) -> tuple[Floats, Backward]:
    """x w' + b."""
    assert transB == 1
    return x @ w.T + b, lambda dy: (dy @ w, dy.T @ x, dy.sum(0))


def _channels(vector: Floats) -> Floats:
    """One number per channel -> an array that broadcasts over [N, C, H, W]."""
    return vector[:, None, None]


OPERATORS: dict[str, Callable[..., tuple[Floats, Backward]]] = {
    "Add": add,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "MaxPool": max_pool,
    "Relu": relu,
}
