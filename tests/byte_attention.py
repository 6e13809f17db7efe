"""An attention of bytes and its operands -> how far its outputs may be from their meaning.

Weights are rounded to whole numbers from 0 to 255, and kernels compute them with an error of
2^-13.7. So one whose true value is at a tie may be rounded the other way, which moves an output by
its distance from that weight's value over the sum of the weights. Outputs without such a weight may
not move at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.ir import Array, Node
from qcompiler.ops.attention import like_queries, weights_of_bytes

ERROR = 2**-13.6
"""Of a weight: its polynomial's, 2^-13.7, and roundings of scores."""


def spread(root: Node, arrays: Sequence[Array]) -> Array:
    """The node, and its operands that are not constant, in order -> the most that ties may move
    each output, as a float64 array of the output's shape.
    """
    given = iter(arrays)
    q, *others = (
        None if node is None else node.array if node.is_constant else next(given)
        for node in root.inputs
    )
    assert q is not None
    weights, values, seen = weights_of_bytes(root, q, *others)
    tied = np.abs(weights - np.floor(weights) - 0.5) <= ERROR * weights
    whole = np.rint(weights).astype(np.float64)
    total = whole.sum(-1, keepdims=True)
    y = whole @ values / total
    apart = np.abs(values[:, :, None] - y[..., None, :])
    moved = np.einsum("bhqk,bhqkd->bhqd", tied, apart) / (total - tied.sum(-1, keepdims=True))
    return like_queries(np.where(seen, moved, 0), q)
