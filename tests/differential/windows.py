"""Steps over windows and axes: pooling, resizing, softmax, normalisations, reductions, orders."""

from __future__ import annotations

import numpy as np

from qcompiler.errors import Error

from .builder import Builder
from .moves import ranked
from .products import windows


def pool(b: Builder) -> None:
    x = ranked(b, 3, 5)
    op = b.choose(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"))
    if op.startswith("Global"):
        b.add(op, x)
        return
    attrs = windows(b, x.rank - 2, x.shape[2:])
    extents = [
        (k - 1) * d + 1 for k, d in zip(attrs["kernel_shape"], attrs["dilations"], strict=True)
    ]
    attrs["pads"] = [
        min(p, k - 1) for p, k in zip(attrs["pads"], attrs["kernel_shape"] * 2, strict=True)
    ]
    spatial = x.rank - 2
    for size, extent, i in zip(x.shape[2:], extents, range(spatial), strict=True):
        if size + attrs["pads"][i] + attrs["pads"][i + spatial] < extent:
            raise Error("the window does not fit")
    if b.chance(0.3):
        attrs["ceil_mode"] = 1
    if op == "AveragePool":
        attrs["count_include_pad"] = b.choose((0, 1))
    if op == "LpPool":
        attrs["p"] = b.choose((1, 2))
    b.add(op, x, **attrs)


RESIZED = (
    "half_pixel",
    "asymmetric",
    "align_corners",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
)
NEAREST = ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil")


def resize(b: Builder) -> None:
    """Along axes in any order, by scales or to sizes; now and then of a part of the input."""
    x = b.pick(lambda v: 0 < v.rank < 6 and 0 < v.node.type.size < 3000)
    mode = b.choose(("nearest", "nearest", "linear", "cubic"))
    crops = b.chance(0.1)
    way = "tf_crop_and_resize" if crops else b.choose(RESIZED)
    attrs: dict[str, object] = {"mode": mode, "coordinate_transformation_mode": way}
    if mode == "nearest":
        attrs["nearest_mode"] = b.choose(NEAREST)
    elif b.chance(0.3):
        attrs["antialias"] = 1
    if mode == "cubic" and b.chance(0.4):
        attrs["cubic_coeff_a"] = b.choose((-0.5, -0.75))
    if mode != "nearest" and not crops and b.chance(0.3):
        attrs["exclude_outside"] = 1
    axes = _axes(b, x.rank)
    if axes is not None:
        attrs["axes"] = axes
    named = [a % x.rank for a in axes or range(x.rank)]
    moves = [axes is not None or x.rank < 3 or a >= x.rank - 2 for a in named]
    roi = None
    if crops:
        attrs["extrapolation_value"] = b.choose((0.0, -1.5))
        starts = [b.choose((0.0, 0.2, -0.25)) if m else 0.0 for m in moves]
        ends = [b.choose((1.0, 0.6, 1.3)) if m else 1.0 for m in moves]
        roi = b.constant(np.array([*starts, *ends], np.float32))
    if b.chance(0.5):
        factors = [b.choose((2.0, 1.5, 0.5, 3.0, 0.7, 1.0)) if m else 1.0 for m in moves]
        b.add("Resize", x, roi, b.constant(np.array(factors, np.float32)), **attrs)
        return
    sizes = [
        b.choose((1, 3, 5, 7, 8, 12, 16, 18)) if m else x.shape[a]
        for m, a in zip(moves, named, strict=True)
    ]
    if axes is not None and not crops and b.chance(0.4):
        attrs["keep_aspect_ratio_policy"] = b.choose(("not_larger", "not_smaller"))
    b.add("Resize", x, roi, None, b.ints(*sizes), **attrs)


def _axes(b: Builder, rank: int) -> list[int] | None:
    """At most two of them, in any order, some counted from behind; often none are named."""
    if b.chance(0.5):
        return None
    picked = b.rng.permutation(rank)[: b.between(1, min(2, rank))]
    return [int(a) - rank * b.chance(0.3) for a in picked]


def softmax(b: Builder) -> None:
    x = ranked(b)
    op = b.choose(("Softmax", "Softmax", "LogSoftmax"))
    b.add(op, x, axis=b.between(-x.rank, x.rank - 1))


def norm(b: Builder) -> None:
    x = ranked(b, 2, 4)
    op = b.choose(("layer", "layer", "rms", "instance", "group", "lrn", "lp", "mean variance"))
    if op in ("layer", "rms"):
        axis = b.between(1, x.rank - 1)
        shape = x.shape[axis:]
        if np.prod(shape) < 3:
            raise Error("too little to normalise")
        scale = b.constant(b.numbers(*shape))
        sides = (b.constant(b.numbers(*shape)),) if op == "layer" and b.chance(0.7) else ()
        if op == "rms":
            rms_norm(b)
        else:
            b.add("LayerNormalization", x, scale, *sides, axis=axis, epsilon=1e-3)
    elif op == "lp":
        b.add("LpNormalization", x, axis=b.between(0, x.rank - 1), p=b.choose((1, 2)))
    elif x.rank < 3 or np.prod(x.shape[2:]) < 3:
        raise Error("too little to normalise")
    elif op == "instance":
        n = x.shape[1]
        values = b.constant(b.numbers(n)), b.constant(b.numbers(n))
        b.add("InstanceNormalization", x, *values, epsilon=1e-2)
    elif op == "lrn" and x.rank == 4:
        b.add("LRN", x, size=b.choose((1, 3, 5)), alpha=0.05, beta=0.6, bias=1.5)
    elif op == "mean variance" and x.rank == 4:
        b.add("MeanVarianceNormalization", x)
    elif op == "group":
        n = x.shape[1]
        groups = b.choose([g for g in (1, 2, 3, 4, max(n, 1)) if n % g == 0])
        values = b.constant(b.numbers(n)), b.constant(b.numbers(n))
        b.add("GroupNormalization", x, *values, num_groups=groups, epsilon=1e-2)
    else:
        raise Error("no such norm of this rank")


def rms_norm(b: Builder) -> None:
    """Spelled out, as exporters do."""
    x = b.pick(lambda v: v.rank > 1 and v.shape[-1] > 2)
    y = b.add("Mul", x, x) if b.chance(0.5) else b.add("Pow", x, b.constant(np.float32(2)))
    y = b.add("ReduceMean", y, b.ints(-1), keepdims=1)
    y = b.add("Sqrt", b.add("Add", y, b.constant(np.float32(1e-3))))
    y = b.add("Div", x, y)
    b.add("Mul", y, b.constant(b.numbers(x.shape[-1])))


def layer_norm_spelled(b: Builder) -> None:
    x = b.pick(lambda v: v.rank > 1 and v.shape[-1] > 2)
    y = b.add("Sub", x, b.add("ReduceMean", x, b.ints(-1), keepdims=1))
    v = b.add("ReduceMean", b.add("Mul", y, y), b.ints(-1), keepdims=1)
    y = b.add("Div", y, b.add("Sqrt", b.add("Add", v, b.constant(np.float32(1e-3)))))
    y = b.add("Mul", y, b.constant(b.numbers(x.shape[-1])))
    b.add("Add", y, b.constant(b.numbers(x.shape[-1])))


REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp")
REDUCTIONS = (*REDUCTIONS, "ReduceSumSquare", "ReduceL1", "ReduceMean", "ReduceProd")


def reduce(b: Builder) -> None:
    x = ranked(b)
    op = b.choose(REDUCTIONS)
    axes = sorted(int(a) for a in b.rng.permutation(x.rank)[: b.between(1, x.rank)])
    if op in ("ReduceSum", "ReduceSumSquare", "ReduceL1"):
        x = b.add("Mul", x, b.constant(np.float32(0.1)))
    if op == "ReduceProd":
        x = b.add("Tanh", x)
    axes = [a - x.rank if b.chance(0.3) else a for a in axes]
    given = (x,) if b.chance(0.05) else (x, b.ints(*axes))
    b.add(op, *given, keepdims=b.choose((0, 1, 1)))


def spread(b: Builder) -> None:
    """A value with what it is on the whole along an axis."""
    x = ranked(b)
    axis = b.between(0, x.rank - 1)
    m = b.add(b.choose(("ReduceMean", "ReduceMax")), x, b.ints(axis), keepdims=1)
    b.add(b.choose(("Sub", "Mul", "Add")), x, m)


def order(b: Builder) -> None:
    """The best, the best few, running sums."""
    x = ranked(b)
    axis = b.between(0, x.rank - 1)
    op = b.choose(("ArgMax", "ArgMin", "TopK", "CumSum", "CumSum", "Hardmax"))
    if op == "TopK":
        k = b.between(1, min(x.shape[axis], 6))
        b.add_all(op, x, b.ints(k), outputs=2, axis=axis, largest=b.choose((0, 1)))
    elif op == "CumSum":
        ways = {"exclusive": b.choose((0, 1)), "reverse": b.choose((0, 1))}
        y = b.add(op, x, b.constant(np.int64(axis)), **ways)
        b.add("Mul", y, b.constant(np.float32(0.2)))
    elif op == "Hardmax":
        b.add(op, x, axis=axis)
    else:
        ways = {"keepdims": b.choose((0, 1)), "select_last_index": b.choose((0, 1))}
        y = b.add(op, x, axis=axis, **ways)
        b.add("Cast", y, to="float32")


def grid(b: Builder) -> None:
    x = b.pick(lambda v: v.rank == 4 and v.node.type.size < 3000)
    where = np.tanh(b.normal(x.shape[0], 3, 4, 2)) * np.float32(1.1)
    modes = {"mode": b.choose(("linear", "nearest")), "align_corners": b.choose((0, 1))}
    b.add("GridSample", x, b.constant(where), padding_mode=b.choose(("zeros", "border")), **modes)
