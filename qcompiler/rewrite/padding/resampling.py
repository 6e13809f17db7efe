"""Resize, GridSample and AffineGrid of padded images.

By a number that is the same in all runs, an image is resized as it is in memory, with its last row
repeated behind its end. By other numbers, where every output lies between inputs is computed in the
run, exactly: coordinates are ratios of integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Dim, Node
from qcompiler.ops import known_value, make
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.shapes import plain_ratio
from qcompiler.rewrite.matching import const, int64s, reshape, to_dtype
from qcompiler.rewrite.padding.digits import digits_of, is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.rules import demand_axis, made_of, pads

_RATIOS = frozenset({"half_pixel", "pytorch_half_pixel", "asymmetric", "half_pixel_symmetric"})
"""Coordinates that an image's end does not change, if the ratio is the same in all runs."""


@pads("Resize")
def _resize(p: Padding, node: Node) -> Padded:
    """First the dimensions that are resized as they are in memory."""
    x = p.value(node.operands[0])
    before, after = node.operands[0].type.shape, node.type.shape
    if node.str("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise p.refused("Resize of a part")
    given = _given(node, x.rank)
    moved = [a for a in range(x.rank) if before[a] != after[a] or given.get(a, 1) != 1]
    found = {a: _constant(p, node, x, a, given.get(a)) for a in moved}
    own = {a: factor for a, factor in found.items() if factor is not None}
    for axis in moved:
        x = p.prefix(x, axis)
        if axis in own and is_open(x.dims[axis]) and not _within(node, own[axis]):
            x = _extended(p, x, axis, before[axis])
    if own:
        x = _by_ratios(p, node, x, own, after)
    for axis in moved:
        if axis not in own:
            x = _along(p, node, x, axis, before[axis], after[axis])
    return x


def _given(node: Node, rank: int) -> dict[int, float]:
    """The scales that a node names, by dimension."""
    scales = (*node.inputs, None, None)[2]
    factors = None if scales is None or not scales.type.size else known_value(scales)
    if factors is None:
        return {}
    axes = range(rank) if node.attrs["axes"] is None else [a % rank for a in node.ints("axes")]
    return dict(zip(axes, map(float, factors.ravel()), strict=True))


def _constant(p: Padding, node: Node, x: Padded, axis: int, given: float | None) -> float | None:
    """The number by which a dimension is resized as it is in memory; None if that is computed."""
    before, after = node.operands[0].shape[axis], node.type.shape[axis]
    if not is_open(x.dims[axis]) and isinstance(before, int) and isinstance(after, int):
        return float(Fraction(after, before)) if given is None else given
    exact = _ratio(before, after)
    ratio = plain_ratio(given) if exact is None and given is not None else exact
    mode = node.str("coordinate_transformation_mode")
    alone = mode != "pytorch_half_pixel" or p.at_least(after, 2)
    even = mode != "half_pixel_symmetric" or exact is not None
    if ratio is not None and mode in _RATIOS and alone and even and not node.int("exclude_outside"):
        return float(ratio)
    if exact is None and given is not None:
        raise p.refused(f"Resize by {given}, which does not come out even")
    return None


def _ratio(before: Dim, after: Dim) -> Fraction | None:
    """Outputs for each input; None where that is not known to be the same in all runs."""
    if after == before:
        return Fraction(1)
    for by in range(2, 65):
        if Size.of(after) == Size.of(before) * by:
            return Fraction(by)
        if Size.of(before) == Size.of(after) * by:
            return Fraction(1, by)
    return None


def _within(node: Node, scale: float) -> bool:
    """Does no output of a run's own read behind its end?"""
    if scale != int(scale) or node.str("mode") != "nearest":
        return scale == 1
    mode, rounds = node.str("coordinate_transformation_mode"), node.str("nearest_mode")
    return rounds == "floor" or (mode != "asymmetric" and rounds.startswith("round"))


def _extended(p: Padding, x: Padded, axis: int, size: Dim) -> Padded:
    """Behind the end of a dimension, its last element again and again."""
    last = make("Sub", p.size(size), const([1], "int32"))
    index = make("Min", p.steps(p.whole(x.dims[axis])), last)
    return p.take(x, axis, index, x.dims[axis])


def _by_ratios(
    p: Padding, node: Node, x: Padded, own: Mapping[int, float], after: Sequence[Dim]
) -> Padded:
    """Some dimensions of an image resized, each by its own number."""
    rooms = [p.at(after[a]) if a in own else n for a, n in enumerate(x.node.type.dims)]
    factors = np.array([own.get(a, 1) for a in range(x.rank)], np.float32)
    attrs = {**node.attrs, "axes": None, "keep_aspect_ratio_policy": "stretch"}
    if np.floor(np.array(x.node.type.dims, np.float32) * factors).tolist() == rooms:
        made = make("Resize", x.node, None, const(factors), name=node.name, **attrs)
    else:
        made = make("Resize", x.node, None, None, int64s(rooms), name=node.name, **attrs)
    dims = tuple(digits_of([after[a]]) if a in own else d for a, d in enumerate(x.dims))
    return Padded(made, dims)


def _along(p: Padding, node: Node, x: Padded, axis: int, size: Dim, count: Dim) -> Padded:
    """A dimension resized to as many outputs as this run has."""
    mode = node.str("mode")
    if node.int("antialias"):
        raise p.refused("an antialiased Resize by a ratio that differs between sizes")
    if "float" not in x.node.dtype and mode != "nearest":
        raise p.refused("Resize of integers by a ratio that differs between sizes")
    over, under = _coordinates(p, node, size, count)
    whole = make("Sub", make("Div", make("Add", over, under), under), const([1], "int64"))
    rest = make("Sub", over, make("Mul", whole, under))
    digits = digits_of([count])
    if mode == "nearest":
        return p.take(x, axis, _inside(p, _nearest(node, whole, rest, under), size), digits)
    share = make("Div", to_dtype(rest, "float32"), to_dtype(under, "float32"))
    taps = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    weights = [_weight(node, share, tap) for tap in taps]
    places = [make("Add", whole, const([tap], "int64")) for tap in taps]
    if node.int("exclude_outside"):
        weights = _excluded(p, places, weights, size)
    total: Node | None = None
    column = (-1, *[1] * (x.rank - 1 - axis))
    for place, weight in zip(places, weights, strict=True):
        part = p.take(x, axis, _inside(p, place, size), digits)
        value = make("Mul", to_dtype(part.node, "float32"), make("Reshape", weight, int64s(column)))
        total = value if total is None else make("Add", total, value)
    assert total is not None
    return Padded(to_dtype(total, node.dtype), part.dims)


def _coordinates(p: Padding, node: Node, size: Dim, count: Dim) -> tuple[Node, Node]:
    """Where outputs lie among inputs: int64 numerators [positions], from minus the denominator on,
    and denominators [1].
    """
    n, m = p.size(size, "int64"), p.size(count, "int64")
    one, two = const([1], "int64"), const([2], "int64")
    y = to_dtype(p.steps(p.at(count)), "int64")
    mode = node.str("coordinate_transformation_mode")
    if mode == "asymmetric":
        return make("Mul", y, n), m
    if mode == "align_corners":
        less = make("Sub", n, one)
        return make("Mul", y, less), make("Max", make("Sub", m, one), one)
    odd = make("Add", make("Mul", y, two), one)
    over, under = make("Sub", make("Mul", odd, n), m), make("Mul", m, two)
    if mode == "pytorch_half_pixel":
        over = make("Where", make("Equal", m, one), const([0], "int64"), over)
    return over, under


def _nearest(node: Node, whole: Node, rest: Node, under: Node) -> Node:
    """Coordinates rounded as the node does."""
    twice = make("Mul", rest, const([2], "int64"))
    mode = node.str("nearest_mode")
    if mode == "floor":
        return whole
    if mode == "ceil":
        up = make("Greater", rest, const([0], "int64"))
    else:
        compare = "Greater" if mode == "round_prefer_floor" else "GreaterOrEqual"
        up = make(compare, twice, under)
    return make("Add", whole, make("Cast", up, to="int64"))


def _inside(p: Padding, place: Node, size: Dim) -> Node:
    """Positions, those outside moved to the ends of a dimension."""
    last = make("Sub", p.size(size, "int64"), const([1], "int64"))
    return make("Max", make("Min", place, last), const([0], "int64"))


def _weight(node: Node, share: Node, tap: int) -> Node:
    """How much an input counts that lies `tap` behind the one before an output; float32."""
    if node.str("mode") == "linear":
        return make("Sub", const([1], "float32"), share) if tap == 0 else share
    a = node.float("cubic_coeff_a")
    away = (
        make("Sub", const([tap], "float32"), share)
        if tap > 0
        else make("Sub", share, const([tap], "float32"))
    )
    near = tap in (0, 1)
    terms = (a + 2, -(a + 3), 0.0, 1.0) if near else (a, -5 * a, 8 * a, -4 * a)
    made = const([terms[0]], "float32")
    for term in terms[1:]:
        made = make("Add", make("Mul", made, away), const([term], "float32"))
    return made


def _excluded(p: Padding, places: list[Node], weights: list[Node], size: Dim) -> list[Node]:
    """Weights of inputs that are there, together 1."""
    n, zero = p.size(size, "int64"), const([0], "int64")
    kept, total = [], None
    for place, weight in zip(places, weights, strict=True):
        there = make("And", make("GreaterOrEqual", place, zero), make("Less", place, n))
        kept.append(make("Where", there, weight, const([0], "float32")))
        total = kept[-1] if total is None else make("Add", total, kept[-1])
    assert total is not None
    return [make("Div", weight, total) for weight in kept]


@pads("GridSample")
def _grid_sample(p: Padding, node: Node) -> Padded:
    """Any number of places. In an image of an open size, places are moved to where they are in
    memory; behind its end are zeros, or its last row again.
    """
    x, grid = (p.value(i) for i in node.operands)
    if x.dims[0] != grid.dims[0]:
        x, grid = p.prefix(x, 0), p.prefix(grid, 0)
    if x.dims[0] != grid.dims[0]:
        raise p.refused("images and places are only equally many for some sizes")
    spatial = [a for a in range(2, x.rank) if is_open(x.dims[a])]
    mode, border = node.str("mode"), node.str("padding_mode")
    for axis in spatial:
        x = p.prefix(x, axis)
        size = node.operands[0].type.shape[axis]
        x = p.masked(x, [axis], 0) if border == "zeros" else _extended(p, x, axis, size)
    dims = (x.dims[0], x.dims[1], *grid.dims[1:-1])
    if not spatial:
        return Padded(made_of(p, node, x.node, grid.node), dims)
    if border != "reflection" and mode != "nearest":
        return Padded(made_of(p, node, x.node, _moved(p, node, x, grid.node)), dims)
    if mode == "cubic":
        raise p.refused("GridSample, cubic, reflection, of an open size")
    at = _placed(p, node, x, grid.node)
    ends = border if border == "zeros" else "border"  # places are inside
    return Padded(made_of(p, node, x.node, at, padding_mode=ends, align_corners=0), dims)


@pads("AffineGrid")
def _affine_grid(p: Padding, node: Node) -> Padded:
    """Any number of grids, for images of any size: each coordinate times its column of theta."""
    theta, (batch, *counts, rank) = p.prefix(p.value(node.operands[0]), 0), node.type.shape
    demand_axis(p, theta, [1, 2])
    wide = to_dtype(theta.node, sums_of(node.dtype))
    columns = [
        reshape(make("Slice", wide, int64s([j]), int64s([j + 1]), int64s([2])),
                (p.at(batch), *[1] * len(counts), p.at(rank)))
        for j in range(len(counts) + 1)
    ]  # fmt: skip
    made = columns[-1]
    inner = 0 if node.int("align_corners") else 1
    for axis, count in enumerate(counts):
        room, one = p.at(count), const([1], "int32")
        size = make("Max", make("Sub", p.size(count), const([1 - inner], "int32")), one)
        twice = const(2 * np.arange(room) + inner, wide.dtype)
        at = make("Sub", make("Div", twice, to_dtype(size, wide.dtype)), const([1], wide.dtype))
        at = reshape(at, (room, *[1] * (len(counts) - axis)))
        made = make("Add", made, make("Mul", at, columns[len(counts) - 1 - axis]))
    dims = (theta.dims[0], *(digits_of([d]) for d in (*counts, rank)))
    return Padded(to_dtype(made, node.dtype), dims)


def _moved(p: Padding, node: Node, x: Padded, grid: Node) -> Node:
    """Places from -1 to 1 of a run's image -> of the image in memory, last dimension first."""
    less, dtype = 1 if node.int("align_corners") else 0, sums_of(grid.dtype)
    parts = []
    for axis in range(x.rank - 1, 1, -1):
        size = make("Sub", p.size(node.operands[0].type.shape[axis]), const([less], "int32"))
        room = const([max(p.whole(x.dims[axis]) - less, 1)], dtype)
        parts.append(make("Div", to_dtype(size, dtype), room))
    share, one = make("Concat", *parts, axis=0), const([1], dtype)
    return make("Sub", make("Mul", make("Add", to_dtype(grid, dtype), one), share), one)


def _placed(p: Padding, node: Node, x: Padded, grid: Node) -> Node:
    """Places from -1 to 1 of a run's image -> of pixels, or between these, in the image in memory,
    by the steps in which GridSample computes which they are.
    """
    dtype, corners = sums_of(x.node.dtype), node.int("align_corners")
    half, one, two = (const([n], dtype) for n in (0.5, 1, 2))
    parts = []
    for axis in range(x.rank - 1, 1, -1):
        size = to_dtype(p.size(node.operands[0].type.shape[axis]), dtype)
        last, room = make("Sub", size, one), p.whole(x.dims[axis])
        at = make("Gather", grid, const([x.rank - 1 - axis], "int32"), axis=x.rank - 1)
        at = make("Add", to_dtype(at, dtype), one)
        if corners:
            at = make("Mul", make("Div", at, two), last)
        else:
            at = make("Div", make("Sub", make("Mul", at, size), one), two)
        at = _bounded(node, at, size)
        at = make("Round", at) if node.str("mode") == "nearest" else at
        share = make("Div", make("Add", at, half), const([room / 2], dtype))
        parts.append(make("Sub", share, one))
    return make("Concat", *parts, axis=x.rank - 1)


def _bounded(node: Node, at: Node, size: Node) -> Node:
    """Coordinates that are finite, and inside an image unless outside is 0."""
    border, dtype = node.str("padding_mode"), at.dtype
    zero, low = const([0], dtype), const([-1e6], dtype)
    finite = make("Less", make("Abs", at), const([np.inf], dtype))
    at = make("Where", finite, at, low if border == "zeros" else zero)
    if border == "zeros":
        return make("Min", make("Max", at, low), const([1e9], dtype))
    last = make("Sub", size, const([1], dtype))
    if border == "reflection":
        first = zero if node.int("align_corners") else const([-0.5], dtype)
        span = last if node.int("align_corners") else size
        twice = make("Mul", span, const([2], dtype))
        folded = make("Mod", make("Sub", at, first), make("Max", twice, const([1], dtype)))
        at = make("Add", first, make("Min", folded, make("Sub", twice, folded)))
    return make("Max", make("Min", at, last), zero)
