"""Static int8 in the open: the values that products read become QuantizeLinear -> DequantizeLinear,
by calibrated ranges.

Conv(x, w, b)  ->  Conv(dq(q(x)), dq(w8), dq(b32))         likewise ConvTranspose and MatMul

Products demand int8 of what they read. The demand goes backwards through operators that work as
well on int8 (moves of data, pools, activations, residual sums) and stops at those that do not
(normalisations, Softmax, ...). Of the values demanded, those that have to lie in memory are
quantized; what stays in registers between a product and its activation or residual sum stays float.
Values that a move of data links share one scale. The quantize_fuse_ rules then make integer
operators of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from qcompiler.calibrate import Statistics, fingerprint, value_names
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, constant
from qcompiler.isa import Device
from qcompiler.matching import input_at
from qcompiler.ops import OPERATORS, make
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.scales import (
    Numbers,
    Scale,
    activation_scale,
    along,
    channel_scale,
    numbers,
    room_for_bias,
    round_to,
    weight_bits,
    weight_scales,
)
from qcompiler.storage import MOVES, SMOOTH, Wishes, linked, melting, named, wishes

WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}
"""Products, and the axis of their weights that runs over output channels."""


@graph_pass
class QuantizeStatic:
    """Conv, ConvTranspose and MatMul on int8, by calibrated ranges.

    activation: "uint8" (asymmetric) or "int8" activations, one scale a tensor (a channel where only
    depthwise convolutions read it); weights are int8,
    symmetric, one scale an output channel, of `weight_bits` (0: 8, or 7 where the device's product
    of bytes saturates at 8). include, exclude: operator types, node names, or regular expressions
    of whole node names; excluded nodes stay float. through: operators besides MOVES and SMOOTH that
    may read and write int8 ("LayerNormalization"). products: also quantize products of two
    activations (in attention that is not fused). correct_bias: take from a convolution's bias what
    rounding its weights adds on average.
    """

    statistics: Statistics | None = None
    activation: str = "uint8"
    weight_bits: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    products: bool = False
    correct_bias: bool = True
    device: Device | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The graph with q/dq pairs; itself if it has been quantized before."""
        if "quantization" in graph.notes or any(n.op == "dequantize" for n in graph.nodes):
            return graph
        if self.statistics is None:
            hint = "give --calibration, or use int8-dynamic"
            raise Error("static int8 needs calibration data", hint=hint)
        if self.activation not in ("uint8", "int8"):
            raise Error(f"activation dtype {self.activation!r}", hint="uint8 or int8")
        if self.statistics.graph != fingerprint(graph):
            raise Error("the calibration is of another graph", hint="calibrate anew")
        bits = weight_bits(self.weight_bits, self.device)
        quantized = _insert(graph, _Places(graph, self, self.statistics), bits)
        told = f"static {self.activation} x int{bits}, {self.statistics.method}"
        if self.statistics.synthetic:
            told += ", SYNTHETIC calibration data: accuracy means nothing"
        return quantized.note(quantization=told)

    def wants(self, node: Node) -> bool:
        """Whether include and exclude let a product be quantized."""
        return not named(node, self.exclude) and (not self.include or named(node, self.include))

    def passes(self, node: Node) -> bool:
        """Whether int8 may go through an operator."""
        fits = node.op in MOVES or node.op in SMOOTH or node.op in self.through
        return fits and not named(node, self.exclude)

    def skip(self, node: Node, reason: str) -> None:
        """Tell --explain why a node stays float."""
        if self.explain is not None:
            self.explain("quantize_static", node, reason)


# Where.


class _Places:
    """Which products become integer, which values are quantized, and how."""

    def __init__(self, graph: Graph, options: QuantizeStatic, statistics: Statistics) -> None:
        self.options = options
        self.statistics = statistics
        self.names = value_names(graph)
        products = {n: read for n in graph.nodes if (read := self.operands(n))}
        wanted = wishes(graph, products, options.passes)
        self.scales = self.choose(graph, wanted)
        whole = {n: r for n, r in products.items() if all(i in self.scales for i in r)}
        self.wishes = replace(wanted, products=whole)
        for node in products.keys() - whole.keys():
            options.skip(node, "the range of what it reads is too large")

    def operands(self, node: Node) -> tuple[Node, ...]:
        """The activations of a product that can be made integer; () for everything else."""
        if node.op not in WEIGHT_AXIS or node.dtype != "float32" or not self.options.wants(node):
            return ()
        data, weights = node.operands[:2]
        bias = input_at(node, 2)
        read = (data,) if weights.is_constant else (data, weights)
        unseen = [i for i in read if i not in self.names or not self.seen(i)]
        if data.is_constant:
            reason = "its first operand is constant"
        elif not weights.is_constant and (node.op != "MatMul" or not self.options.products):
            reason = "its weights are not constant"
        elif bias is not None and not bias.is_constant:
            reason = "its bias is not constant"
        elif weights.type.rank < 2:
            reason = "its weights are a vector"
        elif unseen:
            reason = f"{unseen[0].name or unseen[0].op} was not seen in calibration"
        else:
            return read
        self.options.skip(node, reason)
        return ()

    def seen(self, node: Node) -> bool:
        """Whether calibration has seen a value."""
        found = self.statistics.values.get(self.names[node])
        return found is not None and found.samples > 0

    def choose(self, graph: Graph, wanted: Wishes) -> dict[Node, Scale]:
        """Stored values -> scales: one for every set of values that moves of data link."""
        stored = wanted.values - melting(graph)
        heads = linked(graph, wanted)
        groups: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            if (
                node in stored
                and node in self.names
                and node.dtype == "float32"
                and self.seen(node)
            ):
                groups.setdefault(heads[node], []).append(node)
        asked = askers(graph, wanted)
        scales: dict[Node, Scale] = {}
        for group in groups.values():
            scale = self.scale(group, [r for n in group for r in asked[n]])
            if scale is not None:
                scales.update(dict.fromkeys(group, scale))
        return scales

    def scale(self, group: list[Node], readers: list[Node]) -> Scale | None:
        """One scale for a group of values that these nodes read as int8."""
        ranges = [self.statistics.range(self.names[n]) or (0.0, 0.0) for n in group]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        # Products of two activations: a zero point at 0 spares sums at run time.
        if any(r.op == "MatMul" and not r.operands[1].is_constant for r in readers):
            return activation_scale(low, high, "int8", symmetric=True)
        seen = self.statistics.channels(self.names[group[0]])
        if len(group) == 1 and seen is not None and by_channel(readers):
            lows, highs = np.maximum(seen.lows, low), np.minimum(seen.highs, high)
            return channel_scale(lows, highs, self.options.activation)
        return activation_scale(low, high, self.options.activation)

    def mean(self, product: Node) -> Numbers | None:
        """The mean of each channel that a product reads, where biases are to be corrected."""
        if not self.options.correct_bias:
            return None
        seen = self.statistics.channels(self.names[product.operands[0]])
        return None if seen is None else seen.mean


def askers(graph: Graph, wanted: Wishes) -> dict[Node, list[Node]]:
    """Each wanted value -> the nodes that want it in few bits."""
    found: dict[Node, list[Node]] = {n: [] for n in wanted.values}
    for node in graph.nodes:
        for i in wanted.of(node):
            found[i].append(node)
    return found


def by_channel(readers: list[Node]) -> bool:
    """Whether readers work channel by channel, so that each may have a step of its own.

    Depthwise convolutions do, and need it: channels of very different ranges do not mix in them,
    and with one step for all the small ones drown. Elementwise operators take part.
    """
    depthwise = [r for r in readers if r.op == "Conv" and r.int("group") == r.operands[0].shape[1]]
    others = [r for r in readers if r not in depthwise]
    return bool(depthwise) and all(OPERATORS[r.op].formula is not None for r in others)


# How.


def _insert(graph: Graph, places: _Places, bits: int) -> Graph:
    """The graph again, with readers of int8 reading the dequantized value."""
    new: dict[Node, Node] = {}
    dequantized: dict[Node, Node] = {}
    for node in graph.nodes:
        reads = places.wishes.of(node)
        inputs = [
            None if i is None else dequantized.get(i, new[i]) if i in reads else new[i]
            for i in node.inputs
        ]
        made = node.with_inputs(inputs)
        if node in places.wishes.products:
            step = places.scales[reads[0]].step
            made = _with_integer_weights(made, step, bits, places.mean(node))
        new[node] = made
        if node in places.scales:
            dequantized[node] = _pair(made, places.scales[node])
    return graph.with_outputs(new[o] for o in graph.outputs)


def _pair(value: Node, scale: Scale) -> Node:
    """dq(q(value)); channels are axis 1."""
    step = constant(scale.step)
    zero = constant(np.full(scale.step.shape, scale.zero, scale.dtype))
    quantized = make("QuantizeLinear", value, step, zero, name=f"{value.name}/quantize")
    return make("DequantizeLinear", quantized, step, zero, name=f"{value.name}/dequantize")


def _with_integer_weights(node: Node, step: Numbers, bits: int, mean: Numbers | None) -> Node:
    """A product on float constants -> on dequantized int8 weights and int32 bias.

    `step` is the input's: [], or [C] where each of its channels is a group.
    """
    weights = node.operands[1]
    if not weights.is_constant:
        return node
    axis, rank = WEIGHT_AXIS[node.op] % weights.type.rank, weights.type.rank
    scales = weight_scales(weights.array, axis, bits)
    step = np.repeat(step, len(scales) // step.size) if step.size > 1 else step
    given = input_at(node, 2)
    bias = None if given is None else numbers(given).astype(np.float64)
    groups = node.int("group") if node.op == "ConvTranspose" else 1
    if bias is not None:
        for part in bias.reshape(groups, -1):  # the groups share the scales
            scales = room_for_bias(scales, part, step)
    whole = round_to(weights.array, along(scales, rank, axis), "int8", bits)
    if node.op == "Conv" and mean is not None:
        rounded = whole * along(scales, rank, axis).astype(np.float64)
        shift = mean_response(rounded - numbers(weights), mean, node.int("group"))
        bias = (0 if bias is None else bias) - shift
    inputs = [node.inputs[0], _dequantized(whole, scales, axis, weights.name)]
    if bias is not None:
        steps = np.tile(scales.astype(np.float64) * step, groups).astype(np.float32)
        rounded = np.rint(bias / steps).astype(np.int32)
        inputs.append(_dequantized(rounded, steps, 0, "" if given is None else given.name))
    return node.with_inputs(inputs)


def mean_response(weights: Numbers, mean: Numbers, group: int) -> Numbers:
    """What a convolution by w[O,C/g,*K] gives on average, [O], for inputs of means [C].

    With the rounding errors of the weights it is the bias that they cause (Nagel et al.,
    "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2).
    Padding is not accounted for.
    """
    taps = weights.reshape(*weights.shape[:2], -1).sum(axis=2)
    grouped = taps.reshape(group, -1, taps.shape[1])
    response: Numbers = np.einsum("goc,gc->go", grouped, mean.reshape(group, -1)).reshape(-1)
    return response


def _dequantized(whole: Numbers, scales: Numbers, axis: int, name: str) -> Node:
    zero = constant(np.zeros(scales.shape, whole.dtype))
    return make("DequantizeLinear", constant(whole, name), constant(scales), zero, axis=axis)
