"""What stands around padded values: Pad, CenterCropPad, and the borders that windows look beyond.

Where a run's value ends, a border begins that is computed in the run: indices, and where they fall
outside, a number.
"""

from __future__ import annotations

from qcompiler.artifact.sizes import Size, settled
from qcompiler.ir import Dim, Node
from qcompiler.ops import make
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.rewrite.matching import const, int64s
from qcompiler.rewrite.padding.digits import Digits, digits_of, is_open
from qcompiler.rewrite.padding.frame import Padded, Padding
from qcompiler.rewrite.padding.rules import pads


@pads("Pad")
def _pad(p: Padding, node: Node) -> Padded:
    """One axis after the other; those that need no index together."""
    x, mode = p.value(node.operands[0]), node.str("mode")
    widths, axes = known_sizes(node.operands[1]), p.numbers((*node.inputs, None, None)[3])
    if widths is None or (axes is None and len(node.operands) > 3):
        raise p.refused("its widths depend on data")
    over = range(x.rank) if axes is None else [a % x.rank for a in axes]
    begins, ends = (widths.ravel()[i * len(over) : (i + 1) * len(over)].tolist() for i in (0, 1))
    fill = _fill(p, node)
    sizes, plain = node.operands[0].type.shape, [[0, 0] for _ in range(x.rank)]
    for axis, begin, end in zip(over, begins, ends, strict=True):
        fixed = isinstance(begin, int) and isinstance(end, int)
        if fixed and not is_open(x.dims[axis]):
            plain[axis] = [begin, end]
        elif fixed and mode == "constant" and begin >= 0 and end >= 0:
            x = p.prefix(x, axis)
            x = p.masked(x, [axis], fill) if end else x
            plain[axis] = [begin, end]
        elif (begin, end) != (0, 0):
            x = bordered(p, x, axis, sizes[axis], (begin, end), mode, fill)
    flat = [w[side] for side in (0, 1) for w in plain]
    if not any(flat):
        return x
    given = (fill,) if isinstance(fill, Node) else (const(fill, x.node.dtype),)
    made = make("Pad", x.node, int64s(flat), *given, mode=mode, name=node.name)
    new = zip(x.dims, node.type.shape, plain, strict=True)
    return Padded(made, tuple(digits_of([n]) if any(w) else d for d, n, w in new))


@pads("CenterCropPad")
def _center_crop_pad(p: Padding, node: Node) -> Padded:
    """The middle of a dimension, or 0 around it, as this run's sizes say."""
    x = p.value(node.operands[0])
    for axis, (size, count) in enumerate(zip(node.operands[0].shape, node.shape, strict=True)):
        if size == count:
            continue
        x, whole = p.prefix(x, axis), p.size(size)
        first = make("Div", make("Sub", whole, p.size(count)), const([2], "int32"))  # towards 0
        index = make("Add", p.steps(p.at(count)), first)
        x = _shown(p, x, axis, index, whole, digits_of([count]), 0)
    return x


def _shown(
    p: Padding,
    x: Padded,
    axis: int,
    index: Node,
    size: Node,
    digits: Digits,
    fill: float | Node | None,
) -> Padded:
    """A value at other positions along a dimension of so many elements; outside, a number, or what
    is nearest (None).
    """
    zero, last = const([0], "int32"), const([p.whole(x.dims[axis]) - 1], "int32")
    inside = make("And", make("GreaterOrEqual", index, zero), make("Less", index, size))
    taken = p.take(x, axis, make("Min", make("Max", index, zero), last), digits)
    if fill is None:
        return taken
    other = fill if isinstance(fill, Node) else const(fill, x.node.dtype)
    mask = p.along(inside, axis, x.rank)
    return Padded(make("Where", mask, taken.node, other), taken.dims)


def _fill(p: Padding, node: Node) -> float | Node:
    """The number around it."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return 0.0
    value = p.value(node.inputs[2]).node
    return make("Reshape", value, int64s([1])) if value.type.rank else value


def bordered(
    p: Padding,
    x: Padded,
    axis: int,
    size: Dim,
    widths: tuple[Dim, Dim],
    mode: str,
    fill: float | Node,
    room: int = 0,
) -> Padded:
    """A value of `size` positions along a dimension with so many more before and behind, below 0
    fewer, as Pad in that mode makes them; `room`: and at least so many in memory, of the same kind.
    """
    x = p.prefix(x, axis)
    begin, end = widths
    made_of_ = settled(Size.of(size) + begin + end)
    room = room or p.at(made_of_)
    index = p.steps(room)
    if begin != 0:
        index = make("Sub", index, p.size(begin))
    demand_border(p, size, widths, mode)
    whole, one = p.size(size), const([1], "int32")
    if mode == "wrap":
        index = make("Mod", index, whole)
    elif mode == "reflect":
        top = make("Sub", whole, one)
        index = make("Sub", top, make("Abs", make("Sub", top, make("Abs", index))))
    elif mode == "edge":
        index = make("Min", index, make("Sub", whole, one))
    digits = digits_of([made_of_]) if room == p.at(made_of_) else (room,)
    return _shown(p, x, axis, index, whole, digits, fill if mode == "constant" else None)


def demand_border(p: Padding, size: Dim, widths: tuple[Dim, Dim], mode: str) -> None:
    """Raise Error unless every run has what it is to repeat."""
    for width in widths:
        short = not p.at_least(width, 0)
        if short and not p.at_least(settled(Size.of(size) + width), 1):
            raise p.refused("it may cut off more than there is")
        if mode in ("reflect", "wrap"):
            spare = 1 if mode == "reflect" else 0
            if short or not p.at_least(settled(Size.of(size) - width), spare):
                raise p.refused(f"a border ({mode}) may be wider than what it repeats")
