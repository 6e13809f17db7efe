"""Lower Resizes with many taps, or of a region, to products.

Resize(x, ...)  ->  a product with a constant matrix along each resized axis

This applies if a region is given, the aspect ratio is kept, or an output has many inputs; all other
Resizes have a kernel. Intermediate numbers are float32. Where a crop extends beyond the input, the
extrapolation value replaces the product's.
"""

from __future__ import annotations

from math import prod

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops import known_value, make
from qcompiler.ops.registry import Numbers
from qcompiler.ops.resize import MAX_TAPS, sampled
from qcompiler.rewrite import Skip, op, rule
from qcompiler.rewrite.matching import const, input_at, to_dtype, transpose

MANY = 64
"""Most inputs of one output, over all axes, that a kernel unrolls."""

MOST = 1 << 24
"""Most elements of one axis' matrix."""


@rule(op("Resize"))
def layout_resize(node: Node) -> Node | Skip | None:
    """Resize(x, ...) -> products with constant matrices."""
    x, given = node.operands[0], [input_at(node, i) for i in (1, 2, 3)]
    arrays = tuple(known_value(i) for i in given)
    if any((i is None) != (a is None) for i, a in zip(given, arrays, strict=True)):
        return Skip("the region, scales or sizes are known at run time only")
    if not (x.type.static and node.type.static) or not node.type.size:
        return None
    if max(node.type.dims) > MAX_TAPS:
        return Skip("it has too many outputs along an axis")
    crops = node.str("coordinate_transformation_mode") == "tf_crop_and_resize"
    found = sampled(node, x.type.dims, arrays)
    kept = node.str("keep_aspect_ratio_policy") != "stretch" and not (arrays[1] is not None)
    if not crops and not kept and prod(s.taps for s in found.values()) <= MANY:
        return None
    if max(len(s.places) * x.type.dims[a] for a, s in found.items()) > MOST:
        return Skip("it needs a matrix of too many elements")
    made = to_dtype(x, "float32")
    for axis, axis_sampled in found.items():
        made = _along(made, axis, axis_sampled.matrix(x.type.dims[axis]))
    if crops:
        made = _outside(node, made, {a: s.outside for a, s in found.items()})
    if "int" in x.dtype:
        low, high = (const(v, "float32") for v in _range(x.dtype))
        made = make("Clip", made, low, high)
    return to_dtype(made, x.dtype)


def _range(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _along(x: Node, axis: int, weights: Numbers) -> Node:
    """weights[after, before] times x along an axis."""
    last = x.type.rank - 1
    order = [*(a for a in range(last + 1) if a != axis), axis]
    back = [*range(axis), last, *range(axis, last)]
    product = make("MatMul", transpose(x, order), const(weights.T, "float32"))
    return transpose(product, back)


def _outside(node: Node, made: Node, missed: dict[int, Numbers]) -> Node:
    """Insert the extrapolation value where an axis' coordinate is outside the input."""
    rank = made.type.rank
    outside: Numbers = np.zeros((1,) * rank, np.bool_)
    for axis, places in missed.items():
        outside = outside | places.reshape(-1, *[1] * (rank - 1 - axis))
    if not outside.any():
        return made
    value = const(node.float("extrapolation_value"), "float32")
    return make("Where", const(outside), value, made)
