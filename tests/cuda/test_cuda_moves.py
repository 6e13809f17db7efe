"""Transposes and depthwise convolutions for GPUs, run on this CPU."""

import numpy as np
import pytest
from emulation import check, gpu
from kernel_harness import normal

from qcompiler.ir import Type, constant, numpy_dtype, placeholder
from qcompiler.kernels.gpu.moves.transpose import merged
from qcompiler.ops import make


@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ((40, 70), (1, 0)),
        ((2, 3, 33), (0, 2, 1)),
        ((2, 5, 6, 7), (0, 2, 3, 1)),
        ((3, 4, 5, 6), (3, 1, 0, 2)),
        ((4, 6, 8), (1, 0, 2)),
        ((1, 5, 1), (2, 1, 0)),
    ],
)
def test_any_permutation_is_made(shape: tuple[int, ...], perm: tuple[int, ...]) -> None:
    x = placeholder("x", Type("float32", shape))
    y = make("Transpose", make("Neg", x), perm=perm)
    out = make("Add", y, constant(normal(y.type.dims[-1:])))
    kernel = check(out, y, [normal(shape)], (x,), gpu())
    assert kernel.grid is not None


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "bfloat16", "int64"])
def test_elements_of_any_size_are_moved(dtype: str) -> None:
    x = placeholder("x", Type(dtype, (9, 34)))
    values = np.random.default_rng(0).integers(0, 2, (9, 34)).astype(numpy_dtype(dtype))
    y = make("Transpose", x, perm=(1, 0))
    check(y, y, [values], (x,), gpu())


def test_axes_that_stay_neighbours_are_one() -> None:
    assert merged((2, 3, 4, 5), (2, 3, 0, 1)) == ([20, 6], [1, 20])
    assert merged((2, 3, 4), (0, 1, 2)) == ([24], [1])
    assert merged((1, 7, 1), (2, 1, 0)) == ([7], [1])


CASES = [
    dict(x=(1, 6, 7, 8), w=(3, 3, 1, 8), pads=(1, 1, 1, 1)),
    dict(x=(2, 9, 8, 6), w=(3, 2, 1, 6), strides=(2, 1), pads=(1, 0, 0, 1)),
    dict(x=(1, 12, 5), w=(3, 1, 5), dilations=(2,)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c["w"])))
@pytest.mark.parametrize("dtype", ["float32", "int8", "float16"])
def test_each_channel_has_a_filter(case: dict[str, tuple[int, ...]], dtype: str) -> None:
    attrs = {k: v for k, v in case.items() if k not in "xw"}
    rng = np.random.default_rng(0)
    scale = 100 if dtype == "int8" else 1
    kind, shape = numpy_dtype(dtype), case["w"]
    w = constant(np.clip(scale * rng.standard_normal(shape), -128, 127).astype(kind))
    x = placeholder("x", Type(dtype, case["x"]))
    values = np.clip(scale * rng.standard_normal(case["x"]), -128, 127).astype(kind)
    pad = {"pad_value": 3} if dtype == "int8" else {}
    y = make("conv", x, w, group=shape[-1], **attrs, **pad)
    out = make("Relu", y)
    kernel = check(out, y, [values], (x,), gpu(), rtol=1e-5, atol=1e-5)
    assert kernel.name.startswith("depthwise")
    assert kernel.grid is not None


@pytest.mark.parametrize("op", ["max_pool", "average_pool"])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((1, 8, 7, 8), dict(kernel_shape=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1))),
        ((2, 6, 6, 3), dict(kernel_shape=(2, 3), strides=(1, 2))),
        ((1, 9, 16), dict(kernel_shape=(4,), strides=(3,), pads=(1, 2))),
    ],
)
def test_windows_are_pooled(
    op: str, dtype: str, shape: tuple[int, ...], attrs: dict[str, tuple[int, ...]]
) -> None:
    rng, kind = np.random.default_rng(0), numpy_dtype(dtype)
    values = (rng.integers(0, 256, shape) if dtype == "uint8" else normal(shape)).astype(kind)
    x = placeholder("x", Type(dtype, shape))
    y = make(op, x, **attrs)
    kernel = check(y, y, [values], (x,), gpu(), rtol=1e-2 if dtype == "bfloat16" else 1e-6)
    assert kernel.grid is not None
