"""DFT and STFT along axes, by steps and of lengths that a run decides.

Axes, steps and lengths known at run time only -> a choice among the few that the output's shape
permits. A transform of an open size -> products with the roots of unity of the run's own size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.ir import Dim, Node, constant
from qcompiler.onnx_io.axes import in_range
from qcompiler.onnx_io.call import Call, Result, always, axis_of
from qcompiler.onnx_io.settle import Settling, plain, settles
from qcompiler.ops import known_value
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.shapes import in_ranges

MOST = 16
"""Most transforms among which a choice is made at run time."""


@settles("DFT", operands=(1, 2))
def _dft(s: Settling) -> Result:
    """One of the few axes along which the output's shape may arise."""
    if not s.call.need(0).type.static:
        return _dft_of_open(s)
    x, axis, length = s.call.need(0).type.dims, s.call.input(2), s.call.input(1)
    places = range(len(x) - 1)
    known = np.array(-2) if axis is None else known_value(axis)
    if known is not None:
        places = range((at := int(known.ravel()[0]) % len(x)), at + 1)
    results = []
    for at in places:
        half = s.call.number("onesided") and s.call.number("inverse")
        whole = 2 * x[at] - 2 if half else x[at]
        sizes = [whole] if length is None else _lengths(s, at)
        results += [(at, n) for n in sizes if _transformed(s, x, at, n) == s.shape]
    if not results or len(results) > MOST:
        raise s.refusal()
    weight = max(n for _, n in results) + 1
    given = s.ints([0])
    if known is None:
        assert axis is not None
        flat = s.flat(axis)
        in_range(s, flat, len(x))
        given = s.node("Mul", s.node("Mod", flat, len(x)), weight)
    else:
        given = s.ints([places[0] * weight])
    own = [n for _, n in results]
    given = s.node("Add", given, s.ints([own[0]]) if length is None else s.flat(length))
    keys = [at * weight + (n if length is not None else own[0]) for at, n in results]
    s.one_of(given, keys, "its axis and length do not give")
    kept = {"inverse": s.call.number("inverse"), "onesided": s.call.number("onesided")}
    made = [
        s.node("DFT", s.call.need(0), None if length is None else n, at, **kept)
        for at, n in results
    ]
    return s.chosen(given, list(zip(keys, made, strict=True)))


def _lengths(s: Settling, axis: int) -> list[int]:
    """The lengths of a transform that give the output's size along an axis."""
    known = known_value(s.call.input(1))
    if known is not None:
        return [int(known.ravel()[0])]
    size = s.shape[axis]
    half = s.call.number("onesided") and not s.call.number("inverse")
    return [2 * size - 2, 2 * size - 1] if half else [size]


def _transformed(s: Settling, x: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    """The shape of a transform of so many values along an axis."""
    one_sided, inverse = s.call.number("onesided"), s.call.number("inverse")
    size = length // 2 + 1 if one_sided and not inverse else length
    return (*x[:axis], size, *x[axis + 1 : -1], 1 if one_sided and inverse else 2)


def _dft_of_open(s: Settling) -> Result:
    """The same of open sizes, of which some may be those that the output's shape names."""
    x, axis, length = s.call.need(0), s.call.input(2), known_value(s.call.input(1))
    if axis is None or known_value(axis) is not None or isinstance(x.shape[-1], str):
        return s.call  # of an unknown length, or of unknown parts
    if s.call.input(1) is not None and length is None:
        raise s.refusal()
    count = None if length is None else int(length.ravel()[0])
    halved = count is None and s.call.number("onesided") and s.call.number("inverse")
    places = [at for at in range(x.type.rank - 1) if not halved or x.shape[at] != 1]
    each = [(at, _transform(s, x, at, count)) for at in places]
    found = [(at, made) for at, made in each if _may_be(made.shape, s.shape)]
    found = [(at, made) for at, made in found if made.shape == s.shape] or found
    if len({made.shape for _, made in found}) != 1:
        raise s.refusal()
    flat = s.flat(axis)
    in_range(s, flat, x.type.rank)
    given = s.node("Mod", flat, x.type.rank)
    s.one_of(given, [at for at, _ in found], "its axis does not give")
    return s.chosen(given, found)


def _may_be(made: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    return len(made) == len(wanted) and all(map(in_ranges, made, wanted))


@always("DFT")
def _dft_of_open_length(call: Call) -> Result:
    """Along an axis that is known, of an open size."""
    x, length = call.need(0), known_value(call.input(1))
    axis = np.array(-2) if call.input(2) is None else known_value(call.input(2))
    unknown = any(d[0] == "?" for d in x.type.symbols)
    if unknown or axis is None or (call.input(1) is not None and length is None):
        return call
    at = axis_of(call, int(axis.ravel()[0]), x.type.rank)
    if isinstance(x.shape[at], int) or isinstance(x.shape[-1], str) or at == x.type.rank - 1:
        return call
    return _products(plain(call), x, at, None if length is None else int(length.ravel()[0]))


def _transform(s: Settling, x: Node, axis: int, length: int | None) -> Node:
    """A DFT along a known axis, as its call says."""
    if isinstance(x.shape[axis], str):
        return _products(s, x, axis, length)
    kept = {"inverse": s.call.get("inverse") or 0, "onesided": s.call.number("onesided")}
    return s.node("DFT", x, length, axis, **kept)


def _products(s: Settling, x: Node, axis: int, length: int | None) -> Node:
    """A DFT along an open axis, of so many values (None: as many as there are): the products of all
    values and roots of unity, which are computed in every run.
    """
    one, back = bool(s.call.number("onesided")), bool(s.call.get("inverse"))
    wide, parts, last = sums_of(x.dtype), x.shape[-1], x.type.rank - 1
    order = (*(a for a in range(last) if a != axis), last, axis)
    values = s.node("Transpose", s.node("Cast", x, to=wide), perm=order)  # [..., parts, positions]
    size = s.length(x, axis)
    count = size if length is None else s.ints([length])
    if length is None and one and back:
        count = s.node("Sub", s.node("Mul", size, 2), 2)
    half = s.node("Add", s.node("Div", count, 2), 1)
    steps = s.steps(size)
    if length is not None:
        used = s.node("Less", steps, half if one and back else count)
        values = s.node("Where", used, values, _number(0, wide))
    cos, sin = _roots(s, steps, s.steps(half if one and not back else count), count, wide)
    if one and back:
        once = s.node(
            "Or", s.node("Equal", steps, 0), s.node("Equal", s.node("Mul", steps, 2), count)
        )
        mirrored = s.node("Where", once, _number(1, wide), _number(2, wide))
        values = s.node("Mul", values, mirrored)
    even, odd = s.node("MatMul", values, cos), s.node("MatMul", values, sin)
    if parts == 1:
        made = even if one and back else s.node("Concat", even, _turned(s, odd, back), axis=-2)
    else:
        made = s.node("Add", even, _turned(s, s.node("Gather", odd, [1, 0], axis=-2), back))
        if one and back:
            made = s.node("Slice", made, [0], [1], [-2])
    if back:
        made = s.node("Div", made, s.node("Cast", count, to=wide))
    made = s.node("Transpose", made, perm=tuple(np.argsort(order).tolist()))
    return s.node("Cast", made, to=x.dtype)


def _turned(s: Settling, odd: Node, back: bool) -> Node:
    """What sines add to real and imaginary parts: [..., parts, bins], of real values [..., 1,
    bins], which add to imaginary parts only.
    """
    signs = [[-1]] if odd.shape[-2] == 1 else [[1], [-1]]
    return s.node("Mul", odd, _number(np.array(signs) * (-1 if back else 1), odd.dtype))


def _roots(s: Settling, steps: Node, bins: Node, count: Node, dtype: str) -> tuple[Node, Node]:
    """cos and sin of 2 pi n k / count, [n, k], by a table of one turn in float64."""
    turns = s.node("Mod", s.node("Mul", s.node("Unsqueeze", steps, [1]), bins), count)
    circle = s.node("Cast", s.steps(count), to="float64")
    circle = s.node("Mul", s.node("Div", circle, s.node("Cast", count, to="float64")),
                    _number(2 * np.pi, "float64"))  # fmt: skip
    tables = (s.node("Cast", s.node(op, circle), to=dtype) for op in ("Cos", "Sin"))
    cos, sin = (s.node("Gather", table, turns, axis=0) for table in tables)
    return cos, sin


def _number(value: object, dtype: str) -> Node:
    return constant(np.asarray(value, dtype))


@settles("STFT", operands=(1, 3))
def _stft(s: Settling) -> Result:
    """As many frames as the output's shape says, of one of the few lengths that give its number of
    frequencies.
    """
    x, window, length = s.call.need(0), s.call.input(2), s.call.input(3)
    frames, bins = s.shape[1:3]
    known = known_value(length)
    sizes: Sequence[Dim]
    if known is not None:
        sizes = [int(known.ravel()[0])]
    elif length is None:
        sizes = [x.shape[1] if window is None else window.shape[0]]
    elif window is not None:
        sizes = [window.shape[0]]
    elif isinstance(bins, int):
        sizes = [2 * bins - 2, 2 * bins - 1] if s.call.number("onesided") else [bins]
    else:
        raise s.refusal()
    step, whole = s.vector(1), s.node("Shape", x, start=1, end=2)
    given = s.ints([sizes[0]]) if length is None or known is not None else s.vector(3)
    s.check(s.node("GreaterOrEqual", step, 1), "its step is below 1")
    s.check(s.node("And", s.node("GreaterOrEqual", given, 1), s.node("LessOrEqual", given, whole)),
            "a frame is longer than the signal")  # fmt: skip
    seen = s.node("Add", s.node("Div", s.node("Sub", whole, given), step), 1)
    s.check(s.node("Equal", seen, [frames]), f"its step and length do not give {frames} frames")
    if len(sizes) == 1:
        s.check(s.node("Equal", given, list(sizes)), "a frame is not as long as its window")
        return _frames(s, step, sizes[0], s.steps(frames))
    numbers = [n for n in sizes if isinstance(n, int)]
    s.one_of(given, numbers, "its length does not give")
    return s.chosen(given, [(n, _frames(s, step, n, s.steps(frames))) for n in numbers])


@always("STFT")
def _stft_of_known(call: Call) -> Result:
    """With a window known at run time only: frames times the window, transformed."""
    x, step, window = call.need(0), known_value(call.need(1)), call.input(2)
    if window is None or known_value(window) is not None or step is None:
        return call
    length = known_value(call.input(3))
    size = window.shape[0] if length is None else int(length.ravel()[0])
    if isinstance(size, str) or (length is None and call.input(3) is not None):
        return call
    s, hop = plain(call), int(step.ravel()[0])
    more = -size % hop  # so that no dividend is below 0
    count = s.node("Div", s.node("Add", s.node("Shape", x, start=1, end=2), more), hop)
    count = s.node("Sub", count, (size + more) // hop - 1)
    return _frames(s, s.ints([hop]), size, s.steps(count))


def _frames(s: Settling, step: Node, size: Dim, frames: Node) -> Node:
    """An STFT of a known length; `frames`: 0, 1, 2, ..., as many as there are."""
    x, window = s.call.need(0), s.call.input(2)
    if x.type.rank == 2:
        x = s.node("Unsqueeze", x, [2])
    first = s.node("Unsqueeze", s.node("Mul", frames, step), [1])
    last = s.node("Sub", s.node("Shape", x, start=1, end=2), 1)
    places = s.node("Min", s.node("Add", first, s.steps(size)), last)
    seen = s.node("Gather", x, s.node("Max", places, 0), axis=1)
    if window is not None:
        seen = s.node("Mul", seen, s.node("Unsqueeze", window, [1]))
    return _transform(s, seen, 2, None)
