"""Bias correction: new biases that keep every channel's mean in the quantized graph.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
appendix D: layer by layer, the shift of a channel's mean due to quantization is subtracted from its
bias, and later layers see the corrected value. Both graphs are walked once, side by side, with
several samples at each node, as many as a memory budget allows. Few are enough: both graphs see the
same samples, so the differences of their means vary far less than the means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from qcompiler.data.calibrate import Calibration
from qcompiler.ir import Array, Graph, Node, walk
from qcompiler.ops import meaning
from qcompiler.quantization.reconstruct import Floats
from qcompiler.rewrite.matching import input_at

BUDGET_BYTES = 160 << 20
MOST_IMAGES = 64

Values = tuple[Array, ...]


def corrections(
    graph: Graph,
    products: Mapping[Node, Node],
    data: Calibration,
    *,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[Node, Floats]:
    """Map the convolutions of a float graph (`products`: to their quantized counterparts) to their
    corrected biases, [O].

    Uses the first samples, up to `MOST_IMAGES` or as many as keep live values within the budget, at
    least one.
    """
    if not products:
        return {}
    order = list(walk([*graph.inputs, *_paired(graph, products)]))
    least = _live_bytes(order)
    batch = max(int(n.type.dims[0]) for n in products)
    count = max(1, min(MOST_IMAGES // max(batch, 1), budget_bytes // max(least, 1)))
    samples = list(islice(data.samples, count))
    sampled = data.sampled
    inputs: list[Mapping[str, Array]] = samples
    if sampled is not None:
        inputs = [sampled.whole(s) for s in samples]
    counting = None if sampled is None else sampled.counting(graph)

    def means(node: Node, values: list[Values]) -> Floats:
        found = [v[0] for v in values]
        if counting is not None:
            found = [counting(node, v, s) for v, s in zip(found, samples, strict=True)]
        return _means(found)

    wanted: dict[Node, Floats] = {}
    biases: dict[Node, Floats] = {}
    exact = set(products)
    twins = {twin: node for node, twin in products.items()}
    for node, values in _walked(order, inputs):
        if node in exact:
            wanted[node] = means(node, values)
        if node in twins:
            shift = means(twins[node], values) - wanted[twins[node]]
            biases[twins[node]] = bias_of(node) - shift
            spread = shift.astype(np.float32).reshape(-1, *[1] * (node.type.rank - 2))
            values[:] = [(np.asarray(v[0] - spread),) for v in values]  # type: ignore[operator]
    return biases


def _paired(graph: Graph, products: Mapping[Node, Node]) -> Iterator[Node]:
    """Every product, float and quantized side by side, in the order of computation."""
    for node in graph.nodes:
        if node in products:
            yield node
            yield products[node]


def _walked(
    order: list[Node], samples: list[Mapping[str, Array]]
) -> Iterator[tuple[Node, list[Values]]]:
    """Nodes, inputs first, each with its values for all samples; the consumer may change them.

    Values are dropped after their last reader.
    """
    left = _readers(order)
    held: dict[Node, list[Values]] = {}
    for node in order:
        if node.op == "input":
            held[node] = [(np.asarray(s[node.name]),) for s in samples]
        elif node.is_constant:
            held[node] = [(node.array,)] * len(samples)
        else:
            held[node] = [meaning(node, _read(node, held, index)) for index in range(len(samples))]
        yield node, held[node]
        for i in node.operands:
            left[i] -= 1
            if not left[i]:
                del held[i]
        if not left[node]:
            del held[node]


def _readers(order: list[Node]) -> Counter[Node]:
    return Counter(i for node in order for i in node.operands)


def _read(node: Node, held: Mapping[Node, list[Values]], index: int) -> tuple[Array | None, ...]:
    if node.op == "item":
        return held[node.operands[0]][index]
    return tuple(None if i is None else held[i][index][0] for i in node.inputs)


def _live_bytes(order: list[Node]) -> int:
    """Peak bytes of one sample's live values, without constants."""
    left, now, most = _readers(order), 0, 0
    for node in order:
        now += _bytes(node)
        most = max(most, now)
        for i in node.operands:
            left[i] -= 1
            if not left[i]:
                now -= _bytes(i)
        if not left[node]:
            now -= _bytes(node)
    return most


def _bytes(node: Node) -> int:
    return 0 if node.is_constant else sum(t.bytes for t in node.types if t.static)


def _means(values: list[Array]) -> Floats:
    """Values [N,C,*S] of all samples -> the mean of each channel; 0 if no sample has a position."""
    each = [
        v.mean(axis=(0, *range(2, v.ndim)), dtype=np.float64) if v.size else np.zeros(v.shape[1])
        for v in values
    ]
    found: Floats = np.mean(each, axis=0)
    return found


def bias_of(product: Node) -> Floats:
    """A convolution's bias as real numbers, [O]; zeros if it has none."""
    bias = input_at(product, 2)
    if bias is None:
        return np.zeros(int(product.type.dims[1]))
    if bias.is_constant:
        return bias.array.astype(np.float64)
    arrays = tuple(None if i is None else i.array for i in bias.inputs)
    return meaning(bias, arrays)[0].astype(np.float64)
