"""Products by weights of 2, 4 and 8 bits that kernels decode: equal to numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import isas
from test_kernels_contraction import EXTREMES, check, force, random

from qcompiler import ops, plugins
from qcompiler.errors import Error
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.kernels.cpu.compressed.low_bits import narrow
from qcompiler.kernels.cpu.contraction.blocking import Tiling
from qcompiler.ops import make

plugins.load_all()


def product(m: int, n: int, k: int, bits: int, group: int, batch: tuple[int, ...] = ()) -> Node:
    rng = np.random.default_rng((m, n, k, bits))
    x = placeholder("x", Type("float32", (*batch, m, k)))
    codes = constant(rng.integers(0, 1 << bits, (k, n)).astype(np.uint8))
    shape = (-(-k // group), n)
    scale = constant(random("float32", shape, 1) / np.float32(1 << bits))
    zero = constant(rng.integers(0, 1 << bits, shape).astype(np.float32) - np.float32(0.5))
    return make("matmul_narrow", x, codes, scale, zero, bits=bits, group=group)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)
def test_products_of_every_shape(isa: Isa, bits: int) -> None:
    for m, n, k, group in [(1, 33, 64, 32), (7, 16, 67, 32), (30, 50, 9, 9), (2, 3, 1, 5)]:
        root = product(m, n, k, bits, group)
        kernel = check(root, root, isa, generator=narrow)
        assert kernel.name.startswith(f"narrow{bits}_")


@pytest.mark.parametrize("isa", EXTREMES, ids=lambda i: i.name)
def test_batches_threads_and_what_follows(isa: Isa) -> None:
    root = product(5, 70, 96, 4, 32, batch=(2, 3))
    added = make("Add", root, constant(random("float32", (70,), 9)))
    check(root, make("Gelu", added), isa, generator=narrow, threads=3)


@pytest.mark.parametrize(("rows", "vectors"), [(1, 1), (4, 2), (6, 3), (2, 4)])
def test_every_tile(rows: int, vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    root = product(13, 100, 40, 4, 16)
    for block in (1, -(-13 // rows)):
        force(monkeypatch, Tiling(rows, vectors, block))
        check(root, root, isas()[-1], generator=narrow)


def test_the_meaning_is_that_of_the_weights_written_out() -> None:
    root = product(4, 6, 10, 4, 4)
    x = random("float32", (4, 10))
    codes, scale, zero = (i.array for i in root.operands[1:])
    weights = np.array(
        [
            [(float(codes[k, n]) - zero[k // 4, n]) * scale[k // 4, n] for n in range(6)]
            for k in range(10)
        ]
    )
    got = ops.evaluate(Graph((root.operands[0],), (root,), ("y",)), {"x": x})["y"]
    np.testing.assert_allclose(got, x @ weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [{"bits": 3}, {"group": 0}, {"group": 64}], ids=str)
def test_parts_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    root = product(4, 6, 64, 4, 32)
    with pytest.raises(Error, match=r"matmul_narrow|are not one"):
        make("matmul_narrow", *root.operands, **{**root.attrs, **change})
