"""Kernels that skip zero blocks of weights: equal to numpy, whatever is zero."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import device, isas, region_of
from test_kernels_contraction import CONVOLUTIONS, EXTREMES, check, random

from qcompiler import plugins
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Graph, Node, Type, constant, placeholder
from qcompiler.kernels.cpu.compressed.sparse import sparse
from qcompiler.kernels.registry import Decision, choose
from qcompiler.ops import make

plugins.load_all()

PAIRS = [("float32", "float32"), ("uint8", "int8"), ("int8", "int8")]


def blocky(dtype: str, shape: tuple[int, ...], share: float, block: int = 16) -> Node:
    """Weights [..., K, N] of which about `share` blocks are not zero, some columns none at all."""
    rng = np.random.default_rng(3)
    w = random(dtype, shape, 7)
    kept = rng.random((*shape[:-1], -(-shape[-1] // block))) < share
    kept[..., -1] &= share == 1
    return constant(w * np.repeat(kept, block, -1)[..., : shape[-1]].astype(w.dtype), "w")


def product(op: str, x: tuple[int, ...], w: Node, left: str, **attrs: object) -> Node:
    return make(op, placeholder("x", Type(left, x)), w, density=0.5, **attrs)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("isa", isas(), ids=lambda i: i.name)
def test_matrix_products_of_any_share_of_zeros(isa: Isa, pair: tuple[str, str]) -> None:
    for m, n, k, share in [(1, 33, 67, 0.5), (31, 17, 9, 1), (5, 40, 64, 0)]:
        root = product("matmul", (m, k), blocky(pair[1], (k, n), share), pair[0])
        kernel = check(root, root, isa, generator=sparse)
        assert kernel.name.startswith("sparse_")


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if n != "depthwise"])
def test_convolutions_of_every_kind(name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    left, right = PAIRS[len(name) % 2]
    root = product("conv", x, blocky(right, w, 0.4), left, **attrs)
    check(root, root, EXTREMES[-1], generator=sparse, threads=2)


def test_what_follows_the_sums_is_as_in_dense_kernels() -> None:
    root = product("matmul", (21, 48), blocky("float32", (48, 40), 0.5), "float32")
    added = make("Add", root, constant(random("float32", (40,)), "b"))
    check(root, make("Relu", added), isas()[-1], generator=sparse)


def _chosen(density: float) -> Decision:
    w = blocky("float32", (3, 3, 64, 64), density)
    root = make(
        "conv",
        placeholder("x", Type("float32", (1, 28, 28, 64))),
        w,
        pads=(1,) * 4,
        density=density,
    )
    graph = Graph((root.operands[0],), (root,), ("y",))
    return choose(region_of(graph, root), device(isas()[-1]))


def test_chosen_only_where_enough_is_zero() -> None:
    few = _chosen(0.1)  # of a quarter, dense kernels by fewer products take as long
    assert few.chosen is not None
    assert few.chosen.generator == "sparse"
    many = _chosen(0.99)
    assert many.chosen is not None
    assert many.chosen.generator != "sparse"
    mine = min(o.candidate.seconds for o in many.lost if o.generator == "sparse")
    assert mine > many.chosen.candidate.seconds
    assert dict(_chosen(1.0).skips)["sparse"] == "its weights have few zero blocks"
