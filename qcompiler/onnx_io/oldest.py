"""Operators of opsets 1 to 5 -> as opset 6 has them; shapes, pads and types were attributes."""

from __future__ import annotations

import numpy as np

from qcompiler.onnx_io.call import Call, until
from qcompiler.onnx_io.tensors import CODES
from qcompiler.ops import known_value

_TYPES = {"float": "float32", "double": "float64"}


@until(5, "Reshape")
def _reshape(call: Call) -> Call:
    shape = call.constant("shape", call.numbers("shape") or ())
    return call.but(inputs=(call.need(0), shape), drop=("shape",))


@until(6, "Cast")
def _cast(call: Call) -> Call:
    """Old: the type's name."""
    name = str(call.get("to")).lower()
    dtype = _TYPES.get(name, name)
    if dtype not in CODES:
        raise call.error(f"a cast to {name!r}")
    return call.but(to=CODES[dtype])


@until(2, "Pad")
def _pad(call: Call) -> Call:
    return call.but(pads=call.numbers("paddings") or (), drop=("paddings",))


@until(4, "Concat")
def _concat(call: Call) -> Call:
    axis = call.get("axis")
    return call.but(axis=1 if axis is None else axis)


@until(2, "Split")
def _split(call: Call) -> Call:
    """Old: the sizes may be an input."""
    sizes = call.input(1)
    known = None if sizes is None else known_value(sizes)
    if sizes is None:
        return call
    if known is None:
        raise call.unsupported("sizes known at run time only", "re-export with opset 13 or newer")
    return call.but(inputs=(call.need(0),), split=tuple(int(n) for n in known.ravel()))


@until(6, "Tile")
def _tile(call: Call) -> Call:
    """Old: one axis is repeated."""
    x = call.need(0)
    count, axis = (known_value(call.need(i)) for i in (1, 2))
    if count is None or axis is None:
        raise call.unsupported("repeats known at run time only", "re-export with opset 6 or newer")
    repeats = np.ones(x.type.rank, np.int64)
    repeats[int(axis.reshape(()))] = int(count.reshape(()))
    return call.but(inputs=(x, call.constant("repeats", repeats)))


@until(7, "Upsample")
def _upsample(call: Call) -> Call:
    scales = (1.0, 1.0, call.real("height_scale"), call.real("width_scale"))
    return call.but(scales=scales, drop=("height_scale", "width_scale"))


@until(2, "LpPool", "GlobalLpPool")
def _lp_pool(call: Call) -> Call:
    """Old: p is a float."""
    p = call.real("p")
    if p != int(p):
        raise call.unsupported(f"a norm of order {p}")
    return call.but(p=int(p))
