"""Equalize the weight ranges of neighbouring convolutions, channel by channel.

Conv(f(Conv(x, w, a)), v, b)  ->  Conv(f(Conv(x, w / s, a / s)), v * s, b)

with one s per channel between them, for f with f(s * x) = s * f(x): Relu, LeakyRelu, or none; a
Clip's bounds are divided by s too, exactly. If r is the largest weight that produces a channel and
t the largest that reads it, s = sqrt(r / t) makes both sqrt(r * t) (Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1). Chains of
convolutions are iterated until nothing changes. The result of the graph stays the same. A bias
counts as a weight of a constant input 1; otherwise channels with zero weights but nonzero bias
would grow without bound.

Bias absorption (section 4.1.3): the minimum of a channel after a Relu, as seen in calibration,
moves into the next convolution's bias, which leaves a smaller range to quantize. This is only done
if the next one has no padding, which would have to change too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompiler.data.calibrate import Calibration, Statistics, value_names
from qcompiler.ir import Graph, Node, constant
from qcompiler.ops import make
from qcompiler.ops.registry import Numbers
from qcompiler.ops.window import Window
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.matching import channel_shape, exact, input_at, number, rebuilt
from qcompiler.rewrite.mentions import named

BETWEEN = ("Relu", "LeakyRelu", "Clip")
SWEEPS = 50


@graph_pass
class QuantizeEqualize:
    """Cross-layer equalization; most useful with per-tensor scales or few bits.

    absorb: also absorb biases, if there is calibration data. exclude: as in quantize_static.
    """

    absorb: bool = True
    exclude: tuple[str, ...] = ()
    data: Calibration | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False
    order: ClassVar[int] = -1

    def __call__(self, graph: Graph) -> Graph:
        """The graph with equalized weights; itself if that was done before, or nothing matches."""
        if "equalized" in graph.notes or "quantization" in graph.notes:
            return graph
        pairs = [p for n in graph.nodes if (p := self.pair(graph, n))]
        if not pairs:
            return graph
        layers = _Layers(pairs)
        layers.equalize()
        statistics = self.data.statistics(graph) if self.absorb and self.data else None
        absorbed = layers.absorb(graph, statistics) if statistics else 0
        return layers.rebuild(graph).note(
            equalized=f"{len(pairs)} pairs of convolutions, {absorbed} biases absorbed"
        )

    def pair(self, graph: Graph, second: Node) -> _Pair | None:
        """A convolution and the one before it, if there is only an activation between them."""
        if not _fits(second) or named(second, self.exclude):
            return None
        between: Node | None = second.operands[0]
        assert between is not None
        if graph.readers[between] > 1:
            return None
        first = between
        if between.op in BETWEEN:
            first = between.operands[0]
            bounds = between.operands[1:]
            if not all(number(b) is not None for b in bounds):
                return None
        else:
            between = None
        if not _fits(first) or named(first, self.exclude):
            return None
        if graph.readers[first] > 1:
            if self.explain is not None:
                self.explain("quantize_equalize", first, "its output is read more than once")
            return None
        return _Pair(first, between, second)


def _fits(node: Node) -> bool:
    """Is it a float convolution with constant weights and known shapes?"""
    if node.op != "Conv" or node.dtype != "float32" or not node.type.static:
        return False
    x, *rest = node.operands
    return x.type.static and all(i.is_constant for i in rest) and bool(np.any(rest[0].array))


@dataclass(frozen=True)
class _Pair:
    """Two convolutions and the activation between them."""

    first: Node
    between: Node | None
    second: Node


class _Layers:
    """The weights of convolutions during equalization, and the scales of the values between."""

    def __init__(self, pairs: list[_Pair]) -> None:
        self.pairs = pairs
        nodes = [n for p in pairs for n in (p.first, p.second)]
        self.weights = {n: exact(n.operands[1]) for n in nodes}
        self.biases = {n: _bias(n) for n in nodes}
        self.scales = {p: np.ones(p.first.type.dims[1]) for p in pairs}

    def equalize(self) -> None:
        """Equalize pair after pair until no scale changes by more than 1 %."""
        for _ in range(SWEEPS):
            moved = 0.0
            for pair in self.pairs:
                s = self.step(pair)
                moved = max(moved, float(np.abs(np.log(s)).max()))
                self.apply(pair, s)
            if moved < 0.01:
                return

    def step(self, pair: _Pair) -> Numbers:
        """The scales that equalize the two sides of a pair, [C]; 1 where a side is all zeros."""
        weights, bias = self.weights[pair.first], self.biases[pair.first]
        makes = np.maximum(np.abs(weights).reshape(len(bias), -1).max(1), np.abs(bias))
        reads = np.abs(self.by_input(pair.second)).max((1, 2))
        alive = (makes > 0) & (reads > 0)
        ratio = np.where(alive, makes, 1) / np.where(alive, reads, 1)
        return np.clip(np.sqrt(ratio), 1e-4, 1e4)

    def by_input(self, node: Node) -> Numbers:
        """The weights of a convolution, [C,O/G,taps]: the first axis is their input."""
        w, group = self.weights[node], node.int("group")
        split = w.reshape(group, w.shape[0] // group, w.shape[1], -1)
        return np.moveaxis(split, 2, 1).reshape(group * w.shape[1], w.shape[0] // group, -1)

    def apply(self, pair: _Pair, s: Numbers) -> None:
        """Divide the weights that produce each channel by s, multiply those that read it."""
        self.scales[pair] = self.scales[pair] * s
        w = self.weights[pair.first]
        self.weights[pair.first] = w / s.reshape(channel_shape(w.ndim, 0))
        self.biases[pair.first] = self.biases[pair.first] / s
        v, group = self.weights[pair.second], pair.second.int("group")
        each = np.repeat(s.reshape(group, -1), v.shape[0] // group, axis=0)  # [O,C/G]
        self.weights[pair.second] = v * each.reshape(*each.shape, *[1] * (v.ndim - 2))

    def absorb(self, graph: Graph, statistics: Statistics) -> int:
        """Move the minima of channels into the next bias; returns how many channels had one."""
        names, count = value_names(graph), 0
        for pair in self.pairs:
            read = pair.second.operands[0]
            seen = statistics.channels(names[read]) if read in names else None
            plain = pair.between is None or pair.between.op == "Relu"
            if seen is None or not plain or _padded(pair.second):
                continue
            least = np.maximum(seen.lows, 0) / self.scales[pair]
            taps = self.by_input(pair.second).sum(2)  # [C,O/G]
            group = pair.second.int("group")
            gained = np.einsum(
                "gco,gc->go", taps.reshape(group, -1, taps.shape[1]), least.reshape(group, -1)
            )
            self.biases[pair.first] = self.biases[pair.first] - least
            self.biases[pair.second] = self.biases[pair.second] + gained.reshape(-1)
            count += int(np.count_nonzero(least))
        return count

    def rebuild(self, graph: Graph) -> Graph:
        """The graph with the current weights."""
        between = {p.between: self.scales[p] for p in self.pairs if p.between is not None}
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            moved = node.with_inputs(None if i is None else new[i] for i in node.inputs)
            if node in self.weights:
                moved = self.convolution(node, moved)
            elif node in between and node.op == "Clip":
                moved = _clip(moved, between[node])
            new[node] = moved
        return graph.with_outputs(new[o] for o in graph.outputs)

    def convolution(self, node: Node, moved: Node) -> Node:
        """One convolution on its new weights; without a bias if it had none and needs none."""
        weights = constant(self.weights[node].astype(np.float32), node.operands[1].name)
        bias, given = self.biases[node], input_at(node, 2)
        inputs = [moved.operands[0], weights]
        if given is not None or bias.any():
            inputs.append(constant(bias.astype(np.float32), "" if given is None else given.name))
        return rebuilt(moved, inputs)


def _bias(node: Node) -> Numbers:
    bias = input_at(node, 2)
    return np.zeros(int(node.type.dims[1])) if bias is None else exact(bias)


def _padded(node: Node) -> bool:
    window = Window.of(node, node.operands[0].type.dims[2:], node.operands[1].type.dims[2:])
    return any(p is None or any(p) for p in window.pads)


def _clip(clip: Node, s: Numbers) -> Node:
    """Clip(x, low, high) -> Min(Max(x, low / s), high / s), with per-channel bounds; Relu for 0."""
    shape = channel_shape(clip.type.rank, 1)
    made = clip.operands[0]
    low, high = input_at(clip, 1), input_at(clip, 2)
    if low is not None and number(low) == 0:
        made = make("Relu", made, name=clip.name)
    elif low is not None:
        made = make("Max", made, constant((exact(low) / s).astype(np.float32).reshape(shape)))
    if high is None:
        return made
    bound = constant((exact(high) / s).astype(np.float32).reshape(shape))
    return make("Min", made, bound, name=clip.name)
