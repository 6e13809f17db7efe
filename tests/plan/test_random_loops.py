"""Random bodies of loops: states that swap, stay, are read late or early, loops inside loops."""

from __future__ import annotations

import numpy as np
import pytest

import qcompiler
from qcompiler.driver import Compilation
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.ops import evaluate, make
from qcompiler.options import Options

KIND = Type("float32", (3, 5))
RUNS = (2, 0, 1, 5, 2)


def body_of(
    rng: np.random.Generator, states: int, around: list[Node], depth: int
) -> tuple[Graph, list[Node]]:
    """A random body, of so many states besides the first two and of what is around it -> its graph,
    and what of that it reads.
    """
    going, turn = placeholder("going", Type("bool", (1,))), placeholder("turn", Type("int64", (1,)))
    limit = placeholder("limit", Type("int64", (1,)))
    held = [placeholder(f"state{i}", KIND) for i in range(states)]
    outside = [placeholder(f"around{i}", KIND) for i in range(len(around))]
    values = [*held, *outside]
    for _ in range(int(rng.integers(1, 7))):
        a, b = (values[int(i)] for i in rng.integers(0, len(values), 2))
        kind = int(rng.integers(0, 5 if depth else 4))
        if kind == 0:
            made = make("Tanh", make("Add", a, b))
        elif kind == 1:
            made = make("Softmax", a)
        elif kind == 2:
            flat = make("Reshape", a, constant(np.array([5, 3])))
            made = make("Reshape", make("Transpose", flat), constant(np.array([3, 5])))
        elif kind == 3:
            square = constant(rng.standard_normal((5, 5)).astype(np.float32) / 3)
            made = make("Tanh", make("MatMul", a, square))
        else:
            made = loop_of(rng, [a, b], [values[0], values[-1]], limit, depth - 1)[1]
        values.append(made)
    picked = [values[int(i)] for i in rng.integers(0, len(values), states)]
    following = make("Add", turn, constant(np.array([1])))
    on = make("Less", following, limit)
    names = tuple(f"o{i}" for i in range(states + 2))
    inputs = (going, turn, *held, limit, *outside)
    return Graph(inputs, (on, following, *picked), names), around


def loop_of(
    rng: np.random.Generator, firsts: list[Node], around: list[Node], limit: Node, depth: int
) -> list[Node]:
    """A random loop that runs `limit` times -> its states at the end, but the first two."""
    body, around = body_of(rng, len(firsts), around, depth)
    zero = constant(np.array([0]))
    going = make("Less", zero, limit)
    loop = make("loop", going, zero, *firsts, limit, *around, body=body, name=f"loop{depth}")
    return [make("item", loop, index=i + 2) for i in range(len(firsts))]


@pytest.mark.parametrize("seed", range(24))
def test_a_random_loop_computes_what_it_means(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, limit = placeholder("x", KIND), placeholder("limit", Type("int64", (1,)))
    doubled = make("Add", x, x)
    firsts = [x, doubled, make("Neg", x)][: int(rng.integers(1, 4))]
    outputs = loop_of(rng, firsts, [make("Exp", x), doubled], limit, 2 if seed % 2 else 0)
    last = [make("Add", o, doubled) for o in outputs]
    graph = Graph((x, limit), (*last, outputs[0]), tuple(f"y{i}" for i in range(len(last) + 1)))
    plan_of = Compilation.of(graph, Compilation("m", Options(threads=1 + seed % 3)).device)
    made = qcompiler.load(plan_of.artifact)
    for run, count in enumerate(RUNS):
        given = {
            "x": rng.standard_normal((3, 5)).astype(np.float32) + run,
            "limit": np.array([count]),
        }
        found = made.run(given)
        for name, want in evaluate(graph, given).items():
            np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-5)
