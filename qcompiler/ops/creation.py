"""Tensors made from a shape, a range or a size."""

from __future__ import annotations

import numpy as np

from qcompiler.artifact.sizes import Size, settled
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type, numpy_dtype
from qcompiler.ops.evaluate import known_value
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.movement import ints
from qcompiler.ops.registry import Numbers, fresh, operator, required, typed
from qcompiler.ops.shapes import count_of, known_dims


@operator("ConstantOfShape", value=None)
def constant_of_shape(node: Node, dims: Numbers) -> Numbers:
    value = node.attrs["value"]
    fill = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    return np.full(ints(dims), fill, fill.dtype)


@typed(constant_of_shape)
def _(node: Node) -> Type:
    value = node.attrs["value"]
    if value is not None and (not isinstance(value, np.ndarray) or value.size != 1):
        raise Error("the value is not a scalar")
    dtype = "float32" if value is None else np.asarray(value).dtype.name
    return Type(dtype, _dims_of(node.operands[0]))


def _dims_of(node: Node) -> tuple[Dim, ...]:
    """The shape given by a tensor's values; new symbols where they are unknown."""
    known = known_dims(node)
    return tuple(fresh() for _ in range(count_of(node))) if known is None else known


@operator("drawn", seed=required(), kind="uniform", first=0.0, second=1.0)
def drawn(node: Node, dims: Numbers) -> Numbers:
    """float64 numbers of a shape, drawn between two numbers, or (`normal`) with this mean and
    deviation: those of a seed, one after the other, so that fewer are the first of more.
    """
    generator = np.random.RandomState(node.int("seed"))
    draw = generator.uniform if node.str("kind") == "uniform" else generator.normal
    return np.asarray(draw(node.float("first"), node.float("second"), ints(dims)))


@typed(drawn)
def _(node: Node) -> Type:
    if node.str("kind") not in ("uniform", "normal"):
        raise Error(f"numbers that are {node.str('kind')}")
    return Type("float64", _dims_of(node.operands[0]))


@operator("Range", stash_type="float32")
def range_(node: Node, start: Numbers, limit: Numbers, delta: Numbers) -> Numbers:
    count = _steps(start, limit, delta)
    wide = start.dtype if start.dtype.kind in "iu" or start.dtype.itemsize >= 4 else np.float32
    steps = np.arange(count).astype(wide) * delta.reshape(()).astype(wide)
    return np.asarray(start.reshape(()).astype(wide) + steps).astype(start.dtype)


def _steps(start: Numbers, limit: Numbers, delta: Numbers) -> int:
    """max(ceil((limit - start) / delta), 0)."""
    if not start.size == limit.size == delta.size == 1:
        raise Error("start, limit and delta are not scalars")
    first, last, by = (v.ravel()[0] for v in (start, limit, delta))
    if not by or not np.isfinite([float(v) for v in (first, last, by)]).all():
        raise Error(f"no range from {first} to {last} by {by}")
    if start.dtype.kind in "iu":
        return max(-((int(first) - int(last)) // int(by)), 0)
    return max(int(np.ceil((float(last) - float(first)) / float(by))), 0)


@typed(range_)
def _(node: Node) -> Type:
    if len({i.dtype for i in node.operands}) > 1:
        raise Error("start, limit and delta are of different types")
    known = [known_value(i) for i in node.operands]
    start, limit, delta = known
    if start is None or limit is None or delta is None:
        return Type(node.operands[0].dtype, (_count_up(node) or fresh(),))
    return Type(node.operands[0].dtype, (_steps(start, limit, delta),))


def _count_up(node: Node) -> Dim | None:
    """The number of steps from one open size up to another: what relies on that proves that it is
    none below 0.
    """
    first, last, by = (known_sizes(i) for i in node.operands)
    if first is None or last is None or by is None or not first.size == last.size == by.size == 1:
        return None
    step: Dim = by.ravel()[0]
    if not isinstance(step, int) or step < 1:
        return None
    return settled((Size.of(last.ravel()[0]) - first.ravel()[0] + (step - 1)) // step)


@operator("EyeLike", dtype=None, k=0)
def eye_like(node: Node, x: Numbers) -> Numbers:
    shift = max(-x.shape[0], min(node.int("k"), x.shape[1]))
    return np.eye(x.shape[0], x.shape[1], shift).astype(numpy_dtype(node.dtype))


@typed(eye_like)
def _(node: Node) -> Type:
    x = node.operands[0].type
    if x.rank != 2:
        raise Error(f"{x} is not a matrix")
    return Type(str(node.attrs["dtype"] or x.dtype), x.shape)
