"""Static int8 as explicit QDQ: operands of products become QuantizeLinear -> DequantizeLinear, with
calibrated ranges.

Conv(x, w, b)  ->  Conv(dq(q(x)), dq(w8), dq(b32))         likewise ConvTranspose and MatMul

Products demand their operands in int8. The demand propagates backwards through operators that work
equally well on int8 (data movement, pools, activations, residual sums) and stops at all others
(normalisations, Softmax, ...). Of the demanded values, those that are stored in memory are
quantized; a value fused between a product and its activation or residual sum stays float. Values
linked by data movement share one scale. The integer_ rules then lower this to integer operators.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from qcompiler.passes.quantize.common import Twins, noted, weights_right
from qcompiler.passes.quantize.integers import WEIGHT_AXIS, corrected, inserted, integer_weights
from qcompiler.passes.quantize.ranges import (
    APART,
    barriers,
    by_parts,
    channel_axis,
    folds,
    warn,
    widths,
)

from qcompiler.data.calibrate import CANDIDATES, Calibration, Statistics, fingerprint, value_names
from qcompiler.data.columns import Read
from qcompiler.errors import Error
from qcompiler.hardware.isa import Device
from qcompiler.ir import Graph, Node
from qcompiler.ops import is_elementwise
from qcompiler.ops.kinds import MEASURED, MOVES, SMOOTH
from qcompiler.quantization.demand import Demand, linked, propagated, unstored
from qcompiler.quantization.rounding import bits_of
from qcompiler.quantization.scales import (
    LEAST,
    Numbers,
    Scale,
    activation_scale,
    channel_scale,
    has_exact_product,
    multiplies_bfloat16,
    numbers,
    unfit,
    weight_bits,
)
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.rewrite.matching import input_at
from qcompiler.rewrite.mentions import named

log = logging.getLogger(__name__)

ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
CORRECTIONS = ("none", "fast", "full")
PREFERRED = 0.75
"""Another range must reach this fraction of mse's error; a few columns cannot resolve less."""
FINEST = 2.0**-14
"""Least ratio of a channel's step to the largest where `LEAST` would ruin the channel."""
HALF = 16
"""Bits in `layers` that mean bfloat16."""
LOST = 0.006
"""Largest relative error power of a product's output from rounding its input: 22 dB. The worst
product of trained convolutional networks has 26 to 42 dB, of transformers 24 to 39.
"""


@graph_pass
class QuantizeStatic:
    """Conv, ConvTranspose and MatMul on int8, with calibrated ranges.

    activation: "uint8" (asymmetric) or "int8" activations, with one scale per tensor (per channel
    if only depthwise convolutions read it); "uint16" or "int16" activations are only stored so, and
    multiplied by the int8 weights as floats. Weights are int8, symmetric, with one scale per output
    channel, of `weight_bits` (2 to 8; 0: 8, or 7 if the device's byte product saturates at 8).
    layers: other bits for some products, "PATTERN=BITS"; 16 means bfloat16. ranges: other
    calibration methods for the inputs of some products, "PATTERN=METHOD". rounding: "nearest",
    "gptq" or "adaround" (see quantization/rounding.py). per_channel: false gives all weights of a
    product one scale, for devices without per-channel scales. include, exclude: operator types,
    node names, or regular expressions of whole node names; excluded nodes stay float. through:
    operators besides MOVES and SMOOTH that may read and write int8 ("LayerNormalization").
    products: also quantize products of two activations (in attention that is not fused). attention:
    also quantize fused attention, if the device has an exact byte product. correct_bias: "fast"
    subtracts from a product's bias the mean error of rounding its weights, "full" measures the
    error, including all other quantization (see quantization/correction.py), "none" leaves it.
    method, percentile: of calibration; if omitted, as in the data.
    """

    statistics: Statistics | None = None
    data: Calibration | None = None
    method: str = ""
    percentile: float = 0.0
    activation: str = "uint8"
    weight_bits: int = 0
    layers: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
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
        places = Places(graph, self, statistics)
        whole = integer_weights(graph, places)
        made: Graph
        made, products = inserted(graph, places, whole)
        if self.correct_bias == "full" and self.data is not None:
            whole = corrected(graph, whole, products, self.data)
            made, _ = inserted(graph, places, whole)
        bits = "/".join(str(b) for b in sorted({self.bits(n) for n in products}, reverse=True))
        note = f"static {self.activation} x int{bits or 8}, {statistics.method}"
        if self.rounding != "nearest":
            note += f", {self.rounding}"
        if statistics.synthetic:
            note += ", SYNTHETIC calibration data: accuracy means nothing"
        made = self.halved(made, places.lost_names)
        return made.note(quantization=note)

    def halved(self, graph: Graph, lost: Sequence[str]) -> Graph:
        """The graph with a note of the products to lower to bfloat16: those of 16 bits, and those
        that 8 bits would ruin if the device multiplies bfloat16; otherwise the latter stay float32.
        Warns about both.
        """
        count = Counter(n.name for n in graph.nodes if n.op in MEASURED)
        asked = [n.name for n in graph.nodes if n.op in MEASURED and self.asks_half(n)]
        fast = self.device is not None and multiplies_bfloat16(self.device)
        # Products of one name are treated alike.
        half = [n for n in lost if fast and count[n] == lost.count(n)]
        left = [n for n in lost if n not in half]
        for names, what in ((half, "take bfloat16"), (left, "stay float32")):
            if names:
                text = f"8 bits cannot represent the inputs of these products, they {what}: %s"
                log.warning(text, ", ".join(names))
        if left:
            graph = graph.note(kept_float32=", ".join(left))
        made: Graph = noted(graph, [*asked, *half])
        return made

    def asks_half(self, node: Node) -> bool:
        """Is a product requested in 16 bits?"""
        return bits_of(node, self.layers) == HALF

    def check(self) -> None:
        """Raise Error for invalid options."""
        if self.activation not in ACTIVATIONS:
            hint = f"one of {', '.join(ACTIVATIONS)}"
            raise Error(f"activation dtype {self.activation!r}", hint=hint)
        if self.correct_bias not in CORRECTIONS:
            hint = f"one of {', '.join(CORRECTIONS)}"
            raise Error(f"correct_bias {self.correct_bias!r}", hint=hint)
        for spec in self.ranges:
            if spec.rpartition("=")[2] not in CANDIDATES:
                hint = f"one of {', '.join(CANDIDATES)}"
                raise Error(f"ranges: {spec!r} is not PATTERN=METHOD", hint=hint)
        if self.correct_bias == "full" and self.data is None:
            raise Error("correct_bias 'full' needs calibration data", hint="give --calibration")

    @property
    def wide(self) -> bool:
        """Do activations have 16 bits, stored so and multiplied as floats?"""
        return self.activation in ACTIVATIONS[2:]

    def calibrated(self, graph: Graph) -> Statistics:
        """The given statistics, or those of the given data."""
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
        """Do include, exclude and the requested bits allow a product to be quantized?"""
        if self.asks_half(node):
            return False
        return not named(node, self.exclude) and (not self.include or named(node, self.include))

    def passes(self, node: Node) -> bool:
        """Can the demand for int8 propagate through an operator?"""
        fits = node.op in MOVES or node.op in SMOOTH or node.op in self.through
        return fits and not named(node, self.exclude)

    def skip(self, node: Node, reason: str) -> None:
        """Report to --explain why a node stays float."""
        if self.explain is not None:
            self.explain("quantize_static", node, reason)


def _with_twins(
    graph: Graph, statistics: Statistics, transposed: Graph, twins: Twins
) -> tuple[Graph, Statistics]:
    """Statistics of a graph -> the transposed graph, and the statistics of its values, without
    channels, which are along other axes there.
    """
    before, after = value_names(graph), value_names(transposed)
    seen = dict(statistics.values)
    for new, old in twins.items():
        if old in before and (found := statistics.values.get(before[old])) is not None:
            seen[after[new]] = replace(found, channels=None)
    return transposed, replace(statistics, values=seen)


class Places:
    """The products made integer, the values quantized, and their scales."""

    def __init__(self, graph: Graph, options: QuantizeStatic, statistics: Statistics) -> None:
        self.options = options
        self.statistics = statistics
        self.names = value_names(graph)
        self.apart = frozenset() if options.wide else barriers(graph, self.size)
        products = {n: read for n in graph.nodes if (read := self.operands(n))}
        demand = self.demanded(graph, products)
        self.scales = self.choose(graph, demand)
        lost = self.lost(products)
        if lost:
            products = {n: r for n, r in products.items() if n not in lost}
            demand = self.demanded(graph, products)
            self.scales = self.choose(graph, demand)
        self.lost_names = [n.name or n.op for n in graph.nodes if n in lost]
        whole = {n: r for n, r in products.items() if all(i in self.scales for i in r)}
        self.demand = replace(demand, products=whole)
        for node in products.keys() - whole.keys():
            options.skip(node, "the ranges of what it reads are too large, or too far apart")

    def demanded(self, graph: Graph, products: Mapping[Node, tuple[Node, ...]]) -> Demand:
        """These products' demand for int8, up to operators that link very different ranges."""
        passes = self.options.passes
        return propagated(graph, products, lambda n: n not in self.apart and passes(n))

    def operands(self, node: Node) -> tuple[Node, ...]:
        """The activations of a product that can be made integer; () for all other nodes."""
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
        elif bias is not None and not np.isfinite(numbers(bias)).all():
            reason = "its bias is infinite or not a number"
        else:
            reason = unfit(weights.array) if weights.is_constant else ""
        if not reason:
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
        """Was a value seen in calibration?"""
        found = self.statistics.values.get(self.names[node])
        return found is not None and found.samples > 0

    def size(self, node: Node) -> float:
        """The largest magnitude of a value; 0 if unknown."""
        if node.is_constant:
            numbers = node.array if node.dtype == "float32" else np.zeros(0)
            return float(np.abs(numbers).max(initial=0))
        found = self.statistics.values.get(self.names.get(node, ""))
        if found is None or not found.samples or found.infinite:
            return 0.0
        return max(-found.low, found.high)

    def choose(self, graph: Graph, demand: Demand) -> dict[Node, Scale]:
        """Stored value -> scale: one for every set of values linked by data movement."""
        stored = demand.values - unstored(graph)
        heads = linked(graph, demand)
        groups: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            if (
                node in stored
                and node in self.names
                and node.dtype == "float32"
                and self.seen(node)
            ):
                groups.setdefault(heads[node], []).append(node)
        readers = consumers(graph, demand)
        scales: dict[Node, Scale] = {}
        for group in groups.values():
            scale = self.scale(group, [r for n in group for r in readers[n]])
            if scale is not None:
                scales.update(dict.fromkeys(group, scale))
        return scales

    def lost(self, products: Mapping[Node, tuple[Node, ...]]) -> set[Node]:
        """Products whose output error from 8-bit inputs exceeds `LOST`."""
        if self.statistics.method != "output" or self.options.wide or self.statistics.synthetic:
            return set()
        found = set()
        for value, scale in self.scales.items():
            for read in self.statistics.reads.get(self.names[value], ()):
                error = read.error(scale.rounded)
                if read.node in products and error > LOST:
                    found.add(read.node)
                    noise = f"rounding {value.name or value.op} to 8 bits causes noise"
                    self.options.skip(read.node, f"{noise} at {10 * np.log10(error):.0f} dB")
        return found

    def scale(self, group: list[Node], readers: list[Node]) -> Scale | None:
        """One scale for a group of values, given their int8 readers."""
        asked = self.method(readers)
        if asked:
            return self.scaled(group, readers, replace(self.statistics, method=asked))
        if self.statistics.method != "output" or self.options.wide:
            return self.scaled(group, readers, self.statistics)
        reads = [r for n in group for r in self.statistics.reads.get(self.names[n], ())]
        tried = [
            self.scaled(group, readers, replace(self.statistics, method=m)) for m in CANDIDATES
        ]
        found = [s for s in tried if s is not None]
        if not reads or not found:
            return tried[0]
        # A range that clips more than mse must be shown to do no harm.
        judged = [
            s
            for s in found[1:]
            if s.step.sum() >= found[0].step.sum()
            or any(r.beyond(s.rounded, s.step.max()) for r in reads)
        ]
        usual = PREFERRED * sum(r.error(found[0].rounded) for r in reads)
        errors = [(usual, found[0]), *((sum(r.error(s.rounded) for r in reads), s) for s in judged)]
        best = min(errors, key=lambda e: e[0])[1]
        return self.finer(best, group, readers, reads)

    def finer(
        self, best: Scale, group: list[Node], readers: list[Node], reads: list[Read]
    ) -> Scale:
        """If channels differ so much that the least allowed step ruins the small ones, finer steps,
        if they measurably help.
        """

        def worst(scale: Scale) -> float:
            return max(r.error(scale.rounded) for r in reads)

        if best.step.size == 1 or best.folded or worst(best) <= LOST:
            return best
        whole = replace(self.statistics, method="minmax")
        fine = self.scaled(group, readers, whole, least=FINEST)
        return fine if fine is not None and worst(fine) < PREFERRED * worst(best) else best

    def method(self, readers: list[Node]) -> str:
        """The calibration method of the first of `ranges` that names a reader; "" if none does."""
        for spec in self.options.ranges:
            pattern, _, method = spec.rpartition("=")
            if any(named(r, (pattern,)) for r in readers):
                return method
        return ""

    def scaled(
        self, group: list[Node], readers: list[Node], statistics: Statistics, least: float = LEAST
    ) -> Scale | None:
        """The scale for the range of one calibration method; `least` as in channel_scale."""
        ranges = [statistics.range(self.names[n]) or (0.0, 0.0) for n in group]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        # Products of two activations: a zero point of 0 saves sums at run time.
        if any(r.op in ("Attention", "MatMul") and not r.operands[1].is_constant for r in readers):
            return activation_scale(low, high, "int8", symmetric=True)
        seen = statistics.channels(self.names[group[0]])
        if len(group) == 1 and seen and by_channel(readers) and not self.options.wide:
            lows, highs = np.maximum(seen.lows, low), np.minimum(seen.highs, high)
            return channel_scale(lows, highs, self.options.activation, least)
        far = [n for n in group if n in self.apart and n.op == "Concat"]
        parts = None if self.options.wide else self.parts(group, readers)
        if far or parts is not None:
            return self.apart_scale((far or group)[0], parts)
        return activation_scale(low, high, self.options.activation)

    def parts(self, group: list[Node], readers: list[Node]) -> Scale | None:
        """A step for each part of a Concat of very different parts, if the ratios can be folded
        into all its readers; otherwise None.
        """
        value = group[0]
        seen = self.statistics.channels(self.names[value])
        if len(group) > 1 or seen is None or not readers:
            return None
        if not all(folds(r, value) for r in readers):
            return None
        (axis, *others) = {channel_axis(r) for r in readers}
        ranges = None if others else by_parts(seen, widths(value, axis))
        if ranges is None:
            return None
        scale = channel_scale(ranges[0], ranges[1], self.options.activation, least=0)
        return scale and replace(scale, axis=axis, folded=True)

    def apart_scale(self, value: Node, parts: Scale | None) -> Scale | None:
        """The scale by parts, or None (the readers stay float). Warns about both."""
        name = value.name or value.op
        kept = "each part has its own scale" if parts else "its readers stay float"
        warn(f"{name} joins values whose ranges are more than {APART:g} times apart: {kept}")
        return parts

    def mean(self, product: Node) -> Numbers | None:
        """The mean of each input channel of a product, if calibration recorded it."""
        seen = self.statistics.channels(self.names[product.operands[0]])
        return None if seen is None else seen.mean


def consumers(graph: Graph, demand: Demand) -> dict[Node, list[Node]]:
    """Each demanded value -> the nodes that demand it."""
    found: dict[Node, list[Node]] = {n: [] for n in demand.values}
    for node in graph.nodes:
        for i in demand.of(node):
            found[i].append(node)
    return found


def by_channel(readers: list[Node]) -> bool:
    """Do readers work channel by channel, so that each channel may have its own step?

    Depthwise convolutions do, and need it: channels of very different ranges do not mix in them,
    and a common step would lose the small ones. Elementwise operators may be among the readers.
    """
    depthwise = [r for r in readers if r.op == "Conv" and r.int("group") == r.operands[0].shape[1]]
    others = [r for r in readers if r not in depthwise]
    return bool(depthwise) and all(map(is_elementwise, others))
