"""Calls on images whose number, height or width data decide -> calls on images of the largest sizes
(carried.py).

Windows see behind an image what they see beyond its padding; a Resize reads nothing there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qcompiler.artifact.sizes import Size
from qcompiler.ir import Dim, Node, constant
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call, Result
from qcompiler.onnx_io.carried import carries, least, reduced
from qcompiler.onnx_io.resizing import stretched
from qcompiler.ops import known_value


def _spatial(call: Call, bounds: Bounds) -> bool:
    """Do data decide the height or width of the images of a call? Raises Unsupported where they
    decide the number of channels, or the size of another operand.
    """
    own = bounds.counted(call.need(0)).keys()
    if 1 in own or any(map(bounds.counted, call.inputs[1:])):
        raise bounds.refusal(call)
    return bool(own - {0})


@carries("GroupNormalization", "GridSample")
def _samples(call: Call, bounds: Bounds) -> Node:
    """A batch whose number of samples data decide."""
    if _spatial(call, bounds):
        raise bounds.refusal(call)
    made = bounds.typed(call, call.inputs)
    size = bounds.twin(call.need(0)).shape[0]
    return bounds.put_sizes(made, (size, *made.shape[1:]))


@carries("InstanceNormalization")
def _instances(call: Call, bounds: Bounds) -> Result:
    """Means over what is there."""
    if not _spatial(call, bounds):
        return _samples(call, bounds)
    x, s = call.need(0), bounds.settling(call)
    column = [-1] + [1] * (x.type.rank - 2)
    scale, bias = (s.node("Reshape", call.need(i), column) for i in (1, 2))
    wide = s.node("Cast", x, to="float64" if x.dtype == "float64" else "float32")
    centered = s.node("Sub", wide, _mean(call, bounds, wide))
    variance = _mean(call, bounds, s.node("Mul", centered, centered))
    epsilon = constant(np.asarray(call.real("epsilon")).astype(wide.dtype))
    made = s.node("Div", centered, s.node("Sqrt", s.node("Add", variance, epsilon)))
    made = s.node("Cast", made, to=x.dtype)
    made = s.node("Add", s.node("Mul", made, scale), bias)
    return bounds.put_sizes(made, bounds.twin(x).shape)


def _mean(call: Call, bounds: Bounds, x: Node) -> Node:
    """The mean over all pixels of a value of the size of a call's images."""
    axes = constant(np.arange(2, x.type.rank))
    bounds.put_sizes(x, bounds.twin(call.need(0)).shape)
    plain = call.but(op="ReduceMean", inputs=(x, axes), drop=tuple(call.attrs), keepdims=1)
    made = reduced(plain, bounds)
    assert isinstance(made, Node)
    return made


@carries("BatchNormalization", "DepthToSpace", "SpaceToDepth", "LRN")
def _pixels(call: Call, bounds: Bounds) -> Node:
    """Each pixel, or each block of pixels, by itself."""
    _spatial(call, bounds)
    return bounds.carried(call)


@carries("Conv", "ConvTranspose", "MaxPool", "AveragePool")
def _windows(call: Call, bounds: Bounds) -> Node:
    """Behind an image, convolutions see 0, and pools the least number."""
    x, spatial = call.need(0), _spatial(call, bounds)
    averages = call.op == "AveragePool" and not call.get("count_include_pad")
    if spatial and (averages or call.get("output_shape") or call.read > 1):
        raise bounds.refusal(call)
    fill = least(x) if call.op == "MaxPool" else 0
    own = bounds.masked(bounds.settling(call), x, range(2, x.type.rank), fill)
    return bounds.carried(call.but(inputs=(own, *call.inputs[1:])))


@carries("GlobalAveragePool", "GlobalMaxPool")
def _all_pixels(call: Call, bounds: Bounds) -> Result:
    """A reduction over all pixels."""
    if call.op == "GlobalAveragePool":
        return _mean(call, bounds, call.need(0))
    axes = constant(np.arange(2, call.need(0).type.rank))
    return reduced(call.but(op="ReduceMax", inputs=(call.need(0), axes), keepdims=1), bounds)


@carries("Resize")
def _resize(call: Call, bounds: Bounds) -> Node:
    """By the ratio of the sizes of a run."""
    twin = bounds.typed(call, [i and bounds.twin(i) for i in call.inputs])
    pairs = list(zip(bounds.twin(call.need(0)).shape, twin.shape, strict=True))
    if not any(bounds.varies(d) for a, b in pairs if a != b for d in (a, b)):
        return bounds.carried(call)
    if not all(bounds.known(b) for _, b in pairs) or not _stretches(call, pairs):
        raise bounds.refusal(call)
    s = replace(bounds.settling(call), size=bounds.number, memory=bounds.most)
    return bounds.put_sizes(stretched(s, pairs), twin.shape)


def _stretches(call: Call, pairs: Sequence[tuple[Dim, Dim]]) -> bool:
    """Is each size stretched to another by their ratio alone?"""
    scales = call.input(2)
    if scales is not None and scales.type.size:
        known = known_value(scales)
        if known is None or len(known) != len(pairs):
            return False
        exact = (Size.of(a) * int(f) == Size.of(b) for (a, b), f in zip(pairs, known, strict=True))
        if not all(f == int(f) for f in known) or not all(exact):
            return False
    modes = call.get("coordinate_transformation_mode"), call.get("keep_aspect_ratio_policy")
    plain = modes[0] not in (None, "tf_crop_and_resize") and modes[1] in (None, "stretch")
    return plain and not call.get("antialias")
