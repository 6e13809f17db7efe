"""Products whose sums are float16 for some steps: within the bound that is promised, and infinite
or not a number exactly where float32 sums are.
"""

from __future__ import annotations

import board
import numpy as np
import pytest
from kernel_harness import device, expected, made, region_of, run, sharing
from test_kernels_contraction import CONVOLUTIONS, conv, force, side_by_side

from qcompiler import plugins
from qcompiler.hardware.isa import ISAS, Isa
from qcompiler.ir import Array, Graph, Node, Type, constant, placeholder
from qcompiler.kernels.cpu.contraction.blocking import Tiling
from qcompiler.kernels.cpu.contraction.operands import scaled, sections
from qcompiler.kernels.cpu.contraction.tiled import tiled
from qcompiler.kernels.cpu.windows.depthwise import depthwise
from qcompiler.kernels.facts import sealed
from qcompiler.kernels.registry import Kernel, Ways
from qcompiler.ops import make

plugins.load_all()
FP16 = ISAS["arm_fp16"]
MAC = FP16.short
assert MAC is not None
LARGEST = 65504.0


def floats(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Array:
    rng = np.random.default_rng((seed, *shape))
    return (rng.standard_normal(shape) * scale).astype(np.float16)


def product(x: Array, w: Array) -> Node:
    return make("matmul", placeholder("x", Type("float16", x.shape)), constant(w, "w"))


def sums_of(root: Node, x: Array, isa: Isa = FP16, generator: Ways = tiled) -> tuple[Array, Array]:
    """(What the kernel makes of x, what numpy does in float32)."""
    board.demand()
    graph = Graph(root.operands[:1], (root,), ("y",))
    region = region_of(graph, root)
    kernel = made(generator, region, sharing(device(isa, 2)))
    assert isinstance(kernel, Kernel), kernel
    assert "f16f16f16" in kernel.name or generator is not tiled
    values = {root.operands[0]: x, root.operands[1]: root.operands[1].array}
    return run(kernel, region, isa, values), expected(graph, values)


def bound(root: Node, x: Array, part: int = 30) -> Array:
    """What docs/targets.md promises: a thirtieth of the sum of absolute products, and 2^-24 of a
    column's scale for each step, and for each unit of the left operand.
    """
    w = root.operands[1].array
    sizes = [np.abs(a.astype(np.float64)) for a in (x, w)]
    one = [np.ones_like(sizes[0]), np.ones_like(sizes[1])]

    def total(left: Array, right: Array) -> Array:
        nodes = [constant(a.astype(np.float32)) for a in (left, right)]
        again = root.with_inputs(nodes)
        return expected(Graph((), (again,), ("y",)), {}).astype(np.float64)

    column = sizes[1].reshape(-1, w.shape[-1]).sum(0)
    scale = 2 * column / MAC.most
    return total(*sizes) / part + 2.0**-24 * scale * (
        total(sizes[0], one[1]) + total(one[0], one[1])
    )


def near(root: Node, x: Array, **options: object) -> None:
    """Finite, infinite and NaN where numpy's are, the finite within the bound."""
    got, want = sums_of(root, x, **options)  # type: ignore[arg-type]
    assert np.array_equal(np.isnan(got), np.isnan(want))
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite)
    assert np.array_equal(got[~finite & ~np.isnan(want)], want[~finite & ~np.isnan(want)])
    if np.isfinite(x).all() and np.isfinite(root.operands[1].array).all():
        assert np.all(np.abs(got.astype(np.float64) - want) <= bound(root, x))


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (1, 1, 1),
        (1, 19, 129),
        (13, 8, 4),
        (7, 23, 33),
        (31, 33, 32),
        (29, 37, 67),
        (9, 40, 64),
        (5, 24, 65),
        (6, 30, 200),
    ],
)
def test_products_are_within_the_bound(m: int, n: int, k: int) -> None:
    x = floats((m, k))
    near(product(x, floats((k, n), 1)), x)


@pytest.mark.parametrize(("m", "n", "k"), [(35, 50, 9), (17, 64, 130), (50, 56, 200)])
def test_products_of_rows_side_by_side(
    m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    side_by_side(monkeypatch)
    x = floats((m, k))
    near(product(x, floats((k, n), 1)), x)


def test_every_tile_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, vectors in ((1, 1), (3, 2), (8, 2), (2, 3), (6, 3), (8, 1)):
        force(monkeypatch, Tiling(rows, vectors, block=1))
        for m, n in ((rows, vectors * 8), (rows + 1, vectors * 8 - 1), (rows, vectors * 8 + 1)):
            x = floats((m, 42))
            near(product(x, floats((42, n), 1)), x)


@pytest.mark.parametrize(
    ("low", "high", "known"), [(0, 6, True), (0, 0.1, False), (-1, None, True)]
)
def test_what_is_clipped_and_rounded_is_the_same_either_way(
    low: float, high: float | None, known: bool
) -> None:
    """Bounds that float16 has are applied to what is rounded already; NaN stays what it is."""
    board.demand()
    x = floats((9, 40))
    x[0, :3], x[1, 0], x[2, 0] = np.nan, np.inf, -np.inf
    root = product(x, floats((40, 24), 1))
    ends = [None if end is None else constant(np.float32(end)) for end in (low, high)]
    plain = make("Add", root, constant(floats((24,), 2).astype(np.float32)))
    clip = make("Clip", plain, *ends)
    found = []
    for output in (plain, make("Cast", clip, to="float16")):
        region = region_of(Graph(root.operands[:1], (output,), ("y",)), root)
        kernel = made(tiled, region, sharing(device(FP16, 2)))
        assert isinstance(kernel, Kernel), kernel
        values = {n: n.array for n in region.inputs if n.is_constant} | {root.operands[0]: x}
        found.append(run(kernel, region, FP16, values))
    facts = sealed(region, device(FP16)).facts
    assert facts is not None
    assert any(f.halves for n, f in facts.items() if n.op == "Clip") == known
    want = np.clip(found[0], low, high).astype(np.float16)
    assert np.isnan(want).any()
    assert np.array_equal(found[1], want, equal_nan=True)


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if n != "depthwise"])
def test_convolutions_are_within_the_bound(name: str) -> None:
    x, w, attrs = CONVOLUTIONS[name]
    root = conv(x, w, "float16", "float16", **attrs)
    if "group" in attrs:
        got, want = sums_of(root, floats(x))
        assert np.all(np.abs(got - want) <= 2e-2 * np.abs(want).max())
        return
    near(root, floats(x))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("channels", [3, 8, 37])
def test_depthwise_convolutions_are_within_the_bound(kernel: int, channels: int) -> None:
    x, w = (2, 9, 11, channels), (kernel, kernel, 1, channels)
    for strides in ((1, 1), (2, 2)):
        attrs = {"group": channels, "pads": (kernel // 2,) * 4, "strides": strides}
        root = conv(x, w, "float16", "float16", **attrs)
        near(root, floats(x), generator=depthwise)


def test_depthwise_sums_do_not_overflow() -> None:
    x = np.full((1, 5, 6, 12), LARGEST, np.float16)
    x[0, 3, 2, 4], x[0, 2, 2, 5] = np.inf, np.nan
    weights = np.full((3, 3, 1, 12), 300, np.float16)
    weights[..., 3] = 6e-8
    root = make("conv", placeholder("x", Type("float16", x.shape)), constant(weights), group=12)
    near(root, x, generator=depthwise)


def test_long_sums_are_as_exact_as_short_ones() -> None:
    """The error grows as that of 16-bit operands does, four times that of rounding these."""
    for k in (64, 512, 4096):
        x, w = floats((16, k)), floats((k, 32), 1)
        got, want = sums_of(product(x, w), x)
        assert np.std(got - want) < 1.5e-3 * np.std(want)


def test_no_sum_overflows_where_that_of_float32_does_not() -> None:
    """The largest numbers, all of one sign or such that they cancel in the end."""
    k = 200
    x = np.full((5, k), LARGEST, np.float16)
    x[1] = -x[1]
    x[2, ::2] = -LARGEST
    x[3, k // 2 :] = -LARGEST
    x[4] = 1e-3
    w = np.stack([np.full(k, c) for c in (LARGEST, -LARGEST, 1.0, 3e-5, 6e-8, 0.0, 0.97)], 1)
    w = np.concatenate([w, floats((k, 9), 2, 1000.0)], 1).astype(np.float16)
    near(product(x, w), x)


def test_infinity_and_nan_are_what_float32_makes_of_them() -> None:
    """Infinity times what is not 0 is infinite, however small the other weights make it."""
    x = floats((6, 50))
    x[0, 3], x[1, 40], x[2, 7] = np.inf, -np.inf, np.nan
    x[3, 1], x[3, 2] = np.inf, -np.inf
    w = floats((50, 20), 1)
    w[3, :4] = (6e-8, -6e-8, 0, 1)
    w[4, :4] = LARGEST
    w[9, 5], w[9, 6], w[11, 7] = np.inf, -np.inf, np.nan
    near(product(x, w), x)


def test_columns_are_scaled_by_powers_of_two_until_their_sums_fit() -> None:
    w = np.concatenate([floats((1, 70, 30), s + 6, 10.0**s) for s in (-6, -3, 0, 3)], 2)
    made_of, scales = scaled(w, MAC)
    assert np.array_equal(np.frexp(scales)[0], np.full(120, 0.5))
    parts = np.abs(made_of.astype(np.float64))
    largest = np.maximum(parts[0, :64].sum(0), parts[0, 64:].sum(0))
    assert largest.max() <= MAC.most
    assert np.all((largest >= MAC.most / 2 * 0.99) | (largest == 0))
    exact = made_of.astype(np.float64) * scales == w
    assert np.all(exact | (parts < 2.0**-14))


def test_taps_share_a_section_if_they_are_few() -> None:
    assert sections(64, 9, 7) == (1, 63)
    assert sections(64, 9, 8) == (9, 8)
    assert sections(64, 1, 130) == (3, 64)
