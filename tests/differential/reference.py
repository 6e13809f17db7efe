"""Graph and inputs -> what each output is, and how far rounding may move it.

The graph is evaluated in numpy several times, each time with every rounding error made on purpose:
what a kernel may calculate otherwise (the order of a sum, a polynomial for a function, a product
and a sum rounded once) changes by a few units of its last place, up or down at random (Monte Carlo
arithmetic, D. S. Parker 1997). How far the outputs then lie apart is how far they may be off: the
bound follows the values and the graph. Where nothing is rounded, as among integers, it is zero.
Decisions that hang on a rounding error (an index of a maximum, a byte rounded half up) come out
both ways, so that both are allowed; all others must be met exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.hardware.products import ShortMac
from qcompiler.ir import Array, Graph, Node, numpy_dtype
from qcompiler.ops import meaning
from qcompiler.ops.shapes import axes_of

RUNS = 6
"""Three pairs: what one pushes up, the other pushes down."""
TIES = 20
"""The runs where values are rounded to 16-bit floats, or to bytes inside attention: those near a
tie go either way, and some sums of a few of them come out otherwise only if one goes this way and
another that way.
"""
UNITS = 8.0
"""Rounding errors are made this many times as large as one half unit in the last place."""
SLACK = 2.0
"""The largest difference seen, times this, is allowed."""

# fmt: off
EXACT = frozenset({
    "Abs", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat", "ConstantOfShape",
    "ConvInteger", "DepthToSpace", "Dropout", "Equal", "Expand", "EyeLike", "Flatten", "Floor",
    "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Greater", "GreaterOrEqual",
    "Hardmax", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "MatMulInteger", "Max",
    "MaxPool", "Min", "Neg", "Not", "OneHot", "Or", "Pad", "Range", "ReduceMax", "ReduceMin",
    "Relu", "Reshape", "ReverseSequence", "Round", "ScatterND", "Shape", "Sign", "Size", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu",
    "Unsqueeze", "Where", "Xor", "as_signed", "as_unsigned", "item", "lookup", "max_pool",
})
"""Nothing is rounded, or rounding is all they do."""
LOWERED = frozenset({"quantize"})
"""Kernels equal these bit for bit; passes make them of operators that round otherwise."""
PRODUCTS = frozenset({
    "Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN",
    "attention", "conv", "matmul", "matmul_narrow", "recurrent", "QLinearConv", "QLinearMatMul",
})
"""May be calculated by transforms, whose errors are small against the largest operand."""
WINOGRAD = frozenset({"Conv", "conv", "ConvTranspose"})
"""Of 3 x 3 windows: of 200 random inputs of 32 channels, 1.2 million results, one was off by 38
units of its largest input times the norm of its weights, where direct sums are off by 9. A
transposed convolution of stride 2 is one of 2 x 2 windows, transformed at the same points.
"""
CENTRED = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization"})
"""onnxruntime scales values and their mean, and subtracts then: as exact as the largest of them and
as their mean, a sum of n terms in order, whose error grows with the square root of n as a rule.
"""
PLAIN = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "conv", "matmul"})
"""Their outputs are sums of products of their first two operands."""
SUMS = PRODUCTS | frozenset({
    "AveragePool", "BatchNormalization", "CumSum", "GlobalAveragePool", "GridSample",
    "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization", "LogSoftmax",
    "LpNormalization", "LpPool", "Mean", "MeanVarianceNormalization", "RMSNormalization",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Resize", "Softmax", "Sum", "average_pool",
})
"""Errors are small against the terms, not against what they sum to."""
DRIFTING: Mapping[str, Callable[[Array], Array]] = {
    "GlobalAveragePool": np.abs, "ReduceL1": np.asarray, "ReduceL2": np.asarray,
    "ReduceLogSum": np.asarray, "ReduceLogSumExp": np.ones_like, "ReduceMean": np.abs,
    "ReduceSum": np.abs, "ReduceSumSquare": np.asarray,
}
"""Sums that onnxruntime makes term after term in one float32: of n terms t the error is as large
as (n - 1) u sum|t| (N. Higham, "Accuracy and Stability of Numerical Algorithms", 4.2), and comes
near it where all terms are alike, each of which is cut off in the same direction. What to add to
the operand, times (n - 1) u, for its terms to grow by that share.
"""
CANCELLING = frozenset({"GlobalAveragePool", "ReduceMean", "ReduceSum"})
"""Sums of many terms of either sign, of which nearly nothing may be left."""
PLACED = frozenset({"GridSample", "Resize"})
"""They read between elements, at places that are rounded too; other operands say where."""
GATES = frozenset({"GRU", "LSTM", "recurrent"})
"""Their states are sums of products with gates, which are as exact as the 1 they come near."""
VANISHING = frozenset({
    "Celu", "Elu", "Erf", "Exp", "Gelu", "Mish", "Selu", "Sigmoid", "Softmax", "Softplus", "Swish",
})
"""Where they give zero, something too small to matter may stand, unless it meets an infinity."""
OFF_BEFORE = frozenset({
    "Cos", "DynamicQuantizeLinear", "Pow", "QuantizeLinear", "Sin", "Tan", "quantize",
})
"""An error of their operand's last place says more than one of theirs."""
LEAST = 2.0**-126
COARSE = 2.0**-11
"""Six times the relative error of the exponentials that become bytes (`polynomials.exp2_least`)."""
GATED = frozenset({"Gelu", "Mish", "Swish"})
"""They multiply their operand by such a zero themselves: an infinity stays, or is lost."""
ROUNDED: Mapping[str, tuple[float, float]] = {
    "byte": (2.0**-15.5, 7e-5), "bfloat16": (2.0**-17, 3e-5),
}
"""The error of a Gelu that nothing but a rounding reads (`polynomials.gelu_rounded`): its share of
the operand, and what it is at most.
"""
SWISH = 2.0**-14.5, 2.5e-5
"""That of such a Swish (`polynomials.swish_rounded`), of alpha x."""
SWISH_BYTES_IN_HALVES = 2.0**-10, 2.0**-10.8
"""The same to bytes where there is arithmetic in float16."""
# fmt: on


@dataclass(frozen=True)
class Reference:
    """An output: its value, and for each element how far from it is right."""

    value: Array
    bound: Array
    """float64; infinite where not even the sign of an infinity is certain."""


def references(
    graph: Graph,
    feed: Mapping[str, Array],
    *,
    kernels: bool,
    in_order: bool = False,
    short: ShortMac | None = None,
) -> dict[str, Reference]:
    """Every output of a graph. `kernels`: for a kernel made of this very graph, which equals some
    operators bit for bit; else for another graph of the same meaning. `in_order`: for whom sums its
    terms one after another (`DRIFTING`). `short`: the instruction of kernels that sum in float16.
    """
    exact = EXACT | LOWERED if kernels else EXACT
    coarse = _rounded(graph, halves=short is not None) if kernels else {}
    plain = _run(graph, feed, None, exact, coarse)
    count, slack = (TIES, 2 * SLACK) if any(map(_narrows, graph.nodes)) else (RUNS, SLACK)
    runs = []
    for k in range(count):
        noise = _Noise(np.random.default_rng((7, k // 2)), 1.0 if k % 2 else -1.0, in_order, short)
        runs.append(_run(graph, feed, noise, exact, coarse))
    filled = {"float32", "float64"}
    filled |= {"bfloat16", "float16"} if any(map(_computes_narrow, graph.nodes)) else set()
    return {
        name: Reference(
            value, _spread(value, [r[name] for r in runs], slack, value.dtype.name in filled)
        )
        for name, value in plain.items()
    }


def _spread(value: Array, runs: list[Array], slack: float, filled: bool) -> Array:
    """How far the runs lie from the value, with slack; infinite where they differ in kind.

    Errors of one element may happen to cancel in all runs, but not those of half a tensor: where
    floats moved that were computed (`filled`), each element is given at least what moved the middle
    one.
    """
    wide = value.astype(np.float64)
    bound = np.zeros(wide.shape)
    with np.errstate(all="ignore"):
        for run in runs:
            other = run.astype(np.float64)
            same = (other == wide) | (np.isnan(other) & np.isnan(wide))
            far = np.where(same, 0.0, np.abs(other - wide))
            bound = np.maximum(bound, np.where(np.isnan(far), np.inf, far))
        moved = bound > 0
        if filled and moved.any():
            size = np.where(np.isfinite(wide), np.abs(wide), 0.0)
            middle = float(np.median(bound[moved]))
            share = float(np.median(bound[moved] / np.maximum(size[moved], 1e-30)))
            bound = np.maximum(
                bound, np.maximum(middle, min(share, 2 * _unit(value.dtype.name)) * size)
            )
    return slack * bound


@dataclass
class _Noise:
    """Rounding errors of one run."""

    rng: np.random.Generator
    sign: float
    in_order: bool
    short: ShortMac | None = None

    def signs(self, shape: tuple[int, ...]) -> Array:
        return (
            self.sign * (2.0 * self.rng.integers(0, 2, shape) - 1) * self.rng.uniform(0.5, 1, shape)
        )

    def drifted(self, node: Node, arrays: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
        """Operands of a sum whose terms are off as if it was made in order."""
        x, *rest = arrays
        if x is None or x.dtype != np.float32 or not self.in_order or node.op not in DRIFTING:
            return arrays
        terms = x.size // max(meaning(node, arrays)[0].size, 1)
        share = self.sign * max(terms - 1, 0) * 2.0**-24
        return (x + share * DRIFTING[node.op](x)).astype(x.dtype), *rest

    def coarsely(self, made: Array, x: Array | None, share: float, most: float) -> Array:
        """A result whose error is a share of its operand and has a limit. Four times as large: what
        it decides are roundings, several of which go the same way in some sum.
        """
        assert x is not None
        off = np.minimum(share * np.abs(x), most)
        return (made + 4 * self.signs(made.shape) * off).astype(made.dtype)

    def moved(self, x: Array, by: Array | float = 0.0) -> Array:
        """Each element moved by a few units of its last place, and by something more."""
        dtype = x.dtype.name
        if "float" not in dtype or x.size == 0:
            return x
        unit = _unit(dtype)
        wide = x.astype(np.float64)
        with np.errstate(all="ignore"):
            moved = wide + self.signs(x.shape) * unit * (np.abs(wide) + by)
            return np.where(np.isfinite(wide), moved, wide).astype(x.dtype)


def _unit(dtype: str) -> float:
    """The relative error that is made on purpose: of a 16-bit float the step to its neighbour."""
    if dtype in ("float32", "float64"):
        return UNITS * {"float32": 2.0**-24, "float64": 2.0**-53}[dtype]
    import ml_dtypes

    return 1.01 * float(ml_dtypes.finfo(numpy_dtype(dtype)).eps)


def _rounded(graph: Graph, *, halves: bool) -> dict[Node, tuple[float, float]]:
    """Gelu and Swish nodes that nothing but roundings reads -> their errors; `halves`: where there
    is arithmetic in float16.
    """
    found: dict[Node, tuple[float, float]] = {}
    for node in (n for n in graph.nodes if n.op in ("Gelu", "Swish") and n not in graph.outputs):
        kinds = {_rounds_to(n) for n in graph.nodes if node in n.operands}
        if not kinds or None in kinds:
            continue
        if node.op == "Gelu":
            found[node] = max(ROUNDED[str(k)] for k in kinds)
        else:
            share, most = SWISH_BYTES_IN_HALVES if halves and "byte" in kinds else SWISH
            found[node] = share, most / abs(float(node.attrs["alpha"]) or 1.0)
    return found


def _rounds_to(node: Node) -> str | None:
    if node.op == "quantize" and numpy_dtype(node.dtype).itemsize == 1:
        return "byte"
    return "bfloat16" if node.op == "Cast" and node.dtype == "bfloat16" else None


def _run(
    graph: Graph,
    feed: Mapping[str, Array],
    noise: _Noise | None,
    exact: frozenset[str],
    coarse: Mapping[Node, tuple[float, float]],
) -> dict[str, Array]:
    values: dict[Node, tuple[Array, ...]] = {}
    for node in graph.nodes:
        if node.op == "input":
            values[node] = (np.asarray(feed[node.name]),)
        elif node.is_constant:
            values[node] = (node.array,)
        elif node.op == "item":
            values[node] = (values[node.operands[0]][node.int("index")],)
        else:
            arrays = tuple(None if i is None else values[i][0] for i in node.inputs)
            values[node] = _noisy(node, arrays, noise if node.op not in exact else None)
            if noise is not None and node in coarse:
                values[node] = (noise.coarsely(values[node][0], arrays[0], *coarse[node]),)
    return {n: values[o][0] for n, o in zip(graph.output_names, graph.outputs, strict=True)}


def _noisy(node: Node, arrays: tuple[Array | None, ...], noise: _Noise | None) -> tuple[Array, ...]:
    if noise is None:
        return meaning(node, arrays)
    if node.op in SUMS or node.op in OFF_BEFORE:
        count = 1 if node.op in PLACED else len(arrays)
        moved = tuple(None if a is None else _terms(node, a, noise) for a in arrays[:count])
        arrays = noise.drifted(node, (*moved, *arrays[count:]))
    if node.op == "attention" and node.operands[0].dtype == "int8":
        arrays = _with_noisy_scores(arrays, noise)
    outputs = meaning(node, arrays)
    beside = _begun(node, arrays) + _so_far(node, arrays)
    moved = tuple(noise.moved(o, _against(node, arrays, o) + beside) for o in outputs)
    if noise.short is not None and _sums_shortly(node):
        off = _of_short_sums(node, arrays, noise.short)
        moved = tuple((o + noise.signs(o.shape) * off).astype(o.dtype) for o in moved)
    if node.op in VANISHING:
        moved = tuple(
            np.where(o == 0, noise.signs(o.shape) * LEAST, o).astype(o.dtype) for o in moved
        )
    if node.op in GATED and arrays[0] is not None:
        lost = np.isinf(arrays[0].astype(np.float64)) & np.isnan(moved[0].astype(np.float64))
        either = np.where(lost & (noise.signs(lost.shape) > 0), arrays[0], moved[0])
        moved = (either.astype(moved[0].dtype),)
    biased = node.operands[:2] if node.op == "Add" else (node,) * (len(node.operands) > 2)
    grain = max((_grain(n) for n in biased), default=0)
    return tuple((o + noise.signs(o.shape) * grain).astype(o.dtype) if grain else o for o in moved)


def _with_noisy_scores(arrays: tuple[Array | None, ...], noise: _Noise) -> tuple[Array | None, ...]:
    """int8 attention rounds its weights to bytes inside: its scores are off by errors of their own,
    as if a mask said so.
    """
    q, k, v, mask, *rest = (*arrays, None, None, None)[: max(len(arrays), 4)]
    if mask is not None and mask.dtype == np.bool_:
        return arrays
    assert q is not None
    rows = (q if k is None else k).shape[-2]
    largest = 32.0 if mask is None else 32.0 + float(np.abs(mask[mask > -1e3]).max(initial=0))
    unit = COARSE + UNITS * 2.0**-24 * largest
    added = unit * noise.signs((q.shape[-2], rows))
    moved = added if mask is None else mask + added
    return q, k, v, moved.astype(np.float32), *rest


def _narrows(node: Node) -> bool:
    """Whether a computed value is rounded to a 16-bit float, or attention's weights to bytes."""
    if node.op == "attention":
        return node.operands[0].dtype == "int8"
    if node.op == "Cast":
        return node.dtype in ("bfloat16", "float16")
    return _computes_narrow(node)


def _computes_narrow(node: Node) -> bool:
    """Whether an operator of 16-bit floats rounds what it computes, as in models of that dtype."""
    narrow = any(t.dtype in ("bfloat16", "float16") for t in node.types)
    return narrow and node.op not in EXACT | {"input", "constant", "item"}


def _grain(node: Node) -> float:
    """What a bias is rounded to when a product of bytes becomes one of integers; else 0."""
    if node.op not in PRODUCTS or len(node.operands) < 2:
        return 0.0
    read = node.operands[:2]
    if any(n.op != "DequantizeLinear" or not n.operands[1].is_constant for n in read):
        return 0.0
    x, w = (float(np.abs(n.operands[1].array.astype(np.float64)).max(initial=0)) for n in read)
    return x * w


def _begun(node: Node, arrays: tuple[Array | None, ...]) -> Array | float:
    """Sums of products may begin with what is added to them: then each of their n terms is rounded
    where that stands, which may be large beside all of them. As a share of `UNITS` on the result:
    an error of n / 2 units of the bias, whose double is Higham's bound (`DRIFTING`).
    """
    if node.op == "Add":
        products = [n for n in node.operands if n.op in PLAIN]
        beside = [a for n, a in zip(node.operands, arrays, strict=True) if n not in products]
    else:
        products = [node] if node.op in PLAIN and len(node.operands) > 2 else []
        beside = list(arrays[2:])
    if not products or "float" not in node.dtype:
        return 0.0
    terms = max(_terms_of(n) for n in products)
    finite = [np.abs(a[np.isfinite(a)]) for a in beside if a is not None]
    size = max((float(a.max(initial=0)) for a in finite), default=0.0)
    return max(0.5 * terms / UNITS - 1, 0) * size


def _so_far(node: Node, arrays: tuple[Array | None, ...]) -> Array | float:
    """Each addition of a sum is rounded where the sum so far stands, by half a unit of its last
    place at most: errors that do not depend on each other, so their squares add up. Of n terms of
    mixed signs they grow with n, and errors of the terms with its square root. In order, as here,
    sums so far are the longest; kernels sum in lanes. As a share of `UNITS` on the result.
    """
    x, *rest = arrays
    if node.op not in CANCELLING or x is None or x.dtype != np.float32 or x.size == 0:
        return 0.0
    given = [int(a) for axes in rest if axes is not None for a in axes.ravel()]
    if not given and node.attrs.get("noop_with_empty_axes"):
        return 0.0
    first = 2 if node.op == "GlobalAveragePool" else 0
    over = axes_of(given, x.ndim) or tuple(range(first, x.ndim))
    terms = np.moveaxis(x.astype(np.float64), over, range(-len(over), 0))
    shape = meaning(node, arrays)[0].shape
    with np.errstate(all="ignore"):
        so_far = terms.reshape(*terms.shape[: x.ndim - len(over)], -1).cumsum(-1)
        off = np.sqrt((so_far**2).sum(-1)).reshape(shape) / UNITS
    count = 1 if node.op == "ReduceSum" else so_far.shape[-1]
    return np.where(np.isfinite(off), off / count, 0.0)


def _sums_shortly(node: Node) -> bool:
    """Whether a kernel may sum products of a node's operands in float16, where a device does."""
    halves = node.op in ("conv", "matmul") and node.operands[0].dtype == "float16"
    return halves and node.operands[1].is_constant


def _of_short_sums(node: Node, arrays: tuple[Array | None, ...], short: ShortMac) -> Array:
    """What float16 sums of some terms are off, as docs/targets.md has it: each addition is rounded
    by 2^-12 of the sum so far, errors whose squares add up; and weights, scaled to 2.2 of a section
    at most, make products below the least number of float16.
    """
    x, w = (np.abs(a.astype(np.float32)) for a in arrays[:2] if a is not None)
    count = _terms_of(node)
    with np.errstate(all="ignore"):
        terms, column, taken = (
            meaning(node, operands)[0].astype(np.float64)
            for operands in ((x, w), (np.ones_like(x), w), (x, np.ones_like(w)))
        )
        rounded = min(count, short.steps) ** 0.5 * 2.0**-12 * terms
        off = rounded + 2.0**-24 * 2.2 * column.max(initial=0) * (taken + count)
    return np.where(np.isfinite(off), off, 0.0)


def _terms_of(node: Node) -> float:
    """How many products a sum of `PLAIN` has."""
    x, w = (n.type for n in node.operands[:2])
    if node.op in ("MatMul", "matmul", "Gemm"):
        return float(x.dims[0 if node.attrs.get("transA") else -1])
    return w.size / w.dims[{"Conv": 0, "ConvTranspose": 1}.get(node.op, -1)]


def _terms(node: Node, array: Array, noise: _Noise) -> Array:
    """An operand whose elements are the terms of sums.

    Attention in 16 bits may round the weights, which are not its operands, before or after they are
    divided by their sum: as if the values it sums were not the same.
    """
    narrow = array.dtype.name in ("bfloat16", "float16")
    if narrow and node.op in ("Attention", "attention"):
        return noise.moved(array)
    if array.dtype != np.float32 or array.size == 0:
        return array
    finite = np.abs(array[np.isfinite(array)])
    against = node.op in PRODUCTS or node.op in PLACED or (noise.in_order and node.op in CENTRED)
    largest = float(finite.max(initial=0)) if against else 0.0
    grown = 8 if node.op in PLACED else array.size**0.5 if node.op in CENTRED else 1
    wide = node.op in WINOGRAD and (3 in node.operands[1].type.dims or node.op == "ConvTranspose")
    grown = 2 if wide else grown
    return noise.moved(array, largest * grown)


def _against(node: Node, arrays: tuple[Array | None, ...], output: Array) -> Array | float:
    """Functions of one value may cancel inside: they are as exact as their operand is large. So may
    sums: float32 terms are moved themselves, those of narrow floats are too coarse for that.
    """
    first = arrays[0] if arrays else None
    if first is not None and node.op in PLAIN and first.dtype.name in ("bfloat16", "float16"):
        with np.errstate(all="ignore"):
            terms = meaning(node, tuple(None if a is None else np.abs(a) for a in arrays))[0]
        return np.nan_to_num(terms.astype(np.float64), posinf=0.0)
    if node.op in GATES:
        return 1.0
    if node.op in SUMS or first is None or "float" not in first.dtype.name:
        return 0.0
    if len([a for a in arrays if a is not None]) > 1 or first.shape != output.shape:
        return 0.0
    with np.errstate(all="ignore"):
        wide = np.abs(first.astype(np.float64))
        taken = _taken_from(node) * (first < 0)
    return np.where(np.isfinite(wide), np.minimum(wide, 100.0), 0.0) + taken


def _taken_from(node: Node) -> float:
    """What functions that are (e^x - 1) times this below zero take from their exponential, which is
    near it there: it is rounded as that is.
    """
    if node.op not in ("Celu", "Elu", "Selu"):
        return 0.0
    return float(node.attrs.get("alpha", 1.0)) * float(node.attrs.get("gamma", 1.0))  # type: ignore[arg-type]
