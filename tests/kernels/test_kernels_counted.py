"""Kernels that are told how many positions count compute these as if there were no others, whatever
lies behind them, and write nowhere else but to rows behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from byte_attention import spread
from kernel_harness import caller, compare, device, elsewhere, expected, isas, region_of, sharing
from poison import POISONS

from qcompiler.errors import Skip
from qcompiler.hardware.isa import Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.contraction.blocking import Tiling
from qcompiler.kernels.cpu.contraction.counted import SPARE, heights_of
from qcompiler.kernels.cpu.contraction.tiled import tiled
from qcompiler.kernels.registry import Kernel, Region, choose
from qcompiler.ops import make

MOST = 45
"""Positions in memory: vectors, tiles and blocks have other sizes."""
COUNTS = (1, 2, 7, 16, 17, 31, 44, 45, 1 << 30)
"""The last is more than there are: that writes no more, either."""
RNG = np.random.default_rng(3)

Case = tuple[Sequence[Node], Node | None, Node]
"""Inputs, root and output."""


def given(name: str, dtype: str, *shape: int) -> Node:
    return placeholder(name, Type(dtype, shape))


def fixed(*shape: int, dtype: str = "float32", seed: int = 1) -> Node:
    rng = np.random.default_rng((seed, *shape))
    if dtype == "int8":
        return constant(rng.integers(-128, 128, shape).astype(np.int8))
    return constant(rng.standard_normal(shape).astype(numpy_dtype(dtype)))


def of_axes(*axes: int) -> Node:
    return constant(np.array(axes, np.int64))


def product(n: int) -> Case:
    x, other = given("x", "float32", 1, n, 24), given("z", "float32", 1, n, 70)
    root = make("matmul", x, fixed(24, 70))
    return [x, other], root, make("Gelu", make("Add", make("Add", root, fixed(70)), other))


def product_of_quarters(n: int) -> Case:
    """Such as strassen.py multiplies."""
    x, other = given("x", "float32", 1, n, 24), given("z", "float32", 1, n, 128)
    root = make("matmul", x, fixed(24, 128))
    return [x, other], root, make("Gelu", make("Add", make("Add", root, fixed(128)), other))


def product_of_heads(n: int) -> Case:
    x = given("x", "float32", 1, n, 3, 8)
    root = make("matmul", x, fixed(8, 20))
    return [x], root, root


def product_of_bytes(n: int) -> Case:
    x = given("x", "uint8", n, 36)
    root = make("matmul", x, fixed(36, 50, dtype="int8"))
    return [x], root, make("Add", root, constant(np.arange(50, dtype=np.int32)))


def product_of_halves(n: int) -> Case:
    x = given("x", "bfloat16", 1, n, 32)
    root = make("matmul", x, fixed(32, 48, dtype="bfloat16"))
    return [x], root, root


def product_of_float16(n: int) -> Case:
    """Sums that end in float16 where that is multiplied."""
    x = given("x", "float16", 1, n, 100)
    root = make("matmul", x, fixed(100, 40, dtype="float16"))
    return [x], root, make("Cast", make("Relu", make("Add", root, fixed(40))), to="float16")


def sums_of_two(n: int) -> Case:
    x, z = given("x", "float32", 1, n, 33), given("z", "float32", n, 1)
    return [x, z], None, make("Relu", make("Mul", make("Add", x, fixed(33)), z))


def one_row(n: int) -> Case:
    x = given("x", "float32", 1, n, 7)
    return [x], None, make("Exp", make("Neg", x))


def norm(n: int) -> Case:
    x, z = given("x", "float32", 1, n, 40), given("z", "float32", 1, n, 40)
    total = make("Add", x, z)
    root = make("LayerNormalization", total, fixed(40), fixed(40, seed=2), axis=2)
    return [x, z], root, root


def softmax(n: int) -> Case:
    x = given("x", "float32", 1, n, 2, 19)
    root = make("Softmax", x, axis=-1)
    return [x], root, root


def words(n: int) -> Case:
    ids = given("ids", "int64", 1, n)
    root = make("Gather", fixed(5, 40), ids, axis=0)
    return [ids], root, make("Add", root, fixed(40))


def sums_of_rows(n: int) -> Case:
    x = given("x", "float32", 1, n, 33)
    root = make("ReduceSum", x, of_axes(2), keepdims=0)
    return [x], root, root


def largest_of_columns(n: int) -> Case:
    x = given("x", "float32", n, 5, 24)
    root = make("ReduceMax", x, of_axes(1), keepdims=0)
    return [x], root, root


def sum_over_positions(n: int) -> Case:
    x, z = given("x", "float32", 1, n, 40), given("z", "float32", 1, n, 1)
    root = make("ReduceSum", make("Mul", x, z), of_axes(1), keepdims=0)
    return [x, z], root, make("Mul", root, constant(np.float32(0.5)))


def attention(n: int, dtype: str = "float32", mask: Sequence[int] = (), kind: str = "") -> Case:
    q, k, v = (given(name, dtype, 1, n, 3 * 16) for name in "qkv")
    masks = [given("m", kind, *mask)] if kind else []
    scale = constant(np.float32(1e-4)) if dtype == "int8" else None
    hidden = masks[0] if masks else None
    root = make("attention", q, k, v, hidden, scale, q_num_heads=3, kv_num_heads=3)
    return [q, k, v, *masks], root, root


def packed_attention(n: int) -> Case:
    x = given("x", "float32", 1, n, 3 * 2 * 8)
    root = make("attention", x, is_causal=1, q_num_heads=2, kv_num_heads=2)
    return [x], root, root


CASES: dict[str, Callable[[int], Case]] = {
    "product": product,
    "product of quarters": product_of_quarters,
    "product of heads": product_of_heads,
    "product of bytes": product_of_bytes,
    "product of halves": product_of_halves,
    "product of float16": product_of_float16,
    "elementwise": sums_of_two,
    "elementwise, one row": one_row,
    "norm": norm,
    "softmax": softmax,
    "words": words,
    "sums of rows": sums_of_rows,
    "largest of columns": largest_of_columns,
    "sum over positions": sum_over_positions,
    "attention": lambda n: attention(n, mask=(1, 1, 1, n), kind="bool"),
    "attention, each its mask": lambda n: attention(n, mask=(1, 1, n, n), kind="float32"),
    "attention of bytes": lambda n: attention(n, "int8"),
    "attention of halves": lambda n: attention(n, "bfloat16", (1, 1, 1, n), "bool"),
    "packed attention": packed_attention,
}
BOUNDS = {"product of halves": 0.02, "product of float16": 0.1, "attention of halves": 0.03}


def numbers(node: Node, most: Node) -> tuple[Array, Array]:
    """An input's array, and the same at the begin of one of more positions, behind which is what is
    no number, or no index.
    """
    dtype, dims = numpy_dtype(node.dtype), node.type.dims
    if dtype.kind in "iub":
        some = RNG.integers(0, {"b": 2, "i": 5}.get(dtype.kind, 256), dims).astype(dtype)
        whole = np.full(most.type.dims, 1 if dtype.kind == "b" else 77, dtype)
    else:
        some = RNG.standard_normal(dims).astype(dtype)
        whole = np.full(most.type.dims, np.nan, dtype)
    whole[tuple(map(slice, dims))] = some
    return some, whole


def region_counted(name: str) -> Region:
    """A case's region, whose last input says how many positions count."""
    inputs, root, output = CASES[name](MOST)
    region = region_of(Graph(tuple(inputs), (output,), ("y",)), root)
    return replace(region, inputs=(*region.inputs, placeholder("count", Type("int32", (1,)))))


def kernel_of(name: str, isa: Isa, threads: int) -> tuple[Kernel, Callable[[int], None]]:
    """A case's kernel, and what checks it for a number of positions."""
    region = region_counted(name)
    where = device(isa, threads) if threads == 1 else sharing(device(isa, threads))
    kernel = choose(region, where, apart=True).kernel
    assert isinstance(kernel, Kernel), kernel
    return kernel, checker(name, region, kernel, isa)


def checker(name: str, region: Region, kernel: Kernel, isa: Isa) -> Callable[[int], None]:
    """What checks a kernel of a case's region for a number of positions."""
    *inputs, count = (n for n in region.inputs if not n.is_constant)
    held = {n: n.array for n in region.inputs if n.is_constant}
    empty = {n: np.zeros(n.type.dims, numpy_dtype(n.dtype)) for n in (*inputs, count)}
    call = caller(kernel, region, isa, {**held, **empty})

    def check(n: int) -> None:
        few, _, cut = CASES[name](min(n, MOST))
        pairs = [numbers(a, b) for a, b in zip(few, inputs, strict=True)]
        graph, arrays = Graph(tuple(few), (cut,), ("y",)), [p for p, _ in pairs]
        want = expected(graph, dict(zip(few, arrays, strict=True)))
        tied = spread(cut, arrays) if name == "attention of bytes" else 0.0
        values = {a: p for a, (_, p) in zip(inputs, pairs, strict=True)}
        for poison in POISONS:
            got = call({**held, **values, count: np.array([n], np.int32)}, poison)
            got = got[tuple(map(slice, want.shape))]
            compare(got, want, rtol=2e-5, atol=BOUNDS.get(name, 2e-5) + tied)

    return check


BEST = isas()[-1]
WAYS = dict.fromkeys(((isas()[0], 1), (BEST, 1), *([] if elsewhere(BEST) else [(BEST, 3)])))


@pytest.mark.parametrize(("isa", "threads"), WAYS, ids=[f"{i.name}-{t}" for i, t in WAYS])
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_ends_where_what_counts_does(name: str, isa: Isa, threads: int) -> None:
    kernel, check = kernel_of(name, isa, threads)
    assert kernel.counted
    for count in COUNTS:
        check(count)


@pytest.mark.parametrize("name", ["product", "product of bytes"])
def test_low_tiles_and_high_ones_end_where_what_counts_does(name: str) -> None:
    region = region_counted(name)
    found = tiled(region, device(BEST, 1))
    assert not isinstance(found, Skip), found.reason
    heights = {c.knobs.rows: c for c in found if isinstance(c.knobs, Tiling)}
    for height in (1, 2, 5, max(heights)):
        kernel = heights[height].build()
        assert isinstance(kernel, Kernel), kernel
        check = checker(name, region, kernel, BEST)
        for count in (1, 2, 13, 17, MOST):
            check(count)


@pytest.mark.parametrize(("least", "height"), [(9, 5), (17, 12)])
def test_fewer_heights_of_tiles_do_where_no_run_has_few_rows(least: int, height: int) -> None:
    region = replace(region_counted("product"), least=(least,))
    found = tiled(region, device(BEST, 1))
    assert not isinstance(found, Skip), found.reason
    made = (c for c in found if isinstance(c.knobs, Tiling) and c.knobs.rows >= height)
    kernel = min(made, key=lambda c: c.knobs.rows).build()
    assert isinstance(kernel, Kernel), kernel
    check = checker("product", region, kernel, BEST)
    for count in (least, least + 1, 31, MOST):
        check(count)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("largest", [1, 2, 9, 14, 30])
def test_a_left_out_height_costs_few_rows(largest: int, few: bool) -> None:
    """Rows in tiles of two neighbouring heights, by all heights and by those that are left."""
    every = heights_of(largest, 1, few)
    assert len(heights_of(largest, SPARE * largest, few)) == 1
    for least in (1, 2, 3, 8, 9, 36, 100, SPARE * largest):
        kept = heights_of(largest, least, few)
        assert set(kept) <= set(every)
        for rows in range(least, least + 3 * largest):
            most, needed = (computed(rows, heights) for heights in (kept, every))
            assert needed <= most <= needed + least // SPARE, (least, rows)


def computed(rows: int, heights: Sequence[int]) -> int:
    """The rows that so many take in as few tiles as there can be."""
    count = -(-rows // heights[0])
    high = min(h for h in heights if rows <= count * h)
    low = max((h for h in heights if h < high), default=high)
    tall = -(-max(rows - count * low, 0) // max(high - low, 1))
    return tall * high + (count - tall) * low
