"""A product's float weights -> the rounded or pruned weights of the student, with gradients.

Rounding is the compiler's own, with the scales, tables and ranges that it would choose for the
current weights; gradients ignore it (the straight-through estimator of Bengio, Leonard and
Courville, 2013). Pruned weights stay zero, or their number grows along the cubic schedule of Zhu &
Gupta, "To prune, or not to prune" (2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from qcompiler.data.columns import rows, unrows
from qcompiler.ir import Array, Node, constant
from qcompiler.pruning.sparsity import Pattern, as_taps, mask
from qcompiler.quantization.reconstruct import Grid
from qcompiler.quantization.rounding import Scheme, grid_of
from qcompiler.rewrite.matching import input_at
from qcompiler.training.torch_graph import Tensor, tensor_of

PRUNED = 0.1
"""Weights with a larger fraction of zeros are taken as pruned; these zeros stay."""
REFRESH = 16
"""Number of steps after which scales and tables are recomputed."""

Rounder = Callable[[Node], "Rounding"]
"""A product with its current weights -> how they are rounded."""


@dataclass(frozen=True)
class Rounding:
    """(q - zero) * scale, with integers q from low to high; or table[q] * scale. scale and zero
    have the shape of the weights.
    """

    scale: Array
    zero: Array
    low: int
    high: int
    table: Array | None = None


def of_integers(coarse: Node) -> Rounder | None:
    """A quantized product's weights -> how they are rounded; None if they are not integers."""
    if coarse.op != "DequantizeLinear" or coarse.int("block_size"):
        return None
    most = int(np.abs(coarse.operands[0].array.astype(np.int64)).max(initial=0))
    axis = coarse.int("axis") % coarse.type.rank
    one = coarse.operands[1].array.size == 1
    if not most:
        return None
    scheme = Scheme(bits=most.bit_length() + 1)

    def rounding(node: Node) -> Rounding:
        w = np.moveaxis(node.operands[1].array.astype(np.float64), axis, 0)
        found = grid_of(w.reshape(len(w), -1), scheme).scale
        scale = np.full_like(found, found.max()) if one else found
        scale = scale.reshape(-1, *[1] * (w.ndim - 1))
        full = np.ascontiguousarray(np.moveaxis(np.broadcast_to(scale, w.shape), 0, axis))
        return Rounding(full, np.zeros_like(full), -most, most)

    return rounding


def of_grid(grid: Callable[[Node], Grid]) -> Rounder:
    """A pass's grid for a product's rows [O,K] -> the rounding of its weights."""

    def rounding(node: Node) -> Rounding:
        found = grid(node)
        shape = rows(node, node.operands[1].array).shape
        flat = (shape[0] * shape[1], shape[2])
        scale, zero = (
            unrows(node, np.broadcast_to(v, flat).reshape(shape)) for v in (found.scale, found.zero)
        )
        table = getattr(found, "table", None)
        return Rounding(scale, zero, found.low, found.high, table)

    return rounding


class Weight:
    """One product's weights and bias: the float ones to train, and the student's nodes for them."""

    def __init__(self, exact: Node, student: Node, rounder: Rounder | None) -> None:
        self.exact, self.student, self.rounder = exact, student, rounder
        self.float_: Tensor = tensor_of(exact.operands[1].array).requires_grad_()
        bias = input_at(exact, 2)
        self.bias: Tensor = None if bias is None else tensor_of(bias.array).requires_grad_()
        zeros = self.float_.detach() == 0
        self.zeros: Tensor = zeros if float(zeros.float().mean()) > PRUNED else None
        self.steps = 0

    @property
    def parameters(self) -> list[Tensor]:
        """The trained tensors."""
        return [p for p in (self.float_, self.bias) if p is not None]

    def stand_ins(self) -> dict[Node, Tensor]:
        """The student's nodes of weights and bias -> their values."""
        made = self.float_
        if self.rounder is not None:
            if self.steps % REFRESH == 0:
                self.refresh()
            self.steps += 1
            made = made + (self.rounded() - made).detach()
        found = {self.student.operands[1]: made}
        if self.bias is not None:
            found[self.student.operands[2]] = self.bias
        return found

    def refresh(self) -> None:
        """Recompute the rounding for the current weights."""
        assert self.rounder is not None
        old = self.exact.operands[1]
        now = constant(self.float_.detach().numpy().copy(), old.name)
        found = self.rounder(self.exact.with_inputs((self.exact.inputs[0], now)))
        self.limits = found.low, found.high
        self.scale, self.zero = (
            torch.from_numpy(v.astype(np.float32)) for v in (found.scale, found.zero)
        )
        self.table = None
        if found.table is not None:
            self.table = torch.from_numpy(found.table.astype(np.float32))

    def rounded(self) -> Tensor:
        """The current weights, rounded."""
        steps = self.float_.detach() / self.scale + self.zero
        if self.table is None:
            return (torch.clamp(torch.round(steps), *self.limits) - self.zero) * self.scale
        middles = (self.table[1:] + self.table[:-1]) / 2
        return self.table[torch.bucketize(steps, middles)] * self.scale

    def keep_zeros(self) -> None:
        """Set pruned weights back to zero."""
        if self.zeros is not None:
            with torch.no_grad():
                self.float_[self.zeros] = 0

    def prune(self, pattern: Pattern, share: float) -> None:
        """Remove this fraction of the weights, the currently smallest ones."""
        w = rows(self.exact, self.float_.detach().numpy())
        kept = mask(as_taps(self.exact, w * w), pattern, share)
        self.zeros = torch.from_numpy(unrows(self.exact, ~kept.reshape(w.shape)))
        self.keep_zeros()

    def arrays(self) -> tuple[Array, Array | None]:
        """Copies of weights and bias. The weights are rounded if rounding them again changes
        nothing: then they come out as trained, whatever method rounds them when compiling.
        """
        bias = None if self.bias is None else self.bias.detach().numpy().copy()
        plain = self.float_.detach().numpy().copy()
        if self.rounder is None:
            return plain, bias
        self.refresh()
        once = self.rounded()
        with torch.no_grad():
            self.float_.copy_(once)
            self.refresh()
            twice = self.rounded()
            self.float_.copy_(torch.from_numpy(plain))
        self.steps = 0
        same = torch.allclose(once, twice, rtol=1e-5, atol=1e-7 * float(once.abs().max()))
        return (once.numpy().copy() if same else plain), bias


def cubic(done: float) -> float:
    """The progress of a schedule, 0 to 1 -> the fraction of the final sparsity by then."""
    return 1 - (1 - min(max(done, 0.0), 1.0)) ** 3
