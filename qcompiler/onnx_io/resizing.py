"""Resize and Upsample with scales, sizes or a region known at run time only -> for the declared
output's shape, indices or weights along each axis, computed in every run.

Sizes that are stretched to follow from the declared shape. A scale does not: it also decides the
coordinates, in float32 as in ONNX's reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from qcompiler.ir import Dim, Node, constant
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
    return _resize(Settling(call, s.shapes, s.require, size=s.size))


@settles("Resize", operands=(1, 2, 3))
def _resize(s: Settling) -> Result:
    if s.call.get("coordinate_transformation_mode") is None:  # opset 10: (X, scales)
        return _resize_10(s)
    x = s.call.need(0).type
    if len(s.shape) != x.rank or 0 in (*s.shape, *x.shape):
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
    pairs = list(zip(s.call.need(0).shape, s.shape, strict=True))
    known = [(b, a) for b, a in pairs if isinstance(b, int) and isinstance(a, int)]
    if s.call.get("mode") == "nearest" and any(b != a and (b, a) not in known for b, a in pairs):
        raise s.refusal()
    shrinks, grows = any(b > a for b, a in known), any(b < a for b, a in known)
    if shrinks and grows and s.call.get("mode") == "nearest":
        raise s.refusal()
    call = s.call.but(
        inputs=(s.call.need(0), None, s.call.need(1)),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil" if shrinks else "floor",
    )
    return _resize(Settling(call, s.shapes, s.require, size=s.size))


def _axes(s: Settling) -> tuple[int, ...]:
    rank = s.call.need(0).type.rank
    return tuple(axis_of(s.call, a, rank) for a in s.call.numbers("axes") or range(rank))


def _by_sizes(s: Settling) -> Result:
    """With sizes: those that the output's shape says; or all by one of their ratios to the input's
    sizes, if the aspect ratio is kept.
    """
    axes, given = _axes(s), s.vector(3)
    policy = s.call.get("keep_aspect_ratio_policy") or "stretch"
    if policy == "stretch":
        wanted = [s.shape[a] for a in axes]
        s.same(given, wanted, "the list of sizes")
        return s.replaced(3, wanted)
    before = s.ints([s.call.need(0).shape[a] for a in axes])
    each = s.node("Div", *(s.node("Cast", i, to="float64") for i in (given, before)))
    at = s.node("ArgMin" if policy == "not_larger" else "ArgMax", each, axis=0, keepdims=1)
    over, under = (s.node("Gather", i, at, axis=0) for i in (given, before))
    s.check(s.node("Greater", over, 0), "a size below 1")
    scale = s.node("Div", *(s.node("Cast", i, to="float32") for i in (over, under)))
    scales = s.node("Expand", scale, [len(axes)])
    return _Resizing.of(s, scales, (over, under)).made()


def stretched(s: Settling, pairs: Sequence[tuple[Dim, Dim]]) -> Node:
    """A Resize from sizes to others by their ratios, whatever its operands say: (before, after) of
    each axis.
    """
    x, mode = s.call.need(0), str(s.call.get("mode"))
    one = _Resizing(s, (), _floats(()), mode, str(s.call.get("coordinate_transformation_mode")))
    made = one.wide(x)
    for axis, (size, count) in enumerate(pairs):
        if size != count:
            one.ratio = s.ints([count]), s.node("Max", [size], 1)
            made = one.along(made, axis, one.by_ratio(one.ratio, size, count), size)
    return one.narrow(made, x.dtype)


@dataclass
class _Resizing:
    """A Resize by scales, while its nodes are made."""

    s: Settling
    axes: tuple[int, ...]
    scales: Node
    mode: str
    coordinates: str
    ratio: tuple[Node, Node] | None = None
    """The scale of all axes as a ratio of integers, if it is known to be one."""

    @classmethod
    def of(
        cls, s: Settling, scales: Node | None = None, ratio: tuple[Node, Node] | None = None
    ) -> _Resizing:
        """The Resize of a call, by its own scales if none are given."""
        axes, given = _axes(s), scales or s.call.input(2)
        if given is None or not given.type.size:
            x = s.call.need(0).type.dims
            given = _floats([s.shape[a] / x[a] for a in axes])
        scales = s.node("Reshape", given, [len(axes)])
        coordinates = str(s.call.get("coordinate_transformation_mode"))
        return cls(s, axes, scales, str(s.call.get("mode")), coordinates, ratio)

    def made(self) -> Node:
        """One axis after the other."""
        s, x = self.s, self.s.call.need(0)
        made = self.wide(x)
        outside: Node | None = None
        for i, axis in enumerate(self.axes):
            size, count = x.shape[axis], s.shape[axis]
            scale = s.node("Slice", self.scales, [i], [i + 1])
            self._demand(scale, size, count)
            at = self._at(i, scale, size, count)
            if s.call.get("antialias"):
                made = self._product(made, axis, self._weights(at, scale, size, count))
            else:
                made = self.along(made, axis, self._parts(at, size, count), size)
            if self.coordinates == "tf_crop_and_resize":
                low = s.node("Less", at, _floats(0))
                missed = s.node("Or", low, s.node("Greater", at, self._real(size, -1)))
                column = s.node("Reshape", missed, [count] + [1] * (x.type.rank - 1 - axis))
                outside = column if outside is None else s.node("Or", outside, column)
        if outside is not None:
            value = constant(np.array(s.call.real("extrapolation_value")).astype(made.dtype))
            made = s.node("Where", outside, value, made)
        return self.narrow(made, x.dtype)

    def wide(self, x: Node) -> Node:
        """A value as it is interpolated."""
        if self.mode == "nearest":
            return x
        return self.s.node("Cast", x, to="float64" if x.dtype == "float64" else "float32")

    def narrow(self, made: Node, dtype: str) -> Node:
        """What was interpolated, in its type."""
        if self.mode != "nearest" and "int" in dtype:
            info = np.iinfo(dtype)
            made = self.s.node("Clip", made, _floats(info.min), _floats(info.max))
        return self.s.node("Cast", made, to=dtype)

    def along(self, x: Node, axis: int, at: tuple[Node, Node], size: Dim) -> Node:
        """A value resized along an axis: its coordinates, rounded down, and the rests."""
        if self.mode == "nearest":
            return self.s.node("Gather", x, self._nearest(*at, size), axis=axis)
        return self._interpolated(x, axis, at, size)

    def _demand(self, scale: Node, size: Dim, count: Dim) -> None:
        """Check that a scale gives so many outputs."""
        s = self.s
        if self.ratio is not None:
            over, under = self.ratio
            twice = s.node("Add", s.node("Mul", s.node("Mul", over, [size]), 2), under)
            seen = s.node("Div", twice, s.node("Mul", under, 2))
            s.check(s.node("Equal", seen, [count]), f"its sizes do not give {count}")
        elif known_value(scale) is None:
            seen = s.node("Floor", s.node("Mul", scale, self._real(size)))
            s.check(s.node("Equal", seen, self._real(count)), f"a scale does not give {count}")

    def _real(self, size: Dim, more: int = 0) -> Node:
        """A size and a number as float32[1]."""
        if isinstance(size, int):
            return _floats([size + more])
        return self.s.node("Add", self.s.node("Cast", [size], to="float32"), _floats([more]))

    def _parts(self, at: Node, size: Dim, count: Dim) -> tuple[Node, Node]:
        """Coordinates -> rounded down, int64[count], and the rest, float32[count]; by a ratio of
        integers exactly.
        """
        s = self.s
        if self.ratio is None:
            down = s.node("Floor", at)
            return s.node("Cast", down, to="int64"), s.node("Sub", at, down)
        return self.by_ratio(self.ratio, size, count)

    def by_ratio(self, ratio: tuple[Node, Node], size: Dim, count: Dim) -> tuple[Node, Node]:
        """Coordinates, rounded down, and the rest, by a ratio of sizes."""
        s = self.s
        over, under = self._quotient(*ratio, size, count)
        whole = s.node("Sub", s.node("Div", s.node("Add", over, under), under), 1)
        rest = s.node("Sub", over, s.node("Mul", whole, under))
        return whole, s.node("Div", *(s.node("Cast", n, to="float32") for n in (rest, under)))

    def _quotient(self, over: Node, under: Node, size: Dim, count: Dim) -> tuple[Node, Node]:
        """The coordinate of each output, above -1, as a ratio of int64[count] and int64[1]."""
        s, y = self.s, self.s.steps(count)
        if self.coordinates == "align_corners":
            last = s.node("Max", s.node("Sub", [count], 1), 1)
            return s.node("Mul", y, s.node("Sub", [size], 1)), last
        if self.coordinates == "asymmetric":
            return s.node("Mul", y, under), over
        odd = s.node("Add", s.node("Mul", y, 2), 1)
        at = s.node("Sub", s.node("Mul", odd, under), over)
        if self.coordinates == "half_pixel_symmetric":
            shift = s.node("Sub", s.node("Mul", over, [size]), s.node("Mul", under, [count]))
            at = s.node("Add", at, shift)
        if self.coordinates == "pytorch_half_pixel":
            at = s.node("Where", s.node("Equal", [count], 1), 0, at)
        return at, s.node("Mul", over, 2)

    def _at(self, i: int, scale: Node, size: Dim, count: Dim) -> Node:
        """The coordinate in the input of each output along an axis: float32[count]."""
        s, y = self.s, self.s.node("Cast", self.s.steps(count), to="float32")
        if self.coordinates == "align_corners":
            width = s.node("Mul", scale, self._real(size))
            steps = s.node("Mul", y, self._real(size, -1))
            steps = s.node("Div", steps, s.node("Sub", width, _floats(1)))
            return s.node("Where", s.node("Equal", width, _floats(1)), _floats(0), steps)
        if self.coordinates == "tf_crop_and_resize":
            return self._cropped(i, size, count)
        if self.coordinates == "asymmetric":
            return s.node("Div", y, scale)
        half = _floats(0.5)
        at = s.node("Sub", s.node("Div", s.node("Add", y, half), scale), half)
        if self.coordinates == "pytorch_half_pixel":
            at = s.node("Where", s.node("Equal", [count], 1), _floats(0), at)
        if self.coordinates == "half_pixel_symmetric":
            share = s.node("Div", self._real(count), s.node("Mul", scale, self._real(size)))
            shift = s.node("Sub", _floats(1), share)
            at = s.node("Add", at, s.node("Mul", shift, s.node("Mul", self._real(size), half)))
        return at

    def _cropped(self, i: int, size: Dim, count: Dim) -> Node:
        s, region = self.s, self.s.call.need(1)
        if isinstance(size, str) or isinstance(count, str):
            raise s.refusal()
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

    def _nearest(self, whole: Node, share: Node, size: Dim) -> Node:
        """The index that each coordinate is rounded to."""
        s, way = self.s, str(self.s.call.get("nearest_mode"))
        if way == "ceil":
            up = s.node("Greater", share, _floats(0))
        elif way != "floor":
            compare = "Greater" if way == "round_prefer_floor" else "GreaterOrEqual"
            up = s.node(compare, share, _floats(0.5))
        if way != "floor":
            whole = s.node("Add", whole, s.node("Cast", up, to="int64"))
        return self._inside(whole, size)

    def _inside(self, place: Node, size: Dim) -> Node:
        """Positions, those outside moved to the ends of an axis."""
        last = self.s.node("Sub", [size], 1)
        return self.s.node("Max", self.s.node("Min", place, last), 0)

    def _interpolated(self, x: Node, axis: int, at: tuple[Node, Node], size: Dim) -> Node:
        """The sum of the inputs near each coordinate, by their weights."""
        s, (whole, share) = self.s, at
        taps = (0, 1) if self.mode == "linear" else (-1, 0, 1, 2)
        places = [s.node("Add", whole, tap) for tap in taps]
        weights = [self._kernel(s.node("Abs", s.node("Sub", share, _floats(tap)))) for tap in taps]
        if s.call.get("exclude_outside"):
            there = (s.node("Equal", p, self._inside(p, size)) for p in places)
            weights = [
                s.node("Where", t, w, _floats(0)) for t, w in zip(there, weights, strict=True)
            ]
        total, parts = weights[0], []
        for weight in weights[1:]:
            total = s.node("Add", total, weight)
        column = [-1] + [1] * (x.type.rank - 1 - axis)
        for place, weight in zip(places, weights, strict=True):
            factor = s.node("Reshape", s.node("Div", weight, total), column)
            seen = s.node("Gather", x, self._inside(place, size), axis=axis)
            parts.append(s.node("Mul", seen, s.node("Cast", factor, to=x.dtype)))
        made = parts[0]
        for part in parts[1:]:
            made = s.node("Add", made, part)
        return made

    def _weights(self, at: Node, scale: Node, size: Dim, count: Dim) -> Node:
        """Weights of all inputs for each output of an antialiased Resize: [count, size];
        beyond an edge, of the edge.
        """
        s = self.s
        if isinstance(size, str) or isinstance(count, str):
            raise s.refusal()
        narrow = s.node("Min", scale, _floats(1))
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
