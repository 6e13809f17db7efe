"""Resize on a GPU: every mode equals its meaning, channels last and first."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import check, gpu
from kernel_harness import normal

from qcompiler.ir import Array, Type, constant, placeholder
from qcompiler.ops import make


def resized(
    array: Array,
    sizes: tuple[int, ...],
    *,
    between: bool = True,
    tolerance: float = 1e-5,
    **attrs: object,
) -> None:
    """Between a ReLU and a sum, if that is asked for."""
    x = placeholder("x", Type(array.dtype.name, array.shape))
    before = make("Relu", x) if between else x
    y = make("Resize", before, None, None, constant(np.array(sizes)), **attrs)
    out = make("Add", y, y) if between else y
    kernel = check(out, y, [array], (x,), gpu(), rtol=tolerance, atol=tolerance)
    assert kernel.grid is not None
    assert kernel.name.startswith("resize")


@pytest.mark.parametrize(
    "mode",
    ["linear", *[pytest.param(m, marks=pytest.mark.slow) for m in ("nearest", "cubic")]],
)
def test_channels_last_and_first(mode: str) -> None:
    resized(normal((1, 4, 5, 8)), (1, 9, 8, 8), mode=mode)
    resized(normal((2, 3, 4, 5)), (2, 3, 7, 9), mode=mode)


@pytest.mark.slow
def test_other_dtypes() -> None:
    bytes_ = (50 * normal((1, 4, 5, 3))).astype(np.int8)
    resized(bytes_, (1, 8, 9, 3), between=False, tolerance=0, mode="nearest")
    resized(bytes_, (1, 8, 10, 3), between=False, mode="linear")
    resized(normal((1, 3, 4, 8)).astype(np.float16), (1, 6, 8, 8), tolerance=2e-3, mode="linear")
    resized(normal((1, 2, 8, 9)), (1, 2, 4, 5), mode="linear", antialias=1)
