"""Convolutions by fewer products: every filter, cut and epilogue against numpy, and their error."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from kernel_harness import (
    check_fewer,
    compare,
    device,
    expected,
    isas,
    made,
    normal,
    region_of,
    run,
    vector_isas,
)

from qcompiler import plugins
from qcompiler.emit.machine import compile_functions
from qcompiler.errors import Skip
from qcompiler.hardware.core import REFERENCE
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.code import tir
from qcompiler.kernels.cpu.code.tir import Builder
from qcompiler.kernels.cpu.contraction.operands import product_of
from qcompiler.kernels.cpu.contraction.problem import problem_of
from qcompiler.kernels.cpu.transformed import winograd_blocking
from qcompiler.kernels.cpu.transformed.winograd import winograd
from qcompiler.kernels.cpu.transformed.winograd_filter import PAIRS, Filter
from qcompiler.kernels.registry import Kernel, Setting, choose
from qcompiler.ops import make

plugins.load_all()

FILTERS = [Filter(n + 1 - r, r) for n in PAIRS for r in range(2, 6) if n > r]
SAME = {"pads": (1,) * 4}
SHAPES = {
    "odd sizes and tails": ((2, 9, 10, 13), (3, 3, 13, 18), SAME),
    "smaller than a tile": ((3, 2, 1, 8), (3, 3, 8, 8), SAME),
    "uneven padding": ((1, 13, 11, 24), (3, 3, 24, 40), {"pads": (2, 0, 1, 4)}),
    "no padding": ((1, 12, 14, 15), (3, 3, 15, 16), {}),
    "as many outputs as are worth zipped rows": ((2, 9, 10, 13), (3, 3, 13, 50), SAME),
    "whole vectors of both": ((1, 9, 9, 8), (3, 3, 8, 48), SAME),
    "five taps": ((2, 7, 8, 8), (5, 5, 8, 24), {"pads": (2,) * 4}),
    "three by two": ((1, 9, 7, 8), (3, 2, 8, 16), {"pads": (1, 0, 1, 1)}),
    "one row": ((1, 1, 19, 8), (1, 5, 8, 8), {"pads": (0, 2, 0, 2)}),
    "one column of taps": ((1, 30, 3, 8), (3, 1, 8, 8), {"pads": (1, 0, 1, 0)}),
    "one axis": ((2, 19, 8), (3, 8, 24), {"pads": (1, 1)}),
}


def conv(x: tuple[int, ...], w: tuple[int, ...], **attrs: object) -> Node:
    weights = constant(normal(w, 7), "w")
    return make("conv", placeholder("x", Type("float32", x)), weights, **attrs)


check = partial(check_fewer, winograd)


def of(outputs: int) -> Callable[[Setting], bool]:
    """Number of outputs along the longer side of tiles."""
    return lambda knobs: max(int(knobs["down"]), int(knobs["across"])) == outputs


@pytest.mark.parametrize("filter", FILTERS, ids=lambda f: f"F({f.outputs},{f.taps})")
def test_a_filter_is_the_convolution_it_stands_for(filter: Filter) -> None:
    """In float32, one lane of every vector a signal of its own."""
    isa = isas()[0]
    lanes = isa.lanes()
    inputs, taps = normal((filter.products, lanes)), normal((filter.taps,), 1)
    b = Builder("filter")
    x, w, y = (b.pointer(name, "float32") for name in "xwy")
    spread = filter.spread(b, [b.let(x.load(i * lanes, lanes)) for i in range(filter.products)])
    products = [b.let(s * tir.broadcast(w.load(i), lanes)) for i, s in enumerate(spread)]
    for i, value in enumerate(filter.gather(b, products)):
        y.store(i * lanes, value)
    module = compile_functions([("filter", b.function())], isa)
    weights = filter.weights(taps).astype(np.float32)
    found = np.zeros((filter.outputs, lanes), np.float32)
    module["filter"](*(ctypes.c_void_p(a.ctypes.data) for a in (inputs, weights, found)))
    want = [taps @ inputs[i : i + filter.taps] for i in range(filter.outputs)]
    np.testing.assert_allclose(found, np.array(want), atol=1e-5)


@pytest.mark.parametrize("isa", vector_isas(), ids=lambda i: i.name)
@pytest.mark.parametrize("name", SHAPES)
def test_convolutions_equal_numpy(isa: Isa, name: str) -> None:
    x, w, attrs = SHAPES[name]
    root = conv(x, w, **attrs)
    kernel = check(root, root, isa, wanted=of(4 if 3 in w[:-2] else 2))
    assert kernel.name.startswith("winograd")


def finished(root: Node) -> Node:
    """Bias, residual and rectifier."""
    y = make("Add", root, constant(normal(root.type.dims[-1:], 3)))
    y = make("Add", y, placeholder("r", Type("float32", root.type.dims)))
    return make("Relu", y)


@pytest.mark.parametrize("isa", vector_isas(), ids=lambda i: i.name)
@pytest.mark.parametrize("outputs", [2, 3, 4])
def test_what_follows_is_computed_on_the_outputs(isa: Isa, outputs: int) -> None:
    root = conv((1, 7, 9, 8), (3, 3, 8, isa.lanes() + 5), **SAME)
    kernel = check(root, finished(root), isa, wanted=of(outputs))
    assert kernel.in_place == (3,)  # the residual's memory


@pytest.mark.parametrize("isa", isas()[-1:], ids=lambda i: i.name)
def test_bfloat16_is_widened_on_the_way(isa: Isa) -> None:
    if isa.best_product([("bf16", "bf16", "f32")]) is None:
        pytest.skip("no product of bfloat16 to be faster than")
    x = placeholder("x", Type("bfloat16", (1, 9, 7, 24)))
    w = constant(normal((3, 3, 24, 21)).astype(numpy_dtype("bfloat16")), "w")
    root = make("conv", x, w, **SAME)
    y = make("Cast", make("Add", root, constant(normal((21,), 3))), to="bfloat16")
    region = region_of(Graph((x,), (y,), ("y",)), root)
    kernel = made(winograd, region, device(isa), of(4))
    assert isinstance(kernel, Kernel)
    values = {x: normal(x.type.dims).astype(numpy_dtype("bfloat16"))}
    values |= {n: n.array for n in region.inputs if n.is_constant}
    want = expected(Graph((x,), (y,), ("y",)), values)
    compare(run(kernel, region, isa, values), want, rtol=2.0**-7, atol=1e-4)


def test_every_cut_of_a_problem_gives_the_same_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    isa = isas()[-1]
    root = conv((2, 11, 13, 9), (3, 3, 9, 50), **SAME)
    product = product_of(isa, "float32", "float32", "float32")
    assert product is not None
    problem = problem_of(root, product.mac.lanes, REFERENCE)
    assert not isinstance(problem, Skip)
    found = winograd_blocking.grids(problem)
    assert not isinstance(found, Skip)
    tilings = [
        (g, t)
        for g in list(found)[::4]
        for tasks in (1, 2, 5)
        for t in winograd_blocking.tilings(g, product, device(isa, tasks), tasks)
    ]
    assert len({(t.rows, t.vectors, t.block, t.row_tasks, t.column_tasks) for _, t in tilings}) > 50
    for grid, tiling in tilings[:: len(tilings) // 5]:
        with monkeypatch.context() as patch:
            cut = "qcompiler.kernels.cpu.transformed.winograd.tilings"
            axes = (grid.rows, grid.columns)
            patch.setattr(cut, lambda g, *_, a=axes, t=tiling: [t] * ((g.rows, g.columns) == a))
            kernel = check(root, finished(root), isa, threads=tiling.tasks)
        assert kernel.tasks == tiling.tasks


@pytest.mark.parametrize(("outputs", "most"), [(2, 1.0), (3, 1.5), (4, 2.5)])
def test_its_error_stays_near_that_of_plain_sums(outputs: int, most: float) -> None:
    """Against float64, as a multiple of what float32 sums in a row make of the same numbers."""
    isa = isas()[-1]
    root = conv((1, 24, 24, 96), (3, 3, 96, 16), **SAME)
    region = region_of(Graph((root.operands[0],), (root,), ("y",)), root)
    x, w = np.abs(normal(root.operands[0].type.dims)), root.operands[1].array
    kernel = made(winograd, region, device(isa), of(outputs))
    assert isinstance(kernel, Kernel)
    got = run(kernel, region, isa, {root.operands[0]: x, root.operands[1]: w})
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact, plain = np.zeros(got.shape), np.zeros(got.shape, np.float32)
    for i, j, c in np.ndindex(3, 3, 96):
        part = padded[:, i : i + 24, j : j + 24, c, None]
        exact += part.astype(np.float64) * w[i, j, c]
        plain += part * w[i, j, c]
    error, usual = (np.sqrt(np.mean((y - exact) ** 2)) for y in (got, plain))
    assert 0 < error < most * usual
    assert np.abs(got - exact).max() < 2e-6 * np.ptp(exact)


def test_it_is_used_where_it_spares_time_and_nowhere_else() -> None:
    def chosen(x: tuple[int, ...], w: tuple[int, ...], **attrs: object) -> str:
        root = conv(x, w, **attrs)
        region = region_of(Graph((root.operands[0],), (root,), ("y",)), root)
        kernel = choose(region, device(isas()[-1], 2)).kernel
        assert isinstance(kernel, Kernel)
        return kernel.name

    assert chosen((1, 56, 56, 64), (3, 3, 64, 64), **SAME).startswith("winograd")
    for other in (
        chosen((1, 56, 56, 64), (3, 3, 64, 64), strides=(2, 2), **SAME),
        chosen((1, 56, 56, 64), (3, 3, 64, 64), dilations=(2, 2), pads=(2,) * 4),
        chosen((1, 56, 56, 64), (3, 3, 8, 64), group=8, **SAME),
        chosen((1, 56, 56, 64), (1, 1, 64, 64)),
        chosen((1, 56, 56, 1), (3, 3, 1, 4), **SAME),
        chosen((1, 3, 3, 512), (3, 3, 512, 512), **SAME),
    ):
        assert not other.startswith("winograd")
