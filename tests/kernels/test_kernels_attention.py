"""Attention in few bits, and with queries, keys and values side by side, equals its meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import pytest
from byte_attention import spread
from kernel_harness import check, device, isas

from qcompiler.hardware.isa import ISAS, Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.cpu.attention.layout import Layout
from qcompiler.kernels.cpu.attention.operands import Heads, products_of
from qcompiler.kernels.cpu.contraction.blocking import fits
from qcompiler.kernels.cpu.contraction.operands import product_of
from qcompiler.ops import evaluate, make

RNG = np.random.default_rng(5)


def by_product(dtype: str) -> list[object]:
    """One instruction set for each way to multiply a dtype."""
    found = {product_of(i, dtype, dtype, SUMS[dtype]): i for i in reversed(isas())}
    return [pytest.param(i, id=i.name) for i in found.values()]


SUMS = {"int8": "int32", "bfloat16": "float32"}
BEST = [pytest.param(isas()[-1], id=isas()[-1].name)]

CASES = [  # batch, heads, key heads, queries, keys, size, value size, 3-D, causal, mask
    (2, 3, 3, 7, 19, 16, 16, False, False, (2, 1, 1, 19)),
    (1, 4, 2, 33, 33, 20, 20, True, True, ()),
    (2, 2, 2, 5, 40, 17, 9, True, False, (5, 40)),
    (1, 1, 1, 1, 131, 80, 128, False, False, ()),
]
Case = tuple[int, int, int, int, int, int, int, bool, bool, tuple[int, ...]]
NEAR = {
    "int8": (1e-5, 1e-5),
    "float16": (1e-2, 1e-2),
    "bfloat16": (2e-2, 1e-2),
    "float32": (1e-5, 1e-5),
}
"""Operands' dtype -> how near a kernel comes to its meaning, relatively and absolutely."""


class Bounds(TypedDict):
    """Of a comparison."""

    rtol: float
    atol: float | Array


def given(name: str, array: Array) -> Node:
    return placeholder(name, Type(array.dtype.name, array.shape))


def attend(case: Case, dtype: str, isa: Isa, *, boolean: bool = False) -> None:
    """Random operands of a case -> its kernel against its meaning."""
    batch, heads, shared, queries, keys, size, wide, flat, causal, mask = case

    def operand(heads: int, length: int, size: int) -> Array:
        shape = (batch, length, heads * size) if flat else (batch, heads, length, size)
        return numbers(dtype, shape)

    arrays = [operand(heads, queries, size), operand(shared, keys, size)]
    arrays.append(operand(shared, keys, wide))
    if mask:
        hidden = RNG.random(mask) < 0.3
        if boolean:
            hidden[0] = True  # a row that sees nothing
        low = np.where(hidden, -1e4, 0).astype("float32" if dtype == "int8" else arrays[0].dtype)
        arrays.append(~hidden if boolean else low)
    inputs = [given(n, a) for n, a in zip("qkvm", arrays, strict=False)]
    counts = {"q_num_heads": heads, "kv_num_heads": shared} if flat else {}
    scale = steps(dtype, 1e-4 / size**0.5)
    operands = (*inputs, *[None] * (4 - len(inputs)), scale)
    root = make("attention", *operands, is_causal=int(causal), **counts)
    check(root, root, arrays, inputs, isa, threads=2, **bounds(root, arrays))


def bounds(root: Node, arrays: Sequence[Array]) -> Bounds:
    """How near a kernel comes to its meaning, and with bytes what ties may move besides."""
    dtype = root.operands[0].dtype
    rtol, atol = NEAR[dtype]
    return {"rtol": rtol, "atol": atol + spread(root, arrays) if dtype == "int8" else atol}


def steps(dtype: str, scale: float) -> Node | None:
    """The operand that only bytes need."""
    return constant(np.float32(scale)) if dtype == "int8" else None


def numbers(dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "int8":
        return RNG.integers(-128, 128, shape).astype(np.int8)
    return RNG.normal(size=shape).astype(numpy_dtype(dtype))


@pytest.mark.parametrize("isa", by_product("int8"))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_of_bytes(case: Case, isa: Isa) -> None:
    attend(case, "int8", isa)


@pytest.mark.parametrize("isa", by_product("bfloat16"))
@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_attention_of_halves(case: Case, isa: Isa) -> None:
    attend(case, "bfloat16", isa)


@pytest.mark.parametrize("dtype", NEAR)
def test_sums_and_operands_of_a_block_of_queries_fit_the_registers(dtype: str) -> None:
    """On every instruction set that multiplies them by vectors."""
    q, k, v = (placeholder(n, Type(dtype, (1, 2, 64, 64))) for n in "qkv")
    heads = Heads.all(make("attention", q, k, v, None, steps(dtype, 1e-3)))
    found = 0
    for isa in ISAS.values():
        products = products_of(isa, dtype, 64)
        if products is not None:
            layout = Layout(heads, *products, device(isa))
            for product in products:
                fit = fits(product, layout.held, layout.vectors, isa.registers)
                assert layout.held == 1 or fit, isa.name
                found += fit
    assert found


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("isa", BEST)
def test_attention_with_booleans_that_hide_some_or_all(dtype: str, isa: Isa) -> None:
    attend(CASES[2], dtype, isa, boolean=True)


@pytest.mark.parametrize("isa", BEST)
def test_attention_of_equal_keys_is_the_exact_mean(isa: Isa) -> None:
    """All weights are 255: no rounding is left."""
    q, v = numbers("int8", (1, 2, 5, 32)), numbers("int8", (1, 2, 50, 32))
    k = np.broadcast_to(numbers("int8", (1, 2, 1, 32)), v.shape).copy()
    inputs = [given(n, a) for n, a in zip("qkv", (q, k, v), strict=True)]
    root = make("attention", *inputs, None, steps("int8", 0.01))
    mean = np.broadcast_to(v.mean(2, keepdims=True), q.shape).astype(np.float32)
    check(root, root, [q, k, v], inputs, isa, rtol=1e-6, atol=1e-6, want=mean)


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("isa", BEST)
def test_attention_side_by_side(dtype: str, isa: Isa) -> None:
    """4 heads of queries, 2 of keys, 2 of values, of 24 each, in one row."""
    x = numbers(dtype, (2, 21, 8 * 24))
    source, scale = given("x", x), steps(dtype, 2e-5)
    root = make("attention", source, None, None, None, scale, q_num_heads=4, kv_num_heads=2)
    assert root.type.dims == (2, 21, 4 * 24)
    arrays = dict(zip("qkv", np.split(x, [96, 144], -1), strict=True))
    parts = [given(n, a) for n, a in arrays.items()]
    apart = make("attention", *parts, None, scale, q_num_heads=4, kv_num_heads=2)
    graph = Graph(tuple(parts), (apart,), ("y",))
    want = evaluate(graph, arrays)["y"]
    check(root, root, [x], [source], isa, threads=2, want=want, **bounds(root, [x]))
