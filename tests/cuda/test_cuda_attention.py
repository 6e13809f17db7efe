"""Attention for GPUs, run on this CPU."""

from __future__ import annotations

import numpy as np
import pytest
from byte_attention import spread
from emulation import check, gpu, run
from kernel_harness import compare, expected, region_of

from qcompiler.errors import Skip
from qcompiler.ir import Array, Graph, Node, Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.gpu.attention.general import gpu_attention
from qcompiler.kernels.gpu.attention.tensor import gpu_tensor_attention
from qcompiler.kernels.registry import Kernel, Ways
from qcompiler.ops import make

CASES = {  # batch, heads, key heads, queries, keys, size, value size, 3-D, mask
    "masked": (2, 3, 3, 7, 19, 16, 16, False, (2, 1, 1, 19)),
    "shared keys": (1, 4, 2, 33, 33, 32, 32, True, ()),
    "odd sizes": (1, 2, 2, 5, 40, 17, 9, True, (5, 40)),
    "one query": (1, 1, 1, 1, 131, 48, 48, False, ()),
    "many": (1, 2, 1, 70, 150, 64, 64, True, (1, 2, 70, 150)),
    "wide": (1, 1, 1, 20, 70, 128, 128, False, ()),
}
BOUNDS = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2, "int8": 1e-5}
RNG = np.random.default_rng(5)


def numbers(dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "int8":
        return RNG.integers(-128, 128, shape).astype(np.int8)
    return RNG.normal(size=shape).astype(numpy_dtype(dtype))


def attention(
    name: str, dtype: str, *, boolean: bool = False, causal: bool = False, **attrs: float
) -> tuple[Node, list[Node], list[Array]]:
    """A case -> the node, its inputs and their values."""
    batch, heads, shared, queries, keys, size, wide, flat, mask = CASES[name]

    def operand(heads: int, length: int, size: int) -> Array:
        shape = (batch, length, heads * size) if flat else (batch, heads, length, size)
        return numbers(dtype, shape)

    arrays = [operand(heads, queries, size), operand(shared, keys, size)]
    arrays.append(operand(shared, keys, wide))
    if mask:
        hidden = RNG.random(mask) < 0.3
        if boolean:
            hidden[(0,) * (len(mask) - 1)] = True  # a row that sees nothing
        low = np.where(hidden, -1e4, 0).astype("float32" if dtype == "int8" else arrays[0].dtype)
        arrays.append(~hidden if boolean else low)
    inputs = [
        placeholder(n, Type(a.dtype.name, a.shape)) for n, a in zip("qkvm", arrays, strict=False)
    ]
    counts = {"q_num_heads": heads, "kv_num_heads": shared} if flat else {}
    scale = constant(np.float32(1e-4 / size**0.5)) if dtype == "int8" else None
    operands = (*inputs, *[None] * (4 - len(inputs)), scale)
    root = make("attention", *operands, is_causal=int(causal), **counts, **attrs)
    return root, inputs, arrays


def every_way(root: Node, inputs: list[Node], arrays: list[Array], ways: Ways) -> None:
    """Run each of a generator's kernels, and compare."""
    graph = Graph(tuple(inputs), (root,), ("y",))
    region = region_of(graph, root)
    values = dict(zip(inputs, arrays, strict=True))
    values |= {n: n.array for n in region.inputs if n.is_constant}
    want = expected(graph, values)
    found = ways(region, gpu())
    assert not isinstance(found, Skip), found
    dtype = inputs[0].dtype
    rtol = BOUNDS[dtype]
    atol = rtol + spread(root, arrays) if dtype == "int8" else rtol
    for candidate in found:
        kernel = candidate.build()
        assert isinstance(kernel, Kernel), kernel
        compare(run(kernel, region, gpu(), values), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("masked", "float32"),
        ("odd sizes", "int8"),
        *[
            pytest.param(n, d, marks=pytest.mark.slow)
            for n, d in (
                ("masked", "int8"),
                ("odd sizes", "float32"),
                ("shared keys", "float32"),
                ("shared keys", "int8"),
            )
        ],
    ],
)
def test_attention_of_any_dtype_and_size(name: str, dtype: str) -> None:
    causal = name == "shared keys"
    every_way(*attention(name, dtype, causal=causal), gpu_attention)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("one query", "float16"),
        *[
            pytest.param(n, d, marks=pytest.mark.slow)
            for n in ("masked", "one query", "many", "wide")
            for d in ("float16", "bfloat16")
            if (n, d) != ("one query", "float16")
        ],
    ],
)
def test_tensor_cores_attend(name: str, dtype: str) -> None:
    every_way(*attention(name, dtype), gpu_tensor_attention)


@pytest.mark.parametrize("name", ["shared keys", pytest.param("many", marks=pytest.mark.slow)])
def test_queries_see_no_later_keys(name: str) -> None:
    every_way(*attention(name, "float16", causal=True), gpu_tensor_attention)


@pytest.mark.parametrize(
    ("dtype", "ways"),
    [
        ("float16", gpu_tensor_attention),
        pytest.param("float32", gpu_attention, marks=pytest.mark.slow),
        pytest.param("int8", gpu_attention, marks=pytest.mark.slow),
    ],
)
def test_queries_that_see_nothing_give_zeros(dtype: str, ways: Ways) -> None:
    every_way(*attention("masked", dtype, boolean=True), ways)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_are_capped(dtype: str) -> None:
    ways = gpu_attention if dtype == "float32" else gpu_tensor_attention
    every_way(*attention("masked", dtype, softcap=2.0, scale=0.5), ways)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_queries_keys_and_values_lie_side_by_side(dtype: str) -> None:
    """4 heads of queries, 2 of keys, 2 of values, of 16 each, in one row; what follows is fused."""
    x = numbers(dtype, (2, 21, 8 * 16))
    source = placeholder("x", Type(dtype, x.shape))
    root = make("attention", source, None, None, None, None, q_num_heads=4, kv_num_heads=2)
    out = make("Relu", make("Add", root, constant(numbers(dtype, (64,)))))
    bound = BOUNDS[dtype]
    kernel = check(out, root, [x], (source,), gpu(), rtol=bound, atol=bound)
    assert ("tensor" in kernel.name) == (dtype == "bfloat16")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_where_a_dtype_has_no_tensor_cores_the_general_kernel_is_chosen(dtype: str) -> None:
    root, inputs, arrays = attention("masked", dtype)
    bound = BOUNDS[dtype]
    kernel = check(root, root, arrays, inputs, gpu("sm_75"), rtol=bound, atol=bound)
    assert kernel.grid is not None
    assert ("tensor" in kernel.name) == (dtype == "float16")
