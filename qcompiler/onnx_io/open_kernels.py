"""Convolutions whose windows are of an open size -> gathered pixels, products and sums.

    Conv           x[N,C,*S] -> seen[N,C,O,K,...] by windows and taps, 0 on padding; times w, summed
    ConvTranspose  x[N,C,*S] times w -> [N,M,S*K,...]; each output adds those that fall on it

A transposed convolution multiplies no 0 that was put between inputs, so that of an infinite number
nothing but its own window is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qcompiler.ir import Node, constant, numpy_dtype
from qcompiler.onnx_io.call import Call
from qcompiler.onnx_io.settle import Settling, plain
from qcompiler.ops.contraction import check_channels, sums_of
from qcompiler.ops.shapes import agree

_LETTERS = "abdefhijklopqrstuvwxyz"
"""Of an equation: for windows and taps; n, g, c and m are samples, groups, channels, outputs."""


@dataclass(frozen=True)
class _Side:
    """One spatial dimension: which pixel a tap of a window meets, int64[windows, taps], and where
    there is one, bool of that shape (None: everywhere).
    """

    place: Node
    inside: Node | None


def are_in(call: Call, weights: int) -> bool:
    """Has a convolution weights, an operand, of an open spatial size that no attribute states?"""
    x, w = call.need(0).type, call.need(weights).type
    sizes = w.shape[2:]
    return (
        w.rank == x.rank > 2
        and not call.numbers("kernel_shape")
        and any(isinstance(d, str) for d in sizes)
        and not any(isinstance(d, str) and d.startswith("?") for d in sizes)
    )


def _convolved(call: Call) -> Node:
    """The output of a Conv."""
    s, dtype = _checked(call), call.need(0).dtype
    wide = sums_of(dtype)
    made = _sums(s, _cast(s, call.need(0), wide), _cast(s, call.need(1), wide))
    return _cast(s, _biased(s, made, call.input(2), wide), dtype)


def _convolved_integers(call: Call) -> Node:
    """The output of a ConvInteger: int32 sums."""
    s = _checked(call)
    x = _centred(s, call.need(0), call.input(2), 0)
    return _sums(s, x, _centred(s, call.need(1), call.input(3), call.need(1).type.rank - 1))


def _convolved_quantized(call: Call) -> Node:
    """The output of a QLinearConv: int32 sums times a number each, rounded."""
    s = _checked(call)
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (call.need(i) for i in range(8))
    behind = w.type.rank - 1
    sums = _sums(s, _centred(s, x, x_zero, 0), _centred(s, w, w_zero, behind))
    sums = _biased(s, sums, call.input(8), "int32")
    scale = s.node("Div", s.node("Mul", s.scalar(x_scale), w_scale), s.scalar(y_scale))
    scaled = s.node("Mul", _cast(s, sums, "float32"), _column(s, scale, behind - 1))
    one = constant(np.ones((), np.float32))
    return s.node("QuantizeLinear", scaled, one, s.scalar(y_zero))


def _transposed(call: Call) -> Node:
    """The output of a ConvTranspose."""
    s, dtype = _checked(call), call.need(0).dtype
    wide, rank = sums_of(dtype), call.need(0).type.rank - 2
    x, w = (_cast(s, call.need(i), wide) for i in (0, 1))
    pixels, taps = _LETTERS[:rank], _LETTERS[rank : 2 * rank]
    if not agree(x.shape[1], w.shape[0]):
        raise call.error(f"weights {w.type} do not fit the input {x.type}")
    made = _product(
        s,
        _grouped(s, x, 1),
        _grouped(s, w, 0),
        f"c{pixels}",
        f"cm{taps}",
        f"m{_woven(pixels, taps)}",
    )
    sizes = [s.length(x, 2 + i) for i in range(rank)]
    kernel = [s.length(w, 2 + i) for i in range(rank)]
    shape = [s.length(made, 0), s.length(made, 1)]
    shape += [s.node("Mul", n, k) for n, k in zip(sizes, kernel, strict=True)]
    made = s.node("Reshape", made, s.node("Concat", *shape, axis=0))
    sides = [_spread(s, i, n, k) for i, (n, k) in enumerate(zip(sizes, kernel, strict=True))]
    for i, (side, taps_) in enumerate(zip(sides, kernel, strict=True)):
        nth = s.steps(taps_)
        made = s.node(
            "Gather", made, s.node("Add", s.node("Mul", side.place, taps_), nth), axis=2 + 2 * i
        )
    made = _where_inside(s, made, sides)
    made = s.node("ReduceSum", made, [3 + 2 * i for i in range(rank)], keepdims=0)
    return _cast(s, _biased(s, made, call.input(2), wide), dtype)


OF: dict[str, Callable[[Call], Node]] = {
    "Conv": _convolved,
    "ConvInteger": _convolved_integers,
    "ConvTranspose": _transposed,
    "QLinearConv": _convolved_quantized,
}
"""An operator -> what makes its output."""


def _checked(call: Call) -> Settling:
    """A call whose attributes fit its input."""
    rank = call.need(0).type.rank - 2
    each = {"strides": (rank, 1), "dilations": (rank, 1), "pads": (2 * rank, 0)}
    each |= {"output_padding": (rank, 0), "output_shape": (rank, 0)}
    for key, (count, least) in each.items():
        values = call.numbers(key)
        if values is not None and (len(values) != count or min(values) < least):
            raise call.error(f"{key} {list(values)} does not fit {rank} spatial dimensions")
    if call.get("auto_pad") not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise call.error(f"unknown auto_pad {call.get('auto_pad')!r}")
    if call.number("group") < 1:
        raise call.error(f"{call.number('group')} groups")
    return plain(call)


def _sums(s: Settling, x: Node, w: Node) -> Node:
    """x[N,C,*S], w[M,C/group,*K] -> [N,M,*O], in their dtype."""
    rank, group = x.type.rank - 2, s.call.number("group")
    check_channels(x.shape[1], w.shape[1], w.shape[0], group)
    outputs, taps = _LETTERS[:rank], _LETTERS[rank : 2 * rank]
    sides = [_seen(s, i, s.length(x, 2 + i), s.length(w, 2 + i)) for i in range(rank)]
    for i, side in enumerate(sides):
        x = s.node("Gather", x, side.place, axis=2 + 2 * i)
    x = _where_inside(s, x, sides)
    left = f"c{_woven(outputs, taps)}"
    return _product(s, _grouped(s, x, 1), _grouped(s, w, 0), left, f"mc{taps}", f"m{outputs}")


def _product(s: Settling, x: Node, w: Node, left: str, right: str, made: str) -> Node:
    """x[N,G,...] times w[G,...], by the letters behind these -> [N,G*M,...]; no G if it is 1."""
    if s.call.number("group") == 1:
        return s.node("Einsum", x, w, equation=f"n{left},{right}->n{made}")
    product = s.node("Einsum", x, w, equation=f"ng{left},g{right}->ng{made}")
    first, rest = s.node("Shape", product, end=1), s.node("Shape", product, start=3)
    return s.node("Reshape", product, s.node("Concat", first, s.ints([-1]), rest, axis=0))


def _grouped(s: Settling, x: Node, axis: int) -> Node:
    """A dimension in groups; as it is, if there is one."""
    group = s.call.number("group")
    if group == 1:
        return x
    first, rest = s.node("Shape", x, end=axis), s.node("Shape", x, start=axis + 1)
    parts = (first, s.ints([group, -1]), rest)
    return s.node("Reshape", x, s.node("Concat", *parts[0 if axis else 1 :], axis=0))


def _woven(outputs: str, taps: str) -> str:
    return "".join(a + b for a, b in zip(outputs, taps, strict=True))


def _where_inside(s: Settling, x: Node, sides: list[_Side]) -> Node:
    """x[N,C,O,K,...], with 0 where no pixel is met."""
    mask: Node | None = None
    for side, behind in zip(sides, range(len(sides) - 1, -1, -1), strict=True):
        if side.inside is not None:
            own = (
                s.node("Unsqueeze", side.inside, list(range(2, 2 + 2 * behind)))
                if behind
                else side.inside
            )
            mask = own if mask is None else s.node("And", mask, own)
    zero = constant(np.zeros((), numpy_dtype(x.dtype)))
    return x if mask is None else s.node("Where", mask, x, zero)


# -- one spatial dimension


def _seen(s: Settling, axis: int, size: Node, taps: Node) -> _Side:
    """The pixels of a convolution's windows."""
    stride, gap = _number(s, "strides", axis), _number(s, "dilations", axis)
    mode = str(s.call.get("auto_pad"))
    more = s.node("Mul", s.node("Sub", taps, 1), gap)
    if mode.startswith("SAME"):
        count = s.node("Div", s.node("Add", size, stride - 1), stride)
        last = s.node("Mul", s.node("Sub", count, 1), stride)
        whole = s.node("Add", s.node("Add", last, more), 1)
        begin, end = _half(s, s.node("Sub", whole, size), mode == "SAME_UPPER"), size
    else:
        pads = _pads(s, axis)
        begin, end = s.ints(pads[0]), s.node("Sub", s.node("Add", size, sum(pads)), more)
    zero, by = (constant(np.array(n, np.int64)) for n in (0, stride))
    steps = s.node("Range", zero, s.scalar(end), by)
    first = s.node("Unsqueeze", steps, [1])
    place = s.node("Sub", s.node("Add", first, _times(s, taps, gap)), begin)
    fits = not mode.startswith("SAME") and not any(pads)
    return _Side(_within(s, place, size), None if fits else _between(s, place, size))


def _spread(s: Settling, axis: int, size: Node, taps: Node) -> _Side:
    """The pixels whose windows reach each output of a transposed convolution."""
    stride, gap = _number(s, "strides", axis), _number(s, "dilations", axis)
    mode, wanted = str(s.call.get("auto_pad")), s.call.numbers("output_shape")
    added = (s.call.numbers("output_padding") or (0,) * (axis + 1))[axis]
    reach = s.node("Add", s.node("Mul", s.node("Sub", taps, 1), gap), 1 + added)
    whole = s.node("Add", s.node("Mul", s.node("Sub", size, 1), stride), reach)
    if wanted is not None or mode.startswith("SAME"):
        count = s.node("Mul", size, stride) if wanted is None else s.ints([wanted[axis]])
        begin = _half(s, s.node("Sub", whole, count), mode == "SAME_UPPER")
    else:
        pads = _pads(s, axis)
        begin, count = s.ints(pads[0]), s.node("Sub", whole, sum(pads))
    outputs = s.node("Add", s.node("Unsqueeze", s.steps(count), [1]), begin)
    far = s.node("Sub", outputs, _times(s, taps, gap))
    place = far if stride == 1 else s.node("Div", far, stride)
    inside = _between(s, far, s.node("Mul", size, stride))
    if stride > 1:
        inside = s.node("And", inside, s.node("Equal", s.node("Mod", far, stride), 0))
    return _Side(_within(s, place, size), inside)


def _half(s: Settling, total: Node, smaller: bool) -> Node:
    """Half of a number, none if it is below 0: the smaller half, or the larger."""
    some = s.node("Max", total, 0)
    return s.node("Div", some if smaller else s.node("Add", some, 1), 2)


def _number(s: Settling, key: str, axis: int) -> int:
    values = s.call.numbers(key)
    return 1 if values is None else values[axis]


def _pads(s: Settling, axis: int) -> tuple[int, int]:
    """Those that attributes state."""
    values = s.call.numbers("pads")
    if values is None or s.call.get("auto_pad") == "VALID":
        return 0, 0
    return values[axis], values[axis + len(values) // 2]


def _within(s: Settling, place: Node, size: Node) -> Node:
    return s.node("Max", s.node("Min", place, s.node("Sub", size, 1)), 0)


def _between(s: Settling, place: Node, size: Node) -> Node:
    return s.node("And", s.node("GreaterOrEqual", place, 0), s.node("Less", place, size))


def _times(s: Settling, taps: Node, gap: int) -> Node:
    return s.node("Mul", s.steps(taps), gap)


# -- numbers


def _cast(s: Settling, x: Node, dtype: str) -> Node:
    return x if x.dtype == dtype else s.node("Cast", x, to=dtype)


def _column(s: Settling, values: Node, behind: int) -> Node:
    """A number for all channels, or one each, in front of `behind` dimensions."""
    each = values.type.rank == 1 and values.shape[0] != 1
    return s.node("Unsqueeze", values, list(range(1, 1 + behind))) if each else s.scalar(values)


def _biased(s: Settling, made: Node, bias: Node | None, dtype: str) -> Node:
    if bias is None:
        return made
    return s.node("Add", made, _column(s, _cast(s, bias, dtype), made.type.rank - 2))


def _centred(s: Settling, x: Node, zero: Node | None, behind: int) -> Node:
    """Bytes less their zero point: int32."""
    wide = _cast(s, x, "int32")
    return (
        wide if zero is None else s.node("Sub", wide, _column(s, _cast(s, zero, "int32"), behind))
    )
