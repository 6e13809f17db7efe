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

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from qcompiler.passes.quantize_common import Twins, weights_right

from qcompiler.calibrate import Calibration, Statistics, fingerprint, value_names
from qcompiler.correction import corrections
from qcompiler.errors import Error
from qcompiler.ir import Graph, Node, constant
from qcompiler.isa import Device
from qcompiler.matching import input_at, rebuilt
from qcompiler.ops import is_elementwise, make
from qcompiler.reconstruct import Grid, Moments, by_rows, rows, unrows
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rounding import Scheme, bits_of, grid_of, importance, round_rows, seen
from qcompiler.scales import (
    Numbers,
    Scale,
    activation_scale,
    along,
    channel_scale,
    has_exact_product,
    numbers,
    room_for_bias,
    round_to,
    weight_bits,
    weight_scales,
)
from qcompiler.storage import MOVES, SMOOTH, Wishes, linked, melting, named, wishes

WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}
"""Products, and the axis of their weights that runs over output channels."""

ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
CORRECTIONS = ("none", "fast", "full")


@graph_pass
class QuantizeStatic:
    """Conv, ConvTranspose and MatMul on int8, by calibrated ranges.

    activation: "uint8" (asymmetric) or "int8" activations, one scale a tensor (a channel where only
    depthwise convolutions read it); "uint16" or "int16" ones are stored so, and multiplied by the
    int8 weights as floats. Weights are int8, symmetric, one scale an output channel, of
    `weight_bits` (0: 8, or 7 where the device's product of bytes saturates at 8; 2 to 8). layers:
    other bits for some products, "PATTERN=BITS". rounding: "nearest", "gptq" or "adaround" (see
    rounding.py). per_channel: false gives all weights of a product one scale, for devices that have
    no scale a channel. include, exclude: operator types, node names, or regular expressions of
    whole node names; excluded nodes stay float. through: operators besides MOVES and SMOOTH that
    may read and write int8 ("LayerNormalization"). products: also quantize products of two
    activations (in attention that is not fused). attention: fused attention multiplies int8, too,
    where the device has an exact product of bytes. correct_bias: "fast" takes from a product's bias
    what rounding its weights adds on average, "full" measures it, all other quantization included
    (see correction.py), "none" leaves it. method, percentile: of calibration; left out, as the data
    says.
    """

    statistics: Statistics | None = None
    data: Calibration | None = None
    method: str = ""
    percentile: float = 0.0
    activation: str = "uint8"
    weight_bits: int = 0
    layers: tuple[str, ...] = ()
    rounding: str = "nearest"
    per_channel: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    products: bool = False
    attention: bool = True
    correct_bias: str = "fast"
    device: Device | None = None
    explain: Explain | None = None
    default: ClassVar[bool] = False

    def __call__(self, graph: Graph) -> Graph:
        """The graph with q/dq pairs; itself if it has been quantized before."""
        if "quantization" in graph.notes or any(n.op == "dequantize" for n in graph.nodes):
            return graph
        self.check()
        statistics = self.calibrated(graph)
        graph, statistics = _with_twins(graph, statistics, *weights_right(graph, self.wants))
        places = _Places(graph, self, statistics)
        whole = _integer_weights(graph, places)
        made, products = _insert(graph, places, whole)
        if self.correct_bias == "full" and self.data is not None:
            whole = _corrected(graph, whole, products, self.data)
            made, _ = _insert(graph, places, whole)
        bits = "/".join(str(b) for b in sorted({self.bits(n) for n in products}, reverse=True))
        told = f"static {self.activation} x int{bits or 8}, {statistics.method}"
        if self.rounding != "nearest":
            told += f", {self.rounding}"
        if statistics.synthetic:
            told += ", SYNTHETIC calibration data: accuracy means nothing"
        return made.note(quantization=told)

    def check(self) -> None:
        """Options that mean nothing are an Error."""
        if self.activation not in ACTIVATIONS:
            hint = f"one of {', '.join(ACTIVATIONS)}"
            raise Error(f"activation dtype {self.activation!r}", hint=hint)
        if self.correct_bias not in CORRECTIONS:
            hint = f"one of {', '.join(CORRECTIONS)}"
            raise Error(f"correct_bias {self.correct_bias!r}", hint=hint)
        if self.correct_bias == "full" and self.data is None:
            raise Error("correct_bias 'full' needs calibration data", hint="give --calibration")

    @property
    def wide(self) -> bool:
        """Whether activations have 16 bits: stored so, and multiplied as floats."""
        return self.activation in ACTIVATIONS[2:]

    def calibrated(self, graph: Graph) -> Statistics:
        """The statistics given, or those of the data given."""
        if self.statistics is not None:
            if self.statistics.graph != fingerprint(graph):
                raise Error("the calibration is of another graph", hint="calibrate anew")
            return self.statistics
        if self.data is None:
            hint = "give --calibration, or use int8-dynamic"
            raise Error("static int8 needs calibration data", hint=hint)
        return self.data.statistics(graph, self.method, self.percentile)

    def bits(self, node: Node) -> int:
        """Bits of a product's weights."""
        return bits_of(node, self.layers) or weight_bits(self.weight_bits, self.device)

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


def _with_twins(
    graph: Graph, statistics: Statistics, turned: Graph, twins: Twins
) -> tuple[Graph, Statistics]:
    """What was seen of a graph -> the turned graph, and the same of its values; channels lie along
    other axes there.
    """
    before, after = value_names(graph), value_names(turned)
    seen = dict(statistics.values)
    for new, old in twins.items():
        if old in before and (found := statistics.values.get(before[old])) is not None:
            seen[after[new]] = replace(found, channels=None)
    return turned, replace(statistics, values=seen)


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
        if node.op == "Attention":
            return self.attended(node)
        if node.op not in WEIGHT_AXIS or node.dtype != "float32" or not self.options.wants(node):
            return ()
        data, weights = node.operands[:2]
        bias = input_at(node, 2)
        read = (data,) if weights.is_constant else (data, weights)
        unseen = [i for i in read if i not in self.names or not self.seen(i)]
        if data.is_constant:
            reason = "its first operand is constant"
        elif not weights.is_constant and (
            node.op != "MatMul" or not self.options.products or self.options.wide
        ):
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

    def attended(self, node: Node) -> tuple[Node, ...]:
        """The queries, keys and values of attention that can be made integer."""
        asked = self.options.attention and not self.options.wide
        if node.dtype != "float32" or not (asked and self.options.wants(node)):
            return ()
        read = node.operands[:3]
        product = has_exact_product(self.options.device)
        if product and all(i in self.names and self.seen(i) for i in read):
            return read
        reason = "queries, keys or values were not seen in calibration"
        self.options.skip(node, reason if product else "the device's product of bytes saturates")
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
        if any(r.op in ("Attention", "MatMul") and not r.operands[1].is_constant for r in readers):
            return activation_scale(low, high, "int8", symmetric=True)
        seen = self.statistics.channels(self.names[group[0]])
        if len(group) == 1 and seen and by_channel(readers) and not self.options.wide:
            lows, highs = np.maximum(seen.lows, low), np.minimum(seen.highs, high)
            return channel_scale(lows, highs, self.options.activation)
        return activation_scale(low, high, self.options.activation)

    def mean(self, product: Node) -> Numbers | None:
        """The mean of each channel that a product reads, where calibration looked at it."""
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
    return bool(depthwise) and all(map(is_elementwise, others))


# How.


@dataclass(frozen=True)
class _Whole:
    """A product's weights as integers, their scales [C] along `axis`, and the bias, [O], that goes
    with them; None where there is none.
    """

    integers: Numbers
    scales: Numbers
    axis: int
    bias: Numbers | None


def _integer_weights(graph: Graph, places: _Places) -> dict[Node, _Whole]:
    """Every product on constant weights -> these as integers."""
    options = places.options
    todo = [n for n in places.wishes.products if n.operands[1].is_constant]
    made: dict[Node, _Whole] = {}
    for node, found in seen(graph, todo, options.data, options.rounding):
        made[node] = _whole(node, places, found)
    for node in todo:
        if node not in made:
            made[node] = _whole(node, places, None)
    return made


def _whole(node: Node, places: _Places, found: Moments | None) -> _Whole:
    weights, options = node.operands[1], places.options
    axis, rank = WEIGHT_AXIS[node.op] % weights.type.rank, weights.type.rank
    scheme = Scheme(bits=options.bits(node), rounding=options.rounding)
    given = input_at(node, 2)
    bias = None if given is None else numbers(given).astype(np.float64)
    groups = node.int("group") if node.op == "ConvTranspose" else 1
    if scheme.bits >= 7 or not by_rows(node):
        scales = weight_scales(weights.array, axis, scheme.bits)
    else:
        w = rows(node, weights.array)
        squares = None if found is None else importance(found, w.shape[1])
        grid = grid_of(w.reshape(-1, w.shape[2]), scheme, squares)
        scales = grid.scale[:, 0].astype(np.float32)
    if not options.per_channel:
        scales = np.full_like(scales, scales.max())
    step = places.scales[node.operands[0]].step
    step = np.repeat(step, len(scales) // step.size) if step.size > 1 else step
    if bias is not None and not options.wide:
        for part in bias.reshape(groups, -1):  # the groups share the scales
            scales = room_for_bias(scales, part, step)
    if found is None:
        whole = round_to(weights.array, along(scales, rank, axis), "int8", scheme.bits)
    else:
        corrects = options.correct_bias != "none" and node.op == "Conv"
        whole = rounded(node, scales, scheme, found.covariance if corrects else found.second)
    shift = _shift(node, whole * along(scales, rank, axis).astype(np.float64), places, found)
    if shift is not None:
        bias = (0 if bias is None else bias) - shift
    return _Whole(whole, scales, axis, bias)


def rounded(node: Node, scales: Numbers, scheme: Scheme, h: Numbers) -> Numbers:
    """A product's weights, their scales [O] and moments -> int8 weights."""
    w = rows(node, node.operands[1].array)
    flat = w.reshape(-1, w.shape[2])
    grid = Grid(scales.astype(np.float64)[:, None], np.zeros((len(flat), 1)), *scheme.limits)
    q = round_rows(flat, grid, scheme.rounding, h)
    return unrows(node, q.reshape(w.shape)).astype(np.int8)


def _shift(node: Node, real: Numbers, places: _Places, found: Moments | None) -> Numbers | None:
    """What a convolution's outputs gain on average by weights `real` in place of its own."""
    mean = places.mean(node)
    if node.op != "Conv" or places.options.correct_bias == "none" or mean is None:
        return None
    error = real - numbers(node.operands[1])
    if found is None:
        return mean_response(error, mean, node.int("group"))
    response: Numbers = np.einsum("gok,gk->go", rows(node, error), found.first).reshape(-1)
    return response


def _corrected(
    graph: Graph,
    whole: Mapping[Node, _Whole],
    products: Mapping[Node, Node],
    data: Calibration,
) -> dict[Node, _Whole]:
    """The same weights with biases that were measured."""
    told = {n: products[n] for n in whole if n.op == "Conv"}
    biases = corrections(graph, told, data)
    return {n: replace(w, bias=biases.get(n, w.bias)) for n, w in whole.items()}


def _insert(
    graph: Graph, places: _Places, whole: Mapping[Node, _Whole]
) -> tuple[Graph, dict[Node, Node]]:
    """The graph again, with readers of int8 reading the dequantized value; and its products."""
    new: dict[Node, Node] = {}
    dequantized: dict[Node, Node] = {}
    for node in graph.nodes:
        reads = places.wishes.of(node)
        inputs = [
            None if i is None else dequantized.get(i, new[i]) if i in reads else new[i]
            for i in node.inputs
        ]
        made = node.with_inputs(inputs)
        if node in whole:
            step = None if places.options.wide else places.scales[reads[0]].step
            made = _with_integers(made, step, whole[node])
        new[node] = made
        if node in places.scales:
            dequantized[node] = _pair(made, places.scales[node])
    products = {n: new[n] for n in places.wishes.products}
    return graph.with_outputs(new[o] for o in graph.outputs), products


def _pair(value: Node, scale: Scale) -> Node:
    """dq(q(value)); channels are axis 1."""
    step = constant(scale.step)
    zero = constant(np.full(scale.step.shape, scale.zero, scale.dtype))
    quantized = make("QuantizeLinear", value, step, zero, name=f"{value.name}/quantize")
    return make("DequantizeLinear", quantized, step, zero, name=f"{value.name}/dequantize")


def _with_integers(node: Node, step: Numbers | None, whole: _Whole) -> Node:
    """A product on float constants -> on dequantized int8 weights and int32 bias.

    `step` is the input's: [], or [C] where each of its channels is a group; None leaves the bias
    in float32.
    """
    weights, given = node.operands[1], input_at(node, 2)
    inputs = [
        node.inputs[0],
        _dequantized(whole.integers, whole.scales, whole.axis, weights.name),
    ]
    name = "" if given is None else given.name
    if whole.bias is not None and step is None:
        inputs.append(constant(whole.bias.astype(np.float32), name))
    elif whole.bias is not None and step is not None:
        step = np.repeat(step, len(whole.scales) // step.size) if step.size > 1 else step
        steps = (whole.scales.astype(np.float64) * step).astype(np.float32)
        steps = np.tile(steps, len(whole.bias) // len(steps))
        rounded = np.rint(whole.bias / steps).astype(np.int32)
        inputs.append(_dequantized(rounded, steps, 0, name))
    return node.with_inputs(inputs) if len(inputs) == len(node.inputs) else rebuilt(node, inputs)


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
