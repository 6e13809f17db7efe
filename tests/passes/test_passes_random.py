"""Random graphs compute the same after fold, fuse and layout, which reach a fixed point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make
from qcompiler.rewrite.matching import int64s
from qcompiler.stages import run_stage

Draw = Callable[[st.SearchStrategy[object]], object]


class Builder:
    """A graph that grows by one random operator at a time; all values are float32."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.random = np.random.default_rng(data.draw(st.integers(0, 1000)))
        rank = data.draw(st.sampled_from((3, 4, 4, 4, 5)))
        shape = tuple(data.draw(st.integers(1, 4)) for _ in range(rank))
        self.inputs = [
            placeholder("a", Type("float32", shape)),
            placeholder("b", Type("float32", shape)),
        ]
        self.values: list[Node] = list(self.inputs)

    def choose(self, options: object) -> object:
        return self.data.draw(st.sampled_from(options))  # type: ignore[call-overload]

    def numbers(self, *shape: int) -> Node:
        return constant(self.random.standard_normal(shape).astype(np.float32))

    def step(self) -> None:
        x = self.choose(self.values[-3:])
        assert isinstance(x, Node)
        made = self.choose(STEPS)(self, x)  # type: ignore[operator]
        if made is not None and made.type.size <= 4096:
            self.values.append(made)

    def graph(self) -> Graph:
        outputs = tuple(self.values[-2:])
        return Graph(tuple(self.inputs), outputs, ("y", "z"))


def unary(b: Builder, x: Node) -> Node:
    return make(b.choose(("Relu", "Neg", "Sigmoid", "Abs")), x)  # type: ignore[arg-type]


def binary(b: Builder, x: Node) -> Node:
    """With another value of the same shape, or with a constant that broadcasts."""
    same = [v for v in b.values if v.shape == x.shape]
    kept = b.data.draw(st.integers(0, x.type.rank))
    dims = [d if b.data.draw(st.booleans()) else 1 for d in x.type.dims[x.type.rank - kept :]]
    other = b.choose([*same, b.numbers(*dims)])
    assert isinstance(other, Node)
    operands = (x, other) if b.data.draw(st.booleans()) else (other, x)
    return make(b.choose(("Add", "Mul", "Sub", "Max")), *operands)  # type: ignore[arg-type]


def transposed(b: Builder, x: Node) -> Node:
    return make("Transpose", x, perm=tuple(b.data.draw(st.permutations(range(x.type.rank)))))


def reshaped(b: Builder, x: Node) -> Node:
    """Merge two adjacent axes, split one, or insert a 1."""
    dims = list(x.type.dims)
    axis = b.data.draw(st.integers(0, len(dims) - 1))
    kind = b.choose(("merge", "split", "one"))
    if kind == "merge" and axis + 1 < len(dims) > 2:
        dims[axis : axis + 2] = [dims[axis] * dims[axis + 1]]
    elif kind == "split" and dims[axis] % 2 == 0 and len(dims) < 6:
        dims[axis : axis + 1] = [2, dims[axis] // 2]
    elif len(dims) < 6:
        dims.insert(axis, 1)
    return make("Reshape", x, int64s(dims))


def convolved(b: Builder, x: Node) -> Node | None:
    if x.type.rank not in (3, 4) or min(x.type.dims) < 1:
        return None
    spatial = x.type.rank - 2
    channels, kernel = x.type.dims[1], b.data.draw(st.integers(1, 3))
    group = channels if b.data.draw(st.booleans()) else 1
    outputs = group * b.data.draw(st.integers(1, 2))
    w = b.numbers(outputs, channels // group, *[kernel] * spatial)
    pads = (kernel // 2,) * 2 * spatial
    sides = [b.numbers(outputs)] if b.data.draw(st.booleans()) else []
    if min(d + 2 * (kernel // 2) for d in x.type.dims[2:]) < kernel:
        return None
    stride = b.data.draw(st.integers(1, 2))
    return make("Conv", x, w, *sides, group=group, pads=pads, strides=(stride,) * spatial)


def widened(b: Builder, x: Node) -> Node | None:
    if x.type.rank not in (3, 4):
        return None
    spatial, channels = x.type.rank - 2, x.type.dims[1]
    kernel, stride = b.data.draw(st.integers(1, 3)), b.data.draw(st.integers(1, 3))
    w = b.numbers(channels, 2, *[kernel] * spatial)
    pad = b.data.draw(st.integers(0, kernel // 2))
    if min((d - 1) * stride + kernel - 2 * pad for d in x.type.dims[2:]) < 1:
        return None
    return make("ConvTranspose", x, w, pads=(pad,) * 2 * spatial, strides=(stride,) * spatial)


def pooled(b: Builder, x: Node) -> Node | None:
    if x.type.rank not in (3, 4):
        return None
    spatial = x.type.rank - 2
    attrs = {"kernel_shape": (2,) * spatial, "pads": (1,) * 2 * spatial, "strides": (2,) * spatial}
    attrs["ceil_mode"] = b.data.draw(st.integers(0, 1))
    return make(b.choose(("MaxPool", "AveragePool")), x, **attrs)  # type: ignore[arg-type]


def along(b: Builder, x: Node) -> Node:
    """Softmax, a reduction, a slice, padding, a concatenation or a Split along some axis."""
    axis = b.data.draw(st.integers(0, x.type.rank - 1))
    length = x.type.dims[axis]
    kind = b.choose(("softmax", "reduce", "slice", "pad", "concat", "split", "gather", "norm"))
    if kind == "softmax":
        return make("Softmax", x, axis=axis)
    if kind == "reduce":
        keep = 1 if x.type.rank < 3 else b.data.draw(st.integers(0, 1))
        return make(b.choose(("ReduceMean", "ReduceMax")), x, int64s([axis]), keepdims=keep)  # type: ignore[arg-type]
    if kind == "slice":
        return make("Slice", x, int64s([length // 2]), int64s([length]), int64s([axis]))
    if kind == "pad":
        return make("Pad", x, int64s([1, 0]), None, int64s([axis]))
    if kind == "concat":
        return make("Concat", x, unary(b, x), axis=axis)
    if kind == "split" and length % 2 == 0:
        pieces = make("Split", x, int64s([length // 2] * 2), axis=axis)
        return make("item", pieces, index=b.data.draw(st.integers(0, 1)))
    if kind == "gather" and x.type.rank > 2:
        return make("Gather", x, constant(np.int64(length - 1)), axis=axis)
    return make("LayerNormalization", x, b.numbers(x.type.dims[-1]))


def multiplied(b: Builder, x: Node) -> Node:
    return make("MatMul", x, b.numbers(x.type.dims[-1], b.data.draw(st.integers(1, 4))))


STEPS = (unary, binary, binary, transposed, transposed, reshaped, reshaped, convolved, convolved)
STEPS = (*STEPS, widened, pooled, along, along, along, multiplied)  # type: ignore[assignment]


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_random_graphs_keep_their_meaning(data: st.DataObject) -> None:
    builder = Builder(data)
    for _ in range(data.draw(st.integers(1, 14))):
        builder.step()
    graph = builder.graph()
    values = {
        n.name: np.random.default_rng(i).standard_normal(n.type.dims).astype(np.float32)
        for i, n in enumerate(graph.inputs)
    }
    wanted = evaluate(graph, values)
    for stage in ("fold", "fuse", "layout"):
        graph = run_stage(graph, stage)
        made = evaluate(graph, values)
        for name, array in wanted.items():
            scale = float(np.abs(array).max(initial=1e-3))
            np.testing.assert_allclose(made[name], array, rtol=1e-3, atol=1e-4 * scale)
    assert not {"Conv", "ConvTranspose", "MaxPool", "MatMul"} & {n.op for n in graph.nodes}
    assert run_stage(graph, "layout") is graph, "twice is not once"
