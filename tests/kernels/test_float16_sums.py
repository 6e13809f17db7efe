"""Products whose sums end in float16, as results are only rounded to that: within the bound that is
promised, infinite or not a number where float32's are, and float32 wherever float16 could not do.
"""

from __future__ import annotations

import board
import numpy as np
import pytest
from kernel_harness import device, expected, made, region_of, run, sharing
from test_kernels_contraction import CONVOLUTIONS, conv
from test_short_sums import FP16, LARGEST, MAC, bound, floats, product

from qcompiler.ir import Array, Graph, Node, constant
from qcompiler.kernels.cpu.contraction.operands import bias_of, scaled
from qcompiler.kernels.cpu.contraction.tiled import Task, tiled
from qcompiler.kernels.cpu.windows.depthwise import depthwise
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.region import Region
from qcompiler.kernels.registry import Kernel, Ways
from qcompiler.ops import make


def ended(root: Node, bias: Array | None = None, clip: bool = False) -> tuple[Graph, Node]:
    """(A product, a bias added, clipped to [0, 6], rounded to float16; the same in float32)."""
    value = root if bias is None else make("Add", root, constant(bias, "bias"))
    if clip:
        value = make("Clip", value, constant(np.float32(0)), constant(np.float32(6)))
    return Graph(root.operands[:1], (make("Cast", value, to="float16"),), ("y",)), value


def region_ended(graph: Graph) -> Region:
    (output,) = graph.outputs
    root = output
    while root.op not in ("conv", "matmul"):
        root = root.operands[0]
    return region_of(graph, root)


def ends_in_float16(region: Region) -> bool:
    known = sealed(region, device(FP16))
    return known.known(bias_of(known)[0]).halves


def near(
    root: Node, x: Array, bias: Array | None = None, clip: bool = False, by: Ways = tiled
) -> None:
    """Finite, infinite and NaN where float32's rounded results are; what is finite in the bound."""
    board.demand()
    graph, exact = ended(root, bias, clip)
    region = region_ended(graph)
    assert ends_in_float16(region)
    kernel = made(by, region, sharing(device(FP16, 2)))
    assert isinstance(kernel, Kernel), kernel
    values = {n: n.array for n in region.inputs if n.is_constant} | {root.operands[0]: x}
    got = run(kernel, region, FP16, values).astype(np.float64)
    want = expected(Graph(graph.inputs, (exact,), ("y",)), {root.operands[0]: x})
    added = 0 if bias is None else np.abs(bias.astype(np.float64))
    with np.errstate(invalid="ignore"):
        most = bound(root, x, 25) + 2.0**-11 * (added + np.abs(want)) + 2.0**-24
        infinite = np.isinf(want) | (np.abs(want) - most >= LARGEST)
        finite = np.abs(want) + np.nan_to_num(most) < LARGEST
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.array_equal(got[infinite], np.copysign(np.inf, want[infinite]))
    assert np.isfinite(got[finite]).all()
    if np.isfinite(x).all():
        there = finite & np.isfinite(most)
        assert np.all(np.abs(got - want)[there] <= most[there])


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 19, 129), (7, 23, 33), (29, 37, 67), (9, 40, 64), (5, 24, 65), (6, 30, 200), (3, 9, 1024)],
)
def test_products_are_within_the_bound(m: int, n: int, k: int) -> None:
    x = floats((m, k))
    root, bias = product(x, floats((k, n), 1)), floats((n,), 2).astype(np.float32) * 3
    near(root, x)
    near(root, x, bias)
    near(root, x, bias, clip=True)


@pytest.mark.parametrize("k", [40, 200])
def test_sums_may_be_joined_before_any_is_finished(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tiles are of which only a run knows whether all pixels are there."""
    monkeypatch.setattr(Task, "late", False)
    x = floats((9, k))
    near(product(x, floats((k, 40), 1)), x, floats((40,), 2).astype(np.float32), clip=True)


@pytest.mark.parametrize("name", ["a first layer", "same padding", "narrow groups", "one axis"])
def test_convolutions_are_within_the_bound(name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    root = conv(x, w, "float16", "float16", **attrs)
    bias = floats((w[-1],), 2).astype(np.float32)
    if "group" not in attrs:
        near(root, floats(x), bias, clip=True)
        return
    graph, exact = ended(root, bias)
    region = region_ended(graph)
    kernel = made(tiled, region, sharing(device(FP16, 2)))
    assert isinstance(kernel, Kernel), kernel
    board.demand()
    values = {n: n.array for n in region.inputs if n.is_constant} | {root.operands[0]: floats(x)}
    want = expected(Graph(graph.inputs, (exact,), ("y",)), {root.operands[0]: floats(x)})
    got = run(kernel, region, FP16, values)
    assert np.all(np.abs(got - want) <= 2e-2 * np.abs(want).max())


@pytest.mark.parametrize("channels", [3, 8, 37])
def test_depthwise_convolutions_are_within_the_bound(channels: int) -> None:
    x, w = (2, 9, 11, channels), (3, 3, 1, channels)
    for strides in ((1, 1), (2, 2)):
        root = conv(x, w, "float16", "float16", group=channels, pads=(1,) * 4, strides=strides)
        near(root, floats(x), floats((channels,), 2).astype(np.float32), clip=True, by=depthwise)
        near(root, floats(x), by=depthwise)


def test_no_sum_overflows_where_float32s_does_not() -> None:
    """The largest numbers, of one sign or such that they cancel in the end, over many sections."""
    k = 200
    x = np.full((5, k), LARGEST, np.float16)
    x[1] = -x[1]
    x[2, ::2] = -LARGEST
    x[3, k // 2 :] = -LARGEST
    x[4] = 1e-3
    w = np.stack([np.full(k, c) for c in (140, -140, 1.0, 3e-5, 6e-8, 0.0, 0.97)], 1)
    w = np.concatenate([w, floats((k, 9), 2, 100.0)], 1).astype(np.float16)
    near(product(x, w), x)
    near(product(x, w), x, np.full(16, -60000, np.float32))


def test_infinity_and_nan_are_what_float32_makes_of_them() -> None:
    x = floats((6, 150))
    x[0, 3], x[1, 140], x[2, 7] = np.inf, -np.inf, np.nan
    x[3, 1], x[3, 102] = np.inf, -np.inf
    w = floats((150, 20), 1)
    w[3, :4] = (6e-8, -6e-8, 0, 1)
    w[9, 5], w[9, 6], w[11, 7] = np.inf, -np.inf, np.nan
    bias = floats((20,), 2).astype(np.float32)
    bias[8:11] = np.inf, -np.inf, np.nan
    near(product(x, w), x, bias)
    near(product(x, w), x, bias, clip=True)


def test_float16_must_do_for_all_that_is_added() -> None:
    x, w = floats((4, 70)), floats((70, 16), 1)
    few = np.ones(16, np.float32)
    for weights, bias, does in (
        (w, few, True),
        (w, few * 7e4, False),  # a bias beyond float16
        (np.full_like(w, 500), few, False),  # and so the power of two of the columns
        (floats((1025, 16)), few, False),  # more sections than the bound is for
    ):
        graph, _ = ended(product(floats((4, len(weights))), weights), bias)
        assert ends_in_float16(region_ended(graph)) == does
    graph, _ = ended(product(x, w), few, clip=True)
    assert ends_in_float16(region_ended(graph))
    root = product(x, w)  # what is read in float32 is not rounded
    wide = make("Add", root, constant(few, "bias"))
    other = make("Mul", wide, make("Sigmoid", wide))
    assert not ends_in_float16(region_of(Graph(root.operands[:1], (other,), ("y",)), root))
    third = make("Clip", wide, None, constant(np.float32(0.3)))
    graph = Graph(root.operands[:1], (make("Cast", third, to="float16"),), ("y",))
    assert not ends_in_float16(region_of(graph, root))


def test_columns_are_scaled_until_all_sections_together_fit() -> None:
    w = np.concatenate([floats((1, 300, 30), s + 6, 10.0**s) for s in (-3, 0, 2)], 2)
    made_of, scales = scaled(w, MAC, "float16")
    assert np.array_equal(np.frexp(scales)[0], np.full(90, 0.5))
    sums = np.abs(made_of.astype(np.float64)).sum((0, 1))
    assert MAC.most / 2 * 0.99 <= sums.min() <= sums.max() <= MAC.most
