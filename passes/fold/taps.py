"""Drop the taps of a convolution that lie on padding for every output.

Conv(x[1,c,6,6], w[k,c,3,3]){dilations=12, pads=12}  ->  Conv(x, w[:, :, 1:2, 1:2])

Segmentation networks end in such convolutions: with a dilation as large as the image, only the
middle tap of nine ever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompiler.ir import Node
from qcompiler.ops.window import Window
from qcompiler.rewrite import ANY, CONST, OPTIONAL, Skip, op, rule, taken
from qcompiler.rewrite.matching import const, rebuilt


@rule(op("Conv", ANY, taken(CONST), OPTIONAL))
def fold_taps(conv: Node, w: Node) -> Node | Skip | None:
    """Conv(x, w) -> Conv(x, the taps of w that read x)."""
    x = conv.operands[0]
    sizes = [d for d in x.shape[2:] if isinstance(d, int)]
    if len(sizes) < x.type.rank - 2 or 0 in conv.shape:
        return None
    window = Window.of(conv, sizes, w.type.dims[2:])
    inside = window.inside(sizes) > 0
    axes = [_kept(conv, window, i, np.flatnonzero(_along(inside, i))) for i in range(len(sizes))]
    if all(a.last - a.first + 1 == k for a, k in zip(axes, window.kernel, strict=True)):
        return None
    if not np.isfinite(w.array.astype(np.float64)).all():
        return Skip("a weight times the padding is not 0")
    kept = (slice(None), slice(None), *(slice(a.first, a.last + 1) for a in axes))
    cut = w.array[kept]
    made = rebuilt(
        conv,
        (x, const(np.ascontiguousarray(cut), like=w), *conv.inputs[2:]),
        auto_pad="NOTSET",
        kernel_shape=cut.shape[2:],
        dilations=tuple(
            1 if a.first == a.last else d for a, d in zip(axes, window.dilations, strict=True)
        ),
        pads=(*(a.begin for a in axes), *(a.end for a in axes)),
    )
    return made if made.type == conv.type else Skip("the last windows end inside the image")


@dataclass(frozen=True)
class _Axis:
    """The first and the last tap to keep along a dimension, and the padding that they need."""

    first: int
    last: int
    begin: int
    end: int


def _along(inside: Any, axis: int) -> Any:
    """Which taps along a dimension read the image, with any tap along the others."""
    return inside.any(axis=tuple(i for i in range(inside.ndim) if i != axis))


def _kept(conv: Node, window: Window, axis: int, read: Any) -> _Axis:
    """`read`: the taps along the dimension that read the image."""
    taps, stride, step = (p[axis] for p in (window.kernel, window.strides, window.dilations))
    pads, size, count = window.pads[axis], *(n.shape[2 + axis] for n in (conv.operands[0], conv))
    assert pads is not None
    if not read.size:
        return _Axis(0, taps - 1, *pads)
    first = min(int(read[0]), pads[0] // step)  # the padding stays at 0 or above
    last = int(read[-1])
    begin = pads[0] - first * step
    reach = (int(count) - 1) * stride + (last - first) * step + 1
    return _Axis(first, last, begin, max(reach - int(size) - begin, 0))
