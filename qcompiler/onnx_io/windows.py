"""Convolutions and pools -> with explicit kernel, strides, dilations and padding; those of open
kernels -> products and sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompiler.ir import Dim, Node, numpy_dtype
from qcompiler.onnx_io import open_kernels
from qcompiler.onnx_io.call import Call, Result, always
from qcompiler.onnx_io.settle import Settling, plain
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.shapes import agree


@dataclass(frozen=True)
class _Window:
    """A sliding window, one number per spatial dimension; pads are begins, then ends."""

    sizes: tuple[Dim, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    """None: they depend on an unknown size."""

    @property
    def reach(self) -> list[int]:
        """The extent of one window, with dilation."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def _window(call: Call, weights: int | None) -> _Window:
    x = call.need(0)
    rank = x.type.rank - 2
    if rank < 1:
        raise call.error(f"input {x.type} has no spatial dimensions")
    kernel = call.numbers("kernel_shape")
    if weights is not None:
        w = call.need(weights).type
        if w.rank != x.type.rank:
            raise call.error(f"weights {w} do not fit the input {x.type}")
        for size, given in zip(w.shape[2:], kernel or (), strict=False):
            agree(size, given)
        if not all(isinstance(d, int) for d in w.shape[2:]):
            raise call.error(f"the kernel's size is not known: {w}")
        own = tuple(int(d) for d in w.shape[2:])
        if kernel is not None and kernel != own:
            raise call.error(f"kernel_shape {list(kernel)} is not that of the weights {w}")
        kernel = own
    ones = (1,) * rank
    strides, dilations = call.numbers("strides") or ones, call.numbers("dilations") or ones
    for key, values in (("kernel_shape", kernel), ("strides", strides), ("dilations", dilations)):
        if values is None or len(values) != rank or min(values) < 1:
            raise call.error(f"{key} {list(values or ())} does not fit {rank} spatial dimensions")
    assert kernel is not None
    pads = call.numbers("pads") or (0,) * (2 * rank)
    if len(pads) != 2 * rank or min(pads) < 0:
        raise call.error(f"pads {list(pads)} do not fit {rank} spatial dimensions")
    return _Window(x.shape[2:], kernel, strides, dilations, pads)


def _begins_then_ends(totals: Sequence[int], *, more_at_end: bool) -> tuple[int, ...]:
    less = [t // 2 for t in totals]
    more = [t - t // 2 for t in totals]
    return (*less, *more) if more_at_end else (*more, *less)


def _same_pads(window: _Window, mode: str) -> tuple[int, ...] | None:
    """auto_pad SAME: ceil(size / stride) outputs; None if sizes are unknown."""
    totals: list[int] = []
    for size, reach, stride in zip(window.sizes, window.reach, window.strides, strict=True):
        if stride == 1:
            totals.append(reach - 1)
        elif isinstance(size, int):
            totals.append(max((-(-size // stride) - 1) * stride + reach - size, 0))
        else:
            return None
    return _begins_then_ends(totals, more_at_end=mode == "SAME_UPPER")


def _padded(call: Call, window: _Window) -> _Window:
    mode = call.get("auto_pad")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return replace(window, pads=_same_pads(window, str(mode)))
    if mode == "VALID":
        return replace(window, pads=(0,) * (2 * len(window.sizes)))
    if mode != "NOTSET":
        raise call.error(f"unknown auto_pad {mode!r}")
    return window


def _explicit(call: Call, window: _Window) -> Call:
    """The call with an explicit window; auto_pad stays if the padding is known at run time only."""
    spelled = call.but(
        kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations
    )
    if window.pads is None:
        return spelled.but(drop=("pads",))
    return spelled.but(drop=("auto_pad",), pads=window.pads)


@always("Conv", "ConvInteger", "QLinearConv")
def _conv(call: Call) -> Result:
    weights = 3 if call.op == "QLinearConv" else 1
    if open_kernels.are_in(call, weights):
        return open_kernels.OF[call.op](call)
    return _explicit(call, _padded(call, _window(call, weights)))


@always("AveragePool", "MaxPool", "LpPool")
def _pool(call: Call) -> Call:
    """ceil_mode becomes padding where that is exact: where averages exclude the padding."""
    window = _padded(call, _window(call, None))
    call = _explicit(call, window)
    known = window.pads is not None and all(isinstance(size, int) for size in window.sizes)
    if not call.get("ceil_mode") or not known:
        return call
    rank = len(window.kernel)
    assert window.pads is not None
    extra: list[int] = []
    for i, reach in enumerate(window.reach):
        begin, end, stride = window.pads[i], window.pads[i + rank], window.strides[i]
        padded = int(window.sizes[i]) + begin + end
        outputs = -(-(padded - reach) // stride) + 1
        if (outputs - 1) * stride >= int(window.sizes[i]) + begin:
            outputs -= 1  # a window that starts in the end padding is dropped
        extra.append(max((outputs - 1) * stride + reach - padded, 0))
    if any(extra) and call.get("count_include_pad"):
        return call
    ends = [p + e for p, e in zip(window.pads[rank:], extra, strict=True)]
    return call.but(pads=(*window.pads[:rank], *ends), ceil_mode=0)


@always("ConvTranspose")
def _conv_transpose(call: Call) -> Result:
    """Padding from auto_pad or output_shape (total: the full output's excess over it)."""
    if open_kernels.are_in(call, 1):
        return open_kernels.OF[call.op](call)
    window = _window(call, 1)
    rank = len(window.kernel)
    added = call.numbers("output_padding") or (0,) * rank
    wanted = call.numbers("output_shape")
    mode = call.get("auto_pad")
    if len(added) != rank or min(added) < 0 or (wanted is not None and len(wanted) != rank):
        raise call.error(f"output_padding or output_shape does not fit {rank} spatial dimensions")
    if mode == "VALID" and wanted is None:
        window = replace(window, pads=(0,) * (2 * rank))
    elif wanted is not None or mode != "NOTSET":
        totals = []
        for i, reach in enumerate(window.reach):
            size, stride = window.sizes[i], window.strides[i]
            if wanted is None:  # SAME: the input's size times the stride
                totals.append(reach - stride + added[i])
            elif isinstance(size, int):
                totals.append((size - 1) * stride + reach + added[i] - wanted[i])
            else:
                raise call.error(
                    f"output_shape over the unknown size {size}", "pin it with --input-shape"
                )
        added = tuple(a + max(-t, 0) for a, t in zip(added, totals, strict=True))
        pads = _begins_then_ends([max(t, 0) for t in totals], more_at_end=mode == "SAME_UPPER")
        window = replace(window, pads=pads)
    return _explicit(call.but(drop=("output_shape",), output_padding=added), window)


@always("CausalConvWithState")
def _causal_conv(call: Call) -> Result:
    """x[N,C,L] with weights[C,1,K] of an open size (others: ONNX's own function, a Conv), after
    the K - 1 positions of a state.
    """
    s, x, w, past = plain(call), call.need(0), call.need(1), call.input(3)
    kernel, length = (s.node("Shape", i, start=2, end=3) for i in (w, x))
    if past is None:
        shape = s.node("Concat", s.node("Shape", x, end=2), s.node("Sub", kernel, [1]), axis=0)
        past = s.node("ConstantOfShape", shape, value=np.zeros(1, numpy_dtype(x.dtype)))
    whole = s.node("Concat", past, x, axis=2)
    state = s.node("Slice", whole, length, s.node("Shape", whole, start=2, end=3), [2])
    made = _by_channel(s, whole, w, call.input(2), length)
    if call.get("activation") in ("silu", "swish"):
        wide = s.node("Cast", made, to=sums_of(x.dtype))
        made = s.node("Cast", s.node("Mul", wide, s.node("Sigmoid", wide)), to=x.dtype)
    return made, state


def _by_channel(s: Settling, x: Node, w: Node, bias: Node | None, count: Node) -> Node:
    """x[N,C,L], weights[C,1,K], bias[C], `count`: L - K + 1 -> [N,C,count]: each channel's products
    with K positions, summed in float32 or wider.
    """
    steps = (s.steps(n) for n in (count, s.node("Shape", w, start=2, end=3)))
    first, place = (s.node("Unsqueeze", n, [axis]) for n, axis in zip(steps, (1, 0), strict=True))
    seen = s.node("Gather", x, s.node("Add", first, place), axis=2)
    sums = sums_of(x.dtype)
    products = s.node("Mul", s.node("Cast", seen, to=sums), s.node("Cast", w, to=sums))
    made = s.node("ReduceSum", products, [3], keepdims=0)
    if bias is not None:
        made = s.node("Add", made, s.node("Unsqueeze", s.node("Cast", bias, to=sums), [1]))
    return s.node("Cast", made, to=x.dtype)
