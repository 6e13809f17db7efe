"""Scatters on a GPU: whatever goes where, what is last stays and sums are in order."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import check_all, gpu
from kernel_harness import normal

from qcompiler import plugins
from qcompiler.ir import Array, Type, placeholder
from qcompiler.kernels.gpu.moves.scatter import gpu_scatter
from qcompiler.ops import make

plugins.load_all()
REDUCTIONS = pytest.mark.parametrize(
    "reduction",
    [pytest.param(r, marks=pytest.mark.slow) for r in ("none", "add", "mul", "max", "min")],
)


def scattered(op: str, x: Array, where: Array, updates: Array, **attrs: object) -> None:
    """In every way, which are all exact."""
    arrays = [x, where, updates]
    nodes = [placeholder(f"in{i}", Type(a.dtype.name, a.shape)) for i, a in enumerate(arrays)]
    y = make(op, *nodes, **attrs)
    knobs = check_all(gpu_scatter, y, y, arrays, nodes, gpu())
    assert len(knobs) == (3 if attrs["reduction"] == "none" else 2)


@REDUCTIONS
def test_elements_go_to_equal_places_in_order(reduction: str) -> None:
    rng = np.random.default_rng(0)
    for shape, places, axis in [((4, 7), (3, 9), 1), ((5, 3, 4), (8, 2, 4), 0), ((6,), (40,), 0)]:
        where = rng.integers(-shape[axis], shape[axis], places)
        scattered(
            "ScatterElements",
            normal(shape),
            where,
            normal(places, 1),
            axis=axis,
            reduction=reduction,
        )


@REDUCTIONS
def test_rows_go_to_equal_places_in_order(reduction: str) -> None:
    rng = np.random.default_rng(1)
    for shape, count, depth in [((4, 5), 9, 1), ((3, 4, 2), 7, 2), ((3, 4), 20, 2)]:
        where = np.stack([rng.integers(-n, n, count) for n in shape[:depth]], 1)
        updates = normal((count, *shape[depth:]), 1)
        scattered("ScatterND", normal(shape), where, updates, reduction=reduction)


@pytest.mark.parametrize(
    "dtype", ["int64", *[pytest.param(d, marks=pytest.mark.slow) for d in ("int8", "float16")]]
)
def test_values_of_all_sizes(dtype: str) -> None:
    x = np.arange(12).reshape(3, 4).astype(dtype)
    where = np.array([[1], [1], [0]])
    updates = np.arange(12).reshape(3, 4).astype(dtype)
    scattered("ScatterND", x, where, updates, reduction="add")
    scattered("ScatterND", x, where, updates, reduction="none")
