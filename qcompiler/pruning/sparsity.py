"""Weights, a pattern and a sparsity -> which weights to keep.

Weights are viewed as [O, C, T]: outputs, inputs, taps of the window (1 for matrix products). A
pattern says which weights are removed together:

    element      single weights (Han et al., "Learning both Weights and Connections", 2015)
    n:m          n of m neighbouring inputs are kept (Mishra et al., "Accelerating Sparse Deep
                 Neural Networks", 2021)
    r x c        blocks of r outputs by c inputs (Narang et al., "Block-Sparse Recurrent Neural
                 Networks", 2017)

The importance of a weight:

    magnitude     w^2
    activation    w^2 E[x^2] (Sun et al., "A Simple and Effective Pruning Approach", 2023)
    second_order  w^2 / inv(E[x xT])_kk: the loss of the output if all other weights compensate as
                  well as possible (Hassibi & Stork, "Optimal Brain Surgeon", 1993)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.data.columns import rows
from qcompiler.errors import Error, Skip
from qcompiler.hardware.isa import Device
from qcompiler.ir import Node
from qcompiler.quantization.reconstruct import Floats, damped

Mask = NDArray[np.bool_]
IMPORTANCES = ("magnitude", "activation", "second_order")
LEVELS = tuple(i / 16 for i in range(16))
"""The sparsities of a sensitivity curve."""


@dataclass(frozen=True)
class Pattern:
    """Blocks of `outputs` x `inputs` weights; with `of`, `keep` out of `of` inputs are kept."""

    outputs: int = 1
    inputs: int = 1
    keep: int = 0
    of: int = 0

    @staticmethod
    def read(text: str, device: Device | None = None) -> Pattern:
        """Parse "element", "2:4", "16x4", or "block", the weights that the device multiplies at
        once.
        """
        if text == "element":
            return Pattern()
        if text == "block":
            return block_of(device)
        if match := re.fullmatch(r"(\d+):(\d+)", text):
            keep, of = int(match[1]), int(match[2])
            if 0 < keep < of:
                return Pattern(keep=keep, of=of)
        elif match := re.fullmatch(r"(\d+)x(\d+)", text):
            outputs, inputs = int(match[1]), int(match[2])
            if outputs and inputs:
                return Pattern(outputs, inputs)
        raise Error(f"{text!r} is no pattern", hint="element, 2:4, 16x4 (outputs x inputs), block")

    def __str__(self) -> str:
        if self.of:
            return f"{self.keep}:{self.of}"
        return f"{self.outputs}x{self.inputs}" if self != Pattern() else "element"

    def refuse(self, shape: Sequence[int]) -> Skip | None:
        """Why weights [O, C, T] cannot have this pattern; None if they can."""
        outputs, inputs, _ = shape
        if self.of and inputs % self.of:
            return Skip(f"{inputs} inputs are no multiple of {self.of}")
        if self.outputs > outputs or self.inputs > inputs:
            return Skip(f"{outputs} x {inputs} weights are less than a block of {self}")
        return None


def block_of(device: Device | None) -> Pattern:
    """The weights that a device's byte product reads at once: a tile, or a vector."""
    if device is None:
        return Pattern(16, 4)
    isa = device.isa
    for key in (("u8", "i8", "i32"), ("i8", "i8", "i32"), ("f32", "f32", "f32")):
        if mac := isa.best_product([key]):
            return Pattern(mac.width, mac.k)
    return Pattern(isa.lanes(4), 1)


def importance(w: Floats, second: Floats | None, kind: str) -> Floats:
    """Rows [G, O, K], E[x xT] [G, K, K] (unused for magnitude) -> the importance of each weight."""
    if kind not in IMPORTANCES:
        raise Error(f"unknown importance {kind!r}", hint=f"one of {', '.join(IMPORTANCES)}")
    squares: Floats = w * w
    if kind == "magnitude":
        return squares
    assert second is not None, "what layers see was not measured"
    if kind == "activation":
        squares *= np.einsum("gkk->gk", second)[:, None]
        return squares
    inverse = np.stack([np.diag(np.linalg.inv(damped(h))) for h in second])
    squares /= inverse[:, None]
    return squares


def block_scores(scores: Floats, pattern: Pattern) -> Floats:
    """[O, C, T] -> [O/outputs, C/inputs, T]: sums over blocks; those at the ends may be smaller."""
    o, c, t = scores.shape
    pad = ((0, -o % pattern.outputs), (0, -c % pattern.inputs), (0, 0))
    full = np.pad(scores, pad)
    shape = (full.shape[0] // pattern.outputs, pattern.outputs, -1, pattern.inputs, t)
    made: Floats = full.reshape(shape).sum((1, 3))
    return made


def spread(blocks: Mask, pattern: Pattern, shape: Sequence[int]) -> Mask:
    """The inverse for masks: which blocks are kept -> which weights [O, C, T] are kept."""
    full = np.repeat(np.repeat(blocks, pattern.outputs, 0), pattern.inputs, 1)
    return full[: shape[0], : shape[1]]


def mask(scores: Floats, pattern: Pattern, sparsity: float) -> Mask:
    """Scores [O, C, T] -> the weights to keep: the best 1 - sparsity; for n:m the best n of m."""
    if pattern.of:
        return _n_of_m(scores, pattern)
    blocks = block_scores(scores, pattern)
    gone = round(sparsity * blocks.size)
    kept = np.ones(blocks.size, bool)
    kept[np.argsort(blocks, axis=None, kind="stable")[:gone]] = False
    return spread(kept.reshape(blocks.shape), pattern, scores.shape)


def _n_of_m(scores: Floats, pattern: Pattern) -> Mask:
    o, c, t = scores.shape
    runs = scores.reshape(o, c // pattern.of, pattern.of, t)
    order = np.argsort(-runs, axis=2, kind="stable")
    kept = np.zeros(runs.shape, bool)
    np.put_along_axis(kept, order[:, :, : pattern.keep], True, axis=2)
    return kept.reshape(scores.shape)


# Schedules: how much to remove from each layer.


def global_levels(
    scores: Mapping[Node, Floats], pattern: Pattern, sparsity: float, most: float
) -> dict[Node, float]:
    """One threshold for the blocks of all layers: those below it are removed, but at most a
    fraction `most` of each layer.

    {layer: scores [O, C, T]} -> {layer: sparsity}; overall, `sparsity` of the weights are removed.
    """
    blocks = {n: block_scores(s, pattern).reshape(-1) for n, s in scores.items()}
    sizes = {n: scores[n].size / b.size for n, b in blocks.items()}
    worth = np.concatenate([b / sizes[n] for n, b in blocks.items()])
    weight = np.concatenate([np.full(b.size, sizes[n]) for n, b in blocks.items()])
    order = np.argsort(worth, kind="stable")
    owner = np.concatenate([np.full(b.size, i) for i, b in enumerate(blocks.values())])[order]
    room = np.array([b.size * most for b in blocks.values()])
    rank = np.empty(len(order), np.int64)
    for i in range(len(blocks)):
        mine = owner == i
        rank[mine] = np.arange(mine.sum())
    allowed = rank < room[owner]
    goes = np.cumsum(weight[order] * allowed) <= sparsity * weight.sum()
    counts = np.bincount(owner[goes & allowed], minlength=len(blocks))
    return {n: counts[i] / b.size for i, (n, b) in enumerate(blocks.items())}


def curve(w: Floats, second: Floats, scores: Floats, pattern: Pattern) -> Floats:
    """A layer's sensitivity: the fraction of its output's energy that is lost at each of LEVELS,
    without compensation.

    w and scores are [O, C, T] of one group, second = E[x xT].
    """
    flat = w.reshape(len(w), -1)
    whole = max(float(np.einsum("ok,ok->", flat @ second, flat)), 1e-300)
    lost = []
    for level in LEVELS:
        gone = np.where(mask(scores, pattern, level), 0.0, w).reshape(len(w), -1)
        lost.append(float(np.einsum("ok,ok->", gone @ second, gone)) / whole)
    return np.maximum.accumulate(np.array(lost))


def curves(node: Node, second: Floats, scores: Floats, pattern: Pattern) -> Floats:
    """A product, E[x xT] [G, K, K] of its input, the importance of its weights [O, C, T] -> the
    mean of its groups' curves.
    """
    w = as_taps(node, rows(node, node.operands[1].array))
    each = len(w) // len(second)
    parts = [
        curve(w[g * each : (g + 1) * each], h, scores[g * each : (g + 1) * each], pattern)
        for g, h in enumerate(second)
    ]
    made: Floats = np.mean(parts, axis=0)
    return made


def sensitive_levels(
    curves: Mapping[Node, Floats], sizes: Mapping[Node, int], sparsity: float
) -> dict[Node, float]:
    """Curves over LEVELS, numbers of weights -> sparsities with the smallest total loss that remove
    `sparsity` of all weights: repeatedly, one more step for the layer that loses least per weight.
    """
    level = dict.fromkeys(curves, 0)
    total, gone = sum(sizes.values()), 0.0
    while gone < sparsity * total:
        open_ = [n for n in curves if level[n] + 1 < len(LEVELS)]
        if not open_:
            break
        best = min(open_, key=lambda n: _price(curves[n], level[n], sizes[n]))
        level[best] += 1
        gone += sizes[best] / len(LEVELS)
    return {n: LEVELS[i] for n, i in level.items()}


def _price(losses: Floats, level: int, size: int) -> float:
    return float(losses[level + 1] - losses[level]) / size


def as_taps(node: Node, w: Floats) -> Floats:
    """Rows [G, O/G, K] of a product -> [O, C, T]."""
    dims = node.operands[1].type.dims
    outputs = w.shape[0] * w.shape[1]
    inputs = dims[1] if node.op == "Conv" else w.shape[2]
    return w.reshape(outputs, inputs, -1)
