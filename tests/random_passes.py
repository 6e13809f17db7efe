"""A seed -> a random graph in which operators repeat, share operands, and read one value twice.

Run as a program it tries many seeds: `python tests/random_passes.py FIRST LAST`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make
from qcompiler.rewrite import STAGES
from qcompiler.rewrite.matching import int64s
from qcompiler.stages import run_stage

MOST = 3000
"""Elements of a value."""
UNARY = ("Relu", "Neg", "Sigmoid", "Abs", "Tanh", "Identity", "HardSigmoid", "Softplus", "Erf")
BINARY = ("Add", "Add", "Sub", "Mul", "Mul", "Max", "Min", "Div")
SINGLE = ("Softmax", "LogSoftmax", "Hardmax")
REDUCES = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")


class Random:
    """A graph that grows by one random operator at a time; all its values are float32."""

    def __init__(self, seed: int) -> None:
        self.numbers = np.random.default_rng(seed)
        rank = self.int(1, 5)
        shape = tuple(self.pick((1, 1, 2, 3, 4, 4)) for _ in range(rank))
        self.inputs = [placeholder(n, Type("float32", shape)) for n in ("a", "b")]
        self.values: list[Node] = list(self.inputs)

    def int(self, low: int, high: int) -> int:
        return int(self.numbers.integers(low, high + 1))

    def chance(self, share: float = 0.5) -> bool:
        return bool(self.numbers.random() < share)

    def pick(self, options):  # type: ignore[no-untyped-def]
        return options[self.int(0, len(options) - 1)]

    def const(self, *shape: int) -> Node:
        """Random numbers, none of which divides badly."""
        values = self.numbers.uniform(0.5, 1.5, shape) * self.numbers.choice([-1, 1], shape)
        special = self.pick((None, None, None, None, 0.0, 1.0, 2.0, -1.0))
        return constant(np.asarray(values if special is None else np.full(shape, special), "f"))

    def broadcast(self, x: Node) -> Node:
        """A constant that broadcasts to x."""
        kept = self.int(0, x.type.rank)
        dims = x.type.dims[x.type.rank - kept :]
        return self.const(*(d if self.chance() else 1 for d in dims))

    def like(self, x: Node) -> Node:
        """x itself, a value of its shape, or a constant."""
        if self.chance(0.25):
            return x
        same = [v for v in self.values if v.shape == x.shape]
        return self.pick(same) if same and self.chance(0.6) else self.broadcast(x)

    def axis(self, x: Node) -> int:
        return self.int(-x.type.rank, x.type.rank - 1)

    def grow(self) -> None:
        """One more operator; values without elements are not gone on from."""
        x = self.values[-1] if self.chance(0.6) else self.pick(self.values)
        made = self.pick(STEPS)(self, x)
        if made is not None and 0 < made.type.size <= MOST and made.type.rank <= 6:
            self.values.append(made)

    def graph(self, steps: int) -> Graph:
        for _ in range(steps):
            self.grow()
        outputs = tuple(self.values[-self.pick((1, 1, 2, 3)) :])
        return Graph(tuple(self.inputs), outputs, tuple(f"y{i}" for i in range(len(outputs))))


def unary(r: Random, x: Node) -> Node:
    return make(r.pick(UNARY), x)


def binary(r: Random, x: Node) -> Node | None:
    other, name = r.like(x), r.pick(BINARY)
    if name == "Div":
        return make("Div", x, make("Add", make("Abs", other), constant(np.array(0.5, "f"))))
    return make(name, x, other) if r.chance() else make(name, other, x)


def twice(r: Random, x: Node) -> Node:
    """f(x) op f(x), with f a move, a product or a function."""
    inner = r.pick((unary, reshaped, transposed, multiplied, convolved, sliced))(r, x) or x
    return make(r.pick(("Add", "Mul", "Max", "Sub")), inner, inner)


def summed(r: Random, x: Node) -> Node:
    return make(r.pick(("Sum", "Mean", "Max", "Min")), *(r.like(x) for _ in range(r.int(1, 3))), x)


def chosen(r: Random, x: Node) -> Node:
    compare = make(r.pick(("Greater", "LessOrEqual")), x, r.like(x))
    return make("Where", compare, r.like(x), r.like(x))


def bounded(r: Random, x: Node) -> Node:
    low, high = (constant(np.array(v, "f")) for v in sorted(r.numbers.uniform(-2, 2, 2)))
    zero = constant(np.array(0, "f"))
    return make("Clip", x, r.pick((low, zero, None)), r.pick((high, None)))


def power(r: Random, x: Node) -> Node:
    return make("Pow", x, constant(np.array(r.pick((1, 2, 3)), "f")))


def activation(r: Random, x: Node) -> Node:
    """Activations in parts, some of them spoilt."""
    near = r.pick((1.0, 1.0, 1.01))
    number = [constant(np.array(v * near, "f")) for v in (1, 3, 6, 0.5, 1.4142135)]
    one, three, six, half, root = number
    zero = constant(np.array(0, "f"))
    kind = r.int(0, 4)
    if kind == 0:
        return make("Mul", x, make("Sigmoid", make("Mul", x, one)))
    if kind == 1:
        return make("Div", make("Mul", x, make("Clip", make("Add", x, three), zero, six)), six)
    if kind == 2:
        bent = make("Add", make("Erf", make("Div", x, root)), one)
        return make("Mul", make("Mul", x, bent), half)
    if kind == 3:
        gate = constant(np.array(r.pick((0, 0, 0.2, 1)), "f"))
        return make("Where", make("Greater", x, gate), x, r.pick((zero, make("Mul", x, half))))
    return make("Max", x, make("Mul", x, half))


def normalized(r: Random, x: Node) -> Node | None:
    """Norms and a Softmax in parts."""
    if not x.type.rank:
        return None
    axes = int64s([r.axis(x)])
    kind = r.int(0, 3)
    if kind == 3:
        top = make("Exp", make("Sub", x, make("ReduceMax", x, axes)))
        return make("Div", top, make("ReduceSum", top, axes))
    d = x if kind == 0 else make("Sub", x, make("ReduceMean", x, axes))
    variance = make("ReduceMean", make("Mul", d, d), axes)
    sigma = make("Sqrt", make("Add", variance, constant(np.array(0.1, "f"))))
    made = make("Div", d, sigma)
    return binary(r, make("Mul", made, r.broadcast(x))) or made


def norm(r: Random, x: Node) -> Node | None:
    if not x.type.rank:
        return None
    channels = x.type.dims[1] if x.type.rank > 1 else 1
    last = x.type.dims[-1]
    kind = r.pick(("Layer", "RMS", "Batch", "Instance", "Group"))
    if kind == "Layer":
        return make("LayerNormalization", x, r.const(last), r.const(last))
    if kind == "RMS":
        return make("RMSNormalization", x, r.const(last))
    if x.type.rank < 3:
        return None
    scale, bias = r.const(channels), r.const(channels)
    if kind == "Batch":
        return make("BatchNormalization", x, scale, bias, bias, make("Abs", scale), epsilon=0.1)
    if kind == "Instance":
        return make("InstanceNormalization", x, scale, bias, epsilon=0.1)
    return make("GroupNormalization", x, scale, bias, num_groups=channels, epsilon=0.1)


def transposed(r: Random, x: Node) -> Node:
    return make("Transpose", x, perm=tuple(int(a) for a in r.numbers.permutation(x.type.rank)))


def reshaped(r: Random, x: Node) -> Node:
    """Neighbours merged, an axis split, a 1 put in or taken out, all flat."""
    dims = list(x.type.dims)
    axis = r.int(0, max(len(dims) - 1, 0))
    kind = r.pick(("merge", "split", "one", "squeeze", "unsqueeze", "flatten", "flat"))
    if kind == "merge" and axis + 1 < len(dims):
        dims[axis : axis + 2] = [dims[axis] * dims[axis + 1]]
    elif kind == "split" and dims and dims[axis] % 2 == 0:
        dims[axis : axis + 1] = [2, dims[axis] // 2]
    elif kind == "squeeze" and 1 in dims:
        return make("Squeeze", x, int64s([dims.index(1)]))
    elif kind == "unsqueeze":
        return make("Unsqueeze", x, int64s([axis]))
    elif kind == "flatten" and dims:
        return make("Flatten", x, axis=axis)
    elif kind == "flat":
        dims = [-1]
    else:
        dims.insert(axis, 1)
    return make("Reshape", x, int64s(dims))


def sliced(r: Random, x: Node) -> Node | None:
    if not x.type.size or not x.type.rank:
        return None
    axis = r.axis(x)
    length = x.type.dims[axis]
    if r.chance(0.2):
        return make("Slice", x, int64s([-1]), int64s([-9]), int64s([axis]), int64s([-1]))
    begin = r.int(0, length - 1)
    return make("Slice", x, int64s([begin]), int64s([r.int(begin + 1, length)]), int64s([axis]))


def split(r: Random, x: Node) -> Node | None:
    """Pieces that are added, joined again, or one of them."""
    if not x.type.rank:
        return None
    axis = r.axis(x)
    length = x.type.dims[axis]
    if length % 2:
        return None
    pieces = make("Split", x, int64s([length // 2] * 2), axis=axis)
    first, second = (make("item", pieces, index=i) for i in (0, 1))
    kind = r.int(0, 2)
    if kind == 0:
        return make("Concat", second, r.pick((first, second)), axis=axis)
    return make("Mul", first, r.pick((first, second))) if kind == 1 else second


def picked(r: Random, x: Node) -> Node | None:
    if not x.type.rank:
        return None
    axis = r.axis(x)
    length = x.type.dims[axis]
    one = constant(np.int64(r.int(-length, length - 1)))
    some = int64s([r.int(0, length - 1) for _ in range(r.int(1, 3))])
    return make("Gather", x, r.pick((one, some)), axis=axis)


def joined(r: Random, x: Node) -> Node | None:
    if not x.type.rank:
        return None
    same = [v for v in r.values if v.shape == x.shape]
    others = [r.pick([x, r.pick(same), r.const(*x.type.dims)]) for _ in range(r.int(0, 2))]
    return make("Concat", *r.pick(([x, *others], [*others, x])), axis=r.axis(x))


def padded(r: Random, x: Node) -> Node | None:
    if not x.type.rank:
        return None
    mode = r.pick(("constant", "constant", "edge"))
    value = r.pick((None, constant(np.array(0.5, "f")))) if mode == "constant" else None
    return make("Pad", x, int64s([r.int(0, 2), r.int(0, 1)]), value, int64s([r.axis(x)]), mode=mode)


def repeated(r: Random, x: Node) -> Node:
    dims = x.type.dims
    if r.chance():
        return make("Tile", x, int64s(r.int(1, 2) for _ in dims))
    return make("Expand", x, int64s((r.int(1, 2), *(r.int(1, 3) if d == 1 else d for d in dims))))


def along(r: Random, x: Node) -> Node | None:
    return make(r.pick(SINGLE[:2]), x, axis=r.axis(x)) if x.type.rank else None


def reduced(r: Random, x: Node) -> Node | None:
    if not x.type.rank:
        return None
    axes = r.pick((None, int64s([r.axis(x)]), int64s({r.int(0, x.type.rank - 1) for _ in "ab"})))
    return make(r.pick(REDUCES), x, axes, keepdims=r.int(0, 1))


def multiplied(r: Random, x: Node) -> Node | None:
    if not x.type.rank:
        return None
    dims, kind = x.type.dims, r.int(0, 5)
    if kind == 0 and x.type.rank > 1:
        return make("MatMul", r.const(r.int(1, 3), dims[-2]), x)
    if kind == 1 and x.type.rank > 1:
        perm = (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)
        return make("MatMul", x, make("Transpose", x, perm=perm))
    if kind == 2 and x.type.rank == 2:
        bias = r.const(3)
        return make("Gemm", x, r.const(dims[0], 3), bias, transA=1, alpha=0.5)
    if kind == 3:
        return make("MatMul", x, r.const(dims[-1]))
    made = make("MatMul", x, r.const(dims[-1], r.int(1, 4)))
    return made if r.chance() else make("Add", made, r.const(made.type.dims[-1]))


def convolved(r: Random, x: Node) -> Node | None:
    spatial = x.type.rank - 2
    if spatial not in (1, 2, 3):
        return None
    channels, kernel = x.type.dims[1], r.int(1, 3)
    group = r.pick((1, channels))
    outputs = group * r.int(1, 2)
    pads = tuple(r.int(kernel // 2, kernel - 1) for _ in range(2 * spatial))
    bias = [r.const(outputs)] if r.chance() else []
    w = r.const(outputs, channels // group, *[kernel] * spatial)
    strides = tuple(r.int(1, 2) for _ in range(spatial))
    return make("Conv", x, w, *bias, group=group, pads=pads, strides=strides)


def widened(r: Random, x: Node) -> Node | None:
    spatial = x.type.rank - 2
    if spatial not in (1, 2):
        return None
    channels, kernel, stride = x.type.dims[1], r.int(1, 3), r.int(1, 3)
    w = r.const(channels, 2, *[kernel] * spatial)
    return make("ConvTranspose", x, w, strides=(stride,) * spatial)


def pooled(r: Random, x: Node) -> Node | None:
    spatial = x.type.rank - 2
    if spatial not in (1, 2, 3):
        return None
    if r.chance(0.3):
        return make(r.pick(("GlobalAveragePool", "GlobalMaxPool")), x)
    attrs = {"kernel_shape": (2,) * spatial, "pads": (r.int(0, 1),) * 2 * spatial}
    if min(d + 2 * attrs["pads"][0] for d in x.type.dims[2:]) < 2:
        return None
    return make(r.pick(("MaxPool", "AveragePool")), x, strides=(r.int(1, 2),) * spatial, **attrs)


def attended(r: Random, x: Node) -> Node | None:
    """Attention of one value, of its products, or in parts; three dimensions and four."""
    if x.type.rank not in (3, 4):
        return None
    width = x.type.dims[-1]
    q, k, v = (r.pick((x, make("MatMul", x, r.const(width, width)))) for _ in "qkv")
    if x.type.rank == 3 and r.chance():
        heads = 2 if width % 2 == 0 else 1
        return make("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)
    if x.type.rank == 4 and r.chance():
        return make("Attention", q, k, v)
    perm = (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)
    scores = make("MatMul", q, make("Transpose", k, perm=perm))
    scores = binary(r, make("Mul", scores, constant(np.array(0.5, "f")))) or scores
    return make("MatMul", make("Softmax", scores, axis=-1), v)


def cast(r: Random, x: Node) -> Node:
    wide = make("Cast", x, to=r.pick(("float64", "float32")))
    return make("Cast", wide, to="float32")


def quantized(r: Random, x: Node) -> Node:
    step = constant(np.array(2.0 ** -r.int(2, 5), "f"))
    zero = constant(np.array(r.int(100, 150), np.uint8))
    return make("DequantizeLinear", make("QuantizeLinear", x, step, zero), step, zero)


def grouped(r: Random, x: Node) -> Node | None:
    """Space to channels and back, nearest neighbours, einsum."""
    if x.type.rank == 2:
        return make("Einsum", x, r.const(x.type.dims[1], 2), equation="ij,jk->ki")
    if x.type.rank != 4:
        return None
    if x.type.dims[1] % 4 == 0 and r.chance():
        return make("DepthToSpace", x, blocksize=2, mode=r.pick(("DCR", "CRD")))
    scales = constant(np.array([1, 1, 2, 1], "f"))
    return make("Resize", x, None, scales, mode=r.pick(("nearest", "linear")))


Step = Callable[[Random, Node], Node | None]
OFTEN: tuple[Step, ...] = (
    unary,
    binary,
    binary,
    twice,
    transposed,
    reshaped,
    multiplied,
    convolved,
)
STEPS: tuple[Step, ...] = (
    *OFTEN,
    *OFTEN,
    *(summed, chosen, bounded, power, activation, normalized, norm, sliced, split, picked, joined),
    *(padded, repeated, along, reduced, widened, pooled, attended, cast, grouped),
)


def check(seed: int) -> None:
    """A seed's graph means the same after every stage, and the last stage is done when it says."""
    random = Random(seed)
    graph = random.graph(random.int(1, 12))
    values = {n.name: random.numbers.standard_normal(n.type.dims).astype("f") for n in graph.inputs}
    with np.errstate(all="ignore"):
        wanted = evaluate(graph, values)
        made = graph
        for stage in STAGES:
            made = run_stage(made, stage)
            got = evaluate(made, values)
            for name, array in wanted.items():
                if not np.isfinite(array).all() or np.abs(array).max(initial=0) > 1e15:
                    continue
                scale = float(np.abs(array).max(initial=1e-3))
                said = f"seed {seed}, after {stage}"
                np.testing.assert_allclose(got[name], array, 2e-3, 2e-4 * scale, err_msg=said)
    assert run_stage(made, "layout") is made, f"seed {seed}: twice is not once"


def main(first: int, last: int) -> int:
    """Try seeds; say which fail."""
    failed = 0
    for seed in range(first, last):
        try:
            check(seed)
        except Exception as e:
            failed += 1
            print(seed, type(e).__name__, " ".join(str(e).split())[:200], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(*(int(n) for n in sys.argv[1:3]))))
