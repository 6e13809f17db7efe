"""Resize and Upsample with scales, sizes or a region known at run time only -> for the declared
output's shape, indices or weights along each axis, computed in every run.

Sizes that are stretched to follow from the declared shape. A scale does not: it also decides the
coordinates, in float32 as in ONNX's reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np

from qcompiler.ir import Node, constant
from qcompiler.onnx_io.call import Result, axis_of
from qcompiler.onnx_io.settle import Settling, settles
from qcompiler.ops import known_value

MOST = 1 << 22
"""Most weights along one axis."""


def _floats(values: object) -> Node:
    return constant(np.asarray(values, np.float32))


@settles("Upsample", operands=(1,))
def _upsample(s: Settling) -> Result:
    """Output i reads input i / scale, rounded down."""
    call = s.call.but(
        op="Resize",
        inputs=(s.call.need(0), None, s.call.need(1)),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return _resize(Settling(call, s.shapes, s.require))


@settles("Resize", operands=(1, 2, 3))
def _resize(s: Settling) -> Result:
    if s.call.get("coordinate_transformation_mode") is None:  # opset 10: (X, scales)
        return _resize_10(s)
    x = s.call.need(0).type
    if len(s.shape) != x.rank or 0 in (*s.shape, *x.dims):
        raise s.refusal()
    region, scales, sizes = (s.call.input(i) for i in (1, 2, 3))
    crops = s.call.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if scales is not None and scales.type.size:
        return _Resizing.of(s).made()
    if not crops:
        if sizes is None or known_value(sizes) is not None:
            return s.call  # a region that nothing reads
        return _by_sizes(s)
    if known_value(region) is not None and sizes is not None:
        return _by_sizes(s)
    if s.call.get("keep_aspect_ratio_policy") not in (None, "stretch"):
        raise s.refusal()
    s.same(s.vector(3), [s.shape[a] for a in _axes(s)], "the list of sizes")
    return _Resizing.of(s).made()


def _resize_10(s: Settling) -> Result:
    before, after = s.call.need(0).type.dims, s.shape
    pairs = list(zip(before, after, strict=True))
    shrinks, grows = any(b > a for b, a in pairs), any(b < a for b, a in pairs)
    if shrinks and grows and s.call.get("mode") == "nearest":
        raise s.refusal()
    call = s.call.but(
        inputs=(s.call.need(0), None, s.call.need(1)),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil" if shrinks else "floor",
    )
    return _resize(Settling(call, s.shapes, s.require))


def _axes(s: Settling) -> tuple[int, ...]:
    rank = s.call.need(0).type.rank
    return tuple(axis_of(s.call, a, rank) for a in s.call.numbers("axes") or range(rank))


def _by_sizes(s: Settling) -> Result:
    """With sizes: constants, as the output's shape says; one of few if the aspect ratio is kept."""
    axes, given = _axes(s), s.vector(3)
    before = [s.call.need(0).type.dims[a] for a in axes]
    wanted = [s.shape[a] for a in axes]
    policy = s.call.get("keep_aspect_ratio_policy") or "stretch"
    if policy == "stretch":
        s.same(given, wanted, "the list of sizes")
        return s.replaced(3, wanted)
    half = Fraction(1, 2)
    ratios = [Fraction(a, b) for a, b in zip(wanted, before, strict=True)]
    fitting = [
        (at, r)
        for at, r in enumerate(ratios)
        if all(floor(r * b + half) == a for a, b in zip(wanted, before, strict=True))
        and r not in ratios[:at]
    ]
    if not fitting:
        raise s.refusal()
    wide = s.node("Cast", given, to="float64")
    each = s.node("Div", wide, constant(np.array(before, np.float64)))
    least = "ReduceMin" if policy == "not_larger" else "ReduceMax"
    ratio = s.node(least, each, [0], keepdims=1)
    keys = constant(np.array([float(r) for _, r in fitting]))
    hits = s.node("Cast", s.node("Equal", ratio, keys), to="int64")
    total = s.node("ReduceSum", hits, [0], keepdims=1)
    s.check(s.node("Equal", total, 1), f"its sizes do not give the shape {list(s.shape)}")
    results: list[tuple[int, Node]] = []
    for at, r in fitting:
        beyond = 1 << 20 if policy == "not_larger" else 0
        forced = [a if i == at else max(ceil(r * b), 1) + beyond for i, (a, b) in
                  enumerate(zip(wanted, before, strict=True))]  # fmt: skip
        forced = forced if beyond else [a if i == at else 0 for i, a in enumerate(wanted)]
        call = s.replaced(3, forced)
        results.append((len(results), s.node("Resize", *call.inputs, **call.attrs)))
    index = s.node("ArgMax", hits, axis=0, keepdims=1)
    return s.chosen(index, results)


@dataclass
class _Resizing:
    """A Resize by scales, while its nodes are made."""

    s: Settling
    axes: tuple[int, ...]
    scales: Node
    mode: str
    coordinates: str

    @classmethod
    def of(cls, s: Settling) -> _Resizing:
        """The Resize of a call."""
        axes = _axes(s)
        given = s.call.input(2)
        if given is None or not given.type.size:
            x = s.call.need(0).type.dims
            scales = _floats([s.shape[a] / x[a] for a in axes])
        else:
            scales = s.node("Reshape", given, [len(axes)])
        coordinates = str(s.call.get("coordinate_transformation_mode"))
        return cls(s, axes, scales, str(s.call.get("mode")), coordinates)

    def made(self) -> Node:
        """One axis after the other."""
        s, x = self.s, self.s.call.need(0)
        made = x
        if self.mode != "nearest":
            made = s.node("Cast", x, to="float64" if x.dtype == "float64" else "float32")
        outside: Node | None = None
        for i, axis in enumerate(self.axes):
            size, count = x.type.dims[axis], s.shape[axis]
            scale = s.node("Slice", self.scales, [i], [i + 1])
            if known_value(scale) is None:
                seen = s.node("Floor", s.node("Mul", scale, _floats([size])))
                s.check(s.node("Equal", seen, _floats([count])), f"a scale does not give {count}")
            at = self._at(i, scale, size, count)
            if self.mode == "nearest":
                made = s.node("Gather", made, self._nearest(at, size), axis=axis)
            else:
                made = self._product(made, axis, self._weights(at, scale, size, count))
            if self.coordinates == "tf_crop_and_resize":
                low = s.node("Less", at, _floats(0))
                missed = s.node("Or", low, s.node("Greater", at, _floats(size - 1)))
                column = s.node("Reshape", missed, [count] + [1] * (x.type.rank - 1 - axis))
                outside = column if outside is None else s.node("Or", outside, column)
        if outside is not None:
            value = constant(np.array(s.call.real("extrapolation_value")).astype(made.dtype))
            made = s.node("Where", outside, value, made)
        if self.mode != "nearest" and "int" in x.dtype:
            info = np.iinfo(x.dtype)
            made = s.node("Clip", made, _floats(info.min), _floats(info.max))
        return s.node("Cast", made, to=x.dtype)

    def _at(self, i: int, scale: Node, size: int, count: int) -> Node:
        """The coordinate in the input of each output along an axis: float32[count]."""
        s, y = self.s, np.arange(count)
        if self.coordinates == "align_corners":
            width = s.node("Mul", scale, _floats([size]))
            steps = s.node("Div", _floats(y * (size - 1)), s.node("Sub", width, _floats(1)))
            return s.node("Where", s.node("Equal", width, _floats(1)), _floats(0), steps)
        if self.coordinates == "tf_crop_and_resize":
            return self._cropped(i, size, count)
        if self.coordinates == "asymmetric":
            return s.node("Div", _floats(y), scale)
        if self.coordinates == "pytorch_half_pixel" and count == 1:
            return _floats([0])
        at = s.node("Sub", s.node("Div", _floats(y + 0.5), scale), _floats(0.5))
        if self.coordinates == "half_pixel_symmetric":
            share = s.node("Div", _floats(count), s.node("Mul", scale, _floats(size)))
            shift = s.node("Mul", s.node("Sub", _floats(1), share), _floats(size / 2))
            at = s.node("Add", at, shift)
        return at

    def _cropped(self, i: int, size: int, count: int) -> Node:
        s, region = self.s, self.s.call.need(1)
        flat = s.node("Cast", s.node("Reshape", region, [region.type.size]), to="float32")
        half = region.type.size // 2
        place = self.axes[i] if half == s.call.need(0).type.rank else i
        start, end = (
            s.node("Mul", s.node("Slice", flat, [p], [p + 1]), _floats(size - 1))
            for p in (place, place + half)
        )
        if count == 1:
            return s.node("Mul", s.node("Add", start, end), _floats([0.5]))
        steps = _floats(np.arange(count) / (count - 1))
        return s.node("Add", start, s.node("Mul", s.node("Sub", end, start), steps))

    def _nearest(self, at: Node, size: int) -> Node:
        """The index that each coordinate is rounded to."""
        s, way = self.s, str(self.s.call.get("nearest_mode"))
        if way == "round_prefer_floor":
            at = s.node("Ceil", s.node("Sub", at, _floats(0.5)))
        elif way == "round_prefer_ceil":
            at = s.node("Floor", s.node("Add", at, _floats(0.5)))
        else:
            at = s.node(way.capitalize(), at)
        bounded = s.node("Clip", at, _floats(0), _floats(size - 1))
        return s.node("Cast", bounded, to="int64")

    def _weights(self, at: Node, scale: Node, size: int, count: int) -> Node:
        """Weights of all inputs for each output: [count, size]; beyond an edge, of the edge."""
        s, one = self.s, _floats(1)
        narrow = s.node("Min", scale, one) if s.call.get("antialias") else one
        margin = 2 * ceil(max(size / count, 1)) + 2
        places = np.arange(-margin, size + margin)
        if count * len(places) > MOST:
            raise s.refusal()
        distance = s.node("Abs", s.node("Sub", s.node("Unsqueeze", at, [1]), _floats(places)))
        weights = self._kernel(s.node("Mul", distance, narrow))
        if s.call.get("exclude_outside"):
            inside = (places >= 0) & (places < size)
            weights = s.node("Mul", weights, _floats(inside))
        weights = s.node("Div", weights, s.node("ReduceSum", weights, [1], keepdims=1))
        edges = np.zeros((len(places), size), np.float32)
        edges[np.arange(len(places)), np.clip(places, 0, size - 1)] = 1
        return s.node("MatMul", weights, _floats(edges))

    def _kernel(self, d: Node) -> Node:
        """The weight at a distance: linear, or the cubic convolution (R. Keys, 1981)."""
        s = self.s
        if self.mode == "linear":
            return s.node("Max", s.node("Sub", _floats(1), d), _floats(0))
        a = s.call.real("cubic_coeff_a")

        def polynomial(*factors: float) -> Node:
            made = _floats(factors[0])
            for f in factors[1:]:
                made = s.node("Add", s.node("Mul", made, d), _floats(f))
            return made

        near, far = polynomial(a + 2, -(a + 3), 0, 1), polynomial(a, -5 * a, 8 * a, -4 * a)
        beyond = s.node("Where", s.node("Less", d, _floats(2)), far, _floats(0))
        return s.node("Where", s.node("LessOrEqual", d, _floats(1)), near, beyond)

    def _product(self, x: Node, axis: int, weights: Node) -> Node:
        """weights[after, before] times x along an axis."""
        s, last = self.s, x.type.rank - 1
        order = (*(a for a in range(last + 1) if a != axis), axis)
        back = (*range(axis), last, *range(axis, last))
        if x.dtype != "float32":
            weights = s.node("Cast", weights, to=x.dtype)
        flipped = s.node("Transpose", weights, perm=(1, 0))
        product = s.node("MatMul", s.node("Transpose", x, perm=order), flipped)
        return s.node("Transpose", product, perm=back)
