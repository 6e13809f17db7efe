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

import re
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from networkx.utils import UnionFind

from qcompiler.calibrate import Statistics, fingerprint, value_names
from qcompiler.errors import Error
from qcompiler.ir import Array, Graph, Node, constant
from qcompiler.isa import Device
from qcompiler.ops import OPERATORS, make
from qcompiler.rewrite import Explain, graph_pass
from qcompiler.scales import (
    Numbers,
    Scale,
    activation_scale,
    along,
    numbers,
    room_for_bias,
    round_to,
    weight_scales,
)

WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}
"""Products, and the axis of their weights that runs over output channels."""

# fmt: off
MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool",
    "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    "item",
})
"""What comes out is what went in: one scale for both, and the work is done on integers."""

SMOOTH = frozenset({
    "Add", "AveragePool", "Celu", "Clip", "Elu", "Gelu", "GlobalAveragePool", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Max", "Min", "Mish", "Mul", "PRelu", "ReduceMean", "Relu", "Resize",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu",
})
"""Int8 may come in and go out; in between is float32 in registers, or a table."""
# fmt: on

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@graph_pass
class QuantizeStatic:
    """Conv, ConvTranspose and MatMul on int8, by calibrated ranges.

    activation: "uint8" (asymmetric) or "int8" activations, one scale a tensor; weights are int8,
    symmetric, one scale an output channel, of `weight_bits` (0: 8, or 7 where the device's product
    of bytes saturates at 8). include, exclude: operator types, node names, or regular expressions
    of whole node names; excluded products stay float. through: operators besides MOVES and SMOOTH
    that may read and write int8 ("LayerNormalization"). products: also quantize products of two
    activations (in attention that is not fused).
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
            raise Error(
                "static int8 needs calibration data", hint="give --calibration, or use int8-dynamic"
            )
        if self.activation not in ("uint8", "int8"):
            raise Error(f"activation dtype {self.activation!r}", hint="uint8 or int8")
        if self.statistics.graph != fingerprint(graph):
            raise Error("the calibration is of another graph", hint="calibrate anew")
        places = _Places(graph, self)
        quantized = _insert(graph, places, self.bits())
        told = f"static {self.activation} x int{self.bits()}, {self.statistics.method}"
        if self.statistics.synthetic:
            told += ", SYNTHETIC calibration data: accuracy means nothing"
        return quantized.note(quantization=told)

    def bits(self) -> int:
        """Weight bits, asked of the device's byte product where the option leaves them open."""
        mac = self.device.isa.mac.get(("u8", "i8", "i32")) if self.device else None
        return self.weight_bits or (8 if mac is None or mac.exact else 7)

    def wants(self, node: Node) -> bool:
        """Whether include and exclude let a node be quantized."""
        wanted = not self.include or any(_names(p, node) for p in self.include)
        return wanted and not self.leaves(node)

    def leaves(self, node: Node) -> bool:
        """Whether a node is named in exclude."""
        return any(_names(p, node) for p in self.exclude)

    def skip(self, node: Node, reason: str) -> None:
        """Tell --explain why a node stays float."""
        if self.explain is not None:
            self.explain("quantize_static", node, reason)


def _names(pattern: str, node: Node) -> bool:
    if pattern in (node.op, node.name):
        return True
    try:
        return re.fullmatch(pattern, node.name) is not None
    except re.error as e:
        raise Error(f"{pattern!r} is no regular expression: {e}", where="include or exclude") from e


# ------------------------------------------------------------------------------------------ where


@dataclass
class _Places:
    """Which products become integer, which values are quantized, and how."""

    graph: Graph
    options: QuantizeStatic
    compute: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    """Products -> the activations they read."""
    demanded: set[Node] = field(default_factory=set)
    scales: dict[Node, Scale] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = value_names(self.graph)
        self.ranges = self._ranges()
        self.compute = {n: read for n in self.graph.nodes if (read := self._operands(n))}
        self._demand()
        stored = self.demanded - _melting(self.graph)
        self._choose([n for n in self.graph.nodes if n in stored and n in self.ranges])
        self.compute = {n: r for n, r in self.compute.items() if all(i in self.scales for i in r)}

    def reads_quantized(self, node: Node) -> tuple[Node, ...]:
        """The operands that a node reads as int8, where those are quantized."""
        if node in self.compute:
            return self.compute[node]
        return self._carried(node) if node in self.demanded else ()

    def mean(self, node: Node) -> Numbers | None:
        """The mean of each channel that a product reads, where biases are to be corrected."""
        statistics = self.options.statistics
        assert statistics is not None
        if not self.options.correct_bias:
            return None
        return statistics.mean(self.names[node.operands[0]])

    def _ranges(self) -> dict[Node, tuple[float, float]]:
        statistics = self.options.statistics
        assert statistics is not None
        found = {}
        for node, name in self.names.items():
            seen = statistics.range(name) if node.dtype == "float32" else None
            if seen is not None:
                found[node] = seen
        return found

    def _operands(self, node: Node) -> tuple[Node, ...]:
        """The activations of a product that can be made integer; () for everything else."""
        if node.op not in WEIGHT_AXIS or node.dtype != "float32" or not self.options.wants(node):
            return ()
        data, weights = node.operands[:2]
        reason = ""
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if data.is_constant:
            reason = "its first operand is constant"
        elif not weights.is_constant and (node.op != "MatMul" or not self.options.products):
            reason = "its weights are not constant"
        elif bias is not None and not bias.is_constant:
            reason = "its bias is not constant"
        elif weights.type.rank < 2:
            reason = "its weights are a vector"
        read = (data,) if weights.is_constant else (data, weights)
        for i in read:
            if i not in self.ranges:
                reason = reason or f"{i.name or i.op} was not seen in calibration"
            elif activation_scale(*self.ranges[i], self.options.activation) is None:
                reason = reason or f"{i.name or i.op} has too large a range"
        if reason:
            self.options.skip(node, reason)
        return () if reason else read

    def _demand(self) -> None:
        """Readers first: whoever needs int8 asks its operands for it."""
        for node in reversed(self.graph.nodes):
            if node in self.compute:
                self.demanded.update(self.compute[node])
            elif node in self.demanded:
                self.demanded.update(self._carried(node))

    def _carried(self, node: Node) -> tuple[Node, ...]:
        """The operands a demand goes on to: those of the result's size, not the small ones that
        scale or shift it.
        """
        passes = node.op in MOVES or node.op in SMOOTH or node.op in self.options.through
        if not passes or self.options.leaves(node):
            return ()
        if node.op == "Concat":
            return tuple(i for i in node.operands if not i.is_constant)
        if node.op == "Pad" and not _pads_with_zero(node):
            return ()
        if node.op in MOVES or OPERATORS[node.op].formula is None:
            return node.operands[:1]
        return tuple(i for i in node.operands if not i.is_constant and i.shape == node.shape)

    def _choose(self, stored: list[Node]) -> None:
        """One scale for every set of values that moves of data link."""
        groups = UnionFind(self.graph.nodes)
        for node in self.graph.nodes:
            if node.op in MOVES and node in self.demanded:
                for i in self._carried(node):
                    groups.union(node, i)
        members: dict[Node, list[Node]] = {}
        for node in stored:
            members.setdefault(groups[node], []).append(node)
        both = {i for n, read in self.compute.items() if len(read) == 2 for i in read}
        for group in members.values():
            low = min(self.ranges[n][0] for n in group)
            high = max(self.ranges[n][1] for n in group)
            scale = self._scale(low, high, not both.isdisjoint(group))
            if scale is not None:
                self.scales.update(dict.fromkeys(group, scale))

    def _scale(self, low: float, high: float, symmetric: bool) -> Scale | None:
        """Operands of a product of two activations have zero at 0: no correction sums are needed at
        run time.
        """
        if symmetric:
            return activation_scale(low, high, "int8", symmetric=True)
        return activation_scale(low, high, self.options.activation)


def _pads_with_zero(pad: Node) -> bool:
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    zero = value is None or (value.is_constant and not np.any(value.array))
    return zero or pad.attrs.get("mode") != "constant"


def _melting(graph: Graph) -> set[Node]:
    """The values that never reach memory: read once, by an elementwise node of their shape that
    joins their kernel.

    An elementwise node joins one kernel only: of two products that are added, the first is stored.
    """
    melting: set[Node] = set()
    anchored: set[Node] = set()
    for node in graph.nodes:
        if node.op in ("input", "constant"):
            continue
        if OPERATORS[node.op].formula is None:
            anchored.add(node)
            continue
        read = dict.fromkeys(
            i for i in node.operands if i.op not in VIEWS | {"input", "constant", "item"}
        )
        open_ = [
            i
            for i in read
            if graph.readers[i] == sum(o is i for o in node.operands) and i.types == node.types
        ]
        roots = [i for i in open_ if i in anchored]
        melting.update(i for i in open_ if i not in anchored)
        melting.update(roots[-1:])
        if roots:
            anchored.add(node)
    return melting


# ------------------------------------------------------------------------------------------ how


def _insert(graph: Graph, places: _Places, bits: int) -> Graph:
    """The graph again, with readers of int8 reading the dequantized value."""
    new: dict[Node, Node] = {}
    dequantized: dict[Node, Node] = {}
    for node in graph.nodes:
        reads = places.reads_quantized(node)
        inputs = [
            None if i is None else dequantized.get(i, new[i]) if i in reads else new[i]
            for i in node.inputs
        ]
        made = node.with_inputs(inputs)
        if node in places.compute:
            scales = [places.scales[i].scale for i in reads]
            made = _with_integer_weights(made, scales, bits, places.mean(node))
        new[node] = made
        if node in places.scales:
            dequantized[node] = _pair(made, places.scales[node])
    return graph.with_outputs(new[o] for o in graph.outputs)


def _pair(value: Node, scale: Scale) -> Node:
    """dq(q(value))."""
    step = constant(np.array(scale.scale, np.float32))
    zero = constant(np.array(scale.zero, scale.dtype))
    quantized = make("QuantizeLinear", value, step, zero, name=f"{value.name}/quantize")
    return make("DequantizeLinear", quantized, step, zero, name=f"{value.name}/dequantize")


def _with_integer_weights(
    node: Node, input_scales: list[float], bits: int, mean: Numbers | None
) -> Node:
    """A product on float constants -> on dequantized int8 weights and int32 bias."""
    weights = node.operands[1]
    if not weights.is_constant:
        return node
    axis, rank = WEIGHT_AXIS[node.op] % weights.type.rank, weights.type.rank
    scales = weight_scales(weights.array, axis, bits)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = None if given is None else numbers(given).astype(np.float64)
    groups = node.int("group") if node.op == "ConvTranspose" else 1
    if bias is not None:
        for part in bias.reshape(groups, -1):  # the groups share the scales
            scales = room_for_bias(scales, part, input_scales[0])
    whole = round_to(weights.array, along(scales, rank, axis), "int8", bits)
    if node.op == "Conv" and mean is not None:
        rounded = whole * along(scales, rank, axis).astype(np.float64)
        shift = mean_response(rounded - numbers(weights), mean, node.int("group"))
        bias = (0 if bias is None else bias) - shift
    inputs = [node.inputs[0], _dequantized(whole, scales, axis, weights.name)]
    if bias is not None:
        step = np.tile(scales.astype(np.float64) * input_scales[0], groups).astype(np.float32)
        steps = np.rint(bias / step).astype(np.int32)
        inputs.append(_dequantized(steps, step, 0, "" if given is None else given.name))
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


def _dequantized(whole: Array, scales: Array, axis: int, name: str) -> Node:
    zero = constant(np.zeros(scales.shape, whole.dtype))
    return make("DequantizeLinear", constant(whole, name), constant(scales), zero, axis=axis)
