"""Insert QuantizeLinear and DequantizeLinear, and integer weights.

Conv(x, w, b)  ->  Conv(dq(q(x)), dq(w8), dq(b32))

The second half of quantize_static, which decides where, and with which scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from qcompiler.passes.quantize.ranges import folded

from qcompiler.data.calibrate import Calibration
from qcompiler.data.columns import by_rows, rows, unrows
from qcompiler.ir import Graph, Node, constant
from qcompiler.ops import make
from qcompiler.ops.window import Window
from qcompiler.quantization.correction import corrections
from qcompiler.quantization.reconstruct import Grid, Moments
from qcompiler.quantization.rounding import Scheme, grid_of, importance, round_rows, seen
from qcompiler.quantization.scales import (
    Numbers,
    Scale,
    along,
    numbers,
    room_for_bias,
    round_to,
    weight_scales,
)
from qcompiler.rewrite.matching import input_at, rebuilt

if TYPE_CHECKING:
    from qcompiler.passes.quantize.static import Places

WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}
"""Product -> the output-channel axis of its weights."""


@dataclass(frozen=True)
class Whole:
    """A product's integer weights, their scales [C] along `axis`, and the bias [O] that goes with
    them, or None.
    """

    integers: Numbers
    scales: Numbers
    axis: int
    bias: Numbers | None


def integer_weights(graph: Graph, places: Places) -> dict[Node, Whole]:
    """Every product with constant weights -> its integer weights."""
    options = places.options
    todo = [n for n in places.demand.products if n.operands[1].is_constant]
    made: dict[Node, Whole] = {}
    for node, found in seen(graph, todo, options.data, options.rounding):
        made[node] = _whole(node, places, found)
    for node in todo:
        if node not in made:
            made[node] = _whole(node, places, None)
    return made


def _whole(node: Node, places: Places, found: Moments | None) -> Whole:
    weights, options = node.operands[1], places.options
    axis, rank = WEIGHT_AXIS[node.op] % weights.type.rank, weights.type.rank
    scheme = Scheme(bits=options.bits(node), rounding=options.rounding)
    scale = places.scales[node.operands[0]]
    factor = _factor(scale)
    array = weights.array if factor is None else folded(node, factor)
    given = input_at(node, 2)
    bias = None if given is None else numbers(given).astype(np.float64)
    groups = node.int("group") if node.op == "ConvTranspose" else 1
    if scheme.bits >= 7 or not by_rows(node):
        scales = weight_scales(array, axis, scheme.bits)
    else:
        w = rows(node, array)
        squares = None if found is None else importance(found, w.shape[1])
        grid = grid_of(w.reshape(-1, w.shape[2]), scheme, squares)
        scales = grid.scale[:, 0].astype(np.float32)
    if not options.per_channel:
        scales = np.full_like(scales, scales.max())
    step = scale.worth
    step = np.repeat(step, len(scales) // step.size) if step.size > 1 else step
    if bias is not None and not options.wide:
        for part in bias.reshape(groups, -1):  # the groups share the scales
            scales = room_for_bias(scales, part, step)
    if found is None or factor is not None:
        whole = round_to(array, along(scales, rank, axis), "int8", scheme.bits)
    else:
        corrects = options.correct_bias != "none" and node.op == "Conv"
        whole = rounded(node, scales, scheme, found.covariance if corrects else found.second)
    real = whole * along(scales, rank, axis).astype(np.float64)
    shift = _shift(node, real if factor is None else folded(node, 1 / factor, real), places, found)
    if shift is not None:
        bias = (0 if bias is None else bias) - shift
    return Whole(whole, scales, axis, bias)


def _factor(scale: Scale) -> Numbers | None:
    """The factor folded into a product's weights for each input channel, or None."""
    return scale.step.astype(np.float64) / scale.worth if scale.folded else None


def rounded(node: Node, scales: Numbers, scheme: Scheme, h: Numbers) -> Numbers:
    """A product's weights, their scales [O] and moments -> int8 weights."""
    w = rows(node, node.operands[1].array)
    flat = w.reshape(-1, w.shape[2])
    grid = Grid(scales.astype(np.float64)[:, None], np.zeros((len(flat), 1)), *scheme.limits)
    q = round_rows(flat, grid, scheme.rounding, h)
    return unrows(node, q.reshape(w.shape)).astype(np.int8)


def _shift(node: Node, real: Numbers, places: Places, found: Moments | None) -> Numbers | None:
    """The mean change of a convolution's outputs if its weights are replaced by `real`."""
    mean = places.mean(node)
    if node.op != "Conv" or places.options.correct_bias == "none" or mean is None:
        return None
    error = real - numbers(node.operands[1])
    if found is None:
        return mean_response(error * _inside(node), mean, node.int("group"))
    response: Numbers = np.einsum("gok,gk->go", rows(node, error), found.first).reshape(-1)
    return response


def corrected(
    graph: Graph,
    whole: Mapping[Node, Whole],
    products: Mapping[Node, Node],
    data: Calibration,
) -> dict[Node, Whole]:
    """The same weights with biases corrected by measurement."""
    convolutions = {n: products[n] for n in whole if n.op == "Conv"}
    biases = corrections(graph, convolutions, data)
    return {n: replace(w, bias=biases.get(n, w.bias)) for n, w in whole.items()}


def inserted(
    graph: Graph, places: Places, whole: Mapping[Node, Whole]
) -> tuple[Graph, dict[Node, Node]]:
    """The graph with int8 demands reading q/dq pairs, and the map to its new products."""
    new: dict[Node, Node] = {}
    dequantized: dict[Node, Node] = {}
    for node in graph.nodes:
        reads = places.demand.of(node)
        inputs = [
            None if i is None else dequantized.get(i, new[i]) if i in reads else new[i]
            for i in node.inputs
        ]
        made = node.with_inputs(inputs)
        if node in whole:
            step = None if places.options.wide else places.scales[reads[0]].worth
            made = _with_integers(made, step, whole[node])
        new[node] = made
        if node in places.scales:
            dequantized[node] = _pair(made, places.scales[node])
    products = {n: new[n] for n in places.demand.products}
    return graph.with_outputs(new[o] for o in graph.outputs), products


def _pair(value: Node, scale: Scale) -> Node:
    """dq(q(value))."""
    name, axis = value.name, scale.axis
    quantized, back = (
        (constant(s), constant(np.full(s.shape, scale.zero, scale.dtype)))
        for s in (scale.step, scale.worth)
    )
    made = make("QuantizeLinear", value, *quantized, axis=axis, name=f"{name}/quantize")
    return make("DequantizeLinear", made, *back, axis=axis, name=f"{name}/dequantize")


def _with_integers(node: Node, step: Numbers | None, whole: Whole) -> Node:
    """A product of float constants -> of dequantized int8 weights and int32 bias.

    `step` is the input's: [], or [C] if each of its channels is a group; None leaves the bias in
    float32.
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


def _inside(conv: Node) -> Numbers:
    """How much of a mean input each filter position of a convolution sees: padding is zero."""
    sizes = conv.operands[0].type.dims[2:]
    known = [s for s in sizes if isinstance(s, int)]
    if len(known) < len(sizes):
        return np.ones(())
    found: Numbers = Window.of(conv, known, conv.operands[1].type.dims[2:]).inside(known)
    return found


def mean_response(weights: Numbers, mean: Numbers, group: int) -> Numbers:
    """The mean output [O] of a convolution by w[O,C/g,*K] for inputs of means [C].

    For the rounding errors of the weights it is the bias they cause (Nagel et al.,
    "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2).
    """
    taps = weights.reshape(*weights.shape[:2], -1).sum(axis=2)
    grouped = taps.reshape(group, -1, taps.shape[1])
    response: Numbers = np.einsum("goc,gc->go", grouped, mean.reshape(group, -1)).reshape(-1)
    return response


def _dequantized(whole: Numbers, scales: Numbers, axis: int, name: str) -> Node:
    zero = constant(np.zeros(scales.shape, whole.dtype))
    return make("DequantizeLinear", constant(whole, name), constant(scales), zero, axis=axis)
