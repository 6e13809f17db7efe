"""Rare operators -> operators that have kernels, or constants.

Random numbers are drawn once, when the model is read: every run of the model sees the same ones,
which depend on the seed, or, without one, on the node's name.
"""

from __future__ import annotations

import zlib
from itertools import pairwise, product
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import Error
from qcompiler.ir import Attr, Node, constant, numpy_dtype
from qcompiler.onnx_io.call import Call, Result, always
from qcompiler.onnx_io.settle import Settling, plain, settles
from qcompiler.onnx_io.tensors import dtype_name
from qcompiler.ops import known_value, make, meaning
from qcompiler.ops.contraction import sums_of
from qcompiler.ops.shapes import together, total
from qcompiler.ops.window import Window

Floats = NDArray[np.float64]


# Random numbers.


def _seed(call: Call) -> int:
    """The seed of numpy's generator for a call: its own, if that is an integer."""
    seed = call.get("seed")
    if isinstance(seed, int):
        return seed & 0xFFFFFFFF
    text = call.name.encode() if seed is None else np.float32(seed).tobytes()  # type: ignore[arg-type]
    return zlib.crc32(text)


def _drawn(call: Call, shape: Node, dtype: str) -> Node:
    """Numbers of a shape, drawn as a call of Random* says."""
    uniform = call.op.startswith("RandomUniform")
    first, second = (call.real(k) for k in (("low", "high") if uniform else ("mean", "scale")))
    s, kind = plain(call), "uniform" if uniform else "normal"
    numbers = _numbers(s, shape, seed=_seed(call), kind=kind, first=first, second=second)
    return s.node("Cast", numbers, to=dtype)


def _numbers(s: Settling, shape: Node, **how: Attr) -> Node:
    """float64 numbers of a shape: a constant, unless that is open."""
    made = s.node("drawn", shape, **how)
    if not made.type.static:
        return made
    (array,) = meaning(made, (np.array(made.type.dims, np.int64),))
    return constant(array, made.name)


@always("RandomNormal", "RandomUniform")
def _random(call: Call) -> Result:
    dtype = dtype_name(call.number("dtype"), f"{call.name} ({call.op})")
    return _drawn(call, call.constant("shape", call.numbers("shape") or ()), dtype)


@always("RandomNormalLike", "RandomUniformLike")
def _random_like(call: Call) -> Result:
    x, code = call.need(0), call.get("dtype")
    where = f"{call.name} ({call.op})"
    dtype = x.dtype if code is None else dtype_name(int(code), where)  # type: ignore[arg-type]
    return _drawn(call, plain(call).node("Shape", x), dtype)


@always("Multinomial")
def _multinomial(call: Call) -> Result:
    """The first class whose share, with those before it, exceeds a number drawn from [0, 1)."""
    s, x = plain(call), call.need(0)
    rows, classes = x.type.dims
    count = call.number("sample_size")
    dtype = dtype_name(call.number("dtype"), f"{call.name} ({call.op})")
    generator = np.random.RandomState(_seed(call))
    drawn = constant(generator.uniform(size=(rows, count, 1)).astype(np.float32))
    shares = s.node("CumSum", s.node("Softmax", s.node("Cast", x, to="float32"), axis=1), 1)
    below = s.node("LessOrEqual", s.node("Unsqueeze", shares, [1]), drawn)
    index = s.node("ReduceSum", s.node("Cast", below, to=dtype), [2], keepdims=0)
    most = constant(np.array(classes - 1, numpy_dtype(dtype)))
    return make("Min", index, most, name=call.name)


@always("Dropout")
def _dropout(call: Call) -> Result:
    """The identity, unless in training mode: then values of a drawn mask become zero."""
    s, x, training = plain(call), call.need(0), call.input(2)
    known = np.array(False) if training is None else known_value(training)
    true = constant(np.ones((1,), np.bool_))
    all_kept = s.node("ConstantOfShape", s.node("Shape", x), value=true.array)
    if known is not None and not known.any():
        return x, all_kept
    ratio = call.input(1) or constant(np.array(0.5, np.float32))
    seed = call.but(seed=call.get("seed") or 0)
    drawn = _numbers(s, s.node("Shape", x), seed=_seed(seed))
    one = constant(np.ones((), np.float64))
    share = s.node("Cast", ratio, to="float64")
    mask = s.node("GreaterOrEqual", drawn, share)
    factor = s.node("Div", one, s.node("Sub", one, share))
    scaled = s.node("Mul", x, s.node("Cast", factor, to=x.dtype))
    zero = constant(np.zeros((), np.int8).astype(x.dtype))
    # A ratio of 0 keeps every value, as the drawn numbers are not negative.
    y = s.node("Where", mask, scaled, zero)
    if known is not None:
        return y, mask
    assert training is not None
    flag = s.node("Reshape", training, s.ints(np.zeros(0, np.int64)))  # type: ignore[arg-type]
    return s.node("Where", flag, y, x), s.node("Where", flag, mask, all_kept)


# Normalization in training mode.


@always("BatchNormalization")
def _batch_norm_in_training(call: Call) -> Result:
    """In training mode, mean and variance are the batch's, and also make the running ones."""
    if not call.get("training_mode"):
        return call
    s, x = plain(call), call.need(0)
    if x.type.rank < 2:
        raise call.error(f"{x.type} has no channels")
    axes = [a for a in range(x.type.rank) if a != 1]
    shape = (-1, *[1] * (x.type.rank - 2))
    wide = s.node("Cast", x, to="float32") if x.dtype in ("float16", "bfloat16") else x
    mean = s.node("ReduceMean", wide, axes)
    centred = s.node("Sub", wide, mean)
    variance = s.node("ReduceMean", s.node("Mul", centred, centred), axes)
    epsilon = call.constant("epsilon", call.real("epsilon"), wide.dtype)
    deviation = s.node("Sqrt", s.node("Add", variance, epsilon))
    scale, bias = (
        s.node("Cast", s.node("Reshape", call.need(i), shape), to=wide.dtype) for i in (1, 2)
    )
    y = s.node("Add", s.node("Mul", s.node("Div", centred, deviation), scale), bias)
    outputs = [s.node("Cast", y, to=x.dtype)]
    kept = call.real("momentum")
    for now, before in ((mean, call.need(3)), (variance, call.need(4))):
        new = s.node("Cast", s.node("Reshape", now, [-1]), to=before.dtype)
        parts = (
            s.node("Mul", value, call.constant("share", share, before.dtype))
            for value, share in ((before, kept), (new, 1 - kept))
        )
        outputs.append(s.node("Add", *parts))
    return tuple(outputs)


# Mel weights.


@settles("MelWeightMatrix", operands=(0, 1, 2, 3, 4))
def _mel_of_declared(s: Settling) -> Result:
    rows, bins = s.shape
    s.same(s.vector(0), [bins], "the number of bins")
    half = s.node("Add", s.node("Div", s.vector(1), 2), 1)
    s.same(half, [rows], "the number of frequencies")
    return _mel(s, rows, bins)


@always("MelWeightMatrix")
def _mel_of_known(call: Call) -> Result:
    bins, length = (known_value(call.need(i)) for i in (0, 1))
    if bins is None or length is None:
        raise call.unsupported("its sizes are known at run time only", "make them constants")
    return _mel(plain(call), int(length.ravel()[0]) // 2 + 1, int(bins.ravel()[0]))


def _mel(s: Settling, rows: int, bins: int) -> Node:
    """[rows, bins]: triangles over frequencies, whose corners are equally far apart in mel."""

    def real(value: float | Floats) -> Node:
        return constant(np.asarray(value, np.float64))

    def number(index: int) -> Node:
        scalar = s.node("Reshape", s.call.need(index), s.ints(np.zeros(0, np.int64)))  # type: ignore[arg-type]
        return s.node("Cast", scalar, to="float64")

    length, rate = number(1), number(2)
    per_log = 2595 / np.log(10)
    mels = [
        s.node("Mul", s.node("Log", s.node("Add", s.node("Div", number(i), real(700)), real(1))),
               real(per_log))
        for i in (3, 4)
    ]  # fmt: skip
    step = s.node("Div", s.node("Sub", mels[1], mels[0]), real(bins + 2))
    at = s.node("Add", s.node("Mul", real(np.arange(bins + 2.0)), step), mels[0])
    power = s.node("Exp", s.node("Mul", s.node("Div", at, real(2595)), real(np.log(10))))
    hertz = s.node("Mul", s.node("Sub", power, real(1)), real(700))
    scaled = s.node("Mul", s.node("Add", length, real(1)), hertz)
    corners = s.node("Floor", s.node("Div", scaled, rate))
    low, middle, high = (s.node("Slice", corners, [i], [i + bins]) for i in range(3))
    j = real(np.arange(float(rows)).reshape(-1, 1))
    rising = s.node("Div", s.node("Sub", j, low), s.node("Sub", middle, low))
    falling = s.node("Div", s.node("Sub", high, j), s.node("Sub", high, middle))

    def between(a: Node, first: str, b: Node, last: str) -> Node:
        return s.node("And", s.node(first, j, a), s.node(last, j, b))

    up = s.node(
        "Where",
        between(low, "GreaterOrEqual", middle, "LessOrEqual"),
        s.node("Where", s.node("Equal", low, middle), real(1), rising),
        real(0),
    )
    made = s.node("Where", between(middle, "GreaterOrEqual", high, "Less"), falling, up)
    dtype = dtype_name(s.call.number("output_datatype"), f"{s.call.name} (MelWeightMatrix)")
    return s.node("Cast", made, to=dtype)


# Text statistics.


@always("TfIdfVectorizer")
def _tf_idf(call: Call) -> Result:
    """How often each n-gram of the pool occurs, items being up to `max_skip_count` apart."""
    s, x = plain(call), call.need(0)
    pool = call.numbers("pool_int64s")
    if pool is None:
        raise call.unsupported("n-grams of strings", "look strings up before the model runs")
    indexes = call.numbers("ngram_indexes") or ()
    least, most = call.number("min_gram_length"), call.number("max_gram_length")
    starts = [*(call.numbers("ngram_counts") or ()), len(pool)]
    x = s.node("Cast", x, to="int64")
    rows = x if x.type.rank == 2 else s.node("Unsqueeze", x, [0])
    batch, count = rows.type.dims
    parts: list[Node] = []
    for n, (begin, end) in enumerate(pairwise(starts), 1):
        grams = np.array(pool[begin:end], np.int64).reshape(-1, n)
        found: Node = s.node("Expand", 0, [batch, len(grams)])
        for skip in range(call.number("max_skip_count") + 1 if n > 1 else 1):
            positions = count - (n - 1) * (skip + 1)
            if least <= n <= most and positions > 0 and len(grams):
                places = np.arange(positions)[:, None] + np.arange(n) * (skip + 1)
                seen = s.node("Gather", rows, s.ints(places), axis=1)  # type: ignore[arg-type]
                same = s.node("Equal", s.node("Unsqueeze", seen, [2]), s.ints(grams))  # type: ignore[arg-type]
                whole = s.node("ReduceMin", s.node("Cast", same, to="int32"), [3], keepdims=0)
                each = s.node("ReduceSum", s.node("Cast", whole, to="int64"), [1], keepdims=0)
                found = s.node("Add", found, each)
        parts.append(found)
    counts = s.node("Concat", *parts, axis=1)
    made = _weighted(s, counts, indexes)
    return made if x.type.rank == 2 else s.node("Squeeze", made, [0])


def _weighted(s: Settling, counts: Node, indexes: tuple[int, ...]) -> Node:
    """counts[batch, n-grams] -> [batch, outputs], by the mode, at the n-grams' indexes."""
    mode, given = s.call.get("mode"), s.call.get("weights")
    if mode == "IDF":
        counts = s.node("Min", counts, 1)
    weights = np.ones(len(indexes), np.float32)
    if mode != "TF" and isinstance(given, tuple) and given:
        weights = np.array(given, np.float32)
    table = np.zeros((len(indexes), max(indexes, default=-1) + 1), np.float32)
    table[np.arange(len(indexes)), indexes] = weights
    return s.node("MatMul", s.node("Cast", counts, to="float32"), constant(table))


# Patches.


@always("DeformConv")
def _deform_conv(call: Call) -> Result:
    """Sample the image where the offsets say, then a convolution of one tap over what is seen."""
    s, x, w, offset = plain(call), *(call.need(i) for i in range(3))
    if x.type.rank != 4:
        raise call.unsupported("more or fewer than two dimensions of an image")
    batch, channels, *image = x.type.dims
    taps, sizes = tuple(w.type.dims[2:]), tuple(offset.type.dims[2:])
    shifts, group = call.number("offset_group"), call.number("group")
    steps, gaps = call.numbers("strides") or (1, 1), call.numbers("dilations") or (1, 1)
    begins = call.numbers("pads") or (0, 0, 0, 0)
    ways = prod(taps)
    split = s.node("Reshape", offset, (batch * shifts, ways, 2, *sizes))
    sides = []
    for axis in (0, 1):
        own = np.arange(taps[axis]) * gaps[axis] - begins[axis]
        first = np.arange(sizes[axis]) * steps[axis]
        grid = (own[:, None], own)[axis] + np.zeros(taps)
        place = (first[:, None], first)[axis] + np.zeros(sizes)
        start = constant((grid.reshape(ways, 1, 1) + place).astype(x.dtype))
        moved = s.node("Add", s.node("Gather", split, axis, axis=2), start)
        scale = call.constant(f"scale{axis}", 2 / image[axis], x.dtype)
        shift = call.constant(f"shift{axis}", 1 / image[axis] - 1, x.dtype)
        side = s.node("Add", s.node("Mul", moved, scale), shift)
        sides.append(s.node("Reshape", side, (batch * shifts, ways * sizes[0], sizes[1], 1)))
    pictures = s.node("Reshape", x, (batch * shifts, channels // shifts, *image))
    seen = s.node("GridSample", pictures, s.node("Concat", *reversed(sides), axis=3))
    seen = s.node("Reshape", seen, (batch, shifts, channels // shifts, ways, *sizes))
    mask = call.input(4)
    if mask is not None:
        seen = s.node("Mul", seen, s.node("Reshape", mask, (batch, shifts, 1, ways, *sizes)))
    columns = s.node("Reshape", seen, (batch, channels * ways, *sizes))
    weights = s.node("Reshape", w, (w.type.dims[0], w.type.dims[1] * ways, 1, 1))
    bias = call.input(3)
    return make("Conv", columns, weights, bias, name=call.name, group=group)


# Patches, put together again.


@settles("Col2Im", operands=(1, 2))
def _col2im(s: Settling) -> Result:
    """The block is one of the few of as many taps that fit the number of columns."""
    if not s.call.need(0).type.static or any(isinstance(d, str) for d in s.shape):
        return _col2im_of_open(s)
    x, wanted = s.call.need(0).type.dims, s.shape[2:]
    s.same(s.vector(1), wanted, "the size of the image")
    call = s.replaced(1, wanted)
    known = known_value(call.need(2))
    if known is not None:
        return call
    taps = x[1] // max(s.shape[1], 1)
    sides = [range(1, taps + 1)] * len(wanted)
    fitting = []
    like = Node("Col2Im", (), call.attrs, ())
    for block in product(*sides) if prod(map(len, sides)) <= 1 << 14 else ():
        if prod(block) == taps and _columns(like, wanted, block) == x[2]:
            fitting.append(block)
    if not fitting or len(fitting) > 16:
        raise s.refusal()
    weights = [(taps + 1) ** i for i in range(len(wanted))]
    given = s.node("ReduceSum", s.node("Mul", s.vector(2), weights), [0], keepdims=1)
    keys = [sum(a * b for a, b in zip(block, weights, strict=True)) for block in fitting]
    hits = s.node("Cast", s.node("Equal", given, keys), to="int64")
    total = s.node("ReduceSum", hits, [0], keepdims=1)
    s.check(s.node("Equal", total, 1), f"its block does not give {list(s.shape)}")
    results = [
        s.node("Col2Im", s.call.need(0), list(wanted), list(block), **s.call.attrs)
        for block in fitting
    ]
    return s.chosen(given, list(zip(keys, results, strict=True)))


def _col2im_of_open(s: Settling) -> Node:
    """Of open sizes: each value is added where it belongs, or behind the image."""
    x, (channels, *wanted) = s.call.need(0), s.shape[1:]
    batch, rank, block = x.shape[0], len(wanted), s.vector(2)
    s.same(s.vector(1), wanted, "the size of the image")
    ones = (1,) * rank
    strides, gaps = (s.call.numbers(k) or ones for k in ("strides", "dilations"))
    pads = s.call.numbers("pads") or (0,) * (2 * rank)
    sides = [s.node("Slice", block, [i], [i + 1]) for i in range(rank)]
    s.check(s.node("GreaterOrEqual", block, 1), "a block without a value")
    counts = []
    for i, size in enumerate(wanted):
        reach = s.node("Mul", s.node("Sub", sides[i], 1), gaps[i])
        room = s.node("Sub", s.node("Add", [size], pads[i] + pads[rank + i] - 1), reach)
        s.check(s.node("GreaterOrEqual", room, 0), "a block larger than the image")
        counts.append(s.node("Add", s.node("Div", room, strides[i]), 1))
    row, tap = _digits(s, s.steps(x.shape[1]), sides)
    none, seen = _digits(s, s.steps(x.shape[2]), counts)
    taps, columns = (_over(s, n) for n in (sides, counts))
    s.same(s.node("Mul", taps, [channels]), [x.shape[1]], "the number of values of a column")
    s.same(columns, [x.shape[2]], "the number of columns")
    place, inside = (
        s.node("Unsqueeze", row, [1]),
        s.node("Equal", s.node("Unsqueeze", none, [0]), 0),
    )
    for i, size in enumerate(wanted):
        first = s.node("Sub", s.node("Mul", seen[i], strides[i]), pads[i])
        own = s.node("Unsqueeze", s.node("Mul", tap[i], gaps[i]), [1])
        at = s.node("Add", own, s.node("Unsqueeze", first, [0]))
        there = s.node("And", s.node("GreaterOrEqual", at, 0), s.node("Less", at, [size]))
        inside = s.node("And", inside, there)
        place = s.node("Add", s.node("Mul", place, [size]), at)
    whole = total((channels, *wanted))
    place = s.node("Where", inside, place, [whole])
    values = s.node("Reshape", s.node("Cast", x, to=sums_of(x.dtype)), [batch, -1])
    index = s.node("Expand", s.node("Reshape", place, [1, -1]), s.node("Shape", values))
    none = s.node("ConstantOfShape", [batch, together((whole, 1))], value=np.zeros(1, values.dtype))
    made = s.node("ScatterElements", none, index, values, axis=1, reduction="add")
    made = s.node("Slice", made, [0], [whole], [1])
    return s.node("Cast", s.node("Reshape", made, [batch, channels, *wanted]), to=x.dtype)


def _digits(s: Settling, numbers: Node, sizes: list[Node]) -> tuple[Node, list[Node]]:
    """Numbers in digits of mixed radix -> what stands before these, and they, outermost first."""
    found = []
    for size in reversed(sizes):
        found.append(s.node("Mod", numbers, size))
        numbers = s.node("Div", numbers, size)
    return numbers, found[::-1]


def _over(s: Settling, numbers: list[Node]) -> Node:
    """The product of numbers."""
    made = numbers[0]
    for n in numbers[1:]:
        made = s.node("Mul", made, n)
    return made


def _columns(like: Node, image: tuple[int, ...], block: tuple[int, ...]) -> int:
    """The number of an image's blocks; 0 if it has none."""
    try:
        return prod(int(n) for n in Window.of(like, image, block).outputs(image))
    except Error:
        return 0
