"""Windows over padded images: convolutions and pools.

Behind an image is what its padding is: 0 for sums, the lowest number for a maximum. Windows that
never reach behind an image's end, in any size, need nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node
from qcompiler.ops import make
from qcompiler.ops.pooling import lowest
from qcompiler.ops.window import Window
from qcompiler.rewrite.matching import const, reshape, to_dtype
from qcompiler.rewrite.padding.borders import bordered
from qcompiler.rewrite.padding.digits import Digits, digits_of, is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.rules import demand_axis, demand_closed, made_of, pads


def _image(p: Padding, node: Node) -> Padded:
    """An image, with valid positions first along its spatial dimensions."""
    x = p.value(node.operands[0])
    for axis in range(2, x.rank):
        x = p.prefix(x, axis)
    return x


def _windowed(
    p: Padding, node: Node, kernel: Sequence[Dim] | None, fill: float | Node
) -> tuple[Padded, Window, list[int]]:
    """An image behind whose end is what its padding is, the window, its padding as numbers; and
    the dimensions along which it may reach beyond an end that differs between runs.
    """
    x, sizes = _image(p, node), node.operands[0].type.shape[2:]
    window = Window.of(node, sizes, kernel)
    overlaps = any(k > s for k, s in zip(window.kernel, window.strides, strict=True))
    beside = overlaps and node.op == "Conv"  # kernels may compute a few windows together
    same, masked = [], []
    for i, (size, pads_) in enumerate(zip(sizes, window.pads, strict=True)):
        if pads_ is None:
            x = _same(p, node, x, i, window, fill)
            same.append(2 + i)
        elif isinstance(size, str) and (pads_[1] or window.ceil or beside):
            masked.append(2 + i)
    return p.masked(x, masked, fill), window, same + masked


def _same(p: Padding, node: Node, x: Padded, at: int, window: Window, fill: float | Node) -> Padded:
    """An image with the padding along a dimension that makes as many windows as SAME wants."""
    size, reach, stride = node.operands[0].type.shape[2 + at], window.reach[at], window.strides[at]
    count = node.types[0].shape[2 + at]
    needed = Size.of((Size.of(count) - 1) * stride + reach - size)
    if p.at_least(settled(-needed), 0):  # windows that do not touch each other
        needed = Size.of(0)
    if not p.at_least(settled(needed), 0):
        raise p.refused(f"its padding, {needed}, may be below 0", "export it with explicit pads")
    less, more = needed // 2, needed - needed // 2
    border = (less, more) if node.str("auto_pad") == "SAME_UPPER" else (more, less)
    room = (p.at(count) - 1) * stride + reach
    widths = settled(border[0]), settled(border[1])
    return bordered(p, x, 2 + at, size, widths, "constant", fill, room)


def _flat(window: Window) -> tuple[int, ...]:
    begins, ends = zip(*(w or (0, 0) for w in window.pads), strict=True)
    return (*begins, *ends)


def _floored(node: Node, window: Window) -> dict[str, Any]:
    """The padding with which a pool has as many windows without ceil_mode, in every run."""
    x, made = node.operands[0].type.shape[2:], node.types[0].shape[2:]
    pads: list[tuple[int, int] | None] = []
    for i, (size, count, own) in enumerate(zip(x, made, window.pads, strict=True)):
        if own is None or not window.ceil:
            pads.append(own)
        elif isinstance(size, str) or isinstance(count, str):
            pads.append((own[0], window.ceil_pad(i, own[1])))
        else:
            last = (count - 1) * window.strides[i] + window.reach[i]
            pads.append((own[0], max(last - size - own[0], 0)))
    flat = _flat(replace(window, pads=tuple(pads)))
    return {"auto_pad": "NOTSET", "ceil_mode": 0, "pads": flat}


def _made(p: Padding, node: Node, x: Padded, window: Window, *more: Node) -> Node:
    """The same operator on an image, with the window's padding as numbers."""
    return made_of(p, node, x.node, *more, auto_pad="NOTSET", pads=_flat(window))


def _spatial(made: Node, node: Node, batch: Digits, channels: Digits) -> Padded:
    """What a window makes of an image."""
    return Padded(made, (batch, channels, *(digits_of([d]) for d in node.types[0].shape[2:])))


@pads("Conv", "ConvInteger", "QLinearConv")
def _conv(p: Padding, node: Node) -> Padded:
    place = 3 if node.op == "QLinearConv" else 1
    zero = None if node.op == "Conv" else (*node.inputs, None, None)[2]
    fill = 0.0 if zero is None else p.value(zero).node
    x, window, _ = _windowed(p, node, node.operands[place].type.shape[2:], fill)
    if node.op == "Conv":
        x, w = _channels(p, node, x, 1)
        return _spatial(_made(p, node, x, window, w.node), node, x.dims[0], w.dims[0])
    demand_closed(p, node)
    demand_axis(p, x, [1])
    made = _made(p, node, x, window)
    return _spatial(made, node, x.dims[0], digits_of([node.type.shape[1]]))


def _channels(p: Padding, node: Node, x: Padded, summed: int) -> tuple[Padded, Padded]:
    """An image and weights, whose channels may be open, too: what is not valid adds 0."""
    w = p.value(node.operands[1])
    if not (is_open(x.dims[1]) or w.open):
        demand_closed(p, node)
        return x, w
    if node.int("group") != 1 or any(map(is_open, w.dims[2:])):
        raise p.refused("weights of an open size, of groups or of windows")
    x, w = p.prefix(x, 1), p.prefix(w, summed)
    if x.dims[1] != w.dims[summed]:
        raise p.refused("its channels are only as many as those of its weights for some sizes")
    bias = p.value(node.operands[2]) if len(node.operands) > 2 else None
    if bias is not None and bias.dims[0] != w.dims[1 - summed]:
        raise p.refused("its bias is only as long for some sizes")
    return p.masked(x, [1], 0), p.masked(w, [summed], 0)


@pads("ConvTranspose")
def _conv_transpose(p: Padding, node: Node) -> Padded:
    """Every input adds to a window of outputs; those that are not valid add 0."""
    if node.str("auto_pad") not in ("NOTSET", "VALID") or node.attrs.get("output_shape"):
        raise p.refused("its padding depends on its size", "export it with explicit pads")
    x, w = _channels(p, node, _image(p, node), 0)
    x = p.masked(x, range(2, x.rank), 0)
    channels = digits_of([node.type.shape[1]])
    return _spatial(made_of(p, node, x.node, w.node), node, x.dims[0], channels)


@pads("MaxPool", "LpPool")
def _max_pool(p: Padding, node: Node) -> Padded | tuple[Padded, ...]:
    fill = lowest(node.operands[0].dtype) if node.op == "MaxPool" else 0
    x, window, _ = _windowed(p, node, None, fill)
    if len(node.types) == 1:
        made = made_of(p, node, x.node, **_floored(node, window))
        return _spatial(made, node, *x.dims[:2])
    x = p.prefix(p.prefix(x, 0), 1)
    if None in window.pads:
        raise p.refused("indices of a MaxPool with padding that differs")
    made = made_of(p, node, x.node, **_floored(node, window))
    best, found = (make("item", made, index=i, name=node.name) for i in (0, 1))
    order = [*range(x.rank)]
    if node.int("storage_order"):  # by columns: the first spatial dimension is the innermost
        order[2:] = order[:1:-1]
    rooms, sizes = x.node.type.dims, node.operands[0].type.shape
    index = _numbered(p, found, [rooms[a] for a in order], [sizes[a] for a in order])
    return tuple(_spatial(n, node, *x.dims[:2]) for n in (best, index))


def _numbered(p: Padding, found: Node, rooms: Sequence[int], sizes: Sequence[Dim]) -> Node:
    """Numbers of elements in memory -> those of the same elements in this run."""
    left, made, step = found, const([0], "int64"), const([1], "int64")
    for room, size in zip(reversed(rooms), reversed(sizes), strict=True):
        place = make("Mod", left, const([room], "int64"))
        left = make("Div", left, const([room], "int64"))
        made = make("Add", made, make("Mul", place, step))
        step = make("Mul", step, p.size(size, "int64"))
    return made


@pads("AveragePool")
def _average_pool(p: Padding, node: Node) -> Padded:
    """Where not all counts that windows reach, the average of what does, divided by its share."""
    hidden, window, reached = _windowed(p, node, None, 0)
    counts = bool(node.int("count_include_pad"))
    if not reached or (counts and not window.ceil):
        return _spatial(_made(p, node, hidden, window), node, *hidden.dims[:2])
    if counts and None in window.pads:
        raise p.refused("ceil_mode with padding that differs, which counts")
    own = {**_floored(node, window), "count_include_pad": 1}
    sums = made_of(p, node, hidden.node, **own)
    if counts:
        seen, bare = _bordered(p, node, window, own["pads"]), {"pads": (0,) * len(own["pads"])}
    else:
        seen, bare = _inside(p, node, window), {}
    share = make(node.op, seen, **{**node.attrs, **own, **bare})
    made = make("Div", sums, share, name=node.name)
    return _spatial(made, node, *hidden.dims[:2])


def _bordered(p: Padding, node: Node, window: Window, room: Sequence[int]) -> Node:
    """An image's positions with `room` around them: 1 on it and on its own padding, 0 behind."""
    sizes, mask = node.operands[0].type.shape[2:], None
    rank = len(sizes)
    for i, (size, pads_) in enumerate(zip(sizes, window.pads, strict=True)):
        assert pads_ is not None
        steps = p.steps(room[i] + p.at(size) + room[i + rank])
        own = make("Less", steps, p.size(settled(Size.of(size) + sum(pads_))))
        own = reshape(own, (1, 1, *[1] * i, own.type.size, *[1] * (rank - 1 - i)))
        mask = own if mask is None else make("And", mask, own)
    assert mask is not None
    return to_dtype(mask, node.dtype)


def _inside(p: Padding, node: Node, window: Window) -> Node:
    """1 where an image is, 0 behind its end and on padding that a run computes."""
    x = _image(p, node)
    ones = Padded(const(np.ones((1, 1, *x.node.type.dims[2:])), node.dtype), ((), (), *x.dims[2:]))
    for i, pads_ in enumerate(window.pads):
        if pads_ is None:
            ones = _same(p, node, ones, i, window, 0)
        else:
            ones = p.masked(ones, [2 + i], 0)
    return ones.node
