"""What keeps the time of compiling linear in the nodes, counted instead of timed."""

from __future__ import annotations

import importlib
from collections import Counter

import numpy as np
import pytest

import qcompiler
from benchmarks import compile_time
from qcompiler.driver import Compilation
from qcompiler.emit import native
from qcompiler.ir import Graph, Type, constant, placeholder
from qcompiler.onnx_io.reader import read
from qcompiler.ops import evaluate, known_value, make
from qcompiler.options import Options
from qcompiler.plan.plan import Plan
from qcompiler.plan.regions import MAX_NODES, regions

EVALUATE = importlib.import_module("qcompiler.ops.evaluate")  # the package names a function so


def plan_of(kind: str, nodes: int) -> Plan:
    model = compile_time.KINDS[kind](nodes)
    return Compilation(model, Options(target="x86_avx2", threads=2)).plan


@pytest.mark.parametrize("kind", compile_time.KINDS)
def test_generated_models_have_the_nodes_asked_for(kind: str) -> None:
    model = compile_time.KINDS[kind](40)
    assert 40 <= len(model.graph.node) < 50


def test_a_chain_of_shapes_is_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node of the chain is computed at most once while its readers are made."""
    seen: Counter[object] = Counter()
    real = EVALUATE.meaning

    def counted(node: object, arrays: object) -> object:
        seen[id(node)] += 1
        return real(node, arrays)

    monkeypatch.setattr(EVALUATE, "meaning", counted)
    x = placeholder("x", Type("float32", (2, 3)))
    two = constant(np.array([2], np.int64))
    size, kept = make("Shape", x), []
    for _ in range(100):
        size = make("Div", make("Mul", size, two), two)
        kept.append(make("Reshape", x, size))
    assert [k.shape for k in kept] == [(2, 3)] * 100
    assert len(seen) == 201
    assert max(seen.values()) == 1


def test_what_is_not_known_is_not_asked_again() -> None:
    x = placeholder("x", Type("int64", (2,)))
    chain = [x]
    for _ in range(50):
        chain.append(make("Neg", chain[-1]))
    assert known_value(chain[-1]) is None
    assert all(EVALUATE._KNOWN[n] is None for n in chain)
    half = make("Add", chain[-1], constant(np.array([1, 2], np.int64)))
    assert known_value(half) is None
    assert np.array_equal(known_value(half.operands[1]), [1, 2])


def test_a_long_chain_of_elementwise_nodes_is_several_kernels() -> None:
    x = placeholder("x", Type("float32", (64,)))
    y = x
    for _ in range(5 * MAX_NODES):
        y = make("Neg", y)
    found = regions(Graph((x,), (y,), ("y",)))
    assert sum(len(r.nodes) for r in found) == 5 * MAX_NODES
    assert max(len(r.nodes) for r in found) <= MAX_NODES


def test_a_long_model_has_as_many_kernels_as_a_short_one_and_short_functions() -> None:
    short, long = plan_of("conv", 60), plan_of("conv", 600)
    assert len(long.steps) > 8 * len(short.steps)
    assert len({s.kernel.name for s in long.steps}) == len({s.kernel.name for s in short.steps})
    assert long.workspace_bytes == short.workspace_bytes
    parts = [n for n in native.layers(long)[1].functions if n.startswith("qcompiler_piece")]
    assert len(parts) == -(-len(long.steps) // native.STEPS_A_PIECE)


def test_all_parts_of_a_long_run_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "STEPS_A_PIECE", 2)
    model = compile_time.elementwise(MAX_NODES * 5)
    made = qcompiler.load(qcompiler.compile(model))
    x = np.random.default_rng(0).standard_normal((1, 64, 64)).astype(np.float32)
    want = evaluate(read(model), {"x": x})
    np.testing.assert_allclose(made(x), next(iter(want.values())), rtol=1e-5)
    assert len(made.manifest.variants[0].steps) >= 5
