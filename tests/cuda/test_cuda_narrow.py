"""Products by weights of 2, 4 and 8 bits on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import check_all, gpu
from kernel_harness import normal

from qcompiler import plugins
from qcompiler.ir import Node, Type, constant, placeholder
from qcompiler.kernels.gpu.contraction.narrow import gpu_narrow
from qcompiler.kernels.gpu.contraction.narrow_tiled import gpu_narrow_tiled
from qcompiler.kernels.registry import Ways
from qcompiler.ops import make

plugins.load_all()


def product(m: int, n: int, k: int, bits: int, group: int) -> tuple[Node, Node]:
    rng = np.random.default_rng((m, n, k, bits))
    x = placeholder("x", Type("float32", (m, k)))
    codes = constant(rng.integers(0, 1 << bits, (k, n)).astype(np.uint8))
    shape = (-(-k // group), n)
    scale = constant(normal(shape, 1) / np.float32(1 << bits))
    zero = constant(rng.integers(0, 1 << bits, shape).astype(np.float32) - np.float32(0.5))
    return x, make("matmul_narrow", x, codes, scale, zero, bits=bits, group=group)


def checked(generator: Ways, m: int, n: int, k: int, bits: int, group: int) -> None:
    x, root = product(m, n, k, bits, group)
    out = make("Add", root, constant(normal((n,), 2)))
    check_all(generator, out, root, [normal((m, k))], (x,), gpu(), rtol=1e-5, atol=3e-6 * k)


BITS = pytest.mark.parametrize(
    "bits", [4, *[pytest.param(n, marks=pytest.mark.slow) for n in (2, 8)]]
)


@BITS
def test_few_rows_by_weights_that_are_read_once(bits: int) -> None:
    checked(gpu_narrow, 1, 33, 192, bits, 64)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rows_and_columns_that_fill_no_block(bits: int) -> None:
    checked(gpu_narrow, 3, 20, 70, bits, 32)
    checked(gpu_narrow, 2, 5, 9, bits, 16)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_many_rows_by_weights_that_tiles_decode(bits: int) -> None:
    checked(gpu_narrow_tiled, 9, 36, 40, bits, 16)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tiles_of_more_than_a_block(bits: int) -> None:
    checked(gpu_narrow_tiled, 70, 140, 100, bits, 32)
    checked(gpu_narrow, 9, 70, 1200, bits, 32)
