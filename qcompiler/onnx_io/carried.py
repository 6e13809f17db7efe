"""Calls on operands whose sizes data decide (bounded.py) -> calls on operands of the largest sizes,
and how large their results truly are.

Operators that keep elements apart along such an axis are as they are. Those that mix elements read
a number that changes nothing where no element is; those that select or join elements move what is
there to the front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qcompiler.artifact import sizes as expressions
from qcompiler.artifact.sizes import Size
from qcompiler.errors import Error
from qcompiler.ir import Dim, Node, Type, constant, numpy_dtype
from qcompiler.onnx_io.bounded import Bounds
from qcompiler.onnx_io.call import Call, Result, axis_of, newest
from qcompiler.onnx_io.settle import Settling, Shape, settled
from qcompiler.ops import OPERATORS, known_value, make
from qcompiler.ops.known_sizes import known_sizes
from qcompiler.ops.shapes import total

Rule = Callable[[Call, Bounds], Result]
_RULES: dict[str, Rule] = {}


def carries(*ops: str) -> Callable[[Rule], Rule]:
    """Register what becomes of the calls of operators."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def applied(call: Call, opset: int, bounds: Bounds, shapes: tuple[Shape | None, ...]) -> Result:
    """A call some of whose operands have sizes, or values made of sizes, that data decide, and the
    declared shapes of its outputs -> the finished outputs, or a call like any other. Raises
    Unsupported where nothing is known of an operator.
    """
    result = newest(call, opset)
    if not isinstance(result, Call):
        bounds.demand_none(call)
        return result
    if not _windows_fit(call, bounds):
        raise bounds.refusal(call)
    rule = _RULES.get(result.op)
    if rule is None and result.op in OPERATORS and OPERATORS[result.op].formula is not None:
        rule = _elementwise
    if rule is None:
        bounds.demand_none(result)
    else:
        result = rule(result, bounds)
    if isinstance(result, Call):
        return settled(result, shapes, bounds.checks.require, bounds.put, bounds.open_size)
    return result


def _windows_fit(call: Call, bounds: Bounds) -> bool:
    """Are the pads of a window, as the model has it, the same for an image of any size?"""
    fit = call.get("auto_pad") in (None, "NOTSET", "VALID") and not call.get("ceil_mode")
    return fit or bounds.counted(call.input(0)).keys() <= {0, 1}


# Each element by itself.


@carries("Identity", "Dropout", "Transpose", "Unsqueeze", "Squeeze", "ConstantOfShape", "Range")
def _apart(call: Call, bounds: Bounds) -> Node:
    if call.op != "Squeeze" or call.input(1) is not None:
        return bounds.carried(call)
    sizes = bounds.twin(call.need(0)).shape
    axes = constant(np.array([a for a, d in enumerate(sizes) if d == 1], np.int64))
    return bounds.carried(call.but(inputs=(call.need(0), axes)))


@carries("Shape", "Size")
def _shape(call: Call, bounds: Bounds) -> Node:
    return bounds.shape_of(call)


def _elementwise(call: Call, bounds: Bounds) -> Node:
    """Operands of one size along an axis; where that is not known, runs are checked."""
    rank = max((i.type.rank for i in call.inputs if i is not None), default=0)
    dims: list[Dim] = []
    clear = True
    for axis in range(-rank, 0):
        given = [i for i in call.inputs if i is not None and i.type.rank >= -axis]
        pairs = [(bounds.twin(i).shape[axis], i.shape[axis]) for i in given]
        wide = list(dict.fromkeys(p for p in pairs if p[0] != 1))
        for size, room in wide[1:]:
            if room != wide[0][1]:
                raise bounds.refusal(call)
            bounds.same(call, wide[0][0], size)
            clear = False
        dims.append(wide[0][0] if wide else 1)
    if clear:
        return bounds.carried(call)
    made = bounds.typed(call, call.inputs)
    return bounds.put_sizes(made, dims)


@carries("Expand")
def _expand(call: Call, bounds: Bounds) -> Node:
    sizes = known_sizes(bounds.twin(call.need(1)))
    if sizes is None:
        raise bounds.refusal(call)
    own, wanted = bounds.twin(call.need(0)).shape, tuple(sizes.ravel())
    rank = max(len(own), len(wanted))
    wide = ((1,) * (rank - len(d)) + d for d in (own, wanted))
    for a, b in zip(*wide, strict=True):
        if 1 not in (a, b):
            bounds.same(call, a, b)
    return bounds.carried(call)


# Along one axis.


def _others(*axes_of_call: str) -> Rule:
    """Operators that treat rows along other axes by themselves."""

    def rule(call: Call, bounds: Bounds) -> Node:
        x = call.need(0)
        begin = axis_of(call, call.number(axes_of_call[0]), x.type.rank)
        along = range(begin, x.type.rank) if len(axes_of_call) > 1 else [begin]
        if any(a in along for a in bounds.counted(x)) or any(map(bounds.counted, call.inputs[1:])):
            raise bounds.refusal(call)
        return bounds.carried(call)

    return rule


_RULES.update(dict.fromkeys(("Hardmax", "LpNormalization"), _others("axis")))
_RULES.update(
    dict.fromkeys(("LayerNormalization", "RMSNormalization"), _others("axis", "and behind"))
)


@carries("Softmax", "LogSoftmax", "ArgMax", "ArgMin", "CumSum", "CumProd")
def _rows(call: Call, bounds: Bounds) -> Node:
    """Along an open axis, what is not there is so small, or great, that it does not count."""
    x, s = call.need(0), bounds.settling(call)
    if call.op in ("CumSum", "CumProd"):
        known = known_value(call.need(1))
        if known is None:
            raise bounds.refusal(call)
        axis, fill = int(known.ravel()[0]), float(call.op == "CumProd")
        masks = bool(call.get("reverse"))
    else:
        axis, masks = call.number("axis"), True
        fill = least(x) if call.op != "ArgMin" else _greatest(x)
    axis = axis_of(call, axis, x.type.rank)
    if axis in bounds.counted(x) and call.get("select_last_index"):
        raise bounds.refusal(call)
    own = bounds.masked(s, x, [axis], fill) if masks else x
    return bounds.carried(call.but(inputs=(own, *call.inputs[1:])))


@carries("TopK")
def _top_k(call: Call, bounds: Bounds) -> Result:
    x, k, s = call.need(0), call.need(1), bounds.settling(call)
    axis = axis_of(call, call.number("axis"), x.type.rank)
    size = bounds.twin(x).shape[axis]
    wanted = known_sizes(bounds.twin(k))
    if wanted is None:
        raise bounds.refusal(call)
    number: Dim = wanted.ravel()[0]
    if number != bounds.smaller([number, size]):
        enough = s.node("LessOrEqual", bounds.number(number), bounds.number(size))
        bounds.checks.require(enough, f"{call.name} (TopK): k is above the number of values")
    fill = least(x) if call.number("largest") else _greatest(x)
    own, most = bounds.masked(s, x, [axis], fill), bounds.most(number)
    dims = list(bounds.twin(x).shape)
    dims[axis] = number
    room = x.shape[axis]
    if isinstance(room, str) and not bounds.reaches(room, most):  # it may be more than there are
        made = bounds.typed(call, [followed(s, own, axis, most, fill), s.ints([most])])
        values, places = (make("item", made, index=i, name=call.name) for i in (0, 1))
        inside = s.node("Min", places, expressions.settled(Size.of(room) - 1))
        return bounds.put_sizes(values, dims), bounds.put_sizes(inside, dims)
    made = bounds.typed(call, [own, s.ints([most])])
    twin = Node("TopK", (), {}, tuple(Type(t.dtype, tuple(dims)) for t in made.types), call.name)
    return bounds.twinned(call, made, twin)


def followed(s: Settling, x: Node, axis: int, count: Dim, fill: Any) -> Node:
    """A value with so many more along an axis behind it, all one number."""
    shape = [count if a == axis else d for a, d in enumerate(x.shape)]
    one = constant(np.asarray(fill).astype(numpy_dtype(x.dtype)))
    return s.node("Concat", x, s.node("Expand", one, shape), axis=axis)


_FILLS: dict[str, float] = dict.fromkeys(("Sum", "L1", "L2", "SumSquare", "LogSum", "Mean"), 0.0)
_FILLS["Prod"] = 1.0


@carries(*(f"Reduce{k}" for k in (*_FILLS, "Max", "Min", "LogSumExp")))
def reduced(call: Call, bounds: Bounds) -> Result:
    """A reduction reads a number that changes nothing where no element is."""
    x, s = call.need(0), bounds.settling(call)
    axes = call.input(1)
    known = np.zeros(0, np.int64) if axes is None else known_value(axes)
    if known is None:
        raise bounds.refusal(call)
    if not known.size and call.get("noop_with_empty_axes"):
        return _apart(call, bounds)
    over = [axis_of(call, int(a), x.type.rank) for a in known.ravel()] or list(range(x.type.rank))
    gone = [a for a in over if a in bounds.counted(x)]
    kind = call.op.removeprefix("Reduce")
    fill = _greatest(x) if kind == "Min" else _FILLS.get(kind, least(x))
    own = bounds.masked(s, x, gone, fill)
    if kind != "Mean" or not gone:
        return bounds.carried(call.but(inputs=(own, *call.inputs[1:])))
    if "float" not in x.dtype:
        raise bounds.refusal(call)
    exact = "float64" if x.dtype == "float64" else "float32"
    own = bounds.put_sizes(s.node("Cast", own, to=exact), bounds.twin(x).shape)
    summed = bounds.carried(call.but(op="ReduceSum", inputs=(own, *call.inputs[1:])))
    number = bounds.number(total([bounds.twin(x).shape[a] for a in over]))
    wide = s.node("Cast", s.node("Reshape", number, _no_dims()), to=exact)
    made = call.but(op="Div", inputs=(summed, wide), drop=tuple(call.attrs))
    mean = call.but(op="Cast", inputs=(bounds.carried(made),), drop=tuple(call.attrs), to=x.dtype)
    return bounds.carried(mean)


def _no_dims() -> Node:
    return constant(np.zeros(0, np.int64))


def least(x: Node) -> Any:
    """The least number of the type of a value."""
    if x.dtype == "bool":
        return False
    return int(np.iinfo(x.dtype).min) if "int" in x.dtype else -np.inf


def _greatest(x: Node) -> Any:
    if x.dtype == "bool":
        return True
    return int(np.iinfo(x.dtype).max) if "int" in x.dtype else np.inf


# Integers.


@carries("QuantizeLinear", "DequantizeLinear")
def _scaled(call: Call, bounds: Bounds) -> Node:
    """By one number, or by one for each position along an axis whose size data do not decide."""
    x, scale = call.need(0), call.need(1)
    several = scale.type.rank > 0 and scale.type.dims != (1,)
    along = {axis_of(call, call.number("axis"), x.type.rank)} if several else set()
    if call.get("block_size") or any(map(bounds.counted, call.inputs[1:])):
        raise bounds.refusal(call)
    if along & bounds.counted(x).keys():
        raise bounds.refusal(call)
    return bounds.carried(call)


@carries("DynamicQuantizeLinear")
def _scaled_by_its_range(call: Call, bounds: Bounds) -> Node:
    """The range of what is there, and of 0, which belongs to every range."""
    x = call.need(0)
    own = bounds.masked(bounds.settling(call), x, range(x.type.rank), 0)
    return bounds.carried(call.but(inputs=(own,)))


@carries("MatMulInteger", "QLinearMatMul")
def _integer_product(call: Call, bounds: Bounds) -> Node:
    """Rows, or columns, that data decide, and not what is summed over."""
    at = 3 if call.op == "QLinearMatMul" else 1
    a, b = call.need(0), call.need(at)
    numbers = [i for nth, i in enumerate(call.inputs) if nth not in (0, at)]
    summed = (a.type.rank - 1 in bounds.counted(a), max(b.type.rank - 2, 0) in bounds.counted(b))
    if any(summed) or any(map(bounds.counted, numbers)):
        raise bounds.refusal(call)
    return bounds.carried(call)


# Products, windows and regions.


@carries("MatMul", "Gemm")
def _product(call: Call, bounds: Bounds) -> Node:
    """What is summed over reads zeros where nothing is."""
    a, b, s = call.need(0), call.need(1), bounds.settling(call)
    if a.type.rank < 2 or b.type.rank < 2:
        raise bounds.refusal(call)
    inner = a.type.rank - (2 if call.get("transA") else 1)
    outer = b.type.rank - (1 if call.get("transB") else 2)
    sizes = bounds.twin(a).shape[inner], bounds.twin(b).shape[outer]
    bounds.same(call, *sizes)
    left, right = bounds.masked(s, a, [inner], 0), bounds.masked(s, b, [outer], 0)
    return bounds.carried(call.but(inputs=(left, right, *call.inputs[2:])))


@carries("RoiAlign")
def _roi_align(call: Call, bounds: Bounds) -> Node:
    x, rois, images = (call.need(i) for i in range(3))
    if bounds.counted(x):
        raise bounds.refusal(call)
    own = bounds.masked(bounds.settling(call), images, [0], -1)  # which takes no time
    made = bounds.typed(call, [x, rois, own])
    return bounds.put_sizes(made, (bounds.twin(rois).shape[0], *made.shape[1:]))


def unlike(bounds: Bounds, yes: Node, no: Node) -> bool:
    """Are two values of unlike sizes, or of such as data decide, that could be one?"""
    if yes.dtype != no.dtype or yes.type.rank != no.type.rank:
        return False
    return bool(yes.type != no.type or bounds.counted(yes) or bounds.counted(no))


def chosen(s: Settling, bounds: Bounds, condition: Node, yes: Node, no: Node) -> Node:
    """Of two values of unlike sizes, that which a condition selects: as large as either may be."""
    sides = [(n, bounds.twin(n).shape) for n in (yes, no)]
    room = [_larger(a, b) for a, b in zip(yes.shape, no.shape, strict=True)]
    wide = []
    for node, _ in sides:
        pairs = zip(room, node.shape, strict=True)
        more = [0 if r == d else int(r) - int(d) for r, d in pairs]
        pads = [*[0] * len(room), *more]
        wide.append(s.node("Pad", node, pads) if any(more) else node)
    made = s.node("Where", condition, *wide)
    dims: list[Dim] = []
    for axis, (a, b) in enumerate(zip(sides[0][1], sides[1][1], strict=True)):
        if a == b:
            dims.append(a)
            continue
        count = s.node("Where", s.flag(condition), bounds.number(a), bounds.number(b))
        dims.append(bounds.size(("either", condition, a, b), count, room[axis]))
    return bounds.put_sizes(made, dims)


def _larger(a: Dim, b: Dim) -> Dim:
    """The larger of two sizes. Raises Error where that is not known."""
    if a == b:
        return a
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    open_ = a if isinstance(a, str) else b
    raise Error(f"dimension {open_!r} is unknown", hint="pin it with --input-shape")
