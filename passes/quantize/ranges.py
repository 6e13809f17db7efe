"""Values of very different ranges that one scale would serve badly.

In Concat(a, b) with a in 0..640 and b in 0..1, b gets one of 256 steps. Such a Concat does not link
its operands' scales. If its only readers are convolutions and products that sum over the
concatenated channels, each part has its own step and the ratio is folded into the weights:

Conv(Concat(a, b), w)  ->  Conv(dq(q(Concat(a, b), [s, t]), s), [w, w * t / s])

(dequantized with s, b is b * s / t.) Any other reader gets float, with a warning. A Slice, Split or
Gather of small values out of large ones, and a pool that leaves only small ones, are quantized
after that operator, with a scale of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np

from qcompiler.data.calibrate import Channels
from qcompiler.ir import Graph, Node
from qcompiler.ops import is_elementwise
from qcompiler.ops.kinds import MOVES
from qcompiler.ops.registry import Numbers

log = logging.getLogger(__name__)

APART = 32.0
"""A part whose range is smaller by this factor has less than 8 of 256 steps (3 bits)."""

FAR = 32
"""Nodes searched backwards for a Concat."""

ALONG = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize"})
"""Operators that keep channels apart."""

RangeOf = Callable[[Node], float]
"""A value -> its largest magnitude; 0 if unknown."""


@cache
def warn(text: str) -> None:
    """Warn once, however often a search quantizes."""
    log.warning(text)


def apart(sizes: Iterable[float]) -> bool:
    """Are some of these much smaller than others? Zeros are ignored."""
    known = [s for s in sizes if s > 0]
    return bool(known) and max(known) >= APART * min(known)


def barriers(graph: Graph, size: RangeOf) -> frozenset[Node]:
    """The moves of data that link values of very different ranges."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op not in MOVES or len(node.types) > 1:
            continue
        source = node.operands[0]
        if node.op == "item":
            if source.op == "Split" and apart((size(node), size(source.operands[0]))):
                found.add(source)
        elif apart(map(size, node.operands if node.op == "Concat" else (node, source))):
            found.add(node)
    items = (n for n in graph.nodes if n.op == "item" and n.operands[0] in found)
    return frozenset(found.union(items))


def channel_axis(product: Node) -> int:
    """The axis of a product's first operand that it sums over."""
    return 1 if product.op in ("Conv", "ConvTranspose") else product.operands[0].type.rank - 1


def widths(value: Node, axis: int, steps: int = FAR) -> tuple[int, ...]:
    """The number of its channels that come from each operand of a Concat (of Concats, ...) within
    `steps` nodes before it; all of them as one part if there is none.
    """
    while steps > 0:
        steps -= 1
        rank = value.type.rank
        if value.op == "Concat" and value.int("axis") % rank == axis:
            return tuple(n for i in value.operands for n in widths(i, axis, steps // 2))
        if not (is_elementwise(value) or value.op in ALONG or _by_channel(value)):
            break
        data = [i for i in value.operands if not i.is_constant and i.type.rank == rank]
        if len(data) != 1 or data[0].shape[axis] != value.shape[axis]:
            break
        value = data[0]
    return (value.type.dims[axis],)


def _by_channel(value: Node) -> bool:
    """Is it a depthwise convolution with one filter per channel?"""
    if value.op != "Conv" or value.operands[0].type.rank < 2:
        return False
    channels = value.operands[0].shape[1]
    return value.int("group") == channels == value.shape[1]


def by_parts(seen: Channels, parts: tuple[int, ...]) -> tuple[Numbers, Numbers] | None:
    """Observed channels of a Concat with parts of these widths -> the minimum and maximum of each
    channel's part, [C] and [C]; None if the parts' ranges are similar.
    """
    starts = np.cumsum((0, *parts[:-1]))
    if len(parts) < 2 or sum(parts) != len(seen.lows) or 0 in parts:
        return None
    lows = np.minimum.reduceat(seen.lows, starts)
    highs = np.maximum.reduceat(seen.highs, starts)
    if not apart(np.maximum(-lows, highs)):
        return None
    return np.repeat(lows, parts), np.repeat(highs, parts)


def folds(reader: Node, value: Node) -> bool:
    """Can a factor per channel of a value be folded into a reader's weights?"""
    if reader.op not in ("Conv", "MatMul") or reader.operands[0] is not value:
        return False
    w = reader.operands[1]
    plain = reader.int("group") == 1 if reader.op == "Conv" else w.type.rank == 2
    return w.is_constant and w is not value and plain


def folded(reader: Node, factor: Numbers, weights: Numbers | None = None) -> Numbers:
    """A reader's weights (or others of that shape) times a factor per input channel, in float64."""
    w = (reader.operands[1].array if weights is None else weights).astype(np.float64)
    axis = 1 if reader.op == "Conv" else 0
    made: Numbers = w * factor.reshape(-1, *[1] * (w.ndim - 1 - axis))
    return made
