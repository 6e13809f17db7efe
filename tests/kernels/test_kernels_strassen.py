"""Matrix products by seven products of quarters: every cut and epilogue against numpy, and their
error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from kernel_harness import (
    check_fewer,
    device,
    isas,
    made,
    normal,
    region_of,
    run,
    sharing,
    vector_isas,
)
from test_kernels_counted import BEST, COUNTS, MOST, checker, region_counted

from benchmarks.arm_loops import loops
from qcompiler import plugins
from qcompiler.emit.machine import machine_code
from qcompiler.errors import Skip
from qcompiler.hardware.core import REFERENCE, Core
from qcompiler.hardware.isa import ISAS, Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.kernels.cpu.contraction.blocking import fits
from qcompiler.kernels.cpu.contraction.operands import product_of
from qcompiler.kernels.cpu.contraction.problem import problem_of
from qcompiler.kernels.cpu.transformed import strassen_blocking
from qcompiler.kernels.cpu.transformed.strassen import LEFT, RESULT, RIGHT, packed, strassen
from qcompiler.kernels.cpu.transformed.strassen_blocking import Layout, Tiling
from qcompiler.kernels.cpu.transformed.strassen_rows import Few, few_of
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Kernel, choose
from qcompiler.ops import make

plugins.load_all()
VECTORS = [i for i in ISAS.values() if product_of(i, "float32", "float32", "float32")]


def matmul(rows: int, depth: int, width: int) -> Node:
    x = placeholder("x", Type("float32", (rows, depth)))
    return make("matmul", x, constant(normal((depth, width), 7), "w"))


def finished(root: Node) -> Node:
    """Bias, activation and residual."""
    y = make("Add", root, constant(normal(root.type.dims[-1:], 3)))
    return make("Add", make("Gelu", y), placeholder("r", Type("float32", root.type.dims)))


check = partial(check_fewer, strassen)


def test_the_seven_products_are_the_product() -> None:
    """Of quarters that do not commute."""
    a, b = (np.random.default_rng(i).integers(-9, 9, (4, 3, 3)) for i in range(2))

    def total(terms: tuple[tuple[int, int], ...], parts: list[Array] | Array) -> Array:
        return np.sum([sign * parts[i] for i, sign in terms], axis=0)

    products = [total(x, a) @ total(y, b) for x, y in zip(LEFT, RIGHT, strict=True)]
    for (y, x), terms in zip(np.ndindex(2, 2), RESULT, strict=True):
        assert np.array_equal(total(terms, products), a[2 * y] @ b[x] + a[2 * y + 1] @ b[2 + x])


@pytest.mark.parametrize("isa", vector_isas(), ids=lambda i: i.name)
@pytest.mark.parametrize("rows", [16, 17])
def test_products_equal_numpy(isa: Isa, rows: int) -> None:
    root = matmul(rows, 38, isa.lanes() * 4)
    kernel = check(root, finished(root), isa)
    assert "strassen" in kernel.name
    assert kernel.in_place == (3,)  # the residual's memory


def test_pixels_are_rows() -> None:
    isa = isas()[-1]
    x = placeholder("x", Type("float32", (2, 3, 5, 24)))
    root = make("conv", x, constant(normal((1, 1, 24, 2 * isa.lanes()), 7), "w"))
    check(root, finished(root), isa)


@pytest.mark.parametrize(
    "tiling",
    [
        Tiling(rows=3, vectors=1, block=2, depth=20, row_tasks=1, column_tasks=2),
        Tiling(rows=3, vectors=1, block=1, depth=4, row_tasks=2, column_tasks=1),
        Tiling(rows=4, vectors=2, block=9, depth=10, row_tasks=2, column_tasks=1),
        Tiling(rows=2, vectors=1, block=3, depth=5, row_tasks=2, column_tasks=2),
    ],
    ids=str,
)
def test_every_cut_gives_the_same(tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    isa = isas()[-1]
    root = matmul(29, 40, 4 * isa.lanes())
    monkeypatch.setattr("qcompiler.kernels.cpu.transformed.strassen.tilings", lambda *_: [tiling])
    assert check(root, finished(root), isa, threads=tiling.tasks).tasks == tiling.tasks


def test_tilings_fit_the_cache_and_the_work() -> None:
    isa = isas()[-1]
    product = product_of(isa, "float32", "float32", "float32")
    assert product is not None
    problem = problem_of(matmul(197, 1536, 384), product.mac.lanes, REFERENCE)
    found = list(strassen_blocking.tilings(problem, product, device(isa, 2)))  # type: ignore[arg-type]
    assert {t.tasks for t in found} == {2}
    assert all(problem.depth % (2 * t.depth) == 0 for t in found)  # type: ignore[union-attr]
    assert {t.row_tasks for t in found} == {1, 2}


@pytest.mark.parametrize("isa", VECTORS, ids=lambda i: i.name)
def test_sums_and_operands_of_every_tiling_fit_the_registers(isa: Isa) -> None:
    """Where an instruction takes a lane, vectors of each row are held, or of zipped rows."""
    product = product_of(isa, "float32", "float32", "float32")
    assert product is not None
    problem = problem_of(matmul(64, 384, 1536), product.mac.lanes, REFERENCE)
    assert not isinstance(problem, Skip)
    for zipped in {False, product.zippable}:
        way = replace(product, zipped=zipped)
        found = list(strassen_blocking.tilings(problem, way, device(isa)))
        assert found
        assert all(fits(way, t.rows, t.vectors, isa.registers) for t in found)


@pytest.mark.parametrize("fast", [True, False])
def test_sums_wait_in_the_third_cache_where_it_gives_them_fast(fast: bool) -> None:
    """What is read again and again is in the second one."""
    isa = ISAS["arm_neon"]
    product = product_of(isa, "float32", "float32", "float32")
    assert product is not None
    problem = problem_of(matmul(197, 1536, 384), product.mac.lanes, REFERENCE)
    assert not isinstance(problem, Skip)
    core = replace(REFERENCE, l3_bytes_per_cycle=16.0 if fast else 0.5)
    where = replace(device(isa), core=core, l2_bytes=1 << 19)
    zipped = replace(product, zipped=True)
    cuts = strassen_blocking.tilings(problem, zipped, where)
    found = [Layout.of(problem, t, core, zipped) for t in cuts]
    assert all(y.near_bytes < where.l2_bytes for y in found)
    assert any(y.near_bytes + y.waiting_bytes > where.l2_bytes for y in found) == fast


@pytest.mark.slow
def test_no_loop_that_multiplies_spills_where_instructions_take_a_lane() -> None:
    """Compiled only."""
    isa = ISAS["arm_neon"]
    root = matmul(64, 384, 48)
    region = region_of(Graph((root.operands[0],), (root,), ("y",)), root)
    tile = {"rows": 8, "vectors": 3}
    kernel = made(strassen, region, device(isa), lambda knobs: tile.items() <= knobs.items())
    assert isinstance(kernel, Kernel)
    text = str(machine_code({"kernel": kernel.func}, isa, "").inspect_source("asm"))
    found = [loop for loop in loops(text) if len(loop.multiplies) >= 24]
    assert len(found) == 2, "a quarter, and what sums and differences of two are stored as"
    assert not any(loop.spills for loop in found)


def test_its_error_stays_near_that_of_plain_sums() -> None:
    """Against float64, as a multiple of what float32 sums in a row make of the same numbers."""
    isa = isas()[-1]
    root = matmul(64, 256, 4 * isa.lanes())
    x, w = np.abs(normal((64, 256))), root.operands[1].array
    region = region_of(Graph((root.operands[0],), (root,), ("y",)), root)
    kernel = made(strassen, region, device(isa))
    assert isinstance(kernel, Kernel)
    got = run(kernel, region, isa, {root.operands[0]: x, root.operands[1]: w})
    exact, plain = x.astype(np.float64) @ w, np.zeros(got.shape, np.float32)
    for k in range(256):
        plain += x[:, k, None] * w[k]
    error, usual = (np.sqrt(np.mean((y - exact) ** 2)) for y in (got, plain))
    assert 0 < error < 2.0 * usual


def test_it_is_used_where_it_spares_time_and_nowhere_else() -> None:
    """Sizes are those of vectors of 64 bytes."""
    isa = ISAS["x86_avx512"]

    def chosen(*sizes: int, core: Core = REFERENCE) -> str:
        root = matmul(*sizes)
        region = region_of(Graph((root.operands[0],), (root,), ("y",)), root)
        kernel = choose(region, replace(device(isa, 2), core=core)).kernel
        assert isinstance(kernel, Kernel)
        return kernel.name

    one_a_cycle = replace(REFERENCE, macs_per_cycle=1.0, loads_per_cycle=0.75)
    assert "strassen" in chosen(256, 768, 2048, core=one_a_cycle)
    assert "strassen" not in chosen(256, 768, 2048)  # products are as fast as what it adds
    assert "strassen" in chosen(256, 3072, 768)  # other blocks wait for operands
    for other in (
        (1, 768, 2048),
        (8, 768, 2048),
        (256, 64, 64),
        (256, 768, 2040),
        (256, 767, 2048),
    ):
        assert "strassen" not in chosen(*other)


OPEN = {
    Tiling(rows=3, vectors=1, block=2, depth=12, row_tasks=1, column_tasks=2): 1,
    Tiling(rows=5, vectors=1, block=1, depth=4, row_tasks=2, column_tasks=1): 8,
    Tiling(rows=4, vectors=2, block=9, depth=6): 32,
    Tiling(rows=23, vectors=1, block=1, depth=12): MOST + 1,
}
"""Tiles, blocks, and shares of them that end otherwise than rows do, and the rows from which on
there are not few.
"""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    """Makes a kernel of rows that a run counts, by a tiling, for a number of rows that are few."""

    def kernel(tiling: Tiling, fewest: int, isa: Isa, least: int = 1) -> Kernel:
        def few(*given: object) -> Few | Skip:
            found = few_of(*given)  # type: ignore[arg-type]
            return found if isinstance(found, Skip) else replace(found, fewest=fewest)

        module = "qcompiler.kernels.cpu.transformed.strassen"
        monkeypatch.setattr(f"{module}.tilings", lambda *_: [tiling])
        monkeypatch.setattr(f"{module}.few_of", few)
        region = replace(region_counted("product of quarters"), least=(least,))
        where = device(isa, tiling.tasks)
        found = strassen(region, where if tiling.tasks == 1 else sharing(where))
        assert not isinstance(found, Skip), found.reason
        (candidate,) = found
        made = candidate.build()
        assert isinstance(made, Kernel), made
        assert made.counted
        assert not made.mixes_rows
        assert candidate.mixes_rows
        return made

    return kernel


@pytest.mark.parametrize(("tiling", "fewest"), OPEN.items(), ids=str)
def test_rows_that_do_not_count_show_nowhere(
    tiling: Tiling, fewest: int, counted: Callable[..., Kernel]
) -> None:
    """They are no numbers, and one is the neighbour of the last that counts."""
    check = checker(
        "product of quarters",
        region_counted("product of quarters"),
        counted(tiling, fewest, BEST),
        BEST,
    )
    for count in COUNTS:
        check(count)


def test_where_no_run_has_few_rows_there_is_code_for_many_alone(
    counted: Callable[..., Kernel],
) -> None:
    tiling = [*OPEN][2]
    made = counted(tiling, 17, BEST, least=17)
    check = checker("product of quarters", region_counted("product of quarters"), made, BEST)
    for count in (17, 18, 31, 32, MOST):
        check(count)
    assert len(str(made.func)) < len(str(counted(tiling, 17, BEST).func))


@pytest.mark.parametrize("isa", VECTORS, ids=lambda i: i.name)
def test_few_rows_and_many_read_the_same_panels(isa: Isa) -> None:
    """Of every tiling, whatever instructions multiply few."""
    wide = 8 * isa.lanes()
    root = matmul(128, 24, wide)
    x, w = root.operands
    region = region_of(Graph((x,), (root,), ("y",)), root)
    region = replace(region, inputs=(*region.inputs, placeholder("count", Type("int32", (1,)))))
    region, product = sealed(region, device(isa)), product_of(isa, "float32", "float32", "float32")
    assert product is not None
    problem = problem_of(region.nodes[0], product.mac.lanes, REFERENCE)
    assert not isinstance(problem, Skip)
    for zipped in {False, product.zippable}:
        way = replace(product, zipped=zipped)
        tilings = strassen_blocking.tilings(problem, way, device(isa))
        each = {t.vectors: Layout.of(problem, t, REFERENCE, way) for t in tilings}
        assert each
        for layout in each.values():
            few = few_of(region, device(isa), way, layout)
            assert isinstance(few, Few), few
            assert np.array_equal(packed(layout, way, w.array), few.layout.pack(w.array))


def test_where_pairs_of_rows_may_have_one_that_does_not_count_there_is_no_such_kernel() -> None:
    """A position of several rows, some of which may be padding, and images of a batch."""
    count = placeholder("count", Type("int32", (1,)))
    x = placeholder("x", Type("float32", (1, 40, 3, 24)))
    root = make("matmul", x, constant(normal((24, 128), 7), "w"))
    region = region_of(Graph((x,), (root,), ("y",)), root)
    assert isinstance(strassen(replace(region, inputs=(*region.inputs, count)), device(BEST)), Skip)
    sizes = [placeholder(n, Type("int32", (1,))) for n in ("height", "width")]
    for images in (1, 2):
        x = placeholder("x", Type("float32", (images, 9, 5, 24)))
        root = make("conv", x, constant(normal((1, 1, 24, 128), 7), "w"))
        region = region_of(Graph((x,), (root,), ("y",)), root)
        region = replace(region, inputs=(*region.inputs, *sizes), least=(1, 1))
        assert isinstance(strassen(region, device(BEST)), Skip) == (images > 1)
