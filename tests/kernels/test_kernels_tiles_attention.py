"""Attention in tile registers equals its meaning, by real machine code: on the CPU or emulated."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import load_or_skip
from kernel_harness import check, region_of
from test_kernels_attention import bounds, given, numbers, steps

from qcompiler.errors import Skip
from qcompiler.hardware.isa import ISAS, Cpu, Isa
from qcompiler.hardware.products import TileMac
from qcompiler.ir import Graph, Node
from qcompiler.kernels.cpu.matrix.attention import tile_attention
from qcompiler.ops import make

TILED = [i for i in ISAS.values() if any(isinstance(m, TileMac) for m in i.macs)]

CASES = [  # batch, heads, key heads, queries, keys, size, value size, flat, causal, mask
    (1, 2, 2, 32, 64, 64, 64, True, False, ()),
    (1, 2, 1, 37, 69, 32, 40, False, False, (1, 1, 1, 69)),
    (2, 1, 1, 17, 17, 64, 16, True, True, ()),
    (1, 1, 1, 5, 131, 128, 80, False, False, (5, 131)),
    (1, 3, 3, 33, 6, 8, 8, False, False, ()),
]


@pytest.fixture(autouse=True)
def _emulator() -> None:
    load_or_skip(ISAS["x86_amx"].cpu_flags)


def made(case: tuple[object, ...], dtype: str) -> tuple[Node, list[np.ndarray], list[Node]]:
    """A case -> its node, arrays and inputs."""
    batch, heads, shared, queries, keys, size, wide, flat, causal, mask = case
    rows = [(heads, queries, size), (shared, keys, size), (shared, keys, wide)]
    shapes = [(batch, n, h * d) if flat else (batch, h, n, d) for h, n, d in rows]
    arrays = [numbers(dtype, s) for s in shapes]
    inputs = [given(n, a) for n, a in zip("qkv", arrays, strict=True)]
    extra: list[Node | None] = [None]
    if mask:
        hidden = np.random.default_rng(1).random(mask) < 0.3
        low = np.where(hidden, -1e4, 0)
        arrays.append(low.astype("float32" if dtype == "int8" else arrays[0].dtype))
        inputs.append(given("m", arrays[-1]))
        extra = [inputs[-1]]
    counts = {"q_num_heads": heads, "kv_num_heads": shared} if flat else {}
    scale = steps(dtype, 1e-4 / float(size) ** 0.5)
    root = make("attention", *inputs[:3], *extra, scale, is_causal=int(causal), **counts)
    return root, arrays, inputs


@pytest.mark.parametrize("isa", TILED, ids=lambda i: i.name)
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_in_tiles_equals_numpy(case: tuple[object, ...], dtype: str, isa: Isa) -> None:
    root, arrays, inputs = made(case, dtype)
    near = bounds(root, arrays)
    for threads in (1, 2):
        kernel = check(root, root, arrays, inputs, isa, threads=threads, **near)
        assert "_tiles" in kernel.name


@pytest.mark.parametrize("isa", TILED, ids=lambda i: i.name)
def test_few_queries_and_odd_heads_are_left_to_vectors(isa: Isa) -> None:
    for case in (
        (1, 1, 1, 1, 40, 64, 64, False, False, ()),
        (1, 1, 1, 9, 9, 70, 64, False, False, ()),
    ):
        root, _, inputs = made(case, "int8")
        region = region_of(Graph(tuple(inputs), (root,), ("y",)), root)
        assert isinstance(tile_attention(region, Cpu("test", isa, 1)), Skip)
