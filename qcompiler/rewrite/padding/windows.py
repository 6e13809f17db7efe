"""Windows over padded images: convolutions, pools, resizing.

Behind an image is what its padding is: 0 for sums, the lowest number for a maximum. Windows that
never reach behind an image's end, in any size, need nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Dim, Node
from qcompiler.ops import make
from qcompiler.ops.pooling import lowest
from qcompiler.ops.window import Window
from qcompiler.rewrite.matching import const
from qcompiler.rewrite.padding.digits import digits_of
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.rules import demand_axis, demand_closed, made_of, pads


def _image(p: Padding, node: Node) -> Padded:
    """An image, with valid positions first along its spatial dimensions."""
    x = p.value(node.operands[0])
    demand_axis(p, x, [1] if x.rank > 1 else [])
    for axis in range(2, x.rank):
        x = p.prefix(x, axis)
    return x


def _window(p: Padding, node: Node, kernel: Sequence[Dim] | None) -> tuple[Window, list[int]]:
    """Its window, the padding as numbers; and the dimensions along which it may reach beyond an
    end that differs between runs.
    """
    sizes = node.operands[0].type.shape[2:]
    window = Window.of(node, sizes, kernel)
    overlaps = any(k > s for k, s in zip(window.kernel, window.strides, strict=True))
    beside = overlaps and node.op == "Conv"  # kernels may compute a few windows together
    reached = []
    for i, (size, pads_) in enumerate(zip(sizes, window.pads, strict=True)):
        if pads_ is None:
            raise p.refused(f"its padding depends on {size}", "export it with explicit pads")
        if isinstance(size, str) and (pads_[1] or window.ceil or beside):
            reached.append(2 + i)
    return window, reached


def _flat(window: Window) -> tuple[int, ...]:
    begins, ends = zip(*(w or (0, 0) for w in window.pads), strict=True)
    return (*begins, *ends)


def _made(p: Padding, node: Node, x: Padded, window: Window, channels: Dim) -> Padded:
    """The same operator on an image, with the window's padding as numbers."""
    made = made_of(p, node, x.node, auto_pad="NOTSET", pads=_flat(window))
    return _spatial(Padded(made, x.dims), node, channels)


def _spatial(x: Padded, node: Node, channels: Dim) -> Padded:
    """The dimensions of what a window makes of an image."""
    dims = (x.dims[0], digits_of([channels]), *(digits_of([d]) for d in node.types[0].shape[2:]))
    return Padded(x.node, dims)


@pads("Conv", "ConvInteger")
def _conv(p: Padding, node: Node) -> Padded:
    x = _image(p, node)
    demand_closed(p, node)
    window, reached = _window(p, node, node.operands[1].type.shape[2:])
    fill: float | Node = 0.0
    if node.op == "ConvInteger":
        zero = (*node.inputs, None, None)[2]
        fill = 0.0 if zero is None else p.value(zero).node
    return _made(p, node, p.masked(x, reached, fill), window, node.type.shape[1])


@pads("ConvTranspose")
def _conv_transpose(p: Padding, node: Node) -> Padded:
    """Every input adds to a window of outputs; those that are not valid add 0."""
    x = _image(p, node)
    demand_closed(p, node)
    if node.str("auto_pad") not in ("NOTSET", "VALID") or node.attrs.get("output_shape"):
        raise p.refused("its padding depends on its size", "export it with explicit pads")
    x = p.masked(x, range(2, x.rank), 0)
    return _spatial(Padded(made_of(p, node, x.node), x.dims), node, node.type.shape[1])


@pads("MaxPool", "LpPool")
def _max_pool(p: Padding, node: Node) -> Padded:
    if len(node.types) > 1:
        raise p.refused("indices of a MaxPool")
    x = _image(p, node)
    window, reached = _window(p, node, None)
    fill = lowest(x.node.dtype) if node.op == "MaxPool" else 0
    return _made(p, node, p.masked(x, reached, fill), window, node.type.shape[1])


@pads("AveragePool")
def _average_pool(p: Padding, node: Node) -> Padded:
    """Where padding does not count, the average of what does, divided by its share."""
    x = _image(p, node)
    window, reached = _window(p, node, None)
    if window.ceil and reached:
        raise p.refused("ceil_mode along an open size")
    hidden = p.masked(x, reached, 0)
    if not reached or node.int("count_include_pad"):
        return _made(p, node, hidden, window, node.type.shape[1])
    own = {"auto_pad": "NOTSET", "pads": _flat(window)}
    sums = made_of(p, node, hidden.node, **own, count_include_pad=1)
    ones = Padded(const(np.ones((1, 1, *x.node.type.dims[2:])), node.dtype), ((), (), *x.dims[2:]))
    share = made_of(p, node, p.masked(ones, reached, 0).node, **own, count_include_pad=1)
    return _spatial(
        Padded(make("Div", sums, share, name=node.name), x.dims), node, node.type.shape[1]
    )


@pads("Resize")
def _resize(p: Padding, node: Node) -> Padded:
    """By a number that is the same in all runs. The last row is repeated behind an image, where
    outputs may read beyond its end.
    """
    x = _image(p, node)
    before, after = node.operands[0].type.shape, node.type.shape
    demand_axis(p, x, range(min(2, x.rank)))
    scales = [_scale(p, a, b) for a, b in zip(before, after, strict=True)]
    mode, coordinates = node.str("mode"), node.str("coordinate_transformation_mode")
    if coordinates not in ("half_pixel", "asymmetric", "pytorch_half_pixel") or node.int(
        "antialias"
    ):
        raise p.refused(f"Resize by {coordinates}, or antialiased")
    if mode == "cubic" or node.attrs["axes"] is not None or node.int("exclude_outside"):
        raise p.refused(f"Resize {mode}, of some axes, or that leaves out what is outside")
    for axis in x.open:
        if coordinates == "pytorch_half_pixel" and p.bounds(after[axis])[0] < 2:
            raise p.refused(f"{after[axis]} may be 1", "a larger LO in --dim NAME=LO..HI helps")
        if scales[axis] != 1 and (mode != "nearest" or scales[axis].denominator != 1):
            x = _extended(p, x, axis, before[axis])
    factors = const([float(s) for s in scales], "float32")
    made = make("Resize", x.node, None, factors, name=node.name, **node.attrs)
    dims = (*x.dims[:2], *(digits_of([d]) for d in after[2:]))
    return Padded(made, dims)


def _scale(p: Padding, before: Dim, after: Dim) -> Fraction:
    """Outputs for each input. Raises Error where it differs between sizes."""
    if isinstance(before, int) and isinstance(after, int):
        return Fraction(after, before)
    for by in range(1, 65):
        for over, under, up in ((after, before, True), (before, after, False)):
            if Size.of(over) == Size.of(under) * by:
                return Fraction(by) if up else Fraction(1, by)
    raise p.refused(f"{before} is resized to {after}, which is no constant ratio")


def _extended(p: Padding, x: Padded, axis: int, size: Dim) -> Padded:
    """Behind the end of a dimension, its last element again and again."""
    last = make("Sub", p.size(size), const([1], "int32"))
    index = make("Min", p.steps(p.whole(x.dims[axis])), last)
    return p.take(x, axis, index, x.dims[axis])
