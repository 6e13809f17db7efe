"""A float graph, and the same one quantized -> biases with which every channel keeps its mean.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
appendix D: what quantization moves the mean of a channel by is taken from its bias, layer by layer.
Here all layers are measured in one sweep over the samples and corrected together, and then again:
a layer that took on too much, because the layers before it were moved as well, gives it back in the
next sweep. That settles after at most as many sweeps as there are layers in a row, mostly after
three or four.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from qcompiler.calibrate import Calibration, Run, value_names
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.matching import input_at, rebuilt
from qcompiler.ops import meaning
from qcompiler.reconstruct import Floats

SWEEPS = 6
ENOUGH = 0.01
"""Means that move by less than this share of their channels' spread are left alone."""

Samples = Iterable[Mapping[str, Array]]
Means = dict[Node, tuple[Floats, Floats]]
"""A product -> the mean and the standard deviation of each of its channels."""


def corrections(
    graph: Graph, quantized: Graph, products: Mapping[Node, Node], data: Calibration
) -> dict[Node, Floats]:
    """Convolutions of a float graph -> what they are in the quantized one, samples -> the bias that
    each should have, [O].
    """
    wanted = means(graph, list(products), data.runner(graph), data.samples)
    floats, inside, slots = with_open_biases(quantized, products)
    biases = {n: bias_of(products[n]) for n in products}
    run = data.runner(floats)
    for _ in range(SWEEPS):
        given = {slots[n].name: b.astype(np.float32) for n, b in biases.items()}
        got = means(floats, list(inside.values()), run, _With(data.samples, given))
        largest = 0.0
        for node, inner in inside.items():
            shift = got[inner][0] - wanted[node][0]
            spread = wanted[node][1] + 1e-12
            largest = max(largest, float(np.abs(shift / spread).max(initial=0)))
            biases[node] = biases[node] - shift
        if largest < ENOUGH:
            break
    return biases


def bias_of(product: Node) -> Floats:
    """A convolution's bias as real numbers, [O]; zeros where it has none."""
    bias = input_at(product, 2)
    if bias is None:
        return np.zeros(int(product.type.dims[1]))
    return real_constant(bias).array.astype(np.float64)


def real_constant(node: Node) -> Node:
    """DequantizeLinear of constants -> the constant it makes; anything else as it is."""
    if node.op != "DequantizeLinear" or not all(i.is_constant for i in node.operands):
        return node
    arrays = tuple(None if i is None else i.array for i in node.inputs)
    return constant(meaning(node, arrays)[0], node.name)


def with_open_biases(
    quantized: Graph, products: Mapping[Node, Node]
) -> tuple[Graph, dict[Node, Node], dict[Node, Node]]:
    """A graph in q/dq pairs -> one that runs in float, whose convolutions take their biases as
    inputs; each product there, and its input.
    """
    asked = {inner: node for node, inner in products.items()}
    inside: dict[Node, Node] = {}
    slots: dict[Node, Node] = {}
    new: dict[Node, Node] = {}
    for node in quantized.nodes:
        inputs = [None if i is None else new[i] for i in node.inputs]
        if node in asked:
            slot = placeholder(f"bias {len(slots)}", Type("float32", (node.type.dims[1],)))
            slots[asked[node]] = slot
            new[node] = inside[asked[node]] = rebuilt(node, [*inputs[:2], slot])
        else:
            new[node] = real_constant(node.with_inputs(inputs))
    made = quantized.with_outputs(new[o] for o in quantized.outputs)
    return replace(made, inputs=(*quantized.inputs, *slots.values())), inside, slots


def means(graph: Graph, products: Iterable[Node], run: Run, samples: Samples) -> Means:
    """Graph, products in it, what runs it, samples -> mean and spread of each of their channels."""
    names = value_names(graph)
    wanted = {names[n]: n for n in products}
    sums: dict[Node, Floats] = {}

    def observe(name: str, array: Array) -> None:
        if name in wanted:
            rows = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)
            seen = np.stack([np.full(len(rows), rows.shape[1]), rows.sum(1), (rows**2).sum(1)])
            sums[wanted[name]] = sums.get(wanted[name], 0) + seen

    for sample in samples:
        run(sample, observe)
    found: Means = {}
    for node, (count, total, squares) in sums.items():
        mean = total / count
        found[node] = mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
    return found


class _With:
    """Samples, each with the same arrays added."""

    def __init__(self, samples: Samples, more: Mapping[str, Array]) -> None:
        self.samples, self.more = samples, more

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        return ({**sample, **self.more} for sample in self.samples)
