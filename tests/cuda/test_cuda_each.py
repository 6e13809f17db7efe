"""Operators with a thread for each element, and the choice of boxes, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import check, gpu
from kernel_harness import normal

from qcompiler import plugins
from qcompiler.ir import Type, constant, placeholder
from qcompiler.ops import make

plugins.load_all()


def test_a_triangle_between_other_operators() -> None:
    x = placeholder("x", Type("float32", (3, 5, 4)))
    y = make("Trilu", make("Neg", x), upper=1)
    kernel = check(make("Add", y, y), y, [normal((3, 5, 4))], (x,), gpu())
    assert kernel.grid is not None


@pytest.mark.slow
def test_images_read_between_their_pixels() -> None:
    x, grid = (
        placeholder(n, Type("float32", s)) for n, s in (("x", (1, 2, 5, 6)), ("g", (1, 3, 4, 2)))
    )
    y = make("GridSample", x, grid, mode="linear")
    arrays = [normal((1, 2, 5, 6)), 0.6 * normal((1, 3, 4, 2), 1)]
    assert check(y, y, arrays, (x, grid), gpu(), rtol=1e-5, atol=1e-5).grid is not None


@pytest.mark.slow
@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize(("count", "most"), [(9, 40), (300, 5)])
def test_boxes_are_kept_in_the_order_of_classes_and_scores(
    count: int, most: int, center: int
) -> None:
    rng = np.random.default_rng(count)
    boxes = rng.integers(0, 12, (2, count, 4)).astype(np.float32)
    scores = rng.integers(0, 9, (2, 3, count)).astype(np.float32) / 8
    nodes = [placeholder(n, Type("float32", a.shape)) for n, a in (("b", boxes), ("s", scores))]
    given = [np.array([4]), np.array([0.3], np.float32), np.array([0.2], np.float32)]
    y = make("non_max_suppression", *nodes, *map(constant, given), most=most, center=center)
    kernel = check(y, y, [boxes, scores], nodes, gpu())
    assert len(kernel.after) == 1


@pytest.mark.slow
def test_determinants_and_places_of_largest_values() -> None:
    x = placeholder("x", Type("float32", (3, 4, 4)))
    y = make("Det", x)
    assert check(y, y, [normal((3, 4, 4))], (x,), gpu(), rtol=1e-5, atol=1e-5).grid is not None
    x = placeholder("x", Type("float32", (1, 2, 6, 7)))
    pool = make("MaxPool", x, kernel_shape=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1), outputs=2)
    places = make("item", pool, index=1)
    assert check(places, places, [normal((1, 2, 6, 7))], (x,), gpu()).grid is not None
