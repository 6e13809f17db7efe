"""Shapes, ends, pads and lists of sizes that are inputs of models of open sizes: what they may be
is what the declared shapes name. In numpy, with NaN behind what counts; other runs fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

import numpy as np
import pytest

from qcompiler.errors import Error
from qcompiler.ir import Array
from qcompiler.ops import evaluate
from tests.rewrite.test_padding import behind_nan, model_of, opened

RANGES = {"a": (1, 7), "b": (1, 5), "r": (1, 6)}
Given = Mapping[str, list[int]]
Case = tuple[str, Callable[[Array, int, int], tuple[Given, Array]], Given]
"""The operands s, t, ... and y's shape and node; x[a,b] -> operands that are right, and y; others.
`row` is x's largest of each column, float[b], `column` that of each row, float[a,1].
"""


def padded_to_9(mode: str, x: Array, a: int, b: int) -> tuple[Given, Array]:
    wanted = np.pad(x, ((0, 0), (2, 7 - b)), mode)  # type: ignore[call-overload]
    return {"s": [0, 2, 0, 7 - b]}, wanted


CASES: dict[str, Case] = {
    "Reshape": (
        "s: b,a = Reshape(x, s)",
        lambda x, a, b: ({"s": [b, -1]}, x.reshape(b, a)),
        {"s": [1, -1]},
    ),
    "Reshape that only one size can have": (
        "s: 2,b,1 = Reshape(x, s)",
        lambda x, a, b: ({"s": [a, -1, 1]}, x.reshape(a, b, 1)),
        {"s": [3, -1, 1]},
    ),
    "Expand": (
        "s: a,b = Expand(row, s)",
        lambda x, a, b: ({"s": [a, 1]}, np.broadcast_to(x.max(0), (a, b))),
        {"s": [9, 1]},
    ),
    "Expand by a shorter shape": (
        "s: a,b = Expand(column, s)",
        lambda x, a, b: ({"s": [b]}, np.broadcast_to(x.max(1, keepdims=True), (a, b))),
        {"s": [9]},
    ),
    "ConstantOfShape": (
        "s: b,a = ConstantOfShape(s)",
        lambda x, a, b: ({"s": [b, a]}, np.zeros((b, a), np.float32)),
        {"s": [9, 9]},
    ),
    "Split": (
        "s: a,1 = Split<axis=1>(pair, s)",
        lambda x, a, b: ({"s": [1, 2]}, x.max(1, keepdims=True)),
        {"s": [2, 1]},
    ),
    "TopK": (
        "s: a,b = TopK(x, s)",
        lambda x, a, b: ({"s": [b]}, -np.sort(-x, 1)),
        {"s": [9]},
    ),
    "Slice": (
        "s, t, u: a,1 = Slice(x, s, t, u)",
        lambda x, a, b: ({"s": [b - 1], "t": [b], "u": [-1]}, x[:, b - 1 :]),
        {"s": [0, 1], "t": [2, 9], "u": [1, 0]},
    ),
    "Slice backwards": (
        "s, t, u, v: a,b = Slice(x, s, t, u, v)",
        lambda x, a, b: ({"s": [-1], "t": [-99], "u": [0], "v": [-1]}, x[::-1]),
        {"s": [0], "t": [1], "u": [0], "v": [2]},
    ),
    "Slice of the first dimensions": (
        "s, t: a,b = Slice(x, s, t)",
        lambda x, a, b: ({"s": [0], "t": [99]}, x),
        {"s": [0, 0, 0], "t": [9, 9, 9]},
    ),
    **{
        f"Pad, {mode}": (
            f's: a,9 = Pad<mode="{mode}">(x, s)',
            partial(padded_to_9, mode),
            {"s": [0, 1, 0, 0]},
        )
        for mode in ("constant", "reflect", "edge", "wrap")
    },
}


def text_of(case: str) -> str:
    operands, _, rest = case.partition(": ")
    shape, _, node = rest.partition(" = ")
    inputs = ", ".join(f"int64[r] {name}" for name in operands.split(", "))
    made = "y, q" if node.startswith(("Split", "TopK")) else "y"
    more = ", float[a,2] q" if node.startswith("Split") else ""
    return f"""g (float[a,b] x, {inputs}) => (float[{shape}] y, float[a,b] z{more}) {{
        first = Constant<value_ints=[0]>() last = Constant<value_ints=[1]>() z = Neg(x)
        row = ReduceMax<keepdims=0>(x, first) column = ReduceMax(x, last)
        pair = Concat<axis=1>(column, column, column) {made} = {node} }}"""


@pytest.mark.parametrize("name", CASES)
def test_what_the_declared_shape_names_is_right_and_the_rest_fails(name: str) -> None:
    case, made, wrong = CASES[name]
    graph = opened(model_of(text_of(case)), RANGES).graph

    def found(x: Array, given: Given) -> Array:
        feed = {"x": x, **{k: np.array(v, np.int64) for k, v in given.items()}}
        sizes = {"a": x.shape[0], "b": x.shape[1], "r": len(given["s"])}
        return evaluate(graph, behind_nan(graph, feed, sizes))["y"]

    for a, b in product([2] if "only" in name else [1, 3, 7], [1, 2, 5]):
        x = np.random.default_rng((a, b)).standard_normal((a, b)).astype(np.float32)
        given, wanted = made(x, a, b)
        np.testing.assert_array_equal(found(x, given)[tuple(map(slice, wanted.shape))], wanted)
    with pytest.raises(Error, match=r"_y \(\w+\): "):
        found(x, wrong)
