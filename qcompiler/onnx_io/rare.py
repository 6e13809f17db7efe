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
from qcompiler.ops.shapes import agree, together, total
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
    batch = s.node("Shape", rows, end=1)
    parts: list[Node] = []
    for n, (begin, end) in enumerate(pairwise(starts), 1):
        grams = np.array(pool[begin:end], np.int64).reshape(-1, n)
        found: Node = s.node("Expand", 0, s.node("Concat", batch, s.ints([len(grams)]), axis=0))
        for skip in range(call.number("max_skip_count") + 1 if n > 1 else 1):
            if least <= n <= most and len(grams):
                found = s.node("Add", found, _occurring(s, rows, grams, skip + 1))
        parts.append(found)
    counts = s.node("Concat", *parts, axis=1)
    made = _weighted(s, counts, indexes)
    return made if x.type.rank == 2 else s.node("Squeeze", made, [0])


def _occurring(s: Settling, rows: Node, grams: NDArray[np.int64], apart: int) -> Node:
    """rows[batch, items], n-grams[grams, n] -> int64[batch, grams]: how often the items of each are
    found so far apart.
    """
    count, n = s.node("Shape", rows, start=1), grams.shape[1]
    first, reach = s.steps(rows.shape[1] if rows.type.static else count), (n - 1) * apart
    places = s.node("Add", s.node("Unsqueeze", first, [1]), [i * apart for i in range(n)])
    seen = s.node("Gather", rows, s.node("Min", places, s.node("Sub", count, 1)), axis=1)
    same = s.node("Equal", s.node("Unsqueeze", seen, [2]), s.ints(grams))  # type: ignore[arg-type]
    whole = s.node("ReduceMin", s.node("Cast", same, to="int32"), [3], keepdims=0)
    there = s.node("Less", s.node("Add", s.node("Unsqueeze", first, [1]), reach), count)
    found = s.node("Mul", s.node("Cast", whole, to="int64"), s.node("Cast", there, to="int64"))
    return s.node("ReduceSum", found, [1], keepdims=0)


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
    shifts, taps = call.number("offset_group"), _deformed(call)
    steps, gaps = call.numbers("strides") or (1, 1), call.numbers("dilations") or (1, 1)
    begins = call.numbers("pads") or (0, 0, 0, 0)
    ways = prod(taps)

    def shaped(value: Node, *parts: Node | list[int]) -> Node:
        shape = [n if isinstance(n, Node) else s.ints(n) for n in parts]
        return s.node("Reshape", value, s.node("Concat", *shape, axis=0))

    batch, channels = (s.length(x, i) for i in (0, 1))
    rows, columns = (s.length(offset, i) for i in (2, 3))
    split = shaped(offset, [-1, ways, 2], rows, columns)
    sides = []
    for axis in (0, 1):
        own = np.arange(taps[axis]) * gaps[axis] - begins[axis]
        grid = (own[:, None], own)[axis] + np.zeros(taps, np.int64)
        first = s.node("Mul", s.steps((rows, columns)[axis]), steps[axis])
        place = s.node("Unsqueeze", first, [1]) if axis == 0 else first
        start = s.node("Add", constant(grid.reshape(ways, 1, 1)), place)
        moved = s.node("Gather", split, axis, axis=2)
        moved = s.node("Add", moved, s.node("Cast", start, to=x.dtype))
        size = s.node("Cast", s.length(x, 2 + axis), to=x.dtype)
        scale = s.node("Div", call.constant("two", 2, x.dtype), size)
        shift = s.node("Div", s.node("Sub", call.constant("one", 1, x.dtype), size), size)
        side = s.node("Add", s.node("Mul", moved, scale), shift)
        sides.append(shaped(side, [-1], s.node("Mul", rows, ways), columns, [1]))
    each = s.node("Div", channels, shifts)
    pictures = shaped(x, [-1], each, s.node("Shape", x, start=2))
    seen = s.node("GridSample", pictures, s.node("Concat", *reversed(sides), axis=3))
    seen = shaped(seen, batch, [shifts], each, [ways], rows, columns)
    mask = call.input(4)
    if mask is not None:
        seen = s.node("Mul", seen, shaped(mask, batch, [shifts, 1, ways], rows, columns))
    wide = shaped(seen, batch, s.node("Mul", channels, ways), rows, columns)
    weights = shaped(w, s.node("Shape", w, end=1), [-1, 1, 1])
    return make("Conv", wide, weights, call.input(3), name=call.name, group=call.number("group"))


def _deformed(call: Call) -> tuple[int, ...]:
    """The taps along each dimension of a DeformConv, whose offsets and mask fit them."""
    x, w, offset = (call.need(i).type for i in range(3))
    if w.rank != 4 or offset.rank != 4:
        raise call.error(f"weights {w} or offsets {offset} do not fit the image {x}")
    for size, given in zip(w.shape[2:], call.numbers("kernel_shape") or (), strict=False):
        agree(size, given)
    taps = tuple(d for d in w.shape[2:] if isinstance(d, int))
    if len(taps) < 2:
        raise call.error(f"the kernel's size is not known: {w}")
    node = Node("DeformConv", (), call.attrs, ())
    counts = Window.of(node, x.shape[2:], taps).outputs(x.shape[2:])
    each = call.number("offset_group") * prod(taps)
    shapes = [(offset, (x.shape[0], 2 * each, *counts))]
    if (mask := call.input(4)) is not None:
        shapes.append((mask.type, (x.shape[0], each, *counts)))
    for type, wanted in shapes:
        if type.rank != 4 or not all(map(agree, type.shape, wanted)):
            raise call.error(f"{type} should be [{','.join(map(str, wanted))}]")
    return taps


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
    s.one_of(given, keys, "its block does not give")
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
